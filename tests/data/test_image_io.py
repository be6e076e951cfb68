"""Pictures of every size, mode and orientation come out as people see them."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import ORIENTATION, SIDE, as_the_camera_lay, lab_of, named, picture, swapped_profile, write
from PIL import Image

from deepcolor.common.color import lab_to_srgb
from deepcolor.data.dataset import LabDataModule


def data_with(path: Path) -> LabDataModule:
    """The data of a folder whose train/ holds this file, and two pictures beside it."""
    for number, subset in enumerate(("val", "test")):
        write(path.parent.parent / subset / f"{subset}.png", picture(90 + number, 16, 16))
    write(path.parent / "other.png", picture(92, 16, 16))
    return LabDataModule.load(path.parent.parent, path.parent.parent.parent / "output")


def seen(path: Path) -> np.ndarray:
    """(128,128,3) uint8 sRGB: the picture as training is given it."""
    data = data_with(path)
    assert not data.left_out
    subset, index = named(data)[path.stem]
    return lab_to_srgb(lab_of(getattr(data, subset), index).transpose(2, 0, 1))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test puts its picture, without the ending."""
    (tmp_path / "images/train").mkdir(parents=True)
    return tmp_path / "images/train/it"


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize(("height", "width"), [(128, 301), (260, 128), (128, 128)])
def test_the_middle_is_cut_out(file: Path, height: int, width: int) -> None:
    rgb = picture(1, height, width)
    top, left = round((height - SIDE) / 2), round((width - SIDE) / 2)
    found = seen(write(file.with_suffix(".png"), rgb)).astype(int)
    # Where the middle lies between two pixels, either neighbor or something between them is right.
    tolerance = 0 if (height - SIDE) % 2 == (width - SIDE) % 2 == 0 else 12
    assert np.abs(found - rgb[top : top + SIDE, left : left + SIDE]).max() <= tolerance


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
def test_the_shorter_side_is_reduced_to_128(file: Path, ending: str) -> None:
    y, x = np.mgrid[:512, :768]
    rgb = np.stack([x / 4, y / 3, 255 - x / 5], axis=-1).round().astype(np.uint8)
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(ending, {})
    blocks = rgb[:, 128:640].reshape(SIDE, 4, SIDE, 4, 3).mean(axis=(1, 3))
    difference = np.abs(seen(write(file.with_suffix(ending), rgb, **options)) - blocks)
    assert difference.max() < 3
    assert difference.mean() < 0.8


def test_a_small_picture_is_enlarged(file: Path) -> None:
    y, x = np.mgrid[:20, :30]
    rgb = np.stack([x * 8, y * 12, 200 - x * 5], axis=-1).astype(np.uint8)
    found = seen(write(file.with_suffix(".png"), rgb)).astype(float)
    at = (np.arange(SIDE) + 0.5) * 20 / SIDE - 0.5  # where each new pixel lies between the old ones
    inner = slice(8, -8)
    assert np.abs(found[inner, inner, 0] - (8 * (at + 5))[inner][None]).max() < 3
    assert np.abs(found[inner, inner, 1] - (12 * at)[inner][:, None]).max() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_the_camera_is_honored(file: Path, orientation: int) -> None:
    upright = picture(2, 128, 160)
    stored = as_the_camera_lay(upright, orientation)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    found = seen(write(file.with_suffix(".png"), stored, exif=exif))
    assert np.array_equal(found, upright[:, 16:144])


def test_modes_without_transparency(file: Path) -> None:
    rgb = Image.fromarray(picture(3))
    gray = np.asarray(rgb.convert("L"))
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    ink = Image.fromarray(np.concatenate([255 - np.asarray(rgb), np.zeros((SIDE, SIDE, 1), np.uint8)], 2), "CMYK")
    expected = {
        "gray.png": (rgb.convert("L"), gray[..., None]),
        "palette.png": (palette, np.asarray(palette.convert("RGB"))),
        "palette.gif": (palette, np.asarray(palette.convert("RGB"))),
        "bits.png": (Image.fromarray(gray > 128), np.where(gray > 128, 255, 0)[..., None]),
        "ink.tif": (ink, np.asarray(rgb)),
    }
    for name, (image, pixels) in expected.items():
        path = saved(image, file.with_name(name))
        assert np.array_equal(seen(path), np.broadcast_to(pixels, (SIDE, SIDE, 3))), name
        path.unlink()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_lies_on_white(file: Path, mode: str) -> None:
    color = picture(4)[..., : len(mode) - 1]
    alpha = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[:, None, None], (SIDE, SIDE, 1))
    image = Image.fromarray(np.concatenate([color, alpha], axis=2), mode)
    share = alpha / 255
    expected = color * share + 255 * (1 - share)
    assert np.abs(seen(saved(image, file.with_suffix(".png"))) - expected).max() <= 1


