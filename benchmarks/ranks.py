"""A rank that is measured: trains a Colorizer with the others and tells how long an epoch takes. See scaling.py.

An epoch is a pass over the training images, with the same batches whatever the number of ranks, and the mse on the
validation images.
"""

import argparse
import os
import pickle
import subprocess
import sys
from pathlib import Path

import common

import Constants
from deepcolor.common import cli
from deepcolor.common.system import keep_freed_memory
from deepcolor.reporting.progress import Silent
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.distributed import DistributedContext
from utils import UserError, Utils, format_value

_SECONDS = 4  # least length of a measurement
_DATA, _RESULT = "data", "seconds"  # files by which a rank is told and tells


def epoch_seconds(ranks: int, feature_maps: object, batch_size: int, images: common.Prepared, device: str) -> float:
    """Seconds of an epoch trained by so many ranks, which torchrun starts; 1 is a process without it.

    Raises UserError if one of them fails.
    """
    folder = images.output.root
    (folder / _DATA).write_bytes(pickle.dumps(images.data))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    flags = ["--feature-maps", format_value(feature_maps), "--batch-size", batch_size, "--device", device]
    command = [sys.executable, *launcher, __file__, str(folder), *map(str, flags)]
    # As torchrun sets it for several ranks, and says so each time.
    environment = {"OMP_NUM_THREADS": "1", **os.environ} if ranks > 1 else None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{ranks} rank(s) failed: {done.stderr.strip()[-300:]}")
    return float((folder / _RESULT).read_text())


def arguments() -> argparse.Namespace:
    parser = cli.Parser("ranks.py", description="A rank that scaling.py measures.")
    parser.add_argument("folder", type=Path, help="what to measure with")
    parser.add_argument("--feature-maps", type=common.feature_maps, default=Constants.FEATURE_MAPS)
    parser.add_argument("--batch-size", type=common.at_least_one, default=Constants.BATCH_SIZE)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    keep_freed_memory()
    context = DistributedContext.from_environment()
    if context.world_size > 1:
        context.join()
    device = context.local_device(Utils.get_device(options.device))
    data = pickle.loads((options.folder / _DATA).read_bytes())
    precision = Utils.get_precision("auto", device)
    settings = TrainConfig(feature_maps=options.feature_maps, batch_size=options.batch_size, precision=precision)
    training_run = TrainingRun("colorizer", "sigmoid", settings, (1,))
    sweep = Sweep([training_run], data, RunPaths(options.folder), device, context=context)
    trainer = sweep.trainer(training_run, Silent())
    trainer.train_epoch()  # off the clock
    began = common.clock(device)
    trainer.train_epoch()
    once = common.clock(device) - began
    epochs = context.run_on_main(lambda: max(1, round(_SECONDS / once)))
    began = common.clock(device)
    for _ in range(epochs):
        trainer.train_epoch()  # ends with an answer from all ranks
    if context.is_main_process:
        (options.folder / _RESULT).write_text(str((common.clock(device) - began) / epochs))
    if context.world_size > 1:
        context.leave()


if __name__ == "__main__":
    sys.exit(common.run("ranks.py", main))
