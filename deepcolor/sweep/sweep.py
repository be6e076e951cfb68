"""Runs the training runs of a plan, one by one or side by side, and shows how far they are."""

import contextlib
import gc
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ColorizerManager import ColorizerManager
from deepcolor.common.system import available_cores, available_memory
from deepcolor.data.dataset import LabDataModule
from deepcolor.reporting.progress import Progress, Silent, SweepProgress
from deepcolor.sweep.workers import run_side_by_side
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainingRun
from deepcolor.training.distributed import SINGLE_PROCESS, DistributedContext
from deepcolor.training.trainer import Trainer
from Regressor_Manager import RegressorManager
from utils import UserError, Utils, format_seconds

MANAGERS = {"regressor": RegressorManager, "colorizer": ColorizerManager}
_WORTH_WORKERS = 20  # seconds of expected work, below which starting further processes takes longer than it saves
_BYTES_PER_JOB = 1.5 * 2**30
_JOBS_PER_GPU = 4


@dataclass(frozen=True)
class Sweep:
    """Trajectories, and all that is needed to train any one of them."""

    training_runs: Sequence[TrainingRun]
    data: LabDataModule
    output: RunPaths
    device: torch.device
    restart: bool = False
    tensorboard: bool = False
    plan: Sequence[TrainingRun] = ()  # the whole, where `training_runs` are a part of it
    context: DistributedContext = SINGLE_PROCESS

    def trainer(self, training_run: TrainingRun, progress: Progress) -> Trainer:
        torch.set_num_threads(self.threads(training_run))
        manager = MANAGERS[training_run.network]
        data = self.data.to(self.device)
        return manager(training_run, data, self.output, self.device, progress, self.restart, self.context)

    def threads(self, training_run: TrainingRun) -> int:
        """The threads that a training run is trained with: decided by the plan and the machine, never by --jobs.

        Sums come out differently in the last bit with another number of threads. A narrow network gains nothing from
        a second one; a wide one takes its share of the cores, which is more than one only where training runs are few.
        """
        wide = sum(Utils.is_wide(other.config.feature_maps) for other in self.plan or self.training_runs)
        cores = available_cores() // self.context.local_world_size
        return max(1, cores // wide) if Utils.is_wide(training_run.config.feature_maps) else 1

    def costs(self) -> dict[TrainingRun, float]:
        """Seconds per epoch of each training run on this machine, measured on a few steps of each kind of network."""
        measured: dict[tuple, float] = {}
        costs = {}
        for training_run in self.training_runs:
            alike = replace(training_run.config, lr=1.0, weight_decay=0, seed=0)
            if (kind := (training_run.task, alike)) not in measured:
                measured[kind] = self.trainer(training_run, Silent()).measure_seconds_per_epoch()
            costs[training_run] = measured[kind]
        return costs

    def jobs(self, requested: int | None, seconds: float) -> int:
        """How many training runs to train at once; None asks for what is fastest for that many seconds of work.

        Several ranks are at work on one already.
        """
        if self.context.world_size > 1:
            return 1
        if requested is not None:
            return min(requested, len(self.training_runs))
        if seconds < _WORTH_WORKERS:
            return 1
        threads = max(self.threads(training_run) for training_run in self.training_runs)
        at_once = available_cores() // threads
        if self.device.type == "cuda":
            at_once = min(at_once, _JOBS_PER_GPU)
        by_memory = int(available_memory() / _BYTES_PER_JOB)
        return max(1, min(at_once, by_memory, len(self.training_runs)))

    def run(self, requested: int | None = None) -> list[str]:
        """Trains all training runs, `requested` of them at once, and returns a line for each that failed.

        A failure of one leaves the others unharmed. Raises Interrupted, after saving, if a signal asked to stop.
        """
        costs = self.costs()
        work = {
            training_run: costs[training_run] * training_run.snapshot_epochs[-1] for training_run in self.training_runs
        }
        seconds = sum(work.values())
        jobs = self.jobs(requested, seconds)
        where = f"{self.describe_device()}, {jobs} at once" if jobs > 1 else self.describe_device()
        print(f"About {format_seconds(seconds / jobs)} from the beginning to the end on {where}.", flush=True)
        with SweepProgress.printable(seconds) as progress:
            if jobs > 1:
                # The longest first, lest one of them be all that is left at the end.
                longest_first = sorted(self.training_runs, key=work.__getitem__, reverse=True)
                failures = run_side_by_side(self.train, longest_first, jobs, costs, progress)
            else:
                failures = []
                for training_run in self.training_runs:
                    failures.append(self.train(training_run, progress.of(costs[training_run])))
                    if failures[-1] and self.context.world_size > 1:
                        break  # it may have failed on this rank alone: the others cannot go on without it
        return [failure for failure in failures if failure] or (self.removed() if self.context.is_main_process else [])

    def removed(self) -> list[str]:
        """A line for each training run that was trained, and of whose models somebody has removed some meanwhile."""
        return [
            f"{training_run.task} {training_run.name}: its files were removed meanwhile; start again to have them made anew"
            for training_run in self.training_runs
            if not all(self.output.checkpoint(training_run, epoch).exists() for epoch in training_run.snapshot_epochs)
        ]

    def train(self, training_run: TrainingRun, progress: Progress) -> str:
        """Trains one training run; returns what went wrong, "" if nothing did. Raises Interrupted."""
        try:
            trainer = self.trainer(training_run, progress)
            with self.board(training_run) as trainer.board:
                trainer.train()
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            return f"{training_run.task} {training_run.name}: {error}"
        except Exception as error:  # a defect of ours: shown in full, and no reason to lose the other training runs
            progress.log(traceback.format_exc())
            return f"{training_run.task} {training_run.name}: {type(error).__name__}: {error}"
        finally:
            # A Trainer refers to itself, by the step that it takes: its network and moments would stay for long.
            trainer = None
            gc.collect()
        return ""

    def board(self, training_run: TrainingRun) -> contextlib.AbstractContextManager:
        """The log of a training run for TensorBoard, where one is wanted, else None."""
        if not self.tensorboard or not self.context.is_main_process:
            return contextlib.nullcontext()
        from deepcolor.reporting.tensorboard import (
            TensorBoardLogger,
        )  # here, because its import takes longer than most of the rest

        return contextlib.closing(TensorBoardLogger(self.output, training_run))

    def describe_device(self) -> str:
        """The device in words, and how many ranks have one each."""
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else "the CPU"
        return name if self.context.world_size == 1 else f"{name}, {self.context.world_size} ranks"
