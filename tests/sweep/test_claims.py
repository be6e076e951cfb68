"""Processes that run the same command share a sweep: each claims runs, and any of them can die."""

import contextlib
import errno
import fcntl
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import only_line
from survival import MAIN, Process, alive, changed_program, differences, result_of, wait_until

import main
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.paths import RunPaths

FLAGS = "--device cpu --network regressor --weight-decay 0".split()
TWO_RUNS = [*FLAGS, *"--lr 0.003 0.001 --epoch 2 4".split()]
FINISHED = re.compile(r"^(\w+ epoch_\S+): val mse", re.MULTILINE)
# Kills the process that trains: once with 16 feature maps, always with 3.
DEADLY = """
def train_epoch(trainer, original=Trainer.train_epoch):
    maps, mark = trainer.config.feature_maps, trainer.paths.root / "killed"
    if multiprocessing.parent_process() and trainer.epoch == 2 and (maps == 3 or maps == 16 and not mark.exists()):
        mark.touch() if maps == 16 else None
        os.kill(os.getpid(), 9)
    original(trainer)
Trainer.train_epoch = train_epoch
"""
SAVES_OFTEN = "Constants.SAVE_SECONDS = 0.05"


@pytest.mark.slow
def test_three_commands_share_a_sweep_and_one_is_killed(tmp_path: Path) -> None:
    """Without --images, one of them adds the built-in photographs, and the others wait for it."""
    flags = [*FLAGS, *"--lr 0.003 0.002 0.001 --epoch 4 8 --jobs 1".split()]
    with contextlib.ExitStack() as stack:
        command = [*flags, "--output", "out"]
        processes = [stack.enter_context(Process(*command, cwd=tmp_path)) for _ in range(3)]
        assert wait_until(lambda: list(tmp_path.glob("out/checkpoints/*/epoch_*.pt")) or processes[0].ended())
        time.sleep(random.uniform(0, 1))
        if not processes[0].ended():
            processes[0].kill()
        for process in processes[1:]:
            assert process.finish() == 0, process.stderr
        said = [process.stdout for process in processes]
    assert sum("scikit-image" in each for each in said) == 1
    assert all("Best regressor" in each for each in said[1:])
    finished = FINISHED.findall("\n".join(said))
    assert len(finished) == len(set(finished)) >= 5  # the killed process may not have printed its last one
    images = tmp_path / "data"
    assert differences(tmp_path / "out", result_of(tmp_path / "alone", "--images", images, *flags)) == []


@pytest.mark.slow
def test_workers_that_are_killed_are_replaced_and_a_run_that_kills_two_fails(photos: Path, tmp_path: Path) -> None:
    """The wide network uses several threads, on which its sums depend."""
    command = ["--images", photos, *FLAGS, *"--lr 0.003 --epoch 4 --feature-maps 3 16 --jobs".split()]
    flags = [2, "--output", tmp_path / "out"]
    with Process(*command, *flags, cwd=tmp_path, program=changed_program(tmp_path, DEADLY)) as process:
        assert process.finish() == 1
        failed = "main.py: failed: regressor lr_0.003_weight_decay_0_feature_maps_3: its process was killed"
        assert only_line(process.stderr).startswith(failed)
        assert process.stdout.count("; the run continues from what was saved") == 2
        assert len(FINISHED.findall(process.stdout)) == 1
        assert "Best regressor" in process.stdout
    (tmp_path / "out/killed").unlink()
    assert result_of(tmp_path / "out", *command, 1) == result_of(tmp_path / "alone", *command, 1)
    torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "count"), [(1, 14), (2, 6)])
