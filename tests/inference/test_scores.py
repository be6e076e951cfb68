"""colorize.py --score: the scores of one's own photographs."""

import csv
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import oracles
import pytest
import torch
from helpers import TEST_PHOTOS, photo, picture, write
from PIL import Image

import Constants
from colorize import load
from deepcolor.data.image_io import Photo
from deepcolor.inference import scores
from deepcolor.inference.scores import SIDE, score_photo, table_lines, to_table

Run = Callable[..., object]
SAME = ("psnr", "ssim", "delta_e", "colorfulness", "colorfulness_true", "gray_mse", "mean_color_mse")


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def album(photos: Path, tmp_path: Path) -> Path:
    """The test photographs of the sweep, as the networks saw them: 128x128 pixels."""
    for name in TEST_PHOTOS:
        write(tmp_path / "album" / f"{Path(name).stem}.png", photo(photos / "test" / name))
    return tmp_path / "album"


@pytest.mark.parametrize("activation", Constants.ACTIVATIONS)
def test_the_scores_are_those_of_results_csv(
    run_colorize: Run, sweep: Path, album: Path, tmp_path: Path, activation: str
) -> None:
    """Up to the rounding of stored Lab to 1/256."""
    results = read(sweep / "Plots/results.csv")
    (row,) = (row for row in results if row["activation"] == activation and row["epoch"] == "3")
    result = run_colorize(album, "--score", "--output", tmp_path / "out", "--checkpoint", sweep / row["checkpoint"])
    assert (result.code, result.lines) == (0, [])
    table = read(tmp_path / "out/scores.csv")
    assert list(table[0])[:2] == ["photograph", "mse"]
    assert [Path(row["photograph"]).stem for row in table] == ["cliff", "dune", "elm", "fern", "mean"]
    for column in table[0].keys() - {"photograph"}:
        assert float(table[-1][column]) == pytest.approx(np.mean([float(row[column]) for row in table[:-1]]))
    assert float(table[-1]["mse"]) == pytest.approx(float(row["test_mse"]), rel=1e-4)
    for column in SAME:
        assert float(table[-1][column]) == pytest.approx(float(row[column]), rel=1e-3), column
    assert f"{float(row['test_mse']):.6f}" in result.out.splitlines()[-2]
    assert "scored 4 of 4" in result.out
    assert list(album.glob("*_color.png")) == []


def test_the_scores_are_those_of_the_written_picture(run_colorize: Run, tmp_path: Path) -> None:
    original = picture(3, 90, 150)
    write(tmp_path / "wide.png", original)
    assert run_colorize(tmp_path / "wide.png", "--output", tmp_path / "out", "--saturation", "1").code == 0
    assert run_colorize(tmp_path / "wide.png", "--output", tmp_path / "out", "--score").code == 0
    colored = np.asarray(Image.open(tmp_path / "out/wide_color.png"))
    row = read(tmp_path / "out/scores.csv")[0]
    assert float(row["psnr"]) == pytest.approx(oracles.psnr(original, colored))
    assert float(row["ssim"]) == pytest.approx(oracles.ssim(original, colored))
    assert float(row["colorfulness"]) == pytest.approx(oracles.colorfulness(colored))
    difference = oracles.colorfulness(colored, absolute=True) - oracles.colorfulness(original, absolute=True)
    assert float(row["delta_colorfulness"]) == pytest.approx(difference)


def test_scores_with_a_saturation(run_colorize: Run, tmp_path: Path) -> None:
    """By default those of factor 1. `auto` can be asked for."""
    path = write(tmp_path / "it.png", picture(3, 40, 60))
    model = load(Constants.PRETRAINED)
    photo = Photo(Image.open(path), None)
    assert model.saturation > 1.2
    for flags, factor in (([], 1.0), (["--saturation", "auto"], model.saturation), (["--saturation", "0"], 0.0)):
        command = [path, "--score", "--output", tmp_path, "--checkpoint", Constants.PRETRAINED, *flags]
        assert run_colorize(*command).code == 0
        expected = score_photo(model, photo, saturation=factor)["mse"]
        assert float(read(tmp_path / "scores.csv")[0]["mse"]) == pytest.approx(expected, rel=1e-4)


class Constant:
    """Predicts one color."""

    margin, side = 0, 128
    saturation = 1.0

    def __init__(self, *ab: float) -> None:
        self.ab = np.array(ab, np.float32)

    def predict(self, lightness: np.ndarray) -> np.ndarray:
        return np.tile(self.ab[:, None, None], (1, *lightness.shape))


