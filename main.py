"""Learns to colorize gray photographs: trains both networks for every combination of the hyperparameters.

    python3 main.py            # everything, on the built-in photographs or those in data/
    python3 main.py --help     # all flags

Exit codes: 0 done; 1 something failed; 2 wrong use or unusable input; 130 stopped by Ctrl-C, 143 by SIGTERM,
138 by SIGUSR1.
"""

from deepcolor.common import signals

if __name__ == "__main__":
    signals.exit_on_signal()

import argparse
import shlex
import sys
from dataclasses import asdict, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import Constants
from deepcolor.common import cli
from deepcolor.common.cli import argument_type
from deepcolor.common.system import keep_freed_memory
from deepcolor.data import sample_photos
from deepcolor.data.dataset import LabDataModule
from deepcolor.reporting import results
from deepcolor.reporting.progress import progress_bar
from deepcolor.sweep import feature_map_study, slurm
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.config import AT_LEAST_ONE, TrainConfig, TrainingRun, expand_grid
from deepcolor.training.distributed import SINGLE_PROCESS, DistributedContext, check_batch_size, launch
from deepcolor.training.paths import RunPaths
from deepcolor.training.trained_colorizer import ARCHITECTURE, architecture, content_hash, load_colorizer
from utils import Grid, UserError, Utils, format_value, seems_to_have_gpu


def jobs(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, or auto; not '{text}'")
    return int(text)


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser("main.py", description="Trains the Regressor and the Colorizer.")
    add = parser.add_argument
    networks, activations = Constants.NETWORKS, Constants.ACTIVATIONS
    add("--images", metavar="DIR", type=Path, default=Path(Constants.IMAGES), help="photographs to learn from (data)")
    add("--output", metavar="DIR", type=Path, default=Path("."), help="where all results go (.)")
    add("--network", nargs="+", choices=networks, help="what to train (both)")
    add("--activation", nargs="+", choices=activations, help="of the Colorizer (both)")
    add("--init-from", metavar="FILE", type=Path, help="start from the weights of this colorizer checkpoint")
    add("--recipe", choices=Constants.RECIPES, default="report", help="report: as in the report; best: better colors")
    add("--device", choices=Constants.DEVICES, default="auto", help="auto: a GPU if there is one")
    add("--jobs", type=jobs, metavar="N", help="training runs at once (auto: what is fastest here)")
    add("--plan", action="store_true", help="print the combinations, training runs and epochs, and exit")
    add("--report", action="store_true", help="only gather what is finished below --output into Plots/, and exit")
    add("--study-feature-maps", action="store_true", help="compare 3, 4, ... 9 feature maps (section 9 of the report)")
    add("--tensorboard", action="store_true", help="write logs for TensorBoard, below Plots/tensorboard")
    add("--restart", action="store_true", help="ignore what earlier commands left")
    group = parser.add_argument_group("hyperparameters", "one or more values each; several are swept")
    group.add_argument("--epoch", nargs="+", type=AT_LEAST_ONE.parse, metavar="N", help="numbers of epochs (Table 1)")
    for field in fields(TrainConfig):
        if field.metadata["flag"] is None:
            continue
        rule, flag = field.metadata["rule"], field.metadata["flag"] or f"--{field.name.replace('_', '-')}"
        names = [flag, "--seeds"] if field.name == "seed" else [flag]
        default = {"precision": "auto", "lr": "Table 1", "weight_decay": "Table 1"}.get(
            field.name, format_value(field.default)
        )
        text = f"{field.metadata['help']} ({default})"
        group.add_argument(*names, dest=field.name, nargs="+", type=argument_type(rule.parse), metavar="V", help=text)
    return parser


def plan(options: argparse.Namespace, precision: str) -> list[TrainingRun]:
    """Returns the training runs that the flags ask for.

    A flag overrides the recipe, and the recipe overrides `Utils.get_hyperparameters()`.
    """
    names = ["epoch", *(field.name for field in fields(TrainConfig) if field.metadata["flag"] is not None)]
    flags = {name: values for name in names if (values := getattr(options, name)) is not None}
    if "precision" in flags:
        flags["precision"] = [precision if value == "auto" else value for value in flags["precision"]]
    grid: Grid = Utils.get_hyperparameters()
    networks, activations = options.network or Constants.NETWORKS, options.activation or Constants.ACTIVATIONS
    chosen = {**Constants.RECIPES[options.recipe], **flags}
    if options.init_from:
        settings, activation = initial_settings(options.init_from)
        wanted = {**settings, "network": ["colorizer"], "activation": [activation]}
        given = {**flags, "network": options.network, "activation": options.activation}
        for name, value in wanted.items():
            if given.get(name) not in (None, value):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} must be that of the checkpoint that --init-from names: omit {flag}")
        networks, activations = wanted["network"], wanted["activation"]
        chosen = {**Constants.FINE_TUNING, **settings, **flags}
    swept = {name: values for name, values in chosen.items() if name in grid.names or len(values) > 1}
    base = {name: values[0] for name, values in chosen.items() if name not in swept}
    grid = grid.replaced(swept)
    if options.study_feature_maps:
        grid = feature_map_study.grid(grid, flags)
    return expand_grid(grid, {"precision": precision, **base}, networks, activations)


