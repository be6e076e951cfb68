"""A photograph at its full size: what the network is shown of it, and its own L joined with the colors predicted.

Lab is scikit-image's (sRGB, D65, 2 degrees). IEC 61966-2-1 has the curve of sRGB and its primaries, CIE 15 the Lab
of 1976. The curves are looked up in tables, which takes no longer on a processor that has no fast powers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from deepcolor.data.image_io import Photo

_XYZ_FROM_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_STEPS = 1 << 16  # of the tables over 0..1
_DARK = np.float32(6 / 29)  # f of Lab's curve below which it is a straight line
_SLOPE, _SHIFT = np.float32(1 / 7.787), np.float32(16 / 116)
_TINY = np.float32(1e-9)
_STRIP_PIXELS = 48 << 10  # what is computed of them then stays in the processor's cache


def _linear(values: np.ndarray) -> np.ndarray:
    """sRGB in 0..1 -> linear light in 0..1."""
    return np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)


def _encoded(values: np.ndarray) -> np.ndarray:
    """Linear light in 0..1 -> sRGB in 0..1."""
    return np.where(values > 0.0031308, 1.055 * values ** (1 / 2.4) - 0.055, values * 12.92)


_UNIT = np.arange(_STEPS) / (_STEPS - 1)
# Y of a 16-bit gray, and what 8 bits of red, green and blue add to it.
_GRAY_Y = _linear(_UNIT).astype(np.float32)
_RGB_Y = (_XYZ_FROM_RGB[1, :, None] * _linear(np.arange(256) / 255)).astype(np.float32)
_F = np.where(_UNIT > 0.008856, np.cbrt(_UNIT), 7.787 * _UNIT + 16 / 116).astype(np.float32)  # of Y: L = 116 f - 16
_SRGB = np.rint(_encoded(_UNIT) * 255).astype(np.uint8)
# From X and Z over the white's, and Y, to how far red, green and blue are from the gray of this Y.
_RGB_LESS_Y = (np.linalg.inv(_XYZ_FROM_RGB) * _WHITE - [0, 1, 0]).astype(np.float32)


def luminance(pixels: np.ndarray) -> np.ndarray:
    """(H,W,3) or (H,W) uint8, or (H,W) uint16, sRGB -> Y (H,W) float32 in 0..1."""
    if pixels.dtype == np.uint16:
        return _GRAY_Y.take(pixels)
    if pixels.ndim == 2:
        return _GRAY_Y[::257].take(pixels)
    y = _RGB_Y[0].take(pixels[..., 0])
    y += _RGB_Y[1].take(pixels[..., 1])
    y += _RGB_Y[2].take(pixels[..., 2])
    return y


def _curve(y: np.ndarray) -> np.ndarray:
    """Y (H,W) in 0..1 -> f of Lab, so that L = 116 f - 16."""
    return _F.take((y * (_STEPS - 1) + np.float32(0.5)).astype(np.int32), mode="clip")


def _uncurve(f: np.ndarray) -> np.ndarray:
    """The inverse for X and Z over the white's. Overwrites `f`."""
    dark = f < _DARK
    cubes = f * f
    cubes *= f
    f -= _SHIFT
    f *= _SLOPE
    np.copyto(cubes, f, where=dark)
    return cubes


