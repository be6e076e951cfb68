"""Runs the trajectories of a plan, shows how far they are, and stops them when asked to."""

import contextlib
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from Checkpoint import Output
from ColorizerManager import ColorizerManager
from LabData import LabData
from Plan import Trajectory
from Regressor_Manager import RegressorManager
from Trainer import Interrupted, Trainer
from utils import UserError, format_seconds

MANAGERS = {"regressor": RegressorManager, "colorizer": ColorizerManager}
_SECONDS_BETWEEN_LINES = 30  # of the bar, where the console is a file and cannot be written over


def bar(iterable: Iterable | None = None, total: float | None = None, **options) -> tqdm:
    """A progress bar on stderr: live on a terminal, a line now and then in a log."""
    interval = 0.2 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    return tqdm(
        iterable, total=total, mininterval=interval, maxinterval=interval, dynamic_ncols=True, leave=False, **options
    )


@dataclass(frozen=True)
class Sweep:
    """Trajectories, and all that is needed to train any one of them."""

    trajectories: Sequence[Trajectory]
    data: LabData
    output: Output
    device: torch.device
    restart: bool = False

    def trainer(self, trajectory: Trajectory, progress: "SweepProgress") -> Trainer:
        manager = MANAGERS[trajectory.network]
        return manager(trajectory, self.data, self.output, self.device, progress, self.restart)

    def costs(self) -> dict[Trajectory, float]:
        """Seconds per epoch of each trajectory on this machine, measured on a few steps of each kind of network."""
        measured: dict[tuple, float] = {}
        costs = {}
        for trajectory in self.trajectories:
            alike = replace(trajectory.settings, lr=1.0, weight_decay=0, seed=0)
            if (kind := (trajectory.task, alike)) not in measured:
                measured[kind] = self.trainer(trajectory, SweepProgress()).seconds_per_epoch()
            costs[trajectory] = measured[kind]
        return costs

    def run(self) -> list[str]:
        """Trains all trajectories, one after the other, and returns a line for each that failed.

        A failure of one leaves the others unharmed. Raises Interrupted, after saving, if a signal asked to stop.
        """
        costs = self.costs()
        seconds = sum(costs[trajectory] * trajectory.snapshots[-1] for trajectory in self.trajectories)
        print(f"About {format_seconds(seconds)} from the beginning to the end on {describe(self.device)}.", flush=True)
        failures = []
        with SweepProgress.shown(seconds) as progress:
            for trajectory in self.trajectories:
                progress.cost = costs[trajectory]
                try:
                    self.trainer(trajectory, progress).train()
                except (UserError, OSError, torch.OutOfMemoryError) as error:
                    failures.append(f"{trajectory.task} {trajectory.name}: {error}")
                except Interrupted:
                    raise
                except (
                    Exception
                ) as error:  # a defect of ours: shown in full, and no reason to lose the other trajectories
                    progress.say(traceback.format_exc())
                    failures.append(f"{trajectory.task} {trajectory.name}: {type(error).__name__}: {error}")
        return failures


class SweepProgress:
    """One bar for the whole sweep, in seconds of expected work. Without a bar it shows nothing."""

    def __init__(self, shown: tqdm | None = None) -> None:
        self.bar = shown
        self.cost = 0.0  # seconds per epoch of the trajectory at work
        self.signal = 0

    @classmethod
    @contextlib.contextmanager
    def shown(cls, seconds: float) -> Iterator["SweepProgress"]:
        """A bar on stderr. Within, Ctrl-C and SIGTERM ask for a stop; a second Ctrl-C is not asked."""
        form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {desc}"
        with bar(total=max(seconds, 1e-9), bar_format=form) as shown:
            progress = cls(shown)
            before = {number: signal.signal(number, progress._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield progress
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def advance(self, epochs: float, status: str) -> None:
        if self.bar is not None:
            self.bar.set_description_str(status, refresh=False)
            # Never past the end: the expected work is an estimate, and a bar beyond its total shows nothing.
            self.bar.update(min(epochs * self.cost, self.bar.total - self.bar.n))

    def say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.clear()
            print(line, flush=True)
            self.bar.refresh()

    def stopping(self) -> int:
        return self.signal


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU ({torch.get_num_threads()} threads)"
