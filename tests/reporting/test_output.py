"""One run: the files that it writes, compared with the photographs and with each other, and what it prints."""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from helpers import SIDE, TASK_NAMES, TASKS, TEST_PHOTOS, named, photo, plain
from PIL import Image

import Constants
import main
from Colorizer import Colorizer
from deepcolor.data.dataset import LabDataModule
from deepcolor.reporting.metrics import image_scores, mean_scores

RUN_FLAGS = "--device cpu --feature-maps 3 --lr 0.003 --epoch 2 4 --weight-decay 1e-5 --seed 7".split()
RUNS = [f"epoch_{epoch}_lr_0.003_weight_decay_1e-05" for epoch in (2, 4)]
COLUMNS = (
    "network activation feature_maps lr epoch weight_decay seed status train_mse val_mse test_mse test_mse_a "
    "test_mse_b gray_mse mean_color_mse rmse_lab psnr ssim delta_e colorfulness colorfulness_true "
    "colorfulness_abs colorfulness_abs_true delta_colorfulness seconds checkpoint diverged_epoch beats_gray "
    "beats_mean_color chroma_ratio variety_ratio verdict"
).split()
COLORIZER_COLUMNS = set(
    "activation psnr ssim delta_e colorfulness colorfulness_true colorfulness_abs colorfulness_abs_true "
    "delta_colorfulness chroma_ratio variety_ratio verdict".split()
)
GRAY_LIGHTNESS = oracles.lab(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))[:, 0]
HALF_STEP = np.diff(GRAY_LIGHTNESS).max() / 2  # how far rounding to 8 bits can move the L* of a gray pixel

on_activations = pytest.mark.parametrize("activation", Constants.ACTIVATIONS)


@dataclass(frozen=True)
class Run:
    """What a finished run left: its folder, and what it said."""

    output: Path
    photos: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def run(
    photos: Path, run_main: Callable[..., subprocess.CompletedProcess], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """One small sweep by the real command: both networks, both activations, two snapshots."""
    output = tmp_path_factory.mktemp("run")
    done = run_main("--images", photos, "--output", output, *RUN_FLAGS, cwd=output)
    assert done.returncode == 0, done.stderr
    return Run(output, photos, done.stdout, done.stderr)


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


def pictures(run: Run, activation: str, kind: str, name: str) -> dict[str, np.ndarray]:
    """Name of a test image -> its "gray" or "color" PNG."""
    return {path.stem: read(path) for path in (run.output / f"outputs_{activation}" / kind / name).iterdir()}


def load_checkpoint(run: Run, task: tuple[str, str], name: str) -> dict:
    return torch.load(run.output / "checkpoints" / "_".join(filter(None, task)) / f"{name}.pt", weights_only=True)


def test_output_folder_holds_exactly_the_documented_files(run: Run) -> None:
    expected = {"Plots/results.csv", "Plots/summary.png"}
    expected |= {f"checkpoints/best_{network}.pt" for network in Constants.NETWORKS}
    for name in RUNS:
        expected |= {f"checkpoints/{task}/{name}.pt" for task in TASK_NAMES}
        expected |= {f"Plots/Regressor/{name}_loss.png", f"Plots/Regressor/{name}_means.csv"}
        for a in Constants.ACTIVATIONS:
            expected |= {f"Plots/Colorizer/{a}_{name}_loss.png", f"Plots/Colorizer/{a}_{name}_triplets.png"}
            images = [f"{kind}/{name}/{Path(p).stem}.png" for kind in ("gray", "color") for p in TEST_PHOTOS]
            expected |= {f"outputs_{a}/{image}" for image in images}
    found = {str(path.relative_to(run.output)) for path in run.output.rglob("*") if path.is_file()}
    assert {name for name in found if not re.search(r"(^|/)\.", name)} == expected


def test_the_best_models_have_the_lowest_validation_error(run: Run, rows: list[dict[str, str]]) -> None:
    for network in Constants.NETWORKS:
        row = min((row for row in rows if row["network"] == network), key=lambda row: float(row["val_mse"]))
        best = run.output / f"checkpoints/best_{network}.pt"
        assert plain(torch.load(best, weights_only=True)) == plain(torch.load(run.output / row["checkpoint"]))


def test_plots_are_not_empty(run: Run) -> None:
    paths = [*run.output.glob("Plots/*/*_loss.png"), run.output / "Plots/summary.png"]
    assert len(paths) == 7
    for path in paths:
        pixels = read(path)
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels[..., :3].astype(int) @ [1, 256, 65536])) > 20  # colors


