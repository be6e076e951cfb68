"""However a training run was divided, interrupted or damaged, its result is the same."""

import errno
import shutil
import signal
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import TASK_NAMES, TASKS, SilentCallbacks, files_below, manager, picture, plain, train, write
from survival import contents, differences, result_of

import Constants
import main
from deepcolor.data.dataset import LabDataModule
from deepcolor.training import checkpoint
from deepcolor.training.config import TrainConfig
from deepcolor.training.trainer import Interrupted, Trainer

FLAGS = "--device cpu --lr 0.003 --weight-decay 0 --activation sigmoid --jobs 1".split()
STEPS = {"batch_size": 4}  # 5 steps per epoch


def interrupt(
    task: tuple[str, str], data: LabDataModule, output: Path, at: float, *snapshot_epochs: int, **config: object
) -> None:
    """Trains until so many epochs have passed since the start of this call, and stops as after SIGTERM."""
    callbacks = SilentCallbacks(stop_after=at, signal=signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        manager(task, data, output, snapshot_epochs, callbacks, **config).train()
    assert caught.value.signal == signal.SIGTERM


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


# --- Interrupted ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "config"),
    [
        (TASKS[0], {"augment_repeats": 2}),
        (TASKS[1], {"optimizer": "sgd", "dropout": 0.1}),
        (TASKS[2], {"schedule": "cosine", "warmup_steps": 5, "optimizer": "adamw"}),
    ],
    ids=TASK_NAMES,
)
def test_an_interrupted_run_has_the_undisturbed_result_bit_for_bit(
    task: tuple[str, str], config: dict[str, object], data: LabDataModule, tmp_path: Path
) -> None:
    snapshots = (3,) if "schedule" in config else (2, 3)
    whole = train(task, data, tmp_path / "whole", *snapshots, **STEPS, **config)
    for at in (0.3, 1.5, 2.0):
        interrupt(task, data, tmp_path / "parts", at, *snapshots, **STEPS, **config)
    callbacks = SilentCallbacks()
    parts = train(task, data, tmp_path / "parts", *snapshots, callbacks=callbacks, **STEPS, **config)
    assert callbacks.advances[0] > 1.9  # continued, not started again
    assert sum(callbacks.advances) == pytest.approx(3)
    assert plain(parts) == plain(whole)


class Killed(BaseException):
    """Like SIGKILL: nothing is saved."""


class Killer(SilentCallbacks):
    """Ends the training in the middle of the third epoch."""

    def advance(self, epochs: float, status: str) -> None:
        super().advance(epochs, status)
        if sum(self.advances) > 2.5:
            raise Killed


@pytest.mark.parametrize(("seconds", "begins"), [(0, 2.4), (1000, 0.2)], ids=["every step", "never"])
def test_a_killed_run_loses_only_what_was_trained_since_the_last_save(
    data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, begins: float
) -> None:
    monkeypatch.setattr(Constants, "SAVE_SECONDS", seconds)
    with pytest.raises(Killed):
        manager(TASKS[1], data, tmp_path, (3,), Killer(), **STEPS).train()
    callbacks = SilentCallbacks()
    train(TASKS[1], data, tmp_path, 3, callbacks=callbacks, **STEPS)
    assert callbacks.advances[0] == pytest.approx(begins)
    assert sum(callbacks.advances) == pytest.approx(3)


# --- What counts as the same training run ----------------------------------------------------------


def test_only_what_is_missing_is_trained(
    photos: Path, tmp_path: Path, epochs: list[tuple[str, int]], capsys: pytest.CaptureFixture
) -> None:
    """More epochs continue, the same command trains nothing, and both activations share the Regressor."""

    def run(*flags: str, output: str = "out") -> tuple[list[tuple[str, int]], str]:
        """Returns which epochs were trained, and what was printed after the plan."""
        epochs.clear()
        result_of(tmp_path / output, "--images", photos, *FLAGS, *flags)
        said = capsys.readouterr().out
        assert "from the beginning, changed" not in said
        return epochs.copy(), said.partition("\n\n")[2]

    regressor = ["--network", "regressor", "--epoch"]
    assert run(*regressor, "1")[0] == [("regressor", 1)]
    first = files_below(tmp_path / "out/checkpoints")
    trained, report = run(*regressor, "2")
    assert trained == [("regressor", 2)]
    second = files_below(tmp_path / "out/checkpoints")
    assert [second[path] == first[path] for path in first if "/epoch_1_" in path] == [True]
    assert run(*regressor, "1", "2") == ([], report)
    assert files_below(tmp_path / "out/checkpoints") == second
    assert run("--activation", "tanh", "--epoch", "1", "2")[0] == [("colorizer_tanh", 1), ("colorizer_tanh", 2)]
    run("--activation", "tanh", "--epoch", "1", "2", output="direct")
    assert differences(tmp_path / "out", contents(tmp_path / "direct")) == []


