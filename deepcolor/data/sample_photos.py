"""The built-in set: real photographs that come inside the installed scikit-image, cut into tiles."""

import os
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

import Constants
from deepcolor.common.files import wait_for_lock, write_atomically
from deepcolor.data.image_io import find_photos
from utils import UserError

# Color photographs that every installation has; of the stereo pair `motorcycle` the left one only, because
# the right one shows the same things.
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "ihc.png", "motorcycle_left.png", "rocket.jpg")
_UNFINISHED = ".unfinished"
_LOCK = ".lock"


def fill(folder: Path) -> int:
    """Puts the built-in photographs into train/, val/ and test/ below `folder`, if no image is there yet.

    Returns how many tiles it wrote: 0 where there are images already. No two tiles share a pixel.
    Raises UserError if the folder cannot be written.
    """
    if not _wanting(folder):
        return 0
    try:
        with wait_for_lock(folder / _LOCK, f"another run is filling {folder}/: waiting for it"):
            return _write_tiles(folder) if _wanting(folder) else 0
    except OSError as error:
        raise UserError(
            f"cannot write the built-in photographs into {folder}: {error.strerror}; "
            "give a folder of images with --images"
        ) from error


def _wanting(folder: Path) -> bool:
    """Whether there is no image yet, or not all of the tiles that somebody began to write."""
    return (folder / _UNFINISHED).exists() or next(find_photos(folder), None) is None


def _write_tiles(folder: Path) -> int:
    """Writes all tiles and returns how many. Raises OSError."""
    (folder / _UNFINISHED).touch()
    count = 0
    for name in PHOTOGRAPHS:
        for tile, place in _tiles(_photograph(name)):
            path = folder / _subset(count) / f"{Path(name).stem}_{place}.png"
            write_atomically(path, tile.save)
            count += 1
    (folder / _UNFINISHED).unlink()
    return count


def _subset(number: int) -> str:
    """Of ten tiles one validates and one tests, which spreads both over every photograph."""
    return {3: "val", 8: "test"}.get(number % 10, "train")


def _photograph(name: str) -> Image.Image:
    path = os.path.join(os.path.dirname(skimage.__file__), "data", name)
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(
            f"this installation of scikit-image lacks its photograph {name}: give a folder of images with --images"
        ) from error


def _tiles(image: Image.Image) -> list[tuple[Image.Image, str]]:
    """The whole tiles that fit, side by side, centerd, each with its place."""
    side = Constants.IMAGE_SIZE
    columns, rows = image.width // side, image.height // side
    left, top = (image.width - columns * side) // 2, (image.height - rows * side) // 2
    places = [(row, column) for row, column in np.ndindex(rows, columns)]
    return [
        (image.crop((x := left + column * side, y := top + row * side, x + side, y + side)), f"r{row}c{column}")
        for row, column in places
    ]
