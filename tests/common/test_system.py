"""Systems other than Linux: the program without what only Linux has, and Apple's GPUs, which have no float64."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TASKS, manager, picture, write
from survival import differences, result_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
    flags = "--device cpu --activation tanh --lr 0.003 0.001 --weight-decay 0 --epoch 2 --jobs".split()
    said = run_without_linux(tmp_path, "main", "--images", photos, "--output", tmp_path / "out", *flags, 2)
    assert "2 at once" in said
    assert differences(tmp_path / "out", result_of(tmp_path / "expected", "--images", photos, *flags, 1)) == []
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
