"""The worker processes of `--jobs`, with a stand-in for training. The real one: test_claims.py and test_signals.py."""

import os
import signal
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import pytest

from deepcolor.common.signals import Interrupted, StopFlag
from deepcolor.reporting.progress import Display
from deepcolor.sweep.workers import run_workers
from deepcolor.training.config import TrainConfig, TrainingRun

RUNS = [TrainingRun("regressor", "", TrainConfig(lr=lr), (1,)) for lr in (0.1, 0.2, 0.3, 0.4)]
GOOD, DIES_ONCE, ALWAYS_DIES, FAILS = RUNS


class Bar:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seconds = 0.0

    def log(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, seconds: float, status: str) -> None:
        self.seconds += seconds


def train(folder: Path, display: Display, stop: StopFlag, skip: Collection) -> Iterator[tuple[TrainingRun, str]]:
    """Marks a run as done in a folder, or dies, or fails."""
    for number, run in enumerate(RUNS):
        done, mark = folder / f"{number}.done", folder / f"{number}.died"
        if run in skip or done.exists():
            continue
        display.begin(run)
        if run == ALWAYS_DIES or (run == DIES_ONCE and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if run == FAILS:
            yield run, "it failed"
            continue
        display.advance(1.0, "")
        done.write_text(str(os.getpid()))


def test_a_dead_worker_is_replaced_and_a_run_that_kills_two_is_given_up(tmp_path: Path) -> None:
    bar = Bar()
    with StopFlag() as stop:
        failures = run_workers(partial(train, tmp_path), 1, bar, stop)
    killed = "its process was killed, perhaps because memory ran out: try fewer --jobs"
    assert failures == [f"{ALWAYS_DIES}: {killed}", "it failed"]
    assert bar.lines == [f"{run}: {killed}; the run continues from what was saved" for run in (DIES_ONCE, ALWAYS_DIES)]
    assert sorted(path.name for path in tmp_path.glob("*.done")) == ["0.done", "1.done"]
    assert bar.seconds == 2


def wait_and_save(folder: Path, display: Display, stop: StopFlag, skip: Collection) -> Iterator:
    """Waits for the stop, then saves."""
    display.log("begun")
    deadline = time.monotonic() + 60
    while not stop.signal and time.monotonic() < deadline:
        time.sleep(0.01)
    (folder / str(os.getpid())).write_text(str(stop.signal))
    raise Interrupted(stop.signal)
    yield


class StopAtTwo(Bar):
    """Sends this process a signal once two workers have begun."""

    def log(self, line: str) -> None:
        super().log(line)
        if len(self.lines) == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_to_the_parent_stops_all_workers_after_they_saved(tmp_path: Path) -> None:
    with StopFlag() as stop, pytest.raises(Interrupted) as caught:
        run_workers(partial(wait_and_save, tmp_path), 2, StopAtTwo(), stop)
    assert caught.value.signal == signal.SIGINT
    assert [path.read_text() for path in tmp_path.iterdir()] == [str(int(signal.SIGTERM))] * 2
