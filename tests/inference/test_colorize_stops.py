"""colorize.py is stopped or one of its processes is killed: finished pictures are complete, and it can continue."""

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, lines_of, picture, write
from PIL import Image
from survival import SECONDS_TO_STOP, Process, wait_until

from deepcolor.common.signals import STOPPED_MESSAGE

pytest_plugins = ["survival"]

PHOTOS = 40
# The worker processes import this file as well, so that they have the changed function too.
PROGRAM = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from deepcolor.inference import pipeline
read_file = pipeline.read_file
def changed(path, root):
    {{change}}
    return read_file(path, root)
pipeline.read_file = changed
import colorize
from deepcolor.common import cli, signals
if __name__ == "__main__":
    signals.exit_on_signal()
    cli.exit_now(colorize.main())
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(PHOTOS):
        write(folder / f"{number}.png", np.tile(picture(number), (4, 4, 1)), compress_level=1)
    return folder


@pytest.fixture
def start(sweep: Path, photographs: Path, tmp_path: Path) -> Callable[..., Process]:
    """Starts colorize.py on photographs, with a statement inserted before each one is read."""

    def run(change: str = "pass", name: str = "") -> Process:
        program = tmp_path / "colorize.py"
        program.write_text(PROGRAM.format(change=change))
        flags = ("--output", tmp_path / "out", "--checkpoint", sweep, "--device", "cpu")
        return Process(photographs / name, *flags, cwd=tmp_path, program=program)

    return run


def colored(folder: Path) -> set[Path]:
    """Returns the colored pictures, after checking that each is complete and that no other files are visible."""
    paths = {path for path in folder.iterdir() if not path.name.startswith(".")}
    for path in paths:
        Image.open(path).load()
    return paths


def processes(session: int) -> list[int]:
    """Returns the living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
            found += [int(path.parent.name)] if int(number) == session and state != "Z" else []
    return found


def check_stopped(process: Process, number: signal.Signals, group: bool) -> None:
    """Sends a signal: the program must end in time, with its one line and exit code, and so must its workers."""
    assert process.stop(number, group) < SECONDS_TO_STOP
    assert process.code == 128 + number
    assert wait_until(lambda: not processes(process.pid))
    lines = [line for line in lines_of(process.stderr, "colorize.py") if "is kept" not in line]
    assert lines == [f"colorize.py: {STOPPED_MESSAGE}"]


def test_a_stop_leaves_complete_pictures_and_the_same_command_continues(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    with start("time.sleep(0.5)") as process:
        assert wait_until(lambda: list(tmp_path.glob("out/*_color.png")))
        check_stopped(process, signal.SIGINT, group=True)
    done = colored(tmp_path / "out")
    assert len(done) < PHOTOS
    with start() as process:
        assert process.finish() == 0
        assert f"colored {PHOTOS - len(done)} of {PHOTOS - len(done)}" in process.stdout
    assert len(colored(tmp_path / "out")) == PHOTOS


@pytest.mark.slow
def test_a_stop_while_the_network_is_loaded(start: Callable[..., Process]) -> None:
    with start() as process:
        assert wait_until(lambda: process.has_open("libtorch"))
        check_stopped(process, signal.SIGINT, group=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "0.png"], ids=["many", "one"])
def test_a_stop_while_photographs_are_decoded(start: Callable[..., Process], name: str) -> None:
    with start("time.sleep(60)", name) as process:
        process.wait_until_working()
        check_stopped(process, signal.SIGTERM, group=not name)


@pytest.mark.slow
def test_a_stop_while_the_progress_bar_appears(start: Callable[..., Process]) -> None:
    with start("time.sleep(60)") as process:
        assert wait_until(lambda: f"0/{PHOTOS}" in process.logs[1].read_text(), pause=0)
        check_stopped(process, signal.SIGTERM, group=True)


@pytest.mark.slow
def test_the_workers_end_when_the_program_is_killed(start: Callable[..., Process], tmp_path: Path) -> None:
    with start("time.sleep(0.2)") as process:
        assert wait_until(lambda: list((tmp_path / "out").glob("*_color.png")))
        assert len(processes(process.pid)) > 2
        process.kill(group=False)
        assert wait_until(lambda: not processes(process.pid))
    colored(tmp_path / "out")


def test_photographs_that_kill_their_process_are_named_and_the_others_are_colored(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    deadly, defect = "path.name in ('7.png', '8.png') and os.kill(os.getpid(), 9)", "path.name == '9.png' and 1 / 0"
    with start(f"{deadly}; {defect}") as process:
        assert process.finish() == 1, process.stderr
    lines = {
        line.partition(": cannot color ")[2].rpartition("/")[2] for line in lines_of(process.stderr, "colorize.py")
    }
    killed = "its process was killed, perhaps because memory ran out"
    assert lines == {f"7.png: {killed}", f"8.png: {killed}", "9.png: ZeroDivisionError: division by zero"}
    assert len(colored(tmp_path / "out")) == PHOTOS - 3
