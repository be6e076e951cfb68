"""Photographs of every format keep their size, orientation, alpha and L* in colorize.py.

The colorizer predicts colors far outside sRGB, for which it is hardest to keep L*.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracles
import pytest
from helpers import ORIENTATION, as_the_camera_lay, picture, swapped_profile
from PIL import Image

from deepcolor.common.color import yab_to_srgb

BOUND = 0.28  # of L*: the rounding of red, green and blue to 8 bits
Color = Callable[..., np.ndarray]


def lightness(rgb: np.ndarray) -> np.ndarray:
    """(H,W,3) sRGB in 0..255, or (H,W) gray -> L* (H,W)."""
    return oracles.lab(rgb if rgb.ndim == 3 else np.repeat(rgb[..., None].astype(float), 3, axis=2))[..., 0]


@pytest.fixture
def color(run_colorize: Callable, vivid: Path, tmp_path: Path) -> Color:
    """Saves an image as a file, colors the file, and returns the colored picture."""

    def run(image: Image.Image | np.ndarray, ending: str = ".png", **options: object) -> np.ndarray:
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        image.save(tmp_path / f"it{ending}", **options)
        result = run_colorize(tmp_path / f"it{ending}", "--checkpoint", vivid, "--overwrite")
        assert (result.code, result.lines) == (0, [])
        with Image.open(tmp_path / "it_color.png") as colored:
            assert colored.getexif().get(ORIENTATION, 1) == 1
            assert colored.info["srgb"] == 0
            return np.asarray(colored)

    return run


def check(found: np.ndarray, expected: np.ndarray) -> None:
    """Checks that a colored picture has the size and L* of `expected`, (H,W,3) or (H,W) in 0..255, and is colorful."""
    assert found.shape == (*expected.shape[:2], 3)
    assert np.abs(lightness(found) - lightness(expected)).max() < BOUND
    if expected.min() > 40 and expected.max() < 215:  # there are few colors near black and white
        assert np.abs(oracles.lab(found)[..., 1:]).max() > 25


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (1, 1000), (3000, 20), (20, 30), (128, 128), (129, 127), (700, 300), (300, 901)]
)
def test_sizes(color: Color, width: int, height: int) -> None:
    rgb = picture(1, height, width)
    check(color(rgb), rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(color: Color, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    upright = picture(2, 90, 160)
    check(color(as_the_camera_lay(upright, orientation), exif=exif), upright)


def test_a_jpeg_is_read_at_its_full_size(color: Color, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    found = color(picture(3, 600, 900), ".jpg", quality=90, exif=exif)
    with Image.open(tmp_path / "it.jpg") as image:
        check(found, np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha(color: Color, mode: str) -> None:
    """L* is kept in transparent parts too."""
    alpha = np.random.default_rng(4).integers(0, 256, (100, 150), dtype=np.uint8)
    image = Image.fromarray(picture(4, 100, 150)).convert(mode[:-1])
    expected = np.asarray(image.convert("RGB"))
    image.putalpha(Image.fromarray(alpha))
    found = color(image)
    check(found[..., :3], expected)
    assert np.array_equal(found[..., 3], alpha)


def test_palettes(color: Color) -> None:
    image = Image.fromarray(picture(5, 80, 100)).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    expected = np.asarray(image.convert("RGB"))
    check(color(image, ".gif"), expected)
    hidden = np.asarray(image) == 3
    assert hidden.any()
    found = color(image, transparency=3)
    check(found[..., :3], expected)
    assert np.array_equal(found[..., 3], np.where(hidden, 0, 255))


def test_cmyk(color: Color) -> None:
    rgb = picture(6, 60, 70)
    cmyk = np.concatenate([255 - rgb, np.zeros((60, 70, 1), np.uint8)], 2)
    check(color(Image.fromarray(cmyk, "CMYK"), ".tif"), rgb)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bit_gray_keeps_its_precision(color: Color, ending: str) -> None:
    """The first rows have 256 levels between two levels of 8 bits. Then comes every level."""
    values = np.concatenate([np.arange(100 << 8, 101 << 8).reshape(2, 128), np.arange(1 << 16).reshape(-1, 128)])
    found = color(values.astype(np.uint16), ending)
    check(found, values / 257)
    l_star = lightness(found)[:2].reshape(-1)
    assert l_star[-64:].mean() - l_star[:64].mean() > 0.1  # L* rises where it would be constant in 8 bits


def test_other_grays(color: Color) -> None:
    values = picture(7, 90, 90)[..., 1]
    check(color(values), values)
    check(color(values > 128), (values > 128) * 255)
    check(color(values.astype(np.float32) / 255, ".tif"), values)


def gray_profile() -> bytes:
    """Returns an ICC profile for gray with gamma 1.8, as old scanners wrote it."""
    tags = {
        b"desc": b"desc" + bytes(4) + (5).to_bytes(4) + b"gray\0" + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + b"".join(v.to_bytes(4) for v in (63190, 65536, 54061)),
        b"kTRC": b"curv" + bytes(4) + (1).to_bytes(4) + round(1.8 * 256).to_bytes(2) + bytes(2),
    }
    place, table, body = 132 + 12 * len(tags), len(tags).to_bytes(4), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + (place + len(body)).to_bytes(4) + len(content).to_bytes(4)
        body += content
    head = bytes(4) + (0x02100000).to_bytes(4) + b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28) + tags[b"wtpt"][8:]
    return (place + len(body)).to_bytes(4) + head.ljust(124, b"\0") + table + body


@pytest.mark.parametrize("deep", [False, True], ids=["8-bit", "16-bit"])
def test_the_profile_of_a_gray_photograph_is_applied(color: Color, deep: bool) -> None:
    stored = np.linspace(0.1, 1, 6400).reshape(80, 80)
    shown = 1.055 * stored ** (1.8 / 2.4) - 0.055
    pixels = np.rint(stored * 65535).astype(np.uint16) if deep else np.rint(stored * 255).astype(np.uint8)
    found = lightness(color(pixels, ".tif", icc_profile=gray_profile()))
    assert np.abs(found - lightness(255 * shown)).max() < 1  # stored and shown values are rounded to 8 bits
    assert np.abs(found - lightness(255 * stored)).max() > 5


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_profile_of_a_color_photograph_is_applied(color: Color, mode: str) -> None:
    rgb = picture(8, 64, 64)
    found = lightness(color(Image.fromarray(rgb).convert(mode), icc_profile=swapped_profile())[..., :3])
    assert np.abs(found - lightness(rgb[..., ::-1])).max() < 1.5  # profiles are exact to some levels
    assert np.abs(found - lightness(rgb)).max() > 5


def test_a_color_photograph_is_treated_like_a_gray_one(color: Color) -> None:
    """The same L* in other colors gives the same result, up to the rounding of L*."""
    rgb = picture(9, 100, 100)
    l_star = lightness(rgb)
    y = np.where(l_star > 8, ((l_star + 16) / 116) ** 3, l_star * (27 / 24389))
    levels = 65535 * np.where(y > 0.0031308, 1.055 * y ** (1 / 2.4) - 0.055, 12.92 * y)
    pictures = [color(image).astype(int) for image in (rgb, np.rint(levels).astype(np.uint16))]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1


def test_a_color_outside_srgb_is_desaturated_and_keeps_its_l() -> None:
    random = np.random.default_rng(11)
    y = random.uniform(0, 1, (200, 200)).astype(np.float32)
    a, b = random.uniform(-128, 128, (2, 200, 200)).astype(np.float32)
    found = oracles.lab(yab_to_srgb(y.copy(), a.copy(), b.copy()))
    expected = np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * (24389 / 27))
    assert np.abs(found[..., 0] - expected).max() < BOUND
    # A straight line in linear light keeps the hue approximately.
    chroma = np.hypot(found[..., 1], found[..., 2])
    assert (chroma <= np.hypot(a, b) + 3).all()
    colorful = chroma > 15
    assert colorful.mean() > 0.5
    turn = np.angle((found[..., 1] + 1j * found[..., 2]) * (a - 1j * b), deg=True)[colorful]
    assert np.median(np.abs(turn)) < 15


def test_black_and_white_stay_black_and_white() -> None:
    y = np.array([[0.0, 1.0]], np.float32)
    assert yab_to_srgb(y, np.full_like(y, 90), np.full_like(y, -90)).tolist() == [[[0] * 3, [255] * 3]]
