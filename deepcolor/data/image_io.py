"""Finding photographs in a folder, and reading one, whatever its format, into plain sRGB."""

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


def decode_image(content: bytes) -> np.ndarray:
    """An image file's bytes -> (128,128,3) uint8 sRGB: shorter side to 128, center crop.

    Raises Unreadable.
    """
    side = Constants.IMAGE_SIZE
    picture = read_photo(open_image(content), at_least=2 * side).on_white()
    return np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC))


class Photo(NamedTuple):
    """A photograph at its own size, upright and in sRGB."""

    color: Image.Image  # mode "RGB", or gray: "L", and "I;16" where there are more than 8 bits
    alpha: Image.Image | None  # mode "L", where parts of it can be transparent

    def on_white(self) -> Image.Image:
        """Mode "RGB": 16 bits are rounded to 8, what is transparent lies on white."""
        opaque = (_to_8_bits(self.color) if self.color.mode == "I;16" else self.color).convert("RGB")
        if self.alpha is None:
            return opaque
        upper = Image.merge("RGBA", (*opaque.split(), self.alpha))
        return Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper).convert("RGB")


def open_image(content: bytes) -> Image.Image:
    """An image file's bytes -> what its header says, no pixel decoded yet. Raises Unreadable."""
    with _decoding():
        return Image.open(io.BytesIO(content))


def read_photo(image: Image.Image, at_least: int | None = None) -> Photo:
    """Decodes what `open_image` opened, of an animation the first frame. The image is used up.

    `at_least`: pixels of the shorter side that suffice; a JPEG is then decoded at a fraction of its size, and
    large pictures one at a time. Raises Unreadable.
    """
    with _decoding():
        size = image.size
        if at_least:
            image.draft(None, (at_least, at_least))
        if not image.info.get("progressive"):  # all of whose coefficients are kept, whatever the size it is wanted in
            size = image.size
        pixels = size[0] * size[1]
        if pixels > Constants.MAX_PIXELS:
            raise Unreadable(f"more than {Constants.MAX_PIXELS >> 20} megapixels: {size[0]} x {size[1]}")
        with _LARGE if at_least and pixels > Constants.LARGE_PIXELS else contextlib.nullcontext():
            ImageOps.exif_transpose(image, in_place=True)
            return _to_srgb(_reduced(image, at_least) if at_least else image)


def _reduced(image: Image.Image, at_least: int) -> Image.Image:
    """A large picture averaged down to what suffices, before anything else makes copies of it."""
    factor = min(image.size) // at_least
    if factor < 2 or image.mode in ("1", "P", "PA"):
        return image
    if image.mode.startswith("I;"):  # which cannot be averaged as it is
        return _deep(np.asarray(image.convert("I").reduce(factor)), image.info)
    return image.reduce(factor)


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Within, whatever goes wrong is Unreadable: a damaged file can make a decoder raise anything at all."""
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
    """Any mode -> a Photo: the profile applied, the alpha taken apart, grays of more than 8 bits as 16."""
    if image.mode.startswith("I") or image.mode == "F":
        return Photo(_apply_profile(_to_16_bits(image)), None)
    if image.mode == "LA":
        return _to_srgb(image.getchannel("L"))._replace(alpha=image.getchannel("A"))
    if "A" in image.getbands() or "transparency" in image.info:
        upper = _apply_profile(_converted(image, "RGBA"))
        return Photo(upper.convert("RGB"), upper.getchannel("A"))
    if image.mode not in ("RGB", "CMYK", "L"):
        image = _converted(image, "L" if image.mode == "1" else "RGB")
    image = _apply_profile(image)
    return Photo(image if image.mode == "L" else image.convert("RGB"), None)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """In another mode; it remembers its profile."""
    converted = image.convert(mode)
    converted.info.update(image.info)
    return converted


def _apply_profile(image: Image.Image) -> Image.Image:
    """Converts from the color space that the file says it is in; sRGB is assumed where it says nothing."""
    profile = image.info.pop("icc_profile", None)
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = image.mode if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a broken profile, or one of another color space, says nothing about the colors


def _to_16_bits(image: Image.Image) -> Image.Image:
    """Integer grays of 16 bits or more, and floats, -> "I;16". Floats are taken for 0..1 unless they exceed it."""
    values = np.asarray(image)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
        peak = values.max()
        usual = (1, 255, 65535, peak) if image.mode == "F" else (255, 65535)
        values /= next((top for top in usual if peak <= top), usual[-1])
        values = np.rint(np.clip(values, 0, 1, out=values) * 65535)
    return _deep(values, image.info)


def _deep(values: np.ndarray, info: dict) -> Image.Image:
    """(H,W) of 0..65535 -> "I;16", which remembers its profile."""
    image = Image.fromarray(np.ascontiguousarray(values, np.uint16))
    image.info.update(info)
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """ "I;16" -> "L"."""
    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