@on_activations
def test_pngs_have_the_lightness_of_the_photograph_and_the_colors_that_the_checkpoint_predicts(
    run: Run, originals: dict[str, np.ndarray], data: LabDataModule, activation: str
) -> None:
    offset, scale = {"sigmoid": (128, 255), "tanh": (0, 128)}[activation]
    for name in RUNS:
        content = load_checkpoint(run, ("colorizer", activation), name)
        network = Colorizer(content["feature_maps"], content["activation"])
        network.load_state_dict(content["model"])
        gray, colored = (pictures(run, activation, kind, name) for kind in ("gray", "color"))
        assert gray.keys() == colored.keys() == originals.keys()
        for image, pixels in colored.items():
            lightness = oracles.lab(originals[image])[..., 0]
            assert gray[image].shape == (SIDE, SIDE)
            assert np.abs(GRAY_LIGHTNESS[gray[image]] - lightness).max() <= HALF_STEP + 0.01
            with torch.no_grad():
                ab = network.eval()(data.test[named(data)[image][1]][0][None])[0].double().numpy() * scale - offset
            assert pixels.shape == (SIDE, SIDE, 3)
            inside = ((pixels > 0) & (pixels < 255)).all(axis=2)  # in gamut: clipped colors are at the edge
            assert inside.mean() > 0.5
            found = oracles.lab(pixels)[inside]
            assert np.abs(found[:, 0] - lightness[inside]).max() <= 2 * HALF_STEP
            difference = np.abs(found[:, 1:] - ab.transpose(1, 2, 0)[inside])
            assert np.percentile(difference, 99) < 1
            assert difference.max() < 3  # near black, one 8-bit step is more than one Lab unit


def find(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Returns the only corner (y, x) at which a sheet shows a picture, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, picture.shape)[:, :, 0]
    candidates = np.argwhere((windows[:, :, 64, 31] == picture[64, 31]).all(axis=2))
    (corner,) = ((y, x) for y, x in candidates if np.array_equal(windows[y, x], picture))
    return corner


@on_activations
def test_triplets_show_gray_png_photograph_and_colored_png_side_by_side(
    run: Run, originals: dict[str, np.ndarray], activation: str
) -> None:
    for name in RUNS:
        sheet = read(run.output / f"Plots/Colorizer/{activation}_{name}_triplets.png")[..., :3]
        gray, colored = (pictures(run, activation, kind, name) for kind in ("gray", "color"))
        for image, original in originals.items():
            members = [np.stack([gray[image]] * 3, axis=-1), original, colored[image]]
            (y1, x1), (y2, x2), (y3, x3) = (find(sheet, member) for member in members)
            assert y1 == y2 == y3
            assert x1 + SIDE <= x2 < x1 + SIDE + 40
            assert x2 + SIDE <= x3 < x2 + SIDE + 40


