"""The package side of throughput.py: what a worker of a sweep does."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import common
import torch
from sides import SideProcess
from torch import Tensor

from deepcolor.common.system import keep_freed_memory
from deepcolor.data.batches import BatchSpec, loader
from deepcolor.reporting.plots import loss_plot
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.callbacks import Callbacks
from deepcolor.training.distributed import SINGLE_PROCESS
from deepcolor.training.paths import RunPaths

_MATRIX_ROWS = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product gives the peak
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PackageProcess(SideProcess):
    """Trains one run of a sweep. `number`: of the process, which decides on the run."""

    def __init__(self, sweep: Sweep, number: int) -> None:
        keep_freed_memory()
        # A folder per process, because several can train the same run here.
        self.sweep = replace(sweep, paths=RunPaths(sweep.paths.root / f"worker-{os.getpid()}"))
        self.sweep.paths.prepare("fp32")
        self.number = number
        self.device = sweep.device

    def warm_up(self, network: str, seconds: float) -> float:
        runs = [run for run in self.sweep.training_runs if run.network == network]
        self.trainer = self.sweep.build_trainer(runs[self.number % len(runs)], _LossPlots(self.sweep.paths))
        self.steps = len(self.trainer.batches)
        return common.per_call(self.train_epoch, self.device, seconds)

    def train_epoch(self) -> None:
        self.trainer.train_epoch()

    def batches(self, augment: bool) -> Iterator[Sequence[Tensor]]:
        self.trainer.model.train()
        specs = self.trainer.batches
        specs.set_epoch(self.trainer.epoch + 1)
        batches = loader(self.trainer.data.train, specs if augment else [BatchSpec(spec.rows) for spec in specs])
        return ([tensor.to(self.device) for tensor in batch] for batch in batches)

    def step(self, lightness: Tensor, ab: Tensor) -> None:
        self.trainer.run_step(lightness, ab)

    def validate(self) -> None:
        self.trainer.evaluate(self.trainer.data.val)
        self.trainer.loss_sum.zero_()  # of the steps measured before

    def finish_seconds(self) -> float:
        """Returns the seconds to score a model and write its files."""
        epoch = self.trainer.training_run.snapshot_epochs[0]
        self.trainer.finish(epoch)  # warm-up: the first picture of a process takes longer
        start = common.clock(self.device)
        self.trainer.finish(epoch)
        return common.clock(self.device) - start

    def save_seconds(self) -> float:
        """Returns the seconds to save the state of the training run."""
        start = common.clock(self.device)
        self.trainer.save(0, SINGLE_PROCESS)
        return common.clock(self.device) - start

    def peak(self, precision: str) -> float:
        """Returns the FLOP/s of a large matrix product. On a GPU, only process 0 computes."""
        if self.number and self.device.type == "cuda":
            return 0.0
        rows = _MATRIX_ROWS[self.device.type]
        left, right = (torch.randn(rows, rows, device=self.device).to(_DTYPES[precision]) for _ in range(2))
        result = torch.empty_like(left)
        return 2 * rows**3 / common.per_call(lambda: torch.mm(left, right, out=result), self.device, seconds=1)

    def threads(self) -> int:
        return torch.get_num_threads()


class _LossPlots(Callbacks):
    """Draws the plot of each model, which is part of the time to finish it."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths

    def model_scored(self, model: dict) -> None:
        loss_plot(self.paths.plot(model["network"], model["activation"], model["run"], "loss.png"), model)
