"""What the programs share at the command line: flags, how an error is told, and the end. Imports no PyTorch."""

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from deepcolor.common import signals
from utils import UserError


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def run(program: str, work: Callable[[], int], output: object, stopped: Callable[[int], int] | None = None) -> int:
    """Calls `work` and returns its exit code, or that of how it ended; whatever ended it is said in one line.

    2 for what the user can mend, 1 for a failing disk, 128 and the signal's number for Ctrl-C and SIGTERM.
    `output` is named where an error of the disk names no file; `stopped` says itself that this signal has ended the
    work, and returns the code. A defect of ours is shown in full.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path need not be text
    try:
        with signals.raised():
            return work()
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except signals.Interrupted as stop:
        if stopped:
            return stopped(stop.signal)
        print(f"{program}: {signals.STOPPED_MESSAGE}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:  # Ctrl-C again, while it saved
        print(f"{program}: interrupted; the same command goes on from what was saved", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has left; Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"{error.strerror or error}: {error.filename or output}"
        again = "the same command goes on from what was saved"
        print(f"{program}: {what}; see to it, and start again: {again}", file=sys.stderr)
        return 1


def leave(code: int) -> NoReturn:
    """Ends the process at once: to take PyTorch down module by module takes 0.6 s, to wait for a busy thread longer."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it has left
            stream.flush()
    os._exit(code)


def printable(path: object) -> str:
    """A path as it is written into a line, in which it must not begin another."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
