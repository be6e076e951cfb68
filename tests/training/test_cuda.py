"""Training on a GPU: resident images and CUDA graphs, against eager steps and the CPU."""

from pathlib import Path

import pytest
import torch
from helpers import SilentCallbacks
from torch import Tensor

from ColorizerManager import ColorizerManager
from deepcolor.data.dataset import LabDataModule
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.cuda_graph import CudaGraphStep
from deepcolor.training.paths import RunPaths

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")

EPOCHS = 6


def train(data: LabDataModule, output: Path, device: str, eager: bool = False) -> ColorizerManager:
    """Returns the trainer after the last epoch."""
    device = torch.device(device)
    training_run = TrainingRun("colorizer", "sigmoid", TrainConfig(batch_size=4), (EPOCHS,))
    trainer = ColorizerManager(training_run, data.to(device), RunPaths(output), device, SilentCallbacks())
    if eager:
        trainer.run_step = trainer.step
    trainer.train()
    return trainer


def test_images_are_on_the_gpu(data: LabDataModule) -> None:
    resident = data.train.to(torch.device("cuda"))
    assert resident.records.is_cuda
    for index in (0, len(data.train) - 1):
        for gpu, cpu in zip(resident[index], data.train[index], strict=True):
            assert torch.equal(gpu.cpu(), cpu)


def test_cuda_graph_step_captures_one_graph_per_shape() -> None:
    total = torch.zeros((), dtype=torch.int64, device="cuda")

    def step(values: Tensor, factor: Tensor) -> None:
        total.add_((values * factor).sum())

    graphed, expected = CudaGraphStep(step), 0
    for call, size in enumerate([3, 4, 4, 4] * 6):  # as when training resumes at a short batch
        values, factor = torch.arange(size, device="cuda") + call, torch.tensor(call + 1, device="cuda")
        graphed(values, factor)
        expected += (values * factor).sum().item()
        assert total.item() == expected
    assert set(graphed.graphs) == {(torch.Size([size]), torch.Size([])) for size in (3, 4)}


def test_graphed_training_equals_eager_training(data: LabDataModule, tmp_path: Path) -> None:
    graphed = train(data, tmp_path / "graph", "cuda")
    assert graphed.run_step.graphs
    eager = train(data, tmp_path / "eager", "cuda", eager=True)
    for name, tensor in eager.model.state_dict().items():
        torch.testing.assert_close(graphed.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_gpu_training_equals_cpu_training(data: LabDataModule, tmp_path: Path) -> None:
    losses = [train(data, tmp_path / d, d).history["train_mse"] for d in ("cpu", "cuda")]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
