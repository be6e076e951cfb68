"""The progress display, and the signals that stop a sweep."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Protocol

from tqdm import tqdm

from deepcolor.common.signals import StopFlag
from deepcolor.training.config import TrainingRun
from utils import format_seconds

_SECONDS_BETWEEN_LINES = 30  # of the bar, where the console is a file and cannot be written over


def bar(iterable: Iterable | None = None, total: float | None = None, **options) -> tqdm:
    """A progress bar on stderr: live on a terminal, a line now and then in a log."""
    seconds = 0.2 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    return tqdm(
        iterable, total=total, mininterval=seconds, maxinterval=seconds, dynamic_ncols=True, leave=False, **options
    )


class Progress(Protocol):
    """How a trainer tells of itself and is told to stop. `SweepProgress` shows it."""

    def advance(self, epochs: float, status: str) -> None: ...

    def log(self, line: str) -> None: ...

    def stop_signal(self) -> int:
        """The number of the signal that asked for a stop, 0 if none did."""
        ...


class Silent:
    """Shows nothing and never stops."""

    def advance(self, epochs: float, status: str) -> None: ...

    def log(self, line: str) -> None: ...

    def stop_signal(self) -> int:
        return 0


def summary_line(training_run: TrainingRun, run: str, metrics: dict) -> str:
    """One line about a finished combination."""
    name = f"{training_run.task} {run}"
    if metrics["status"] == "diverged":
        return f"{name}: diverged at epoch {metrics['diverged_epoch']}"
    beats = "beats" if metrics["test_mse"] < metrics["mean_color_mse"] else "does NOT beat"
    verdict = f", {metrics['verdict']}" if metrics.get("verdict", "colored") != "colored" else ""
    return (
        f"{name}: val mse {metrics['val_mse']:.6f}, test mse {metrics['test_mse']:.6f} {beats} the mean color "
        f"({metrics['mean_color_mse']:.6f}){verdict}, {format_seconds(metrics['seconds'])}"
    )


class SweepProgress:
    """One bar for a whole sweep, in seconds of expected work."""

    def __init__(self, shown: tqdm, stop: StopFlag) -> None:
        self.bar = shown
        self.stop = stop

    @classmethod
    @contextlib.contextmanager
    def printable(cls, seconds: float) -> Iterator["SweepProgress"]:
        """The bar on stderr, which listens to the signals that ask for a stop."""
        form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {desc}"
        with bar(total=max(seconds, 1e-9), bar_format=form) as shown, StopFlag() as stop:
            yield cls(shown, stop)

    def of(self, cost: float) -> "RunProgress":
        """The share of a training run whose epochs take `cost` seconds each."""
        return RunProgress(self, cost)


class RunProgress:
    """What one training run adds to the bar."""

    def __init__(self, sweep: SweepProgress, cost: float) -> None:
        self.sweep = sweep
        self.cost = cost

    def advance(self, epochs: float, status: str) -> None:
        shown = self.sweep.bar
        shown.set_description_str(status, refresh=False)
        # Never past the end: the expected work is an estimate, and a bar beyond its total shows nothing.
        shown.update(max(0.0, min(epochs * self.cost, shown.total - shown.n)))

    def log(self, line: str) -> None:
        self.sweep.bar.clear()
        print(line, flush=True)
        self.sweep.bar.refresh()

    def stop_signal(self) -> int:
        return self.sweep.stop.signal
