"""The built-in photographs: complete, apart from each other, and never in the way of one's own."""

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
from deepcolor.data.dataset import LabDataModule

FOLDER = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("builtin") / "data"
    assert sample_photos.fill(folder) == len(list(folder.rglob("*.png")))
    return folder


@pytest.fixture(scope="module")
def tiles(filled: Path) -> dict[tuple[str, str], np.ndarray]:
    """(subset, name) -> the pixels of each tile."""
    return {(p.parent.name, p.name): np.asarray(Image.open(p).convert("RGB")) for p in sorted(filled.rglob("*.png"))}


def packed(rgb: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 -> (H,W): one number for each color."""
    return rgb.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def places(tile: np.ndarray, source: np.ndarray) -> list[tuple[int, int]]:
    """The corners (y, x) at which a tile lies in a photograph, pixel by pixel the same; both packed."""
    if min(source.shape[0] - SIDE, source.shape[1] - SIDE) < 0:
        return []
    found = np.ones((source.shape[0] - SIDE + 1, source.shape[1] - SIDE + 1), bool)
    for y, x in [(0, 0), (127, 127), (0, 127), (127, 0), (64, 64), (31, 97)]:
        found &= source[y : y + found.shape[0], x : x + found.shape[1]] == tile[y, x]
    return [(y, x) for y, x in np.argwhere(found) if np.array_equal(source[y : y + SIDE, x : x + SIDE], tile)]


def test_every_subset_holds_whole_color_tiles(tiles: dict[tuple[str, str], np.ndarray]) -> None:
    assert {subset for subset, _ in tiles} == set(SUBSETS)
    assert len(tiles) >= 60
    assert {tile.shape for tile in tiles.values()} == {(SIDE, SIDE, 3)}
    assert any(np.ptp(tile.astype(int), axis=2).max() > 100 for tile in tiles.values())


def test_no_two_tiles_share_a_pixel_across_subsets(tiles: dict[tuple[str, str], np.ndarray]) -> None:
    paths = [path for path in FOLDER.iterdir() if path.suffix in (".png", ".jpg", ".jpeg")]
    sources = {path.name: packed(np.asarray(Image.open(path).convert("RGB"))) for path in paths}
    cut: dict[str, list[tuple[str, int, int]]] = {}
    for (subset, name), tile in tiles.items():
        found = [(source, *place) for source in sources for place in places(packed(tile), sources[source])]
        assert found, f"{name} is no part of a photograph of scikit-image"
        for source, y, x in found:
            cut.setdefault(source, []).append((subset, y, x))
    for members in cut.values():
        for (one, y1, x1), (other, y2, x2) in combinations(members, 2):
            assert one == other or abs(y1 - y2) >= SIDE or abs(x1 - x2) >= SIDE


def test_an_interrupted_fill_is_completed(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, iter(range(20))

    def interrupted(*arguments: object) -> None:
        if next(calls) == 10:
            raise KeyboardInterrupt
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sample_photos.fill(tmp_path / "data")
    assert len(list((tmp_path / "data").rglob("*.png"))) < len(list(filled.rglob("*.png")))
    sample_photos.fill(tmp_path / "data")
    contents = [
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (filled, tmp_path / "data")
    ]
    assert contents[0] == contents[1]


def test_a_folder_that_is_filled_is_left_alone(filled: Path) -> None:
    before = files_below(filled)
    assert sample_photos.fill(filled) == 0
    assert files_below(filled) == before


def test_images_of_ones_own_are_left_alone(tmp_path: Path) -> None:
    own = write(tmp_path / "data/holiday/beach.png", picture(0))
    assert sample_photos.fill(tmp_path / "data") == 0
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == [own]


def test_the_program_fills_data_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/README.md").write_text("Put photographs here.")
    command = "--network regressor --lr 0.001 --weight-decay 0 --epoch 1 --device cpu".split()
    assert main.main(command) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "scikit-image" in line]
    assert len(said) == 1
    assert "--images" in said[0]
    assert main.main(command) == 0
    assert "scikit-image" not in capsys.readouterr().out
    data = LabDataModule.load(tmp_path / "data", tmp_path)
    assert [len(getattr(data, s)) for s in SUBSETS] == [len(list((tmp_path / "data" / s).iterdir())) for s in SUBSETS]
