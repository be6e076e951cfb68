"""Photographs are decoded once, and the cache never gives the pixels of another or an older photograph."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import oracles
import pytest
import torch
from helpers import SUBSETS, files_below, flat, lab_of, named, picture, write
from PIL import Image

import Constants
import main
from deepcolor.data import lab_cache
from deepcolor.data.batches import BatchSpec, TrainingBatches, loader
from deepcolor.data.dataset import LabDataModule
from deepcolor.data.lab_cache import LabCache, RecordMap, _checksum
from utils import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(12):
        write(tmp_path / "images" / f"p{number}.bmp", picture(number))
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Gets an item for every picture that is opened."""
    opened: list[object] = []
    original = Image.open

    def counted(*args: object, **kwargs: object) -> Image.Image:
        opened.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(Image, "open", counted)
    return opened


def pixels(data: LabDataModule) -> dict[str, tuple[str, bytes]]:
    """Returns name -> (subset, Lab pixels)."""
    return {name: (s, lab_of(getattr(data, s), index).tobytes()) for name, (s, index) in named(data).items()}


def lightness(data: LabDataModule, name: str) -> float:
    subset, index = named(data)[name]
    return float(lab_of(getattr(data, subset), index)[..., 0].mean())


# --- What is decoded -----------------------------------------------------------------------------------


def test_only_new_files_are_decoded(images: Path, tmp_path: Path, decoded: list[object]) -> None:
    source = files_below(images)
    first = LabDataModule.load(images, tmp_path)
    assert len(decoded) == 12
    second = LabDataModule.load(images, tmp_path)
    assert len(decoded) == 12
    assert pixels(second) == pixels(first)
    assert second.fingerprint == first.fingerprint
    assert files_below(images) == source
    write(images / "new.bmp", picture(50))
    (images / "p3.bmp").unlink()
    third = pixels(LabDataModule.load(images, tmp_path))
    assert len(decoded) == 13
    assert set(third) == {*pixels(first), "new"} - {"p3"}
    assert all(third[name][1] == content for name, (_, content) in pixels(first).items() if name != "p3")


