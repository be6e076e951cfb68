"""Prints the tables of docs/reproduction.md from the output folders of main.py.

    python3 benchmarks/reproduction.py FOLDER ...
    python3 benchmarks/reproduction.py --pool FOLDER ...
    python3 benchmarks/reproduction.py --their-test CHECKPOINT --images DIR

For every folder: the test mse of each combination, the best combination of each network and activation, and the error
by number of feature maps if there are several. With --pool, the models of all folders are in one table.

--their-test scores a Regressor on the test images of a folder, as the authors of the report do. Their test differs
from evaluation in two ways: BatchNorm is in training mode and sees one image at a time, and the input is luma, not L*.

Errors are in units of (ab + 128) / 255.
"""

import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import common
import torch
from skimage.color import lab2rgb, rgb2gray

import Constants
from deepcolor.common import cli
from deepcolor.data.dataset import LabDataModule
from deepcolor.reporting.results import best_of_each, has_finite_error, to_rows
from deepcolor.sweep import feature_map_study
from deepcolor.training.checkpoint import find_models, load_usable
from deepcolor.training.config import GRID_KEYS
from deepcolor.training.paths import RunPaths
from Regressor import Regressor
from utils import UserError, format_value

_TABLE_1 = ("lr", "epoch", "weight_decay")
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


def varied(rows: Sequence[dict]) -> list[str]:
    """Returns the hyperparameters that differ between the rows and are not part of Table 1."""
    further = [name for name in GRID_KEYS if name not in _TABLE_1 and name in rows[0]]
    return [name for name in further if len({format_value(row[name]) for row in rows}) > 1]


def heading(name: str) -> str:
    return "learning rate" if name == "lr" else name.replace("_", " ")


def combinations(rows: Sequence[dict]) -> str:
    """Returns the test mse of each combination."""
    columns = [*_TABLE_1, *varied(rows)]
    cells = []
    for row in rows:
        text = f"{row['test_mse']:.6f}" if row["status"] == "done" else f"diverged ({row['diverged_epoch']})"
        cells.append((tuple(row[column] for column in columns), row, text))
    return pivot([*map(heading, columns)], cells)


def best(rows: Sequence[dict]) -> str:
    """Returns the scores of the best combination of each network and activation by the validation images."""
    columns = {**{heading(name): (name, "") for name in varied(rows)}, **_BEST}
    lines = []
    for task, row in best_of_each(rows).items():
        found = [(row[column], form) for column, form in columns.values()]
        cells = (format(value, form) if form and value != "" else format_value(value) for value, form in found)
        lines.append([" ".join(task).strip(), *cells])
    return common.markdown(["best", *columns], lines)


def study(models: Sequence[dict]) -> str:
    """Returns the mean, minimum and maximum test mse for each number of feature maps, and the baselines."""
    rows = feature_map_study.to_rows([model for model in models if has_finite_error(model["metrics"])])
    form = "{test_mse_mean:.6f} ({test_mse_min:.6f} to {test_mse_max:.6f})"
    cells = [((row["feature_maps"], row["seeds"]), row, form.format_map(row)) for row in rows]
    for name in ("mean color", "gray"):
        cells += [((name, ""), row, f"{row[f'{name}_mse'.replace(' ', '_')]:.6f}") for row in rows]
    return pivot(["feature maps", "seeds"], cells)


def report(title: str, folders: Sequence[Path]) -> None:
    """Prints the tables of the models below the folders. Raises UserError."""
    models = []
    for folder in folders:
        found, _ = find_models(RunPaths(folder))
        if not found:
            raise UserError(f"no finished model below {folder}: give the --output folder of a finished run")
        models += found
    if len({model["fingerprint"]["images"] for model in models}) > 1:
        raise UserError(f"{title}: trained on different images; leave --pool out")
    rows = to_rows(models)
    print(f"## {title}", combinations(rows), best(rows), sep="\n\n", end="\n\n")
    if "feature_maps" in varied(rows):
        print(study(models), end="\n\n")


@torch.no_grad()
def their_test(checkpoint: Path, images: Path) -> str:
    """Returns the mse of a Regressor on the test images: in evaluation, and with each difference of their test."""
    content = load_usable(checkpoint)
    if content["network"] != "regressor":
        raise UserError(f"{checkpoint} is a {content['network']} checkpoint; pass a regressor checkpoint")
    with tempfile.TemporaryDirectory(prefix="colorization-") as temporary:
        data = LabDataModule.load(images, Path(temporary))
        photographs = [data.test[index] for index in range(len(data.test))]
    offset, scale = Constants.OUTPUT_SCALES["sigmoid"]
    targets = (torch.from_numpy(data.test.statistics[:, :2]) + offset) / scale
    lightness = torch.stack([lightness for lightness, _ in photographs])
    inputs = {"L*": lightness, "luma": torch.stack([luma(*photograph) for photograph in photographs])}
    lines = []
    for training, name in product((False, True), inputs):
        network = Regressor(content["feature_maps"])
        network.load_state_dict(content["model"])
        network.train(training)
        outputs = torch.cat([network(image[None]) for image in inputs[name]])
        mode = "training, one image at a time" if training else "evaluation"
        lines.append([mode, name, f"{(outputs - targets).square().mean():.6f}"])
    guess = (torch.tensor(data.mean_ab) + offset) / scale
    lines.append(["mean color", "", f"{(guess - targets).square().mean():.6f}"])
    lines.append(["gray", "", f"{(offset / scale - targets).square().mean():.6f}"])
    return common.markdown(["mode", "input", "test mse"], lines)


def luma(lightness: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
    """L*/100 (1,H,W) and ab (2,H,W) in Lab units -> luma (1,H,W) in 0..1, as scikit-image's `rgb2gray` defines it."""
    rgb = lab2rgb(torch.cat([lightness * 100, ab]).permute(1, 2, 0).double().numpy())
    return torch.from_numpy(rgb2gray(rgb)[None]).float()


def main() -> None:
    parser = cli.Parser("reproduction.py", "Prints the tables of docs/reproduction.md.")
    add = parser.add_argument
    add("folders", nargs="*", metavar="FOLDER", type=Path, help="an --output folder of main.py")
    add("--pool", action="store_true", help="put the models of all folders into one table")
    add("--their-test", metavar="CHECKPOINT", type=Path, help="score a Regressor as the report's authors do")
    add("--images", metavar="DIR", type=Path, help="photographs of --their-test")
    options = parser.parse_args()
    if (options.their_test is None) != (options.images is None) or not (options.folders or options.their_test):
        raise UserError("give the --output folders of finished runs, or --their-test CHECKPOINT and --images DIR")
    if options.their_test:
        print(their_test(options.their_test, options.images))
    if options.pool:
        report(" ".join(folder.name for folder in options.folders), options.folders)
    else:
        for folder in options.folders:
            report(folder.name, [folder])


if __name__ == "__main__":
    sys.exit(common.run("reproduction.py", main))
