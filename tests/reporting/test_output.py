"""What a run writes, read back from its files and held against the photographs."""

import csv
import re
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from conftest import TEST_PHOTOS, Run
from helpers import SIDE, TASK_NAMES, TASKS, named, photo
from PIL import Image

from Colorizer import Colorizer
from deepcolor.data.dataset import LabDataModule
from Regressor import Regressor

RUNS = [f"epoch_{epoch}_lr_0.003_weight_decay_{decay}" for epoch in (2, 4) for decay in ("0", "1e-05")]
ACTIVATIONS = ["sigmoid", "tanh"]
COLUMNS = (
    "network activation feature_maps lr epoch weight_decay seed status train_mse val_mse test_mse test_mse_a "
    "test_mse_b gray_mse mean_color_mse rmse_lab psnr ssim delta_e colorfulness colorfulness_true seconds "
    "checkpoint diverged_epoch beats_gray beats_mean_color chroma_ratio variety_ratio verdict"
).split()
LEVELS = oracles.lab(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))[:, 0]
HALF_LEVEL = np.diff(LEVELS).max() / 2  # how far rounding to 8 bits can move the L* of a gray


@pytest.fixture(scope="module")
def originals(photos: Path) -> dict[str, np.ndarray]:
    """Name -> the test photograph, (128,128,3) uint8."""
    return {Path(name).stem: photo(photos / "test" / name) for name in TEST_PHOTOS}


@pytest.fixture(scope="module")
def rows(run: Run) -> list[dict[str, str]]:
    with open(run.output / "Plots/results.csv", newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def colored(run: Run, activation: str, name: str) -> dict[str, np.ndarray]:
    """Test image -> its colored PNG."""
    folder = run.output / f"outputs_{activation}/color" / name
    return {path.stem: read(path) for path in folder.iterdir()}


def test_every_promised_file_is_there_and_no_other(run: Run) -> None:
    expected = {"Plots/results.csv", "Plots/summary.png"}
    for name in RUNS:
        expected |= {f"checkpoints/{task}/{name}.pt" for task in TASK_NAMES}
        expected |= {f"Plots/Regressor/{name}_loss.png", f"Plots/Regressor/{name}_means.csv"}
        for a in ACTIVATIONS:
            expected |= {f"Plots/Colorizer/{a}_{name}_loss.png", f"Plots/Colorizer/{a}_{name}_triplets.png"}
            pictures = [f"{kind}/{name}/{Path(p).stem}.png" for kind in ("gray", "color") for p in TEST_PHOTOS]
            expected |= {f"outputs_{a}/{picture}" for picture in pictures}
    found = {str(path.relative_to(run.output)) for path in run.output.rglob("*") if path.is_file()}
    assert {name for name in found if not re.search(r"(^|/)\.", name)} == expected


def test_plots_are_pictures_with_something_on_them(run: Run) -> None:
    paths = [*run.output.glob("Plots/*/*_loss.png"), run.output / "Plots/summary.png"]
    assert len(paths) == 13
    for path in paths:
        pixels = read(path)
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels[..., :3].astype(int) @ [1, 256, 65536])) > 20


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gray_png_is_the_lightness_of_the_photograph(
    run: Run, originals: dict[str, np.ndarray], activation: str
) -> None:
    for name in RUNS:
        for image, original in originals.items():
            gray = read(run.output / f"outputs_{activation}/gray" / name / f"{image}.png")
            assert gray.shape == (SIDE, SIDE)
            assert np.abs(LEVELS[gray] - oracles.lab(original)[..., 0]).max() <= HALF_LEVEL + 0.01


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_colored_png_has_the_lightness_of_the_photograph_wherever_in_gamut(
    run: Run, originals: dict[str, np.ndarray], activation: str
) -> None:
    for name in RUNS:
        for image, pixels in colored(run, activation, name).items():
            assert pixels.shape == (SIDE, SIDE, 3)
            inside = ((pixels > 0) & (pixels < 255)).all(axis=2)  # what is clipped lies on the edge
            assert inside.mean() > 0.5
            difference = oracles.lab(pixels)[..., 0] - oracles.lab(originals[image])[..., 0]
            assert np.abs(difference[inside]).max() <= 2 * HALF_LEVEL


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_colored_png_is_what_the_network_of_the_checkpoint_says(
    run: Run, data: LabDataModule, activation: str
) -> None:
    offset, scale = {"sigmoid": (128, 255), "tanh": (0, 128)}[activation]
    content = checkpoint_of(run, ("colorizer", activation), RUNS[0])
    model = Colorizer(3, activation)
    model.load_state_dict(content["model"])
    for image, pixels in colored(run, activation, RUNS[0]).items():
        lightness, _ = data.test[named(data)[image][1]]
        with torch.no_grad():
            ab = model.eval()(lightness[None])[0].double().numpy().transpose(1, 2, 0) * scale - offset
        inside = ((pixels > 0) & (pixels < 255)).all(axis=2)
        difference = np.abs(oracles.lab(pixels)[..., 1:] - ab)[inside]
        # Near black one step of 8 bits is more than one unit of Lab.
        assert np.percentile(difference, 99) < 1
        assert difference.max() < 3