def test_a_sweep_that_is_killed_at_random_moments_loses_nothing(
    photos: Path, tmp_path: Path, jobs: int, count: int
) -> None:
    """Every other time the program saves its state all the time, so that the moment can fall into the saving."""
    flags = "--device cpu --activation sigmoid --lr 0.003 --weight-decay 0 --epoch 2 6 --batch-size 4".split()
    command = ["--images", photos, *flags]  # both networks
    began = time.monotonic()
    expected = result_of(tmp_path / "alone", *command, "--jobs", "1")
    seconds = time.monotonic() - began
    saves_often = changed_program(tmp_path, SAVES_OFTEN)
    kills, outputs, workers = 0, [tmp_path / "0"], set()
    while kills < count:
        flags = ["--jobs", jobs, "--output", outputs[-1]]
        with Process(*command, *flags, cwd=tmp_path / "logs", program=saves_often if kills % 2 else MAIN) as process:
            process.wait_until_working()
            if wait_until(process.ended, random.uniform(0, seconds / jobs)):
                assert process.code == 0, process.stderr
                outputs.append(tmp_path / str(len(outputs)))
            else:
                workers.update(process.workers())
                process.kill(group=kills % 3 == 0)  # otherwise, the workers must notice that their parent is gone
                kills += 1
    assert wait_until(lambda: not any(map(alive, workers)), 10)
    result_of(outputs[-1], *command, "--jobs", "1")
    assert {str(output): differences(output, expected) for output in outputs} == {str(o): [] for o in outputs}


# --- In this process ---------------------------------------------------------------------------------

ALONE = [*TWO_RUNS, "--jobs", "1"]


def claim(output: Path) -> contextlib.AbstractContextManager[bool]:
    """Claims the first of the two runs, as another process would."""
    return RunPaths(output).claim(TrainingRun("regressor", "", TrainConfig(lr=0.003, weight_decay=0), (2, 4)))


def test_a_process_waits_for_a_run_that_another_holds(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The other one dies: its lock is free, and nothing was trained."""
    with contextlib.ExitStack() as other:
        assert other.enter_context(claim(tmp_path))
        monkeypatch.setattr("deepcolor.sweep.sweep.time.sleep", lambda seconds: other.close())
        result_of(tmp_path, "--images", photos, *ALONE)
    said = capsys.readouterr().out
    assert said.count("waiting for 1 training run(s) of other processes") == 1
    assert [name.split("_")[3] for name in FINISHED.findall(said)] == ["0.001", "0.001", "0.003", "0.003"]


def test_an_array_task_does_not_wait_and_the_last_one_reports(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    output = tmp_path / "my run"
    with claim(output) as is_mine:
        assert is_mine
        result_of(output, "--images", photos, *ALONE)
        said = capsys.readouterr().out
        assert "1 of 2 training runs are not finished" in said
        assert f"main.py --report --output '{output}'" in said
        assert "Best" not in said
    result_of(output, "--images", photos, *ALONE)
    said = capsys.readouterr().out
    assert len(FINISHED.findall(said)) == 2
    assert "Best regressor" in said


def test_a_run_that_fails_is_reported_once_and_the_others_finish(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A folder is where a model should be written."""
    obstacle = tmp_path / "out/checkpoints/regressor/epoch_4_lr_0.003_weight_decay_0.pt"
    obstacle.mkdir(parents=True)
    command = ["--images", photos, *ALONE]
    assert main.main([*map(str, command), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert only_line(said.err).startswith("main.py: failed: regressor lr_0.003_weight_decay_0: ")
    assert [name.split("_")[3] for name in FINISHED.findall(said.out)] == ["0.003", "0.001", "0.001"]
    assert "Best regressor" in said.out
    obstacle.rmdir()
    fixed = result_of(tmp_path / "out", *command)
    assert FINISHED.findall(capsys.readouterr().out) == ["regressor epoch_4_lr_0.003_weight_decay_0"]
    assert fixed == result_of(tmp_path / "alone", *command)


def test_a_folder_without_locks_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """Some file systems of clusters are mounted without locks."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    line = fails("--images", photos, "--output", tmp_path, *ALONE)
    assert "does not support locks" in line and "--output" in line
