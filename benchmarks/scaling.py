"""Measures a sweep with one and with two processes, and a training run on one and on two ranks of the same machine.

    python3 benchmarks/scaling.py [--images DIR] [--feature-maps MAPS] [--epoch N] [--repeats N] [--json FILE]

The processes of a sweep run the same command and share its training runs. The time is that from the first start to the
last end, on images that are already decoded. The ranks are processes of torchrun that train one Colorizer. The time is
that of an epoch, with the same batches on one rank as on two. The counts take turns, and a ratio compares two
measurements of the same turn.
"""

import argparse
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common
import torch

from ColorizerManager import ColorizerManager
from deepcolor.common import cli
from deepcolor.common.system import available_cores, keep_freed_memory
from deepcolor.training.callbacks import Callbacks
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.distributed import DistributedContext, launch
from deepcolor.training.paths import RunPaths
from utils import UserError, Utils, format_value

COUNTS = (1, 2)  # of processes, and of ranks
BATCH_SIZES = (16, 64)  # of all ranks together
SECONDS = 4  # minimum length of a measurement of epochs
# Four training runs that take equally long.
GRID = "--network colorizer --activation sigmoid --lr 0.001 0.0003 --weight-decay 0 1e-5 --jobs 1".split()
MAIN = Path(__file__).resolve().parent.parent / "main.py"


def arguments() -> argparse.Namespace:
    parser = cli.Parser("scaling.py", description="Compares one and two processes of a sweep or ranks of a run.")
    add = parser.add_argument
    add("--images", metavar="DIR", type=Path, help="photographs to train on (the built-in ones)")
    add("--feature-maps", metavar="MAPS", type=common.feature_maps, default=3, help="of the networks (3)")
    add("--epoch", metavar="N", type=common.at_least_one, default=40, help="epochs of each training run (40)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (cpu)")
    add("--repeats", metavar="N", type=common.at_least_one, default=5, help="measurements of each number (5)")
    add("--json", metavar="FILE", type=Path, help="where to write all numbers")
    add("--rank", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)  # this process is measured: see `rank_seconds`
    return parser.parse_args()


# --- Processes of a sweep --------------------------------------------------------------------------


def sweep_seconds(images: common.Prepared, options: argparse.Namespace, processes: int) -> float:
    """Returns the seconds that so many processes need for the sweep. Raises UserError if one fails."""
    with tempfile.TemporaryDirectory(prefix="colorization-") as temporary:
        output = Path(temporary)
        shutil.copytree(images.output.root / ".cache", output / ".cache")
        flags = ["--images", images.folder.resolve(), "--output", output, "--epoch", options.epoch]
        flags += ["--feature-maps", format_value(options.feature_maps), "--device", options.device]
        command = [sys.executable, MAIN, *GRID, *map(str, flags)]
        start = time.monotonic()
        started = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        errors = [process.communicate()[1] for process in started]
        seconds = time.monotonic() - start
    if failed := [text for process, text in zip(started, errors) if process.returncode]:
        raise UserError(f"a process failed: {failed[0].strip()[-300:]}")
    return seconds


# --- Ranks of a training run -----------------------------------------------------------------------


def epoch_seconds(images: common.Prepared, config: TrainConfig, device: torch.device, ranks: int) -> float:
    """Returns the seconds of an epoch on so many ranks. Raises UserError if one fails."""
    folder = images.output.root
    (folder / "task").write_bytes(pickle.dumps((images.data, config, device)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *torchrun, __file__, "--rank", folder]
    # torchrun sets this for several ranks, and prints a warning if it is not set.
    environment = {"OMP_NUM_THREADS": "1", **os.environ} if ranks > 1 else None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{ranks} rank(s) failed: {done.stderr.strip()[-300:]}")
    return float((folder / "seconds").read_text())


def rank_seconds(folder: Path, context: DistributedContext) -> int:
    """Trains with the other ranks, and writes the seconds of an epoch to a file. Returns the exit code."""
    keep_freed_memory()
    data, config, device = pickle.loads((folder / "task").read_bytes())
    device = context.local_device(device)
    wide = config.is_wide
    torch.set_num_threads(max(1, available_cores() // context.local_world_size) if wide else 1)
    run = TrainingRun("colorizer", "sigmoid", config, (1,))
    trainer = ColorizerManager(run, data.to(device), RunPaths(folder), device, Callbacks(), context=context)

    def measure(epochs: int) -> float:
        start = common.clock(device)
        for _ in range(epochs):
            trainer.train_epoch()
        return (common.clock(device) - start) / epochs

    measure(1)  # warm-up
    once = measure(1)
    seconds = measure(context.run_on_main(lambda: max(1, round(SECONDS / once))))
    if context.is_main_process:
        (folder / "seconds").write_text(str(seconds))
    return 0


# --- Results ---------------------------------------------------------------------------------------


def take_turns(measure: Callable[[int], float], repeats: int) -> dict[str, dict[str, object]]:
    """Measures every count in turn, `repeats` times. Returns the seconds, the speed-ups and the load of the machine."""
    seconds: dict[int, list[float]] = {count: [] for count in COUNTS}
    loads = []
    for _ in range(repeats):
        for count in COUNTS:
            loads.append(os.getloadavg()[0])
            seconds[count].append(measure(count))
    speed_ups = {n: [one / other for one, other in zip(seconds[1], values)] for n, values in seconds.items()}
    return {
        "seconds": {str(count): common.spread(values) for count, values in seconds.items()},
        "speed-up": {str(count): common.spread(values) for count, values in speed_ups.items()},
        "load_before": common.spread(loads),
    }


def table(what: str, measured: dict[str, dict[str, object]], images: int = 0) -> str:
    """Returns a Markdown table with a row per count. `images`: how many are trained on in the measured time."""
    head = [what, "seconds, median (range)", *(["images/s"] if images else []), "times as fast"]
    rows = []
    for count, seconds in measured["seconds"].items():
        speeds = [common.show(common.spread([images / value for value in seconds["values"]]))] if images else []
        rows.append([count, common.show(seconds, ",.2f"), *speeds, common.show(measured["speed-up"][count], ".2f")])
    return common.markdown(head, rows)


def compare(options: argparse.Namespace) -> None:
    """Measures everything, prints the tables and writes the JSON file."""
    common.check_json(options.json)
    device, maps = torch.device(options.device), options.feature_maps
    results = {}
    with common.prepared(options.images) as images:
        results["processes"] = take_turns(partial(sweep_seconds, images, options), options.repeats)
        tables = [table("processes", results["processes"])]
        for size in BATCH_SIZES:
            config = TrainConfig(feature_maps=maps, batch_size=size, precision=Utils.get_precision("auto", device))
            what = f"ranks, batches of {size}"
            results[what] = take_turns(partial(epoch_seconds, images, config, device), options.repeats)
            tables.append(table(what, results[what], len(images.data.train)))
        print(common.describe(device), *tables, sep="\n\n")
        settings = {"grid": GRID, "epoch": options.epoch, "feature_maps": format_value(maps)}
        common.write_json(options.json, {"images": images.describe(), **settings, **results}, device)


if __name__ == "__main__":
    options = arguments()
    if options.rank:
        sys.exit(launch(partial(rank_seconds, options.rank)))
    sys.exit(common.run("scaling.py", lambda: compare(options)))
