"""Stop signals: SIGINT, SIGTERM and SIGUSR1.

A program handles them in one of two ways. Before there is work to save, a signal prints one line and exits
(`exit_on_signal`). During work, it sets a flag that the work polls (`StopFlag`). Imported before anything else,
because importing PyTorch takes seconds in which the user can press Ctrl-C. Standard library only.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn, Self

from deepcolor.common.system import STOP_SIGNALS

STOPPED_MESSAGE = "stopped; the same command continues from here"


class Interrupted(BaseException):
    """Raised after the work was saved because a signal asked the program to stop. `message` is shown to the user.

    Not an Exception, like KeyboardInterrupt: code that handles errors must not handle it.
    """

    def __init__(self, signal: int, message: str = STOPPED_MESSAGE) -> None:
        super().__init__(signal)
        self.signal = signal
        self.message = message


def exit_on_signal() -> None:
    """From now on, a stop signal prints one line and exits with 128 + its number."""
    for number in STOP_SIGNALS:
        signal.signal(number, _exit)


class StopFlag:
    """While entered, stop signals only set `signal`. A second Ctrl-C exits at once.

    Usage::

        with StopFlag() as stop:
            for batch in batches:
                if stop.signal:
                    save()
                    raise Interrupted(stop.signal)
    """

    def __init__(self) -> None:
        self.signal = 0  # the number of the first signal received, or 0

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            _exit(number, frame)
        self.signal = self.signal or number


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os.write(sys.stderr.fileno(), f"{os.path.basename(sys.argv[0])}: {STOPPED_MESSAGE}\n".encode())
    os._exit(128 + number)
