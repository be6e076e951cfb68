"""However a training run was divided, interrupted or damaged, its result is the same."""

import math
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import SHORT, TASK_NAMES, TASKS, SilentCallbacks, files_below, manager, picture, plain, train, write
from survival import contents, differences, result_of

import Constants
import main
from deepcolor.data.dataset import LabDataModule
from deepcolor.training import checkpoint
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
    third = files_below(tmp_path / "out/checkpoints")
    assert {path for path in third if third[path] != second[path]} <= {"best_regressor.pt"}  # written by each report
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


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 3},
        {"feature_maps": 4},
        {"batch_size": 5},
        {"augment_repeats": 2},
        {"optimizer": "sgd"},
        {"dropout": 0.2},
    ],
    ids=str,
)
def test_other_hyperparameters_start_from_the_beginning_and_are_reported_once(
    data: LabDataModule, tmp_path: Path, change: dict[str, object]
) -> None:
    for at in (1.2, 1.4):  # leaves a model and two states
        interrupt(TASKS[0], data, tmp_path / "out", at, 1, 2, **STEPS)
    callbacks = SilentCallbacks()
    config = {**STEPS, **change}
    models = train(TASKS[0], data, tmp_path / "out", 1, 2, callbacks=callbacks, **config)
    (line,) = (line for line in callbacks.logged if "from the beginning" in line)
    assert next(iter(change)) in line
    assert plain(models) == plain(train(TASKS[0], data, tmp_path / "new", 1, 2, **config))


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


def test_models_with_other_hyperparameters_are_told_apart_in_the_report(photos: Path, tmp_path: Path) -> None:
    command = ["--images", photos, *FLAGS, "--network", "regressor", "--epoch"]
    result_of(tmp_path, *command, "1")
    rows = result_of(tmp_path, *command, "2", "--batch-size", "5")["Plots/results.csv"]
    assert [(row["epoch"], row["batch_size"]) for row in rows] == [("1", "16"), ("2", "5")]


def test_a_run_that_diverged_is_not_trained_further(
    photos: Path, tmp_path: Path, epochs: list[tuple[str, int]]
) -> None:
    command = ["--images", photos, *FLAGS, "--network", "regressor", "--lr", "1e30", "--epoch"]
    result_of(tmp_path / "out", *command, "3")
    epochs.clear()
    rows = result_of(tmp_path / "out", *command, "3", "5")["Plots/results.csv"]
    assert epochs == []
    assert [(row["epoch"], row["status"]) for row in rows] == [("3", "diverged"), ("5", "diverged")]
    assert rows[0]["diverged_epoch"] == rows[1]["diverged_epoch"]
    path = tmp_path / "out" / rows[1]["checkpoint"]
    history = torch.load(path, weights_only=True)["history"]["train_mse"]
    assert not math.isfinite(history[int(rows[0]["diverged_epoch"]) - 1])
    result_of(tmp_path / "direct", *command, "3", "5")
    assert differences(tmp_path / "out", contents(tmp_path / "direct")) == []


# --- Damaged files ---------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip_a_weight(path: Path) -> None:
    """Flips one bit of the stored numbers, which leaves the file readable."""
    with zipfile.ZipFile(path) as archive:
        tensors = [info for info in archive.infolist() if "/data/" in info.filename]
    largest = max(tensors, key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    name_length, extra_length = struct.unpack_from("<HH", content, largest.header_offset + 26)
    content[largest.header_offset + 30 + name_length + extra_length + largest.file_size // 2 + 3] ^= 1
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


def to_text(path: Path) -> None:
    path.write_text("not a model")


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_picture(path: Path) -> None:
    write(path.with_suffix(".png"), picture(1)).rename(path)


def to_list(path: Path) -> None:
    torch.save([1, 2, 3], path)


def to_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing to see")


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


@pytest.mark.parametrize(
    "damage",
    [cut, flip_a_weight, to_text, to_folder, to_picture, to_list, to_archive, to_other_training, to_other_epoch],
    ids=lambda damage: damage.__name__,
)
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

VERSION_1_KEYS = {
    "fingerprint": "identity",
    "loss_sum": "squares",
    "augment_repeats": "copies",
    "gray_mse": "grey_mse",
    "mean_color_mse": "mean_colour_mse",
    "colorfulness": "colourfulness",
    "colorfulness_true": "colourfulness_true",
}
LATER_KEYS = ("format_version", "optimizer", "dropout")  # "optimizer" among the hyperparameters only


def to_version_1(content: dict, is_top_level: bool = True) -> dict:
    """Returns the content of a checkpoint as version 1 wrote it."""
    kept = {key: value for key, value in content.items() if is_top_level or key not in LATER_KEYS}
    kept.pop("format_version", None)
    old = {VERSION_1_KEYS.get(key, key): value for key, value in kept.items()}
    for part in ("metrics", "hyperparameters", "identity"):
        if is_top_level and part in old:
            old[part] = to_version_1(old[part], is_top_level=False)
    if is_top_level and "swept" in old:
        old["swept"] = [VERSION_1_KEYS.get(key, key) for key in old["swept"]]
    if "verdict" in old:
        old["verdict"] = old["verdict"].replace("colored", "coloured").replace("gray", "grey")
    return old


def test_checkpoints_of_version_1_are_continued_reported_and_usable(
    photos: Path, tmp_path: Path, epochs: list[tuple[str, int]], capsys: pytest.CaptureFixture
) -> None:
    command = ["--images", photos, *FLAGS, "--network", "colorizer", "--copies", "2", "--epoch"]
    first = result_of(tmp_path / "out", *command, "1")
    expected = result_of(tmp_path / "new", *command, "1", "2")
    for path in (tmp_path / "out/checkpoints").rglob("*.pt"):
        torch.save(to_version_1(torch.load(path, weights_only=True)), path)
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


def test_a_model_of_a_newer_version_is_named(earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(earlier, tmp_path, dirs_exist_ok=True)
    (path,) = (tmp_path / "checkpoints/regressor").glob("*.pt")
    torch.save({**torch.load(path, weights_only=True), "format_version": 3}, path)
    assert main.main(["--report", "--output", str(tmp_path), *SHORT]) == 2
    assert "newer version" in capsys.readouterr().err
