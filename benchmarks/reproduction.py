"""The tables of docs/reproduction.md, from what main.py left in its output folders.

    python3 benchmarks/reproduction.py FOLDER ...

For every folder: the test mse of each combination, the best one of each network, and the study of the feature maps if
there is one. Figures are in units of (ab + 128) / 255.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import common

from deepcolor.common import cli
from utils import UserError


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file. Raises UserError if it cannot be read."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the --output folder of a finished run") from error


def task(row: dict[str, str]) -> str:
    return " ".join(filter(None, (row["network"], row["activation"])))


def combinations(rows: Sequence[dict[str, str]]) -> str:
    """A line for each combination, a column for each network and activation: the test mse."""
    tasks = list(dict.fromkeys(map(task, rows)))
    table: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        score = f"{float(row['test_mse']):.6f}" if row["status"] == "done" else f"diverged ({row['diverged_epoch']})"
        table.setdefault((row["lr"], row["epoch"], row["weight_decay"]), {})[task(row)] = score
    lines = [[*key, *(found.get(name, "") for name in tasks)] for key, found in table.items()]
    return common.markdown(["learning rate", "epoch", "weight decay", *tasks], lines)


def best(rows: Sequence[dict[str, str]]) -> str:
    """The best combination of each network and activation by the validation images, with its scores."""
    winners: dict[str, dict[str, str]] = {}
    for row in sorted((row for row in rows if row["status"] == "done"), key=lambda row: float(row["val_mse"])):
        winners.setdefault(task(row), row)
    lines = [
        [
            name,
            row["lr"],
            row["epoch"],
            row["weight_decay"],
            f"{float(row['test_mse']):.6f}",
            f"{float(row['mean_color_mse']):.6f}",
            *(f"{float(row[key]):.2f}" if row.get(key) else "" for key in ("psnr", "ssim", "delta_e", "chroma_ratio")),
            f"{float(row['seconds']):.0f}",
        ]
        for name, row in winners.items()
    ]
    head = ["best", "learning rate", "epoch", "weight decay", "test mse", "mean color", "PSNR", "SSIM", "ΔE", "chroma"]
    return common.markdown([*head, "seconds"], lines)


def study(rows: Sequence[dict[str, str]]) -> str:
    """The mean test mse, and its least and greatest, for every number of feature maps."""
    tasks = list(dict.fromkeys(map(task, rows)))
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        mean, least, greatest = (f"{float(row[f'test_mse_{what}']):.6f}" for what in ("mean", "min", "max"))
        table.setdefault(row["feature_maps"], {})[task(row)] = f"{mean} ({least} to {greatest})"
    lines = [[maps, *(found.get(name, "") for name in tasks)] for maps, found in table.items()]
    return common.markdown(["feature maps", *tasks], lines)


def main() -> None:
    parser = cli.Parser("reproduction.py", description="The tables of docs/reproduction.md.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", type=Path, help="an --output folder of main.py")
    options: argparse.Namespace = parser.parse_args()
    for folder in options.folders:
        rows = read(folder / "Plots/results.csv")
        print(f"## {folder.name}\n\n{combinations(rows)}\n\n{best(rows)}\n")
        if (folder / "Plots/feature_maps.csv").exists():
            print(f"{study(read(folder / 'Plots/feature_maps.csv'))}\n")


if __name__ == "__main__":
    sys.exit(common.run("reproduction.py", main))
