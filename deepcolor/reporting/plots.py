"""Images and plots: gray and colored PNGs, triplets, loss plots, the summary of a sweep."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

import Constants
from deepcolor.common.files import write_atomically

MSE_LABEL = "MSE, in units of (ab + 128) / 255"
# From the palette of Okabe and Ito, which is safe for color-blind readers.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"

_PADDING, _COLUMN_GAP, _HEADER_HEIGHT = 4, 16, 66  # pixels, of triplet pictures


class Triplet(NamedTuple):
    """The three versions of a test image, uint8."""

    gray: np.ndarray  # (128,128)
    original: np.ndarray  # (128,128,3) sRGB
    colored: np.ndarray  # (128,128,3) sRGB


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes a (H,W) or (H,W,3) uint8 image as a PNG file. Raises OSError."""
    write_atomically(path, Image.fromarray(pixels).save)


def triplet_picture(path: Path, triplets: Sequence[Triplet], title: str) -> None:
    """Draws the triplets in two columns below a title. Every image is shown pixel for pixel. Raises OSError."""
    half = -(-len(triplets) // 2)
    columns = [_triplet_column(part) for part in (triplets[:half], triplets[half:]) if part]
    width = sum(column.width for column in columns) + _COLUMN_GAP * (len(columns) - 1)
    sheet = Image.new("RGB", (width, _HEADER_HEIGHT + columns[0].height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((width / 2, 6), title, "black", ImageFont.load_default(13), "ma", spacing=4, align="center")
    for number, column in enumerate(columns):
        left = number * (column.width + _COLUMN_GAP)
        sheet.paste(column, (left, _HEADER_HEIGHT))
        for index, label in enumerate(Triplet._fields):
            center = left + _PADDING + index * (Constants.IMAGE_SIZE + _PADDING) + Constants.IMAGE_SIZE / 2
            draw.text((center, _HEADER_HEIGHT), label, "black", ImageFont.load_default(12), "md")
    write_atomically(path, sheet.save)


def _triplet_column(triplets: Sequence[Triplet]) -> Image.Image:
    """Returns a column of triplets, one per row."""
    from torchvision.utils import make_grid  # here, because torchvision takes long to import

    images = [image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for triplet in triplets for image in triplet]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    grid = make_grid(batch, nrow=len(Triplet._fields), padding=_PADDING, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def loss_plot(path: Path, model: dict) -> None:
    """Plots the training and validation loss of a finished model by epoch, with the baselines. Raises OSError."""
    figure = Figure(figsize=(6.4, 4), dpi=Constants.DPI)
    figure.subplots_adjust(left=0.16, right=0.97, bottom=0.12, top=0.89)  # a third faster than a computed layout
    axes = figure.add_subplot()
    history, metrics = model["history"], model["metrics"]
    epochs = np.arange(1, len(history["train_mse"]) + 1)
    marker = "o" if len(epochs) == 1 else None
    axes.plot(epochs, history["train_mse"], color=BLUE, marker=marker, linewidth=1.2, label="training (augmented)")
    axes.plot(epochs, history["val_mse"], color=ORANGE, marker=marker, linewidth=1.2, label="validation")
    axes.axhline(metrics["mean_color_mse"], color=GREEN, linestyle="--", linewidth=1, label="mean color, test images")
    axes.axhline(metrics["gray_mse"], color=GRAY, linestyle=":", linewidth=1, label="gray, test images")
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel(MSE_LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize=8)
    activation = f", {model['activation']}" if model["activation"] else ""
    diverged = f"\ndiverged at epoch {metrics['diverged_epoch']}" if metrics["status"] == "diverged" else ""
    axes.set_title(f"{model['network'].capitalize()}{activation}: {model['run']}{diverged}", fontsize=9)
    write_atomically(path, figure.savefig)


def feature_maps_picture(path: Path, rows: Sequence[dict]) -> None:
    """Plots the test error by number of feature maps, one panel per network. Raises OSError.

    `rows` are those of feature_maps.csv.
    """
    figure = Figure(figsize=_study_size(rows), dpi=Constants.DPI, layout="constrained")
    _draw_study(figure, rows)
    write_atomically(path, figure.savefig)


def _study_size(rows: Sequence[dict]) -> tuple[float, float]:
    """Returns the width and height of the panels of `_draw_study`, in inches."""
    return 5.2 * len({row["network"] for row in rows}), 4


def _draw_study(figure: FigureBase, rows: Sequence[dict]) -> None:
    """Draws the test error by number of feature maps, with the mean color and, for the Regressor, the report's result.

    Markers show the mean over the seeds, error bars the minimum and maximum.
    """
    networks = list(dict.fromkeys(row["network"] for row in rows))
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks):
        members = [row for row in rows if row["network"] == network]
        for activation, color, marker in zip(("", *Constants.ACTIVATIONS), (BLUE, BLUE, ORANGE), "oos"):
            line = [row for row in members if row["activation"] == activation]
            if line:
                keys = ("feature_maps", "test_mse_mean", "test_mse_min", "test_mse_max")
                maps, mean, low, high = ([row[key] for row in line] for key in keys)
                errors = np.abs(np.array([low, high]) - mean)
                axes.errorbar(maps, mean, errors, color=color, marker=marker, capsize=3, label=activation or network)
        axes.axhline(members[0]["mean_color_mse"], color=GREEN, linestyle="--", linewidth=1, label="mean color")
        if network == "regressor":  # the report gives no error for the Colorizer
            axes.plot(*Constants.REPORTED_BEST, "*", color=ORANGE, markersize=11, label="the report, on its own images")
        axes.set_xlabel("feature maps per layer")
        axes.set_ylabel(f"Test {MSE_LABEL}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis="y", scilimits=(0, 0), useMathText=True)
        title = "Regressor: mean a and b of an image" if network == "regressor" else "Colorizer: a and b of every pixel"
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    fewest, most = (choose(row["seeds"] for row in rows) for choose in (min, max))
    seeds = f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds"
    figure.suptitle(f"Number of feature maps: mean, minimum and maximum of {seeds}", fontsize=10)


def summary_picture(
    path: Path, rows: Sequence[dict], best: dict[tuple[str, str], dict], study: Sequence[dict] = ()
) -> None:
    """Draws the validation error of every combination, and below it the study of the feature maps. Raises OSError.

    If there is a study of a single combination, its error is drawn by number of feature maps only.

    Args:
        path: the PNG file.
        rows: the rows of results.csv.
        best: (network, activation) -> the best of its rows.
        study: the rows of feature_maps.csv, if this was a study.
    """
    parts = []
    if not study or len({(row["lr"], row["epoch"], row["weight_decay"]) for row in rows}) > 1:
        size = 1.6 + 2.9 * len({row["weight_decay"] for row in rows}), 0.9 + 2.5 * len(best)
        parts.append((size, partial(_draw_heat_maps, rows=rows, best=best)))
    if study:
        parts.append((_study_size(study), partial(_draw_study, rows=study)))
    widths, heights = zip(*(size for size, _ in parts))
    figure = Figure(figsize=(max(widths), sum(heights)), dpi=Constants.DPI, layout="constrained")
    subfigures = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for subfigure, (_, draw) in zip(subfigures, parts):
        draw(subfigure)
    write_atomically(path, figure.savefig)


def _draw_heat_maps(figure: FigureBase, rows: Sequence[dict], best: dict[tuple[str, str], dict]) -> None:
    """Draws the validation error of every combination as heat maps of learning rate and epochs.

    One row of panels per network and activation, one column per weight decay. A cell shows the root mean square error;
    if further hyperparameters were swept, the lowest one. A frame and a star mark the best combination of each row.
    """
    decays = sorted({row["weight_decay"] for row in rows})
    grid = figure.subplots(len(best), len(decays), squeeze=False)
    for panels, (task, winner) in zip(grid, best.items()):
        members = [row for row in rows if (row["network"], row["activation"]) == task]
        rates, epochs = (sorted({row[key] for row in members}) for key in ("lr", "epoch"))
        errors = np.full((len(decays), len(rates), len(epochs)), np.nan)
        texts = np.full(errors.shape, "", dtype=object)  # stays empty where there is no such combination
        for row in members:
            index = decays.index(row["weight_decay"]), rates.index(row["lr"]), epochs.index(row["epoch"])
            if row["status"] == "done" and np.isfinite(row["val_mse"]):
                errors[index] = np.fmin(errors[index], Constants.MSE_UNIT * np.sqrt(row["val_mse"]))
            texts[index] = "diverged" if np.isnan(errors[index]) else f"{errors[index]:.2f}"
        for axes, decay, values, labels in zip(panels, decays, errors, texts):
            image = _heat_map(axes, values, labels, np.nanmin(errors), np.nanmax(errors))
            axes.set_xticks(range(len(epochs)), epochs)
            axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            axes.set_xlabel("epochs")
            if decay == winner["weight_decay"]:
                _mark_best(axes, epochs.index(winner["epoch"]), rates.index(winner["lr"]))
            axes.set_title(f"weight decay {decay:g}", fontsize=9)
        panels[0].set_ylabel(f"{' '.join(task).strip()}\nlearning rate")
        figure.colorbar(image, ax=list(panels), label="validation RMSE\n(Lab units)", shrink=0.9)
    figure.suptitle("Validation error of every combination (star: the best of its row)", fontsize=10)


def _heat_map(axes: Axes, values: np.ndarray, labels: np.ndarray, low: float, high: float) -> AxesImage:
    """Draws a heat map with a label in each cell, in a color that contrasts with the cell."""
    image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        color = "black" if np.isnan(value) or value > (low + high) / 2 else "white"
        axes.text(column, row, labels[row, column], ha="center", va="center", fontsize=8, color=color)
    return image


def _mark_best(axes: Axes, column: int, row: int) -> None:
    axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor=ORANGE, linewidth=2.5))
    axes.text(column + 0.38, row - 0.36, "★", color=ORANGE, ha="center", va="center", fontsize=10)
