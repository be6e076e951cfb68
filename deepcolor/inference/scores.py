"""Scores of colored photographs whose true colors are known: the photograph itself is the truth."""

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

import Constants
from deepcolor.common.cli import printable
from deepcolor.common.color import srgb_to_lab
from deepcolor.common.files import write_csv
from deepcolor.data.image_io import Photo, Unreadable, open_image, read_file, read_photo
from deepcolor.inference.full_resolution import enlarge_ab, join, model_input, predict_ab
from deepcolor.inference.tasks import ColorizeTask
from deepcolor.reporting.metrics import image_scores

if TYPE_CHECKING:
    from deepcolor.inference.predictor import Predictor

SIDE = 1024  # larger photographs are scored at this size, because SSIM and CIEDE2000 need much memory
SMALLEST = 11  # pixels on each side, the window of SSIM

# Column of scores.csv -> heading and format of the printed table.
_CELLS = {
    "mse": ("mse", "{:.6f}"),
    "psnr": ("PSNR", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "delta_e": ("dE", "{:.2f}"),
    "lpips": ("LPIPS", "{:.3f}"),  # only if it can be computed
    "colorfulness": ("colorfulness", "{:.1f}"),
    "colorfulness_true": ("true", "{:.1f}"),
    "colorfulness_abs": ("CF", "{:.1f}"),
    "colorfulness_abs_true": ("true CF", "{:.1f}"),
    "delta_colorfulness": ("dCF", "{:+.1f}"),
    "gray_mse": ("gray mse", "{:.6f}"),
    "mean_color_mse": ("mean color mse", "{:.6f}"),
}


def score_file(
    task: ColorizeTask, load: Callable[[], "Predictor"], threads: int, saturation: float | None = None
) -> dict[str, object] | str:
    """Scores one photograph with the predictor that `load` returns. Returns a row for `to_table`, or why it failed."""
    try:
        photo = read_photo(open_image(read_file(task.source, task.root)))
        return {"photograph": printable(task.source), **score_photo(load(), photo, threads, saturation)}
    except Unreadable as error:
        return str(error)
    except Exception as error:  # out of memory, or a defect of this program: the other photographs are still scored
        return " ".join(f"{type(error).__name__}: {error}".split())


def score_photo(
    predictor: "Predictor", photo: Photo, threads: int = 1, saturation: float | None = None
) -> dict[str, object]:
    """Colors a photograph from its L* alone and compares the result with it.

    The errors are in units of (ab + 128) / 255. They are those of the predicted ab, before colors outside sRGB are
    desaturated. The other scores are those of the 8-bit picture.

    Returns:
        the scores of scores.csv but for mean_color_mse, and "mean_ab" and "square_ab": the means of ab and of its
        squares over the pixels, (2,) in Lab units.

    Raises:
        Unreadable: the photograph is smaller than SMALLEST pixels.
    """
    original = photo.on_white()
    if min(original.size) < SMALLEST:
        raise Unreadable(f"too small to score: {SMALLEST} pixels on each side are needed")
    original.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    flat = Photo(original, None)
    seen = model_input(flat, predictor.margin, predictor.side)
    predicted = predict_ab(predictor, seen.lightness, saturation)
    rgb, colored = np.asarray(original), np.asarray(join(flat, seen, predicted, threads))
    true_ab = np.moveaxis(srgb_to_lab(rgb)[..., 1:], -1, 0)
    scores = image_scores(rgb, colored)
    square_ab = np.square(true_ab).mean(axis=(1, 2))
    error = np.square(enlarge_ab(predicted, seen, original.size) - true_ab).mean()
    return {
        "mse": float(error) / Constants.MSE_UNIT**2,
        **scores,
        **perceptual_distance(rgb, colored),
        "gray_mse": float(square_ab.mean()) / Constants.MSE_UNIT**2,
        "mean_ab": true_ab.mean(axis=(1, 2)),
        "square_ab": square_ab,
    }


def perceptual_distance(original: np.ndarray, colored: np.ndarray) -> dict[str, float]:
    """Returns {"lpips": distance} of two (H,W,3) uint8 sRGB images, or {} if it cannot be computed here.

    LPIPS (Zhang et al. 2018) needs the package lpips, and AlexNet's ImageNet weights in PyTorch's cache.
    """
    model = _lpips_model()
    if model is None:
        return {}
    first, second = (torch.tensor(image).permute(2, 0, 1)[None] / 127.5 - 1 for image in (original, colored))
    with torch.inference_mode():
        return {"lpips": float(model(first, second))}


@functools.cache
def _lpips_model() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    weights = (Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-*.pth")
    if find_spec("lpips") is None or next(weights, None) is None:  # without its weights, lpips would download them
        return None
    from lpips import LPIPS

    return LPIPS(net="alex", verbose=False)


def to_table(rows: Sequence[dict[str, object]], mean_ab: Sequence[float] | None) -> list[dict[str, object]]:
    """Returns the rows of scores.csv, sorted by photograph, and their mean as the last row.

    Args:
        rows: returned by `score_file`.
        mean_ab: the color that the baseline "mean color" predicts. None: the mean color of the scored photographs.
    """
    guess = np.array(mean_ab if mean_ab else np.mean([row["mean_ab"] for row in rows], axis=0))
    table = []
    for row in sorted(rows, key=lambda row: row["photograph"]):
        error = float((row["square_ab"] - 2 * guess * row["mean_ab"] + guess**2).mean())
        row = {**row, "mean_color_mse": error / Constants.MSE_UNIT**2}
        table.append({column: row[column] for column in ("photograph", *_CELLS) if column in row})
    means = {key: float(np.mean([row[key] for row in table])) for key in table[0] if key != "photograph"}
    return [*table, {"photograph": "mean", **means}]


def write_table(path: Path, table: Sequence[dict[str, object]]) -> None:
    """Writes scores.csv. Raises OSError."""
    write_csv(path, list(table[0]), table)


def table_lines(table: Sequence[dict[str, object]]) -> list[str]:
    """Returns the lines of the printed table."""
    cells = {key: cell for key, cell in _CELLS.items() if key in table[0]}
    lines = [["photograph", *(heading for heading, _ in cells.values())]]
    lines += [[row["photograph"], *(form.format(row[key]) for key, (_, form) in cells.items())] for row in table]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
