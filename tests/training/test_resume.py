"""However a training was divided, interrupted or damaged, it comes to the same result."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TASK_NAMES, TASKS, Silent, files_below, manager, plain, read_checkpoint, train

import main
from deepcolor.data.dataset import LabDataModule
from deepcolor.training.trainer import Interrupted

FLAGS = "--device cpu --lr 0.001 --weight-decay 0 --activation sigmoid".split()


@pytest.fixture
def sweep(photos: Path, tmp_path: Path) -> Callable[..., int]:
    """The command line in this process, on the made photographs."""
    return lambda *flags, output="out": main.main(
        ["--images", str(photos), "--output", str(tmp_path / output), *FLAGS, *flags]
    )


def interrupt(
    task: tuple[str, str], data: LabDataModule, output: Path, at: float, *snapshot_epochs: int, **settings: int
) -> None:
    """Trains until so many epochs have passed; then SIGINT asks for a stop."""
    progress = Silent(stop_after=at, signal=signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        manager(task, data, output, snapshot_epochs, progress, **settings).train()
    assert caught.value.signal == signal.SIGINT


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_an_interrupted_run_comes_to_the_undisturbed_result_bit_for_bit(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path
) -> None:
    whole = train(task, data, tmp_path / "whole", 2, 4, batch_size=4, augment_repeats=2)  # 9 steps an epoch
    for at in (0.3, 1.5, 2.0, 2.6):
        interrupt(task, data, tmp_path / "parts", at, 2, 4, batch_size=4, augment_repeats=2)
    progress = Silent()
    manager(task, data, tmp_path / "parts", (2, 4), progress, batch_size=4, augment_repeats=2).train()
    assert sum(progress.advances) == pytest.approx(4)
    assert progress.advances[0] > 2.5  # gone on from where it was, not begun again
    parts = [read_checkpoint(tmp_path / "parts", task, epoch) for epoch in (2, 4)]
    assert plain(parts) == plain(whole)


def test_a_cosine_run_with_warm_up_is_resumed_bit_for_bit(data: LabDataModule, tmp_path: Path) -> None:
    settings = {"schedule": "cosine", "warmup_steps": 5, "batch_size": 4}
    (whole,) = train(TASKS[2], data, tmp_path / "whole", 3, **settings)
    interrupt(TASKS[2], data, tmp_path / "parts", 0.5, 3, **settings)
    interrupt(TASKS[2], data, tmp_path / "parts", 1.7, 3, **settings)
    (parts,) = train(TASKS[2], data, tmp_path / "parts", 3, **settings)
    assert plain(parts) == plain(whole)


def test_more_epochs_go_on_from_the_finished_model(data: LabDataModule, tmp_path: Path) -> None:
    train(TASKS[1], data, tmp_path / "parts", 1)
    before = files_below(tmp_path / "parts/checkpoints/colorizer_sigmoid")
    progress = Silent()
    parts = train(TASKS[1], data, tmp_path / "parts", 1, 3, progress=progress)
    assert progress.advances[0] == pytest.approx(1)
    after = files_below(tmp_path / "parts/checkpoints/colorizer_sigmoid")
    assert all(after[path] == before[path] for path in before if Path(path).name.startswith("epoch_1_"))
    assert plain(parts) == plain(train(TASKS[1], data, tmp_path / "whole", 1, 3))


def test_fewer_epochs_after_more_are_trained_as_ever(data: LabDataModule, tmp_path: Path) -> None:
    train(TASKS[1], data, tmp_path / "both", 3)
    assert plain(train(TASKS[1], data, tmp_path / "both", 1, 3)) == plain(train(TASKS[1], data, tmp_path / "one", 1, 3))


def test_a_finished_run_is_not_repeated(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert sweep("--epoch", "1", "2") == 0
    first = files_below(tmp_path / "out/checkpoints")
    results = (tmp_path / "out/Plots/results.csv").read_text()
    table = capsys.readouterr().out.split("\n\n", 1)[1]
    assert sweep("--epoch", "1", "2") == 0
    assert files_below(tmp_path / "out/checkpoints") == first
    assert (tmp_path / "out/Plots/results.csv").read_text() == results
    assert capsys.readouterr().out.split("\n\n", 1)[1] == table


def test_restart_ignores_what_an_earlier_run_left(sweep: Callable[..., int], tmp_path: Path) -> None:
    assert sweep("--epoch", "2", "--network", "regressor") == 0
    first = read_checkpoint(tmp_path / "out", TASKS[0], 2)
    assert sweep("--epoch", "2", "--network", "regressor", "--restart") == 0
    again = read_checkpoint(tmp_path / "out", TASKS[0], 2)
    assert first["metrics"]["seconds"] != again["metrics"]["seconds"]
    assert plain(first) == plain(again)


@pytest.mark.parametrize(("flag", "value"), [("--batch-size", "8"), ("--feature-maps", "4"), ("--seed", "9")])
def test_changed_settings_start_anew_and_say_so(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture, flag: str, value: str
) -> None:
    assert sweep("--epoch", "1", "2", "--network", "regressor") == 0
    assert sweep("--epoch", "1", "2", "--network", "regressor", flag, value, output="fresh") == 0
    capsys.readouterr()
    assert sweep("--epoch", "1", "2", "--network", "regressor", flag, value) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "anew" in line]
    assert len(said) == 1
    assert flag[2:].replace("-", "_") in said[0]
    for epoch in (1, 2):
        models = [read_checkpoint(tmp_path / output, TASKS[0], epoch) for output in ("out", "fresh")]
        assert plain(models[0]) == plain(models[1])


def test_other_images_start_anew(data: LabDataModule, photos: Path, tmp_path: Path) -> None:
    (first,) = train(TASKS[0], data, tmp_path, 2)
    other = LabDataModule.load(photos / "train", tmp_path)
    progress = Silent()
    (second,) = train(TASKS[0], other, tmp_path, 2, progress=progress)
    assert plain(first["model"]) != plain(second["model"])
    assert any("images" in line for line in progress.said)


@pytest.mark.parametrize("keep", [0, 0.5])
def test_damaged_checkpoints_are_named_and_made_anew(data: LabDataModule, tmp_path: Path, keep: float) -> None:
    whole = train(TASKS[1], data, tmp_path / "whole", 1, 2)
    train(TASKS[1], data, tmp_path / "parts", 1)
    interrupt(TASKS[1], data, tmp_path / "parts", 1.5, 1, 2, batch_size=16)
    damaged = list((tmp_path / "parts").rglob("*.pt"))
    assert len(damaged) >= 2
    for path in damaged:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    progress = Silent()
    parts = train(TASKS[1], data, tmp_path / "parts", 1, 2, progress=progress)
    assert plain(parts) == plain(whole)
    assert any("damaged" in line for line in progress.said)


def test_the_regressor_is_trained_once_for_both_activations(sweep: Callable[..., int], tmp_path: Path) -> None:
    assert sweep("--epoch", "1", "--activation", "sigmoid") == 0
    first = files_below(tmp_path / "out/checkpoints/regressor")
    assert sweep("--epoch", "1", "--activation", "tanh") == 0
    assert files_below(tmp_path / "out/checkpoints/regressor") == first
    assert sweep("--epoch", "1", "--activation", "tanh", "--network", "regressor", output="tanh") == 0
    models = [read_checkpoint(tmp_path / output, TASKS[0], 1) for output in ("out", "tanh")]
    assert plain(models[0]) == plain(models[1])
