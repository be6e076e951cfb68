"""SIGTERM, Ctrl-C and the loss of a worker: what is trained is saved, and the same command goes on from there."""

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ROOT, only_line
from survival import SECONDS_TO_STOP, Process, Undisturbed, figure, losses, wait_until

pytest_plugins = ["survival"]

SLOW_DECODER = f"""
import runpy, sys, time
sys.path.insert(0, {str(ROOT)!r})
from deepcolor.data import lab_cache
lab_cache.decode_image = lambda content: time.sleep(12)
runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")
"""


def stopped(process: Process, number: signal.Signals, group: bool) -> float:
    """Stops it, checks how it ended, and returns the seconds that it took."""
    seconds = process.stop(number, group)
    assert process.code == 128 + number, process.stderr
    assert "goes on from" in only_line(process.stderr)
    assert "Traceback" not in process.stdout
    return seconds


def stop_twice_and_finish(undisturbed: Undisturbed, folder: Path, jobs: int) -> list[float]:
    """Ctrl-C in the one network's training, SIGTERM in the other's; then to the end. Returns how long stops took."""
    draw = random.Random(jobs)
    command = [*undisturbed.command, "--jobs", jobs, "--output", folder / "out"]
    seconds = []
    # As a terminal sends the one, to all processes; and as `kill` sends the other, to the first.
    for number, group, task in ((signal.SIGINT, True, "regressor"), (signal.SIGTERM, False, "colorizer_sigmoid")):
        with Process(*command, cwd=folder) as process:
            process.wait_until_working()
            assert wait_until(lambda process=process: jobs == 1 or process.workers())
            assert wait_until(lambda task=task: list((folder / f"out/checkpoints/{task}").glob("epoch_4_*.pt")))
            time.sleep(draw.uniform(0, 0.1))
            seconds.append(stopped(process, number, group))
    with Process(*command, cwd=folder) as process:
        assert process.finish() == 0, process.stderr
        assert "anew" not in process.stdout
    return seconds


def test_sigterm_and_ctrl_c_save_and_the_same_command_finishes(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = {jobs: tmp_path / str(jobs) for jobs in (1, 2)}
        running = [pool.submit(stop_twice_and_finish, undisturbed, folder, jobs) for jobs, folder in folders.items()]
        seconds = [second for done in running for second in done.result()]
    lost = {jobs: losses(folder / "out", undisturbed.files) for jobs, folder in folders.items()}
    count = sum(map(len, lost.values()))
    figure(f"SIGTERM and Ctrl-C: {len(seconds)} stops, the longest took {max(seconds):.1f} s; {count} losses")
    assert lost == {1: [], 2: []}
    assert max(seconds) < SECONDS_TO_STOP


def at_once(process: Process) -> None:
    """While it still imports."""
    assert wait_until(lambda: process.has_open("libtorch"))


def at_the_first_word(process: Process) -> None:
    process.wait_until_working()


def at_the_start_of_workers(process: Process) -> None:
    assert wait_until(lambda: "at once" in process.stdout)
    time.sleep(0.03)


@pytest.mark.parametrize(
    ("moment", "jobs", "number"),
    [
        (at_once, 1, signal.SIGINT),
        (at_once, 1, signal.SIGTERM),
        (at_the_first_word, 1, signal.SIGTERM),
        (at_the_start_of_workers, 2, signal.SIGTERM),
    ],
    ids=["Ctrl-C-imports", "imports", "first-word", "start-of-workers"],
)
def test_a_stop_in_the_first_seconds(
    undisturbed: Undisturbed, tmp_path: Path, moment: Callable[[Process], None], jobs: int, number: signal.Signals
) -> None:
    with Process(*undisturbed.command, "--jobs", jobs, "--output", tmp_path / "out", cwd=tmp_path) as process:
        moment(process)
        assert stopped(process, number, group=True) < SECONDS_TO_STOP


def test_a_stop_while_a_picture_takes_long_to_decode(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """A large JPEG 2000 takes a minute."""
    program = tmp_path / "slow.py"
    program.write_text(SLOW_DECODER)
    with Process(*undisturbed.command, "--output", tmp_path / "out", cwd=tmp_path, program=program) as process:
        assert wait_until(lambda: "decoding" in process.logs[1].read_text())
        time.sleep(0.5)
        assert stopped(process, signal.SIGTERM, group=False) < SECONDS_TO_STOP


def test_workers_that_are_killed_are_replaced(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with Process(*undisturbed.command, "--jobs", 2, "--output", tmp_path / "out", cwd=tmp_path) as process:
        assert wait_until(lambda: len(process.workers()) == 2)
        for worker in process.workers():
            os.kill(worker, signal.SIGKILL)
        assert process.finish() == 0, process.stderr
        said = [line for line in process.stdout.splitlines() if "killed" in line]
        assert len(said) == 2
        assert all("goes on from what was saved" in line for line in said)
        assert "Traceback" not in process.stdout + process.stderr
    assert losses(tmp_path / "out", undisturbed.files) == []