def test_results_have_the_documented_columns_and_a_row_for_every_combination(rows: list[dict[str, str]]) -> None:
    assert list(rows[0]) == COLUMNS
    keys = [(row["network"], row["activation"], row["epoch"], row["weight_decay"]) for row in rows]
    assert keys == [(*task, epoch, "1e-05") for task in TASKS for epoch in "24"]
    for row in rows:
        assert (row["feature_maps"], row["lr"], row["seed"], row["status"]) == ("3", "0.003", "7", "done")
        empty = {"diverged_epoch"} | (COLORIZER_COLUMNS if row["network"] == "regressor" else set())
        assert {key for key, value in row.items() if value == ""} == empty
        for name in ("gray", "mean_color"):
            assert row[f"beats_{name}"] == ("yes" if float(row["test_mse"]) < float(row[f"{name}_mse"]) else "no")


@on_activations
def test_scores_are_those_of_the_written_pictures(
    run: Run, rows: list[dict[str, str]], originals: dict[str, np.ndarray], activation: str
) -> None:
    for row in (row for row in rows if row["activation"] == activation):
        colored = pictures(run, activation, "color", Path(row["checkpoint"]).stem)
        pairs = [(originals[image], colored[image]) for image in originals]
        expected = mean_scores([image_scores(*pair) for pair in pairs])
        assert {key: float(row[key]) for key in expected} == pytest.approx(expected)
        labs = [(oracles.lab(original), oracles.lab(picture)) for original, picture in pairs]
        chroma = [[np.hypot(lab[..., 1], lab[..., 2]).mean() for lab in pair] for pair in labs]
        true, predicted = np.mean(chroma, axis=0)
        # Differs from the chroma of the prediction only by colors outside sRGB.
        assert float(row["chroma_ratio"]) == pytest.approx(predicted / true, abs=0.02)


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_checkpoint_describes_itself(run: Run, rows: list[dict[str, str]], task: tuple[str, str]) -> None:
    for name in RUNS:
        content = load_checkpoint(run, task, name)
        assert all(type(value) is torch.Tensor for value in content.pop("model").values())
        assert json.loads(json.dumps(content, allow_nan=False)) == content  # plain values only
        (row,) = (r for r in rows if r["checkpoint"].endswith(f"checkpoints/{'_'.join(filter(None, task))}/{name}.pt"))
        assert (content["network"], content["activation"]) == task
        assert (content["feature_maps"], content["seed"], content["image_size"]) == (3, 7, 128)
        assert content["epoch"] == content["hyperparameters"]["epoch"] == int(row["epoch"])
        assert content["hyperparameters"]["lr"] == 0.003
        assert content["hyperparameters"]["weight_decay"] == float(row["weight_decay"])
        assert content["versions"]["torch"] == torch.__version__
        figures = [column for column in COLUMNS[COLUMNS.index("train_mse") : COLUMNS.index("seconds")] if row[column]]
        assert {key: content["metrics"][key] for key in figures} == {key: float(row[key]) for key in figures}


# --- The console -----------------------------------------------------------------------------------

NUMBER = r"(-?\d+\.\d+)"


def best(rows: list[dict[str, str]], network: str, activation: str) -> dict[str, str]:
    """Returns the row with the lowest validation error."""
    members = [row for row in rows if (row["network"], row["activation"]) == (network, activation)]
    return min(members, key=lambda row: float(row["val_mse"]))


def test_the_images_the_plan_and_the_time_come_first(run: Run) -> None:
    first = run.stdout.splitlines()[:3]
    assert "17 training, 3 validation and 4 test images" in first[0]
    assert "6 combinations in 3 training runs: 12 epochs" in first[1]
    assert re.search(r"[Aa]bout \d+ (s|min|h)", first[2])


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_combination_has_a_line_when_it_is_finished(run: Run, rows: list[dict[str, str]], task: str) -> None:
    for name in RUNS:
        lines = [line for line in run.stdout.splitlines() if line.startswith(f"{task} {name}:")]
        assert len(lines) == 1
        network, _, activation = task.partition("_")
        (row,) = (r for r in rows if r["checkpoint"] == f"checkpoints/{task}/{name}.pt")
        assert (row["network"], row["activation"]) == (network, activation)
        assert f"test mse {float(row['test_mse']):.6f}" in lines[0]


