"""The built-in images: photographs that are part of scikit-image, cut into tiles."""

import re
from collections.abc import Iterable
from pathlib import Path

import skimage
from PIL import Image

import Constants
from deepcolor.common.files import wait_for_lock, write_atomically
from deepcolor.data.image_io import find_photos
from utils import UserError

# The color photographs that every installation contains. Of the stereo pair `motorcycle` only the left one, because
# both show the same scene.
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "ihc.png", "motorcycle_left.png", "rocket.jpg")
_UNFINISHED = ".unfinished"  # exists while not all tiles are written
_LOCK = ".lock"


def fill(folder: Path) -> int:
    """Writes the built-in images into train/, val/ and test/ below a folder that holds no images.

    Completes a set that an interrupted run left unfinished. Tiles do not overlap.

    Returns:
        the number of images written, which is 0 if the folder already holds images.

    Raises:
        UserError: the folder cannot be written.
    """
    if not _needs_images(folder):
        return 0
    try:
        with wait_for_lock(folder / _LOCK, f"another run is filling {folder}/: waiting for it"):
            return _write_tiles(folder) if _needs_images(folder) else 0
    except OSError as error:
        raise UserError(
            f"cannot write the built-in photographs into {folder}: {error.strerror}; "
            "choose a folder of images with --images"
        ) from error


def are_tiles(names: Iterable[str]) -> bool:
    """Returns whether all names are those of built-in images, without their endings."""
    stems = "|".join(Path(name).stem for name in PHOTOGRAPHS)
    return all(re.fullmatch(rf"({stems})_r\d+c\d+", name) for name in names)


def _needs_images(folder: Path) -> bool:
    return (folder / _UNFINISHED).exists() or next(find_photos(folder), None) is None


def _write_tiles(folder: Path) -> int:
    """Writes all tiles and returns how many. Raises OSError."""
    (folder / _UNFINISHED).touch()
    count = 0
    for name in PHOTOGRAPHS:
        for place, tile in _tiles(_read(name)).items():
            write_atomically(folder / _subset(count) / f"{Path(name).stem}_{place}.png", tile.save)
            count += 1
    (folder / _UNFINISHED).unlink()
    return count


def _subset(number: int) -> str:
    """Assigns one of ten tiles to val and one to test, so that both contain parts of every photograph."""
    return {3: "val", 8: "test"}.get(number % 10, "train")


def _read(name: str) -> Image.Image:
    try:
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(
            f"this installation of scikit-image lacks its photograph {name}: choose a folder of images with --images"
        ) from error


def _tiles(image: Image.Image) -> dict[str, Image.Image]:
    """Cuts the center of an image into as many whole tiles as fit: place, such as "r0c2" -> tile."""
    side = Constants.IMAGE_SIZE
    rows, columns = image.height // side, image.width // side
    top, left = (image.height - rows * side) // 2, (image.width - columns * side) // 2
    tiles = {}
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * side, top + row * side
            tiles[f"r{row}c{column}"] = image.crop((x, y, x + side, y + side))
    return tiles
