"""Folders full of what is no photograph: each such file is named once with its reason, and training goes on."""

import io
import os
import re
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import files_below, picture, write
from PIL import Image
from survival import Process, figure, png

import main
from deepcolor.data import lab_cache
from deepcolor.data.dataset import LabDataModule, picture_names
from deepcolor.data.image_io import decode_image

pytest_plugins = ["survival"]

FLAGS = "--device cpu --activation sigmoid --lr 0.001 --weight-decay 0 --epoch 1 --jobs 1".split()
MOST_BYTES = 2.5e9  # of memory


def bad_files(folder: Path) -> dict[bytes, str]:
    """Puts what cannot be read into a folder: the name -> a word of the reason that has to be given."""
    whole = io.BytesIO()
    Image.fromarray(picture(1)).save(whole, "JPEG")
    contents = {
        b"cut.jpg": (whole.getvalue()[:900], ""),
        b"corrupt.jpg": (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 9, ""),
        b"zeros.png": (bytes(5000), "not an image"),
        b"empty.webp": (b"", "empty"),
        b"text.png": (b"I am no picture.\n", "not an image"),
        b"bomb.png": (png(60_000, 60_000, rows=1), ""),
        b"claims.png": (png(16_000, 16_000, 8, 2, rows=1)[:-20], ""),
        b"huge.png": (png(20_000, 20_000), "megapixels"),
        b"huge palette.png": (png(20_000, 20_000, 8, 3), "megapixels"),
        b"a\nleft out b.jpg": (b"x", "not an image"),
        b" \t blanks .gif": (b"x", "not an image"),
        b"gr\xc3\xbc\xc3\x9fe \xe6\x97\xa5.tif": (b"x", "not an image"),
        b"\xff\xfe\x80.bmp": (b"x", "not an image"),
        b"\x1b[31mred\x1b[0m\r.png": (b"x", "not an image"),
    }
    for name, (content, _) in contents.items():
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
    reasons = {name: reason for name, (_, reason) in contents.items()}
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "to.jpg").symlink_to("fro.jpg")
    (folder / "fro.jpg").symlink_to("to.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "leaves.jpg").symlink_to(write(folder.parent / "private.jpg", picture(2)))
    reasons |= {b"pipe.jpg": "not a regular file", b"zero.jpg": "out of the folder", b"leaves.jpg": "out of the folder"}
    reasons |= dict.fromkeys((b"loop.jpg", b"to.jpg", b"fro.jpg", b"dangling.jpg"), "")
    if os.geteuid() == 0:
        os.mknod(folder / "device.jpg", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
        reasons[b"device.jpg"] = "not a regular file"
    return reasons


def odd_files(folder: Path) -> int:
    """Puts what is strange but can be read into a folder; returns how many files."""
    before = len(list(folder.iterdir()))
    rgb = Image.fromarray(picture(3, 90, 120))
    gray = np.asarray(rgb.convert("L"))
    write(folder / "1x1.png", picture(4, 1, 1))
    write(folder / "1x10000.png", picture(5, 10_000, 1))
    write(folder / "10000x1.png", picture(6, 1, 10_000))
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("1").save(folder / "bits.png")
    rgb.convert("LA").save(folder / "gray alpha.png")
    rgb.convert("RGBA").save(folder / "alpha.webp")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "16 bits.png")
    Image.fromarray((gray / 255).astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(folder / "nan.tif")
    frames = [Image.fromarray(picture(seed, 60, 60)) for seed in (7, 8, 9)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        rgb.rotate(orientation).save(folder / f"orientation{orientation}.jpg", exif=exif)
    for name in (
        b"new\nline.png",
        b"  .png",
        "日本 grün.png".encode(),
        b"not utf-8 \xff.png",
        b"-rf *.png",
        b"%s;$(x).png",
    ):
        write(folder / "temporary.png", picture(len(name), 40, 50))
        (folder / "temporary.png").rename(os.fsdecode(os.fsencode(folder) + b"/" + name))
    write(folder / "folder.jpg/inside.png", picture(10))
    (folder / "folder.jpg/round").symlink_to("..", target_is_directory=True)
    write(folder.parent / "private/photo.jpg", picture(12))
    (folder / "outside").symlink_to("../private", target_is_directory=True)
    return len([path for path in folder.rglob("*") if path.is_file()]) - before


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, dict[bytes, str]]:
    """A folder, how many of its files can be read, and why the others cannot."""
    folder = tmp_path_factory.mktemp("hostile") / "images"
    for number in range(6):
        write(folder / f"good{number}.png", picture(100 + number))
    count = 6 + odd_files(folder)
    return folder, count, bad_files(folder)


def test_a_folder_of_hostile_files(
    hostile: tuple[Path, int, dict[bytes, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as where the locale is one of UTF-8
    folder, readable, reasons = hostile
    before = files_below(folder.parent)
    with Process("--images", folder, "--output", tmp_path / "out", *FLAGS, cwd=tmp_path / "cwd") as process:
        assert process.finish() == 0, process.stderr
    lines = process.stderr.splitlines()
    assert all(line.startswith("left out ") for line in lines), lines
    assert len(lines) == len(reasons), lines
    for name, reason in reasons.items():
        shown = os.fsdecode(name) if os.fsdecode(name).isprintable() else ascii(os.fsdecode(name))
        (line,) = (line for line in lines if line.startswith(f"left out {shown}: "))
        assert reason in line
        assert len(line) > len(f"left out {shown}: ")
    counts = re.search(r"(\d+) training, (\d+) validation and (\d+) test images", process.stdout)
    assert sum(map(int, counts.groups())) == readable
    assert f"{len(reasons)} left out" in process.stdout
    assert process.peak_bytes < MOST_BYTES
    figure(
        f"Hostile images: {len(reasons)} files left out, {readable} read; "
        f"at most {process.peak_bytes / 1e6:.0f} MB of memory"
    )
    assert files_below(folder.parent) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cwd", "out"]
    assert [path for path in (tmp_path / "cwd").iterdir() if path.suffix != ".log"] == []


def test_folders_with_strange_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")  # as where the locale is one of UTF-8
    monkeypatch.setattr(sys, "stdout", said)
    images, output = (tmp_path / os.fsdecode(name) for name in (b"pic\xfftures\n", b"out\xff\n%s"))
    for number in range(4):
        write(images / f"{number}.png", picture(number))
    (images / "bad.png").write_text("no picture")
    assert main.main(["--images", str(images), "--output", str(output), *FLAGS, "--network", "colorizer"]) == 0
    assert list(output.rglob("*_triplets.png"))
    assert main.main(["--output", str(output), "--report"]) == 0
    said.flush()
    assert b"Best colorizer" in said.buffer.getvalue()


def test_names_as_long_as_a_file_system_takes_them(tmp_path: Path) -> None:
    for subset in ("train", "val", "test"):
        write(tmp_path / "images" / subset / ("日" * 83) / f"{'本' * 83}.png", picture(len(subset)))
    command = ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    assert main.main([*command, *FLAGS, "--network", "colorizer"]) == 0
    assert len(list((tmp_path / "out/outputs_sigmoid/color").rglob("*.png"))) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_photo_of_every_orientation_is_upright(orientation: int) -> None:
    """A JPEG is decoded at a fraction of its size, and only then turned."""
    upright = Image.fromarray(picture(11, 64, 96)).resize((1536, 1024))
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # by the tag: what undoes it, as Pillow numbers it
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored = upright.transpose(Image.Transpose(turned[orientation])) if orientation > 1 else upright
    stored.save(file, "JPEG", quality=95, exif=exif)
    expected = np.asarray(upright.resize((192, 128), Image.Resampling.BOX))[:, 32:160].astype(float)
    assert np.abs(decode_image(file.getvalue()) - expected).mean() < 3


@pytest.mark.parametrize("what", ["vanishes", "is cut", "is replaced"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    for number in range(6):
        write(tmp_path / "images" / f"{number}.png", picture(number))
    victim = tmp_path / "images/3.png"
    new = write(tmp_path / "new.png", picture(50)).read_bytes()
    original = lab_cache.read_file

    def read_file(path: Path, root: Path) -> bytes:
        if path == victim and what == "vanishes":
            path.unlink()
        content = original(path, root)
        if path == victim:
            path.write_bytes(new if what == "is replaced" else content[:200])
        return content[:200] if path == victim and what == "is cut" else content

    monkeypatch.setattr(lab_cache, "read_file", read_file)
    first = LabDataModule.load(tmp_path / "images", tmp_path / "out")
    assert list(first.left_out) == ([] if what == "is replaced" else ["3.png"])
    monkeypatch.undo()
    victim.write_bytes(new)
    second = LabDataModule.load(tmp_path / "images", tmp_path / "out")
    fresh = LabDataModule.load(tmp_path / "images", tmp_path / "elsewhere")
    assert not second.left_out
    assert second.fingerprint == fresh.fingerprint != first.fingerprint


def test_ten_thousand_files(tmp_path: Path) -> None:
    contents, names = 40, 10_000
    (tmp_path / "images").mkdir()
    for number in range(contents):
        write(tmp_path / "originals" / f"{number}.png", picture(number, 8, 8))
    for number in range(names):  # some differ in the ending alone
        ending = ".png" if number % 2 else ".gif"
        os.link(tmp_path / f"originals/{number % contents}.png", tmp_path / f"images/{number // 2}{ending}")
    for _ in range(2):  # decoding, and what the next run finds
        began = time.monotonic()
        data = LabDataModule.load(tmp_path / "images", tmp_path / "out")
        seconds = time.monotonic() - began
        subsets = (data.train, data.val, data.test)
        assert sum(map(len, subsets)) == names
        assert not data.left_out
        assert all(len(set(subset.names)) == len(subset) for subset in subsets)
        rows = [set(subset.rows.tolist()) for subset in subsets]
        assert sum(map(len, rows)) == len(set.union(*rows)) == contents  # no content on two sides
        assert seconds < 15


def test_naming_many_pictures_takes_no_longer_than_there_are() -> None:
    def seconds(count: int) -> float:
        paths = [f"{number // 2}{'.png' if number % 2 else '.gif'}" for number in range(count)]
        best = []
        for _ in range(3):
            began = time.perf_counter()
            assert len(set(picture_names(paths))) == count
            best.append(time.perf_counter() - began)
        return min(best)

    assert seconds(16_000) < 10 * seconds(4_000)
