"""The progress bar of a sweep, and what is reported about each training run."""

import sys
from collections.abc import Iterable
from typing import Protocol

from tqdm import tqdm

from deepcolor.common.signals import StopFlag
from deepcolor.reporting.plots import loss_plot
from deepcolor.reporting.tensorboard import TensorBoardLogger
from deepcolor.training.callbacks import Callbacks
from deepcolor.training.config import TrainingRun
from deepcolor.training.paths import RunPaths
from utils import format_seconds

_SECONDS_BETWEEN_LINES = 30  # of a progress bar that is written to a file


def progress_bar(iterable: Iterable | None = None, total: float | None = None, **options) -> tqdm:
    """Returns a progress bar on stderr: live on a terminal, a line now and then in a log file."""
    seconds = 0.2 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    return tqdm(
        iterable, total=total, mininterval=seconds, maxinterval=seconds, dynamic_ncols=True, leave=False, **options
    )


class Display(Protocol):
    """Where training runs show their progress."""

    def begin(self, training_run: TrainingRun) -> None:
        """Called when a run is claimed."""

    def advance(self, seconds: float, status: str) -> None:
        """Adds finished work, in seconds of expected work."""

    def log(self, line: str) -> None:
        """Prints a line."""


class SweepBar:
    """The progress bar of a whole sweep, in seconds of expected work. A context manager."""

    def __init__(self, seconds: float) -> None:
        form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {desc}"
        self.bar = progress_bar(total=max(seconds, 1e-9), bar_format=form)

    def __enter__(self) -> "SweepBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def begin(self, training_run: TrainingRun) -> None:
        """Shows nothing: `advance` comes with the name of the run."""

    def advance(self, seconds: float, status: str) -> None:
        self.bar.set_description_str(status, refresh=False)
        # Never past the end: the expected work is an estimate, and a bar beyond its total shows nothing.
        self.bar.update(max(0.0, min(seconds, self.bar.total - self.bar.n)))

    def log(self, line: str) -> None:
        self.bar.clear()
        print(line, flush=True)
        self.bar.refresh()


class RunReporter(Callbacks):
    """Shows the progress of one training run, and plots and logs its models.

    Args:
        training_run: the run.
        paths: the output folder.
        display: shows progress and lines.
        seconds_per_epoch: expected time of an epoch.
        stop: set by the signals that ask to stop.
        tensorboard: whether to write TensorBoard logs.
    """

    def __init__(
        self,
        training_run: TrainingRun,
        paths: RunPaths,
        display: Display,
        seconds_per_epoch: float,
        stop: StopFlag,
        tensorboard: bool = False,
    ) -> None:
        self.training_run = training_run
        self.paths = paths
        self.display = display
        self.seconds_per_epoch = seconds_per_epoch
        self.stop = stop
        self.logger = TensorBoardLogger(paths, training_run) if tensorboard else None

    def advance(self, epochs: float, status: str) -> None:
        self.display.advance(epochs * self.seconds_per_epoch, status)

    def epoch_end(self, history: dict[str, list[float]]) -> None:
        if self.logger:
            self.logger.log_epochs(history)

    def model_found(self, epoch: int) -> None:
        if self.logger:
            self.logger.log_model(self.paths.checkpoint(self.training_run, epoch))

    def model_scored(self, model: dict) -> None:
        loss_plot(self.paths.plot(model["network"], model["activation"], model["run"], "loss.png"), model)

    def model_saved(self, model: dict) -> None:
        self.model_found(model["epoch"])
        self.log(summary_line(self.training_run, model["run"], model["metrics"]))

    def log(self, line: str) -> None:
        self.display.log(line)

    def stop_signal(self) -> int:
        return self.stop.signal

    def close(self) -> None:
        if self.logger:
            self.logger.close()


def summary_line(training_run: TrainingRun, run: str, metrics: dict) -> str:
    """Returns one line about a finished combination."""
    name = f"{training_run.task} {run}"
    if metrics["status"] == "diverged":
        return f"{name}: diverged at epoch {metrics['diverged_epoch']}"
    beats = "beats" if metrics["test_mse"] < metrics["mean_color_mse"] else "does NOT beat"
    verdict = f", {metrics['verdict']}" if metrics.get("verdict", "colored") != "colored" else ""
    return (
        f"{name}: val mse {metrics['val_mse']:.6f}, test mse {metrics['test_mse']:.6f} {beats} the mean color "
        f"({metrics['mean_color_mse']:.6f}){verdict}, {format_seconds(metrics['seconds'])}"
    )
