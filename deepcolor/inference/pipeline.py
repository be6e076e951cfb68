"""Colors many photographs: processes that take them from file to file, and one network that serves them all."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple, NoReturn, Self, TypeVar

import numpy as np
from PIL import Image

import Constants
from deepcolor.common import signals
from deepcolor.common.files import write_atomically
from deepcolor.common.system import available_cores, available_memory, keep_freed_memory
from deepcolor.data.image_io import Photo, Unreadable, open_image, read_file, read_photo
from deepcolor.inference import png
from deepcolor.inference.full_resolution import FullResolution, ModelInput, model_input
from deepcolor.inference.tasks import ColorizeTask

T = TypeVar("T")
Predict = Callable[[np.ndarray], np.ndarray]  # L (N,1,side,side) in 0..1 -> ab (N,2,side,side) in Lab units, float32
_AT_ONCE = 16  # photographs that a process handles together, for the sake of the network
_PIXELS_AT_ONCE = 2 << 20  # ... as long as they are small
_BYTES_PER_PROCESS = 1 << 30  # for a photograph of 128 megapixels
_SECONDS_TO_STOP = 2


class TaskResult(NamedTuple):
    """What became of an task."""

    task: ColorizeTask
    failure: str  # "" if there was none


class InferencePool:
    """Begins to decode at once; the network may come later. Leaving the `with` stops all processes.

    Processes, because the dozens of small steps that a small photograph takes would wait for each other in threads.
    Of a large one each step is large: a process works on its strips in threads, on all cores.
    """

    def __init__(self, tasks: Sequence[ColorizeTask]) -> None:
        most = max(1, min(available_cores(), available_memory() // _BYTES_PER_PROCESS))
        size = max(1, min(_AT_ONCE, len(tasks) // (2 * most)))
        self.waiting = deque(tasks[start : start + size] for start in range(0, len(tasks), size))
        self.hands = [WorkerHandle(alone=len(tasks) == 1) for _ in range(min(most, len(self.waiting)))]
        for hand in self.hands:
            hand.give(self.waiting.popleft())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        deadline = time.monotonic() + _SECONDS_TO_STOP  # what decodes cannot be stopped
        for hand in self.hands:
            hand.connection.close()
        for hand in self.hands:
            hand.end(max(0.0, deadline - time.monotonic()))

    def serve(self, predict: Predict) -> Iterator[TaskResult]:
        """Lets the network answer the processes, as many at once as ask, and yields what became of each task."""
        while busy := {hand.connection: hand for hand in self.hands if hand.tasks}:
            asking: list[tuple[WorkerHandle, np.ndarray]] = []
            for connection in wait(list(busy)):
                try:
                    news = connection.recv()
                except (EOFError, ConnectionResetError):
                    yield from self._replace(busy[connection])
                    continue
                if isinstance(news, np.ndarray):
                    asking.append((busy[connection], news))
                else:
                    yield from busy[connection].report(news)
                    if not busy[connection].tasks and self.waiting:
                        busy[connection].give(self.waiting.popleft())
            if asking:
                colors = predict(np.concatenate([lightness for _, lightness in asking])[:, None])
                for hand, lightness in asking:
                    mine, colors = colors[: len(lightness)], colors[len(lightness) :]
                    hand.send(mine)

    def _replace(self, hand: "WorkerHandle") -> Iterator[TaskResult]:
        """A process has died: what it was working on is tried once more, each photograph on its own."""
        self.hands.remove(hand)
        if len(hand.tasks) == 1:
            yield TaskResult(hand.tasks[0], "its process was killed, perhaps for want of memory")
        else:
            self.waiting.extendleft([task] for task in reversed(hand.tasks))
        if self.waiting:
            self.hands.append(WorkerHandle())
            self.hands[-1].give(self.waiting.popleft())


class WorkerHandle:
    """A process that colors photographs, seen from the program. For one photograph alone a thread will do."""

    def __init__(self, alone: bool = False) -> None:
        context = multiprocessing.get_context("spawn")  # it has no use for PyTorch, and would inherit its threads
        self.connection, other = context.Pipe()
        self.tasks: list[ColorizeTask] = []  # which it has not yet reported on
        if alone:
            self.worker = threading.Thread(target=_work, args=(other,), daemon=True)
            self.worker.start()
            return
        self.worker = context.Process(target=_work_alone, args=(other,), daemon=True)
        # A signal to all processes is for the program alone; a process that has only begun would die of it loudly.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)
        try:
            self.worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()

    def end(self, seconds: float) -> None:
        """Waits so long for its end, which comes with that of the connection, and then ends it."""
        self.worker.join(seconds)
        if not isinstance(self.worker, threading.Thread):
            self.worker.kill()

    def give(self, tasks: Sequence[ColorizeTask]) -> None:
        self.tasks = list(tasks)
        self.send(self.tasks)

    def send(self, what: object) -> None:
        with contextlib.suppress(ConnectionError):  # it has died, which the next look at the connection tells
            self.connection.send(what)

    def report(self, failures: list[str]) -> Iterator[TaskResult]:
        """What became of the next tasks."""
        done, self.tasks = self.tasks[: len(failures)], self.tasks[len(failures) :]
        return map(TaskResult, done, failures)


# --- In a process of the pool ----------------------------------------------------------------------


class Stopped(Exception):
    """The program wants no more, or is no more."""


class _Begun(NamedTuple):
    """An task whose photograph has been read, or could not be."""

    task: ColorizeTask
    read: tuple[Photo, ModelInput] | None
    failure: str


def _work_alone(connection: Connection) -> NoReturn:
    """The life of a process."""
    for number in signals.STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STOP_SIGNALS)
    keep_freed_memory()
    _work(connection)
    os._exit(0)  # at once: threads may still have strips to compress that nobody wants


def _work(connection: Connection) -> None:
    """Is given tasks, asks for colors, reports failures; ends with the connection."""
    with contextlib.suppress(Stopped, EOFError, ConnectionError), ThreadPoolExecutor(available_cores()) as pool:
        work = _Work(connection, pool)
        while True:
            work.do(connection.recv())


class _Work:
    """What a process does with its tasks."""

    def __init__(self, connection: Connection, pool: Executor) -> None:
        self.connection = connection
        self.pool = pool

    def do(self, tasks: Sequence[ColorizeTask]) -> None:
        """Does the tasks, a few at a time, and reports on each, in order. Raises Stopped and what Connection does."""
        group: list[_Begun] = []
        pixels = 0
        for task in tasks:
            self.check()
            image, failure = _tried(_open, task)
            size = image.width * image.height if image else 0
            if group and pixels + size > _PIXELS_AT_ONCE:
                self.finish(group)
                group, pixels = [], 0
            pixels += size
            read, failure = _tried(_read, image) if image else (None, failure)
            group.append(_Begun(task, read, failure))
        self.finish(group)

    def finish(self, group: Sequence[_Begun]) -> None:
        """Has what was read colored, writes and reports it."""
        questions = [begun.read[1].lightness for begun in group if begun.read]
        if questions:
            self.connection.send(np.stack(questions))
            answers = iter(self.connection.recv())
        failures = []
        for task, read, failure in group:
            if read:
                _, failure = _tried(self.write, task.target, FullResolution(*read, next(answers)))
            failures.append(failure)
        self.connection.send(failures)

    def write(self, target: Path, joined: FullResolution) -> None:
        """Writes a colored picture. Raises OSError, Stopped."""
        spans = joined.spans()

        def compressed(span: tuple[int, int]) -> png.Strip:
            self.check()
            return png.compress(joined.strip(*span))

        def write(path: Path) -> None:
            strips = self.pool.map(compressed, spans) if len(spans) > 1 else map(compressed, spans)
            with open(path, "wb") as file:
                png.write(file, joined.width, joined.height, joined.channels, strips)

        # To wait for the disk takes longer than all else for a small photograph; a lost picture can be made again.
        write_atomically(target, write, durable=False)

    def check(self) -> None:
        """Raises Stopped if nobody is left to work for: as long as somebody is, nothing can be heard now."""
        if self.connection.poll():
            raise Stopped


def _open(task: ColorizeTask) -> Image.Image:
    return open_image(read_file(task.source, task.root))


def _read(image: Image.Image) -> tuple[Photo, ModelInput]:
    photo = read_photo(image)
    return photo, model_input(photo, Constants.IMAGE_SIZE)


def _tried(step: Callable[..., T], *arguments: object) -> tuple[T | None, str]:
    """What a step returned, or None and why it failed. Raises Stopped alone."""
    try:
        return step(*arguments), ""
    except Stopped:
        raise
    except Unreadable as error:
        return None, str(error)
    except OSError as error:  # of writing: to read raises Unreadable
        return None, f"the colored picture cannot be written: {error.strerror or error}"
    except Exception as error:  # want of memory, or a defect of ours: no reason to lose the other photographs
        return None, " ".join(f"{type(error).__name__}: {error}".split())
