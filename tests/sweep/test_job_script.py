"""`run_regressor.sh` without Slurm: what it passes on, and where it finds the project."""

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
# Instead of main.py: prints how it was called, and waits if it is told to.
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
    """Runs the script to its end, outside Slurm."""

    def call(*arguments: str, script: Path = project / SCRIPT.name, cwd: Path = project):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    return call


def test_arguments_and_exit_code_are_passed_on(run: Run, project: Path, tmp_path: Path) -> None:
    given = ["--output", "my results", "$HOME", "*", "", "--lr", "0.1"]
    done = run(*given, cwd=tmp_path)
    assert done.returncode == 3
    call = json.loads(done.stdout)
    assert (call["arguments"], call["cwd"]) == (given, str(project))


def test_a_copy_elsewhere_runs_the_project_in_which_it_is_called(run: Run, project: Path, tmp_path: Path) -> None:
    """Slurm copies the script."""
    copy = shutil.copy(SCRIPT, tmp_path / "slurm_script")
    assert json.loads(run(script=copy).stdout)["cwd"] == str(project)
    done = run(script=copy, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"run_regressor.sh: no main.py in .*: call sbatch from the project's folder\n", done.stderr)


def test_the_environment_of_the_project_is_used(run: Run, project: Path) -> None:
    python = project / ".venv/bin/python3"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho mine\nexit 3\n")
    python.chmod(0o755)
    (project / ".venv/bin/activate").write_text(f'PATH="{python.parent}:$PATH"\n')
    assert run().stdout == "mine\n"


def test_a_signal_reaches_the_program(project: Path) -> None:
    """The script becomes the program, so that nothing stands between it and the sender."""
    command = ["bash", str(project / SCRIPT.name), "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert json.loads(process.stdout.readline())["pid"] == process.pid
            process.send_signal(signal.SIGUSR1)
            assert wait_until(lambda: process.poll() is not None, 10)
            assert process.returncode == -signal.SIGUSR1
        finally:
            process.kill()


def test_it_asks_for_what_a_sweep_needs_and_names_no_account() -> None:
    directives = re.findall(r"^#SBATCH +--([a-z-]+)", SCRIPT.read_text(), re.MULTILINE)
    assert {"gpus", "signal", "requeue", "open-mode", "output", "time"} <= set(directives)
    assert not {"account", "partition", "qos", "mail-user", "mail-type", "reservation", "nodelist"} & set(directives)


SRUN = """#!/bin/sh
echo "srun $@"
"""


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SLURM_GPUS_ON_NODE": "4"}, "srun python3 main.py --lr 0.1"),
        ({"SLURM_GPUS_ON_NODE": "4", "TOGETHER": "1"}, "torchrun --nnodes=1"),
        ({"SLURM_GPUS_ON_NODE": "1", "TOGETHER": "1"}, "srun python3 main.py --lr 0.1"),
        ({"SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_NUM_NODES": "2"}, "torchrun --nnodes=2"),
    ],
)
def test_gpus_train_one_run_together_only_if_asked(
    project: Path, tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(SRUN)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n",
        **variables,
    }
    command = ["bash", str(project / SCRIPT.name), "--lr", "0.1"]
    done = subprocess.run(command, cwd=project, env=environment | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