@pytest.mark.parametrize(("task", "at"), [(TASKS[0], 1.2), (TASKS[0], 2.0), (TASKS[1], 1.4)], ids=str)
def test_a_snapshot_that_is_added_later_is_the_separately_trained_model(
    data: LabDataModule, tmp_path: Path, task: tuple[str, str], at: float
) -> None:
    """The saved state can be past the epoch of the new snapshot. The same holds for a model that was deleted."""
    interrupt(task, data, tmp_path / "parts", at, 3, **STEPS)
    parts = train(task, data, tmp_path / "parts", 1, 3, **STEPS)
    whole = train(task, data, tmp_path / "whole", 1, 3, **STEPS)
    assert plain(parts) == plain(whole)
    (deleted,) = (tmp_path / "parts/checkpoints").glob("*/epoch_1_*.pt")
    deleted.unlink()
    assert plain(train(task, data, tmp_path / "parts", 1, 3, **STEPS)) == plain(whole)


CHANGES = dict(lr=0.01, weight_decay=0.1, feature_maps=4, batch_size=5, augment_repeats=2, seed=1, optimizer="sgd")
CHANGES |= dict(dropout=0.5, schedule="cosine", warmup_steps=3, crop_area=0.9, precision="bf16", skip=True)
CHANGES |= dict(encoder="mobilenet_v2", encoder_lr=0.1, init_from="0123456789abcdef")


def test_other_hyperparameters_start_from_the_beginning_and_are_reported_once(
    data: LabDataModule, tmp_path: Path
) -> None:
    assert CHANGES.keys() == {field.name for field in fields(TrainConfig)}
    for at in (1.2, 1.4):  # leaves a model and two states
        interrupt(TASKS[0], data, tmp_path, at, 1, 2)
    (model,), (state, _) = (
        tmp_path.rglob("epoch_1_*.pt"),
        sorted(tmp_path.rglob(".state/*.pt"), key=lambda p: len(p.name)),
    )
    model, state = model.read_bytes(), state.read_bytes()
    for name, value in CHANGES.items():
        callbacks = SilentCallbacks()
        trainer = manager(TASKS[0], data, tmp_path, (1, 2), callbacks, **{name: value})
        trainer.paths.checkpoint(trainer.training_run, 1).write_bytes(model)  # whatever the name contains
        trainer.paths.state(trainer.training_run).write_bytes(state)
        assert (trainer.resume(), trainer.epoch, trainer.batch) == (0, 0, 0)
        (line,) = (line for line in callbacks.logged if "from the beginning" in line)
        assert name in line.partition("changed: ")[2]


def test_other_images_start_from_the_beginning_and_leave_no_earlier_pictures(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = shutil.copytree(photos, tmp_path / "images")
    command = ["--images", images, *FLAGS, "--network", "colorizer", "--epoch", "1"]
    result_of(tmp_path / "out", *command)
    (images / "test/cliff.png").unlink()
    write(images / "test/late.png", picture(70))
    capsys.readouterr()
    found = result_of(tmp_path / "out", *command)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "starts from the beginning" in line)
    assert line.startswith("colorizer_sigmoid") and "images" in line
    assert found == result_of(tmp_path / "fresh", *command)


