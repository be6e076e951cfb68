"""What holds on a GPU, tested without one: fakes stand in for the GPU, its errors and its memory."""

import pickle
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import SHORT, TASKS, SilentCallbacks, manager, only_line
from torch import Tensor

import colorize
import main
from deepcolor.data.batches import EvaluationBatches, TrainingBatches
from deepcolor.data.dataset import LabDataModule
from deepcolor.sweep.sweep import Sweep
from deepcolor.training import checkpoint
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.cuda_graph import CudaGraphStep
from deepcolor.training.optimizer import build_optimizer
from deepcolor.training.paths import RunPaths
from deepcolor.training.trainer import Trainer
from utils import Utils, free_gpu_memory

TWO_RUNS = [*SHORT, "--lr", "0.003", "0.001", "--jobs", "1"]
LOST = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nmore about it")
FULL = torch.OutOfMemoryError("CUDA out of memory")


def command(photos: Path, output: Path, *flags: str) -> list[str]:
    return ["--images", str(photos), "--output", str(output), *TWO_RUNS, *flags]


@pytest.mark.parametrize("method", ["train_epoch", "measure_seconds_per_epoch"])
def test_a_gpu_that_fails_ends_the_process_with_one_line_and_the_same_command_continues(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, method: str
) -> None:
    """Every later call of this process would fail, and with it every run."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, method, fails := Mock(side_effect=LOST))
        assert main.main(command(photos, tmp_path)) == 1
    assert fails.call_count == 1
    assert "the GPU failed: CUDA error: uncorrectable ECC error encountered" in only_line(capsys.readouterr().err)
    assert main.main(command(photos, tmp_path)) == 0


def test_a_network_that_does_not_fit_fails_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    original = Trainer.step

    def step(trainer: Trainer, *batch: Tensor) -> None:
        if trainer.config.feature_maps == 4:
            raise FULL
        original(trainer, *batch)

    monkeypatch.setattr(Trainer, "step", step)
    flags = [*SHORT, "--jobs", "1", "--feature-maps", "3", "4"]
    assert main.main(["--images", str(photos), "--output", str(tmp_path), *flags]) == 1
    said = capsys.readouterr()
    assert "maps_4: CUDA out of memory" in only_line(said.err)
    assert "Best regressor" in said.out


def test_precision_auto_keeps_its_meaning_in_an_output_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is requeued on a machine without bf16 continues its runs."""
    for hardware in ("auto", "fp32"):
        monkeypatch.setattr(Utils, "get_precision", lambda requested, device, found=hardware: found)
        assert main.main(["--images", str(photos), "--output", str(tmp_path), *SHORT, "--feature-maps", "16"]) == 0
    (path,) = tmp_path.glob("checkpoints/regressor/epoch_1_*.pt")
    assert checkpoint.load_model(path)["hyperparameters"]["precision"] == "bf16"


class OnGpu(Tensor):
    """A tensor that counts how often it is copied to the CPU."""

    copies = 0

    def cpu(self) -> Tensor:
        OnGpu.copies += 1
        return self.as_subclass(Tensor).clone()


def test_checkpoints_hold_tensors_of_the_cpu(tmp_path: Path) -> None:
    checkpoint.save({"model": {"weight": torch.ones(2).as_subclass(OnGpu)}}, tmp_path / "model.pt")
    assert OnGpu.copies == 1
    assert torch.load(tmp_path / "model.pt", weights_only=True)["model"]["weight"].tolist() == [1, 1]


def test_evaluation_does_not_use_tf32(data: LabDataModule, tmp_path: Path) -> None:
    trainer = manager(TASKS[1], data, tmp_path)
    seen = []
    trainer.model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before = torch.backends.cudnn.conv.fp32_precision
    trainer.evaluate(data.val)
    assert seen == ["ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_free_gpu_memory_counts_what_pytorch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"memory_reserved": 50, "memory_allocated": 20, "mem_get_info": (7, 80)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_gpu_memory(torch.device("cuda")) == 37


def test_images_are_copied_to_the_gpu_once_per_process(
    data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabDataModule, "to", copies := Mock(return_value=data))
    runs = [TrainingRun("regressor", "", TrainConfig(lr=lr), (1,)) for lr in (0.1, 0.2)]
    sweep = Sweep(runs, data, RunPaths(tmp_path), torch.device("cpu"))
    assert sweep.run(1) == []
    assert copies.call_count == 1
    worker = pickle.loads(pickle.dumps(sweep))  # gets no copy of what the parent has on the GPU
    assert worker._device_data is not None
    assert copies.call_count == 2
    sweep._free_device_memory()
    assert sweep._device_data is data and copies.call_count == 3


@pytest.mark.parametrize("mean", [False, True])
def test_batches_of_sets_that_do_not_fit_are_cropped_on_the_device(data: LabDataModule, mean: bool) -> None:
    plain = data.train.with_mean_ab() if mean else data.train
    streamed = plain.to(torch.device("cpu"))
    streamed._crop_device = torch.device("cpu")
    for batches in (TrainingBatches(len(plain), 4, 1, 0, 0.6), EvaluationBatches(len(plain))):
        for spec in batches:
            for one, other in zip(plain.__getitems__(spec), streamed.__getitems__(spec), strict=True):
                assert torch.equal(one, other)


def test_the_measured_steps_include_replays(data: LabDataModule, tmp_path: Path) -> None:
    class Graph(CudaGraphStep):
        def __init__(self, step: Callable[..., None]) -> None:
            self.step, self.calls = step, 0

        def __call__(self, *inputs: Tensor) -> None:
            self.calls += 1

    trainer = manager(TASKS[0], data, tmp_path, callbacks=SilentCallbacks())
    trainer.run_step = graph = Graph(trainer.step)
    trainer.measure_seconds_per_epoch()
    assert graph.calls == CudaGraphStep.CALLS_BEFORE_REPLAY + 3


def test_the_learning_rate_on_a_gpu_is_a_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch makes an integer tensor of an integer, which cannot hold the rates of a schedule."""
    original = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda value, device: original(value))
    optimizer = build_optimizer(TrainConfig(lr=1), torch.nn.Linear(1, 1), Mock(type="cuda"))
    assert optimizer.param_groups[0]["lr"].dtype == torch.float32


def test_several_gpus_have_several_jobs(data: LabDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [TrainingRun("regressor", "", TrainConfig(lr=0.1 + lr), (1,)) for lr in range(9)]
    sweep = Sweep(runs, data, RunPaths(Path()), torch.device("cuda"))
    monkeypatch.setattr("deepcolor.sweep.sweep.available_cores", lambda: 64)
    monkeypatch.setattr("deepcolor.sweep.sweep.available_memory", lambda: 1 << 40)
    for gpus, jobs in ((1, 4), (2, 8)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert sweep.choose_jobs(None, 1000.0, runs) == jobs


def test_a_gpu_that_pytorch_cannot_use_is_reported(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    flags = ["--images", str(photos), "--output", str(tmp_path), *SHORT]
    flags[flags.index("cpu")] = "auto"
    assert main.main(flags) == 0
    assert "PyTorch cannot use it" in only_line(capsys.readouterr().err)


def test_colorizing_starts_no_gpu_unless_asked() -> None:
    assert colorize.parser().parse_args(["photo.jpg"]).device == "cpu"
