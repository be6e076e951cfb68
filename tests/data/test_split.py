"""Which picture trains, which validates and which tests."""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import SUBSETS, named, picture, subsets_by_content, write

from deepcolor.data.dataset import LabDataModule
from utils import UserError


def fill(folder: Path, seeds: range, name: str = "p{}.bmp", side: int = 24) -> None:
    """Small pictures as BMP, whose bytes are the same with every version of Pillow."""
    for seed in seeds:
        write(folder / name.format(seed), picture(seed, side, side))


def members(data: LabDataModule) -> dict[str, list[str]]:
    return {subset: sorted(getattr(data, subset).names) for subset in SUBSETS}


def test_the_split_is_by_content_whatever_the_names_and_folders(tmp_path: Path) -> None:
    fill(tmp_path / "one", range(40))
    for number, path in enumerate(sorted((tmp_path / "one").iterdir(), reverse=True)):
        target = tmp_path / "two" / f"deep{number % 3}" / f"z{number}.bmp"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    splits = [
        subsets_by_content(tmp_path / f, LabDataModule.load(tmp_path / f, tmp_path / "out")) for f in ("one", "two")
    ]
    assert splits[0] == splits[1]
    assert set().union(*splits[0].values()) == set(SUBSETS)


def test_the_split_and_the_order_do_not_depend_on_the_listing_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "images", range(30), "a{}.bmp")
    fill(tmp_path / "images/sub", range(30, 50))
    there = members(LabDataModule.load(tmp_path / "images", tmp_path / "there"))
    walk = os.walk

    def backwards(*arguments: object, **options: object) -> Iterator[tuple[str, list[str], list[str]]]:
        for parent, folders, files in walk(*arguments, **options):
            folders.sort(reverse=True)
            yield parent, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    data = LabDataModule.load(tmp_path / "images", tmp_path / "back")
    monkeypatch.undo()
    again = LabDataModule.load(tmp_path / "images", tmp_path / "there")
    assert members(data) == there
    assert data.train.names == again.train.names
    assert data.fingerprint == again.fingerprint


def test_one_more_picture_leaves_the_others_where_they_are(tmp_path: Path) -> None:
    fill(tmp_path / "images", range(40))
    before = named(LabDataModule.load(tmp_path / "images", tmp_path))
    fill(tmp_path / "images", range(40, 50))
    after = named(LabDataModule.load(tmp_path / "images", tmp_path))
    assert {name: after[name][0] for name in before} == {name: subset for name, (subset, _) in before.items()}


def test_the_split_is_the_same_tomorrow(tmp_path: Path) -> None:
    """These bytes will never change, so neither may the side on which they are: results would not compare."""
    for number in range(30):
        write(tmp_path / "images" / f"{number}.bmp", np.full((8, 8, 3), number, np.uint8))
    found = members(LabDataModule.load(tmp_path / "images", tmp_path))
    assert found["val"] == ["7"]
    assert found["test"] == ["1", "17", "22", "3"]


def test_the_shares_are_80_10_and_10_percent(tmp_path: Path) -> None:
    fill(tmp_path / "images", range(400), side=8)
    sizes = Counter(subset for subset, _ in named(LabDataModule.load(tmp_path / "images", tmp_path)).values())
    # Three standard deviations of a binomial distribution.
    for subset, share in zip(SUBSETS, (0.8, 0.1, 0.1)):
        assert sizes[subset] == pytest.approx(400 * share, abs=3 * np.sqrt(400 * share * (1 - share)))


def test_the_same_picture_twice_is_never_on_both_sides(tmp_path: Path) -> None:
    for copy in range(4):
        fill(tmp_path / "images" / f"folder{copy}", range(25), f"copy{copy}_" + "{}.bmp")
    found = subsets_by_content(tmp_path / "images", LabDataModule.load(tmp_path / "images", tmp_path))
    assert len(found) == 25
    assert all(len(subsets) == 1 for subsets in found.values())


@pytest.mark.parametrize("count", [3, 4, 7])
def test_each_subset_holds_an_image_as_soon_as_there_are_three(tmp_path: Path, count: int) -> None:
    for start in range(0, 50, 10):
        folder = tmp_path / str(start)
        fill(folder, range(start, start + count))
        data = LabDataModule.load(folder, tmp_path)
        sizes = [len(data.train), len(data.val), len(data.test)]
        assert min(sizes) >= 1
        assert sum(sizes) == count


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_pictures_say_how_many_are_needed(tmp_path: Path, count: int) -> None:
    fill(tmp_path / "images", range(count))
    with pytest.raises(UserError, match="at least 3"):
        LabDataModule.load(tmp_path / "images", tmp_path)


def test_three_copies_of_one_picture_are_one_picture(tmp_path: Path) -> None:
    for copy in range(3):
        write(tmp_path / "images" / f"{copy}.bmp", picture(0, 16, 16))
    with pytest.raises(UserError, match="at least 3"):
        LabDataModule.load(tmp_path / "images", tmp_path)


def test_given_folders_are_used_as_given(tmp_path: Path) -> None:
    for subset, seeds in zip(SUBSETS, (range(5), range(5, 9), range(9, 15))):
        fill(tmp_path / "images" / subset / "sub", seeds)
    data = LabDataModule.load(tmp_path / "images", tmp_path)
    assert [len(data.train), len(data.val), len(data.test)] == [5, 4, 6]
    found = subsets_by_content(tmp_path / "images", data)
    for path in (tmp_path / "images").rglob("*.bmp"):
        assert found[hashlib.sha256(path.read_bytes()).hexdigest()] == {path.relative_to(tmp_path / "images").parts[0]}


def test_train_without_val_gives_a_tenth_by_hash(tmp_path: Path) -> None:
    fill(tmp_path / "one/train", range(200), side=8)
    fill(tmp_path / "one/test", range(200, 210))
    data = LabDataModule.load(tmp_path / "one", tmp_path)
    assert len(data.test) == 10
    assert len(data.train) + len(data.val) == 200
    assert len(data.val) == pytest.approx(20, abs=3 * np.sqrt(200 * 0.1 * 0.9))
    for number, path in enumerate(sorted((tmp_path / "one/train").iterdir(), reverse=True)):
        (tmp_path / "two/train").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "two/train" / f"other{number}.bmp")
    shutil.copytree(tmp_path / "one/test", tmp_path / "two/test")
    other = LabDataModule.load(tmp_path / "two", tmp_path)
    assert subsets_by_content(tmp_path / "one", data) == subsets_by_content(tmp_path / "two", other)


def test_two_training_pictures_suffice_for_a_validation_image(tmp_path: Path) -> None:
    fill(tmp_path / "images/train", range(2))
    fill(tmp_path / "images/test", range(2, 4))
    data = LabDataModule.load(tmp_path / "images", tmp_path)
    assert [len(data.train), len(data.val), len(data.test)] == [1, 1, 2]


def test_pictures_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    for number, path in enumerate(
        ["cats/tom.bmp", "dogs/tom.bmp", "cats_tom.bmp", "cats/tom.png", "a b\n.bmp", "*.bmp"]
    ):
        write(tmp_path / "images/test" / path, picture(number, 16, 16))
    fill(tmp_path / "images/train", range(50, 54))
    names = LabDataModule.load(tmp_path / "images", tmp_path).test.names
    assert len({name.casefold() for name in names}) == 6
    assert not any(set(name) & set('/\\:*?"<>|\n') for name in names)
