"""Photographs of every kind come out of colorize.py with their own size, upright, with their alpha and their L*.

The colorizer in use is made to predict colors far outside sRGB, which is hardest on L*.
"""

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from helpers import ORIENTATION, as_the_camera_lay, picture, swapped_profile
from PIL import Image

from deepcolor.common.color import yab_to_srgb
from deepcolor.inference import png
from deepcolor.training import checkpoint

BOUND = 0.28  # of L*: what the rounding of red, green and blue to 8 bits can come to
Color = Callable[..., object]


@pytest.fixture(scope="module")
def vivid(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colorizer whose every pixel is as colorful as can be."""
    content = torch.load(next((sweep / "checkpoints/colorizer_tanh").glob("*.pt")), weights_only=True)
    *_, weight, bias = (name for name in content["model"] if name.startswith("up."))
    content["model"][weight] *= 100
    content["model"][bias] *= 100
    path = tmp_path_factory.mktemp("vivid") / "vivid.pt"
    checkpoint.save(content, path)
    return path


def lightness(rgb: np.ndarray) -> np.ndarray:
    """L* of (H,W,3) sRGB in 0..255."""
    return oracles.lab(rgb)[..., 0]


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None].astype(float), 3, axis=2)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def check(color: Color, vivid: Path, path: Path, expected: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
    """Colors a photograph, of which `expected` (H,W,3) in 0..255 is what a viewer shows. Returns the colored one."""
    said = color(path, "--checkpoint", vivid)
    assert (said.code, said.lines) == (0, [])
    with Image.open(path.with_name(f"{path.stem}_color.png")) as image:
        assert image.mode == ("RGB" if alpha is None else "RGBA")
        found = np.asarray(image)
    assert found.shape[:2] == expected.shape[:2]
    assert np.abs(lightness(found[..., :3]) - lightness(expected)).max() < BOUND
    if alpha is not None:
        assert np.array_equal(found[..., 3], alpha)
    if expected.min() > 40 and expected.max() < 215:  # near black and white there is no color
        assert np.abs(oracles.lab(found[..., :3])[..., 1:]).max() > 25
    return found


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (1, 1000), (3000, 20), (20, 30), (128, 128), (129, 127), (700, 300), (300, 901)]
)
def test_sizes(color: Color, vivid: Path, tmp_path: Path, width: int, height: int) -> None:
    rgb = picture(1, height, width)
    check(color, vivid, saved(tmp_path / "it.png", Image.fromarray(rgb)), rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(color: Color, vivid: Path, tmp_path: Path, orientation: int) -> None:
    upright = picture(2, 90, 160)
    stored = as_the_camera_lay(upright, orientation)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(tmp_path / "it.png", Image.fromarray(stored), exif=exif)
    check(color, vivid, path, upright)
    with Image.open(tmp_path / "it_color.png") as image:  # upright once, and not turned again
        assert image.getexif().get(ORIENTATION, 1) == 1


def test_a_jpeg_is_read_at_its_full_size(color: Color, vivid: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = saved(tmp_path / "it.jpg", Image.fromarray(picture(3, 600, 900)), quality=90, exif=exif)
    with Image.open(path) as image:
        check(color, vivid, path, np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha(color: Color, vivid: Path, tmp_path: Path, mode: str) -> None:
    """What lies under transparent parts keeps its L* too."""
    alpha = np.random.default_rng(4).integers(0, 256, (100, 150), dtype=np.uint8)
    image = Image.fromarray(picture(4, 100, 150)).convert(mode[:-1])
    expected = np.asarray(image.convert("RGB"))
    image.putalpha(Image.fromarray(alpha))
    check(color, vivid, saved(tmp_path / "it.png", image), expected, alpha)


def test_palettes(color: Color, vivid: Path, tmp_path: Path) -> None:
    image = Image.fromarray(picture(5, 80, 100)).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    shown = np.asarray(image.convert("RGB"))
    check(color, vivid, saved(tmp_path / "plain.gif", image), shown)
    hidden = np.asarray(image) == 3
    assert hidden.any()
    path = saved(tmp_path / "hole.png", image, transparency=3)
    check(color, vivid, path, shown, np.where(hidden, 0, 255))


def test_ink(color: Color, vivid: Path, tmp_path: Path) -> None:
    rgb = picture(6, 60, 70)
    ink = Image.fromarray(np.concatenate([255 - rgb, np.zeros((60, 70, 1), np.uint8)], 2), "CMYK")
    check(color, vivid, saved(tmp_path / "it.tif", ink), rgb)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bits_of_gray_are_not_cut_to_8(color: Color, vivid: Path, tmp_path: Path, ending: str) -> None:
    """256 levels between two of 8 bits, and every level that there is."""
    values = np.concatenate([np.arange(100 << 8, 101 << 8).reshape(2, 128), np.arange(1 << 16).reshape(-1, 128)])
    image = Image.fromarray(values.astype(np.uint16))
    found = check(color, vivid, saved(tmp_path / f"it{ending}", image), gray(values / 257))
    lab = oracles.lab(found)[:2, :, 0].reshape(-1)
    assert lab[-64:].mean() - lab[:64].mean() > 0.1  # the picture rises where 8 bits would be flat


def test_other_grays(color: Color, vivid: Path, tmp_path: Path) -> None:
    values = picture(7, 90, 90)[..., 1]
    check(color, vivid, saved(tmp_path / "plain.png", Image.fromarray(values)), gray(values))
    check(color, vivid, saved(tmp_path / "bits.png", Image.fromarray(values > 128)), gray((values > 128) * 255))
    share = values.astype(np.float32) / 255
    check(color, vivid, saved(tmp_path / "float.tif", Image.fromarray(share)), gray(values))


def gray_profile() -> bytes:
    """An ICC profile of grays with a gamma of 1.8, as scanners once had them."""
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
def test_the_profile_of_a_gray_photograph_is_applied(color: Color, vivid: Path, tmp_path: Path, deep: bool) -> None:
    stored = np.linspace(0.1, 1, 6400).reshape(80, 80)
    linear = stored**1.8
    shown = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    pixels = np.rint(stored * 65535).astype(np.uint16) if deep else np.rint(stored * 255).astype(np.uint8)
    path = saved(tmp_path / "it.tif", Image.fromarray(pixels), icc_profile=gray_profile())
    assert color(path, "--checkpoint", vivid).code == 0
    found = lightness(np.asarray(Image.open(tmp_path / "it_color.png")))
    assert np.abs(found - lightness(gray(shown))).max() < 1  # what is stored and shown are whole levels
    assert np.abs(found - lightness(gray(255 * stored))).max() > 5


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_profile_of_a_photograph_in_color_is_applied(color: Color, vivid: Path, tmp_path: Path, mode: str) -> None:
    rgb = picture(8, 64, 64)
    image = Image.fromarray(rgb).convert(mode)
    path = saved(tmp_path / "it.png", image, icc_profile=swapped_profile())
    assert color(path, "--checkpoint", vivid).code == 0
    found = lightness(np.asarray(Image.open(tmp_path / "it_color.png").convert("RGB")))
    assert np.abs(found - lightness(rgb[..., ::-1])).max() < 1.5  # profiles are exact to some levels
    assert np.abs(found - lightness(rgb)).max() > 5


def test_a_photograph_in_color_is_treated_as_a_gray_one(color: Color, vivid: Path, tmp_path: Path) -> None:
    """Only L* counts: the same L* in other colors comes out the same but for the rounding of L*."""
    rgb = picture(9, 100, 100)
    l_star = lightness(rgb)
    y = np.where(l_star > 8, ((l_star + 16) / 116) ** 3, l_star * (27 / 24389))
    levels = 65535 * np.where(y > 0.0031308, 1.055 * y ** (1 / 2.4) - 0.055, 12.92 * y)
    pictures = []
    for name, image in (("color", rgb), ("gray", np.rint(levels).astype(np.uint16))):
        assert color(saved(tmp_path / f"{name}.png", Image.fromarray(image)), "--checkpoint", vivid).code == 0
        pictures.append(np.asarray(Image.open(tmp_path / f"{name}_color.png")).astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() < 1


def test_a_color_inside_srgb_is_what_scikit_image_says_it_is() -> None:
    rgb = np.random.default_rng(10).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    lab = oracles.lab(rgb)
    y = ((lab[..., 0] + 16) / 116) ** 3
    y = np.where(lab[..., 0] > 8, y, lab[..., 0] * (27 / 24389))
    found = yab_to_srgb(*(plane.astype(np.float32) for plane in (y, lab[..., 1], lab[..., 2])))
    difference = np.abs(found.astype(int) - rgb)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_a_color_outside_srgb_moves_towards_gray_and_keeps_its_l() -> None:
    random = np.random.default_rng(11)
    y = random.uniform(0, 1, (200, 200)).astype(np.float32)
    a, b = random.uniform(-128, 128, (2, 200, 200)).astype(np.float32)
    found = oracles.lab(yab_to_srgb(y.copy(), a.copy(), b.copy()))
    wanted = np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * (24389 / 27))
    assert np.abs(found[..., 0] - wanted).max() < BOUND
    # Of the hue that was asked for, as far as a straight line in linear light keeps it; and no more colorful.
    chroma, asked = np.hypot(found[..., 1], found[..., 2]), np.hypot(a, b)
    assert (chroma <= asked + 3).all()
    clear = chroma > 15
    assert clear.mean() > 0.5
    turn = np.angle((found[..., 1] + 1j * found[..., 2]) * (a - 1j * b), deg=True)[clear]
    assert np.median(np.abs(turn)) < 15


def test_black_and_white_stay_what_they_are() -> None:
    y = np.array([[0.0, 1.0]], np.float32)
    assert yab_to_srgb(y, np.full_like(y, 90), np.full_like(y, -90)).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 1), (1, 9), (33, 50)])
def test_the_png_is_one_that_any_reader_takes(height: int, width: int, channels: int) -> None:
    """Whole and checked: with the checksums of its chunks, and that of all of its strips together."""
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    pixels[height // 2 :] //= 64  # runs as well
    file = io.BytesIO()
    png.write(file, width, height, channels, (png.compress(pixels[top : top + 5]) for top in range(0, height, 5)))
    with Image.open(io.BytesIO(file.getvalue())) as image:
        image.verify()
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert np.array_equal(np.asarray(image), pixels)
    content, place, data = file.getvalue(), 8, b""
    while place < len(content):
        length, name = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        assert zlib.crc32(content[place + 4 : place + 8 + length]) == int.from_bytes(content[place + 8 + length :][:4])
        data += content[place + 8 : place + 8 + length] if name == b"IDAT" else b""
        place += 12 + length
    assert len(zlib.decompress(data)) == height * (1 + width * channels)
