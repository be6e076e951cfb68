"""A sweep in parts, each a process of its own: together they are the sweep, and none disturbs another."""

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import only_line
from survival import Process, kept, losses, wait_until

import main
from deepcolor.sweep import slurm

pytest_plugins = ["survival"]

FLAGS = (
    "--device cpu --activation sigmoid --lr 0.003 0.001 --weight-decay 0 --epoch 2 3 --seed 5".split()
)  # 4 training runs
LONG = "--device cpu --activation sigmoid --lr 0.003 --weight-decay 0 --epoch 2 40 --batch-size 4 --seed 5".split()
PLANNED = re.compile(r"^ *(\d+)  (\w+ \S+): \d+ epochs$", re.M)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the sweep comes to in one run."""
    output = tmp_path_factory.mktemp("whole")
    assert main.main(["--images", str(photos), "--output", str(output), *FLAGS]) == 0
    return kept(output)


@pytest.fixture(scope="module")
def long(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What two longer training runs come to if nobody disturbs them."""
    output = tmp_path_factory.mktemp("long")
    assert main.main(["--images", str(photos), "--output", str(output), *LONG]) == 0
    return kept(output)


@pytest.mark.parametrize("text", ["", "1", "3/3", "0/0", "-1/3", "1/-3", "a/b", "1/3/5", "1.0/3", " 0/1"])
def test_what_is_no_part_is_refused(fails: Callable[..., str], text: str) -> None:
    line = fails("--plan", f"--part={text}")
    assert "--part" in line
    assert "0 <= I < N" in line


@pytest.mark.parametrize("count", [1, 2, 4, 5, 7, 27, 40])
def test_every_trajectory_is_in_exactly_one_part(count: int, capsys: pytest.CaptureFixture) -> None:
    assert main.main(["--plan"]) == 0
    everything = PLANNED.findall(capsys.readouterr().out)
    parts = []
    for number in range(count):
        assert main.main(["--plan", "--part", f"{number}/{count}"]) == 0
        mine = PLANNED.findall(capsys.readouterr().out)
        assert [int(each) % count for each, _ in mine] == [number] * len(mine)
        parts += mine
    assert sorted(parts) == sorted(everything)
    assert len(everything) == 27


def test_a_part_without_trajectories_says_so_and_writes_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main.main(["--images", str(photos), "--output", str(tmp_path), *FLAGS, "--part", "6/7"]) == 0
    said = capsys.readouterr()
    assert "6/7" in said.out
    assert "none of the 4 training runs" in said.out
    assert not said.err
    assert list(tmp_path.iterdir()) == []


