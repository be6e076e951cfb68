"""Finding photographs in a folder, and reading one, whatever its format, into plain sRGB."""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

import Constants

# Pillow's own limit is a warning at this size and an error at twice as much; ours, below, comes first
# for everything but a JPEG, which is decoded at a fraction of its size.
Image.MAX_IMAGE_PIXELS = 1 << 30
# Damaged metadata is no news: a picture that cannot be read is named with its reason by whoever asked for it.
warnings.filterwarnings("ignore", module="PIL")


_LARGE = threading.Lock()  # large pictures are decoded one at a time, however many threads read


class Unreadable(Exception):
    """A file that is no picture we can read. The message is the reason, in a few words."""


def find_photos(folder: Path, skip: Iterable[Path] = ()) -> Iterator[str]:
    """The paths of the image files below `folder`, relative to it, in any order.

    A file counts by its ending. Hidden files and folders, the folders in `skip`, and links to folders
    are passed over.
    """
    skip = {os.path.realpath(path) for path in skip}
    for parent, folders, files in os.walk(folder):
        folders[:] = [
            f for f in folders if not f.startswith(".") and os.path.realpath(os.path.join(parent, f)) not in skip
        ]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in Constants.IMAGE_ENDINGS:
                yield os.path.relpath(os.path.join(parent, name), folder)


def read_file(path: Path, root: Path) -> bytes:
    """The bytes of a regular file below `root`.

    Raises Unreadable for what is not one: a folder, pipe or device, a link that leads out of `root`,
    no permission, empty, too large.
    """
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise Unreadable("a link that leads out of the folder")
        # Without O_NONBLOCK, a pipe would be waited for before one could ask what it is.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a regular file")
            if status.st_size > Constants.MAX_FILE_BYTES:
                raise Unreadable(f"larger than {Constants.MAX_FILE_BYTES >> 20} MiB")
            content = file.read(Constants.MAX_FILE_BYTES)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise Unreadable(getattr(error, "strerror", None) or "a link that leads to itself") from error
    if not content:
        raise Unreadable("empty")
    return content


def decode_thumbnail(content: bytes) -> np.ndarray:
    """An image file's bytes -> (128,128,3) uint8 sRGB: shorter side to 128, centre crop.

    Raises Unreadable.
    """
    side = Constants.IMAGE_SIZE
    return np.asarray(ImageOps.fit(decode(content, at_least=2 * side), (side, side), Image.Resampling.BICUBIC))


def decode(content: bytes, at_least: int | None = None) -> Image.Image:
    """An image file's bytes -> the upright picture in sRGB, mode "RGB"; of an animation the first frame.

    `at_least`: pixels of the shorter side that suffice; a JPEG is then decoded at a fraction of its size.
    Raises Unreadable.
    """
    try:
        image = Image.open(io.BytesIO(content))
        size = image.size
        if at_least:
            image.draft(None, (at_least, at_least))
        if not image.info.get("progressive"):  # all of whose coefficients are kept, whatever the size it is wanted in
            size = image.size
        pixels = size[0] * size[1]
        if pixels > Constants.MAX_PIXELS:
            raise Unreadable(f"more than {Constants.MAX_PIXELS >> 20} megapixels: {size[0]} x {size[1]}")
        with _LARGE if pixels > Constants.LARGE_PIXELS else contextlib.nullcontext():
            ImageOps.exif_transpose(image, in_place=True)
            return _to_srgb(_reduced(image, at_least) if at_least else image)
    except Unreadable:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        raise Unreadable(_reason(error)) from error


def _reduced(image: Image.Image, at_least: int) -> Image.Image:
    """A large picture averaged down to what suffices, before anything else makes copies of it."""
    if image.mode.startswith("I;"):
        image = image.convert("I")
    factor = min(image.size) // at_least
    return image if factor < 2 or image.mode in ("1", "P", "PA") else image.reduce(factor)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return " ".join(str(error).split())[:100] or type(error).__name__


def _to_srgb(image: Image.Image) -> Image.Image:
    """Any mode -> "RGB": the profile applied, what is transparent on white, 16 bits and floats scaled to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if "A" in image.getbands() or "transparency" in image.info:
        upper = image.convert("RGBA")
        upper.info.update(image.info)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), _apply_profile(upper))
    return _apply_profile(image).convert("RGB")


def _apply_profile(image: Image.Image) -> Image.Image:
    """Converts from the colour space that the file says it is in; sRGB is assumed where it says nothing."""
    profile = image.info.pop("icc_profile", None)
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = image.mode if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a broken profile, or one of another colour space, says nothing about the colours


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Integer greys of 16 bits or more, and floats, -> "L". Floats are taken for 0..1 unless they exceed it."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    if image.mode == "F":
        full = next((top for top in (1.0, 255.0, 65535.0) if values.max() <= top), values.max())
    else:
        full = 255.0 if image.mode == "I" and values.max() <= 255 else 65535.0
    return Image.fromarray((np.clip(values / full, 0, 1) * 255).round().astype(np.uint8))
