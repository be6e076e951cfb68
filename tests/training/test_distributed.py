"""Two ranks, started with torchrun, compute what a single process computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_ranks
from helpers import ROOT, TASKS, manager
from launch import TORCHRUN
from torch import nn

from deepcolor.common.signals import Interrupted
from deepcolor.data.batches import TrainingBatches
from deepcolor.data.dataset import LabDataModule
from deepcolor.training import distributed
from deepcolor.training.distributed import SINGLE_PROCESS, DistributedContext
from utils import UserError

Found = list[dict[str, dict]]


@pytest.fixture(scope="module")
def found(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The results of `two_ranks` on rank 0, on rank 1 and in a single process."""
    folder = tmp_path_factory.mktemp("found")
    command = [sys.executable, "-m", *TORCHRUN, two_ranks.__file__, photos, folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    data = LabDataModule.load(photos, folder)
    single = {part.__name__: part(data, SINGLE_PROCESS) for part in (two_ranks.gradients, two_ranks.evaluations)}
    return [*(torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)), single]


def test_gradients_are_those_of_the_global_batch(found: Found) -> None:
    first, second, single = (results["gradients"] for results in found)
    assert {key[:2] for key in single} == {(task, size) for task in TASKS for size, _ in two_ranks.STEPS}
    for key, gradient in single.items():
        size = gradient.abs().max()
        assert size > 0
        torch.testing.assert_close(first[key] / size, gradient / size, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[key], second[key])


def test_evaluation_is_exact(found: Found) -> None:
    first, second, single = (results["evaluations"] for results in found)
    assert first == second
    assert len({mse for pair in single.values() for mse in pair}) >= len(single)
    for key, mse in single.items():
        assert first[key] == pytest.approx(mse, rel=1e-6), key


def test_values_errors_sums_and_stops_reach_all_ranks(found: Found) -> None:
    first, second = (results["communication"] for results in found[:2])
    assert first == {
        "run_on_main": 0,
        "errors": [(UserError, ("text",)), (OSError, (28, "full")), (Interrupted, (15,))],
        "sum_on_main": ([3, 30], [3, 30]),
        "sync_stop": [(15, True), (15, False)],
        "sync_stop between": (0, False),
        "local_device": torch.device("cpu"),
    }
    assert second == {**first, "sum_on_main": ([3, 30], [0, 0])}


# --- Without other ranks ---------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("training", [True, False])
def test_the_slices_of_all_ranks_are_the_batch(world_size: int, training: bool) -> None:
    batches = TrainingBatches(images=100, batch_size=64, augment_repeats=1, seed=3, crop_area=0.6)
    contexts = [DistributedContext(rank, world_size) for rank in range(world_size)]
    sharded = zip(*(distributed.shard_batches(batches, context, training) for context in contexts))
    for batch, slices in zip(batches, sharded, strict=True):  # of 64 and of 36 images
        counts = [len(spec.rows) for spec in slices]
        if training and len(batch.rows) < world_size:
            assert all(torch.equal(spec.rows, batch.rows) for spec in slices)
        else:
            assert torch.equal(torch.cat([spec.rows for spec in slices]), batch.rows)
            assert torch.equal(torch.cat([spec.boxes for spec in slices]), batch.boxes)
            assert max(counts) - min(counts) <= 1
        if training:
            size = len(batch.rows)
            weights = [distributed.loss_weight(count, size, context) for count, context in zip(counts, contexts)]
            assert sum(counted for counted, _ in weights) == pytest.approx(size)
            assert [weight * size / world_size for _, weight in weights] == pytest.approx([n for n, _ in weights])


def test_batchnorm_is_synchronized_on_gpus_only(data: LabDataModule, tmp_path: Path) -> None:
    """Only the conversion: PyTorch runs SyncBatchNorm on GPUs."""
    gpu, cpu, two = torch.device("cuda"), torch.device("cpu"), DistributedContext(world_size=2)
    for task in TASKS:
        model = manager(task, data, tmp_path).model
        names, parameters = list(model.state_dict()), list(model.parameters())
        norms = [isinstance(module, nn.BatchNorm2d) for module in model.modules()]
        assert distributed.convert_sync_batchnorm(model, gpu, SINGLE_PROCESS) is model
        assert distributed.convert_sync_batchnorm(model, cpu, two) is model
        converted = distributed.convert_sync_batchnorm(model, gpu, two)
        assert list(converted.state_dict()) == names
        assert all(one is other for one, other in zip(converted.parameters(), parameters, strict=True))
        assert [isinstance(module, nn.SyncBatchNorm) for module in converted.modules()] == norms
        assert sum(norms) == (6 if task[0] == "regressor" else 11)


VARIABLES = dict(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")


def test_only_torchruns_variables_make_a_run_distributed() -> None:
    assert DistributedContext.from_environment(VARIABLES) == DistributedContext(3, 4, 1, 2)
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_NUM_NODES": "2"}
    for variables in ({}, slurm, {**slurm, "RANK": "3"}, {**VARIABLES, "WORLD_SIZE": "1", "RANK": "0"}):
        assert DistributedContext.from_environment(variables) == SINGLE_PROCESS


@pytest.mark.parametrize("wrong", [{"RANK": "4"}, {"RANK": "-1"}, {"LOCAL_RANK": ""}, {"WORLD_SIZE": "four"}], ids=str)
def test_inconsistent_variables_are_an_error(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="torchrun"):
        DistributedContext.from_environment({**VARIABLES, **wrong})


def test_a_batch_smaller_than_the_number_of_ranks_is_an_error() -> None:
    distributed.check_batch_size(4, DistributedContext(world_size=4))
    with pytest.raises(UserError, match="--batch-size 4"):
        distributed.check_batch_size(3, DistributedContext(world_size=4))
