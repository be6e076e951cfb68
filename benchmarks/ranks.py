"""Measures how fast several ranks on this machine train one Colorizer together, beside one process alone.

    python3 benchmarks/ranks.py [--images DIR] [--ranks 1 2] [--batch-size 16 64] [--repeats N] [--json FILE]

An epoch is a pass over the training images and the mse on the validation images, for three maps and for `deep`, with
the same batches, of which each rank takes its share. The numbers of ranks take turns; every figure is the median, least
and greatest of the repeats, each of which starts its processes anew and warms up off the clock. Torchrun starts the
ranks; 1 is a process without it.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path

import common
import torch
from common import spread

import Constants
from Checkpoint import Output
from Distributed import World
from Plan import Settings, Trajectory
from Progress import Silent
from Sweep import Sweep
from utils import UserError, Utils, format_value

WIDTHS = (Constants.FEATURE_MAPS, Constants.NAMED_FEATURE_MAPS["deep"])


def arguments() -> argparse.Namespace:
    parser = common.Parser("ranks.py", description="One trajectory on one and on several ranks.", allow_abbrev=False)
    add = parser.add_argument
    many = {"nargs": "+", "type": common.at_least_one, "metavar": "N"}
    add("--images", metavar="DIR", type=Path, help="photographs to train on (the built-in ones)")
    add("--ranks", **many, default=[1, 2], help="numbers of ranks to compare (1 2)")
    add("--batch-size", **many, default=[16, 64], help="images per step, of all ranks together (16 64)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (cpu)")
    add("--repeats", metavar="N", type=common.at_least_one, default=5, help="measurements of each figure (5)")
    add("--seconds", metavar="S", type=common.at_least_one, default=4, help="least length of a measurement (4)")
    add("--json", metavar="FILE", type=Path, help="where to write all figures")
    add("--work", type=Path, help=argparse.SUPPRESS)  # a rank: what to measure with lies in this folder
    return parser.parse_args()


def trajectories(options: argparse.Namespace, device: torch.device) -> list[Trajectory]:
    """What is measured: each width with each batch size."""
    precision = Utils.get_precision("auto", device)
    return [
        Trajectory("colorizer", "sigmoid", Settings(feature_maps=width, batch_size=size, precision=precision), (1,))
        for width, size in product(WIDTHS, options.batch_size)
    ]


def work(options: argparse.Namespace) -> None:
    """The life of a rank: measures every trajectory once; rank 0 writes the seconds per epoch of each."""
    Utils.keep_memory()
    world = World.from_environment()
    if world.size > 1:
        world.join()
    device = world.own_device(Utils.get_device(options.device))
    data = pickle.loads((options.work / "data").read_bytes())
    output = Output(options.work)
    seconds = []
    for trajectory in trajectories(options, device):
        trainer = Sweep([trajectory], data, output, device, world=world).trainer(trajectory, Silent())
        trainer.train_epoch()  # off the clock
        began = common.clock(device)
        trainer.train_epoch()
        once = common.clock(device) - began
        epochs = world.of_first(lambda once=once: max(1, round(options.seconds / once)))
        began = common.clock(device)
        for _ in range(epochs):
            trainer.train_epoch()  # ends with an answer from all ranks
        seconds.append((common.clock(device) - began) / epochs)
    if world.first:
        (options.work / "seconds").write_text(json.dumps(seconds))
    if world.size > 1:
        world.leave()


def measure(ranks: int, folder: Path, options: argparse.Namespace) -> list[float]:
    """Seconds per epoch of every trajectory, trained by so many ranks. Raises UserError if one of them fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    flags = ["--device", options.device, "--seconds", options.seconds, "--batch-size", *options.batch_size]
    command = [sys.executable, *launcher, __file__, *map(str, flags), "--work", str(folder)]
    # As it sets it for several ranks, and says so each time.
    environment = {"OMP_NUM_THREADS": "1", **os.environ} if ranks > 1 else None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if "Error" in line or ".py: " in line]
        raise UserError(f"{ranks} ranks failed: {last[0] if last else done.stderr[-300:]}")
    return json.loads((folder / "seconds").read_text())


def table(measured: dict[int, list[list[float]]], cases: list[Trajectory], images: int) -> str:
    """A row per width and batch size: images per second for each number of ranks, and the ratio to the first."""
    counts = list(measured)
    head = ["median (least to greatest)", *(f"{count} rank{'s' * (count > 1)}, images/s" for count in counts)]
    head += [f"{count} against {counts[0]}" for count in counts[1:]]
    rows = []
    for number, case in enumerate(cases):
        seconds = {count: [each[number] for each in repeats] for count, repeats in measured.items()}
        speeds = [common.show(spread([images / each for each in times])) for times in seconds.values()]
        ratios = [
            common.show(spread([one / other for one, other in zip(seconds[counts[0]], times)]), ".2f")
            for times in list(seconds.values())[1:]
        ]
        width = format_value(case.settings.feature_maps)
        rows.append([f"`{width}` Colorizer, batches of {case.settings.batch_size}", *speeds, *ratios])
    return common.markdown(head, rows)


def main() -> None:
    options = arguments()
    if options.work:
        work(options)
        return
    common.check_json(options.json)
    device = Utils.get_device(options.device)
    cases = trajectories(options, device)
    if min(options.batch_size) < max(options.ranks):
        raise UserError("a batch is that of all ranks together: give at least as many images as ranks")
    load = os.getloadavg()[0]
    with common.prepared(options.images) as images:
        (images.output.root / "data").write_bytes(pickle.dumps(images.data))
        measured: dict[int, list[list[float]]] = {count: [] for count in options.ranks}
        for _ in range(options.repeats):
            for count, repeats in measured.items():
                repeats.append(measure(count, images.output.root, options))
        count = len(images.data.train)
        print(f"{common.describe(device)}\nload average before: {load:.1f}\n\n{table(measured, cases, count)}")
        results = {str(ranks): repeats for ranks, repeats in measured.items()}
        settings = {"load_average_before": load, "images": images.describe(), "cases": [str(c) for c in cases]}
        common.write_json(options.json, {"settings": settings, "epoch_seconds": results}, device)


if __name__ == "__main__":
    sys.exit(common.run("ranks.py", main))
