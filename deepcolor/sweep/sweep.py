"""Runs the trajectories of a plan, one by one or side by side, and shows how far they are."""

import contextlib
import gc
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ColorizerManager import ColorizerManager
from deepcolor.data.dataset import LabData
from deepcolor.reporting.progress import Progress, Silent, SweepProgress
from deepcolor.sweep.workers import run_side_by_side
from deepcolor.training.checkpoint import Output
from deepcolor.training.config import Trajectory
from deepcolor.training.distributed import ALONE, World
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

    trajectories: Sequence[Trajectory]
    data: LabData
    output: Output
    device: torch.device
    restart: bool = False
    tensorboard: bool = False
    plan: Sequence[Trajectory] = ()  # the whole, where `trajectories` are a part of it
    world: World = ALONE

    def trainer(self, trajectory: Trajectory, progress: Progress) -> Trainer:
        torch.set_num_threads(self.threads(trajectory))
        manager = MANAGERS[trajectory.network]
        data = self.data.to(self.device)
        return manager(trajectory, data, self.output, self.device, progress, self.restart, self.world)

    def threads(self, trajectory: Trajectory) -> int:
        """The threads that a trajectory is trained with: decided by the plan and the machine, never by --jobs.

        Sums come out differently in the last bit with another number of threads. A narrow network gains nothing from
        a second one; a wide one takes its share of the cores, which is more than one only where trajectories are few.
        """
        wide = sum(Utils.is_wide(other.settings.feature_maps) for other in self.plan or self.trajectories)
        cores = Utils.get_cores() // self.world.local_size
        return max(1, cores // wide) if Utils.is_wide(trajectory.settings.feature_maps) else 1

    def costs(self) -> dict[Trajectory, float]:
        """Seconds per epoch of each trajectory on this machine, measured on a few steps of each kind of network."""
        measured: dict[tuple, float] = {}
        costs = {}
        for trajectory in self.trajectories:
            alike = replace(trajectory.settings, lr=1.0, weight_decay=0, seed=0)
            if (kind := (trajectory.task, alike)) not in measured:
                measured[kind] = self.trainer(trajectory, Silent()).seconds_per_epoch()
            costs[trajectory] = measured[kind]
        return costs

    def jobs(self, wish: int | None, seconds: float) -> int:
        """How many trajectories to train at once; None asks for what is fastest for that many seconds of work.

        Several ranks are at work on one already.
        """
        if self.world.size > 1:
            return 1
        if wish is not None:
            return min(wish, len(self.trajectories))
        if seconds < _WORTH_WORKERS:
            return 1
        threads = max(self.threads(trajectory) for trajectory in self.trajectories)
        at_once = Utils.get_cores() // threads
        if self.device.type == "cuda":
            at_once = min(at_once, _JOBS_PER_GPU)
        by_memory = int(Utils.get_free_memory() / _BYTES_PER_JOB)
        return max(1, min(at_once, by_memory, len(self.trajectories)))

    def run(self, wish: int | None = None) -> list[str]:
        """Trains all trajectories, `wish` of them at once, and returns a line for each that failed.

        A failure of one leaves the others unharmed. Raises Interrupted, after saving, if a signal asked to stop.
        """
        costs = self.costs()
        work = {trajectory: costs[trajectory] * trajectory.snapshots[-1] for trajectory in self.trajectories}
        seconds = sum(work.values())
        jobs = self.jobs(wish, seconds)
        where = f"{self.describe_device()}, {jobs} at once" if jobs > 1 else self.describe_device()
        print(f"About {format_seconds(seconds / jobs)} from the beginning to the end on {where}.", flush=True)
        with SweepProgress.shown(seconds) as progress:
            if jobs > 1:
                # The longest first, lest one of them be all that is left at the end.
                longest_first = sorted(self.trajectories, key=work.__getitem__, reverse=True)
                failures = run_side_by_side(self.train, longest_first, jobs, costs, progress)
            else:
                failures = []
                for trajectory in self.trajectories:
                    failures.append(self.train(trajectory, progress.of(costs[trajectory])))
                    if failures[-1] and self.world.size > 1:
                        break  # it may have failed on this rank alone: the others cannot go on without it
        return [failure for failure in failures if failure] or (self.removed() if self.world.first else [])

    def removed(self) -> list[str]:
        """A line for each trajectory that was trained, and of whose models somebody has removed some meanwhile."""
        return [
            f"{trajectory.task} {trajectory.name}: its files were removed meanwhile; start again to have them made anew"
            for trajectory in self.trajectories
            if not all(self.output.checkpoint(trajectory, epoch).exists() for epoch in trajectory.snapshots)
        ]

    def train(self, trajectory: Trajectory, progress: Progress) -> str:
        """Trains one trajectory; returns what went wrong, "" if nothing did. Raises Interrupted."""
        try:
            trainer = self.trainer(trajectory, progress)
            with self.board(trajectory) as trainer.board:
                trainer.train()
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            return f"{trajectory.task} {trajectory.name}: {error}"
        except Exception as error:  # a defect of ours: shown in full, and no reason to lose the other trajectories
            progress.say(traceback.format_exc())
            return f"{trajectory.task} {trajectory.name}: {type(error).__name__}: {error}"
        finally:
            # A Trainer refers to itself, by the step that it takes: its network and moments would stay for long.
            trainer = None
            gc.collect()
        return ""

    def board(self, trajectory: Trajectory) -> contextlib.AbstractContextManager:
        """The log of a trajectory for TensorBoard, where one is wanted, else None."""
        if not self.tensorboard or not self.world.first:
            return contextlib.nullcontext()
        from deepcolor.reporting.tensorboard import Board  # here, because its import takes longer than most of the rest

        return contextlib.closing(Board(self.output, trajectory))

    def describe_device(self) -> str:
        """The device in words, and how many ranks have one each."""
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else "the CPU"
        return name if self.world.size == 1 else f"{name}, {self.world.size} ranks"
