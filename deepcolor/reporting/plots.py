"""The pictures that a run writes: gray and colored PNG, triplets, loss plots, the sweep at a glance."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

import Constants
from deepcolor.common.files import write_atomically

MSE_LABEL = "mse, in units of (ab + 128) / 255"
# From Okabe and Ito's palette, which color-blind readers can tell apart.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"

_PADDING, _GAP, _HEAD = 4, 16, 66  # pixels between pictures, between columns of triplets, and above them


class Triplet(NamedTuple):
    """One test image three times, (128,128[,3]) uint8."""

    gray: np.ndarray
    original: np.ndarray
    colored: np.ndarray


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes (H,W) or (H,W,3) uint8 as a PNG. Raises OSError."""
    write_atomically(path, Image.fromarray(pixels).save)


def triplet_picture(path: Path, triplets: Sequence[Triplet], title: str) -> None:
    """Two columns of triplets, pixel by pixel as they are, under a heading: gray, original, colored."""
    half = -(-len(triplets) // 2)
    columns = [_triplet_column(part) for part in (triplets[:half], triplets[half:]) if part]
    width = sum(column.width for column in columns) + _GAP * (len(columns) - 1)
    sheet = Image.new("RGB", (width, _HEAD + columns[0].height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((width / 2, 6), title, "black", ImageFont.load_default(13), "ma", spacing=4, align="center")
    for number, column in enumerate(columns):
        left = number * (column.width + _GAP)
        sheet.paste(column, (left, _HEAD))
        for place, what in enumerate(Triplet._fields):
            middle = left + _PADDING + place * (Constants.IMAGE_SIZE + _PADDING) + Constants.IMAGE_SIZE / 2
            draw.text((middle, _HEAD), what, "black", ImageFont.load_default(12), "md")
    write_atomically(path, sheet.save)


def _triplet_column(triplets: Sequence[Triplet]) -> Image.Image:
    """One triplet below the other."""
    from torchvision.utils import make_grid  # here, because it takes longer to import than all else but PyTorch

    pictures = [p if p.ndim == 3 else p[..., None].repeat(3, axis=2) for triplet in triplets for p in triplet]
    stack = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    grid = make_grid(stack, nrow=len(Triplet._fields), padding=_PADDING, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def loss_plot(path: Path, model: dict) -> None:
    """The losses of a finished model over its epochs, beside the baselines, on a logarithmic scale."""
    figure = Figure(figsize=(6.4, 4), dpi=Constants.DPI, layout="constrained")
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
    _save(figure, path)


def feature_maps_picture(path: Path, rows: Sequence[dict]) -> None:
    """The mse over the number of feature maps: a panel per network, the mean over the seeds and how far they spread."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(4.8 * len(networks), 3.8), dpi=Constants.DPI, layout="constrained")
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks):
        members = [row for row in rows if row["network"] == network]
        for activation, color, marker in zip(("", *Constants.ACTIVATIONS), (BLUE, BLUE, ORANGE), "oos"):
            line = [row for row in members if row["activation"] == activation]
            if line:
                maps, mean, low, high = (
                    [row[key] for row in line]
                    for key in ("feature_maps", "test_mse_mean", "test_mse_min", "test_mse_max")
                )
                reach = np.abs(np.array([low, high]) - mean)
                axes.errorbar(maps, mean, reach, color=color, marker=marker, capsize=3, label=activation or network)
        axes.axhline(members[0]["mean_color_mse"], color=GREEN, linestyle="--", linewidth=1, label="mean color")
        axes.set_xlabel("feature maps in each layer")
        axes.set_ylabel(MSE_LABEL)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(network.capitalize(), fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    seeds = max(row["seeds"] for row in rows)
    figure.suptitle(f"Error on the test images: mean, least and greatest of {seeds} seeds", fontsize=10)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, figure.savefig)


def summary_picture(path: Path, rows: Sequence[dict], best: dict[tuple[str, str], dict]) -> None:
    """The sweep at a glance: a band per network and activation, a panel per weight decay, learning rate over epochs.

    Each cell is the root mean square error on the validation images; where further keys were swept, of the best
    of them. The best combination of a band is framed and starred.
    """
    decays = sorted({row["weight_decay"] for row in rows})
    figure = Figure(figsize=(1.6 + 2.9 * len(decays), 0.9 + 2.5 * len(best)), dpi=Constants.DPI, layout="constrained")
    panels = figure.subplots(len(best), len(decays), squeeze=False)
    for band, (task, winner) in zip(panels, best.items()):
        members = [row for row in rows if (row["network"], row["activation"]) == task]
        rates, epochs = (sorted({row[key] for row in members}) for key in ("lr", "epoch"))
        cells = np.full((len(decays), len(rates), len(epochs)), np.nan)
        texts = np.full(cells.shape, "", dtype=object)  # where there is no such combination
        for row in members:
            place = decays.index(row["weight_decay"]), rates.index(row["lr"]), epochs.index(row["epoch"])
            if row["status"] == "done":
                cells[place] = np.fmin(cells[place], Constants.MSE_UNIT * np.sqrt(row["val_mse"]))
            texts[place] = "diverged" if np.isnan(cells[place]) else f"{cells[place]:.2f}"
        for panel, decay, values, written in zip(band, decays, cells, texts):
            image = _heat_map(panel, values, written, np.nanmin(cells), np.nanmax(cells))
            panel.set_xticks(range(len(epochs)), epochs)
            panel.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            panel.set_xlabel("epochs")
            if decay == winner["weight_decay"]:
                _mark(panel, epochs.index(winner["epoch"]), rates.index(winner["lr"]))
            panel.set_title(f"weight decay {decay:g}", fontsize=9)
        band[0].set_ylabel(f"{' '.join(filter(None, task))}\nlearning rate")
        figure.colorbar(image, ax=list(band), label="validation rmse\n(Lab units)", shrink=0.9)
    figure.suptitle("Validation error of every combination (star: the best of its row)", fontsize=10)
    _save(figure, path)


def _heat_map(panel, values: np.ndarray, texts: np.ndarray, low: float, high: float):
    """One panel with its numbers written in, light on dark and dark on light."""
    image = panel.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        light = np.isnan(value) or value > (low + high) / 2
        panel.text(
            column, row, texts[row, column], ha="center", va="center", fontsize=8, color="black" if light else "white"
        )
    return image


def _mark(panel, column: int, row: int) -> None:
    panel.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor=ORANGE, linewidth=2.5))
    panel.text(column + 0.38, row - 0.36, "★", color=ORANGE, ha="center", va="center", fontsize=10)
