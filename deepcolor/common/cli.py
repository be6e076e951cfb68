"""Command-line helpers of both programs: flags, one-line errors and exit codes. Does not import PyTorch."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from deepcolor.common.signals import Interrupted
from utils import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that prints errors as one line and does not accept abbreviated flags."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def argument_type(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Returns `parse` as an argparse type, which shows the message of the ValueError that `parse` raises."""

    def parsed(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def run(program: str, work: Callable[[], int], output: object, stopped: Callable[[int], int] | None = None) -> int:
    """Calls `work` and returns the exit code of the program. Prints one line if `work` raises.

    Args:
        program: the name that starts the line.
        work: returns an exit code. A UserError it raises gives 2, an OSError 1, Interrupted 128 + the signal.
        output: the folder to name if an OSError names no file.
        stopped: called with the signal instead of printing "stopped"; returns the exit code.

    Other exceptions are defects of the program and are not handled.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path need not be valid Unicode
    try:
        return work()
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        if stopped:
            return stopped(stop.signal)
        print(f"{program}: {stop.message}", file=sys.stderr)
        return 128 + stop.signal
    except BrokenPipeError:
        # The reader of our output is gone. Python would report it again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"{error.strerror or error}: {error.filename or output}"
        print(f"{program}: {what}; fix this and run the same command again to continue", file=sys.stderr)
        return 1


def exit_now(code: int) -> NoReturn:
    """Exits without the interpreter's clean-up, which takes 0.6 s with PyTorch and waits for busy threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader is gone
            stream.flush()
    os._exit(code)


def printable(path: object) -> str:
    """Returns a path as text for a message. Characters that cannot be printed, such as newlines, are escaped."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
