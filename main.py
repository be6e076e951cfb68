"""Learns to color gray photographs: trains both networks for every combination of the hyperparameters.

    python3 main.py            # everything, on the built-in photographs or those in data/
    python3 main.py --help     # all flags

Exit codes: 0 done; 1 something failed; 2 wrong use or unusable input; 130 interrupted by Ctrl-C, 143 by SIGTERM,
138 by SIGUSR1.
"""

from deepcolor.common import signals

if __name__ == "__main__":
    signals.exit_on_signal()

import argparse
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import Constants
from deepcolor.common import cli
from deepcolor.common.system import keep_freed_memory
from deepcolor.data import sample_photos
from deepcolor.data.dataset import LabDataModule
from deepcolor.reporting import results
from deepcolor.reporting.progress import bar
from deepcolor.sweep import feature_map_study, slurm
from deepcolor.sweep.sweep import Sweep
from deepcolor.training import data_parallel
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainingRun, expand_grid
from deepcolor.training.distributed import SINGLE_PROCESS, DistributedContext, launch
from utils import Grid, UserError, Utils, parse_feature_maps


def argument(parse: Callable[[str], object]) -> Callable[[str], object]:
    """The same for argparse, which then shows what the ValueError says."""

    def parsed(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def jobs(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, or auto; not '{text}'")
    return int(text)


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser("main.py", description="Trains the Regressor and the Colorizer.")
    many = {"nargs": "+"}
    add = parser.add_argument
    add("--images", metavar="DIR", type=Path, default=Path(Constants.IMAGES), help="photographs to learn from (data)")
    add("--output", metavar="DIR", type=Path, default=Path("."), help="where all results go (.)")
    add("--network", **many, choices=Constants.NETWORKS, default=Constants.NETWORKS, help="which to train (both)")
    add(
        "--activation",
        **many,
        choices=Constants.ACTIVATIONS,
        default=Constants.ACTIVATIONS,
        help="of the Colorizer (both)",
    )
    add("--lr", **many, type=float, help="learning rates of the grid")
    add("--epoch", **many, type=int, help="numbers of epochs of the grid")
    add("--weight-decay", **many, type=float, help="weight decays of the grid")
    add(
        "--feature-maps",
        type=argument(parse_feature_maps),
        metavar="MAPS",
        help="3, or six numbers with commas, or deep",
    )
    add("--recipe", choices=Constants.RECIPES, default="report", help="report: as in the report; best: the best colors")
    add("--batch-size", type=int, metavar="N", help=f"images per step ({Constants.BATCH_SIZE})")
    add(
        "--copies",
        dest="augment_repeats",
        type=int,
        metavar="N",
        help=f"passes over the images per epoch ({Constants.AUGMENT_REPEATS})",
    )
    seed = parser.add_mutually_exclusive_group().add_argument
    seed("--seed", type=int, metavar="N", help=f"of all randomness ({Constants.SEED})")
    seed("--seeds", **many, type=int, metavar="N", help="train every combination with each of these seeds")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is a GPU")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the training step")
    add("--jobs", type=jobs, metavar="N", help="training runs trained at once (auto: what is fastest here)")
    add(
        "--part",
        type=argument(slurm.Part.parse),
        metavar="I/N",
        help="only the training runs whose number in --plan is I modulo N",
    )
    add("--plan", action="store_true", help="print the combinations, training runs and epochs, and exit")
    add("--report", action="store_true", help="only gather what is finished below --output into Plots/, and exit")
    add("--study-feature-maps", action="store_true", help="compare 3, 4, ... 9 feature maps (section 9 of the report)")
    add("--tensorboard", action="store_true", help="write logs for TensorBoard, below Plots/tensorboard")
    add("--restart", action="store_true", help="ignore what an earlier run left")
    return parser


def make_plan(options: argparse.Namespace, precision: str) -> list[TrainingRun]:
    """The plan that the flags ask for: a flag outdoes the recipe, the recipe outdoes Utils.get_hyperparameters()."""
    flags = {
        name: getattr(options, name)
        for name in ("lr", "epoch", "weight_decay", "feature_maps", "batch_size", "augment_repeats", "seed")
        if getattr(options, name) is not None
    }
    grid: Grid = Utils.get_hyperparameters()
    chosen = {**Constants.RECIPES[options.recipe], **flags}
    axes = {name: value for name, value in chosen.items() if name in ("lr", "epoch", "weight_decay")}
    base = {name: value for name, value in chosen.items() if name not in axes}
    axes |= {name: [flags[name]] for name in grid.names if name in flags and name not in axes}
    grid = grid.replaced({**axes, **({"seed": options.seeds} if options.seeds else {})})
    if options.study_feature_maps:
        grid = feature_map_study.grid(grid, flags)
    return expand_grid(grid, {**base, "precision": precision}, options.network, options.activation)


def load_images(options: argparse.Namespace) -> LabDataModule:
    """The images to train on; the built-in ones where data/ holds none. Says what it found and what it left out."""
    folder = options.images
    if folder == Path(Constants.IMAGES) and (tiles := sample_photos.fill(folder)):
        print(
            f"{folder}/ held no images: {tiles} tiles of scikit-image's photographs are there now (yours: --images DIR)"
        )
    data = LabDataModule.load(
        folder, options.output, lambda work, total: bar(work, total, desc="decoding", unit=" images")
    )
    if data.cache_damage:
        print(f"the cache of decoded images was not used, {data.cache_damage}: decoded them again")
    for path, reason in sorted(data.left_out.items()):
        print(f"left out {cli.printable(path)}: {reason}", file=sys.stderr)
    left_out = f"; {len(data.left_out)} left out" if data.left_out else ""
    sizes = f"{len(data.train)} training, {len(data.val)} validation and {len(data.test)} test images"
    print(f"{sizes} from {folder}{left_out}")
    return data


def gather(
    options: argparse.Namespace, output: RunPaths, training_runs: list[TrainingRun], redraw: bool = False
) -> list[str]:
    """Puts what is finished into Plots/, and returns the lines to print. Raises UserError if nothing is."""
    lines = results.gather(output, redraw)
    return [*lines, *feature_map_study.gather(output, training_runs)] if options.study_feature_maps else lines


def run(options: argparse.Namespace, context: DistributedContext) -> int:
    """Does what the flags ask for and returns the exit code. Raises UserError, Interrupted."""
    if options.tensorboard and find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard")
    device = context.local_device(Utils.get_device(options.device))
    training_runs = context.run_on_main(lambda: make_plan(options, Utils.get_precision(options.precision, device)))
    numbered = dict(enumerate(training_runs))
    mine = options.part.of(numbered) if options.part else numbered
    if options.plan:
        print("\n".join(results.plan_lines(mine)))
        return 0
    output = RunPaths(options.output)
    if options.report:
        print("\n".join(context.run_on_main(lambda: gather(options, output, training_runs, redraw=True))))
        return 0
    if not mine:
        print(f"part {options.part} holds none of the {len(numbered)} training runs: nothing to do")
        return 0
    data_parallel.check_batch_size(min(training_run.config.batch_size for training_run in mine.values()), context)
    context.run_on_main(output.prepare)
    if True:
        data = context.run_on_main(lambda: load_images(options))
        print(f"part {options.part}: " * bool(options.part) + results.plan_lines(mine)[-1])
        if context.world_size > 1 and options.jobs not in (None, 1):
            print(
                f"--jobs {options.jobs}: one training run at a time, since all {context.world_size} ranks train it together"
            )
        # A job that was requeued before it was done would otherwise begin anew each time.
        restart = options.restart and not slurm.requeued()
        sweep = Sweep(list(mine.values()), data, output, device, restart, options.tensorboard, training_runs, context)
        failures = sweep.run(options.jobs)
        for failure in failures:
            print(f"main.py: failed: {failure}", file=sys.stderr)
        if not context.is_main_process or (failures and context.world_size > 1):
            return 1 if failures else 0  # at once: another rank must not be left waiting
        if options.part and (missing := results.what_is_missing(output, training_runs, data.fingerprint)):
            print(missing)
        elif len(failures) < len(mine):
            print("\n".join(gather(options, output, training_runs)))
    return 1 if failures else 0


def main(arguments: list[str] | None = None, context: DistributedContext = SINGLE_PROCESS) -> int:
    options = parser().parse_args(arguments)
    keep_freed_memory()
    stopped = partial(slurm.end_stopped, first=context.is_main_process)
    return cli.run("main.py", lambda: run(options, context), options.output, stopped)


if __name__ == "__main__":
    code = launch(lambda context: main(context=context))
    if code > 128:  # at once: a thread may still be busy with a large picture
        cli.exit_now(code)
    sys.exit(code)