# --- Damaged files ---------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip_a_weight(path: Path) -> None:
    """Flips one bit of a stored number, which leaves the file readable."""
    weights = max(torch.load(path, weights_only=True)["model"].values(), key=torch.Tensor.nelement)
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip_a_weight, Path.unlink], ids=["cut", "flipped", "lost"])
def test_a_damaged_state_falls_back_to_the_one_before(
    data: LabDataModule, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    for at in (1.4, 2.6):
        interrupt(TASKS[1], data, tmp_path, at, 3, **STEPS)
    newest, previous = sorted(tmp_path.rglob(".state/*.pt"), key=lambda path: len(path.name))
    begins = []
    for damaged in ([], [newest], [newest, previous]):
        for path in damaged[-1:]:
            damage(path)
        callbacks = SilentCallbacks()
        trainer = manager(TASKS[1], data, tmp_path, (3,), callbacks, **STEPS)
        trainer.resume()
        begins.append(trainer.epoch + trainer.batch / 5)
        lines = [line for line in callbacks.logged if "damaged" in line]
        assert len(lines) == (0 if damage is Path.unlink else len(damaged))
        assert all(any(str(path) in line for line in lines) for path in damaged if lines)
    assert begins == pytest.approx([2.6, 1.4, 0])


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()], ids=["disk", "memory"])
def test_a_state_that_cannot_be_read_is_not_damaged(
    data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Training does not start again, and the state is used when it can be read."""
    interrupt(TASKS[1], data, tmp_path, 1.4, 3, **STEPS)
    (state,) = tmp_path.rglob(".state/*.pt")
    before = state.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(zipfile.ZipFile, "testzip", Mock(side_effect=error))
        manager(TASKS[1], data, tmp_path, (3,), **STEPS).train()
    assert state.read_bytes() == before
    trainer = manager(TASKS[1], data, tmp_path, (3,), **STEPS)
    trainer.resume()
    assert trainer.epoch + trainer.batch / 5 == pytest.approx(1.4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), torch.AcceleratorError("CUDA error: lost")], ids=str)
def test_a_gpu_that_fails_while_a_state_is_restored_does_not_damage_it(
    data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    interrupt(TASKS[0], data, tmp_path, 1.4, 3, **STEPS)
    trainer = manager(TASKS[0], data, tmp_path, (3,), **STEPS)
    monkeypatch.setattr(trainer.model, "load_state_dict", Mock(side_effect=error))
    with pytest.raises(type(error)):
        trainer.resume()


def to_other_training(path: Path) -> None:
    torch.save({**torch.load(path), "fingerprint": {"network": "colorizer"}}, path)


def to_other_epoch(path: Path) -> None:
    """As if somebody copied one file over the other."""
    (other,) = (other for other in path.parent.glob("epoch_*.pt") if other != path)
    shutil.copy(other, path)


@pytest.fixture(scope="module")
def two_models(data: LabDataModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run with two snapshots."""
    output = tmp_path_factory.mktemp("two")
    train(TASKS[0], data, output, 1, 2)
    return output


@pytest.mark.parametrize("damage", [cut, flip_a_weight, to_other_training, to_other_epoch])
def test_a_damaged_model_is_named_and_does_not_count(
    data: LabDataModule, two_models: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    for number, epoch in enumerate((1, 2)):
        output = shutil.copytree(two_models, tmp_path / str(epoch))
        (path,) = (output / "checkpoints").glob(f"regressor/epoch_{epoch}_*.pt")
        damage(path)
        callbacks = SilentCallbacks()
        trainer = manager(TASKS[0], data, output, (1, 2), callbacks)
        assert trainer.manager.count_finished() == number
        (line,) = callbacks.logged
        assert str(path) in line or "from the beginning, changed" in line
        if damage in (cut, to_other_epoch):
            trainer.train()
            assert contents(output) == contents(two_models)


# --- Checkpoints of version 1 ----------------------------------------------------------------------

VERSION_1_NAMES = dict(fingerprint="identity", loss_sum="squares", augment_repeats="copies", gray_mse="grey_mse")
VERSION_1_NAMES |= dict(mean_color_mse="mean_colour_mse", colored="coloured")
VERSION_1_NAMES |= dict(colorfulness="colourfulness", colorfulness_true="colourfulness_true")


def with_version_1_names(value: object) -> object:
    """Returns a value with its keys and texts, at any depth, as version 1 named them."""
    if isinstance(value, dict):
        return {VERSION_1_NAMES.get(key, key): with_version_1_names(each) for key, each in value.items()}
    if isinstance(value, list):
        return [with_version_1_names(each) for each in value]
    return VERSION_1_NAMES.get(value, value) if isinstance(value, str) else value


def to_version_1(path: Path) -> None:
    """Rewrites a checkpoint as version 1 wrote it, which knew fewer hyperparameters."""
    content = with_version_1_names(torch.load(path, weights_only=True))
    del content["format_version"]
    for part in (content["identity"], content.get("hyperparameters", {})):
        part.pop("optimizer", None)
        part.pop("dropout", None)
    torch.save(content, path)


def test_checkpoints_of_version_1_are_continued_reported_and_usable(
    photos: Path, tmp_path: Path, epochs: list[tuple[str, int]], capsys: pytest.CaptureFixture
) -> None:
    command = ["--images", photos, *FLAGS, "--network", "colorizer", "--copies", "2", "--epoch"]
    first = result_of(tmp_path / "out", *command, "1")
    expected = result_of(tmp_path / "new", *command, "1", "2")
    for path in (tmp_path / "out/checkpoints").rglob("*.pt"):
        to_version_1(path)
    for folder in (tmp_path / "out/checkpoints").rglob(".state"):
        folder.rename(folder.with_name(".trajectories"))
    for path in (tmp_path / "out/checkpoints").glob("best_*.pt"):
        path.unlink()
    model = next((tmp_path / "out/checkpoints/colorizer_sigmoid").glob("*.pt"))
    assert "grey_mse" in torch.load(model, weights_only=True)["metrics"]
    assert checkpoint.load_usable(model)["network"] == "colorizer"
    assert main.main(["--report", "--output", str(tmp_path / "out")]) == 0
    found = contents(tmp_path / "out")
    assert found["Plots/results.csv"] == first["Plots/results.csv"]
    epochs.clear()
    capsys.readouterr()
    found = result_of(tmp_path / "out", *command, "1", "2")
    assert epochs == [("colorizer_sigmoid", 2)]
    said = capsys.readouterr().out
    assert "from the beginning" not in said and "not used" not in said
    assert found["Plots/results.csv"] == expected["Plots/results.csv"]
    later = {name: content for name, content in expected.items() if "epoch_2_" in name}
    assert {name: found[name] for name in later} == later
