"""Two ranks, started by the real torchrun, train what one process trains."""

import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import two_ranks
from helpers import ROOT, TASKS, Silent, manager, plain, read_checkpoint, train, visible_files
from launch import TORCHRUN, own_lines, torchrun
from survival import Process, wait_until
from torch import nn

from deepcolor.common.signals import STOPPED_MESSAGE, Interrupted
from deepcolor.data.batches import TrainingBatches
from deepcolor.data.dataset import LabDataModule
from deepcolor.training import data_parallel
from deepcolor.training.distributed import SINGLE_PROCESS, DistributedContext
from utils import UserError

pytest_plugins = ["survival"]

FLAGS = "--device cpu --activation sigmoid --weight-decay 0 --epoch 2 20 --batch-size 4 --seed 5".split()
CONFIG_FIELDS = {"lr": 0.01, "weight_decay": 0, "batch_size": 4}
SNAPSHOTS = (2, 20)
SEEDS = range(5)
WRITTEN = {"Plots", "checkpoints", "outputs_sigmoid"}


def has(folder: Path, pattern: str) -> Callable[[], list[Path]]:
    return lambda: list((folder / "checkpoints").glob(pattern))


# --- Against one process --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    """What two ranks and, last, one process alone found in `two_ranks`."""
    folder = tmp_path_factory.mktemp("looked")
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, two_ranks.__file__, photos, folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    data = LabDataModule.load(photos, folder)
    alone = {
        f.__name__: f(data, folder, SINGLE_PROCESS)
        for f in (two_ranks.first_steps, two_ranks.seen, two_ranks.evaluations)
    }
    return [*(torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)), alone]


def test_the_first_gradients_of_two_ranks_are_those_of_one(looked: list[dict]) -> None:
    first, second, alone = (found["first_steps"] for found in looked)
    assert len(alone) == len(TASKS) * (len(two_ranks.BATCHES) + 3)
    for what, gradients in alone.items():
        for name, gradient in gradients.items():
            size = gradient.abs().max()
            assert size > 0
            torch.testing.assert_close(first[what][name] / size, gradient / size, rtol=1e-4, atol=1e-5)
            assert torch.equal(first[what][name], second[what][name])


def test_every_image_is_looked_at_once_per_epoch_over_both_ranks(looked: list[dict]) -> None:
    first, second, alone = (found["seen"] for found in looked)
    for batch_size, steps in alone.items():
        assert sorted(row for step in steps for row in step) == list(range(17))
        assert len(first[batch_size]) == len(second[batch_size]) == len(steps)
        for one, other, both in zip(first[batch_size], second[batch_size], steps):
            # One image is both ranks', each of which gives it half of its weight: see the gradients.
            assert one + other == both if len(both) > 1 else one == other == both
            assert len(one) - len(other) in (0, 1)


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_the_shares_of_all_ranks_are_the_batch(size: int) -> None:
    batches = TrainingBatches(images=100, batch_size=64, augment_repeats=1, seed=3, crop_area=0.6)  # 64 and 36 images
    worlds = [DistributedContext(rank, size) for rank in range(size)]
    for of_all, whole in (
        (zip(*(data_parallel.shard_training_batches(batches, context) for context in worlds)), size > 36),
        (zip(*(data_parallel.shard_evaluation_batches(batches, context) for context in worlds)), False),
    ):
        for number, (draw, shares) in enumerate(zip(batches, of_all, strict=True)):
            counts = [len(share.rows) for share in shares]
            if whole and number == 1:  # fewer images than ranks
                assert all(torch.equal(share.rows, draw.rows) for share in shares)
            else:
                assert torch.equal(torch.cat([share.rows for share in shares]), draw.rows)
                assert torch.equal(torch.cat([share.boxes for share in shares]), draw.boxes)
                assert max(counts) - min(counts) <= 1
        # The losses, weighted, are the batch's: whatever each rank's images come to.
        images, weights = zip(
            *(data_parallel.loss_weight(count, 36, context) for count, context in zip(counts, worlds))
        )
        if not whole and min(counts):
            assert sum(images) == pytest.approx(36)
            assert [weight / size for weight in weights] == pytest.approx([count / 36 for count in counts])


def test_evaluation_by_two_ranks_is_exact(looked: list[dict]) -> None:
    first, second, alone = (found["evaluations"] for found in looked)
    assert first == second
    assert len({mse for pair in alone.values() for mse in pair}) >= len(alone)
    for what, mse in alone.items():
        assert first[what] == pytest.approx(mse, rel=1e-6), what


def test_all_ranks_stop_at_the_same_step_when_one_is_told_to(looked: list[dict]) -> None:
    assert looked[0]["stop"] == looked[1]["stop"] == (signal.SIGINT, 1, 8)


# --- The real program -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Process:
    """Two ranks, from the beginning to the end; what they wrote is in `out`."""
    folder = tmp_path_factory.mktemp("ranks")
    with torchrun("--images", photos, *FLAGS, "--lr", 0.01, "--jobs", 2, "--output", "out", cwd=folder) as process:
        assert process.finish() == 0, process.stderr
        return process


def output(process: Process) -> Path:
    return process.logs[0].parent / "out"


