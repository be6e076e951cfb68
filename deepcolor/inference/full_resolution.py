"""A photograph at its full size: what the network is shown of it, and its own L joined with the colors predicted.

Lab is scikit-image's (sRGB, D65, 2 degrees). IEC 61966-2-1 has the curve of sRGB and its primaries, CIE 15 the Lab
of 1976. The curves are looked up in tables, which takes no longer on a processor that has no fast powers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from deepcolor.common.color import srgb_to_lightness, srgb_to_y, yab_to_srgb
from deepcolor.data.image_io import Photo

_STRIP_PIXELS = 48 << 10  # what is computed of them then stays in the processor's cache


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
    lightness = srgb_to_lightness(np.asarray(small))
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
        y = srgb_to_y(np.asarray(self.photo.color.crop(box)))
        rgb = yab_to_srgb(y, *(self._rows(lines, top, bottom) for lines in self.lines))
        return np.dstack((rgb, np.asarray(self.photo.alpha.crop(box)))) if self.photo.alpha else rgb

    def _rows(self, lines: Image.Image, top: int, bottom: int) -> np.ndarray:
        """The a or b of these rows: (rows,W) float32."""
        scale = lines.height / self.height
        box = (0, top * scale, self.width, min(bottom * scale, lines.height))
        return np.array(lines.resize((self.width, bottom - top), Image.Resampling.BICUBIC, box=box))

    def whole(self) -> np.ndarray:
        """(H,W,3) or (H,W,4) uint8."""
        return np.concatenate([self.strip(*span) for span in self.spans()])
