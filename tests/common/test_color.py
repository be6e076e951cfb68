"""Lab both ways, and the units of what the networks see."""

from pathlib import Path

import numpy as np
import oracles
import pytest
from helpers import SIDE, flat, lab_of, named, picture, write
from skimage.color import rgb2lab

import Constants
from deepcolor.common.color import lab_to_srgb, lightness_to_gray
from deepcolor.data.dataset import LabDataModule

LEVELS = np.append(np.arange(0, 255, 5), 255)  # 52 a channel, with both ends
HALF_STEP = 0.5 / 256  # Lab is kept in steps of 1/256


def color_cards() -> list[np.ndarray]:
    """Pictures that hold every combination of the levels: the whole sRGB cube, its corners, edges and faces."""
    colors = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS), axis=-1).reshape(-1, 3).astype(np.uint8)
    size = SIDE * SIDE
    padded = np.resize(colors, (-(-len(colors) // size) * size, 3))
    return list(padded.reshape(-1, SIDE, SIDE, 3))


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each card as sRGB, and as the Lab that training is given of its file."""
    folder = tmp_path_factory.mktemp("cards")
    pictures = [*color_cards(), picture(1), picture(2)]
    for number, rgb in enumerate(pictures):
        write(folder / f"card{number}.png", rgb)
    data = LabDataModule.load(folder, tmp_path_factory.mktemp("output"))
    places = named(data)
    assert len(places) == len(pictures)
    found = [places[f"card{number}"] for number in range(len(pictures))]
    return [(rgb, lab_of(getattr(data, subset), index)) for rgb, (subset, index) in zip(pictures, found)]


def test_lab_is_that_of_scikit_image_to_half_a_step(cards: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for rgb, lab in cards:
        assert np.abs(lab - rgb2lab(rgb)).max() <= HALF_STEP + 1e-5


def test_lab_follows_the_definition(cards: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for rgb, lab in cards:
        assert np.abs(lab - oracles.lab(rgb)).max() <= HALF_STEP + 1e-3


def test_lab_back_to_srgb_is_the_photograph_exactly(cards: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for rgb, lab in cards:
        assert np.array_equal(lab_to_srgb(lab.transpose(2, 0, 1)), rgb)


def test_all_srgb_colors_fit_into_both_targets(cards: list[tuple[np.ndarray, np.ndarray]]) -> None:
    ab = np.concatenate([lab[..., 1:].reshape(-1, 2) for _, lab in cards])
    assert ab.min(axis=0) == pytest.approx([-86.2, -107.9], abs=0.1)
    assert ab.max(axis=0) == pytest.approx([98.2, 94.5], abs=0.1)
    for activation, low in (("sigmoid", 0), ("tanh", -1)):
        offset, scale = Constants.OUTPUT_SCALES[activation]
        target = (ab + offset) / scale
        assert low <= target.min()
        assert target.max() <= 1


def test_targets_are_those_of_the_report() -> None:
    for activation, expected in (("sigmoid", [0, 128 / 255, 1]), ("tanh", [-1, 0, 127 / 128])):
        offset, scale = Constants.OUTPUT_SCALES[activation]
        assert [(ab + offset) / scale for ab in (-128, 0, 127)] == pytest.approx(expected, abs=1e-12)


def test_the_input_is_true_lightness_and_not_luma(tmp_path: Path) -> None:
    for number, color in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        write(tmp_path / "images" / f"{number}.png", flat(color))
    data = LabDataModule.load(tmp_path / "images", tmp_path)
    for number, (lightness, a, b) in enumerate(
        [(53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86)]
    ):
        subset, index = named(data)[str(number)]
        given, ab = getattr(data, subset)[index]
        assert given.shape == (1, SIDE, SIDE)
        assert ab.shape == (2, SIDE, SIDE)
        assert given.numpy() == pytest.approx(lightness / 100, abs=2e-4)
        assert ab[0].numpy() == pytest.approx(a, abs=0.02)
        assert ab[1].numpy() == pytest.approx(b, abs=0.02)


def test_a_color_outside_srgb_keeps_its_lightness() -> None:
    lab = np.full((3, 4, 4), 60.0)
    lab[1:] = [[[120]], [[-90]]]
    found = oracles.lab(lab_to_srgb(lab))
    assert np.abs(found[..., 0] - 60).max() <= 0.28
    a, b = found[..., 1], found[..., 2]
    assert (a > 40).all()
    assert (b < -40).all()


def test_every_gray_level_is_the_gray_of_its_lightness() -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    lightness = oracles.lab(np.stack([levels] * 3, axis=-1))[..., 0]
    assert np.array_equal(lightness_to_gray(lightness), levels)
