"""Trains several training runs at once, each in a process of its own; one of them dying harms no other."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait

from deepcolor.common import signals
from deepcolor.common.signals import Interrupted, StopFlag
from deepcolor.common.system import keep_freed_memory
from deepcolor.reporting.progress import Progress, SweepProgress
from deepcolor.training.config import TrainingRun

Train = Callable[[TrainingRun, Progress], str]
_SECONDS_BETWEEN_NEWS = 0.1


class Worker:
    """A process that trains one training run after the other, as they are handed to it."""

    def __init__(self, train: Train) -> None:
        context = _forkserver(train)
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(train, other), daemon=True)
        self.process.start()
        other.close()
        self.training_run: TrainingRun | None = None

    def hand(self, training_run: TrainingRun | None) -> None:
        """Gives it the next training run; None, that there is none."""
        self.training_run = training_run
        with contextlib.suppress(BrokenPipeError):  # it has died: its sentinel tells
            self.connection.send(training_run)

    def died_of(self) -> str:
        """In words, how the process ended."""
        self.process.join()
        code = self.process.exitcode or 0
        if code == -signal.SIGKILL:
            return "its process was killed, perhaps for want of memory: try fewer --jobs"
        return f"its process ended by signal {-code}" if code < 0 else f"its process ended with code {code}"


def _forkserver(train: Train) -> multiprocessing.context.ForkServerContext:
    """Processes are forked from a server that has imported everything once: from us, a fork would lose our threads.

    A signal to all processes must not end the server. It has them blocked, and so has a worker until it listens.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, train.__module__])
    resource_tracker.ensure_running()  # which the server wants, and whose start would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def run_side_by_side(
    train: Train,
    training_runs: Sequence[TrainingRun],
    jobs: int,
    costs: dict[TrainingRun, float],
    progress: SweepProgress,
) -> list[str]:
    """Calls `train` for every training run, in `jobs` processes, and returns what each returned, or how it died.

    Raises Interrupted once all have saved, if a signal asked to stop.
    """
    crew = _Crew(train, training_runs, jobs, progress.stop)
    while busy := crew.busy():
        crew.forward_stop()
        for connection in wait([worker.connection for worker in busy], timeout=_SECONDS_BETWEEN_NEWS):
            worker = next(worker for worker in busy if worker.connection is connection)
            shown = progress.of(costs[worker.training_run])
            try:
                kind, *news = connection.recv()
            except (EOFError, ConnectionResetError):
                crew.replace(worker, shown)
                continue
            if kind == "done":
                crew.done(worker, *news)
            else:
                getattr(shown, kind)(*news)
    for worker in crew.workers:
        worker.process.join()
    if progress.stop.signal:
        raise Interrupted(progress.stop.signal)
    return crew.outcomes


class _Crew:
    """The workers, what waits for them, and what has come of it."""

    def __init__(self, train: Train, training_runs: Sequence[TrainingRun], jobs: int, stop: StopFlag) -> None:
        self.train = train
        self.waiting = list(training_runs)
        self.outcomes: list[str] = []
        self.stop = stop
        self.told_to_stop = False
        self.tried_twice: set[TrainingRun] = set()
        with contextlib.nullcontext():  # the server's imports take seconds, in which there is nothing to save
            self.workers = [Worker(train) for _ in range(jobs)]
        for worker in self.workers:
            self._hand_next(worker)

    def _hand_next(self, worker: Worker) -> None:
        worker.hand(self.waiting.pop(0) if self.waiting else None)

    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.training_run is not None]

    def forward_stop(self) -> None:
        """If a stop was asked for, asks the workers for it, once."""
        if self.stop.signal and not self.told_to_stop:
            self.waiting, self.told_to_stop = [], True
            for worker in self.busy():
                worker.process.terminate()

    def done(self, worker: Worker, outcome: str) -> None:
        self.outcomes.append(outcome)
        self._hand_next(worker)

    def replace(self, worker: Worker, shown: Progress) -> None:
        """Puts a new worker in the place of one that died at work, whose training run it continues: once."""
        training_run, worker.training_run = worker.training_run, None
        what = f"{training_run.task} {training_run.name}: {worker.died_of()}"
        if self.stop.signal:
            return
        if training_run in self.tried_twice:
            self.outcomes.append(what)
        else:
            self.tried_twice.add(training_run)
            self.waiting.insert(0, training_run)
            shown.log(f"{what}; it goes on from what was saved")
        if self.waiting:
            self.workers[self.workers.index(worker)] = successor = Worker(self.train)
            self._hand_next(successor)


class _News:
    """The progress of a worker, told to the parent, which shows it."""

    def __init__(self, connection: Connection, stop: StopFlag) -> None:
        self.connection = connection
        self.stop = stop
        self.untold = 0.0
        self.told_at = 0.0

    def advance(self, epochs: float, status: str) -> None:
        self.untold += epochs
        if time.monotonic() - self.told_at > _SECONDS_BETWEEN_NEWS:
            self.connection.send(("advance", self.untold, status))
            self.untold, self.told_at = 0.0, time.monotonic()

    def log(self, line: str) -> None:
        self.connection.send(("say", line))

    def stop_signal(self) -> int:
        return self.stop.signal


def _work(train: Train, connection: Connection) -> None:
    """The life of a worker."""
    keep_freed_memory()
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process().sentinel,), daemon=True).start()
    with StopFlag() as stop, contextlib.suppress(Interrupted, EOFError, BrokenPipeError):
        # Ctrl-C reaches every process of the terminal; the parent alone decides, and asks with SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STOP_SIGNALS)
        for training_run in iter(connection.recv, None):
            news = _News(connection, stop)
            outcome = train(training_run, news)
            connection.send(("advance", news.untold, ""))
            connection.send(("done", outcome))


def _end_with(parent: int) -> None:
    """Ends this process with its parent, however that ends: the next run must not meet a worker of this one."""
    wait([parent])
    os._exit(1)
