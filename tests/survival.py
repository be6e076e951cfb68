"""Helpers for tests that start, stop and kill the real program, and a comparison of what it wrote.

PYTEST_DONT_REWRITE: some tests import this file and name it as a plugin as well.
"""

import csv
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
import torch
from helpers import ROOT, plain, visible_files

import main

MAIN = ROOT / "main.py"
SECONDS_TO_STOP = 5
_PATIENCE = 300  # seconds to wait for something that should happen


_figures: list[str] = []


def figure(line: str) -> None:
    """Keeps a line to print at the end of the test session."""
    _figures.append(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _figures:
        terminalreporter.write_line(line)


def wait_until(holds: Callable[[], object], seconds: float = _PATIENCE, pause: float = 0.01) -> bool:
    """Calls `holds` every `pause` seconds, and returns whether it became true within that time."""
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(pause)
    return bool(held)


def without_bar(text: str) -> str:
    """Returns what is left of stderr on a terminal, where a progress bar overwrites itself."""
    return "".join(line.rpartition("\r")[2] for line in re.split("(?<=\n)", text))


class Process:
    """`python main.py` in a session of its own, so that a signal to its process group reaches no other process.

    A context manager that kills what is left of it. Its output goes to log files in `cwd`.
    """

    def __init__(self, *arguments: object, cwd: Path, program: Path = MAIN) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self.logs = [cwd / f"{name}-{time.monotonic_ns()}.log" for name in ("stdout", "stderr")]
        out, err = (log.open("wb") for log in self.logs)
        with out, err:
            self.process = subprocess.Popen(
                [sys.executable, str(program), *map(str, arguments)],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
            )
        self.code: int | None = None
        self.peak_bytes = 0  # of memory, of the first process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.ended():
            self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self.logs[0].read_bytes().decode()

    @property
    def stderr(self) -> str:
        return without_bar(self.logs[1].read_bytes().decode())

    def ended(self) -> bool:
        if self.code is None:
            self.peak_bytes = max(self.peak_bytes, _peak_bytes(self.pid))
            self.code = self.process.poll()
        return self.code is not None

    def finish(self, seconds: float = _PATIENCE) -> int:
        """Waits for the end and returns the exit code."""
        assert wait_until(self.ended, seconds), f"still running after {seconds} s:\n{self.stdout}{self.stderr}"
        return self.code

    def wait_until_working(self) -> None:
        """Waits for the first line of output."""
        assert wait_until(lambda: self.stdout or self.ended())
        assert not self.ended(), self.stderr

    def kill(self, group: bool = True) -> None:
        """Sends SIGKILL to all processes of the group, or to the first one only."""
        self.stop(signal.SIGKILL, group)

    def stop(self, number: signal.Signals, group: bool = False) -> float:
        """Sends the signal, waits for the end, and returns the seconds between."""
        began = time.monotonic()
        self.send(number, group)
        self.finish()
        return time.monotonic() - began

    def send(self, number: signal.Signals, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def has_open(self, name: str) -> bool:
        """Returns whether a file whose path contains `name` is mapped."""
        return _has_open(self.pid, name)

    def workers(self) -> list[int]:
        """Returns the worker processes of --jobs that have the images mapped, which are about to train."""
        return [pid for server in _children(self.pid) for pid in _children(server) if _has_open(pid, "records.lab")]


_CHANGED_PROGRAM = """
import multiprocessing, os, sys, time
sys.path.insert(0, {root!r})
import Constants
from deepcolor.training.trainer import Trainer
{change}
import main
if __name__ == "__main__":
    sys.exit(main.main())
"""


def changed_program(folder: Path, change: str) -> Path:
    """Writes a main.py that executes some lines first, in its worker processes too."""
    path = folder / "changed.py"
    path.write_text(_CHANGED_PROGRAM.format(root=str(ROOT), change=change))
    return path


def alive(pid: int) -> bool:
    """Returns whether a process runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    """Returns the child processes of all threads of a process."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:  # it has just ended
            continue
    return found


def _has_open(pid: int, name: str) -> bool:
    try:
        return name in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def _peak_bytes(pid: int) -> int:
    """Returns the peak memory of a process, or 0 if it has ended."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def result_of(output: Path, *arguments: object) -> dict[str, object]:
    """Runs main.py in this process, which must succeed, and returns `contents(output)`."""
    assert main.main(["--output", *map(str, (output, *arguments))]) == 0
    return contents(output)


def contents(output: Path) -> dict[str, object]:
    """Returns all visible files below an output folder, comparable: without measured seconds."""
    found: dict[str, object] = {}
    for name, content in visible_files(output).items():
        if name.endswith(".pt"):
            found[name] = plain(torch.load(output / name, weights_only=True))
        elif name.endswith("results.csv"):
            rows = list(csv.DictReader(content.decode().splitlines()))
            found[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        else:
            found[name] = content
    return found


def differences(output: Path, expected: dict[str, object]) -> list[str]:
    """Returns the files below an output folder that are missing, not expected, or different."""
    found = contents(output)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int = 1, color: int = 0, rows: int | None = None) -> bytes:
    """Returns a PNG file, which can hold fewer rows than it declares.

    `color` is 0 for gray, 2 for RGB, 3 for a palette, 4 and 6 with alpha.
    """
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = b"\0" + b"\x55" * -(-width * bits * channels // 8)
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    palette = _chunk(b"PLTE", bytes(range(256)) * 3) if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")
