"""What the tests of survival share: real processes that are stopped and killed, and a comparison of what they leave.

PYTEST_DONT_REWRITE: the tests import this file before pytest takes it for the plugin that it is as well.
"""

import csv
import multiprocessing
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
import torch
from helpers import ROOT, plain, visible_files

MAIN = ROOT / "main.py"
# Both networks, one activation, two snapshots each; some seconds of work.
FLAGS = "--device cpu --activation sigmoid --lr 0.003 --weight-decay 0 --epoch 4 10 --batch-size 4 --seed 5".split()
SECONDS_TO_STOP = 5  # what the program has from a signal to its end
_PATIENCE = 120  # seconds that something which should happen is waited for

_figures: list[str] = []


def figure(line: str) -> None:
    """Keeps a line of what was tried, for the end of the test session."""
    _figures.append(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _figures:
        terminalreporter.write_line(line)


def wait_until(holds: Callable[[], object], seconds: float = _PATIENCE) -> bool:
    """Whether it came to hold within that time."""
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.003)
    return bool(held)


def without_bar(text: str) -> str:
    """What is left on a terminal of stderr, where a progress bar overwrites itself."""
    return "".join(line.rpartition("\r")[2] for line in re.split("(?<=\n)", text))


class Process:
    """`python main.py` in a session of its own: a signal to its group reaches all of its processes and no other.

    Leaving the `with` kills whatever is left of it.
    """

    def __init__(self, *arguments: object, cwd: Path, program: Path = MAIN) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self.logs = [cwd / f"{name}-{time.monotonic_ns()}.log" for name in ("stdout", "stderr")]
        out, err = (log.open("wb") for log in self.logs)
        self.began = time.monotonic()
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
        """Without what a progress bar wrote over."""
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
        """Until it has begun: a first line is out."""
        assert wait_until(lambda: self.stdout or self.ended())
        assert not self.ended(), self.stderr

    def kill(self, group: bool = True) -> None:
        """SIGKILL to all of its processes, or to the first alone."""
        if group:
            os.killpg(self.pid, signal.SIGKILL)
        else:
            os.kill(self.pid, signal.SIGKILL)
        self.finish()

    def stop(self, number: signal.Signals, group: bool = False) -> float:
        """Sends the signal, waits for the end, and returns the seconds between."""
        began = time.monotonic()
        if group:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)
        self.finish()
        return time.monotonic() - began

    def has_open(self, name: str) -> bool:
        """Whether a file whose path contains this is mapped."""
        return _has_open(self.pid, name)

    def workers(self) -> list[int]:
        """The processes that train side by side, once they are about to: they have the images mapped."""
        return [pid for server in _children(self.pid) for pid in _children(server) if _has_open(pid, "records.lab")]


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    """The children of a process, from all of its threads."""
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
    """The most memory that a process has had so far; 0 if it has ended."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def apart(function: Callable[[], object], seconds: float = 60) -> object:
    """What a function returns in a fork of this process: if it crashes or hangs, the test fails and nothing else."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: sender.send(function()))
    process.start()
    sender.close()
    try:
        assert receiver.poll(seconds), f"no result within {seconds} s"
        return receiver.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"the process ended with {process.exitcode}: negative for a signal") from None
    finally:
        process.kill()
        process.join()


def kept(output: Path) -> dict[str, object]:
    """All visible files below an output folder, comparable: checkpoints and results without what a clock decided."""
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


def losses(output: Path, reference: dict[str, object]) -> list[str]:
    """The files that are missing, too many, or different from the undisturbed run's."""
    found = kept(output)
    return sorted(name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int = 1, color: int = 0, rows: int | None = None) -> bytes:
    """A PNG file, of whose rows it may hold fewer than it says. Color: 0 gray, 2 RGB, 3 palette; 4, 6 with alpha."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = b"\0" + b"\x55" * -(-width * bits * channels // 8)
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    palette = _chunk(b"PLTE", bytes(range(256)) * 3) if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


@dataclass(frozen=True)
class Undisturbed:
    """What a run left that nobody disturbed, and how long it worked."""

    output: Path
    files: dict[str, object]
    seconds: float
    command: list[str]


@pytest.fixture(scope="session")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    folder = tmp_path_factory.mktemp("undisturbed")
    command = ["--images", str(photos), *FLAGS, "--jobs", "1"]
    with Process(*command, "--output", folder / "out", cwd=folder) as process:
        process.wait_until_working()
        began = time.monotonic()
        assert process.finish() == 0, process.stderr
        seconds = time.monotonic() - began
    files = kept(folder / "out")
    assert sum(name.endswith(".pt") for name in files) == 4
    assert sum(name.endswith(".png") for name in files) == 1 + 4 + 2 + 4 * 4  # summary, losses, triplets, pictures
    yield Undisturbed(folder / "out", files, seconds, command)
