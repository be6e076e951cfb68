"""Measures what more of the same machine is worth: a sweep in one and in two parts, a training run on one and two ranks.

    python3 benchmarks/scaling.py [--images DIR] [--feature-maps MAPS] [--epoch N] [--repeats N] [--json FILE]

Each part is a process of `main.py --part`, as a task of a Slurm array is, and trains one training run after the other.
The time is that of the whole command, from the start of the first part to the end of the last, on images that are
decoded already. The ranks are torchrun's processes, which train one Colorizer together: the time is that of an epoch,
with the same batches on one as on two. In each repeat the numbers take turns; a ratio compares two of the same repeat.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import torch
from ranks import epoch_seconds

from deepcolor.common import cli
from utils import UserError, format_value

PARTS = (1, 2)
RANKS = (1, 2)
BATCH_SIZES = (16, 64)  # of all ranks together
# Four training runs that take equally long.
GRID = "--network colorizer --activation sigmoid --lr 0.001 0.0003 --weight-decay 0 1e-5".split()
MAIN = Path(__file__).resolve().parent.parent / "main.py"


def arguments() -> argparse.Namespace:
    parser = cli.Parser("scaling.py", description="Parts of a sweep, ranks of a training run.")
    add = parser.add_argument
    add("--images", metavar="DIR", type=Path, help="photographs to train on (the built-in ones)")
    add("--feature-maps", metavar="MAPS", type=common.feature_maps, default=3, help="of the networks (3)")
    add("--epoch", metavar="N", type=common.at_least_one, default=40, help="epochs of each training run (40)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (cpu)")
    add("--repeats", metavar="N", type=common.at_least_one, default=5, help="measurements of each figure (5)")
    add("--json", metavar="FILE", type=Path, help="where to write all figures")
    return parser.parse_args()


def sweep_seconds(parts: int, images: common.Prepared, options: argparse.Namespace) -> float:
    """Seconds until all parts of the sweep have ended that were started together. Raises UserError if one failed."""
    with tempfile.TemporaryDirectory(prefix="colorization-") as temporary:
        output = Path(temporary)
        shutil.copytree(images.output.root / ".cache", output / ".cache")
        flags = ["--images", images.folder.resolve(), "--output", output, "--epoch", options.epoch]
        flags += ["--feature-maps", format_value(options.feature_maps), "--device", options.device, "--jobs", 1]
        command = [sys.executable, str(MAIN), *GRID, *map(str, flags)]
        began = time.monotonic()
        processes = [
            subprocess.Popen(
                [*command, "--part", f"{number}/{parts}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for number in range(parts)
        ]
        said = [process.communicate()[1] for process in processes]
        seconds = time.monotonic() - began
    if failed := [text for process, text in zip(processes, said) if process.returncode]:
        raise UserError(f"a part failed: {failed[0].strip()[-300:]}")
    return seconds


def alternating(counts: tuple[int, ...], measure: Callable[[int], float], repeats: int) -> dict[str, dict[str, object]]:
    """Measures each count in turn, `repeats` times: seconds of each, and how many times as fast as the first."""
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    loads = []
    for _ in range(repeats):
        for count in counts:
            loads.append(os.getloadavg()[0])
            seconds[count].append(measure(count))
    first = seconds[counts[0]]
    return {
        "seconds": {str(count): common.spread(values) for count, values in seconds.items()},
        "speed-up": {
            str(count): common.spread([one / other for one, other in zip(first, values)])
            for count, values in seconds.items()
        },
        "load_before": common.spread(loads),
    }


def table(what: str, measured: dict[str, dict[str, object]], images: int) -> str:
    """A row for each number of what was measured; `images` are trained on in the time, 0 if there is no such number."""
    head = [what, "seconds, median (least to greatest)", *(["images/s"] if images else []), "times as fast"]
    rows = []
    for count, seconds in measured["seconds"].items():
        speeds = [common.show(common.spread([images / each for each in seconds["values"]]))] if images else []
        rows.append([count, common.show(seconds, ",.2f"), *speeds, common.show(measured["speed-up"][count], ".2f")])
    return common.markdown(head, rows)


def main() -> None:
    options = arguments()
    common.check_json(options.json)
    device = torch.device(options.device)
    results = {}
    with common.prepared(options.images) as images:
        maps, trained = options.feature_maps, len(images.data.train)
        results["parts at once"] = alternating(PARTS, lambda n: sweep_seconds(n, images, options), options.repeats)
        tables = [table("parts at once", results["parts at once"], 0)]
        for size in BATCH_SIZES:
            what = f"ranks, batches of {size}"
            results[what] = alternating(
                RANKS, lambda n, size=size: epoch_seconds(n, maps, size, images, options.device), options.repeats
            )
            tables.append(table(what, results[what], trained))
        settings = {"grid": GRID, "epoch": options.epoch, "feature_maps": format_value(maps)}
        print(common.describe(device), *tables, sep="\n\n")
        common.write_json(options.json, {"images": images.describe(), **settings, **results}, device)


if __name__ == "__main__":
    sys.exit(common.run("scaling.py", main))
