"""Signals: what is trained is saved and the same command continues; a Slurm job near its time limit requeues itself."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, SHORT, only_line
from survival import MAIN, Process, changed_program, result_of, wait_until, without_bar
from torch import Tensor

import main
from deepcolor.common.signals import STOP_SIGNALS, STOPPED_MESSAGE
from deepcolor.sweep import slurm
from deepcolor.training.trainer import Trainer

FLAGS = "--device cpu --network regressor --lr 0.003 0.001 --weight-decay 0 --epoch 6 --batch-size 4".split()
STOPPED = f"main.py: {STOPPED_MESSAGE}"
# A training run waits for a signal in the middle of its first epoch.
HOLD = """
def step(trainer, *batch, original=Trainer.step):
    deadline = time.monotonic() + 300  # if the test was killed
    while trainer.batch == 3 and not trainer.callbacks.stop_signal() and time.monotonic() < deadline:
        time.sleep(0.02)
    original(trainer, *batch)
Trainer.step = step
"""
SLOW_SAVE = "Trainer.save = lambda *arguments: (print('saving'), time.sleep(600))"
SLOW_DECODER = f"""
import runpy, sys, time
sys.path.insert(0, {str(ROOT)!r})
from deepcolor.data import lab_cache
lab_cache.decode_image = lambda content: time.sleep(600)
sys.argv[0] = {str(MAIN)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The result of an undisturbed run."""
    return result_of(tmp_path_factory.mktemp("expected"), "--images", photos, *FLAGS, "--jobs", 1)


def check_stopped(process: Process, number: signal.Signals) -> None:
    assert process.code == 128 + number, process.stderr
    assert without_bar(process.stderr).strip().endswith(f".py: {STOPPED_MESSAGE}")
    assert process.stderr.count("\n") == 1
    assert "Traceback" not in process.stdout


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_saves_and_the_same_command_continues(
    photos: Path, tmp_path: Path, expected: dict, capsys: pytest.CaptureFixture, number: signal.Signals
) -> None:
    """In the middle of an epoch."""
    command = ["--images", photos, *FLAGS, "--jobs", 1]
    steps = []

    def step(trainer: Trainer, *batch: Tensor, original: Callable = Trainer.step) -> None:
        original(trainer, *batch)
        steps.append(trainer.batch)
        if len(steps) == 14:  # of 5 per epoch, after the 8 steps that measure the speed
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        assert main.main([*map(str, command), "--output", str(tmp_path / "out")]) == 128 + number
    assert len(steps) == 14
    said = capsys.readouterr()
    assert only_line(said.err) == STOPPED
    assert result_of(tmp_path / "out", *command) == expected
    assert "from the beginning, changed" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "group"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_stops_all_worker_processes_after_saving(
    photos: Path, tmp_path: Path, expected: dict, number: signal.Signals, group: bool
) -> None:
    """Ctrl-C goes to all processes of a terminal, and `kill` to one."""
    command = ["--images", photos, *FLAGS, "--jobs"]
    output, program = tmp_path / "out", changed_program(tmp_path, HOLD)
    with Process(*command, 2, "--output", output, cwd=tmp_path / "logs", program=program) as process:
        assert wait_until(lambda: len(list(output.rglob(".state/*.lock"))) == 2)  # each has claimed a run
        process.stop(number, group)
        check_stopped(process, number)
    assert len(list(output.rglob(".state/*.pt"))) == 2
    assert not list(output.rglob("epoch_*.pt"))
    assert result_of(output, *command, 1) == expected


def while_importing(process: Process) -> None:
    assert wait_until(lambda: process.has_open("libtorch"))


def while_decoding(process: Process) -> None:
    assert wait_until(lambda: "decoding" in process.logs[1].read_text())
    time.sleep(0.3)


def while_workers_start(process: Process) -> None:
    assert wait_until(lambda: "at once" in process.stdout)
    time.sleep(0.03)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (while_importing, signal.SIGINT),
        (while_decoding, signal.SIGTERM),
        pytest.param(while_workers_start, signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_signal_before_training_stops_at_once(
    photos: Path, tmp_path: Path, moment: Callable[[Process], None], number: signal.Signals
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_DECODER)
    program = tmp_path / "slow.py" if moment is while_decoding else MAIN
    command = ["--images", photos, *FLAGS, "--jobs", 2, "--output", tmp_path / "out"]
    with Process(*command, cwd=tmp_path, program=program) as process:
        moment(process)
        process.stop(number, group=True)
        check_stopped(process, number)


def test_a_second_ctrl_c_does_not_wait(photos: Path, tmp_path: Path) -> None:
    program = changed_program(tmp_path, SLOW_SAVE)
    with Process("--images", photos, *SHORT, "--output", tmp_path / "out", cwd=tmp_path, program=program) as process:
        assert wait_until(lambda: "saving" in process.stdout)
        process.send(signal.SIGINT)
        time.sleep(0.5)
        assert not process.ended()
        process.stop(signal.SIGINT)
        check_stopped(process, signal.SIGINT)


# --- Slurm -----------------------------------------------------------------------------------------

SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/calls
printf 'Requested operation is presently disabled\nfor job 77' >&2
exit {code}
"""
JOB = {"SLURM_JOB_ID": "77"}
ARRAY = {"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "5"}


@pytest.mark.parametrize(
    ("number", "environment", "scontrol", "expected"),
    [
        (signal.SIGUSR1, JOB, 0, (138, "requeued job 77", "requeue 77\n")),
        # The last task of an array has the array's id, and must not requeue the whole array.
        (signal.SIGUSR1, ARRAY, 0, (138, "requeued job 70_5", "requeue 70_5\n")),
        (signal.SIGUSR1, JOB, 1, (1, "saved, but Slurm does not requeue job 77", "requeue 77\n")),
        (signal.SIGUSR1, JOB, 1, (1, "presently disabled for job 77", "requeue 77\n")),
        (signal.SIGUSR1, JOB, None, (1, "scontrol", "")),
        # Slurm itself requeues what it preempts, and a job that was canceled must not come back.
        (signal.SIGTERM, ARRAY, 0, (143, STOPPED, "")),
        (signal.SIGINT, JOB, 0, (130, STOPPED, "")),
        (signal.SIGUSR1, {}, 0, (138, STOPPED, "")),
    ],
)
def test_near_its_time_limit_a_job_requeues_itself(
    number: int,
    environment: dict[str, str],
    scontrol: int | None,
    expected: tuple[int, str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """`expected`: the exit code, words on stderr, and the calls of scontrol."""
    code, words, calls = expected
    handlers = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    if scontrol is not None:
        (tmp_path / "scontrol").write_text(SCONTROL.format(folder=tmp_path, code=scontrol))
        (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "calls").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        assert slurm.report_stop(number) == code
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert words in only_line(capsys.readouterr().err)
    assert (tmp_path / "calls").read_text() == calls


def test_restart_ignores_what_is_older_than_the_job(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def trained(restart: bool, **environment: str) -> int:
        """Runs the command as a job would, and returns how many models it trained."""
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            flags = [*SHORT, "--images", str(photos), "--output", str(tmp_path)] + ["--restart"] * restart
            assert main.main(flags) == 0
        return capsys.readouterr().out.count(": val mse")

    assert trained(False) == 1
    assert trained(True) == 1
    assert trained(True, SLURM_JOB_ID="77") == 1
    assert trained(True, SLURM_JOB_ID="77") == 0  # requeued
    assert trained(True, SLURM_JOB_ID="81", SLURM_ARRAY_JOB_ID="80") == 1
    assert trained(True, SLURM_JOB_ID="82", SLURM_ARRAY_JOB_ID="80") == 0  # another task of the same array
    assert trained(False) == 0