def test_parts_one_after_the_other_are_the_whole(
    photos: Path, whole: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Each part writes what belongs to its own training runs; the last to finish gathers."""
    before: set[str] = set()
    for number, missing in ((2, 6), (0, 2), (1, 0)):
        arguments = ["--images", str(photos), "--output", str(tmp_path / "my run"), *FLAGS, "--part", f"{number}/3"]
        assert main.main(arguments) == 0
        said = capsys.readouterr().out
        names = {str(path) for path in (tmp_path / "my run").rglob("epoch_*.pt")}
        assert len(names - before) == (4 if number == 0 else 2)
        before = names
        if missing:
            assert f"not finished yet: {missing} of 8 combinations" in said
            assert f"--report --output '{tmp_path / 'my run'}'" in said
            assert not (tmp_path / "my run/Plots/results.csv").exists()
    assert "Best colorizer sigmoid" in said
    assert losses(tmp_path / "my run", whole) == []


def test_a_part_of_wide_networks_trains_as_in_the_whole(photos: Path, tmp_path: Path) -> None:
    """With as many threads, on which the last bit depends, though it has fewer training runs to share the cores."""
    flags = "--device cpu --network regressor --lr 0.003 0.001 --weight-decay 0 --epoch 1 --feature-maps 48".split()
    for name, parts in (("whole", [[]]), ("parts", [["--part", "0/2"], ["--part", "1/2"]])):
        for part in parts:
            assert main.main(["--images", str(photos), "--output", str(tmp_path / name), *flags, *part]) == 0
    torch.set_num_threads(1)
    assert losses(tmp_path / "parts", kept(tmp_path / "whole")) == []


def test_a_part_counts_only_what_is_of_the_same_training(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--images", str(photos), "--output", str(tmp_path), *FLAGS]
    assert main.main([*arguments, "--seed", "6"]) == 0
    assert main.main([*arguments, "--part", "0/2"]) == 0
    assert "not finished yet: 4 of 8 combinations" in capsys.readouterr().out


def finished(processes: Iterable[Process]) -> list[str]:
    """Waits for them all; returns what they said."""
    processes = list(processes)
    for process in processes:
        assert process.finish() == 0, process.stdout + process.stderr
    return [process.stdout for process in processes]


def test_parts_that_start_at_the_same_moment_in_an_empty_project(tmp_path: Path) -> None:
    """Nobody has put photographs into data/ or read them, no folder is there: one does it, the others wait."""
    flags = "--device cpu --network regressor --lr 0.003 0.001 0.0003 --weight-decay 0 --epoch 1".split()
    (tmp_path / "one").mkdir()
    for name, parts in (("parts", 3), ("one", 1)):
        commands = [[*flags, "--part", f"{number}/{parts}"] for number in range(parts)]
        said = finished([Process(*command, cwd=tmp_path / name) for command in commands])
        assert sum("scikit-image" in each for each in said) == 1
        assert sum("Best regressor" in each for each in said) >= 1
    logs = re.compile(r"std(out|err)-\d+\.log")
    files = [
        {name: content for name, content in kept(tmp_path / name).items() if not logs.fullmatch(name)}
        for name in ("parts", "one")
    ]
    assert files[0] == files[1]
    assert sum(name.endswith(".pt") for name in files[0]) == 3


def test_while_a_run_is_under_way_no_part_is(
    fails: Callable[..., str], photos: Path, tmp_path: Path, long: dict[str, object]
) -> None:
    command = ["--images", photos, "--output", tmp_path / "out", *LONG]
    with Process(*command, cwd=tmp_path / "logs") as process:
        process.wait_until_working()
        assert "another run is writing below" in fails(*command, "--part", "1/2")
        assert not process.ended()
        assert process.finish() == 0, process.stderr
    assert losses(tmp_path / "out", long) == []


def test_while_a_part_is_under_way_another_is_but_nothing_that_trains_the_same(
    fails: Callable[..., str], photos: Path, tmp_path: Path, long: dict[str, object]
) -> None:
    command = ["--images", str(photos), "--output", str(tmp_path / "out"), *LONG]
    with Process(*command, "--part", "1/2", cwd=tmp_path / "logs") as process:
        process.wait_until_working()
        assert "another run is writing below" in fails(*command)
        for part in ("1/2", "0/1"):
            line = fails(*command, "--part", part)
            assert "another run is training colorizer_sigmoid lr_0.003_weight_decay_0" in line
            assert "--output" in line
        assert not process.ended()
        assert main.main([*command, "--part", "0/2"]) == 0
        assert process.finish() == 0, process.stderr
    assert losses(tmp_path / "out", long) == []


def test_a_folder_without_locks_is_refused(
    fails: Callable[..., str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems of clusters are mounted without."""

    def refuse(*arguments: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr("fcntl.flock", refuse)
    line = fails("--images", photos, "--output", tmp_path, *FLAGS)
    assert os.strerror(38) in line
    assert "--output" in line


# --- Signals and the queue -------------------------------------------------------------------------

SCONTROL = """#!/bin/sh
echo "$@" >> {told}
echo "{answer}" >&2
exit {code}
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_sigusr1_to_all_processes_saves_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, long: dict[str, object], jobs: int
) -> None:
    """As a cluster sends it. Outside of one nothing is requeued."""
    command = ["--images", str(photos), "--output", str(tmp_path / "out"), *LONG, "--jobs", str(jobs)]
    with Process(*command, cwd=tmp_path / "logs") as process:
        assert wait_until(lambda: list((tmp_path / "out").rglob("epoch_2_*.pt")) or process.ended())
        process.stop(signal.SIGUSR1, group=True)
    assert process.code == 128 + signal.SIGUSR1
    assert "the same command goes on" in only_line(process.stderr)
    assert losses(tmp_path / "out", long) != []
    assert main.main([*command[:-1], "1"]) == 0
    assert losses(tmp_path / "out", long) == []


@pytest.fixture
def end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """How a run of a job ends after a signal: its exit code, what it says, and what a scontrol was told."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    told = tmp_path / "told"
    told.touch()

    def call(number: int, answer: str = "", code: int = 0, **environment: str) -> tuple[int, str, str]:
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(SCONTROL.format(told=told, answer=answer, code=code))
        scontrol.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = slurm.end_stopped(number)
        return code, only_line(capsys.readouterr().err), told.read_text()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_shortly_before_its_time_is_over_a_job_goes_back_into_the_queue(end: Callable) -> None:
    code, line, told = end(signal.SIGUSR1, SLURM_JOB_ID="77")
    assert (code, told) == (138, "requeue 77\n")
    assert "job 77 is in the queue again" in line


def test_of_an_array_only_the_task_goes_back(end: Callable) -> None:
    """The last task of an array has the number of the whole array for its job's."""
    code, line, told = end(signal.SIGUSR1, SLURM_JOB_ID="70", SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="5")
    assert (code, told) == (138, "requeue 70_5\n")
    assert "job 70_5 is in the queue again" in line


def test_a_requeue_that_fails_is_told(end: Callable) -> None:
    refusal = "Requested operation is presently disabled\nfor job 77"
    code, line, _ = end(signal.SIGUSR1, answer=refusal, code=1, SLURM_JOB_ID="77")
    assert code == 1
    assert "saved, but" in line
    assert "presently disabled for job 77" in line


def test_without_scontrol_too(end: Callable, tmp_path: Path) -> None:
    code, line, _ = end(signal.SIGUSR1, SLURM_JOB_ID="77", PATH=str(tmp_path / "nowhere"))
    assert code == 1
    assert "scontrol" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_other_signals_requeue_nothing(end: Callable, number: signal.Signals) -> None:
    """Slurm itself requeues what it preempts, and nobody wants back what he has canceled."""
    code, line, told = end(number, SLURM_JOB_ID="77")
    assert (code, told) == (128 + number, "")
    assert "the same command goes on" in line


def test_a_requeued_job_does_not_restart_anew(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--images", str(photos), "--output", str(tmp_path / "out"), *FLAGS, "--network", "regressor"]
    assert main.main(arguments) == 0
    capsys.readouterr()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main.main([*arguments, "--restart"]) == 0
    assert ": val mse" not in capsys.readouterr().out  # nothing was trained
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert main.main([*arguments, "--restart"]) == 0
    assert capsys.readouterr().out.count(": val mse") == 4
