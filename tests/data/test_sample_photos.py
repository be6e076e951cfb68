"""The built-in photographs: complete, without overlap between subsets, and never mixed with the user's own."""

import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import skimage
from helpers import SIDE, SUBSETS, files_below, picture, write
from PIL import Image

import main
from deepcolor.data import sample_photos


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built_in") / "data"
    assert sample_photos.fill(folder) == len(list(folder.rglob("*.png")))
    return folder


def read(path: Path) -> np.ndarray:
    """Returns a picture as (H,W) integers, one number per color."""
    return np.asarray(Image.open(path).convert("RGB")).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def find(tile: np.ndarray, photograph: np.ndarray) -> list[tuple[int, int]]:
    """Returns every place (y, x) at which the photograph contains exactly the tile."""
    height, width = photograph.shape[0] - SIDE + 1, photograph.shape[1] - SIDE + 1
    if min(height, width) <= 0:
        return []
    y, x = np.nonzero(photograph[:height, :width] == tile[0, 0])
    for row, column in np.random.default_rng(0).integers(0, SIDE, (20, 2)):  # leaves few places to compare fully
        same = photograph[y + row, x + column] == tile[row, column]
        y, x = y[same], x[same]
    return [(y, x) for y, x in zip(y, x) if np.array_equal(photograph[y : y + SIDE, x : x + SIDE], tile)]


def test_subsets_hold_color_tiles_that_share_no_pixel(filled: Path) -> None:
    paths = sorted(filled.rglob("*.png"))
    assert {path.parent.name for path in paths} == set(SUBSETS)
    assert len(paths) >= 60
    assert any(np.ptp(np.asarray(Image.open(path)).astype(int), axis=2).max() > 100 for path in paths)
    photographs = [read(Path(skimage.__file__).parent / "data" / name) for name in sample_photos.PHOTOGRAPHS]
    tiles = {path: read(path) for path in paths}
    assert {tile.shape for tile in tiles.values()} == {(SIDE, SIDE)}
    places = {
        path: [(n, *at) for n, each in enumerate(photographs) for at in find(tiles[path], each)] for path in paths
    }
    assert all(places.values())
    for one, other in combinations(paths, 2):
        for photograph, y, x in places[one]:
            for other_photograph, other_y, other_x in places[other]:
                apart = abs(y - other_y) >= SIDE or abs(x - other_x) >= SIDE
                assert photograph != other_photograph or apart, (one, other)


def test_an_interrupted_fill_is_completed(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, iter(range(20))

    def interrupted(*args: object) -> None:
        if next(calls) == 10:
            raise KeyboardInterrupt
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sample_photos.fill(tmp_path / "data")
    assert len(list((tmp_path / "data").rglob("*.png"))) < len(list(filled.rglob("*.png")))
    sample_photos.fill(tmp_path / "data")
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (filled, tmp_path / "data")
    )
    assert first == second


def test_a_folder_with_images_is_not_changed(filled: Path, tmp_path: Path) -> None:
    write(tmp_path / "data/holiday/beach.png", picture(0))
    for folder in (filled, tmp_path / "data"):
        before = files_below(folder)
        assert sample_photos.fill(folder) == 0
        assert files_below(folder) == before


def test_the_program_fills_an_empty_data_folder_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/README.md").write_text("Put photographs here.")
    command = "--network regressor --lr 0.001 --weight-decay 0 --epoch 1 --device cpu".split()
    assert main.main(command) == 0
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if "scikit-image" in line)
    assert "--images" in line
    sizes = {subset: len(list((tmp_path / "data" / subset).iterdir())) for subset in SUBSETS}
    assert f"{sizes['train']} training, {sizes['val']} validation and {sizes['test']} test images" in output
    assert main.main(command) == 0
    assert "scikit-image" not in capsys.readouterr().out
