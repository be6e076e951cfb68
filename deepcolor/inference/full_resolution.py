"""Colors a photograph at full size: its own lightness L*, joined with the colors that a network predicts."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

import Constants
from deepcolor.common.color import srgb_to_lightness, srgb_to_y, yab_to_srgb
from deepcolor.data.image_io import Photo

if TYPE_CHECKING:
    from deepcolor.inference.predictor import Predictor

_STRIDE = 32  # of a pretrained encoder
_STRIP_PIXELS = 192 << 10  # measured as the fastest for two threads, of sizes from 24 << 10 to 768 << 10


class ModelInput(NamedTuple):
    """A photograph as the network sees it."""

    lightness: np.ndarray  # (H,W) float32: L*/100
    valid_region: tuple[slice, slice]  # rows and columns of the photograph; the rest is padding


def colorize_photo(
    predictor: "Predictor", photo: Photo, threads: int = 1, saturation: float | None = None
) -> Image.Image:
    """Returns the photograph in predicted colors, at its own size: mode "RGB", or "RGBA" if it has alpha.

    `saturation` is a factor of the predicted ab. None: that of the checkpoint.
    """
    seen = model_input(photo, predictor.margin, predictor.side)
    return join(photo, seen, predict_ab(predictor, seen.lightness, saturation), threads)


def predict_ab(predictor: "Predictor", lightness: np.ndarray, saturation: float | None) -> np.ndarray:
    """L*/100 (H,W) or (N,H,W) -> ab (2,H,W) or (N,2,H,W) in Lab units, multiplied by `saturation`."""
    return predictor.predict(lightness) * np.float32(predictor.saturation if saturation is None else saturation)


def model_input(photo: Photo, margin: int = 0, side: int = Constants.IMAGE_SIZE) -> ModelInput:
    """Scales the whole photograph to `side` pixels on the longer side, and keeps its aspect ratio.

    It is padded to a square, or if there is a margin by at least the margin to multiples of 32. The padding mirrors the
    photograph, so that the network sees no artificial edges.
    """
    picture = photo.on_white() if photo.alpha or photo.color.mode == "I;16" else photo.color
    width, height = (max(1, round(side * length / max(picture.size))) for length in picture.size)
    small = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    multiple = _STRIDE if margin else side
    missing = [2 * margin + -(length + 2 * margin) % multiple for length in (height, width)]
    top, left = (pixels // 2 for pixels in missing)
    padding = (top, missing[0] - top), (left, missing[1] - left)
    padded = np.pad(srgb_to_lightness(np.asarray(small)), padding, mode="symmetric")
    return ModelInput(padded, (slice(top, top + height), slice(left, left + width)))


def join(photo: Photo, seen: ModelInput, ab: np.ndarray, threads: int = 1) -> Image.Image:
    """Joins the photograph's L* with the colors `ab` predicted for `seen`: (2,H,W) float32 in Lab units."""
    width, height = photo.color.size
    planes = _enlarge_columns(ab, seen, width)
    colored = Image.new("RGB", photo.color.size)
    rows = max(1, _STRIP_PIXELS // width)

    def color_strip(top: int) -> None:
        bottom = min(top + rows, height)
        y = srgb_to_y(np.asarray(photo.color.crop((0, top, width, bottom))))
        rgb = yab_to_srgb(y, *(_enlarge_rows(plane, top, bottom, height) for plane in planes))
        colored.paste(Image.fromarray(rgb), (0, top))

    tops = range(0, height, rows)
    if threads == 1 or len(tops) == 1:  # starting threads would take as long as coloring a small photograph
        for top in tops:
            color_strip(top)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(color_strip, tops))
    if photo.alpha:
        colored.putalpha(photo.alpha)
    return colored


def enlarge_ab(ab: np.ndarray, seen: ModelInput, size: tuple[int, int]) -> np.ndarray:
    """Returns the colors of a photograph of (width, height) pixels: (2,height,width) float32 in Lab units.

    `ab` is predicted for `seen`. These are the colors that `join` combines with the photograph's L*.
    """
    width, height = size
    return np.stack([_enlarge_rows(plane, 0, height, height) for plane in _enlarge_columns(ab, seen, width)])


def _enlarge_columns(ab: np.ndarray, seen: ModelInput, width: int) -> list[Image.Image]:
    """Returns the planes of a and b without padding, enlarged to `width` columns.

    Bicubic interpolation is separable: the columns are enlarged once, and the rows strip by strip.
    """
    planes = [Image.fromarray(np.ascontiguousarray(plane[seen.valid_region])) for plane in ab]
    return [plane.resize((width, plane.height), Image.Resampling.BICUBIC) for plane in planes]


def _enlarge_rows(plane: Image.Image, top: int, bottom: int, height: int) -> np.ndarray:
    """Returns the rows `top` to `bottom` of a plane enlarged to `height` rows: (bottom-top,W) float32."""
    scale = plane.height / height
    box = (0, top * scale, plane.width, min(bottom * scale, plane.height))
    return np.array(plane.resize((plane.width, bottom - top), Image.Resampling.BICUBIC, box=box))
