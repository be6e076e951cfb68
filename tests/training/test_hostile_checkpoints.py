"""Checkpoints that are not what they seem: refused in one line, never executed, and in nobody's way."""

import contextlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import SHORT, TASKS, Silent, manager, picture, plain, train, write
from survival import apart, figure, kept, losses

import main
from deepcolor.data.dataset import LabDataModule
from deepcolor.training import checkpoint
from deepcolor.training.trainer import Interrupted
from utils import UserError

pytest_plugins = ["survival"]


class Payload:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def as_torch(content: object, path: Path) -> None:
    torch.save(content, path)


def as_old_torch(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [as_torch, as_old_torch, as_pickle], ids=lambda save: save.__name__)
def test_code_in_a_checkpoint_is_never_run(
    earlier: Path, photos: Path, tmp_path: Path, save: Callable[[object, Path], None], capsys: pytest.CaptureFixture
) -> None:
    whole = kept(earlier)
    shutil.copytree(earlier, tmp_path / "out")
    paths = list((tmp_path / "out/checkpoints").rglob("*.pt"))
    assert len(paths) == 2  # a model and a state
    for path in paths:
        save({**torch.load(path), "payload": Payload(tmp_path / "executed")}, path)
        for load in (checkpoint.load, checkpoint.load_model):
            with pytest.raises(UserError, match=path.name):
                load(path)
    assert main.main(["--output", str(tmp_path / "out"), "--report"]) == 2
    assert main.main(["--images", str(photos), "--output", str(tmp_path / "out"), *SHORT]) == 0
    assert not (tmp_path / "executed").exists()
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert losses(tmp_path / "out", whole) == []
    # Proof that the payload is one.
    save({"payload": Payload(tmp_path / "executed")}, tmp_path / "it.pt")
    with contextlib.suppress(RuntimeError):
        torch.load(tmp_path / "it.pt", weights_only=False)
    assert (tmp_path / "executed").exists()


# --- The saved state -------------------------------------------------------------------------------


def without(key: str) -> Callable[[dict], None]:
    return lambda state: state.pop(key)


def instead(key: str, value: object) -> Callable[[dict], None]:
    return lambda state: state.update({key: value})


def of_other_shape(state: dict) -> None:
    state["model"] = {name: torch.zeros(7, 7) for name in state["model"]}


def optimizer_of_other_shape(state: dict) -> None:
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"] = torch.zeros(2, 2)


def optimizer_of_another_kind(state: dict) -> None:
    state["optimizer"] = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1).state_dict()


CHANGES = {
    **{f"no {key}": without(key) for key in ("model", "optimizer", "epoch", "batch", "loss_sum", "history", "seconds")},
    "no diverged": without("diverged"),
    "no fingerprint": without("fingerprint"),
    "model of other shape": of_other_shape,
    "optimizer of other shape": optimizer_of_other_shape,
    "optimizer of another kind": optimizer_of_another_kind,
    "model is text": instead("model", "text"),
    "model is empty": instead("model", {}),
    "optimizer is a number": instead("optimizer", 7),
    "epoch is text": instead("epoch", "two"),
    "epoch is negative": instead("epoch", -3),
    "epoch is a fraction": instead("epoch", 0.5),
    "batch is text": instead("batch", "two"),
    "batch is negative": instead("batch", -1),
    "batch is beyond the epoch": instead("batch", 1000),
    "loss_sum is text": instead("loss_sum", "many"),
    "history is a list": instead("history", [1, 2]),
    "history is empty": instead("history", {}),
    "history is of another length": instead("history", {"train_mse": [0.1] * 9, "val_mse": [0.1] * 9}),
    "history is of text": instead("history", {"train_mse": ["low"], "val_mse": ["low"]}),
    "seconds are text": instead("seconds", "few"),
    "diverged is text": instead("diverged", "yes"),
    "fingerprint is text": instead("fingerprint", "mine"),
    "absurd feature maps": lambda state: state["fingerprint"].update(feature_maps=10**12),
}


