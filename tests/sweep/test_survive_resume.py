"""What a second run may use of the first: everything of the very same training, and nothing of another."""

import csv
import math
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TASKS, Silent, manager, picture, plain, read_checkpoint, train, write
from survival import kept, losses

import Constants
import main
from deepcolor.data.dataset import LabDataModule
from deepcolor.training.trainer import Interrupted, Trainer

FLAGS = "--device cpu --activation sigmoid --lr 0.003 --weight-decay 0 --jobs 1".split()


@pytest.fixture
def sweep(photos: Path, tmp_path: Path) -> Callable[..., int]:
    """The command line in this process, on the made photographs."""

    def run(*flags: str, output: str = "out", images: Path = photos) -> int:
        return main.main(["--images", str(images), "--output", str(tmp_path / output), *FLAGS, *flags])

    return run


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every epoch that is trained: (task, number)."""
    seen: list[tuple[str, int]] = []
    original = Trainer.train_epoch

    def counted(trainer: Trainer) -> None:
        seen.append((trainer.training_run.task, trainer.epoch + 1))
        original(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", counted)
    return seen


def interrupt(
    task: tuple[str, str], data: LabDataModule, output: Path, at: float, *snapshot_epochs: int, **settings: int
) -> None:
    with pytest.raises(Interrupted):
        manager(task, data, output, snapshot_epochs, Silent(stop_after=at, signal=signal.SIGTERM), **settings).train()


class Killed(BaseException):
    """As SIGKILL is: nobody gets to save anything."""


class Killer(Silent):
    """Kills the training after some epochs."""

    def advance(self, epochs: float, status: str) -> None:
        super().advance(epochs, status)
        if sum(self.advances) > 2.5:
            raise Killed


@pytest.mark.parametrize(("seconds", "begins"), [(0, 2.4), (1000, 0.2)], ids=["every step", "never"])
def test_what_is_lost_is_no_more_than_was_trained_since_the_last_save(
    data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, begins: float
) -> None:
    """Five steps an epoch; killed after the third step of the third, before that step could be saved."""
    monkeypatch.setattr(Constants, "SAVE_SECONDS", seconds)
    with pytest.raises(Killed):
        manager(TASKS[1], data, tmp_path, (4,), Killer(), batch_size=4).train()
    progress = Silent()
    train(TASKS[1], data, tmp_path, 4, progress=progress, batch_size=4)
    assert progress.advances[0] == pytest.approx(begins)
    assert sum(progress.advances) == pytest.approx(4)


def test_more_epochs_train_only_what_is_new(
    sweep: Callable[..., int], tmp_path: Path, epochs: list[tuple[str, int]], capsys: pytest.CaptureFixture
) -> None:
    assert sweep("--epoch", "2") == 0
    epochs.clear()
    capsys.readouterr()
    assert sweep("--epoch", "3") == 0
    assert epochs == [("regressor", 3), ("colorizer_sigmoid", 3)]
    assert "anew" not in capsys.readouterr().out
    assert sweep("--epoch", "3", output="direct") == 0
    for task in TASKS[:2]:
        early, late = (read_checkpoint(tmp_path / "out", task, epoch) for epoch in (2, 3))
        assert plain(late) == plain(read_checkpoint(tmp_path / "direct", task, 3))
        assert late["history"]["val_mse"][:2] == early["history"]["val_mse"]


@pytest.mark.parametrize(("task", "at"), [(TASKS[0], 1.3), (TASKS[0], 2.4), (TASKS[0], 3.0), (TASKS[1], 2.4)], ids=str)
def test_a_snapshot_that_is_asked_for_later_is_the_separately_trained_model(
    data: LabDataModule, tmp_path: Path, task: tuple[str, str], at: float
) -> None:
    """The saved state may lie before, within or behind the epoch in which the new snapshot is due."""
    interrupt(task, data, tmp_path / "parts", at, 4, batch_size=4)
    parts = train(task, data, tmp_path / "parts", 2, 4, batch_size=4)
    assert plain(parts) == plain(train(task, data, tmp_path / "whole", 2, 4, batch_size=4))


def test_a_lost_model_is_made_again_although_the_saved_state_is_past_it(data: LabDataModule, tmp_path: Path) -> None:
    interrupt(TASKS[1], data, tmp_path / "parts", 2.5, 2, 4, batch_size=4)
    (lost,) = (tmp_path / "parts/checkpoints").rglob("epoch_2_*.pt")
    lost.unlink()
    parts = train(TASKS[1], data, tmp_path / "parts", 2, 4, batch_size=4)
    assert plain(parts) == plain(train(TASKS[1], data, tmp_path / "whole", 2, 4, batch_size=4))


@pytest.mark.parametrize(
    "change", [{"seed": 3}, {"feature_maps": 4}, {"batch_size": 5}, {"augment_repeats": 2}], ids=str
)
def test_a_state_of_other_settings_is_not_used_and_named_once(
    data: LabDataModule, tmp_path: Path, change: dict[str, int]
) -> None:
    for at in (0.6, 1.4):  # twice, which leaves two generations
        interrupt(TASKS[0], data, tmp_path / "out", at, 2, batch_size=4)
    progress = Silent()
    models = train(TASKS[0], data, tmp_path / "out", 2, progress=progress, **{"batch_size": 4, **change})
    (said,) = (line for line in progress.said if "anew" in line)
    assert next(iter(change)) in said
    assert plain(models) == plain(train(TASKS[0], data, tmp_path / "new", 2, **{"batch_size": 4, **change}))


def test_changed_images_start_every_trajectory_anew(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in range(5):
        write(tmp_path / "mine" / f"{number}.png", picture(number))
    assert sweep("--epoch", "1", images=tmp_path / "mine") == 0
    write(tmp_path / "mine/0.png", picture(70))
    capsys.readouterr()
    assert sweep("--epoch", "1", images=tmp_path / "mine") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "anew" in line]
    assert [line.split()[0] for line in said] == ["regressor", "colorizer_sigmoid"]
    assert all("images" in line for line in said)
    assert sweep("--epoch", "1", images=tmp_path / "mine", output="fresh") == 0
    fresh = kept(tmp_path / "fresh")
    assert {name: content for name, content in kept(tmp_path / "out").items() if name in fresh} == fresh


def test_pictures_of_earlier_images_do_not_lie_among_the_new(sweep: Callable[..., int], tmp_path: Path) -> None:
    for subset in ("train", "val", "test"):
        write(tmp_path / "mine" / subset / "early.png", picture(len(subset)))
    assert sweep("--epoch", "1", "--network", "colorizer", images=tmp_path / "mine") == 0
    (tmp_path / "mine/test/early.png").unlink()
    write(tmp_path / "mine/test/late.png", picture(71))
    assert sweep("--epoch", "1", "--network", "colorizer", images=tmp_path / "mine") == 0
    assert [path.name for path in (tmp_path / "out/outputs_sigmoid/color").rglob("*.png")] == ["late.png"]


def test_results_of_other_settings_are_not_mixed(sweep: Callable[..., int], tmp_path: Path) -> None:
    """Epoch 1 was trained otherwise than epoch 2: its row is gone, or a column tells it apart."""
    assert sweep("--epoch", "1", "--network", "regressor") == 0
    assert sweep("--epoch", "2", "--network", "regressor", "--batch-size", "5") == 0
    rows = list(csv.DictReader((tmp_path / "out/Plots/results.csv").read_text().splitlines()))
    assert "2" in {row["epoch"] for row in rows}
    assert len(rows) == 1 or len({row.get("batch_size") for row in rows}) == 2


def test_more_epochs_after_it_diverged_do_not_train_on(
    sweep: Callable[..., int], tmp_path: Path, epochs: list[tuple[str, int]]
) -> None:
    flags = ["--network", "regressor", "--lr", "1e30"]
    assert sweep(*flags, "--epoch", "3") == 0
    epochs.clear()
    assert sweep(*flags, "--epoch", "3", "5") == 0
    assert epochs == []
    rows = list(csv.DictReader((tmp_path / "out/Plots/results.csv").read_text().splitlines()))
    assert [(row["epoch"], row["status"]) for row in rows] == [("3", "diverged"), ("5", "diverged")]
    assert len({row["diverged_epoch"] for row in rows}) == 1
    history = read_checkpoint(tmp_path / "out", TASKS[0], 5)["history"]["train_mse"]
    assert not math.isfinite(history[int(rows[0]["diverged_epoch"]) - 1])
    assert sweep(*flags, "--epoch", "3", "5", output="direct") == 0
    assert losses(tmp_path / "out", kept(tmp_path / "direct")) == []
