"""The networks that the page offers, and the coloring of its photographs."""

import functools
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from deepcolor.common.cli import printable
from deepcolor.common.system import available_cores
from deepcolor.data.image_io import open_image, read_file, read_photo
from deepcolor.inference.pipeline import color_file
from deepcolor.inference.predictor import Predictor
from deepcolor.inference.tasks import SUFFIX, ColorizeTask
from deepcolor.training.paths import RunPaths
from utils import UserError

PREVIEW = 1600  # pixels of the longer side; the download has the full resolution


class Result(NamedTuple):
    """A photograph and its colored picture."""

    photo: Path
    colored: Path


def networks(output: Path, pretrained: Path, models: Iterable[dict]) -> dict[str, Path]:
    """Returns name -> checkpoint of the networks that can color: pretrained, best of the sweep, every finished run."""
    found = {"pretrained on photographs": pretrained, "best of the sweep": RunPaths(output).best("colorizer")}
    found = {name: path for name, path in found.items() if path.is_file()}
    for model in models:
        if model["network"] == "colorizer" and model["metrics"]["status"] == "done":
            found[f"{model['activation']}, {model['run']}"] = output / model["metrics"]["checkpoint"]
    return found


def color(photos: Iterable[Path], checkpoint: Path, saturation: float, folder: Path) -> tuple[list[Result], list[str]]:
    """Colors photographs as colorize.py does.

    Args:
        photos: files.
        checkpoint: of a Colorizer.
        saturation: factor of the checkpoint's saturation; 1 gives the colors of colorize.py.
        folder: where a new folder with the pictures is made.

    Returns:
        The results, and a line for each photograph that failed.

    Raises:
        UserError: the checkpoint cannot be used.
    """
    try:
        predictor = _load(checkpoint, checkpoint.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"{checkpoint} cannot be read: {error.strerror}") from error
    predictor.use_one_thread()  # for the same result as colorize.py
    results, failures = [], []
    for number, photo in enumerate(photos):
        # A name that cannot be guessed, and a folder for each, because two photographs can have the same name.
        colored = folder / "results" / secrets.token_hex(16) / str(number) / f"{photo.stem}{SUFFIX}.png"
        task = ColorizeTask(photo, photo.parent, colored)
        failure = color_file(task, lambda: predictor, available_cores(), saturation * predictor.saturation)
        if failure:
            failures.append(f"cannot color {printable(photo.name)}: {failure}")
        else:
            results.append(Result(photo, colored))
    return results, failures


@functools.lru_cache(maxsize=4)
def _load(checkpoint: Path, changed: int) -> Predictor:
    return Predictor.load(checkpoint, torch.device("cpu"))


def preview(path: Path, side: int = PREVIEW) -> Image.Image:
    """Returns a picture in mode "RGB" whose longer side has at most `side` pixels. Raises Unreadable."""
    picture = read_photo(open_image(read_file(path, path.parent)), at_least=side).on_white()
    picture.thumbnail((side, side))
    return picture
