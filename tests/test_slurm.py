"""`run_regressor.sh` through the `sbatch` of a real Slurm: single, in parts, stopped, requeued, failing, on a GPU."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT
from slurm import Slurm
from survival import kept, losses, wait_until

pytest_plugins = ["slurm", "survival"]

SCRIPT = "run_regressor.sh"
# Two networks, two learning rates: four trajectories, long enough to be stopped within.
FLAGS = "--device cpu --activation sigmoid --lr 0.003 0.001 --weight-decay 0 --epoch 2 60 --batch-size 4".split()
TASKS = [f"{network}/epoch_2_lr_{lr}_" for network in ("regressor", "colorizer_sigmoid") for lr in ("0.003", "0.001")]
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


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, where sbatch is called and logs are written."""
    folder = tmp_path_factory.mktemp("project")
    for path in [*ROOT.glob("*.py"), ROOT / SCRIPT]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[dict]]:
    """A project whose main.py writes down how it is called; returns what it wrote."""
    shutil.copy(ROOT / SCRIPT, tmp_path)
    (tmp_path / "main.py").write_text(STAND_IN)
    return lambda: [json.loads(path.read_text()) for path in sorted(tmp_path.glob("call-*.json"))]


def log(folder: Path, job: object) -> str:
    return (folder / f"colorization-{job}.log").read_text()


def logs(slurm: Slurm, folder: Path, array: int, tasks: list[int]) -> dict[int, str]:
    """What each task of an array has said."""
    return {task: log(folder, slurm.show(f"{array}_{task}")["JobId"]) for task in tasks}


def ended(slurm: Slurm, job: object) -> tuple[str, str]:
    """The state and the exit code of a job or task that has ended."""
    shown = slurm.show(job)
    return shown["JobState"], shown["ExitCode"]


# --- The sweep -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single(slurm: Slurm, project: Path, photos: Path) -> dict[str, object]:
    """What one job comes to that nobody disturbs. Its output folder has a name with a blank."""
    job = slurm.submit(SCRIPT, "--images", photos, "--output", "a single run", *FLAGS, cwd=project)
    slurm.wait(job)
    said = log(project, job)
    assert ended(slurm, job) == ("COMPLETED", "0:0"), said
    assert "Best colorizer sigmoid" in said
    files = kept(project / "a single run")
    assert sum(name.endswith(".pt") for name in files) == 8
    return files


def test_an_array_is_the_whole_sweep(slurm: Slurm, project: Path, photos: Path, single: dict[str, object]) -> None:
    """Of odd size, from 1 on in steps of 2; all start at the same moment."""
    tasks = [1, 3, 5]
    job = slurm.submit("--array=1-5:2", SCRIPT, "--images", photos, "--output", "array", *FLAGS, cwd=project)
    slurm.wait(job)
    said = logs(slurm, project, job, tasks)
    assert {task: ended(slurm, f"{job}_{task}") for task in tasks} == dict.fromkeys(tasks, ("COMPLETED", "0:0")), said
    assert [re.search("^part (.*?): ", said[task], re.M)[1] for task in tasks] == ["0/3", "1/3", "2/3"]
    done = re.findall(r"^(\w+ epoch_\S+): val mse", "".join(said.values()), re.M)
    assert len(done) == len(set(done)) == 8
    assert losses(project / "array", single) == []


def test_told_that_the_time_is_nearly_over_a_task_saves_and_goes_on_in_the_queue(
    slurm: Slurm, project: Path, photos: Path, single: dict[str, object]
) -> None:
    """In whichever way the signal is sent. The last task has the array's number for its own, and is not the array."""
    job = slurm.submit("--array=0-3", SCRIPT, "--images", photos, "--output", "signalled", *FLAGS, cwd=project)
    ways = {1: ["--full"], 2: [], 3: ["--batch"]}
    waiting = set(ways)

    def signal_who_trains() -> bool:
        for task in sorted(waiting):
            if list((project / "signalled/checkpoints").glob(f"{TASKS[task]}*")):
                slurm.call("scancel", "--signal=USR1", *ways[task], f"{job}_{task}")
                waiting.remove(task)
        return not waiting

    assert wait_until(signal_who_trains)
    slurm.wait(job)
    said = logs(slurm, project, job, [0, 1, 2, 3])
    for task, lines in said.items():
        assert ended(slurm, f"{job}_{task}") == ("COMPLETED", "0:0"), lines
        times = 2 if task in ways else 1
        assert slurm.show(f"{job}_{task}")["Restarts"] == str(times - 1)
        assert lines.count(f"part {task}/4: ") == times, lines  # the second after the first: appended
        assert lines.count(f"job {job}_{task} is in the queue again") == times - 1
        assert "Traceback" not in lines
        assert "anew" not in lines
    assert losses(project / "signalled", single) == []


def stop_in_the_middle(slurm: Slurm, folder: Path, job: int, *command: str) -> None:
    """Calls the command with the job as soon as this has a result and is training on."""
    assert wait_until(lambda: list((folder / "checkpoints/colorizer_sigmoid").glob("epoch_2_*.pt")))
    slurm.call(*command, job)


def test_a_preempted_job_ends_with_the_same_weights(
    slurm: Slurm, project: Path, photos: Path, single: dict[str, object]
) -> None:
    """`scontrol requeue` does what preemption does. --restart has been asked for once, not at each new start."""
    command = [SCRIPT, "--images", photos, "--output", "preempted", *FLAGS, "--restart"]
    job = slurm.submit(*command, cwd=project)
    stop_in_the_middle(slurm, project / "preempted", job, "scontrol", "requeue")
    slurm.wait(job)
    said = log(project, job)
    assert ended(slurm, job) == ("COMPLETED", "0:0"), said
    assert slurm.show(job)["Restarts"] == "1"
    assert said.count("8 combinations on 4 trajectories") == 2
    assert said.count("main.py: stopped; the same command goes on") == 1
    assert "Traceback" not in said
    done = re.findall(r"^(\w+ epoch_\S+): val mse", said, re.M)
    assert len(done) == len(set(done)) == 8
    assert losses(project / "preempted", single) == []


