"""Trains the runs of a plan. Any number of processes share the work: each claims the next run that nobody trains."""

import contextlib
import errno
import functools
import gc
import multiprocessing
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ColorizerManager import ColorizerManager
from deepcolor.common.signals import Interrupted, StopFlag
from deepcolor.common.system import available_cores, available_memory
from deepcolor.data.dataset import LabDataModule
from deepcolor.reporting.progress import Display, RunReporter, SweepBar
from deepcolor.sweep import slurm
from deepcolor.sweep.workers import run_workers
from deepcolor.training.callbacks import Callbacks
from deepcolor.training.checkpoint_manager import CheckpointManager
from deepcolor.training.config import TrainingRun
from deepcolor.training.distributed import SINGLE_PROCESS, DistributedContext
from deepcolor.training.paths import RunPaths
from deepcolor.training.trainer import Trainer
from Regressor_Manager import RegressorManager
from utils import UserError, format_seconds

MANAGERS = {"regressor": RegressorManager, "colorizer": ColorizerManager}
_WORTH_WORKERS = 20  # seconds of expected work below which starting processes costs more than it saves
_BYTES_PER_JOB = 1.5 * 2**30
_JOBS_PER_GPU = 4
_POLL_SECONDS = 1  # between two looks at runs that other processes hold


class GpuFailure(OSError):
    """Raised when a GPU fails in a way after which this process cannot use it again."""


