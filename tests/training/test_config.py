"""The plan of the sweep against the plain product, and the places where it is changed."""

import csv
import shutil
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from helpers import SHORT, TASKS, copy_program

import main
from deepcolor.training.config import TrainingRun, expand_grid
from utils import Grid, Utils

TABLE_1 = [[0.001, 0.0001, 0.1], [100, 200, 300], [0, 1e-5, 1e-6]]
BOTH = ["regressor", "colorizer"], ["sigmoid", "tanh"]
ONE = ["--epoch", "5", "--lr", "0.1", "--weight-decay", "0"]


def combinations(training_runs: list[TrainingRun]) -> Counter:
    return Counter(
        (run.network, run.activation, run.config.lr, epoch, run.config.weight_decay)
        for run in training_runs
        for epoch in run.snapshot_epochs
    )


def change_grid(monkeypatch: pytest.MonkeyPatch, **axes: list) -> None:
    """Changes the dictionary in Utils.get_hyperparameters()."""
    grid = Utils.get_hyperparameters().replaced(axes)
    monkeypatch.setattr(Utils, "get_hyperparameters", staticmethod(lambda: grid))


def print_plan(capsys: pytest.CaptureFixture, *flags: str) -> list[str]:
    """Returns the lines of --plan."""
    assert main.main(["--plan", "--device", "cpu", *flags]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def run_names(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip().startswith("epoch_")]


def test_the_plan_is_the_product_and_each_training_run_has_all_its_epochs() -> None:
    grid = Utils.get_hyperparameters()
    assert isinstance(grid, list)
    assert grid == TABLE_1
    training_runs = expand_grid(grid, {}, *BOTH)
    assert combinations(training_runs) == Counter((*task, *values) for task in TASKS for values in product(*TABLE_1))
    keys = [(run.network, run.activation, run.config.lr, run.config.weight_decay) for run in training_runs]
    assert Counter(keys) == Counter((*task, lr, decay) for task in TASKS for lr, decay in product(*TABLE_1[::2]))
    assert {run.snapshot_epochs for run in training_runs} == {(100, 200, 300)}


def test_a_value_that_is_given_twice_is_trained_once() -> None:
    grid = Grid({"lr": [0.1, 0.1], "epoch": [2, 1, 2], "weight_decay": [0, 0.0]})
    training_runs = expand_grid(grid, {}, BOTH[0], ["tanh"])
    found = [(run.network, run.activation, run.snapshot_epochs) for run in training_runs]
    assert found == [("regressor", "", (1, 2)), ("colorizer", "tanh", (1, 2))]


def test_a_cosine_schedule_makes_every_combination_a_training_run() -> None:
    training_runs = expand_grid(Utils.get_hyperparameters(), {"schedule": "cosine"}, *BOTH)
    assert all(len(run.snapshot_epochs) == 1 for run in training_runs)
    assert combinations(training_runs) == combinations(expand_grid(Utils.get_hyperparameters(), {}, *BOTH))
    assert len({(run.task, run.name) for run in training_runs}) == 81


def test_the_plan_names_every_run_by_what_is_swept(capsys: pytest.CaptureFixture) -> None:
    lines = print_plan(capsys)
    assert lines[-1] == "81 combinations in 27 training runs: 8100 epochs instead of 16200"
    forms = product(("100", "200", "300"), ("0.001", "0.0001", "0.1"), ("0", "1e-05", "1e-06"))
    expected = [f"epoch_{epoch}_lr_{lr}_weight_decay_{decay}" for epoch, lr, decay in forms]
    assert Counter(run_names(lines)) == Counter(expected * 3)
    flags = ["--optimizer", "adam", "sgd", "--dropout", "0", "0.1", "--copies", "3"]
    names = run_names(print_plan(capsys, *ONE, *flags, "--network", "regressor"))
    name = "epoch_5_lr_0.1_weight_decay_0_optimizer_{}_dropout_{}"
    assert names == [name.format(*values) for values in product(("adam", "sgd"), ("0", "0.1"))]


def test_a_new_key_is_swept_and_a_flag_replaces_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    change_grid(monkeypatch, feature_maps=[3, "deep", (1, 2, 3, 4, 5, 6)], augment_repeats=[2])
    widths = ("3", "deep", "1,2,3,4,5,6")
    expected = [f"epoch_5_lr_0.1_weight_decay_0_feature_maps_{maps}_augment_repeats_2" for maps in widths]
    assert Counter(run_names(print_plan(capsys, *ONE))) == Counter(expected * 3)
    names = run_names(print_plan(capsys, *ONE, "--feature-maps", "8"))
    assert set(names) == {"epoch_5_lr_0.1_weight_decay_0_feature_maps_8_augment_repeats_2"}


def test_the_recipe_is_replaced_by_flags(capsys: pytest.CaptureFixture) -> None:
    best = run_names(print_plan(capsys, "--recipe", "best", "--network", "colorizer", "--activation", "tanh"))
    assert len(best) == 1
    flags = ["--network", "regressor", "--epoch", "7", "9", "--lr", "0.5"]
    chosen = run_names(print_plan(capsys, "--recipe", "best", *flags))
    assert [name.split("_weight")[0] for name in chosen] == ["epoch_7_lr_0.5", "epoch_9_lr_0.5"]


KNOWN = ("lr", "epoch", "weight_decay", "batch_size", "feature_maps", "dropout")


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"momentum": [0.9]}, ("momentum", *KNOWN)),
        ({"Batch_size": [8]}, ("Batch_size", *KNOWN)),
        ({"batch_size": []}, ("batch_size",)),
        ({"batch_size": [0]}, ("batch_size", "0")),
        ({"batch_size": ["many"]}, ("batch_size", "many")),
        ({"epoch": [1.5]}, ("epoch", "1.5")),
        ({"epoch": []}, ("epoch",)),
        ({"lr": ["fast"]}, ("lr", "fast")),
        ({"lr": [None]}, ("lr",)),
        ({"feature_maps": ["broad"]}, ("broad",)),
        ({"feature_maps": [[3, 4]]}, ("feature_maps",)),
        ({"schedule": ["linear"]}, ("schedule", "linear")),
        ({"optimizer": ["lion"]}, ("optimizer", "adamw")),
        ({"dropout": [1]}, ("dropout", "1")),
    ],
    ids=str,
)
def test_an_impossible_grid_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, axes: dict[str, list], words: tuple[str, ...]
) -> None:
    change_grid(monkeypatch, **axes)
    assert main.main(["--plan"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in words)


# --- A new hyperparameter --------------------------------------------------------------------------

NEW_FIELD = '    gain: float = hyperparameter(1.0, POSITIVE, "of something")\n'
DRIVER = """
import main
flags = {flags!r}
assert main.main([*flags]) == 0  # what was trained before
print("---")
assert main.main([*flags, "--gain", "2", "3"]) == 0
print("---")
assert main.main([*flags, "--gain", "2", "3", "--epoch", "2"]) == 0
assert main.main(["--plan", "--gain", "0"]) == 2
"""


def test_a_new_field_of_train_config_needs_nothing_else(photos: Path, earlier: Path, tmp_path: Path) -> None:
    """In a copy of the project: the flag, the column, the name and resuming follow. Finished models stay finished."""
    copy_program(tmp_path)
    output = shutil.copytree(earlier, tmp_path / "out")
    config = tmp_path / "deepcolor/training/config.py"
    before = "    seed: int = hyperparameter("
    assert config.read_text().count(before) == 1
    config.write_text(config.read_text().replace(before, NEW_FIELD + before))
    flags = ["--images", str(photos), "--output", str(output), *SHORT, "--jobs", "1"]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.format(flags=flags)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [part.count(": val mse") for part in done.stdout.split("---")] == [0, 2, 2]
    assert "from the beginning, changed" not in done.stdout
    assert "main.py: gain must be a number above 0" in done.stderr
    with open(output / "Plots/results.csv", newline="") as file:
        rows = [(row["epoch"], row["gain"], Path(row["checkpoint"]).stem) for row in csv.DictReader(file)]
    name = "epoch_{}_lr_0.001_weight_decay_0"
    swept = [(epoch, gain, f"{name.format(epoch)}_gain_{gain}") for epoch, gain in product("12", "23")]
    assert sorted(rows) == sorted([("1", "1", name.format(1)), *swept])