def test_a_job_that_may_not_be_requeued_says_so(slurm: Slurm, project: Path, photos: Path) -> None:
    flags = [*FLAGS, "--network", "colorizer"]
    job = slurm.submit("--no-requeue", SCRIPT, "--images", photos, "--output", "alone", *flags, cwd=project)
    stop_in_the_middle(slurm, project / "alone", job, "scancel", "--signal=USR1")
    slurm.wait(job)
    assert ended(slurm, job) == ("FAILED", "1:0")
    (line,) = (line for line in log(project, job).splitlines() if line.startswith("main.py: "))
    assert f"saved, but Slurm does not requeue job {job}: Requested operation is presently disabled" in line


def test_a_task_that_fails_harms_no_other(slurm: Slurm, project: Path, photos: Path, single: dict[str, object]) -> None:
    """A folder stands where task 1 wants to write a model. Once it is gone, that task alone is submitted again."""
    (obstacle,) = (name for name in single if "regressor/epoch_60_lr_0.001" in name and name.endswith(".pt"))
    (project / "failing" / obstacle).mkdir(parents=True)
    command = [SCRIPT, "--images", photos, "--output", "failing", *FLAGS]
    job = slurm.submit("--array=0-1", *command, cwd=project)
    slurm.wait(job)
    said = logs(slurm, project, job, [0, 1])
    assert ended(slurm, f"{job}_0") == ("COMPLETED", "0:0"), said[0]
    assert ended(slurm, f"{job}_1") == ("FAILED", "1:0"), said[1]
    assert "main.py: failed: regressor lr_0.001_weight_decay_0: " in said[1]
    assert "colorizer_sigmoid epoch_60_lr_0.001_weight_decay_0: val mse" in said[1]
    assert re.search(r"^not finished yet: [1-7] of 8 combinations", said[1], re.M)
    assert not (project / "failing/Plots/results.csv").exists()
    (project / "failing" / obstacle).rmdir()
    again = slurm.submit("--array=1", *command, cwd=project)
    slurm.wait(again)
    assert ended(slurm, f"{again}_1") == ("COMPLETED", "0:0")
    done = re.findall(r"^(\w+ epoch_\S+): val mse", log(project, again), re.M)
    assert done == ["regressor epoch_60_lr_0.001_weight_decay_0"]
    assert losses(project / "failing", single) == []


# --- What the script hands on ----------------------------------------------------------------------


def test_arguments_gpu_and_processors_reach_the_program(
    slurm: Slurm, tmp_path: Path, calls: Callable[[], list[dict]]
) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("export VIRTUAL_ENV=mine\n")
    given = ["--output", "my results", "--lr", "0.1", "$HOME *", "", 'a "quoted" word', "--plan"]
    job = slurm.submit(SCRIPT, *given, cwd=tmp_path)
    slurm.wait(job)
    assert ended(slurm, job) == ("COMPLETED", "0:0"), log(tmp_path, job)
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
    assert ended(slurm, job) == ("COMPLETED", "0:0"), log(tmp_path, job)
    (call,) = calls()
    assert "CUDA_VISIBLE_DEVICES" not in call["environment"]
    assert call["environment"]["SLURM_CPUS_PER_TASK"] == "2"


def test_the_exit_code_is_the_programs(slurm: Slurm, tmp_path: Path, calls: Callable[[], list[dict]]) -> None:
    job = slurm.submit("--export=ALL,END_WITH=2", SCRIPT, cwd=tmp_path)
    slurm.wait(job)
    assert ended(slurm, job) == ("FAILED", "2:0")
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
        assert ended(slurm, job) == ("FAILED", "2:0")
    else:
        assert sorted(call["arguments"] for call in calls()) == [["--part", part, "--plan"] for part in parts]


def test_called_from_elsewhere_it_says_where_to(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(ROOT / SCRIPT, cwd=tmp_path)
    slurm.wait(job)
    assert ended(slurm, job) == ("FAILED", "2:0")
    assert re.fullmatch(
        r"run_regressor.sh: no main.py in .*: call sbatch from the project's folder\n", log(tmp_path, job)
    )


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_gpus_of_all_nodes_train_together(
    slurm: Slurm, tmp_path: Path, calls: Callable[[], list[dict]], nodes: int
) -> None:
    """A torchrun on each node, a process for each GPU: all of them meet, and the signal reaches them."""
    if nodes > len(slurm.nodes):
        pytest.skip("this machine cannot pretend to be a second host")
    (tmp_path / "main.py").write_text(DISTRIBUTED)
    ranks = 2 * nodes
    job = slurm.submit(f"--nodes={nodes}", f"--gpus={ranks}", SCRIPT, "--output", "my results", cwd=tmp_path)
    assert wait_until(lambda: len(calls()) == ranks), log(tmp_path, job)
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    slurm.wait(job)
    assert ended(slurm, job) == ("COMPLETED", "0:0"), log(tmp_path, job)
    seen = calls()
    assert [(call["ranks"], call["sum"]) for call in seen] == [(ranks, sum(range(ranks)))] * ranks
    where = sorted((call["node"], call["local"]) for call in seen)
    assert len(where) == len(set(where)) == ranks
    assert {local for _, local in where} == {"0", "1"}
    assert {tuple(call["arguments"]) for call in seen} == {("--output", "my results")}
