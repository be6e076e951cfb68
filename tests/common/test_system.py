"""Systems other than Linux: the program without what only Linux has, and Apple's GPUs, which have no float64."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SHORT, TASKS, manager, picture, write
from survival import differences, result_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepcolor.common import system
from deepcolor.common.files import write_atomically
from deepcolor.data.dataset import LabDataModule
from deepcolor.training import trainer
from utils import Utils

PHOTOS = 30
# Executed by worker processes too, which import this file.
WITHOUT_LINUX = f"""
import multiprocessing.context, os, signal, sys, warnings
warnings.filterwarnings("ignore", "only soft file lock")  # Windows has another lock that replaces fcntl's
sys.modules["fcntl"] = None
del os.sched_getaffinity, os.posix_fadvise, os.fchmod, signal.SIGUSR1, signal.pthread_sigmask
multiprocessing.context._concrete_contexts.pop("forkserver", None)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
sys.path.insert(0, {str(ROOT)!r})
import colorize, main
if __name__ == "__main__":
    sys.exit({{program}}.main())
"""


def run_without_linux(folder: Path, program: str, *arguments: object) -> str:
    script = folder / f"run_{program}.py"
    script.write_text(WITHOUT_LINUX.format(program=program))
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_sweep_with_two_jobs_and_thirty_photographs_without_what_only_linux_has(photos: Path, tmp_path: Path) -> None:
    flags = "--device cpu --network colorizer --activation tanh --lr 0.003 0.001 --weight-decay 0 --epoch 2".split()
    command = ["--images", photos, *flags, "--jobs"]
    said = run_without_linux(tmp_path, "main", "--output", tmp_path / "out", *command, 2)
    assert "2 at once" in said
    assert differences(tmp_path / "out", result_of(tmp_path / "expected", *command, 1)) == []
    for number in range(PHOTOS):
        write(tmp_path / f"mine/{number}.png", picture(number))
    said = run_without_linux(tmp_path, "colorize", "mine", "--output", "colored", "--checkpoint", "out")
    assert f"colored {PHOTOS} of {PHOTOS}" in said
    assert len(list((tmp_path / "colored").iterdir())) == PHOTOS


class WithoutFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        assert all(leaf.dtype != torch.float64 for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor))
        return found


@pytest.mark.parametrize("task", TASKS[:2])
def test_training_needs_no_float64_on_apples_gpus(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, with the type of sums that is chosen there."""
    sum_dtype = trainer.sum_dtype(torch.device("mps"))
    monkeypatch.setattr(trainer, "sum_dtype", lambda device: sum_dtype)
    training = manager(task, data, tmp_path)
    with WithoutFloat64():
        training.train_epoch()
    expected = manager(task, data, tmp_path)
    monkeypatch.undo()
    expected.train_epoch()
    for name, losses in expected.history.items():
        assert training.history[name] == pytest.approx(losses, rel=1e-5)


def test_auto_is_the_gpu_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    assert Utils.get_device("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert Utils.get_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Utils.get_device("auto").type == "cuda"


def test_mixed_precision_is_for_fast_hardware_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert [Utils.get_precision("auto", torch.device(name)) for name in ("cuda", "mps")] == ["fp32", "fp32"]


def write_group(folder: Path, version: int, limit: object, usage: int, inactive: int) -> None:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}
    limit_name, usage_name, inactive_name = names.get(version, ("memory.max", "memory.current", "inactive_file"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / usage_name).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{inactive_name} {inactive}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_a_control_group_and_of_those_around_it_counts(tmp_path: Path, version: int) -> None:
    write_group(tmp_path / "slurm", version, 1000, 700, 100)
    write_group(tmp_path / "slurm/job", version, "max" if version == 2 else 1 << 62, 400, 0)
    write_group(tmp_path / "slurm/job/step", version, 300, 200, 50)
    found = list(system._control_group_memory(tmp_path, "/slurm/job/step"))
    assert min(found) == 150
    assert 400 in found
    assert system.available_memory() > 0


def test_the_less_of_the_machine_and_the_control_group_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_control_group_memory", lambda root, path: iter([12345]))
    assert system.available_memory() == 12345


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_flush_folders_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    original = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError) if fails else contextlib.nullcontext():
        write_atomically(tmp_path / "file", lambda path: path.write_text("content"))
    assert (tmp_path / "file").read_text() == "content"


def test_files_have_the_permissions_of_the_user(tmp_path: Path) -> None:
    """The system applies the mask of the process. The program never changes it, because other threads use it too."""
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", lambda path: path.write_text("content"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_temporary_files_of_killed_processes_are_removed(photos: Path, tmp_path: Path) -> None:
    result_of(tmp_path, "--images", photos, *SHORT)
    old = [tmp_path / "checkpoints/regressor" / f".{'0f' * 8}.part.pt", tmp_path / f"outputs_tanh/.{'1e' * 8}.part.png"]
    recent = tmp_path / f"Plots/.{'2d' * 8}.part.png"  # another process may be writing it
    foreign = [tmp_path / "photos/.holiday.part.jpg", tmp_path / f"photos/.{'3c' * 8}.part.jpg"]
    for path in (*old, recent, *foreign):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    for path in (*old, *foreign):
        os.utime(path, (time.time() - 7200,) * 2)
    result_of(tmp_path, "--images", photos, *SHORT)
    assert [path.exists() for path in (*old, recent, *foreign)] == [False, False, True, True, True]