@contextlib.contextmanager
def _gpu_failures() -> Iterator[None]:
    """Raises GpuFailure for an error of the GPU, unless it is that its memory is full."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise GpuFailure(errno.EIO, f"the GPU failed: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Sweep:
    """Training runs, and everything that is needed to train them.

    Picklable: worker processes receive a copy.
    """

    training_runs: Sequence[TrainingRun]
    data: LabDataModule
    paths: RunPaths
    device: torch.device
    ignore_before: float = 0.0  # checkpoints older than this time do not count
    tensorboard: bool = False
    context: DistributedContext = SINGLE_PROCESS

    # --- The plan ----------------------------------------------------------------------------------

    def measure_costs(self, runs: Sequence[TrainingRun]) -> dict[TrainingRun, float]:
        """Returns the seconds per epoch of each training run, measured on a few steps of each kind of network."""
        measured: dict[tuple, float] = {}
        costs = {}
        for run in runs:
            kind = run.task, replace(run.config, lr=1.0, weight_decay=0, seed=0)
            if kind not in measured:
                try:
                    measured[kind] = self.build_trainer(run, Callbacks()).measure_seconds_per_epoch()
                except torch.OutOfMemoryError:
                    measured[kind] = 0.0  # training it reports this, and the other runs go on
            costs[run] = measured[kind]
        return costs

    def choose_jobs(self, requested: int | None, seconds: float, runs: Sequence[TrainingRun]) -> int:
        """Returns how many processes train these runs. `requested` None means what is fastest for so much work."""
        if self.context.world_size > 1:
            return 1
        if requested is not None:
            return min(requested, len(runs))
        if seconds < _WORTH_WORKERS:
            return 1
        jobs = available_cores() // max(map(self._threads, runs))
        if self.device.type != "cpu":
            jobs = min(jobs, _JOBS_PER_GPU * max(1, torch.cuda.device_count()))
        return max(1, min(jobs, int(available_memory() / _BYTES_PER_JOB), len(runs)))

    def unfinished(self) -> list[TrainingRun]:
        return [run for run in self.training_runs if not self._is_finished(run)]

    def _is_finished(self, run: TrainingRun) -> bool:
        fingerprint = run.fingerprint(self.data.fingerprint)
        return CheckpointManager(self.paths, run, fingerprint, ignore_before=self.ignore_before).is_finished()

    def _threads(self, run: TrainingRun) -> int:
        """Returns the number of threads that train a run. It depends on the plan and the machine, never on --jobs.

        Another number of threads changes the last bits of sums. A narrow network gains nothing from a second thread.
        """
        if not run.config.is_wide:
            return 1
        wide = sum(other.config.is_wide for other in self.training_runs)
        return max(1, available_cores() // self.context.local_world_size // wide)

    # --- Training ----------------------------------------------------------------------------------

    def run(self, requested_jobs: int | None = None) -> list[str]:
        """Trains every run that no other process trains. Returns a line for each that failed.

        A run that fails does not affect the others. Raises Interrupted after saving if a signal asked to stop.
        """
        remaining = list(self.training_runs) if self.tensorboard else self.context.run_on_main(self.unfinished)
        if not remaining:
            return []
        with _gpu_failures():
            costs = self.measure_costs(remaining)
        work = {run: costs[run] * run.snapshot_epochs[-1] for run in remaining}
        seconds = sum(work.values())
        jobs = self.choose_jobs(requested_jobs, seconds, remaining)
        where = f"{self.describe_device()}, {jobs} at once" if jobs > 1 else self.describe_device()
        print(f"About {format_seconds(seconds / jobs)} for {len(remaining)} training runs on {where}.", flush=True)
        with StopFlag() as stop, SweepBar(seconds) as bar:
            if jobs == 1:
                return [line for _, line in self.train_unclaimed(costs, bar, stop)]
            self._free_device_memory()
            # The longest runs first, so that none of them is left alone at the end.
            longest_first = {run: costs[run] for run in sorted(remaining, key=work.__getitem__, reverse=True)}
            return run_workers(partial(self.train_unclaimed, longest_first), jobs, bar, stop)

    def train_unclaimed(
        self, costs: dict[TrainingRun, float], display: Display, stop: StopFlag, skip: Collection[TrainingRun] = ()
    ) -> Iterator[tuple[TrainingRun, str]]:
        """Trains one unclaimed run after the other until all are finished. Yields each that failed, and why.

        `costs` holds the runs in the order in which they are claimed, and their expected seconds per epoch.
        Of several ranks, rank 0 claims for all. Raises Interrupted after saving if a signal asked to stop.
        """
        with contextlib.closing(self._claimed_runs(costs, display, stop, skip)) as claimed:  # releases its lock
            while (run := self.context.run_on_main(lambda: next(claimed, None))) is not None:
                if failure := self._train(run, costs[run], display, stop):
                    yield run, failure
                    if self.context.world_size > 1:
                        return  # the run may have failed on this rank only: the others cannot continue without it

    def _claimed_runs(
        self, costs: dict[TrainingRun, float], display: Display, stop: StopFlag, skip: Collection[TrainingRun]
    ) -> Iterator[TrainingRun]:
        """Yields runs whose lock this process holds while the caller trains them, each run once."""
        remaining = [run for run in costs if run not in skip]
        is_worker = multiprocessing.parent_process() is not None  # its siblings report what they train
        waited = False
        while remaining:
            held_elsewhere = []
            for run in remaining:
                if stop.signal:
                    raise Interrupted(stop.signal)
                if self._is_finished(run) and not self.tensorboard:
                    if not is_worker:
                        display.advance(costs[run] * run.snapshot_epochs[-1], "")
                    continue
                with self.paths.claim(run) as is_mine:
                    if is_mine:
                        yield run
                    else:
                        held_elsewhere.append(run)
            remaining = held_elsewhere
            if remaining and slurm.is_array_task():
                return  # a job that only waits would waste its node; Slurm restarts the other one if it fails
            if remaining and not waited and not is_worker:
                display.log(f"waiting for {len(remaining)} training run(s) of other processes")
                waited = True
            if remaining:
                time.sleep(_POLL_SECONDS)

    def _train(self, run: TrainingRun, seconds_per_epoch: float, display: Display, stop: StopFlag) -> str:
        """Trains one run. Returns why it failed, or "". Raises Interrupted."""
        display.begin(run)
        try:
            tensorboard = self.tensorboard and self.context.is_main_process
            reporter = RunReporter(run, self.paths, display, seconds_per_epoch, stop, tensorboard)
            with contextlib.closing(reporter), _gpu_failures():
                self.build_trainer(run, reporter).train()
        except GpuFailure:
            raise  # this process can no longer use the GPU
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            return f"{run}: {error}"
        except Exception as error:  # a defect of the program: shown in full, and the other runs go on
            if self.context.world_size > 1:
                raise
            display.log(traceback.format_exc())
            return f"{run}: {type(error).__name__}: {error}"
        finally:
            gc.collect()  # a Trainer refers to itself, and would keep its network in memory
        if self.context.is_main_process and not self._is_finished(run):
            return f"{run}: its files were removed during training; run the same command again"
        return ""

    def build_trainer(self, run: TrainingRun, callbacks: Callbacks) -> Trainer:
        """Returns the Trainer of a run, and sets this process's number of threads."""
        torch.set_num_threads(self._threads(run))
        kind, data = MANAGERS[run.network], self._device_data
        return kind(run, data, self.paths, self.device, callbacks, self.ignore_before, self.context)

    @functools.cached_property
    def _device_data(self) -> LabDataModule:
        """The images, in GPU memory if they fit: one copy for all runs of this process."""
        return self.data.to(self.device)

    def _free_device_memory(self) -> None:
        """Frees what `measure_costs` left in GPU memory, for the worker processes."""
        self.__dict__.pop("_device_data", None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_device_data"}

    def describe_device(self) -> str:
        """Returns the name of the device, and the number of ranks that have one each."""
        names = {"cuda": torch.cuda.get_device_name, "mps": lambda device: "the GPU", "cpu": lambda device: "the CPU"}
        name = names[self.device.type](self.device)
        return name if self.context.world_size == 1 else f"{name}, {self.context.world_size} ranks"
