"""Files that are not the checkpoints they seem to be: refused in one line, never executed, and in nobody's way."""

import contextlib
import os
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import SHORT, TASKS, SilentCallbacks, manager, picture, plain, write
from survival import contents, result_of

import main
from deepcolor.data.dataset import LabDataModule
from deepcolor.training import checkpoint
from deepcolor.training.trainer import Interrupted, Trainer
from utils import UserError


class Payload:
    """Creates a folder if it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def save_as_torch(content: object, path: Path) -> None:
    torch.save(content, path)


def save_as_old_torch(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_as_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def test_code_in_a_checkpoint_is_never_run(
    earlier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(earlier, tmp_path / "out")
    paths = sorted((tmp_path / "out/checkpoints").rglob("*.pt"))
    assert len(paths) == 3  # the model, the same as the best one, and a state
    content = {path: torch.load(path, weights_only=True) for path in paths}
    for save in (save_as_old_torch, save_as_pickle, save_as_torch):
        for path in paths:
            save({**content[path], "payload": Payload(tmp_path / "executed")}, path)
            for load in (checkpoint.load, checkpoint.load_model, checkpoint.load_usable, checkpoint.load_state):
                with pytest.raises(UserError, match=path.name):
                    load(path)
    assert main.main(["--output", str(tmp_path / "out"), "--report"]) == 2
    assert result_of(tmp_path / "out", "--images", photos, *SHORT) == contents(earlier)
    assert "Traceback" not in "".join(capsys.readouterr())
    assert not (tmp_path / "executed").exists()
    with contextlib.suppress(RuntimeError):  # proof that the payload is one
        save_as_torch({"payload": Payload(tmp_path / "executed")}, tmp_path / "it.pt")
        torch.load(tmp_path / "it.pt", weights_only=False)
    assert (tmp_path / "executed").exists()


# --- States ----------------------------------------------------------------------------------------


def change_model_shapes(state: dict) -> None:
    state["model"] = {name: torch.zeros(7, 7) for name in state["model"]}


def change_optimizer_shapes(state: dict) -> None:
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"] = torch.zeros(2, 2)


def remove_a_moment(state: dict) -> None:
    del state["optimizer"]["state"][0]["exp_avg"]


def change_feature_maps(state: dict) -> None:
    state["fingerprint"]["feature_maps"] = 10**12


NINE_EPOCHS = {"train_mse": [0.1] * 9, "val_mse": [0.1] * 9}
WRONG_VALUES = {
    "model": ["text", {}],
    "optimizer": [7, {}, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1).state_dict()],
    "epoch": ["two", -3, 0.5],
    "batch": ["two", -1, 1000],
    "loss_sum": ["many"],
    "history": [[1, 2], {}, NINE_EPOCHS, {"train_mse": ["low"], "val_mse": ["low"]}],
    "seconds": ["few"],
    "diverged": ["yes"],
    "fingerprint": ["mine"],
}


@pytest.fixture(scope="module")
def interrupted(data: LabDataModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that was interrupted in its second epoch."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Interrupted):
        manager(TASKS[0], data, folder, (3,), SilentCallbacks(stop_after=1.5), batch_size=4).train()
    return folder


def state_of(trainer: Trainer) -> object:
    """Everything that decides how the training continues."""
    values = trainer.model.state_dict(), trainer.optimizer.state_dict()["state"], trainer.loss_sum.item()
    return plain([*values, trainer.epoch, trainer.batch, trainer.history, trainer.diverged, trainer.seconds])


def check_not_used(data: LabDataModule, interrupted: Path, output: Path, change: Callable[[dict], object]) -> None:
    """Checks that a changed state is named once, and that the run starts from its beginning."""
    shutil.copytree(interrupted, output)
    (path,) = output.rglob(".state/*.pt")
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    callbacks = SilentCallbacks()
    trainer = manager(TASKS[0], data, output, (3,), callbacks, batch_size=4)
    beginning = state_of(trainer)
    assert trainer.resume() == 0
    assert state_of(trainer) == beginning
    (line,) = callbacks.logged
    assert "not used" in line or "from the beginning" in line


@pytest.mark.parametrize("key", WRONG_VALUES)
def test_a_state_with_a_wrong_or_missing_value_is_not_used(
    data: LabDataModule, interrupted: Path, tmp_path: Path, key: str
) -> None:
    undamaged = manager(TASKS[0], data, interrupted, (3,), batch_size=4)
    undamaged.resume()
    assert undamaged.epoch == 1 and undamaged.batch > 1
    check_not_used(data, interrupted, tmp_path / "missing", lambda state: state.pop(key))
    for number, value in enumerate(WRONG_VALUES[key]):
        check_not_used(data, interrupted, tmp_path / str(number), lambda state, value=value: state.update({key: value}))


@pytest.mark.parametrize("change", [change_model_shapes, change_optimizer_shapes, remove_a_moment, change_feature_maps])
def test_a_state_with_wrong_tensors_or_hyperparameters_is_not_used(
    data: LabDataModule, interrupted: Path, tmp_path: Path, change: Callable[[dict], None]
) -> None:
    check_not_used(data, interrupted, tmp_path / "out", change)


# --- The report ------------------------------------------------------------------------------------


NESTED: list = [1, 2]
for _ in range(40):  # each level doubles its text
    NESTED = [NESTED, NESTED]


def put_junk(folder: Path, model: dict) -> list[str]:
    """Puts files that are no finished models beside one that is, and returns their names."""
    contents: dict[str, object] = {f"without {key}": {k: v for k, v in model.items() if k != key} for key in model}
    del contents["without versions"]  # which nothing needs
    del contents["without format_version"]  # which is version 1, whose keys need not have been renamed
    for key in ("metrics", "hyperparameters", "fingerprint", "history"):
        contents |= {f"{key} is a list": {**model, key: [1]}, f"{key} is empty": {**model, key: {}}}
    contents |= {
        "network is unknown": {**model, "network": "transformer"},
        "swept is unknown": {**model, "swept": ["depth"]},
        "metrics are text": {**model, "metrics": dict.fromkeys(model["metrics"], "good")},
        "lr is text": {**model, "hyperparameters": {**model["hyperparameters"], "lr": "fast"}},
        "newer version": {**model, "format_version": 99},
        "run leads out": {**model, "run": "../../../escaped"},
        "hyperparameter is unknown": {**model, "hyperparameters": {**model["hyperparameters"], "depth": 1}},
        "hyperparameter is nested": {**model, "hyperparameters": {**model["hyperparameters"], "dropout": NESTED}},
        "histories differ": {**model, "history": {**model["history"], "val_mse": []}},
        "history is text": {**model, "history": {"train_mse": ["low"], "val_mse": ["low"]}},
        "a mean is short": {**model, "metrics": {**model["metrics"], "test_means": [["cliff", 1.0]]}},
        "means are numbers": {**model, "metrics": {**model["metrics"], "test_means": [1]}},
        "another history": {**model, "history": {**model["history"], "other": 5}},
        "swept is nested": {**model, "swept": [["lr"]]},
        "a metric is nested": {**model, "metrics": {**model["metrics"], "variety_ratio": NESTED}},
        "status is odd": {**model, "metrics": {**model["metrics"], "status": "fine"}},
        "stride is 0": {**model, "model": {"weight": torch.zeros(1).expand(1 << 27)}},
        "copy": model,
    }
    contents |= {"number": 3, "list": [1, 2], "empty dictionary": {}, "tensor": torch.zeros(3)}
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
    (folder / "text.pt").write_text("no model")
    (folder / "nothing.pt").touch()
    with zipfile.ZipFile(folder / "archive.pt", "w") as archive:
        archive.writestr("notes.txt", "not a model")
    write(folder / "picture.png", picture(1)).rename(folder / "picture.pt")
    (folder / "folder.pt").mkdir()
    (folder / "link.pt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.pt")
    return [*contents, "text", "nothing", "archive", "picture", "folder", "link", "pipe"]


def test_a_report_names_each_junk_file_and_reports_the_rest(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(earlier, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("epoch_*.pt")
    names = put_junk(path.parent, torch.load(path, weights_only=True))
    (tmp_path / "out/Plots/results.csv").unlink()
    assert main.main(["--output", str(tmp_path / "out"), "--report"]) == 0
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    assert [name for name in names if sum(f"/{name}.pt" in line for line in said.splitlines()) != 1] == []
    assert (tmp_path / "out/Plots/results.csv").read_text().count("\n") == 2  # the header and a row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_tensors_that_share_memory_are_refused_before_they_are_copied(earlier: Path, tmp_path: Path) -> None:
    """A file of some kilobytes that would take half a gigabyte."""
    (path,) = earlier.rglob("epoch_*.pt")
    content = torch.load(path, weights_only=True)
    content["model"] = {name: torch.zeros(1).expand(1 << 27) for name in content["model"]}
    torch.save(content, tmp_path / "small.pt")
    assert (tmp_path / "small.pt").stat().st_size < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_usable(tmp_path / "small.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_a_model_whose_run_leads_out_of_the_output_folder_writes_nothing_there(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(earlier, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("epoch_*.pt")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "run": "../../../escaped"}, path)
    assert main.main(["--output", str(tmp_path / "out"), "--report"]) == 2
    assert "escaped" in "".join(capsys.readouterr())
    assert not list(tmp_path.rglob("*escaped*"))
