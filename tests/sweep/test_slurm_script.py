"""What `run_regressor.sh` hands on to the program when a real Slurm runs it: arguments, parts, GPUs, nodes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT
from slurm import Slurm
from survival import wait_until

pytest_plugins = ["slurm", "survival"]

SCRIPT = "run_regressor.sh"
# In the place of main.py: writes down how it was called, and ends as it is told to.
STAND_IN = """
import json, os, sys
from pathlib import Path
names = ("SLURM_", "SRUN_", "CUDA_", "VIRTUAL_ENV")
call = {"arguments": sys.argv[1:], "cwd": os.getcwd(), "cpus": os.environ.get("SLURM_CPUS_PER_TASK"),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(names)}}
job, process = os.environ["SLURM_JOB_ID"], os.environ["SLURM_PROCID"]
Path(f"call-{job}-{process}.json").write_text(json.dumps(call))
sys.exit(int(os.environ.get("END_WITH", 0)))
"""
# The same under torchrun: every process adds its rank to those of all others, and waits for the signal.
DISTRIBUTED = """
import json, os, signal, sys, time
from pathlib import Path
told = []
signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(dist.get_rank())
dist.all_reduce(total)
call = {"arguments": sys.argv[1:], "ranks": dist.get_world_size(), "sum": total.item(),
        "node": os.environ["SLURMD_NODENAME"], "local": os.environ["LOCAL_RANK"]}
Path(f"call-{dist.get_rank()}.json").write_text(json.dumps(call))
dist.destroy_process_group()
deadline = time.monotonic() + 60
while not told and time.monotonic() < deadline:
    time.sleep(0.1)
sys.exit(not told)
"""


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[dict]]:
    """A project whose main.py writes down how it is called; returns what it wrote."""
    shutil.copy(ROOT / SCRIPT, tmp_path)
    (tmp_path / "main.py").write_text(STAND_IN)
    return lambda: [json.loads(path.read_text()) for path in sorted(tmp_path.glob("call-*.json"))]


def test_arguments_gpu_and_processors_reach_the_program(
    slurm: Slurm, tmp_path: Path, calls: Callable[[], list[dict]]
) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("export VIRTUAL_ENV=mine\n")
    given = ["--output", "my results", "--lr", "0.1", "$HOME *", "", 'a "quoted" word', "--plan"]
    job = slurm.submit(SCRIPT, *given, cwd=tmp_path)
    slurm.wait(job)
    assert slurm.ended(job) == ("COMPLETED", "0:0"), slurm.log(tmp_path, job)
    (call,) = calls()
    assert call["arguments"] == given
    assert call["cwd"] == str(tmp_path)
    environment = call["environment"]
    assert environment["CUDA_VISIBLE_DEVICES"] in ("0", "1")
    assert environment["SLURM_CPUS_PER_TASK"] == environment["SRUN_CPUS_PER_TASK"] == "4"
    assert environment["VIRTUAL_ENV"] == "mine"


def test_without_gpus(slurm: Slurm, tmp_path: Path, calls: Callable[[], list[dict]]) -> None:
    """And with what a cluster may want to be told: all of it is the user's to give."""
    job = slurm.submit(
        *("--gpus=0", "--account=somebody", "--mail-user=nobody@localhost", "--time=5", "--cpus-per-task=2"),
        *("--partition=test", SCRIPT),
        cwd=tmp_path,
    )
    slurm.wait(job)
    assert slurm.ended(job) == ("COMPLETED", "0:0"), slurm.log(tmp_path, job)
    (call,) = calls()
    assert "CUDA_VISIBLE_DEVICES" not in call["environment"]
    assert call["environment"]["SLURM_CPUS_PER_TASK"] == "2"


def test_the_exit_code_is_the_programs(slurm: Slurm, tmp_path: Path, calls: Callable[[], list[dict]]) -> None:
    job = slurm.submit("--export=ALL,END_WITH=2", SCRIPT, cwd=tmp_path)
    slurm.wait(job)
    assert slurm.ended(job) == ("FAILED", "2:0")
    assert len(calls()) == 1


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        ("0-3%2", ["0/4", "1/4", "2/4", "3/4"]),
        ("2-11:3", ["0/4", "1/4", "2/4", "3/4"]),
        ("1-8:3", ["0/3", "1/3", "2/3"]),
        ("7", ["0/1"]),
        ("2,7", ["0/2", "1/2"]),
        ("3,4,5", ["0/3", "1/3", "2/3"]),
        ("0,3,7", None),
        ("0-4:2,5", None),
    ],
)
def test_every_part_is_one_task_of_the_array(
    slurm: Slurm, tmp_path: Path, calls: Callable[[], list[dict]], array: str, parts: list[str] | None
) -> None:
    job = slurm.submit("--gpus=0", f"--array={array}", SCRIPT, "--plan", cwd=tmp_path)
    slurm.wait(job)
    if parts is None:
        assert calls() == []
        said = [path.read_text() for path in tmp_path.glob("*.log")]
        assert len(said) >= 3
        assert all(re.fullmatch(r"run_regressor.sh: .*irregular --array.*\n", each) for each in said), said
        assert slurm.ended(job) == ("FAILED", "2:0")
    else:
        assert sorted(call["arguments"] for call in calls()) == [["--part", part, "--plan"] for part in parts]


def test_called_from_elsewhere_it_says_where_to(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(ROOT / SCRIPT, cwd=tmp_path)
    slurm.wait(job)
    assert slurm.ended(job) == ("FAILED", "2:0")
    assert re.fullmatch(
        r"run_regressor.sh: no main.py in .*: call sbatch from the project's folder\n", slurm.log(tmp_path, job)
    )


def test_the_gpus_of_two_nodes_train_together(slurm: Slurm, tmp_path: Path, calls: Callable[[], list[dict]]) -> None:
    """A torchrun on each node, a process for each GPU: all of them meet, and the signal reaches them."""
    if len(slurm.nodes) < 2:
        pytest.skip("this machine cannot pretend to be a second host")
    (tmp_path / "main.py").write_text(DISTRIBUTED)
    ranks = 4
    job = slurm.submit("--nodes=2", f"--gpus={ranks}", SCRIPT, "--output", "my results", cwd=tmp_path)
    assert wait_until(lambda: len(calls()) == ranks), slurm.log(tmp_path, job)
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    slurm.wait(job)
    assert slurm.ended(job) == ("COMPLETED", "0:0"), slurm.log(tmp_path, job)
    seen = calls()
    assert [(call["ranks"], call["sum"]) for call in seen] == [(ranks, sum(range(ranks)))] * ranks
    assert sorted((call["node"], call["local"]) for call in seen) == [(n, i) for n in slurm.nodes for i in "01"]
    assert {tuple(call["arguments"]) for call in seen} == {("--output", "my results")}
