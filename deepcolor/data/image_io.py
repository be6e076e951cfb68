"""Finds photographs in a folder and reads them, in any format, as sRGB."""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

import Constants

# Pillow warns at this size and raises at twice this size. It is above Constants.MAX_PIXELS, which `read_photo` checks,
# because a larger JPEG can still be decoded at a fraction of its size.
Image.MAX_IMAGE_PIXELS = 1 << 30
# Pillow warns about damaged metadata. Only a picture that cannot be read is reported, by the caller.
warnings.filterwarnings("ignore", module="PIL")

_large_image_lock = threading.Lock()  # large pictures are decoded one at a time to limit memory


class Unreadable(Exception):
    """Raised for a file that cannot be read as a picture. The message is the reason in a few words."""


def find_photos(folder: Path, skip: Iterable[Path] = ()) -> Iterator[str]:
    """Yields the paths of the image files below a folder, relative to it, with "/", in no particular order.

    Image files are recognized by their extension. Hidden files, hidden folders, links to folders and the folders in
    `skip` are ignored.
    """
    skip = {os.path.realpath(path) for path in skip}
    for parent, folders, files in os.walk(folder):
        folders[:] = [
            f for f in folders if not f.startswith(".") and os.path.realpath(os.path.join(parent, f)) not in skip
        ]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in Constants.IMAGE_ENDINGS:
                yield os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")


def read_file(path: Path, root: Path) -> bytes:
    """Returns the content of a regular file below `root`.

    Raises Unreadable for anything else: a folder, pipe or device, a link that leads out of `root`, and a file that is
    empty, too large or not permitted to read.
    """
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise Unreadable("a link that leads out of the folder")
        # Without O_NONBLOCK, which Windows does not have, opening a pipe waits for a writer.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a regular file")
            if status.st_size > Constants.MAX_FILE_BYTES:
                raise Unreadable(f"larger than {Constants.MAX_FILE_BYTES >> 20} MiB")
            content = file.read(Constants.MAX_FILE_BYTES)
    except (OSError, RuntimeError) as error:  # resolve() raises RuntimeError for a link to itself
        raise Unreadable(getattr(error, "strerror", None) or "a link to itself") from error
    if not content:
        raise Unreadable("empty")
    return content


def decode_image(content: bytes) -> np.ndarray:
    """Returns an image file as (128,128,3) uint8 sRGB: the shorter side resized to 128, then cropped to the center.

    Raises Unreadable.
    """
    side = Constants.IMAGE_SIZE
    picture = read_photo(open_image(content), at_least=2 * side).on_white()
    return np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC))


class Photo(NamedTuple):
    """An upright photograph in sRGB."""

    color: Image.Image  # mode "RGB"; gray pictures are "L", or "I;16" if they have more than 8 bits
    alpha: Image.Image | None  # mode "L", or None if the picture is opaque

    def on_white(self) -> Image.Image:
        """Returns the picture in mode "RGB" with 8 bits, on a white background."""
        opaque = (_to_8_bits(self.color) if self.color.mode == "I;16" else self.color).convert("RGB")
        if self.alpha is None:
            return opaque
        rgba = Image.merge("RGBA", (*opaque.split(), self.alpha))
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def open_image(content: bytes) -> Image.Image:
    """Returns an image file as an Image whose header is read and whose pixels are not yet. Raises Unreadable."""
    with _decoder_errors():
        return Image.open(io.BytesIO(content), formats=Constants.IMAGE_FORMATS)


def read_photo(image: Image.Image, at_least: int | None = None) -> Photo:
    """Decodes an image from `open_image`. Of an animation, the first frame.

    Args:
        image: modified in place; not usable afterwards.
        at_least: if given, the picture may be made smaller, as long as its shorter side keeps this many pixels. A JPEG
            is then decoded at a fraction of its size. None: full size.

    Raises:
        Unreadable: the picture is damaged or has too many pixels.
    """
    with _decoder_errors():
        size = image.size
        if at_least:
            image.draft(None, (at_least, at_least))
        # A progressive JPEG needs memory for all coefficients, whatever size it is decoded at.
        if not image.info.get("progressive"):
            size = image.size
        pixels = size[0] * size[1]
        if pixels > Constants.MAX_PIXELS:
            raise Unreadable(f"more than {Constants.MAX_PIXELS >> 20} megapixels: {size[0]} x {size[1]}")
        with _large_image_lock if at_least and pixels > Constants.LARGE_PIXELS else contextlib.nullcontext():
            ImageOps.exif_transpose(image, in_place=True)
            return _to_srgb(_shrink(image, at_least) if at_least else image)


def _shrink(image: Image.Image, at_least: int) -> Image.Image:
    """Averages blocks of pixels, so that later steps copy a smaller picture."""
    factor = min(image.size) // at_least
    if factor < 2 or image.mode in ("1", "P", "PA"):
        return image
    if image.mode.startswith("I;"):  # Pillow cannot average this mode
        return _gray_16(np.asarray(image.convert("I").reduce(factor)), image.info)
    return image.reduce(factor)


@contextlib.contextmanager
def _decoder_errors() -> Iterator[None]:
    """Turns every exception into Unreadable, because decoders raise many kinds for damaged files."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return " ".join(str(error).split())[:100] or type(error).__name__


def _to_srgb(image: Image.Image) -> Photo:
    """Converts an image of any mode: applies the color profile and separates the alpha channel."""
    if image.mode.startswith("I") or image.mode == "F":
        return Photo(_apply_profile(_to_16_bits(image)), None)
    if image.mode == "LA":
        return _to_srgb(image.getchannel("L"))._replace(alpha=image.getchannel("A"))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = _apply_profile(_convert(image, "RGBA"))
        return Photo(rgba.convert("RGB"), rgba.getchannel("A"))
    if image.mode not in ("RGB", "CMYK", "L"):
        image = _convert(image, "L" if image.mode == "1" else "RGB")
    image = _apply_profile(image)
    return Photo(image if image.mode == "L" else image.convert("RGB"), None)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Converts to another mode and keeps `info`, which holds the color profile."""
    converted = image.convert(mode)
    converted.info.update(image.info)
    return converted


def _apply_profile(image: Image.Image) -> Image.Image:
    """Converts from the embedded color profile to sRGB. An image without a profile is taken for sRGB."""
    profile = image.info.pop("icc_profile", None)
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = image.mode if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # the profile is damaged or is not for this mode


def _to_16_bits(image: Image.Image) -> Image.Image:
    """Converts grays of 16 or 32 bits to mode "I;16".

    The white level is the smallest usual one that no pixel exceeds: 255 or 65535, and for floats also 1.
    """
    values = np.asarray(image)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
        peak = values.max()
        levels = (1, 255, 65535, peak) if image.mode == "F" else (255, 65535)
        values /= next((white for white in levels if peak <= white), levels[-1])
        values = np.rint(np.clip(values, 0, 1, out=values) * 65535)
    return _gray_16(values, image.info)


def _gray_16(values: np.ndarray, info: dict) -> Image.Image:
    """(H,W) in 0..65535 -> an image of mode "I;16" with this `info`."""
    image = Image.fromarray(np.ascontiguousarray(values, np.uint16))
    image.info.update(info)
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Mode "I;16" -> mode "L"."""
    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
