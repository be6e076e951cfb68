"""Prints the tables of docs/reproduction.md from the output folders of main.py.

    python3 benchmarks/reproduction.py FOLDER ...

For every folder: the test mse of each combination, the best combination of each network and activation, and the study
of the feature maps if there is one. Errors are in units of (ab + 128) / 255.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import common

from deepcolor.common import cli
from deepcolor.reporting.results import best_of_each, has_finite_error, to_rows
from deepcolor.sweep import feature_map_study
from deepcolor.training.checkpoint import find_models
from deepcolor.training.paths import RunPaths
from utils import UserError, format_value

# Heading -> column of results.csv and its format.
_BEST = {
    "learning rate": ("lr", "g"),
    "epoch": ("epoch", "g"),
    "weight decay": ("weight_decay", "g"),
    "test mse": ("test_mse", ".6f"),
    "mean color": ("mean_color_mse", ".6f"),
    "PSNR": ("psnr", ".2f"),
    "SSIM": ("ssim", ".2f"),
    "ΔE": ("delta_e", ".2f"),
    "chroma": ("chroma_ratio", ".2f"),
    "seconds": ("seconds", ".0f"),
}


def pivot(head: Sequence[str], cells: Sequence[tuple[tuple, dict, str]]) -> str:
    """Returns a table with a column for each network and activation. `cells`: (start of the line, row, text)."""
    lines: dict[tuple, dict[str, str]] = {}
    for key, row, text in cells:
        lines.setdefault(key, {})[f"{row['network']} {row['activation']}".strip()] = text
    columns = list(dict.fromkeys(column for found in lines.values() for column in found))
    rows = [[*map(format_value, key), *(found.get(name, "") for name in columns)] for key, found in lines.items()]
    return common.markdown([*head, *columns], rows)


def combinations(rows: Sequence[dict]) -> str:
    """Returns the test mse of each combination."""
    cells = []
    for row in rows:
        text = f"{row['test_mse']:.6f}" if row["status"] == "done" else f"diverged ({row['diverged_epoch']})"
        cells.append(((row["lr"], row["epoch"], row["weight_decay"]), row, text))
    return pivot(["learning rate", "epoch", "weight decay"], cells)


def best(rows: Sequence[dict]) -> str:
    """Returns the scores of the best combination of each network and activation by the validation images."""
    lines = []
    for task, row in best_of_each(rows).items():
        cells = ("" if row[column] == "" else format(row[column], form) for column, form in _BEST.values())
        lines.append([" ".join(task).strip(), *cells])
    return common.markdown(["best", *_BEST], lines)


def study(rows: Sequence[dict]) -> str:
    """Returns the mean, minimum and maximum test mse for each number of feature maps."""
    form = "{test_mse_mean:.6f} ({test_mse_min:.6f} to {test_mse_max:.6f})"
    return pivot(["feature maps"], [((row["feature_maps"],), row, form.format_map(row)) for row in rows])


def main() -> None:
    parser = cli.Parser("reproduction.py", "Prints the tables of docs/reproduction.md.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", type=Path, help="an --output folder of main.py")
    for folder in parser.parse_args().folders:
        paths = RunPaths(folder)
        models, _ = find_models(paths)
        if not models:
            raise UserError(f"no finished model below {folder}: give the --output folder of a finished run")
        rows = to_rows(models)
        print(f"## {folder.name}", combinations(rows), best(rows), sep="\n\n", end="\n\n")
        if (paths.plots / "feature_maps.csv").exists():
            finite = [model for model in models if has_finite_error(model["metrics"])]
            print(study(feature_map_study.to_rows(finite)), end="\n\n")


if __name__ == "__main__":
    sys.exit(common.run("reproduction.py", main))
