"""`from colorize import load, colorize`: arrays in, arrays out; and where in a photograph each color comes to lie."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracles
import pytest
from helpers import picture, write
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

import main
from colorize import colorize, load
from deepcolor.common.color import yab_to_srgb
from deepcolor.data.dataset import LabDataModule
from deepcolor.data.image_io import Photo, find_photos
from deepcolor.inference.full_resolution import model_input
from utils import UserError

SIDE = 128


class Plain:
    """A model that predicts the same a and b, given as a function of what it sees, wherever that is."""

    def __init__(self, ab: Callable[[np.ndarray], np.ndarray]) -> None:
        self.ab = ab
        self.seen: np.ndarray | None = None

    def predict(self, lightness: np.ndarray) -> np.ndarray:
        self.seen = lightness
        return np.stack([self.ab(one[0]) for one in lightness]).astype(np.float32)


# --- As a function ---------------------------------------------------------------------------------


def test_the_function_does_what_the_command_does(sweep: Path, color: Callable, tmp_path: Path) -> None:
    rgb = picture(1, 300, 200)
    assert color(write(tmp_path / "it.png", rgb)).code == 0
    found = colorize(load(sweep, "cpu"), rgb)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(Image.open(tmp_path / "it_color.png")))


def test_several_photographs_of_any_kind_at_once(sweep: Path) -> None:
    model = load(sweep, "cpu")
    gray = picture(2, 90, 40)[..., 0]
    alpha = np.dstack((picture(3, 50, 60), np.arange(3000, dtype=np.uint32).reshape(50, 60).astype(np.uint8)))
    photos = [picture(1, 30, 70), gray, gray.astype(np.uint16) * 257, alpha]
    together = colorize(model, photos)
    assert [found.shape for found in together] == [(30, 70, 3), (90, 40, 3), (90, 40, 3), (50, 60, 4)]
    assert np.array_equal(together[3][..., 3], alpha[..., 3])
    assert np.array_equal(together[1], together[2])
    for photo, found in zip(photos, together):
        # A batch may sum in another order: the last bit of a color, at a boundary between two levels.
        assert np.abs(colorize(model, photo).astype(int) - found).max() <= 1
    stack = np.stack([picture(seed, 20, 30) for seed in range(3)])
    assert [found.shape for found in colorize(model, stack)] == [(20, 30, 3)] * 3
    assert colorize(model, []) == []


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
    ids=lambda array: f"{array.shape}-{array.dtype}",
)
def test_an_array_that_is_no_photograph(sweep: Path, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a photograph is"):
        colorize(load(sweep, "cpu"), array)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load(tmp_path / "nowhere.pt")


# --- Geometry --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(384, 256), (256, 512), (500, 500), (64, 32), (1000, 90)])
def test_the_network_sees_the_whole_photograph_in_its_shape(width: int, height: int) -> None:
    """A ramp from edge to edge stays one; what lies beside it mirrors it."""
    x = (np.arange(width) + 0.5) / width
    rgb = np.repeat(np.tile(np.rint(40 + 160 * x), (height, 1))[..., None], 3, axis=2).astype(np.uint8)
    seen = model_input(Photo(Image.fromarray(rgb), None), SIDE)
    rows, columns = seen.valid_region
    valid_region = seen.lightness[rows, columns]
    assert max(valid_region.shape) == SIDE
    assert valid_region.shape[1] / valid_region.shape[0] == pytest.approx(
        width / height, rel=0.6 / min(valid_region.shape)
    )
    at = (np.arange(valid_region.shape[1]) + 0.5) / valid_region.shape[1]
    values = 40 + 160 * at
    wanted = oracles.lab(np.repeat(values[:, None], 3, axis=1))[:, 0] / 100
    inner = slice(3, -3)
    assert np.abs(valid_region[:, inner] - wanted[None, inner]).max() < 0.01
    above = seen.lightness[: rows.start]
    below = seen.lightness[rows.stop :]
    assert abs(len(above) - len(below)) <= 1
    if len(above):
        assert np.array_equal(above[-5:], valid_region[:5][::-1])
        assert np.array_equal(below[:5], valid_region[-5:][::-1])


@pytest.mark.parametrize(("width", "height"), [(640, 400), (300, 701), (2000, 61), (90, 50), (128, 128)])
def test_each_color_comes_to_lie_where_it_was_predicted(width: int, height: int) -> None:
    """A network that predicts its own coordinates: the color of a pixel must tell where it is."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    gray = np.full((height, width), 119, np.uint8)  # L* 50, where these colors all lie inside sRGB
    found = oracles.lab(colorize(Plain(lambda seen: np.stack([x, y]) / SIDE * 40 - 20), gray))
    longer = max(width, height)
    # The photograph lies in the middle of the square, which its longer side fills.
    margin = [(SIDE - max(1, round(SIDE * length / longer))) // 2 for length in (width, height)]
    across = margin[0] + (np.arange(width) + 0.5) / width * round(SIDE * width / longer)
    down = margin[1] + (np.arange(height) + 0.5) / height * round(SIDE * height / longer)
    for channel, wanted in ((1, across[None, :]), (2, down[:, None])):
        error = np.abs(found[..., channel] - (wanted / SIDE * 40 - 20))
        edge = slice(height // 20 + 1, -height // 20), slice(width // 20 + 1, -width // 20)
        assert error[edge].max() < 1.2  # 8 bits are steps of up to 1 in a and b
        assert error.max() < 2.5


def test_colors_are_enlarged_smoothly() -> None:
    """One pixel of color becomes a round spot without steps."""
    spot = np.zeros((2, SIDE, SIDE))
    spot[0, 64, 64] = 60
    found = oracles.lab(colorize(Plain(lambda seen: spot), np.full((1024, 1024), 119, np.uint8)))[..., 1]
    for middle in (found[516], found[:, 516]):
        assert middle[516] > 50
        assert np.abs(np.diff(middle)).max() < 15
    assert np.abs(found[400]).max() < 1


def test_transparent_parts_are_shown_to_the_network_on_white() -> None:
    model = Plain(lambda seen: np.zeros((2, SIDE, SIDE)))
    photo = np.dstack((np.zeros((64, 64, 3), np.uint8), np.repeat([[0] * 32 + [255] * 32], 64, 0).astype(np.uint8)))
    colorize(model, photo)
    assert model.seen[0, 0, :, :50].min() > 0.97
    assert model.seen[0, 0, :, 80:].max() < 0.03


# --- Real faces ------------------------------------------------------------------------------------


def test_an_unseen_face_is_nearer_to_the_truth_than_in_the_mean_color(
    faces_dir: Path, tmp_path: Path, color: Callable
) -> None:
    """A narrow network, trained for half a minute."""
    recipe = "--recipe best --feature-maps 6 --lr 0.006 --batch-size 8 --epoch 24"
    flags = f"--device cpu --network colorizer --activation sigmoid {recipe} --jobs 1"
    assert main.main(["--images", str(faces_dir), "--output", str(tmp_path / "out"), *flags.split()]) == 0
    data = LabDataModule.load(faces_dir, tmp_path / "out")  # divided as it was
    by_name = {path.rpartition("/")[2].rpartition(".")[0]: faces_dir / path for path in find_photos(faces_dir)}
    unseen = [by_name[name] for name in data.test.names]
    assert len(unseen) >= 20
    assert color(*unseen, "--output", tmp_path / "colored", "--checkpoint", tmp_path / "out").code == 0
    ours, mean_color = [], []
    for path in unseen:
        with Image.open(path) as image:
            truth = np.asarray(image.convert("RGB"))
        lab = rgb2lab(truth)
        y = np.where(lab[..., 0] > 8, ((lab[..., 0] + 16) / 116) ** 3, lab[..., 0] * (27 / 24389))
        mean = [np.full(y.shape, value, np.float32) for value in data.mean_ab]
        guess = yab_to_srgb(y.astype(np.float32), *mean)
        found = np.asarray(Image.open(tmp_path / "colored" / f"{path.stem}_color.png"))
        ours.append(deltaE_ciede2000(lab, rgb2lab(found)).mean())
        mean_color.append(deltaE_ciede2000(lab, rgb2lab(guess)).mean())
    print(f"mean CIEDE2000 of {len(unseen)} unseen faces: {np.mean(ours):.2f}; mean color {np.mean(mean_color):.2f}")
    assert np.mean(ours) < 0.93 * np.mean(mean_color)
