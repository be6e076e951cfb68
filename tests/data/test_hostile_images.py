"""Folders with files that are not photographs: each is left out with a reason, and the others are used."""

import io
import os
import re
import stat
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import SUBSETS, files_below, picture, write
from PIL import Image
from survival import Process, figure, png

import main
from deepcolor.data import lab_cache
from deepcolor.data.dataset import LabDataModule

pytest_plugins = ["survival"]

FLAGS = "--device cpu --activation sigmoid --lr 0.001 --weight-decay 0 --epoch 1 --jobs 1".split()
MAX_BYTES = 2.5e9  # of memory


class Hostile(NamedTuple):
    folder: Path
    readable: int  # number of files
    reasons: dict[str, str]  # path of each unreadable file -> a part of the reason


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    folder = tmp_path_factory.mktemp("hostile") / "images"
    for number in range(6):
        write(folder / f"good{number}.png", picture(100 + number))
    return Hostile(folder, 6 + write_odd_files(folder), write_unreadable_files(folder))


def write_unreadable_files(folder: Path) -> dict[str, str]:
    """Returns name -> a part of the reason."""
    jpeg = io.BytesIO()
    Image.fromarray(picture(1)).save(jpeg, "JPEG")
    contents = {
        b"cut.jpg": (jpeg.getvalue()[:900], ""),
        b"corrupt.jpg": (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 9, ""),
        b"zeros.png": (bytes(5000), "not an image"),
        b"empty.webp": (b"", "empty"),
        b"text.png": (b"not a picture\n", "not an image"),
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
    reasons = {}
    for name, (content, reason) in contents.items():
        (folder / os.fsdecode(name)).write_bytes(content)
        reasons[os.fsdecode(name)] = reason
    os.mkfifo(folder / "pipe.jpg")
    reasons["pipe.jpg"] = "not a regular file"
    outside = write(folder.parent / "private.jpg", picture(2))
    links = {"zero.jpg": "/dev/zero", "leaves.jpg": outside}
    reasons |= dict.fromkeys(links, "out of the folder")
    broken = {"loop.jpg": "loop.jpg", "to.jpg": "fro.jpg", "fro.jpg": "to.jpg", "dangling.jpg": "nowhere.jpg"}
    reasons |= dict.fromkeys(broken, "")
    for name, target in (links | broken).items():
        (folder / name).symlink_to(target)
    if os.geteuid() == 0:
        os.mknod(folder / "device.jpg", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
        reasons["device.jpg"] = "not a regular file"
    return reasons


def write_odd_files(folder: Path) -> int:
    """Writes files with unusual names and sizes that can be read, and links, and returns how many files."""
    before = len(list(folder.iterdir()))
    for height, width in ((1, 1), (10_000, 1), (1, 10_000)):
        write(folder / f"{width}x{height}.png", picture(height, height, width))
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(folder / "nan.tif")
    names = (b"new\nline.png", b"  .png", "日本 grün.png".encode(), b"not utf-8 \xff.png", b"-rf *.png", b"%s;$(x).png")
    for name in names:
        write(folder / "temporary.png", picture(len(name), 40, 50)).rename(folder / os.fsdecode(name))
    write(folder / "folder.jpg/inside.png", picture(10))
    (folder / "folder.jpg/round").symlink_to("..", target_is_directory=True)
    (folder / "link.png").symlink_to("good0.png")
    write(folder.parent / "private/photo.jpg", picture(12))
    (folder / "outside").symlink_to("../private", target_is_directory=True)
    return len([path for path in folder.rglob("*") if path.is_file()]) - before


def test_unreadable_files_are_left_out_with_a_reason(hostile: Hostile, tmp_path: Path) -> None:
    before = files_below(hostile.folder.parent)
    data = LabDataModule.load(hostile.folder, tmp_path / "out")
    assert set(data.left_out) == set(hostile.reasons)
    for name, reason in hostile.reasons.items():
        assert reason in data.left_out[name]
        assert data.left_out[name].isprintable()
        assert data.left_out[name]
    assert sum(len(getattr(data, subset)) for subset in SUBSETS) == hostile.readable
    assert files_below(hostile.folder.parent) == before


@pytest.mark.slow
def test_a_run_names_each_unreadable_file_in_one_line(
    hostile: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It uses little memory, and writes nothing outside its output folder."""
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in a UTF-8 locale
    before = files_below(hostile.folder.parent)
    with Process(
        "--images", hostile.folder, "--output", tmp_path / "out", *FLAGS, "--network", "colorizer", cwd=tmp_path / "cwd"
    ) as process:
        assert process.finish() == 0, process.stderr
    lines = process.stderr.splitlines()
    printable = [name if name.isprintable() else ascii(name) for name in hostile.reasons]
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(f"left out {name}" for name in printable)
    assert all(line.partition(": ")[2] for line in lines)
    counts = re.search(r"(\d+) training, (\d+) validation and (\d+) test images", process.stdout)
    assert sum(map(int, counts.groups())) == hostile.readable
    assert f"{len(hostile.reasons)} left out" in process.stdout
    assert process.peak_bytes < MAX_BYTES
    figure(f"Hostile images: {len(lines)} files left out, {process.peak_bytes / 1e6:.0f} MB of memory at most")
    assert files_below(hostile.folder.parent) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cwd", "out"]
    assert [path for path in (tmp_path / "cwd").iterdir() if path.suffix != ".log"] == []


def test_folders_with_strange_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")  # as in a UTF-8 locale
    monkeypatch.setattr(sys, "stdout", stdout)
    images, output = (tmp_path / os.fsdecode(name) for name in (b"pic\xfftures\n", b"out\xff\n%s"))
    longest = "日" * 83  # 249 of the 255 bytes that a file name can have
    for subset in SUBSETS:
        write(images / subset / longest / f"{longest}.png", picture(len(subset)))
    (images / "train/bad.png").write_text("not a picture")
    assert main.main(["--images", str(images), "--output", str(output), *FLAGS, "--network", "colorizer"]) == 0
    assert list(output.rglob("*_triplets.png"))
    assert len(list((output / "outputs_sigmoid/color").rglob("*.png"))) == 1
    assert main.main(["--output", str(output), "--report"]) == 0
    stdout.flush()
    assert b"Best colorizer" in stdout.buffer.getvalue()


@pytest.mark.parametrize("what", ["vanishes", "is cut", "is replaced"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    for number in range(6):
        write(tmp_path / "images" / f"{number}.png", picture(number))
    changing = tmp_path / "images/3.png"
    new = write(tmp_path / "new.png", picture(50)).read_bytes()
    original = lab_cache.read_file

    def read_file(path: Path, root: Path) -> bytes:
        if path == changing and what == "vanishes":
            path.unlink()
        content = original(path, root)
        if path == changing:
            path.write_bytes(new if what == "is replaced" else content[:200])
        return content[:200] if path == changing and what == "is cut" else content

    monkeypatch.setattr(lab_cache, "read_file", read_file)
    first = LabDataModule.load(tmp_path / "images", tmp_path / "out")
    assert list(first.left_out) == ([] if what == "is replaced" else ["3.png"])
    monkeypatch.undo()
    changing.write_bytes(new)
    second = LabDataModule.load(tmp_path / "images", tmp_path / "out")
    fresh = LabDataModule.load(tmp_path / "images", tmp_path / "elsewhere")
    assert not second.left_out
    assert second.fingerprint == fresh.fingerprint != first.fingerprint


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_files_with_few_different_contents(tmp_path: Path, count: int) -> None:
    contents = 40
    (tmp_path / "images").mkdir()
    for number in range(contents):
        write(tmp_path / "originals" / f"{number}.png", picture(number, 8, 8))
    for number in range(count):  # pairs differ in the extension only
        extension = ".png" if number % 2 else ".gif"
        os.link(tmp_path / f"originals/{number % contents}.png", tmp_path / f"images/{number // 2}{extension}")
    for _ in range(2):  # the second time from the cache
        data = LabDataModule.load(tmp_path / "images", tmp_path / "out")
        assert not data.left_out
        names = [name for subset in SUBSETS for name in getattr(data, subset).names]
        assert len(names) == count
        assert all(len(set(each.names)) == len(each) for each in (data.train, data.val, data.test))
        rows = [set(getattr(data, subset).rows.tolist()) for subset in SUBSETS]
        assert sum(map(len, rows)) == len(set.union(*rows)) == contents  # no content in two subsets