def test_rank_0_alone_speaks_and_writes(undisturbed: Process, data: LabDataModule, tmp_path: Path) -> None:
    lines = undisturbed.stdout.splitlines()
    assert len([line for line in lines if "one training run at a time" in line]) == 1
    assert len([line for line in lines if line.startswith("Best ")]) == 2
    for task in ("regressor", "colorizer_sigmoid"):
        for epoch in SNAPSHOTS:
            assert len([line for line in lines if line.startswith(f"{task} epoch_{epoch}_")]) == 1
    assert own_lines(undisturbed) == []
    assert {path.split("/")[0] for path in visible_files(output(undisturbed))} == WRITTEN
    for task in TASKS[:2]:
        names = read_checkpoint(output(undisturbed), task, 20)["model"].keys()
        assert names == manager(task, data, tmp_path).model.state_dict().keys()  # as colorize loads it


def late_loss(content: dict) -> float:
    """The loss over the last epochs, which says more of so few images than the error on fewer still."""
    return statistics.mean(content["history"]["train_mse"][-5:])


def test_what_two_ranks_learn_is_what_one_learns(undisturbed: Process, data: LabDataModule, tmp_path: Path) -> None:
    """On the CPU, where each rank normalizes over its half of the batch: within the spread of one process's seeds."""
    for task in TASKS[:2]:
        by_two = late_loss(read_checkpoint(output(undisturbed), task, 20))
        by_one = [late_loss(train(task, data, tmp_path / str(s), 20, seed=s, **CONFIG_FIELDS)[0]) for s in SEEDS]
        spread = statistics.stdev(by_one)
        assert spread < 0.25 * statistics.mean(by_one)  # or the comparison would say little
        assert abs(by_two - statistics.mean(by_one)) < 3 * spread, (task, by_two, by_one)


def test_an_interrupted_run_goes_on_with_as_many_ranks_as_there_are(
    undisturbed: Process, photos: Path, data: LabDataModule, tmp_path: Path
) -> None:
    command = ["--images", photos, *FLAGS, "--network", "regressor", "--lr", 0.01, 0.02, "--output", "out"]
    with pytest.raises(Interrupted):  # the one begun by one process
        half = {**CONFIG_FIELDS, "lr": 0.02, "seed": 5}
        manager(TASKS[0], data, tmp_path / "out", SNAPSHOTS, Silent(stop_after=1.5), **half).train()
    with torchrun(*command, cwd=tmp_path) as process:  # the other by two
        assert wait_until(has(tmp_path / "out", "regressor/epoch_2_lr_0.01_*.pt"))
        process.stop(signal.SIGINT)
        assert own_lines(process) == [f"main.py: {STOPPED_MESSAGE}"]
    assert not has(tmp_path / "out", "regressor/epoch_20_lr_0.02_*.pt")()
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    with torchrun(*command, cwd=tmp_path) as process:
        assert process.finish() == 0, process.stderr
        assert "anew" not in process.stdout
        assert "not used" not in process.stdout
    name = "checkpoints/regressor/epoch_20_lr_0.01_weight_decay_0.pt"
    models = [torch.load(folder / name, weights_only=True) for folder in (tmp_path / "out", output(undisturbed))]
    assert plain(models[0]) == plain(models[1])
    progress = Silent()
    manager(TASKS[0], data, tmp_path / "copy", SNAPSHOTS, progress, **CONFIG_FIELDS, seed=5).train()
    assert progress.advances[0] >= 2
    assert not any("anew" in line or "not used" in line for line in progress.said)
    assert (tmp_path / "copy" / name).exists()


# --- Without other ranks --------------------------------------------------------------------------


def test_batchnorm_is_synchronized_on_gpus_and_named_as_ever(data: LabDataModule, tmp_path: Path) -> None:
    """Converted only: PyTorch runs it on GPUs alone."""
    gpu, cpu, two = torch.device("cuda"), torch.device("cpu"), DistributedContext(world_size=2)
    for task in TASKS:
        model = manager(task, data, tmp_path).model
        names = list(model.state_dict())
        assert data_parallel.convert_sync_batchnorm(model, gpu, SINGLE_PROCESS) is model
        assert data_parallel.convert_sync_batchnorm(model, cpu, two) is model
        parameters = list(model.parameters())
        converted = data_parallel.convert_sync_batchnorm(model, gpu, two)
        assert list(converted.state_dict()) == names
        assert all(one is other for one, other in zip(converted.parameters(), parameters, strict=True))
        kinds = [type(module) for module in converted.modules()]
        assert kinds.count(nn.SyncBatchNorm) == (6 if task[0] == "regressor" else 11)
        assert nn.BatchNorm2d not in kinds


# --- The environment ------------------------------------------------------------------------------

TOLD = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}


def test_the_world_is_what_torchrun_says_and_nothing_else() -> None:
    context = DistributedContext.from_environment(TOLD)
    assert (context.rank, context.world_size, context.local_rank, context.local_world_size) == (3, 4, 1, 2)
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_NUM_NODES": "2"}
    for variables in ({}, slurm, {**slurm, "RANK": "3"}, {**TOLD, "WORLD_SIZE": "1", "RANK": "0"}):
        assert DistributedContext.from_environment(variables).size == 1


@pytest.mark.parametrize(
    "wrong", [{"RANK": "4"}, {"RANK": "-1"}, {"RANK": ""}, {"WORLD_SIZE": "four"}, {"MASTER_PORT": ""}], ids=str
)
def test_half_a_world_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="torchrun"):
        DistributedContext.from_environment({**TOLD, **wrong})


def test_a_batch_smaller_than_the_ranks_is_refused() -> None:
    data_parallel.check_batch_size(4, DistributedContext(world_size=4))
    with pytest.raises(UserError, match="--batch-size 4"):
        data_parallel.check_batch_size(3, DistributedContext(world_size=4))
