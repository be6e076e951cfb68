"""Sweeps by `run_regressor.sh` through the `sbatch` of a real Slurm: whole, in parts, stopped, requeued, failing."""

import re
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, copy_program
from slurm import Slurm
from survival import kept, losses, wait_until

pytest_plugins = ["slurm", "survival"]

SCRIPT = "run_regressor.sh"
# Two networks, two learning rates: four training runs, long enough to be stopped within.
FLAGS = "--device cpu --activation sigmoid --lr 0.003 0.001 --weight-decay 0 --epoch 2 60 --batch-size 4".split()
TASKS = [f"{network}/epoch_2_lr_{lr}_" for network in ("regressor", "colorizer_sigmoid") for lr in ("0.003", "0.001")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, where sbatch is called and logs are written."""
    folder = tmp_path_factory.mktemp("project")
    copy_program(folder)
    shutil.copy(ROOT / SCRIPT, folder)
    return folder


def logs(slurm: Slurm, folder: Path, array: int, tasks: list[int]) -> dict[int, str]:
    """What each task of an array has said."""
    return {task: slurm.log(folder, f"{array}_{task}") for task in tasks}


@pytest.fixture(scope="module")
def single(slurm: Slurm, project: Path, photos: Path) -> dict[str, object]:
    """What one job comes to that nobody disturbs. Its output folder has a name with a blank."""
    job = slurm.submit(SCRIPT, "--images", photos, "--output", "a single run", *FLAGS, cwd=project)
    slurm.wait(job)
    said = slurm.log(project, job)
    assert slurm.ended(job) == ("COMPLETED", "0:0"), said
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
    assert {task: slurm.ended(f"{job}_{task}") for task in tasks} == dict.fromkeys(tasks, ("COMPLETED", "0:0")), said
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
        assert slurm.ended(f"{job}_{task}") == ("COMPLETED", "0:0"), lines
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
    said = slurm.log(project, job)
    assert slurm.ended(job) == ("COMPLETED", "0:0"), said
    assert slurm.show(job)["Restarts"] == "1"
    assert said.count("8 combinations in 4 training runs") == 2
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
    assert slurm.ended(job) == ("FAILED", "1:0")
    (line,) = (line for line in slurm.log(project, job).splitlines() if line.startswith("main.py: "))
    assert f"saved, but Slurm does not requeue job {job}: Requested operation is presently disabled" in line


def test_a_task_that_fails_harms_no_other(slurm: Slurm, project: Path, photos: Path, single: dict[str, object]) -> None:
    """A folder stands where task 1 wants to write a model. Once it is gone, that task alone is submitted again."""
    (obstacle,) = (name for name in single if "regressor/epoch_60_lr_0.001" in name and name.endswith(".pt"))
    (project / "failing" / obstacle).mkdir(parents=True)
    command = [SCRIPT, "--images", photos, "--output", "failing", *FLAGS]
    job = slurm.submit("--array=0-1", *command, cwd=project)
    slurm.wait(job)
    said = logs(slurm, project, job, [0, 1])
    assert slurm.ended(f"{job}_0") == ("COMPLETED", "0:0"), said[0]
    assert slurm.ended(f"{job}_1") == ("FAILED", "1:0"), said[1]
    assert "main.py: failed: regressor lr_0.001_weight_decay_0: " in said[1]
    assert "colorizer_sigmoid epoch_60_lr_0.001_weight_decay_0: val mse" in said[1]
    assert re.search(r"^not finished yet: [1-7] of 8 combinations", said[1], re.M)
    assert not (project / "failing/Plots/results.csv").exists()
    (project / "failing" / obstacle).rmdir()
    again = slurm.submit("--array=1", *command, cwd=project)
    slurm.wait(again)
    assert slurm.ended(f"{again}_1") == ("COMPLETED", "0:0")
    done = re.findall(r"^(\w+ epoch_\S+): val mse", slurm.log(project, again), re.M)
    assert done == ["regressor epoch_60_lr_0.001_weight_decay_0"]
    assert losses(project / "failing", single) == []


def test_ranks_that_train_together_save_and_go_on_in_the_queue(
    slurm: Slurm, project: Path, photos: Path, tmp_path: Path
) -> None:
    """Two pretended GPUs are two ranks, which train on the CPU. One of them requeues the job."""
    command = [SCRIPT, "--images", photos, *FLAGS, "--network", "colorizer", "--lr", "0.003", "--output"]
    left_alone, stopped = (slurm.submit("--gpus=2", *command, name, cwd=project) for name in ("pair", "stopped pair"))
    stop_in_the_middle(slurm, project / "stopped pair", stopped, "scancel", "--signal=USR1")
    slurm.wait(left_alone, stopped)
    said = slurm.log(project, stopped)
    for job in (left_alone, stopped):
        assert slurm.ended(job) == ("COMPLETED", "0:0"), said
    assert slurm.show(stopped)["Restarts"] == "1"
    assert said.count("2 ranks") == 2
    assert said.count(f"job {stopped} is in the queue again") == 1
    assert losses(project / "stopped pair", kept(project / "pair")) == []