def test_a_transparent_color_of_a_palette_is_white(file: Path) -> None:
    image = Image.fromarray(np.repeat([[0] * 64 + [1] * 64], SIDE, axis=0).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    found = seen(saved(image, file.with_suffix(".png"), transparency=0))
    assert (found[:, :64] == 255).all()
    assert (found[:, 64:] == (200, 100, 50)).all()


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bits_are_scaled_and_not_cut_off(file: Path, ending: str) -> None:
    gray = picture(5)[..., 0]
    path = saved(Image.fromarray(gray.astype(np.uint16) * 257), file.with_suffix(ending))
    assert np.array_equal(seen(path), np.repeat(gray[..., None], 3, axis=2))


def test_a_large_picture_of_16_dark_bits_stays_dark(file: Path) -> None:
    """As dark as that, it could be taken for one of 8 bits once it is averaged down."""
    path = saved(Image.fromarray(np.full((700, 700), 200, np.uint16)), file.with_suffix(".png"))
    assert seen(path).max() <= 1


def test_floats_from_0_to_1_are_scaled(file: Path) -> None:
    gray = picture(6)[..., 1]
    path = saved(Image.fromarray((gray / 255).astype(np.float32)), file.with_suffix(".tif"))
    assert np.array_equal(seen(path), np.repeat(gray[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_color_profile_is_applied(file: Path, mode: str) -> None:
    rgb = picture(7)
    path = saved(Image.fromarray(rgb).convert(mode), file.with_suffix(".png"), icc_profile=swapped_profile())
    difference = np.abs(seen(path).astype(int) - rgb[..., ::-1])
    assert difference.max() <= 3


def test_a_broken_profile_is_passed_over(file: Path) -> None:
    rgb = picture(8)
    path = saved(Image.fromarray(rgb), file.with_suffix(".png"), icc_profile=b"no profile at all")
    assert np.array_equal(seen(path), rgb)


def test_of_an_animation_the_first_frame_counts(file: Path) -> None:
    frames = [Image.fromarray(picture(seed)) for seed in (9, 10)]
    path = saved(frames[0], file.with_suffix(".png"), save_all=True, append_images=frames[1:])
    assert np.array_equal(seen(path), picture(9))


def test_endings_count_in_capitals_too_and_hidden_files_do_not(file: Path) -> None:
    write(file.parent / "LOUD.PNG", picture(11))
    write(file.parent / ".hidden.png", picture(12))
    write(file.parent / ".thumbnails/tiny.png", picture(13))
    (file.parent / "notes.txt").write_text("no picture")
    data = data_with(file)
    assert sorted(data.train.names) == ["LOUD", "other"]
    assert not data.left_out


def unreadable_files(folder: Path) -> dict[str, str]:
    """Puts what only looks like a picture into a folder, and returns a word of the reason for each."""
    whole = io.BytesIO()
    Image.fromarray(picture(14)).save(whole, "PNG")
    (folder / "cut.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.jpg").write_text("I am not a picture")
    (folder / "empty.bmp").touch()
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    write(folder.parent.parent / "outside.png", picture(15))
    (folder / "escaping.png").symlink_to(folder.parent.parent / "outside.png")
    os.mkfifo(folder / "pipe.png")
    return {
        "cut.png": "",
        "text.jpg": "not an image",
        "empty.bmp": "empty",
        "dangling.png": "",
        "loop.png": "",
        "escaping.png": "out of the folder",
        "pipe.png": "not a regular file",
    }


def test_what_cannot_be_read_is_named_with_its_reason_and_left_out(file: Path) -> None:
    reasons = unreadable_files(file.parent)
    (file.parent / "inner.png").symlink_to(write(file.parent.parent / "train/real.png", picture(16)))
    data = data_with(file)
    assert sorted(data.train.names) == ["inner", "other", "real"]
    assert set(data.left_out) == {f"train/{name}" for name in reasons}
    for name, word in reasons.items():
        assert data.left_out[f"train/{name}"]
        assert word in data.left_out[f"train/{name}"]
