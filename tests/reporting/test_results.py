"""Rows and tables of results."""

import csv
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, write

import Constants
import main
from deepcolor.reporting import results
from deepcolor.training import config


def model(val_mse: float = 0.01, status: str = "done", swept: tuple[str, ...] = (), **hyperparameters: object) -> dict:
    """Returns what `find_models` gives for a regressor, as an older version wrote it: without some hyperparameters."""
    scores = dict.fromkeys(("train_mse", "test_mse", "gray_mse", "mean_color_mse"), 0.02)
    hyperparameters = {"lr": 0.1, "epoch": 1, "weight_decay": 0, "seed": 0, **hyperparameters}
    return {
        "network": "regressor",
        "activation": "",
        "feature_maps": 3,
        "seed": hyperparameters["seed"],
        "hyperparameters": hyperparameters,
        "swept": list(swept),
        "metrics": {"status": status, "val_mse": val_mse, "diverged_epoch": 1, **scores},
    }


def test_further_hyperparameters_have_a_column_if_swept_or_different() -> None:
    rows = results.to_rows([model(batch_size=32), model(batch_size=4, swept=["dropout"]), model()])
    columns = list(results.to_rows([model()])[0])
    position = columns.index("seed")
    assert list(rows[0]) == [*columns[:position], "dropout", "batch_size", *columns[position:]]
    # In numeric order; a model that does not know a hyperparameter has the default.
    assert [row["batch_size"] for row in rows] == [4, Constants.BATCH_SIZE, 32]
    assert {row["dropout"] for row in rows} == {config.default_of("dropout")}


def test_only_finite_errors_are_ranked() -> None:
    errors = [float("nan"), 0.3, 0.1, float("inf"), 0.2]
    rows = results.to_rows([*(model(error, lr=0.1 + error) for error in errors), model(0.0, status="diverged")])
    assert [row["val_mse"] for row in results.ranked(rows)] == [0.1, 0.2, 0.3]
    assert results.best_of_each(rows)["regressor", ""]["val_mse"] == 0.1
    table = results._table(rows)
    assert [line.split()[0] for line in table[1:]] == [f"{rank}." for rank in range(1, 7)]
    assert sum("diverged at epoch 1" in line for line in table[4:]) == 1


def test_a_model_that_does_not_beat_the_mean_color_is_reported_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in range(9):  # all of them orange: the mean color is hard to beat without learning
        subset = ("train", "val", "test")[number % 3]
        write(tmp_path / f"images/{subset}/{number}.png", picture(number) // 8 + np.uint8([200, 120, 20]))
    flags = "--network regressor --lr 1e-9 --epoch 1 --weight-decay 0 --device cpu".split()
    assert main.main(["--images", str(tmp_path / "images"), "--output", str(tmp_path), *flags]) == 0
    with open(tmp_path / "Plots/results.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["test_mse"]) > float(row["mean_color_mse"])
    assert "does NOT beat the mean color" in capsys.readouterr().out
