"""`from colorize import load, colorize`, and where in a photograph each predicted color ends up."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracles
import pytest
from helpers import ROOT, picture
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

import Constants
import main
from colorize import colorize, load
from deepcolor.common.color import yab_to_srgb
from deepcolor.data.dataset import LabDataModule
from deepcolor.data.image_io import Photo, find_photos
from deepcolor.inference.full_resolution import join, model_input

SIDE = 128
GRAY = 119  # of L* 50, where the colors of these tests are inside sRGB


class FixedPredictor:
    """Predicts the same ab for every photograph, and remembers the last input."""

    margin, side = 0, 128
    saturation = 1.0

    def __init__(self, ab: np.ndarray) -> None:
        self.ab = ab.astype(np.float32)

    def predict(self, lightness: np.ndarray) -> np.ndarray:
        self.lightness = lightness
        return self.ab


def test_photographs_of_any_kind(sweep: Path) -> None:
    model = load(sweep, "cpu")
    gray = picture(2, 90, 40)[..., 0]
    alpha = np.dstack((picture(3, 50, 60), np.arange(3000, dtype=np.uint32).reshape(50, 60).astype(np.uint8)))
    photos = [picture(1, 30, 70), gray, gray.astype(np.uint16) * 257, alpha, picture(1, 30, 70)[:, ::-2]]
    together = colorize(model, photos)
    assert [found.shape for found in together] == [(30, 70, 3), (90, 40, 3), (90, 40, 3), (50, 60, 4), (30, 35, 3)]
    assert all(found.dtype == np.uint8 for found in together)
    assert np.array_equal(together[3][..., 3], alpha[..., 3])
    assert np.array_equal(together[1], together[2])
    for photo, found in zip(photos, together):
        assert np.array_equal(colorize(model, photo), found)
    stack = np.stack([picture(seed, 20, 30) for seed in range(3)])
    assert [found.shape for found in colorize(model, stack)] == [(20, 30, 3)] * 3
    assert colorize(model, []) == []


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 4), "float32"), ((4, 4, 2), "uint8"), ((4, 4, 3), "uint16"), ((0, 4, 3), "uint8"), ((4,), "uint8")],
)
def test_an_array_that_is_not_a_photograph(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match="a photograph is"):
        colorize(FixedPredictor(np.zeros((2, SIDE, SIDE))), np.zeros(shape, dtype))


@pytest.mark.parametrize(("width", "height"), [(384, 256), (256, 512), (500, 500), (64, 32), (1000, 90)])
def test_the_network_sees_the_whole_photograph_in_its_shape(width: int, height: int) -> None:
    """A horizontal ramp stays a ramp, and the padding mirrors it."""
    ramp = np.rint(40 + 160 * (np.arange(width) + 0.5) / width).astype(np.uint8)
    seen = model_input(Photo(Image.fromarray(np.tile(ramp, (height, 1))), None), side=SIDE)
    rows, columns = seen.valid_region
    inside = seen.lightness[rows, columns]
    assert max(inside.shape) == SIDE
    assert inside.shape[1] / inside.shape[0] == pytest.approx(width / height, rel=0.6 / min(inside.shape))
    values = 40 + 160 * (np.arange(inside.shape[1]) + 0.5) / inside.shape[1]
    expected = oracles.lab(np.repeat(values[:, None], 3, axis=1))[:, 0] / 100
    assert np.abs(inside - expected)[:, 3:-3].max() < 0.01
    above, below = seen.lightness[: rows.start], seen.lightness[rows.stop :]
    assert abs(len(above) - len(below)) <= 1
    if len(above):
        assert np.array_equal(above[-5:], inside[:5][::-1])
        assert np.array_equal(below[:5], inside[-5:][::-1])


@pytest.mark.parametrize(("width", "height"), [(640, 400), (300, 701), (2000, 61), (90, 50), (128, 128)])
def test_each_color_is_where_it_was_predicted(width: int, height: int) -> None:
    """The predicted colors are coordinates, so the color of each pixel shows where it comes from."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    predictor = FixedPredictor(np.stack([x, y]) / SIDE * 40 - 20)
    found = oracles.lab(colorize(predictor, np.full((height, width), GRAY, np.uint8)))
    longer = max(width, height)
    # The photograph is in the middle of the square, and its longer side fills it.
    margin = [(SIDE - max(1, round(SIDE * length / longer))) // 2 for length in (width, height)]
    across = margin[0] + (np.arange(width) + 0.5) / width * round(SIDE * width / longer)
    down = margin[1] + (np.arange(height) + 0.5) / height * round(SIDE * height / longer)
    for channel, position in ((1, across[None, :]), (2, down[:, None])):
        error = np.abs(found[..., channel] - (position / SIDE * 40 - 20))
        inner = slice(height // 20 + 1, -height // 20), slice(width // 20 + 1, -width // 20)
        assert error[inner].max() < 1.2  # 8 bits are steps of up to 1 in a and b
        assert error.max() < 2.5


def test_colors_are_enlarged_smoothly() -> None:
    """One pixel of color becomes a round spot without steps, whatever the number of threads."""
    ab = np.zeros((2, SIDE, SIDE), np.float32)
    ab[0, 64, 64] = 60
    gray = np.full((1024, 1024), GRAY, np.uint8)
    colored = colorize(FixedPredictor(ab), gray)
    photo = Photo(Image.fromarray(gray), None)
    assert np.array_equal(np.asarray(join(photo, model_input(photo), ab, threads=1)), colored)
    found = oracles.lab(colored)[..., 1]
    for middle in (found[516], found[:, 516]):
        assert middle[516] > 50
        assert np.abs(np.diff(middle)).max() < 15
    assert np.abs(found[400]).max() < 1


def test_the_network_sees_transparent_parts_as_white() -> None:
    predictor = FixedPredictor(np.zeros((2, SIDE, SIDE)))
    photo = np.dstack((np.zeros((64, 64, 3), np.uint8), np.repeat([[0] * 32 + [255] * 32], 64, 0).astype(np.uint8)))
    colorize(predictor, photo)
    assert predictor.lightness[:, :50].min() > 0.97
    assert predictor.lightness[:, 80:].max() < 0.03


@pytest.mark.slow
def test_an_unseen_face_is_closer_to_the_truth_than_in_the_mean_color(
    faces_dir: Path, tmp_path: Path, run_colorize: Callable
) -> None:
    """Trains a narrow network for half a minute."""
    recipe = "--recipe best --feature-maps 6 --lr 0.006 --batch-size 8 --epoch 12"
    flags = f"--device cpu --network colorizer --activation sigmoid {recipe} --jobs 1"
    assert main.main(["--images", str(faces_dir), "--output", str(tmp_path / "out"), *flags.split()]) == 0
    data = LabDataModule.load(faces_dir, tmp_path / "out")
    by_name = {path.rpartition("/")[2].rpartition(".")[0]: faces_dir / path for path in find_photos(faces_dir)}
    unseen = [by_name[name] for name in data.test.names]
    assert len(unseen) >= 20
    assert run_colorize(*unseen, "--output", tmp_path / "colored", "--checkpoint", tmp_path / "out").code == 0
    errors = []
    for path in unseen:
        with Image.open(path) as image:
            lab = rgb2lab(np.asarray(image.convert("RGB")))
        y = np.where(lab[..., 0] > 8, ((lab[..., 0] + 16) / 116) ** 3, lab[..., 0] * (27 / 24389))
        mean_color = yab_to_srgb(y.astype(np.float32), *(np.full(y.shape, value, np.float32) for value in data.mean_ab))
        found = np.asarray(Image.open(tmp_path / "colored" / f"{path.stem}_color.png"))
        errors.append([deltaE_ciede2000(lab, rgb2lab(rgb)).mean() for rgb in (found, mean_color)])
    found, mean_color = np.mean(errors, axis=0)
    print(f"mean CIEDE2000 of {len(unseen)} unseen faces: {found:.2f}; mean color {mean_color:.2f}")
    assert found < 0.93 * mean_color


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/colorize.md").read_text().partition("## From Python")[2]
    monkeypatch.chdir(tmp_path)  # where there is no sweep
    names: dict = {"photograph": picture(0, 40, 60), "scan": picture(1, 50, 30)[..., 0]}
    names["frames"] = [picture(2, 32, 48)] * 3
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], names)
    assert names["model"].path == Constants.PRETRAINED
    assert names["colored"].shape == (40, 60, 3) and names["colored"].dtype == np.uint8
    assert [each.shape for each in names["several"]] == [(40, 60, 3), (50, 30, 3)]
    assert np.array_equal(names["several"][0], names["colored"])
    assert [each.shape for each in names["moving"]] == [(32, 48, 3)] * 3
    assert oracles.colorfulness(names["pale"]) < oracles.colorfulness(names["colored"])