def test_a_run_decodes_every_image_once_and_ignores_pictures_that_it_wrote(
    images: Path, decoded: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    flags = "--network colorizer --activation sigmoid --lr 0.001 --weight-decay 0 --epoch 2 --copies 2 --device cpu"
    assert main.main(["--images", ".", "--output", ".", *flags.split()]) == 0
    assert len(decoded) == 12
    assert list((images / "outputs_sigmoid").rglob("*.png"))
    assert list((images / "Plots").rglob("*.png"))
    for spelling in (".", str(images), "../images"):
        data = LabDataModule.load(Path(spelling), Path("."))
        assert sum(len(getattr(data, subset)) for subset in SUBSETS) == 12


def test_a_changed_file_of_the_same_size_and_time_is_noticed(images: Path, tmp_path: Path) -> None:
    before = LabDataModule.load(images, tmp_path)
    status = (images / "p5.bmp").stat()
    write(images / "p5.bmp", flat((200, 30, 90)))
    os.utime(images / "p5.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (images / "p5.bmp").stat().st_size == status.st_size
    (images / "p1.bmp").rename(images / "aside.bmp")
    (images / "p2.bmp").rename(images / "p1.bmp")
    (images / "aside.bmp").rename(images / "p2.bmp")
    after = LabDataModule.load(images, tmp_path)
    assert lightness(after, "p5") == pytest.approx(oracles.lab(flat((200, 30, 90)))[0, 0, 0], abs=0.01)
    assert after.fingerprint != before.fingerprint
    assert pixels(after)["p1"] == pixels(before)["p2"]
    assert pixels(after)["p2"] == pixels(before)["p1"]


def test_a_repaired_file_is_no_longer_left_out(images: Path, tmp_path: Path) -> None:
    content = (images / "p4.bmp").read_bytes()
    (images / "p4.bmp").write_bytes(content[:100])
    assert list(LabDataModule.load(images, tmp_path).left_out) == ["p4.bmp"]
    (images / "p4.bmp").write_bytes(content)
    data = LabDataModule.load(images, tmp_path)
    assert not data.left_out
    assert "p4" in named(data)


def test_two_folders_can_share_an_output_folder(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "others")
    write(tmp_path / "others/p0.bmp", flat((9, 9, 9)))
    first = pixels(LabDataModule.load(images, tmp_path))
    assert lightness(LabDataModule.load(tmp_path / "others", tmp_path), "p0") < 4
    assert pixels(LabDataModule.load(images, tmp_path)) == first


# --- Damage --------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def clear(path: Path) -> None:
    path.write_bytes(b"")


def flip_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x55
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, clear, flip_bits, Path.unlink])
@pytest.mark.parametrize("name", ["records.lab", "index.txt"])
def test_a_damaged_cache_is_rebuilt(images: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    expected = pixels(LabDataModule.load(images, tmp_path))
    (path,) = (tmp_path / ".cache").rglob(name)
    damage(path)
    data = LabDataModule.load(images, tmp_path)
    assert pixels(data) == expected
    # Without an index there is no cache yet.
    assert bool(data.cache_damage) == ((name, damage) != ("index.txt", Path.unlink))
    assert not LabDataModule.load(images, tmp_path).cache_damage


def test_an_interrupted_build_is_completed(images: Path, tmp_path: Path) -> None:
    def interrupted(work: Iterable, total: int) -> Iterator:
        assert total == 12
        for number, item in enumerate(work):
            if number == 5:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        LabDataModule.load(images, tmp_path, interrupted)
    assert pixels(LabDataModule.load(images, tmp_path)) == pixels(LabDataModule.load(images, tmp_path / "elsewhere"))


# --- Memory --------------------------------------------------------------------------------------------


def mapped_bytes(folder: Path) -> int:
    """Returns the memory of this process that mapped files below a folder take."""
    pattern = re.escape(str(folder)) + r"/.*\n(?:.*\n)*?Rss: *(\d+) kB"
    found = re.findall(pattern, Path("/proc/self/smaps").read_text())
    return sum(map(int, found)) << 10


def test_a_large_set_is_prefetched_and_leaves_memory_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = LabDataModule.load(images, tmp_path).train
    batches = TrainingBatches(len(data), 2, augment_repeats=2, seed=0, crop_area=0.5)
    expected = list(loader(data, batches))
    assert mapped_bytes(tmp_path) > 0
    prefetched: list[list[int]] = []
    original = RecordMap.prefetch

    def prefetch(self: RecordMap, rows: list[int]) -> None:
        prefetched.append(rows)
        original(self, rows)

    monkeypatch.setattr(RecordMap, "prefetch", prefetch)
    monkeypatch.setattr(Constants, "MAPPED_IMAGES", 1)
    for batch, same in zip(loader(data, batches), expected, strict=True):
        assert all(map(torch.equal, batch, same))
        assert mapped_bytes(tmp_path) == 0
    assert prefetched == [data.rows[spec.rows].tolist() for spec in batches][1:]


def test_a_pickled_dataset_does_not_contain_the_pixels(images: Path, tmp_path: Path) -> None:
    data = LabDataModule.load(images, tmp_path)
    content = pickle.dumps(data)
    assert len(content) < 10_000
    assert pixels(pickle.loads(content)) == pixels(data)
    everything = BatchSpec(torch.arange(len(data.train)))
    means = pickle.loads(pickle.dumps(data.with_mean_ab())).train.__getitems__(everything)
    assert all(map(torch.equal, means, data.train.with_mean_ab().__getitems__(everything)))


# --- What others put into the cache ----------------------------------------------------------------


def test_a_link_in_the_place_of_the_records_leads_nowhere(images: Path, tmp_path: Path) -> None:
    LabDataModule.load(images, tmp_path)
    (records,) = tmp_path.rglob("records.lab")
    records.with_name("index.txt").unlink()
    mine = tmp_path / "thesis.txt"
    mine.write_text("mine")
    records.unlink()
    records.symlink_to(mine)
    LabDataModule.load(images, tmp_path)
    assert mine.read_text() == "mine"


def test_a_link_that_appears_later_is_an_error(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("mine")
    original = LabCache._load

    def load(cache: LabCache) -> None:
        original(cache)
        cache._records_path.symlink_to(mine)

    monkeypatch.setattr(LabCache, "_load", load)
    with pytest.raises(UserError, match="cache"):
        LabDataModule.load(images, tmp_path)
    assert mine.read_text() == "mine"


CRAFTED = {
    "no format": lambda index: index.pop("format"),
    "a list": lambda index: index.update(records=[]),
    "a row of another image": lambda index: next(iter(index["records"].values())).__setitem__(0, 5),
    "text as a statistic": lambda index: next(iter(index["records"].values())).__setitem__(2, "blue"),
    "a short entry": lambda index: next(iter(index["files"].values())).pop(),
    "an unknown hash": lambda index: next(iter(index["files"].values())).__setitem__(3, "0" * 64),
    "no hash and no reason": lambda index: next(iter(index["files"].values())).__setitem__(slice(3, 5), ["", 7]),
}


@pytest.mark.parametrize("change", CRAFTED)
def test_a_crafted_index_is_not_used(images: Path, tmp_path: Path, change: str) -> None:
    expected = LabDataModule.load(images, tmp_path)
    (path,) = tmp_path.rglob("index.txt")
    index = json.loads(path.read_bytes().partition(b"\n")[2])
    CRAFTED[change](index)
    text = json.dumps(index).encode()
    path.write_bytes(_checksum(text) + b"\n" + text)
    found = LabDataModule.load(images, tmp_path)
    assert found.cache_damage
    assert (found.fingerprint, found.train.names) == (expected.fingerprint, expected.train.names)


def test_few_pictures_are_decoded_at_once_if_memory_is_short(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    monkeypatch.setattr(lab_cache, "available_cores", lambda: 64)
    monkeypatch.setattr(lab_cache, "ThreadPoolExecutor", lambda count: threads.append(count) or ThreadPoolExecutor(1))
    for gigabytes in (0, 4, 1000):
        monkeypatch.setattr(lab_cache, "available_memory", lambda gigabytes=gigabytes: gigabytes << 30)
        LabDataModule.load(images, tmp_path / str(gigabytes))
    assert threads == [1, 6, 64]