@pytest.fixture(scope="module")
def interrupted(data: LabDataModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training left that was interrupted in its second epoch of three."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Interrupted):
        manager(TASKS[0], data, folder, (3,), Silent(stop_after=1.5), batch_size=4).train()
    return folder


@pytest.fixture(scope="module")
def whole(data: LabDataModule, tmp_path_factory: pytest.TempPathFactory) -> object:
    return plain(train(TASKS[0], data, tmp_path_factory.mktemp("whole"), 3, batch_size=4))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_state_that_is_not_as_it_should_be_starts_anew(
    data: LabDataModule, interrupted: Path, whole: object, tmp_path: Path, change: Callable[[dict], None]
) -> None:
    shutil.copytree(interrupted, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob(".state/*.pt")
    state = torch.load(path)
    change(state)
    torch.save(state, path)

    def go_on() -> tuple[bool, list[str]]:
        progress = Silent()
        model = train(TASKS[0], data, tmp_path / "out", 3, progress=progress, batch_size=4)
        return plain(model) == whole, progress.said

    right, said = apart(go_on)
    assert right
    assert len([line for line in said if "not used" in line or "starts anew" in line]) == 1, said


# --- The report ------------------------------------------------------------------------------------


def junk_files(folder: Path, model: dict) -> list[Path]:
    """Puts files that are no models of ours beside one that is; returns their paths."""
    contents: dict[str, object] = {f"without {key}": {k: v for k, v in model.items() if k != key} for key in model}
    del contents["without versions"]  # which nothing needs
    contents |= {
        f"{key} is a list": {**model, key: [1]} for key in ("metrics", "hyperparameters", "fingerprint", "history")
    }
    contents |= {
        f"{key} is empty": {**model, key: {}} for key in ("metrics", "hyperparameters", "fingerprint", "history")
    }
    contents |= {"network is odd": {**model, "network": "transformer"}, "swept is odd": {**model, "swept": ["depth"]}}
    contents["metrics are text"] = {**model, "metrics": dict.fromkeys(model["metrics"], "good")}
    contents["rate is text"] = {**model, "hyperparameters": {**model["hyperparameters"], "lr": "fast"}}
    contents |= {"number": 3, "list": [1, 2], "empty dictionary": {}, "tensor": torch.zeros(3)}
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
    (folder / "text.pt").write_text("no model")
    (folder / "nothing.pt").touch()
    write(folder / "picture.png", picture(1)).rename(folder / "picture.pt")
    (folder / "folder.pt").mkdir()
    (folder / "link.pt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.pt")
    names = [*contents, "text", "nothing", "picture", "folder", "link", "pipe"]
    return [folder / f"{name}.pt" for name in names]


def report(output: Path, capsys: pytest.CaptureFixture) -> list[str]:
    """The lines that --report prints, which must report the one model that is there."""

    def run() -> tuple[int, str]:
        code = main.main(["--output", str(output), "--report"])
        return code, "\n".join(capsys.readouterr())

    (output / "Plots/results.csv").unlink(missing_ok=True)
    code, said = apart(run, seconds=10)
    assert code == 0, said
    assert "Traceback" not in said
    assert (output / "Plots/results.csv").read_text().count("\n") == 2  # the head and a row
    return said.splitlines()


def test_a_report_names_each_junk_file_and_reports_the_rest(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(earlier, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("epoch_*.pt")
    (tmp_path / "junk").mkdir()
    files = junk_files(tmp_path / "junk", torch.load(path))

    def faults(junk: list[Path]) -> list[str]:
        """Those that are not named once; all, if there is no report."""
        placed = [file.rename(path.with_name(file.name)) for file in junk]
        try:
            said = report(tmp_path / "out", capsys)
            return [file.name for file in junk if sum(f"/{file.name}" in line for line in said) != 1]
        except AssertionError:
            return [file.name for file in junk]
        finally:
            for file, there in zip(junk, placed):
                there.rename(file)

    found = faults(files)
    if len(found) == len(files):  # which of them was it?
        found = [name for file in files for name in faults([file])]
    figure(f"Junk beside a model: {len(files)} files tried, {len(found)} not named or in the way of the report")
    assert not found, found
