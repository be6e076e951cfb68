"""colorize.py is stopped, or a process of it killed: what is finished is whole, and the same command does the rest."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, lines_of, picture, write
from PIL import Image
from survival import SECONDS_TO_STOP, Process, wait_until

from deepcolor.common import signals

pytest_plugins = ["survival"]

PHOTOS = 40
# The program, but for one step of the processes that it starts, which import this file as well.
CHANGED = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from deepcolor.inference import pipeline
step = pipeline._open
def changed(task):
    {{change}}
    return step(task)
pipeline._open = changed
import colorize
if __name__ == "__main__":
    sys.exit(colorize.main())
"""


@pytest.fixture
def command(sweep: Path, tmp_path: Path) -> list[object]:
    """The flags that color some photographs, which takes a second."""
    for number in range(PHOTOS):
        write(tmp_path / f"photos/{number}.png", np.tile(picture(number), (4, 4, 1)), compress_level=1)
    return [tmp_path / "photos", "--output", tmp_path / "out", "--checkpoint", sweep]


def colored(folder: Path) -> list[str]:
    """The files below a folder, each of which must be a whole picture."""
    for path in folder.iterdir():
        Image.open(path).load()
    return [path.name for path in folder.iterdir()]


@contextlib.contextmanager
def at_work(command: list[object], folder: Path, change: str = "") -> Iterator[Process]:
    """The running program."""
    program = ROOT / "colorize.py"
    if change:
        program = folder / "changed.py"
        program.write_text(CHANGED.format(change=change))
    with Process(*command, cwd=folder, program=program) as process:
        yield process


def hands(process: Process) -> list[int]:
    """The processes that it has started, and that do the work."""
    found = Path(f"/proc/{process.pid}/task").glob("*/children")
    pids = [pid for path in found for pid in path.read_text().split()]
    return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_stop_leaves_whole_pictures_and_the_same_command_does_the_rest(
    color: Callable, command: list[object], tmp_path: Path, number: signal.Signals, group: bool
) -> None:
    with at_work(command, tmp_path, "time.sleep(0.2)") as process:
        assert wait_until(lambda: list((tmp_path / "out").glob("*_color.png")))
        assert process.stop(number, group) < SECONDS_TO_STOP
        assert process.code == 128 + number
        (line,) = lines_of(process.stderr, "colorize.py")
        assert "goes on" in line
    done = colored(tmp_path / "out")  # and nothing that is half written
    assert 0 < len(done) < PHOTOS
    said = color(*command)
    assert said.code == 0
    assert f"colored {PHOTOS - len(done)} of {PHOTOS - len(done)}" in said.out
    assert len(colored(tmp_path / "out")) == PHOTOS


def test_a_stop_is_not_lost_where_a_library_makes_light_of_every_exception() -> None:
    """As tqdm does, when it asks for the width of the terminal."""
    with pytest.raises(signals.Interrupted), signals.raised(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)


def test_a_stop_while_the_network_is_loaded(command: list[object], tmp_path: Path) -> None:
    with at_work(command, tmp_path) as process:
        assert wait_until(lambda: process.has_open("libtorch"))
        assert process.stop(signal.SIGINT, group=True) < SECONDS_TO_STOP
        assert process.code == 128 + signal.SIGINT
        assert len(lines_of(process.stderr, "colorize.py")) == 1


def test_a_stop_while_a_photograph_takes_long_to_decode(command: list[object], tmp_path: Path) -> None:
    with at_work(command, tmp_path, "time.sleep(30)") as process:
        process.wait_until_working()
        assert process.stop(signal.SIGTERM) < SECONDS_TO_STOP
        assert process.code == 128 + signal.SIGTERM
        assert len(lines_of(process.stderr, "colorize.py")) == 1


def test_the_processes_end_with_a_program_that_is_killed(command: list[object], tmp_path: Path) -> None:
    with at_work(command, tmp_path, "time.sleep(0.2)") as process:
        assert wait_until(lambda: list((tmp_path / "out").glob("*_color.png")))
        pids = hands(process)
        assert pids
        process.kill(group=False)
        assert wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids), seconds=10)
    colored(tmp_path / "out")


def test_a_photograph_that_kills_its_process_is_named_and_the_others_are_colored(
    command: list[object], tmp_path: Path
) -> None:
    """And one that meets a defect of the program."""
    deadly, defect = "name in ('7.png', '8.png') and os.kill(os.getpid(), 9)", "name == '9.png' and 1 / 0"
    change = f"name = task.source.name; {deadly}; {defect}"
    with at_work(command, tmp_path, change) as process:
        assert process.finish() == 1, process.stderr
        lines = {line.partition(": cannot")[2].split("/")[-1] for line in lines_of(process.stderr, "colorize.py")}
    killed = "its process was killed, perhaps for want of memory"
    assert lines == {f"7.png: {killed}", f"8.png: {killed}", "9.png: ZeroDivisionError: division by zero"}
    assert len(colored(tmp_path / "out")) == PHOTOS - 3
