"""On a GPU the same trainer gives the same training, through a CUDA graph and with its images resident."""

from pathlib import Path

import pytest
import torch
from helpers import Silent

from ColorizerManager import ColorizerManager
from deepcolor.data.dataset import LabDataModule
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainConfig, TrainingRun

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")

EPOCHS = 6


def trained(data: LabDataModule, output: Path, device: str, eager: bool = False) -> ColorizerManager:
    device = torch.device(device)
    training_run = TrainingRun("colorizer", "sigmoid", TrainConfig(batch_size=4), (EPOCHS,))
    trainer = ColorizerManager(training_run, data.to(device), RunPaths(output), device, Silent())
    if eager:
        trainer.take_step = trainer.step
    trainer.train()
    return trainer


def test_the_images_are_resident(data: LabDataModule) -> None:
    resident = data.train.to(torch.device("cuda"))
    assert resident.records.is_cuda
    for index in (0, len(data.train) - 1):
        for there, here in zip(resident[index], data.train[index], strict=True):
            assert torch.equal(there.cpu(), here)


def test_replayed_steps_are_the_steps(data: LabDataModule, tmp_path: Path) -> None:
    graphed = trained(data, tmp_path / "graph", "cuda")
    assert graphed.take_step.graph is not None
    eager = trained(data, tmp_path / "eager", "cuda", eager=True)
    for name, tensor in eager.model.state_dict().items():
        torch.testing.assert_close(graphed.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_gpu_learns_what_a_cpu_learns(data: LabDataModule, tmp_path: Path) -> None:
    losses = [trained(data, tmp_path / d, d).history["train_mse"] for d in ("cpu", "cuda")]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
