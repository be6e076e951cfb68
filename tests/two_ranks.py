"""What test_distributed.py compares between two ranks and a single process.

torchrun starts `two_ranks.py IMAGES OUTPUT`. Each rank writes its results to OUTPUT/<rank>.pt.
"""

import sys
from itertools import product
from pathlib import Path

import torch
from helpers import MANAGERS, SUBSETS, TASKS, SilentCallbacks
from torch import nn

import Constants
from deepcolor.common.signals import Interrupted
from deepcolor.data.dataset import LabDataModule
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.distributed import DistributedContext, launch
from deepcolor.training.paths import RunPaths
from deepcolor.training.trainer import Trainer
from utils import UserError

STEPS = ((8, 0), (7, 0), (16, 1))  # batch size and step: an even and an uneven batch, and the last one of one image
Results = dict[object, object]


def build(task: tuple[str, str], data: LabDataModule, context: DistributedContext, **config: object) -> Trainer:
    run, paths, device = TrainingRun(*task, TrainConfig(**config), (1,)), RunPaths(Path()), torch.device("cpu")
    return MANAGERS[task[0]](run, data, paths, device, SilentCallbacks(), context=context)


def gradients(data: LabDataModule, context: DistributedContext) -> Results:
    """Returns the gradients and the loss of some steps."""
    found: Results = {}
    for task, (batch_size, step) in product(TASKS, STEPS):
        trainer = build(task, data, context, batch_size=batch_size)
        trainer.model.train()
        for module in trainer.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # otherwise its statistics, on CPUs, are those of a slice
        if task[0] == "regressor":  # its head starts at zero, which gives the layers below no gradient
            torch.manual_seed(0)
            nn.init.normal_(trainer.model.head.weight, std=0.01)
        trainer.batch = step
        trainer.batches.set_epoch(1, step)
        trainer.run_step(*next(iter(trainer.training_batches())))
        found[task, batch_size, "loss"] = context.sum(trainer.loss_sum)
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                found[task, batch_size, name] = parameter.grad.clone()
    return found


def evaluations(data: LabDataModule, context: DistributedContext) -> Results:
    """Returns the mse of a and b of untrained networks, in large batches and in batches of one image per rank."""
    found: Results = {}
    default = Constants.EVALUATION_BATCH
    for task, size, subset in product(TASKS, (default, 1), SUBSETS):
        Constants.EVALUATION_BATCH = size
        trainer = build(task, data, context)
        found[task, size, subset] = trainer.evaluate(getattr(trainer.data, subset))
    Constants.EVALUATION_BATCH = default
    return found


def communication(data: LabDataModule, context: DistributedContext) -> Results:
    """Returns what this rank gets from the methods of its context."""

    def raised(error: BaseException) -> tuple[type, tuple]:
        def fail() -> None:
            raise error

        try:
            context.run_on_main(fail)
        except type(error) as caught:
            return type(caught), caught.args
        raise AssertionError("not raised")

    tensor = torch.tensor([1.0, 10.0]) * (context.rank + 1)
    return {
        "run_on_main": context.run_on_main(lambda: context.rank),
        "errors": [raised(error) for error in (UserError("text"), OSError(28, "full"), Interrupted(15))],
        "sum_on_main": (context.sum_on_main(tensor).tolist(), tensor.tolist()),
        "sync_stop": [context.sync_stop(15 * context.rank, due=context.rank == rank) for rank in (0, 1)],
        "sync_stop between": context.sync_stop(15, due=True, step=Constants.SYNC_STEPS + 1),
        "local_device": context.local_device(torch.device("cpu")),
    }


def main(context: DistributedContext) -> int:
    torch.set_num_threads(1)
    images, output = map(Path, sys.argv[1:])
    data = context.run_on_main(lambda: LabDataModule.load(images, output))
    found = {part.__name__: part(data, context) for part in (gradients, evaluations, communication)}
    torch.save(found, output / f"{context.rank}.pt")
    return 0


if __name__ == "__main__":
    sys.exit(launch(main))
