"""Which photographs are for training, validation and testing."""

import hashlib
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import SUBSETS, named, write

from deepcolor.data.dataset import LabDataModule
from deepcolor.data.split import picture_names, split
from utils import UserError

FOLDER = Path("images")


def hashes(numbers: range, name: str = "{}.png") -> dict[str, str]:
    """Returns path -> hash of made-up files whose content is their number."""
    return {name.format(number): hashlib.sha256(str(number).encode()).hexdigest() for number in numbers}


def sizes(files: dict[str, str]) -> list[int]:
    found = split(files, FOLDER)
    assert sorted(path for members in found.values() for path in members) == sorted(files)
    return [len(found[subset]) for subset in SUBSETS]


def places(files: dict[str, str]) -> dict[str, set[str]]:
    """Returns hash -> the subsets that have a file with this content."""
    found: dict[str, set[str]] = {}
    for subset, members in split(files, FOLDER).items():
        for content_hash in members.values():
            found.setdefault(content_hash, set()).add(subset)
    return found


@pytest.mark.parametrize(
    ("files", "shares"),
    [
        (hashes(range(5000)), (0.8, 0.1, 0.1)),
        (hashes(range(5000), "train/{}.png") | hashes(range(5000, 5010), "test/{}.png"), (0.9, 0.1, 10 / 5000)),
    ],
    ids=["80/10/10 percent", "a tenth of train/ if there is no val/"],
)
def test_shares(files: dict[str, str], shares: tuple[float, ...]) -> None:
    for size, share in zip(sizes(files), shares):
        assert size == pytest.approx(5000 * share, abs=3 * np.sqrt(5000 * share * (1 - share)))  # 3 sigma


@pytest.mark.parametrize(("folder", "rest"), [("", {}), ("train/", hashes(range(900, 905), "test/{}.png"))])
def test_the_content_of_a_file_decides(folder: str, rest: dict[str, str]) -> None:
    """Not its name, the order or the number of files. Copies are in the same subset."""
    expected = places(hashes(range(200), folder + "{}.png") | rest)
    assert all(len(subsets) == 1 for subsets in expected.values())
    renamed = dict(reversed(hashes(range(250), folder + "sub/other{}.png").items()))
    for changed in (renamed, renamed | hashes(range(200), folder + "copy{}.png")):
        found = places(changed | rest)
        assert {content_hash: found[content_hash] for content_hash in expected} == expected


def test_given_folders_are_used_as_they_are() -> None:
    ranges = {"train": range(5), "val": range(5, 9), "test": range(9, 15)}
    given = {subset: hashes(numbers, f"{subset}/sub/{{}}.png") for subset, numbers in ranges.items()}
    assert split({path: h for members in given.values() for path, h in members.items()}, FOLDER) == given


def test_no_subset_is_empty() -> None:
    for start in range(0, 500, 10):
        assert min(map(min, (sizes(hashes(range(start, start + count))) for count in (3, 4, 7)))) >= 1
    assert sizes(hashes(range(2), "train/{}.png") | hashes(range(2, 4), "test/{}.png")) == [1, 1, 2]


@pytest.mark.parametrize("files", [hashes(range(1)), hashes(range(2)), dict.fromkeys("abc", "0" * 64)], ids=len)
def test_at_least_three_different_photographs_are_needed(files: dict[str, str]) -> None:
    with pytest.raises(UserError, match="at least 3"):
        split(files, FOLDER)


def test_the_split_of_a_folder_never_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the order of the listing, the file names or the version, or results could not be compared."""
    for number in range(30):  # BMP files have the same bytes with every version of Pillow
        path = write(tmp_path / "images" / f"{number}.bmp", np.full((8, 8, 3), number, np.uint8))
        (tmp_path / f"moved/deep{number % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / f"moved/deep{number % 3}/z{100 - number}.bmp")
    data = LabDataModule.load(tmp_path / "images", tmp_path / "out")
    assert sorted(data.val.names) == ["7"]
    assert sorted(data.test.names) == ["1", "17", "22", "3"]
    walk = os.walk

    def reverse_walk(*args: object, **kwargs: object) -> Iterator[tuple[str, list[str], list[str]]]:
        for parent, folders, files in walk(*args, **kwargs):
            folders.sort(reverse=True)
            yield parent, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", reverse_walk)
    assert named(LabDataModule.load(tmp_path / "images", tmp_path / "other")) == named(data)
    moved = LabDataModule.load(tmp_path / "moved", tmp_path / "out")
    assert moved.fingerprint == data.fingerprint
    assert moved.test.names == [f"deep{int(name) % 3}_z{100 - int(name)}" for name in data.test.names]


def test_names_are_unique_and_valid_on_every_file_system() -> None:
    paths = ["cats/tom.bmp", "dogs/tom.bmp", "cats_tom.bmp", "cats/tom.png", "a b\n.bmp", "*.bmp", f"{'日' * 100}.png"]
    names = picture_names([f"test/{path}" for path in paths])
    assert len({name.casefold() for name in names}) == len(paths)
    assert not any(set(name) & set('/\\:*?"<>|\n') for name in names)
    assert max(len(name.encode()) for name in names) <= 120
    assert picture_names(["test/cats/tom.jpg"]) == ["cats_tom"]


def test_names_that_other_systems_cannot_tell_apart_or_do_not_allow() -> None:
    """macOS and Windows ignore case, macOS the form of accents; Windows has devices, and no dots at the end."""
    paths = ["Tom.png", "tom.png", "caf\u00e9.png", "cafe\u0301.png", "con.png", "Nul.x.png", "lpt1.jpg", "end. .jpg"]
    names = picture_names(paths)
    keys = {unicodedata.normalize("NFC", name).casefold() for name in names}
    assert len(keys) == len(names)
    assert names[4:] == ["con_", "Nul.x_", "lpt1_", "end__"]
    assert picture_names(["console.png", "a.b.png"]) == ["console", "a.b"]