def place(sheet: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """The corners (y, x) at which a picture lies on a sheet, pixel for pixel."""
    height, width = sheet.shape[0] - SIDE + 1, sheet.shape[1] - SIDE + 1
    fits = np.ones((height, width), bool)
    for y, x in ((0, 0), (127, 127), (64, 31), (5, 99)):
        fits &= (sheet[y : y + height, x : x + width] == picture[y, x]).all(axis=2)
    return [(y, x) for y, x in np.argwhere(fits) if np.array_equal(sheet[y : y + SIDE, x : x + SIDE], picture)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_triplet_is_the_gray_png_the_photograph_and_the_colored_png(
    run: Run, originals: dict[str, np.ndarray], activation: str
) -> None:
    for name in RUNS:
        sheet = read(run.output / f"Plots/Colorizer/{activation}_{name}_triplets.png")[..., :3]
        for image, original in originals.items():
            gray = read(run.output / f"outputs_{activation}/gray" / name / f"{image}.png")
            members = [np.stack([gray] * 3, axis=-1), original, colored(run, activation, name)[image]]
            places = [place(sheet, member) for member in members]
            assert [len(found) for found in places] == [1, 1, 1]
            (y1, x1), (y2, x2), (y3, x3) = (found[0] for found in places)
            assert y1 == y2 == y3
            assert x1 + SIDE <= x2 < x1 + SIDE + 40
            assert x2 + SIDE <= x3 < x2 + SIDE + 40


def test_results_have_the_promised_columns_and_a_row_for_every_combination(rows: list[dict[str, str]]) -> None:
    assert list(rows[0]) == COLUMNS
    keys = [(row["network"], row["activation"], row["epoch"], row["weight_decay"]) for row in rows]
    expected = [(*task, epoch, decay) for task in TASKS for epoch in "24" for decay in ("0", "1e-05")]
    assert sorted(keys) == sorted(expected)
    for row in rows:
        assert (row["feature_maps"], row["lr"], row["seed"], row["status"]) == ("3", "0.003", "7", "done")
        empty = {"diverged_epoch"}
        if row["network"] == "regressor":
            empty |= {"activation", "psnr", "ssim", "delta_e", "colorfulness", "colorfulness_true"}
            empty |= {"chroma_ratio", "variety_ratio", "verdict"}
        assert {key for key, value in row.items() if value == ""} == empty


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scores_are_those_of_the_written_pictures(
    run: Run, rows: list[dict[str, str]], originals: dict[str, np.ndarray], activation: str
) -> None:
    members = [row for row in rows if row["activation"] == activation]
    assert len(members) == len(RUNS)
    for row in members:
        pictures = colored(run, activation, Path(row["checkpoint"]).stem)
        assert set(pictures) == set(originals)
        pairs = [(originals[image], pictures[image]) for image in originals]
        labs = [(oracles.lab(original), oracles.lab(picture)) for original, picture in pairs]
        expected = {
            "psnr": np.mean([oracles.psnr(*pair) for pair in pairs]),
            "ssim": np.mean([oracles.ssim(*pair) for pair in pairs]),
            "delta_e": np.mean([oracles.ciede2000(*pair).mean() for pair in labs]),
            "colorfulness": np.mean([oracles.colorfulness(picture) for _, picture in pairs]),
            "colorfulness_true": np.mean([oracles.colorfulness(original) for original, _ in pairs]),
        }
        found = {key: float(row[key]) for key in expected}
        assert found == pytest.approx(expected, rel=1e-4)
        chroma = [[np.hypot(lab[..., 1], lab[..., 2]).mean() for lab in pair] for pair in labs]
        true, predicted = np.mean(chroma, axis=0)
        # The pictures are the prediction as far as sRGB can show it.
        assert float(row["chroma_ratio"]) == pytest.approx(predicted / true, abs=0.02)
        for guess in ("gray", "mean_color"):
            assert (row[f"beats_{guess}"] == "yes") == (float(row["test_mse"]) < float(row[f"{guess}_mse"]))


def test_baselines_are_those_of_the_photographs(
    rows: list[dict[str, str]], originals: dict[str, np.ndarray], data: LabDataModule
) -> None:
    ab = np.stack([oracles.lab(original)[..., 1:] for original in originals.values()])
    trained = np.mean([data.train[i][1].double().numpy().mean(axis=(1, 2)) for i in range(len(data.train))], axis=0)
    for row in rows:
        truth = ab if row["network"] == "colorizer" else ab.mean(axis=(1, 2))
        assert float(row["gray_mse"]) == pytest.approx((truth**2).mean() / 255**2, rel=1e-4)
        assert float(row["mean_color_mse"]) == pytest.approx(((truth - trained) ** 2).mean() / 255**2, rel=1e-4)


def checkpoint_of(run: Run, task: tuple[str, str], name: str) -> dict:
    return torch.load(run.output / "checkpoints" / "_".join(filter(None, task)) / f"{name}.pt", weights_only=True)


def assert_plain(value: object) -> None:
    """Nothing but tensors and what JSON could hold as well."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) is str
            assert_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or isinstance(value, torch.Tensor) or type(value) in (bool, int, float, str)


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_a_checkpoint_describes_itself(run: Run, rows: list[dict[str, str]], task: tuple[str, str]) -> None:
    for name in RUNS:
        content = checkpoint_of(run, task, name)
        assert_plain({key: dict(value) if key == "model" else value for key, value in content.items()})
        (row,) = (r for r in rows if r["checkpoint"].endswith(f"checkpoints/{'_'.join(filter(None, task))}/{name}.pt"))
        assert (content["network"], content["activation"] or "") == task
        assert (content["feature_maps"], content["seed"], content["image_size"]) == (3, 7, 128)
        assert content["epoch"] == content["hyperparameters"]["epoch"] == int(row["epoch"])
        assert content["hyperparameters"]["lr"] == 0.003
        assert content["hyperparameters"]["weight_decay"] == float(row["weight_decay"])
        assert content["versions"]["torch"] == torch.__version__
        figures = [column for column in COLUMNS[COLUMNS.index("train_mse") : COLUMNS.index("seconds")] if row[column]]
        assert {key: content["metrics"][key] for key in figures} == {key: float(row[key]) for key in figures}


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_a_checkpoint_rebuilds_the_network_and_its_test_mse(
    run: Run, data: LabDataModule, task: tuple[str, str]
) -> None:
    content = checkpoint_of(run, task, RUNS[-1])
    maps = content["feature_maps"]
    model = Regressor(maps) if task[0] == "regressor" else Colorizer(maps, content["activation"])
    model.load_state_dict(content["model"])
    lightness, ab = (torch.stack(part) for part in zip(*(data.test[index] for index in range(len(data.test)))))
    truth = ab if task[0] == "colorizer" else ab.mean(dim=(2, 3))
    target = truth / 128 if task[1] == "tanh" else (truth + 128) / 255
    with torch.no_grad():
        mse = (model.eval()(lightness) - target).double().square().mean().item()
    unit = (128 / 255) ** 2 if task[1] == "tanh" else 1
    assert content["metrics"]["test_mse"] == pytest.approx(mse * unit, rel=1e-4)
