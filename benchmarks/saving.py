"""Measures what survival costs: how long a training run takes to save itself, and what share of the time that is.

    python3 benchmarks/saving.py [--images DIR] [--repeats N] [--json FILE]

A training run saves itself every Constants.SAVE_SECONDS of training, and once for each of its snapshots.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import common
import torch

import Constants
from deepcolor.common import cli
from deepcolor.common.system import keep_freed_memory
from deepcolor.reporting.progress import Silent
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.config import expand_grid
from utils import Grid, format_value


def arguments() -> argparse.Namespace:
    parser = cli.Parser("saving.py", description="What saving costs.")
    add = parser.add_argument
    add("--images", metavar="DIR", type=Path, help="photographs to train on (the built-in ones)")
    add("--repeats", metavar="N", type=common.at_least_one, default=15, help="measurements of each figure (15)")
    add("--json", metavar="FILE", type=Path, help="where to write all figures")
    return parser.parse_args()


def measure(images: common.Prepared, maps: object, repeats: int) -> dict[str, object]:
    """Seconds of a save of the colorizer after one epoch, bytes of what it writes, and the share of the time."""
    (training_run,) = expand_grid(
        Grid(dict(lr=[0.001], epoch=[1], weight_decay=[0])), {"feature_maps": maps}, ["colorizer"], ["sigmoid"]
    )
    few = replace(images.data, train=images.data.val)  # a state is as large after few images as after many
    trainer = Sweep([training_run], few, images.output, torch.device("cpu")).trainer(training_run, Silent())
    trainer.train_epoch()
    seconds = []
    for _ in range(repeats):
        began = time.monotonic()
        trainer.save()
        seconds.append(time.monotonic() - began)
    return {
        "seconds": common.spread(seconds),
        "share": common.spread([second / Constants.SAVE_SECONDS for second in seconds]),
        "bytes": images.output.state(training_run).stat().st_size,
    }


def main() -> None:
    options = arguments()
    common.check_json(options.json)
    keep_freed_memory()
    device = torch.device("cpu")
    with common.prepared(options.images) as images:
        widths = (Constants.FEATURE_MAPS, *Constants.NAMED_FEATURE_MAPS.values())
        results = {format_value(maps): measure(images, maps, options.repeats) for maps in widths}
    rows = [
        [
            f"`{name}` colorizer",
            common.show({key: 1e3 * value for key, value in found["seconds"].items() if key != "values"}, ",.1f"),
            f"{found['bytes'] / 1e6:,.1f}",
            f"{found['share']['median']:.2%} ({found['share']['min']:.2%} to {found['share']['max']:.2%})",
        ]
        for name, found in results.items()
    ]
    head = ["median (least to greatest)", "ms a save", "MB", f"share, saving every {Constants.SAVE_SECONDS} s"]
    print(f"{common.describe(device)}\n\n{common.markdown(head, rows)}")
    common.write_json(options.json, {"results": results}, device)


if __name__ == "__main__":
    sys.exit(common.run("saving.py", main))
