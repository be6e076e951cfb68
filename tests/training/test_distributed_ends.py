"""However one rank ends, all end soon, with one line and the right exit code."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import SHORT, only_line
from launch import by_hand, own_lines, program, ranks, torchrun
from survival import MAIN, Process, alive, wait_until, without_bar

from deepcolor.common.signals import STOPPED_MESSAGE

pytest_plugins = ["survival"]

SECONDS_TO_NOTICE = 10  # that a rank is gone
SLOW_DECODER = "from deepcolor.data import lab_cache\nlab_cache.decode_image = lambda content: time.sleep(60)"


def at_the_first_model(process: Process) -> object:
    return list((process.logs[0].parent / "out/checkpoints").glob("regressor/epoch_1_*.pt"))


def while_rank_0_reads(process: Process) -> object:
    return "decoding" in process.logs[1].read_text()


@pytest.mark.parametrize(("rank", "moment"), [(1, at_the_first_model), (0, while_rank_0_reads)])
def test_a_rank_that_is_killed_ends_the_job_with_a_line(
    rank: int, moment: Callable[[Process], object], photos: Path, tmp_path: Path
) -> None:
    killed = program(tmp_path / "killed.py", SLOW_DECODER) if moment is while_rank_0_reads else MAIN
    with torchrun("--images", photos, *SHORT, 100_000, "--output", "out", cwd=tmp_path, program=killed) as process:
        assert wait_until(lambda: moment(process))
        both = ranks(process)
        os.kill(both[rank], signal.SIGKILL)
        assert process.finish(SECONDS_TO_NOTICE) == 1
        assert not any(map(alive, both.values()))
        (line,) = own_lines(process)
        assert "another of the 2 ranks has ended" in line


def test_a_stop_while_rank_0_reads_is_one_for_all(photos: Path, tmp_path: Path) -> None:
    stopped = program(tmp_path / "stopped.py", SLOW_DECODER)
    with torchrun("--images", photos, *SHORT, "--output", "out", cwd=tmp_path, program=stopped) as process:
        assert wait_until(lambda: while_rank_0_reads(process))
        assert process.stop(signal.SIGTERM) < SECONDS_TO_NOTICE
        assert own_lines(process) == [f"main.py: {STOPPED_MESSAGE}"]


def test_a_file_that_rank_0_cannot_write_ends_all_with_a_line(photos: Path, tmp_path: Path) -> None:
    obstacle = tmp_path / "out/checkpoints/regressor/.state"
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()  # where rank 0 will want a folder
    first, second = by_hand("--images", photos, *SHORT, "--output", "out", cwd=tmp_path)
    assert (first.returncode, second.returncode) == (1, 1)
    line = only_line(first.stderr)
    assert line.startswith("main.py: failed: regressor lr_0.001_weight_decay_0: ")
    assert ".state" in line
    assert (second.stdout, second.stderr) == ("", "")


FAILED = "main.py: failed: regressor lr_0.001_weight_decay_0: no memory left"
FAILING = """
import torch
from deepcolor.training.trainer import Trainer

def step(self, *inputs, original=Trainer.step):
    if os.environ["RANK"] == "1" and self.epoch == 1:
        raise torch.OutOfMemoryError("no memory left")
    original(self, *inputs)

Trainer.step = step
"""


def test_an_error_on_one_rank_alone_ends_all_with_a_line(photos: Path, tmp_path: Path) -> None:
    failing = program(tmp_path / "failing.py", FAILING)
    first, second = by_hand("--images", photos, *SHORT, 9, "--output", "out", cwd=tmp_path, program=failing)
    assert (first.returncode, second.returncode) == (1, 1)
    assert without_bar(second.stderr).split("\n") == ["", FAILED, ""]
    assert "main.py: " not in first.stderr
    assert "Traceback" not in first.stdout + first.stderr


def test_what_all_ranks_find_wrong_is_said_once(tmp_path: Path) -> None:
    with torchrun("--batch-size", 1, cwd=tmp_path) as process:
        assert process.finish() == 1
        assert process.stderr.count("exitcode  : 2 ") == 2
        (line,) = own_lines(process)
        assert line.startswith("main.py: --batch-size is the batch of all ranks together")
