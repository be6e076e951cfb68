"""Decoding happens once, survives to the next run, and never gives old pixels for a new picture."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from helpers import SUBSETS, files_below, flat, lab_of, named, picture, write
from PIL import Image

import Constants
import main
from deepcolor.data.batches import TrainingBatches, loader
from deepcolor.data.dataset import LabDataModule
from deepcolor.data.lab_cache import read_ahead


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(12):
        write(tmp_path / "images" / f"p{number}.bmp", picture(number))
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one for every picture that is opened."""
    opened: list[object] = []
    original = Image.open

    def counted(*arguments: object, **options: object) -> Image.Image:
        opened.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(Image, "open", counted)
    return opened


def pixels(data: LabDataModule) -> dict[str, tuple[str, bytes]]:
    """Name -> its subset and the Lab that training is given."""
    return {name: (s, lab_of(getattr(data, s), index).tobytes()) for name, (s, index) in named(data).items()}


def lightness(data: LabDataModule, name: str) -> float:
    subset, index = named(data)[name]
    return float(lab_of(getattr(data, subset), index)[..., 0].mean())


def test_the_second_run_decodes_nothing_and_sees_the_same(images: Path, tmp_path: Path, decoded: list[object]) -> None:
    first = LabDataModule.load(images, tmp_path)
    assert len(decoded) == 12
    decoded.clear()
    second = LabDataModule.load(images, tmp_path)
    assert decoded == []
    assert pixels(second) == pixels(first)
    assert second.fingerprint == first.fingerprint


def test_an_epoch_decodes_nothing(images: Path, tmp_path: Path, decoded: list[object]) -> None:
    command = "--network regressor --lr 0.001 --weight-decay 0 --device cpu".split()
    places = ["--images", str(images), "--output", str(tmp_path)]
    assert main.main([*command, *places, "--epoch", "3", "--copies", "2"]) == 0
    assert len(decoded) == 12


def test_only_what_is_new_is_decoded(images: Path, tmp_path: Path, decoded: list[object]) -> None:
    before = pixels(LabDataModule.load(images, tmp_path))
    decoded.clear()
    write(images / "new.bmp", picture(50))
    (images / "p3.bmp").unlink()
    after = pixels(LabDataModule.load(images, tmp_path))
    assert len(decoded) == 1
    assert set(after) == {*before, "new"} - {"p3"}
    assert all(after[name][1] == before[name][1] for name in before if name != "p3")


def test_a_changed_picture_is_noticed_although_size_and_time_are_the_same(images: Path, tmp_path: Path) -> None:
    before = LabDataModule.load(images, tmp_path)
    status = (images / "p5.bmp").stat()
    write(images / "p5.bmp", flat((200, 30, 90)))
    os.utime(images / "p5.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (images / "p5.bmp").stat().st_size == status.st_size
    after = LabDataModule.load(images, tmp_path)
    assert lightness(after, "p5") == pytest.approx(oracles.lab(np.array([200, 30, 90]))[0], abs=0.01)
    assert after.fingerprint != before.fingerprint


def test_pictures_that_change_places_are_noticed(images: Path, tmp_path: Path) -> None:
    before = LabDataModule.load(images, tmp_path)
    (images / "p1.bmp").rename(images / "aside.bmp")
    (images / "p2.bmp").rename(images / "p1.bmp")
    (images / "aside.bmp").rename(images / "p2.bmp")
    after = LabDataModule.load(images, tmp_path)
    assert pixels(after)["p1"] == pixels(before)["p2"]
    assert pixels(after)["p2"] == pixels(before)["p1"]


def test_a_picture_that_was_mended_is_no_longer_left_out(images: Path, tmp_path: Path) -> None:
    whole = (images / "p4.bmp").read_bytes()
    (images / "p4.bmp").write_bytes(whole[:100])
    assert list(LabDataModule.load(images, tmp_path).left_out) == ["p4.bmp"]
    (images / "p4.bmp").write_bytes(whole)
    data = LabDataModule.load(images, tmp_path)
    assert not data.left_out
    assert "p4" in named(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, empty, Path.unlink])
def test_a_damaged_cache_is_made_anew(images: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    whole = pixels(LabDataModule.load(images, tmp_path))
    for path in [path for path in (tmp_path / ".cache").rglob("*") if path.is_file() and path.stat().st_size]:
        damage(path)
        assert pixels(LabDataModule.load(images, tmp_path)) == whole


def test_a_pixel_that_the_disk_spoiled_is_decoded_again(images: Path, tmp_path: Path) -> None:
    whole = pixels(LabDataModule.load(images, tmp_path))
    records = max((path for path in (tmp_path / ".cache").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(records.read_bytes())
    content[len(content) // 3] ^= 0x55
    records.write_bytes(content)
    assert pixels(LabDataModule.load(images, tmp_path)) == whole


def test_an_interrupted_decoding_is_completed(images: Path, tmp_path: Path) -> None:
    def interrupted(work: Iterable, total: int) -> Iterator:
        assert total == 12
        for number, item in enumerate(work):
            if number == 5:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        LabDataModule.load(images, tmp_path, interrupted)
    assert pixels(LabDataModule.load(images, tmp_path)) == pixels(LabDataModule.load(images, tmp_path / "elsewhere"))


def test_two_folders_share_an_output_without_mixing(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "others")
    write(tmp_path / "others/p0.bmp", flat((9, 9, 9)))
    first = pixels(LabDataModule.load(images, tmp_path))
    assert lightness(LabDataModule.load(tmp_path / "others", tmp_path), "p0") < 4
    assert pixels(LabDataModule.load(images, tmp_path)) == first


def test_the_source_is_only_read(images: Path, tmp_path: Path) -> None:
    before = files_below(images)
    LabDataModule.load(images, tmp_path)
    assert files_below(images) == before


@pytest.mark.parametrize("spelling", [".", "absolute", "../images"])
def test_pictures_that_a_run_wrote_are_not_learned_from(
    images: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.chdir(images)
    folder = str(images) if spelling == "absolute" else spelling
    command = "--output . --activation sigmoid --lr 0.001 --weight-decay 0 --epoch 1 --device cpu".split()
    assert main.main(["--images", folder, *command]) == 0
    assert list((images / "outputs_sigmoid").rglob("*.png"))
    data = LabDataModule.load(Path(folder), Path("."))
    assert sum(len(getattr(data, subset)) for subset in SUBSETS) == 12


def test_a_set_too_large_for_memory_is_streamed(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches; each but the first is asked for beforehand, and pages are given back on the way."""
    data = LabDataModule.load(images, tmp_path).train
    batches = TrainingBatches(len(data), 2, augment_repeats=2, seed=0, crop_area=0.5)
    in_memory = [[part.clone() for part in batch] for batch in loader(data, batches)]
    asked: list[list[int]] = []
    maps = {id(data.mapped): data.mapped}

    def ask(records: np.memmap, rows: list[int]) -> None:
        maps[id(records)] = records
        asked.append(rows)
        original(records, rows)

    original = read_ahead
    monkeypatch.setattr("LabDataModule.read_ahead", ask)
    monkeypatch.setattr(Constants, "MAPPED_IMAGES", len(data) - 1)
    streamed = list(loader(data, batches))
    for batch, expected in zip(streamed, in_memory, strict=True):
        assert all(map(torch.equal, batch, expected))
    assert asked == [data.rows[draw.rows].tolist() for draw in batches][1:]
    assert len(maps) > 1
