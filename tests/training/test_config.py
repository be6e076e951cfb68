"""The plan of the sweep against the plain product, and the one place where it is changed."""

import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from helpers import ROOT, TASKS, copy_program

import main
from deepcolor.training.config import TrainingRun, expand_grid
from utils import Grid, Utils

TABLE_1 = [[0.001, 0.0001, 0.1], [100, 200, 300], [0, 1e-5, 1e-6]]
BOTH = ["regressor", "colorizer"], ["sigmoid", "tanh"]


def combinations(training_runs: list[TrainingRun]) -> Counter:
    return Counter(
        (t.network, t.activation, t.config.lr, epoch, t.config.weight_decay)
        for t in training_runs
        for epoch in t.snapshot_epochs
    )


def swept(monkeypatch: pytest.MonkeyPatch, **axes: list) -> None:
    """The hyperparameters as they would be with further keys in the dictionary."""
    grid = Utils.get_hyperparameters().replaced(axes)
    monkeypatch.setattr(Utils, "get_hyperparameters", staticmethod(lambda: grid))


def printed(capsys: pytest.CaptureFixture, *flags: str) -> list[str]:
    """The lines of --plan."""
    assert main.main(["--plan", "--device", "cpu", *flags]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def run_names(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip().startswith("epoch_")]


def test_the_hyperparameters_are_the_list_of_lists_of_table_1() -> None:
    grid = Utils.get_hyperparameters()
    assert isinstance(grid, list)
    assert grid == TABLE_1


def test_the_plan_is_the_product_and_holds_each_combination_once() -> None:
    training_runs = expand_grid(Utils.get_hyperparameters(), {}, *BOTH)
    expected = [(*task, *values) for task in TASKS for values in product(*TABLE_1)]
    assert combinations(training_runs) == Counter(expected)
    assert sum(combinations(training_runs).values()) == 81


def test_combinations_that_differ_only_in_epoch_are_one_trajectory() -> None:
    training_runs = expand_grid(Utils.get_hyperparameters(), {}, *BOTH)
    keys = [(t.network, t.activation, t.config.lr, t.config.weight_decay) for t in training_runs]
    assert Counter(keys) == Counter((*task, lr, decay) for task in TASKS for lr, decay in product(*TABLE_1[::2]))
    assert {t.snapshot_epochs for t in training_runs} == {(100, 200, 300)}


def test_the_regressor_does_not_depend_on_the_activation() -> None:
    for activations in (["sigmoid"], ["tanh"], ["sigmoid", "tanh"]):
        training_runs = expand_grid(Grid({"lr": [0.1], "epoch": [1], "weight_decay": [0]}), {}, *BOTH[:1], activations)
        assert [t.activation for t in training_runs if t.network == "regressor"] == [""]
        assert [t.activation for t in training_runs if t.network == "colorizer"] == activations


def test_a_value_that_stands_twice_is_trained_once() -> None:
    grid = Grid({"lr": [0.1, 0.1], "epoch": [2, 1, 2], "weight_decay": [0, 0.0]})
    training_runs = expand_grid(grid, {}, ["regressor"], [])
    assert [t.snapshot_epochs for t in training_runs] == [(1, 2)]


def test_a_cosine_schedule_makes_every_combination_a_trajectory_of_its_own() -> None:
    training_runs = expand_grid(Utils.get_hyperparameters(), {"schedule": "cosine"}, *BOTH)
    assert len(training_runs) == 81
    assert all(len(t.snapshot_epochs) == 1 for t in training_runs)
    assert combinations(training_runs) == combinations(expand_grid(Utils.get_hyperparameters(), {}, *BOTH))
    assert len({(t.task, t.name) for t in training_runs}) == 81


def test_runs_are_named_by_what_was_swept(capsys: pytest.CaptureFixture) -> None:
    names = run_names(printed(capsys, "--network", "colorizer", "--activation", "tanh"))
    forms = product(("100", "200", "300"), ("0.001", "0.0001", "0.1"), ("0", "1e-05", "1e-06"))
    assert sorted(names) == sorted(f"epoch_{epoch}_lr_{lr}_weight_decay_{decay}" for epoch, lr, decay in forms)


def test_a_new_key_is_swept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    swept(monkeypatch, feature_maps=[3, "deep", (1, 2, 3, 4, 5, 6)], augment_repeats=[2])
    names = run_names(printed(capsys, "--epoch", "5", "--lr", "0.1", "--weight-decay", "0"))
    widths = ("3", "deep", "1,2,3,4,5,6")
    expected = [f"epoch_5_lr_0.1_weight_decay_0_feature_maps_{maps}_copies_2" for maps in widths]
    assert Counter(names) == Counter(expected * 3)


def test_a_flag_outdoes_the_dictionary(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    swept(monkeypatch, batch_size=[16, 32])
    names = run_names(printed(capsys, "--batch-size", "8", "--epoch", "5", "--lr", "0.1", "--weight-decay", "0"))
    assert set(names) == {"epoch_5_lr_0.1_weight_decay_0_batch_size_8"}


@pytest.mark.parametrize("key", ["momentum", "Batch_size"])
def test_an_unknown_key_is_one_line_that_lists_the_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, key: str
) -> None:
    swept(monkeypatch, **{key: [0.9]})
    assert main.main(["--plan"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in (key, "lr", "epoch", "weight_decay", "batch_size", "feature_maps"))


@pytest.mark.parametrize(
    ("axes", "word"),
    [
        ({"batch_size": []}, "batch_size"),
        ({"batch_size": [0]}, "batch_size"),
        ({"batch_size": ["many"]}, "batch_size"),
        ({"epoch": [1.5]}, "epoch"),
        ({"epoch": []}, "epoch"),
        ({"lr": ["fast"]}, ""),
        ({"lr": [None]}, ""),
        ({"feature_maps": ["broad"]}, "broad"),
        ({"feature_maps": [[3, 4]]}, ""),
        ({"schedule": ["linear"]}, "schedule"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, axes: dict[str, list], word: str
) -> None:
    swept(monkeypatch, **axes)
    assert main.main(["--plan"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert word in error


def test_the_best_recipe_can_be_outdone_by_flags(capsys: pytest.CaptureFixture) -> None:
    best = run_names(printed(capsys, "--recipe", "best", "--network", "colorizer", "--activation", "tanh"))
    assert len(best) == 1
    chosen = run_names(
        printed(capsys, "--recipe", "best", "--network", "regressor", "--epoch", "7", "9", "--lr", "0.5")
    )
    assert [name.split("_weight")[0] for name in chosen] == ["epoch_7_lr_0.5", "epoch_9_lr_0.5"]


def test_the_plan_says_how_many_epochs_the_trajectories_save(capsys: pytest.CaptureFixture) -> None:
    lines = printed(capsys)
    assert len(run_names(lines)) == 81
    assert lines[-1] == "81 combinations in 27 training runs: 8100 epochs instead of 16200"


def test_a_key_in_the_dictionary_is_swept_without_touching_another_line(
    tmp_path: Path, run_main: Callable[..., subprocess.CompletedProcess]
) -> None:
    copy_program(tmp_path)
    source = (tmp_path / "utils.py").read_text()
    changed = source.replace("            dict(\n", "            dict(\n                batch_size=[16, 32],\n", 1)
    assert changed.count("batch_size=[16, 32],") == source.count("batch_size=[16, 32],") + 1
    (tmp_path / "utils.py").write_text(changed)
    done = run_main("--plan", cwd=tmp_path, program=tmp_path / "main.py")
    assert done.returncode == 0, done.stderr
    names = run_names(done.stdout.splitlines())
    assert len(names) == 162
    assert len(set(names)) == 54
    assert sum(name.endswith("_batch_size_16") for name in names) == 81
    assert "162 combinations in 54 training runs" in done.stdout
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [".py"] * len(
        list(ROOT.glob("*.py"))
    )
