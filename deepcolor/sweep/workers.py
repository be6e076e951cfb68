"""`--jobs N`: N worker processes that claim training runs of one sweep, and a parent that shows their progress."""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from multiprocessing.connection import Connection, wait

import torch

from deepcolor.common.signals import Interrupted, StopFlag
from deepcolor.common.system import (
    exit_with_parent,
    keep_freed_memory,
    process_context,
    signals_blocked,
    unblock_signals,
)
from deepcolor.reporting.progress import Display, SweepBar
from deepcolor.training.config import TrainingRun

# Called with a display, a stop flag and the runs to skip; trains runs, and yields each that failed, and why.
TrainFunction = Callable[[Display, StopFlag, Collection[TrainingRun]], Iterator[tuple[TrainingRun, str]]]
_SECONDS_BETWEEN_MESSAGES = 0.1
# The first optimizer of a process imports torch._dynamo, the first score scipy.stats: seconds each.
_PRELOAD = ("deepcolor.sweep.sweep", "torch._dynamo", "scipy.stats")
_DEATHS_PER_RUN = 2  # after so many dead workers a training run is given up


class Worker:
    """A process that trains unclaimed runs until none is left."""

    def __init__(self, train: TrainFunction, number: int, skip: Collection[TrainingRun] = ()) -> None:
        self.number = number
        context = process_context(_PRELOAD)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(train, number, set(skip), theirs), daemon=True)
        with signals_blocked():  # a signal to all processes must not end a worker that has only begun
            self.process.start()
        theirs.close()
        self.training_run: TrainingRun | None = None

    def describe_death(self) -> str:
        """Returns how the process ended, or "" if it finished its work."""
        self.process.join()
        code = self.process.exitcode or 0
        if code == -9:
            return "its process was killed, perhaps because memory ran out: try fewer --jobs"
        if code < 0:
            return f"its process was ended by signal {-code}"
        return f"its process ended with code {code}" if code else ""


def run_workers(train: TrainFunction, jobs: int, bar: SweepBar, stop: StopFlag) -> list[str]:
    """Calls `train` in `jobs` processes, which share the work. Returns a line for each run that failed.

    A worker that dies is replaced, and its run continues. Raises Interrupted once all have saved if a signal asked to
    stop.
    """
    pool = _WorkerPool(train, jobs, bar)
    while pool.workers:
        if stop.signal:
            pool.stop()
        connections = {worker.connection: worker for worker in pool.workers}
        for connection in wait(list(connections), timeout=_SECONDS_BETWEEN_MESSAGES):
            try:
                pool.handle(connections[connection], *connection.recv())
            except (EOFError, ConnectionResetError):
                pool.handle_end(connections[connection])
    if stop.signal:
        raise Interrupted(stop.signal)
    return list(pool.failures.values())


class _WorkerPool:
    """The workers, and the runs that failed."""

    def __init__(self, train: TrainFunction, jobs: int, bar: SweepBar) -> None:
        self.train = train
        self.bar = bar
        self.failures: dict[TrainingRun | None, str] = {}
        self.deaths: Counter[TrainingRun | None] = Counter()
        self.stopping = False
        self.workers = [Worker(train, number) for number in range(jobs)]

    def stop(self) -> None:
        """Asks the workers to save and exit."""
        if not self.stopping:
            self.stopping = True
            for worker in self.workers:
                worker.process.terminate()

    def handle(self, worker: Worker, kind: str, *message: object) -> None:
        """Handles a message of a worker."""
        if kind == "begin":
            (worker.training_run,) = message
        elif kind == "failed":
            run, line = message
            self.failures[run] = line
        else:
            getattr(self.bar, kind)(*message)

    def handle_end(self, worker: Worker) -> None:
        """Replaces a worker that died."""
        self.workers.remove(worker)
        run, death = worker.training_run, worker.describe_death()
        if not death or self.stopping:
            return
        self.deaths[run] += 1
        if self.deaths[run] >= _DEATHS_PER_RUN:
            self.failures[run] = f"{run or 'a worker'}: {death}"
        else:
            self.bar.log(f"{run or 'a worker'}: {death}; the run continues from what was saved")
        if None not in self.failures:  # a worker that cannot even start is not replaced
            self.workers.append(Worker(self.train, worker.number, self.failures.keys()))


class _PipeDisplay:
    """The Display of a worker, which sends everything to the parent."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.unsent = 0.0
        self.sent_at = 0.0

    def advance(self, seconds: float, status: str) -> None:
        self.unsent += seconds
        if time.monotonic() - self.sent_at > _SECONDS_BETWEEN_MESSAGES:
            self.connection.send(("advance", self.unsent, status))
            self.unsent, self.sent_at = 0.0, time.monotonic()

    def log(self, line: str) -> None:
        self.connection.send(("log", line))

    def begin(self, training_run: TrainingRun) -> None:
        self.connection.send(("begin", training_run))


def _work(train: TrainFunction, number: int, skip: set[TrainingRun], connection: Connection) -> None:
    """What worker `number` does. The workers take the GPUs of the machine in turn."""
    keep_freed_memory()
    exit_with_parent()
    with StopFlag() as stop, contextlib.suppress(Interrupted, BrokenPipeError):
        # Ctrl-C reaches every process of a terminal. The parent decides, and sends SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        unblock_signals()
        if torch.cuda.device_count() > 1:
            torch.cuda.set_device(number % torch.cuda.device_count())
        display = _PipeDisplay(connection)
        try:
            for run, failure in train(display, stop, skip):
                connection.send(("failed", run, failure))
        except OSError as error:
            display.log(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            os._exit(1)  # a normal exit can wait forever for a failed GPU; the parent starts another process
        connection.send(("advance", display.unsent, ""))
