"""Conversions between sRGB and Lab, and the units of what the networks see."""

from pathlib import Path

import numpy as np
import oracles
import pytest
from helpers import SIDE, flat, lab_of, named, picture, write
from skimage.color import rgb2lab

import Constants
from deepcolor.common.color import lab_to_srgb, lightness_to_gray
from deepcolor.data.dataset import LabDataModule

LEVELS = np.append(np.arange(0, 255, 5), 255)  # 52 per channel, including both ends
HALF_STEP = 0.5 / 256  # stored Lab is rounded to 1/256

Cards = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Cards:
    """(sRGB, Lab that the dataset gives) of pictures that hold all combinations of LEVELS: the whole sRGB cube."""
    folder = tmp_path_factory.mktemp("cards")
    colors = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS), axis=-1).reshape(-1, 3).astype(np.uint8)
    padded = np.resize(colors, (-(-len(colors) // SIDE**2) * SIDE**2, 3))
    pictures = [*padded.reshape(-1, SIDE, SIDE, 3), picture(1), picture(2)]
    for number, rgb in enumerate(pictures):
        write(folder / f"card{number}.png", rgb)
    data = LabDataModule.load(folder, tmp_path_factory.mktemp("output"))
    places = named(data)
    assert len(places) == len(pictures)
    found = [places[f"card{number}"] for number in range(len(pictures))]
    return [(rgb, lab_of(getattr(data, subset), index)) for rgb, (subset, index) in zip(pictures, found)]


def test_lab_is_that_of_scikit_image_and_of_the_definition(cards: Cards) -> None:
    for rgb, lab in cards:
        assert np.abs(lab - rgb2lab(rgb)).max() <= HALF_STEP + 1e-5
        assert np.abs(lab - oracles.lab(rgb)).max() <= HALF_STEP + 1e-3


def test_stored_lab_converts_back_to_the_exact_photograph(cards: Cards) -> None:
    for rgb, lab in cards:
        assert np.array_equal(lab_to_srgb(lab.transpose(2, 0, 1)), rgb)


def test_all_srgb_colors_fit_into_the_range_of_both_activations(cards: Cards) -> None:
    ab = np.concatenate([lab[..., 1:].reshape(-1, 2) for _, lab in cards])
    assert ab.min(axis=0) == pytest.approx([-86.2, -107.9], abs=0.1)
    assert ab.max(axis=0) == pytest.approx([98.2, 94.5], abs=0.1)
    for activation, low in (("sigmoid", 0), ("tanh", -1)):
        offset, scale = Constants.OUTPUT_SCALES[activation]
        target = (ab + offset) / scale
        assert low <= target.min()
        assert target.max() <= 1


@pytest.mark.parametrize(
    ("activation", "expected"), [("sigmoid", [0, 128 / 255, 1]), ("tanh", [-1, 0, 127 / 128])], ids=str
)
def test_targets_are_those_of_the_report(activation: str, expected: list[float]) -> None:
    offset, scale = Constants.OUTPUT_SCALES[activation]
    assert [(ab + offset) / scale for ab in (-128, 0, 127)] == pytest.approx(expected, abs=1e-12)


def test_the_input_is_lightness_and_not_luma(tmp_path: Path) -> None:
    primaries = {
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
    }
    for number, rgb in enumerate(primaries):
        write(tmp_path / "images" / f"{number}.png", flat(rgb))
    data = LabDataModule.load(tmp_path / "images", tmp_path)
    for number, (l_star, a, b) in enumerate(primaries.values()):
        subset, index = named(data)[str(number)]
        lightness, ab = getattr(data, subset)[index]
        assert lightness.shape == (1, SIDE, SIDE)
        assert ab.shape == (2, SIDE, SIDE)
        assert lightness.numpy() == pytest.approx(l_star / 100, abs=2e-4)
        assert ab[0].numpy() == pytest.approx(a, abs=0.02)
        assert ab[1].numpy() == pytest.approx(b, abs=0.02)


def test_a_color_outside_srgb_keeps_its_lightness() -> None:
    lab = np.full((3, 4, 4), 60.0)
    lab[1:] = [[[120]], [[-90]]]
    found = oracles.lab(lab_to_srgb(lab))
    assert np.abs(found[..., 0] - 60).max() <= 0.28
    assert (found[..., 1] > 40).all()
    assert (found[..., 2] < -40).all()


def test_every_gray_level_is_the_gray_of_its_lightness() -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    lightness = oracles.lab(np.stack([levels] * 3, axis=-1))[..., 0]
    assert np.array_equal(lightness_to_gray(lightness), levels)
