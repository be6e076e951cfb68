"""--study-feature-maps compares 3 to 9 feature maps over several seeds; --seeds is an axis of any sweep."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import SHORT
from PIL import Image

import Constants
import main
from deepcolor.training.checkpoint import load_model

RUN = "epoch_1_lr_0.001_weight_decay_0"


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_study_aggregates_each_number_of_maps_over_its_seeds(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(Constants, "STUDY_FEATURE_MAPS", [3, 5])
    places = ["--images", str(photos), "--output", str(tmp_path)]
    command = [*places, *SHORT, *"--study-feature-maps --seeds 4 5".split()]
    assert main.main(command) == 0
    printed = capsys.readouterr().out
    rows = read_csv(tmp_path / "Plots/feature_maps.csv")
    assert [(row["feature_maps"], row["seeds"]) for row in rows] == [("3", "2"), ("5", "2")]
    val_mse = {}
    for row in rows:
        maps = row["feature_maps"]
        paths = [tmp_path / f"checkpoints/regressor/{RUN}_feature_maps_{maps}_seed_{seed}.pt" for seed in (4, 5)]
        metrics = [load_model(path)["metrics"] for path in paths]
        mse = [each["test_mse"] for each in metrics]
        found = [float(row[f"test_mse_{name}"]) for name in ("mean", "min", "max", "deviation")]
        assert found == pytest.approx([np.mean(mse), min(mse), max(mse), np.std(mse, ddof=1)])
        val_mse[maps] = np.mean([each["val_mse"] for each in metrics])
    assert f"Best regressor: {min(val_mse, key=val_mse.get)} maps" in printed
    report = "The report's best: 3 maps, with a Regressor mse of 0.000263 on its own test images. "
    ours = f"The Regressor with 3 maps has {float(rows[0]['test_mse_mean']):.6f} here"
    assert f"{report}{ours}, and the mean color {float(rows[0]['mean_color_mse']):.6f}." in printed
    for name in ("feature_maps", "summary"):
        with Image.open(tmp_path / f"Plots/{name}.png") as image:
            assert min(image.size) > 400
    # --report writes the same again from the checkpoints.
    (tmp_path / "Plots/feature_maps.csv").unlink()
    assert main.main([*command, "--report"]) == 0
    assert read_csv(tmp_path / "Plots/feature_maps.csv") == rows


def test_plan_of_the_study(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["--study-feature-maps", "--network", "colorizer", "--activation", "tanh", "--plan"]) == 0
    *lines, totals = capsys.readouterr().out.splitlines()
    assert totals.startswith("21 combinations in 21 training runs: 2100 epochs")
    name = "epoch_100_lr_0.001_weight_decay_0_feature_maps_{}_seed_{}"
    expected = [name.format(maps, seed) for maps in range(3, 10) for seed in range(3)]
    assert sorted(line.strip() for line in lines if "epoch_100" in line) == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epoch", "1", "2"], "one epoch"),
        (["--lr", "0.1", "0.2"], "one lr"),
        (["--feature-maps", "4"], "leave --feature-maps out"),
        (["--feature-maps", "4", "5"], "leave --feature-maps out"),
        ([*SHORT, "--report"], "no model of the study"),
    ],
)
def test_study_errors(fails: Callable[..., str], earlier: Path, flags: list[str], words: str) -> None:
    assert words in fails("--output", earlier, "--study-feature-maps", *flags)


def test_seeds_are_an_axis_of_any_sweep(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main.main(["--images", str(photos), "--output", str(tmp_path), *SHORT, "--seeds", "0", "8"]) == 0
    rows = read_csv(tmp_path / "Plots/results.csv")
    assert [row["seed"] for row in rows] == ["0", "8"]
    assert rows[0]["test_mse"] != rows[1]["test_mse"]
    assert "seed" in capsys.readouterr().out