def initial_settings(path: Path) -> tuple[dict[str, list], str]:
    """Returns the hyperparameters that follow from the checkpoint of --init-from, and its activation.

    Raises UserError if it is not a usable colorizer checkpoint.
    """
    _, content = load_colorizer(path)
    settings = asdict(TrainConfig(**architecture(content), init_from=content_hash(path)))
    return {name: [settings[name]] for name in (*ARCHITECTURE, "init_from")}, content["activation"]


def load_images(options: argparse.Namespace) -> LabDataModule:
    """Returns the images to train on, and prints what was found and what was left out."""
    folder = options.images
    if folder == Path(Constants.IMAGES) and (tiles := sample_photos.fill(folder)):
        print(f"{folder}/ held no images: added {tiles} tiles of scikit-image's photographs (yours: --images DIR)")
    bar = partial(progress_bar, desc="decoding", unit=" images")
    data = LabDataModule.load(folder, options.output, lambda work, total: bar(work, total=total))
    if data.cache_damage:
        print(f"the cache of decoded images was not used, {data.cache_damage}: decoded them again")
    for path, reason in sorted(data.left_out.items()):
        print(f"left out {cli.printable(path)}: {reason}", file=sys.stderr)
    left_out = f"; {len(data.left_out)} left out" if data.left_out else ""
    sizes = f"{len(data.train)} training, {len(data.val)} validation and {len(data.test)} test images"
    print(f"{sizes} from {folder}{left_out}")
    return data


def gather(options: argparse.Namespace, paths: RunPaths, runs: list[TrainingRun], redraw: bool = False) -> str:
    """Writes Plots/ from what is finished, and returns the text to print. Raises UserError if nothing is."""
    if options.study_feature_maps:
        return "\n".join(feature_map_study.gather(paths, runs, redraw))
    return "\n".join(results.gather(paths, redraw))


def train(options: argparse.Namespace, paths: RunPaths, runs: list[TrainingRun], context: DistributedContext) -> int:
    """Trains what is unfinished, reports, and returns the exit code. Raises UserError, Interrupted."""
    device = context.local_device(Utils.get_device(options.device))
    check_batch_size(min(run.config.batch_size for run in runs), context)
    context.run_on_main(lambda: paths.prepare(Utils.get_precision("auto", device)))
    if options.init_from:
        context.run_on_main(lambda: paths.keep_initial_weights(options.init_from, runs[0].config.init_from))
    ignore_before = context.run_on_main(lambda: slurm.restart_time(paths.cache) if options.restart else 0.0)
    data = context.run_on_main(lambda: load_images(options))
    print(results.plan_lines(runs)[-1])
    if context.world_size > 1 and options.jobs not in (None, 1):
        print(f"--jobs {options.jobs}: one training run at a time, because all {context.world_size} ranks train it")
    if options.device == "auto" and device.type == "cpu" and context.is_main_process and seems_to_have_gpu():
        remark = "this computer seems to have a GPU, but PyTorch cannot use it: training on the CPU"
        print(f"main.py: {remark}", file=sys.stderr)
    sweep = Sweep(runs, data, paths, device, ignore_before, options.tensorboard, context)
    failures = sweep.run(options.jobs)
    for failure in failures:
        print(f"main.py: failed: {failure}", file=sys.stderr)
    if context.is_main_process:
        unfinished = len(sweep.unfinished())
        if unfinished > len(failures):
            command = f"python3 main.py --report --output {shlex.quote(str(paths.root))}"
            print(f"{unfinished} of {len(runs)} training runs are not finished: other processes train them. The last")
            print(f"one to finish writes the report; {command} reports what is finished now.")
        elif unfinished < len(runs):
            print(gather(options, paths, runs))
    return 1 if failures else 0


def run(options: argparse.Namespace, context: DistributedContext) -> int:
    """Does what the flags ask for and returns the exit code. Raises UserError, Interrupted."""
    if options.tensorboard and find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard")
    device = Utils.get_device(options.device)
    paths = RunPaths(options.output)
    precision = Utils.get_precision("auto", device)
    runs = context.run_on_main(lambda: plan(options, paths.precision(precision)))
    if options.plan:
        print("\n".join(results.plan_lines(runs)))
    elif options.report:
        print(context.run_on_main(lambda: gather(options, paths, runs, redraw=True)))
    else:
        return train(options, paths, runs, context)
    return 0


def main(arguments: list[str] | None = None, context: DistributedContext = SINGLE_PROCESS) -> int:
    options = parser().parse_args(arguments)
    keep_freed_memory()
    stopped = partial(slurm.report_stop, is_main_process=context.is_main_process)
    return cli.run("main.py", lambda: run(options, context), options.output, stopped)


if __name__ == "__main__":
    code = launch(lambda context: main(context=context))
    if code > 128:  # without waiting for threads, which may be busy with a large picture
        cli.exit_now(code)
    sys.exit(code)