def test_errors_are_those_of_the_prediction_without_desaturation() -> None:
    rgb = picture(4, 60, 200)
    lab = oracles.lab(rgb)
    scores = score_photo(Constant(90, -100), Photo(Image.fromarray(rgb), None))
    assert scores["mse"] == pytest.approx(np.square(lab[..., 1:] - [90, -100]).mean() / 255**2, rel=1e-5)
    assert scores["gray_mse"] == pytest.approx(np.square(lab[..., 1:]).mean() / 255**2, rel=1e-5)
    half = score_photo(Constant(90, -100), Photo(Image.fromarray(rgb), None), saturation=0.5)
    assert half["mse"] == pytest.approx(np.square(lab[..., 1:] - [45, -50]).mean() / 255**2, rel=1e-5)


def test_the_mean_color_is_that_of_the_scored_photographs_if_no_other_is_known() -> None:
    pictures = [picture(seed, 40, 40) for seed in (5, 6)]
    rows = [{"photograph": "x", **score_photo(Constant(0, 0), Photo(Image.fromarray(rgb), None))} for rgb in pictures]
    ab = np.stack([oracles.lab(rgb)[..., 1:] for rgb in pictures])
    for mean_ab, guess in ((None, ab.mean(axis=(0, 1, 2))), ((3.0, -7.0), [3, -7])):
        table = to_table(rows, mean_ab)
        assert table[-1]["mean_color_mse"] == pytest.approx(np.square(ab - guess).mean() / 255**2, rel=1e-5)
        assert len({len(line) for line in table_lines(table)}) == 1


def test_a_large_photograph_is_scored_at_a_smaller_size() -> None:
    large = Image.fromarray(picture(7, 100, 150)).resize((2 * SIDE, SIDE))
    small = large.resize((SIDE, SIDE // 2), Image.Resampling.BICUBIC, reducing_gap=2.0)
    scores = [score_photo(Constant(5, 5), Photo(image, None))["mse"] for image in (large, small)]
    assert scores[0] == pytest.approx(scores[1])


def test_what_cannot_be_scored_is_named_and_the_others_are_scored(
    run_colorize: Run, album: Path, tmp_path: Path
) -> None:
    write(album / "dot.png", picture(1, 1, 1))
    (album / "text.png").write_text("not a picture")
    result = run_colorize(album, "--score", "--output", tmp_path / "out")
    assert result.code == 1
    assert len(result.lines) == 2
    assert any("dot.png" in line and "too small" in line for line in result.lines)
    assert any("text.png" in line and "not an image" in line for line in result.lines)
    assert len(read(tmp_path / "out/scores.csv")) == 5
    assert run_colorize(album / "dot.png", "--score", "--output", tmp_path / "none").code == 2
    assert not (tmp_path / "none/scores.csv").exists()


def test_lpips_is_a_column_if_its_package_and_weights_are_here(
    run_colorize: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a package that returns the mean difference of what it is given, instead of the real one."""

    class Difference:
        def __init__(self, **options: object) -> None:
            assert options == {"net": "alex", "verbose": False}

        def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            assert first.shape == second.shape == (1, 3, 90, 150)
            assert min(first.min(), second.min()) >= -1 and max(first.max(), second.max()) <= 1
            return (first - second).abs().mean()

    original = picture(3, 90, 150)
    photo = write(tmp_path / "wide.png", original)
    package = ModuleType("lpips")
    package.LPIPS, package.__spec__ = Difference, ModuleSpec("lpips", None)
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert run_colorize(photo, "--output", tmp_path, "--saturation", "1").code == 0
    for has_weights in (False, True):
        if has_weights:
            (tmp_path / "checkpoints").mkdir()
            (tmp_path / "checkpoints/alexnet-owt-7be5be79.pth").touch()
        scores._lpips_model.cache_clear()
        assert run_colorize(photo, "--score", "--output", tmp_path).code == 0
        row = read(tmp_path / "scores.csv")[0]
        assert ("lpips" in row) == has_weights
    scores._lpips_model.cache_clear()
    colored = np.asarray(Image.open(tmp_path / "wide_color.png")).astype(float)
    assert float(row["lpips"]) == pytest.approx(np.abs(colored - original).mean() / 127.5, rel=1e-4)
