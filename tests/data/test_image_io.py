"""Pictures of every size, format, mode and orientation are read as people see them."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers import ORIENTATION, SIDE, as_the_camera_lay, picture, swapped_profile, write
from PIL import Image

from deepcolor.data.image_io import Unreadable, decode_image, find_photos, open_image


def decode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> np.ndarray:
    """Saves a picture, and returns what `decode_image` makes of the file, as (128,128,3) of type int."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return decode_image(file.getvalue()).astype(int)


# --- Size and orientation ------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(128, 301), (260, 128), (128, 128)])
def test_the_center_is_cropped(height: int, width: int) -> None:
    rgb = picture(1, height, width)
    top, left = round((height - SIDE) / 2), round((width - SIDE) / 2)
    # If the center lies between two pixels, both neighbors and everything between them are right.
    tolerance = 0 if (height - SIDE) % 2 == (width - SIDE) % 2 == 0 else 12
    assert np.abs(decode(rgb) - rgb[top : top + SIDE, left : left + SIDE]).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_the_shorter_side_is_reduced_to_128(kind: str) -> None:
    y, x = np.mgrid[:512, :768]
    rgb = np.stack([x / 4, y / 3, 255 - x / 5], axis=-1).round().astype(np.uint8)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    blocks = rgb[:, 128:640].reshape(SIDE, 4, SIDE, 4, 3).mean(axis=(1, 3))
    difference = np.abs(decode(rgb, kind, **options) - blocks)
    assert difference.max() < 3
    assert difference.mean() < 0.8


def test_a_small_picture_is_enlarged() -> None:
    y, x = np.mgrid[:20, :30]
    found = decode(np.stack([x * 8, y * 12, 200 - x * 5], axis=-1).astype(np.uint8))
    position = (np.arange(SIDE) + 0.5) * 20 / SIDE - 0.5  # of each new pixel, in old pixels
    inner = slice(8, -8)
    assert np.abs(found[inner, inner, 0] - (8 * (position + 5))[inner][None]).max() < 3
    assert np.abs(found[inner, inner, 1] - (12 * position)[inner][:, None]).max() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """Also to a large JPEG, which is decoded at a fraction of its size."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    upright = picture(2, 128, 160)
    assert np.array_equal(decode(as_the_camera_lay(upright, orientation), exif=exif), upright[:, 16:144])
    large = upright.repeat(8, axis=0).repeat(8, axis=1)
    found = decode(as_the_camera_lay(large, orientation), "JPEG", quality=95, exif=exif)
    assert np.abs(found - upright[:, 16:144]).mean() < 3


# --- Modes ---------------------------------------------------------------------------------------------

RGB = Image.fromarray(picture(3))
GRAY = np.asarray(RGB.convert("L"))
PALETTE = RGB.convert("P", palette=Image.Palette.ADAPTIVE)
INVERTED = np.concatenate([255 - np.asarray(RGB), np.zeros((SIDE, SIDE, 1), np.uint8)], axis=2)
FRAMES = [Image.fromarray(picture(seed)) for seed in (9, 10)]


@pytest.mark.parametrize(
    ("image", "kind", "options", "expected"),
    [
        pytest.param(RGB.convert("L"), "PNG", {}, GRAY, id="gray"),
        pytest.param(PALETTE, "PNG", {}, PALETTE.convert("RGB"), id="palette"),
        pytest.param(PALETTE, "GIF", {}, PALETTE.convert("RGB"), id="gif"),
        pytest.param(Image.fromarray(GRAY > 128), "PNG", {}, np.where(GRAY > 128, 255, 0), id="1 bit"),
        pytest.param(Image.fromarray(INVERTED, "CMYK"), "TIFF", {}, RGB, id="cmyk"),
        pytest.param(GRAY.astype(np.uint16) * 257, "PNG", {}, GRAY, id="16-bit png"),
        pytest.param(GRAY.astype(np.uint16) * 257, "TIFF", {}, GRAY, id="16-bit tiff"),
        pytest.param((GRAY / 255).astype(np.float32), "TIFF", {}, GRAY, id="floats from 0 to 1"),
        pytest.param(RGB, "PNG", {"icc_profile": b"not a profile"}, RGB, id="damaged profile"),
        pytest.param(FRAMES[0], "PNG", {"save_all": True, "append_images": FRAMES[1:]}, FRAMES[0], id="animation"),
    ],
)
def test_opaque_pictures_keep_their_colors(
    image: Image.Image | np.ndarray, kind: str, options: dict, expected: Image.Image | np.ndarray
) -> None:
    expected = np.asarray(expected)
    expected = expected if expected.ndim == 3 else expected[..., None]
    assert np.array_equal(decode(image, kind, **options), np.broadcast_to(expected, (SIDE, SIDE, 3)))


def test_a_large_dark_16_bit_picture_stays_dark() -> None:
    """Its values fit into 8 bits, which must not be mistaken for the full range after averaging."""
    assert decode(np.full((700, 700), 200, np.uint16)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pictures_are_on_white(mode: str) -> None:
    color = picture(4)[..., : len(mode) - 1]
    alpha = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[:, None, None], (SIDE, SIDE, 1))
    expected = color * (alpha / 255) + 255 * (1 - alpha / 255)
    image = Image.fromarray(np.concatenate([color, alpha], axis=2), mode)
    assert np.abs(decode(image) - expected).max() <= 1


def test_a_transparent_palette_color_is_white() -> None:
    image = Image.fromarray(np.repeat([[0] * 64 + [1] * 64], SIDE, axis=0).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    found = decode(image, transparency=0)
    assert (found[:, :64] == 255).all()
    assert (found[:, 64:] == (200, 100, 50)).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_color_profile_is_applied(mode: str) -> None:
    found = decode(RGB.convert(mode), icc_profile=swapped_profile())
    assert np.abs(found - np.asarray(RGB)[..., ::-1]).max() <= 3


# --- Finding -------------------------------------------------------------------------------------------


def test_find_photos(tmp_path: Path) -> None:
    for path in ("LOUD.PNG", "sub.jpg/deep/a.tiff", ".hidden.png", ".thumbnails/b.png", "made/here/c.png"):
        write(tmp_path / "images" / path, picture(11, 8, 8))
    (tmp_path / "images/notes.txt").write_text("not a picture")
    write(tmp_path / "elsewhere/d.png", picture(12, 8, 8))
    (tmp_path / "images/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "images/loop").symlink_to(tmp_path / "images", target_is_directory=True)
    found = find_photos(tmp_path / "images", skip=[tmp_path / "images/sub.jpg/../made"])
    assert sorted(found) == ["LOUD.PNG", "sub.jpg/deep/a.tiff"]


@pytest.mark.parametrize(("kind", "options"), [("ICO", {"sizes": [(128, 128)]}), ("EPS", {}), ("PDF", {})])
def test_formats_that_are_not_meant_are_not_opened_under_another_name(kind: str, options: dict) -> None:
    """An ICO file decodes what it holds before its size is checked; EPS starts Ghostscript."""
    content = io.BytesIO()
    Image.fromarray(picture(0)).save(content, kind, **options)
    with pytest.raises(Unreadable, match="not an image"):
        open_image(content.getvalue())
