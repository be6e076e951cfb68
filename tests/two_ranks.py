"""What a rank does in a test, started by torchrun: `two_ranks.py IMAGES OUTPUT` writes what it saw to OUTPUT/<rank>.pt.

With `SINGLE_PROCESS` for a context, the functions show what one process alone would see.
"""

import itertools
import sys
from pathlib import Path

import torch
from helpers import MANAGERS, SUBSETS, TASKS, Silent
from torch import Tensor, nn

import Constants
from deepcolor.common.signals import Interrupted
from deepcolor.data.batches import BatchSpec
from deepcolor.data.dataset import LabDataModule, LabDataset
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.distributed import DistributedContext
from deepcolor.training.trainer import Trainer

BATCHES = (8, 7)  # shared out evenly and unevenly
STOP_AT = 1.5  # epochs, at which rank 1 alone is asked to stop


def trainer(
    task: tuple[str, str], data: LabDataModule, output: Path, context: DistributedContext, **options: object
) -> Trainer:
    progress = options.pop("progress", Silent())
    training_run = TrainingRun(*task, TrainConfig(**options), (3,))
    device = torch.device("cpu")
    made = MANAGERS[task[0]](training_run, data, RunPaths(output), device, progress, False, context)
    if task[0] == "regressor":  # which begins with the same prediction for every image, and no gradient below its head
        torch.manual_seed(0)
        nn.init.normal_(made.model.head.weight, std=0.01)
    return made


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def first_steps(data: LabDataModule, output: Path, context: DistributedContext) -> dict[object, dict[str, Tensor]]:
    """The gradients of a first step, where the statistics of BatchNorm do not depend on how a batch is shared out."""
    found: dict[object, dict[str, Tensor]] = {}
    for task, batch_size in itertools.product(TASKS, BATCHES):
        here = trainer(task, data, output, context, batch_size=batch_size)
        here.model.train()
        for module in here.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # it normalizes with its running statistics
        here.take_step(*next(iter(here.training_batches())))
        found[task, batch_size] = gradients(here.model)
    for task in TASKS:
        # Two equal halves, which have the statistics of the whole.
        here = trainer(task, data, output, context, batch_size=8)
        here.model.train()
        half = here.data.train.__getitems__(BatchSpec(torch.arange(4)))
        here.take_step(*half if context.world_size == 2 else (torch.cat([part, part]) for part in half))
        found[task, "halves"] = gradients(here.model)
        # The last batch of the epoch has one image.
        here = trainer(task, data, output, context, batch_size=len(data.train) - 1)
        here.model.train()
        here.batch = 1
        here.batches.set_epoch(1, here.batch)
        (last,) = here.training_batches()
        here.take_step(*last)
        found[task, "one image"] = gradients(here.model)
        found[task, "loss of one image"] = {"loss_sum": context.sum(here.loss_sum)}
    return found


def seen(data: LabDataModule, output: Path, context: DistributedContext) -> dict[int, list[list[int]]]:
    """The images that were read in the training steps of an epoch, for each batch size: a list per step."""
    read: list[list[int]] = []
    original = LabDataset.__getitems__

    def watched(self: LabDataset, draw: BatchSpec) -> tuple[Tensor, ...]:
        if draw.boxes is not None:
            read.append(draw.rows.tolist())
        return original(self, draw)

    LabDataset.__getitems__ = watched
    found = {}
    try:
        for batch_size in (*BATCHES, 2):
            read.clear()
            trainer(TASKS[1], data, output, context, batch_size=batch_size).train_epoch()
            found[batch_size] = list(read)
    finally:
        LabDataset.__getitems__ = original
    return found


def evaluations(data: LabDataModule, output: Path, context: DistributedContext) -> dict[object, tuple[float, float]]:
    """The mse of a and b of untrained networks, in large batches and in some that leave one image over."""
    found = {}
    for task, size in itertools.product(TASKS, (Constants.EVALUATION_BATCH, 1)):
        here = trainer(task, data, output, context)
        Constants.EVALUATION_BATCH = size
        for subset in SUBSETS:
            found[task, size, subset] = here.evaluate(getattr(here.data, subset))
        Constants.EVALUATION_BATCH = 64
    return found


def stop(data: LabDataModule, output: Path, context: DistributedContext) -> tuple[int, int, int]:
    """Rank 1 alone is told to stop. The signal, and after how many epochs and steps this rank stopped."""
    progress = Silent(stop_after=STOP_AT if context.rank == 1 else None)
    here = trainer(TASKS[0], data, output / "stopped", context, batch_size=2, progress=progress)
    try:
        here.train()
    except Interrupted as stopped:
        return stopped.signal, here.epoch, here.batch
    raise AssertionError("not stopped")


def main(images: Path, output: Path) -> None:
    torch.set_num_threads(1)
    context = DistributedContext.from_environment()
    context.join()
    data = context.run_on_main(lambda: LabDataModule.load(images, output))
    found = {what.__name__: what(data, output, context) for what in (first_steps, seen, evaluations, stop)}
    torch.save(found, output / f"{context.rank}.pt")
    context.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
