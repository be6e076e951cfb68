"""`run_regressor.sh` with plain bash: what it hands on, and which part of an array it takes itself for."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT
from survival import wait_until

SCRIPT = ROOT / "run_regressor.sh"
# In the place of main.py: writes down how it was called, and waits if it is told to.
STAND_IN = """
import json, os, sys, time
print(json.dumps({"arguments": sys.argv[1:], "cwd": os.getcwd(), "pid": os.getpid()}), flush=True)
time.sleep(60 * (sys.argv[1:] == ["wait"]))
sys.exit(3)
"""
Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "the project"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    (folder / "main.py").write_text(STAND_IN)
    return folder


@pytest.fixture
def run(project: Path) -> Run:
    """Runs the script to its end."""

    def call(*arguments: str, script: Path = project / SCRIPT.name, cwd: Path = project, **environment: str):
        own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, cwd=cwd, env={**own, **environment}, capture_output=True, text=True, check=False)

    return call


def arguments(done: subprocess.CompletedProcess) -> list[str]:
    """What main.py was called with; it has to be called."""
    assert done.returncode == 3, done.stderr
    return json.loads(done.stdout)["arguments"]


def test_arguments_and_exit_code_are_handed_on(run: Run) -> None:
    given = ["--output", "my results", "$HOME", "*", "", "--lr", "0.1"]
    assert arguments(run(*given)) == given


def test_from_another_folder_it_finds_the_project(run: Run, project: Path, tmp_path: Path) -> None:
    assert json.loads(run(cwd=tmp_path).stdout)["cwd"] == str(project)


def test_a_copy_elsewhere_runs_the_project_in_which_it_is_called(run: Run, project: Path, tmp_path: Path) -> None:
    """As Slurm does it."""
    copy = shutil.copy(SCRIPT, tmp_path / "slurm_script")
    assert json.loads(run(script=copy).stdout)["cwd"] == str(project)
    done = run(script=copy, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"run_regressor.sh: no main.py in .*: call sbatch from the project's folder\n", done.stderr)


def test_the_projects_environment_is_used(run: Run, project: Path) -> None:
    python = project / ".venv/bin/python3"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho mine\nexit 3\n")
    python.chmod(0o755)
    (project / ".venv/bin/activate").write_text(f'PATH="{python.parent}:$PATH"\n')
    assert run().stdout == "mine\n"


def test_signals_reach_the_program(project: Path) -> None:
    """It takes the place of the shell, which would wait for it."""
    command = ["bash", str(project / SCRIPT.name), "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert json.loads(process.stdout.readline())["pid"] == process.pid
            process.send_signal(signal.SIGUSR1)
            assert wait_until(lambda: process.poll() is not None, 10)
            assert process.returncode == -signal.SIGUSR1
        finally:
            process.kill()


def task(number: int, numbers: list[int], step: int) -> dict[str, str]:
    """What Slurm tells a task of an array."""
    least, most = min(numbers), max(numbers)
    told = {"ID": number, "MIN": least, "MAX": most, "COUNT": len(numbers), "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


@pytest.mark.parametrize(("least", "size", "step"), [(0, 1, 1), (7, 1, 2), (3, 2, 5), (0, 3, 1), (2, 4, 3), (1, 5, 2)])
def test_every_task_of_an_array_is_one_part(run: Run, least: int, size: int, step: int) -> None:
    numbers = [least + step * position for position in range(size)]
    found = [arguments(run("--lr", "0.1", **task(number, numbers, step))) for number in numbers]
    assert found == [["--part", f"{position}/{size}", "--lr", "0.1"] for position in range(size)]


@pytest.mark.parametrize("numbers", [[0, 3, 7], [0, 2, 4, 5], [1, 2, 4]], ids=str)
def test_an_array_with_gaps_is_refused_by_each_of_its_tasks(run: Run, numbers: list[int]) -> None:
    """Slurm tells how many tasks there are, and not which: a part would be trained twice or never."""
    for number in numbers:
        done = run(**task(number, numbers, 1))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert f"--array=0-{len(numbers) - 1}" in done.stderr


def test_an_array_of_steps_and_more_is_refused_where_the_task_stands_between(run: Run) -> None:
    """0-4:2,3 has as many tasks as 0-6:2, if Slurm's step is 2 and its greatest number 6."""
    done = run(**task(3, [0, 2, 3, 6], 2))
    assert (done.returncode, done.stdout) == (2, "")


def test_two_tasks_are_always_told_apart(run: Run) -> None:
    """As when two of an array are submitted again."""
    assert [arguments(run(**task(number, [4, 7], 1)))[1] for number in (4, 7)] == ["0/2", "1/2"]


def test_nobodys_account_is_in_it() -> None:
    directives = re.findall(r"^#SBATCH +--([a-z-]+)", SCRIPT.read_text(), re.M)
    assert {"gpus", "signal", "requeue", "open-mode", "output", "time"} <= set(directives)
    assert not {"account", "partition", "qos", "mail-user", "mail-type", "reservation", "nodelist"} & set(directives)