def to_srgb(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Y (H,W) in 0..1, a and b (H,W) in Lab units, float32 -> (H,W,3) uint8 sRGB. Overwrites all three.

    The L* of the result is that of Y but for the rounding to 8 bits, which is at most 0.28. A color outside sRGB
    is moved towards the gray of the same Y, on a straight line in linear light, until it is inside: to clip
    red, green or blue would change L*.
    """
    f = _curve(y)
    a *= np.float32(1 / 500)
    b *= np.float32(1 / 200)
    a += f
    np.subtract(f, b, out=b)
    x, z = _uncurve(a), _uncurve(b)
    away = [m[0] * x + m[1] * y + m[2] * z for m in _RGB_LESS_Y]
    most = np.maximum(np.maximum(away[0], away[1]), away[2])
    least = np.minimum(np.minimum(away[0], away[1]), away[2])
    # The share of the way from gray to the color that lies inside: up to 1 on the one side, down to 0 on the other.
    np.divide(1 - y, np.maximum(most, _TINY, out=most), out=most)
    np.divide(-y, np.minimum(least, -_TINY, out=least), out=least)
    share = np.minimum(np.minimum(most, least, out=most), 1, out=most)
    share *= _STEPS - 1
    y *= _STEPS - 1
    y += np.float32(0.5)
    rgb = np.empty((*y.shape, 3), np.uint8)
    for channel, values in enumerate(away):
        values *= share
        values += y
        rgb[..., channel] = _SRGB.take(values.astype(np.int32), mode="clip")
    return rgb


class ModelInput(NamedTuple):
    """What the network is shown of a photograph."""

    lightness: np.ndarray  # (side,side) float32: L in 0..1
    valid_region: tuple[slice, slice]  # the rows and columns of it that are the photograph; the others continue it


def model_input(photo: Photo, side: int) -> ModelInput:
    """The whole photograph in a square, its longer side as long as the square's, its shape kept.

    What is left of the square mirrors the photograph, so that the network sees no edge that is none.
    """
    picture = photo.on_white() if photo.alpha or photo.color.mode == "I;16" else photo.color
    width, height = (max(1, round(side * length / max(picture.size))) for length in picture.size)
    small = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    lightness = _curve(luminance(np.asarray(small))) * np.float32(1.16) - np.float32(0.16)
    before = (side - height) // 2, (side - width) // 2
    after = side - height - before[0], side - width - before[1]
    padded = np.pad(lightness, list(zip(before, after)), mode="symmetric")
    return ModelInput(padded, (slice(before[0], before[0] + height), slice(before[1], before[1] + width)))


class FullResolution:
    """A photograph in its predicted colors, strip by strip: every strip can be had on its own, in any thread."""

    def __init__(self, photo: Photo, seen: ModelInput, ab: np.ndarray) -> None:
        """`ab`: (2,side,side) float32 in Lab units, as predicted for `seen`."""
        self.photo = photo
        self.width, self.height = photo.color.size
        self.channels = 4 if photo.alpha else 3
        planes = (Image.fromarray(np.ascontiguousarray(plane[seen.valid_region])) for plane in ab)
        # Bicubic interpolation is separable: the columns now, the rows with each strip.
        self.lines = [plane.resize((self.width, plane.height), Image.Resampling.BICUBIC) for plane in planes]

    def spans(self) -> Sequence[tuple[int, int]]:
        """The first row of each strip, and the one behind its last."""
        rows = max(1, _STRIP_PIXELS // self.width)
        return [(top, min(top + rows, self.height)) for top in range(0, self.height, rows)]

    def strip(self, top: int, bottom: int) -> np.ndarray:
        """The rows from `top` to before `bottom`: (rows,W,3) uint8 sRGB, (rows,W,4) with the photograph's alpha."""
        box = (0, top, self.width, bottom)
        y = luminance(np.asarray(self.photo.color.crop(box)))
        rgb = to_srgb(y, *(self._rows(lines, top, bottom) for lines in self.lines))
        return np.dstack((rgb, np.asarray(self.photo.alpha.crop(box)))) if self.photo.alpha else rgb

    def _rows(self, lines: Image.Image, top: int, bottom: int) -> np.ndarray:
        """The a or b of these rows: (rows,W) float32."""
        scale = lines.height / self.height
        box = (0, top * scale, self.width, min(bottom * scale, lines.height))
        return np.array(lines.resize((self.width, bottom - top), Image.Resampling.BICUBIC, box=box))

    def whole(self) -> np.ndarray:
        """(H,W,3) or (H,W,4) uint8."""
        return np.concatenate([self.strip(*span) for span in self.spans()])