def test_the_two_numbers_of_every_test_image(run: Run, rows: list[dict[str, str]]) -> None:
    row = best(rows, "regressor", "")
    means = run.output / f"Plots/Regressor/{Path(row['checkpoint']).stem}_means.csv"
    with open(means, newline="") as file:
        written = {line["image"]: line for line in csv.DictReader(file)}
    photos = sorted((run.photos / "test").iterdir())
    assert set(written) == {path.stem for path in photos}
    errors = []
    for path in photos:
        image = path.stem
        (line,) = (line for line in run.stdout.splitlines() if line.endswith(f" {image}"))
        a, b, true_a, true_b = (float(number) for number in re.findall(NUMBER, line))
        expected = oracles.lab(photo(path))[..., 1:].mean(axis=(0, 1))
        assert [true_a, true_b] == pytest.approx(list(expected), abs=0.011)
        assert [a, b] == pytest.approx([float(written[image][f"predicted_{c}"]) for c in "ab"], abs=0.011)
        errors += [(a - expected[0]) ** 2, (b - expected[1]) ** 2]
    assert sum(errors) / len(errors) / 255**2 == pytest.approx(float(row["test_mse"]), rel=0.02)


def test_the_tables_are_ranked_by_the_validation_images(run: Run, rows: list[dict[str, str]]) -> None:
    for network, count in (("Regressor", 2), ("Colorizer", 4)):
        table = run.stdout.split(f"{network}: every combination")[1].split("\n\n")[0]
        values = [float(re.findall(r"0\.\d{6}", line)[0]) for line in re.findall(r"^ *\d+\. .*$", table, re.MULTILINE)]
        assert len(values) == count
        assert values == sorted(values)
        expected = [float(row["val_mse"]) for row in rows if row["network"] == network.lower()]
        assert values == pytest.approx(sorted(expected), abs=1e-6)


@pytest.mark.parametrize(("network", "activation"), TASKS)
def test_the_best_is_named_and_whether_it_beats_the_mean_color(
    run: Run, rows: list[dict[str, str]], network: str, activation: str
) -> None:
    row = best(rows, network, activation)
    (line,) = (x for x in run.stdout.splitlines() if x.startswith(f"Best {f'{network} {activation}'.strip()}:"))
    assert f"lr {row['lr']}, epoch {row['epoch']}, weight decay {row['weight_decay']}" in line
    assert f"{float(row['test_mse']):.6f}" in line
    beaten = float(row["test_mse"]) < float(row["mean_color_mse"])
    assert (" beats the mean color" in line, " does NOT beat the mean color" in line) == (beaten, not beaten)


def test_nothing_but_the_progress_bar_is_on_stderr(run: Run) -> None:
    assert "\n" not in run.stderr  # the bar is removed at the end
    assert run.stderr.rpartition("\r")[2].strip() == ""


def test_report_gathers_what_is_finished_without_training(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output = shutil.copytree(run.output, tmp_path / "out")
    expected = (output / "Plots/results.csv").read_text()
    kept = {path: path.read_bytes() for path in (output / "checkpoints").rglob("epoch_*.pt")}
    for path in [path for path in (output / "Plots").rglob("*") if path.suffix in (".csv", ".png")]:
        if not path.name.endswith(("_triplets.png", "_means.csv")):
            path.unlink()
    monkeypatch.chdir(tmp_path)
    assert main.main(["--report", "--output", str(output)]) == 0
    assert (output / "Plots/results.csv").read_text() == expected
    assert len(list((output / "Plots").rglob("*_loss.png"))) == 6
    assert (output / "Plots/summary.png").stat().st_size > 0
    assert {path: path.read_bytes() for path in (output / "checkpoints").rglob("epoch_*.pt")} == kept
    ending = run.stdout[run.stdout.index("Mean color of each test image") :]
    assert capsys.readouterr().out.endswith(ending)
    assert not (tmp_path / "data").exists()
