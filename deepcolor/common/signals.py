"""The signals that ask for a stop, before there is anything to save: imported first, as other imports take seconds."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

STOPPED_MESSAGE = "stopped; the same command goes on from here"
# SIGUSR1 is what a cluster is asked to send shortly before a job's time is over.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(BaseException):
    """The program was asked to stop by a signal, and has saved what there was to save.

    Like KeyboardInterrupt no Exception: a library that guards against errors must not take it for one.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def exit_on_signal() -> None:
    """From now on a signal ends the program, with one line: for the imports, in which an exception may get lost."""
    for number in STOP_SIGNALS:
        signal.signal(number, _end)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Within, a signal calls the handler."""
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def ending() -> contextlib.AbstractContextManager[None]:
    """Within, a signal ends the program at once, with one line."""
    return handled(_end)


def raised() -> contextlib.AbstractContextManager[None]:
    """Within, a signal raises Interrupted."""
    return handled(_raise)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within, a signal waits; it is as if it came at the end."""
    came: list[int] = []
    with handled(lambda number, frame: came.append(number)):
        yield
    for number in came:
        os.kill(os.getpid(), number)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os.write(sys.stderr.fileno(), f"{os.path.basename(sys.argv[0])}: {STOPPED_MESSAGE}\n".encode())
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)
