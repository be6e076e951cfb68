"""--study-feature-maps: 3 to 9 maps over some seeds, its table, its picture, and its answer; --seeds for any sweep."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import SHORT
from PIL import Image

import Constants
import main
from deepcolor.training import checkpoint

FLAGS = [*SHORT, "--study-feature-maps"]


@pytest.fixture
def two_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Constants, "STUDY_FEATURE_MAPS", [3, 5])


@pytest.mark.usefixtures("two_widths")
def test_the_study_gathers_each_number_of_maps_over_its_seeds(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["--images", str(photos), "--output", str(tmp_path), *FLAGS, "--seeds", "4", "5", "6"]
    assert main.main(command) == 0
    said = capsys.readouterr().out
    with open(tmp_path / "Plots/feature_maps.csv", newline="") as file:
        rows = {int(row["feature_maps"]): row for row in csv.DictReader(file)}
    assert list(rows) == [3, 5]
    means = {}
    for maps, row in rows.items():
        paths = [
            tmp_path / f"checkpoints/regressor/epoch_1_lr_0.001_weight_decay_0_feature_maps_{maps}_seed_{seed}.pt"
            for seed in (4, 5, 6)
        ]
        metrics = [checkpoint.load_model(path)["metrics"] for path in paths]
        mse = [each["test_mse"] for each in metrics]
        found = [float(row[f"test_mse_{what}"]) for what in ("mean", "min", "max", "deviation")]
        assert found == pytest.approx([np.mean(mse), min(mse), max(mse), np.std(mse, ddof=1)])
        assert row["seeds"] == "3"
        means[maps] = np.mean([each["val_mse"] for each in metrics])
    assert f"Best regressor: {min(means, key=means.get)} maps" in said
    assert "report found 3 maps, mse 0.000263" in said
    with Image.open(tmp_path / "Plots/feature_maps.png") as picture:
        assert min(picture.size) > 400
    # Again, from what is there.
    (tmp_path / "Plots/feature_maps.csv").unlink()
    assert main.main([*command, "--report"]) == 0
    assert (tmp_path / "Plots/feature_maps.csv").exists()


def test_the_plan_of_the_study(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["--study-feature-maps", "--network", "colorizer", "--activation", "tanh", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("21 combinations in 21 training runs: 2100 epochs")
    for maps in range(3, 10):
        for seed in (0, 1, 2):
            name = f"epoch_100_lr_0.001_weight_decay_0_feature_maps_{maps}_seed_{seed}"
            assert sum(line.strip() == name for line in lines) == 1


@pytest.mark.parametrize(
    "flags", [["--epoch", "1", "2"], ["--lr", "0.1", "0.2"], ["--feature-maps", "4"]], ids=lambda flags: flags[0]
)
def test_what_the_study_cannot_combine(fails: Callable[..., str], flags: list[str]) -> None:
    assert "--study-feature-maps" in fails("--study-feature-maps", *flags)


def test_a_report_on_a_study_that_was_not_run(fails: Callable[..., str], earlier: Path) -> None:
    assert "nothing of the study" in fails("--output", earlier, "--report", *FLAGS)


def test_seeds_are_an_axis_of_any_sweep(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main.main(["--images", str(photos), "--output", str(tmp_path), *SHORT, "--seeds", "0", "8"]) == 0
    with open(tmp_path / "Plots/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "8"]
    assert rows[0]["test_mse"] != rows[1]["test_mse"]
    assert "seed" in capsys.readouterr().out
