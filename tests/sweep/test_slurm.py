"""`sbatch run_regressor.sh` on a real Slurm: arguments and GPUs, arrays, time limits, preemption, failures, ranks."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT, copy_program
from slurm import Slurm, install
from survival import contents, differences, result_of, wait_until

pytestmark = pytest.mark.slow

SCRIPT = "run_regressor.sh"
# Two networks, two learning rates: four training runs.
FLAGS = (
    "--device cpu --activation sigmoid --lr 0.003 0.001 --weight-decay 0 --epoch 2 6 --batch-size 4 --jobs 1".split()
)
FINISHED = re.compile(r"(\w+ epoch_\S+): val mse")  # in a log, it can follow a progress bar
DONE = ("COMPLETED", "0:0")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """A running Slurm. Skips the test if there can be none, unless REQUIRE_SLURM is set."""
    required = os.environ.get("REQUIRE_SLURM", "")
    if reason := "REQUIRE_SLURM=0" if required == "0" else install():
        (pytest.fail if required == "1" else pytest.skip)(reason)
    with Slurm() as running:
        yield running


# --- With a stand-in for main.py ---------------------------------------------------------------------

# Writes down how it was called, and ends as it is told to.
STAND_IN = """
import json, os, sys
from pathlib import Path
names = ("SLURM_", "SRUN_", "CUDA_", "VIRTUAL_ENV")
call = {"arguments": sys.argv[1:], "cwd": os.getcwd(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(names)}}
Path(f"call-{os.environ['SLURM_JOB_ID']}.json").write_text(json.dumps(call))
sys.exit(int(os.environ.get("END_WITH", 0)))
"""
# Under torchrun: every process adds its rank to those of all others, and waits for the signal.
DISTRIBUTED = """
import json, os, signal, sys, time
from pathlib import Path
received = []
signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(dist.get_rank())
dist.all_reduce(total)
call = {"arguments": sys.argv[1:], "ranks": dist.get_world_size(), "sum": total.item(),
        "node": os.environ["SLURMD_NODENAME"], "local": os.environ["LOCAL_RANK"]}
part = Path(f"part-{dist.get_rank()}.json")
part.write_text(json.dumps(call))
part.rename(f"call-{dist.get_rank()}.json")  # the test may read it at any moment
dist.destroy_process_group()
deadline = time.monotonic() + 300
while not received and time.monotonic() < deadline:
    time.sleep(0.1)
sys.exit(not received)
"""
Calls = Callable[[], list[dict]]


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    """Creates a project whose main.py writes down how it is called; returns what it wrote."""
    shutil.copy(ROOT / SCRIPT, tmp_path)
    (tmp_path / "main.py").write_text(STAND_IN)
    return lambda: [json.loads(path.read_text()) for path in sorted(tmp_path.glob("call-*.json"))]


def test_arguments_gpu_and_processors_reach_the_program(slurm: Slurm, tmp_path: Path, calls: Calls) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("export VIRTUAL_ENV=mine\n")
    given = ["--output", "my results", "--lr", "0.1", "$HOME *", "", 'a "quoted" word', "--plan"]
    job = slurm.submit(SCRIPT, *given, cwd=tmp_path)
    slurm.wait(job)
    assert slurm.ended(job) == DONE, slurm.log(tmp_path, job)
    (call,) = calls()
    environment = call["environment"]
    assert (call["arguments"], call["cwd"]) == (given, str(tmp_path))
    assert environment["CUDA_VISIBLE_DEVICES"] in ("0", "1")
    assert environment["SLURM_CPUS_PER_TASK"] == environment["SRUN_CPUS_PER_TASK"] == "4"
    assert environment["VIRTUAL_ENV"] == "mine"


def test_a_user_s_own_flags_of_sbatch_and_the_exit_code(slurm: Slurm, tmp_path: Path, calls: Calls) -> None:
    own = ("--gpus=0", "--account=somebody", "--mail-user=nobody@localhost", "--time=5", "--cpus-per-task=2")
    job = slurm.submit(*own, "--partition=test", "--export=ALL,END_WITH=2", SCRIPT, cwd=tmp_path)
    slurm.wait(job)
    assert slurm.ended(job) == ("FAILED", "2:0"), slurm.log(tmp_path, job)
    (call,) = calls()
    assert "CUDA_VISIBLE_DEVICES" not in call["environment"]
    assert call["environment"]["SLURM_CPUS_PER_TASK"] == "2"


def test_the_gpus_of_two_nodes_train_together(slurm: Slurm, tmp_path: Path, calls: Calls) -> None:
    """A torchrun on each node, a process for each GPU: all of them meet, and the signal reaches them."""
    if len(slurm.nodes) < 2:
        pytest.skip("this machine cannot act as a second host")
    (tmp_path / "main.py").write_text(DISTRIBUTED)
    ranks = 4
    job = slurm.submit("--nodes=2", f"--gpus={ranks}", SCRIPT, "--output", "my results", cwd=tmp_path)
    assert wait_until(lambda: len(calls()) == ranks), slurm.log(tmp_path, job)
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    slurm.wait(job)
    assert slurm.ended(job) == DONE, slurm.log(tmp_path, job)
    seen = calls()
    assert [(call["ranks"], call["sum"]) for call in seen] == [(ranks, sum(range(ranks)))] * ranks
    assert sorted((call["node"], call["local"]) for call in seen) == [(n, i) for n in slurm.nodes for i in "01"]
    assert {tuple(call["arguments"]) for call in seen} == {("--output", "my results")}


# --- Sweeps ----------------------------------------------------------------------------------------

# Jobs that were submitted with HOLD=1 wait in the third epoch for a signal, so that it finds them there however fast
# the machine is. A requeued job does not wait again.
HOLD_STEPS = """
import os, time
from deepcolor.training.trainer import Trainer
step = Trainer.step
def hold(trainer, *batch):
    if trainer.epoch == 2 and "HOLD" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
        name = os.environ.get("SLURM_ARRAY_TASK_ID", "0") + "-" + os.environ.get("RANK", "0")
        (trainer.paths.root / f".holding-{name}").touch()
        deadline = time.monotonic() + 300  # if the test was killed
        while not trainer.callbacks.stop_signal() and time.monotonic() < deadline:
            time.sleep(0.02)
    step(trainer, *batch)
Trainer.step = hold
"""
HOLD = "--export=ALL,HOLD=1"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with steps that can be held, in the folder from which sbatch is called."""
    folder = tmp_path_factory.mktemp("project")
    copy_program(folder)
    shutil.copy(ROOT / SCRIPT, folder)
    head, _, tail = (folder / "main.py").read_text().partition("\ndef ")
    (folder / "main.py").write_text(f"{head}{HOLD_STEPS}\ndef {tail}")
    return folder


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The result of an undisturbed run."""
    return result_of(tmp_path_factory.mktemp("expected"), "--images", photos, *FLAGS)


def logs(slurm: Slurm, folder: Path, array: int, tasks: list[int]) -> dict[int, str]:
    return {task: slurm.log(folder, f"{array}_{task}") for task in tasks}


def wait_until_held(slurm: Slurm, folder: Path, job: int, *names: str) -> None:
    """Waits until processes hold a training run that has the first of its two snapshots. `names`: "<task>-<rank>"."""
    paths = [folder / f".holding-{name}" for name in names]
    assert wait_until(lambda: all(path.exists() for path in paths) or not slurm.running(job), pause=0.2)
    assert all(path.exists() for path in paths), slurm.call("scontrol", "show", "job", job)


def test_near_its_time_limit_a_task_saves_and_continues_after_requeueing_itself(
    slurm: Slurm, project: Path, photos: Path, expected: dict[str, object]
) -> None:
    """An array of any indices shares the whole sweep, however the signal is sent."""
    ways = {0: ["--full"], 3: [], 7: ["--batch"]}
    command = [SCRIPT, "--images", photos, "--output", "signaled", *FLAGS]
    job = slurm.submit("--array=0,3,7", HOLD, *command, cwd=project)
    wait_until_held(slurm, project / "signaled", job, *(f"{task}-0" for task in ways))
    for task, way in ways.items():
        slurm.call("scancel", "--signal=USR1", *way, f"{job}_{task}")
    slurm.wait(job)
    said = logs(slurm, project, job, list(ways))
    for task, log in said.items():
        assert slurm.ended(f"{job}_{task}") == DONE, log
        assert slurm.show(f"{job}_{task}")["Restarts"] == "1"
        assert log.count("8 combinations in 4 training runs") == 2, log  # appended to the same log
        assert log.count(f"requeued job {job}_{task}") == 1
        assert "Traceback" not in log
        assert "from the beginning, changed" not in log
    finished = FINISHED.findall("".join(said.values()))
    assert len(finished) == len(set(finished)) == 8
    assert differences(project / "signaled", expected) == []


def test_a_preempted_job_has_the_same_result(
    slurm: Slurm, project: Path, photos: Path, expected: dict[str, object]
) -> None:
    """`scontrol requeue` does what preemption does. --restart counts once, not at each new start."""
    command = [SCRIPT, "--images", photos, "--output", "my results", *FLAGS, "--restart"]
    job = slurm.submit(HOLD, *command, cwd=project)
    wait_until_held(slurm, project / "my results", job, "0-0")
    slurm.call("scontrol", "requeue", job)
    slurm.wait(job)
    said = slurm.log(project, job)
    assert slurm.ended(job) == DONE, said
    assert slurm.show(job)["Restarts"] == "1"
    assert said.count("8 combinations in 4 training runs") == 2
    assert said.count("main.py: stopped; the same command continues") == 1
    assert "Traceback" not in said
    finished = FINISHED.findall(said)
    assert len(finished) == len(set(finished)) == 8
    assert differences(project / "my results", expected) == []


def test_a_job_that_must_not_be_requeued_says_so(slurm: Slurm, project: Path, photos: Path) -> None:
    flags = [*FLAGS, "--network", "colorizer"]
    job = slurm.submit("--no-requeue", HOLD, SCRIPT, "--images", photos, "--output", "alone", *flags, cwd=project)
    wait_until_held(slurm, project / "alone", job, "0-0")
    slurm.call("scancel", "--signal=USR1", job)
    slurm.wait(job)
    assert slurm.ended(job) == ("FAILED", "1:0")
    (line,) = (line for line in slurm.log(project, job).splitlines() if "main.py: " in line)
    assert f"saved, but Slurm does not requeue job {job}: Requested operation is presently disabled" in line


def test_a_run_that_fails_harms_no_other(
    slurm: Slurm, project: Path, photos: Path, expected: dict[str, object]
) -> None:
    """A folder is where a model should be written. Once it is gone, one task does what is missing."""
    (obstacle,) = (name for name in expected if "regressor/epoch_6_lr_0.001" in name and name.endswith(".pt"))
    (project / "failing" / obstacle).mkdir(parents=True)
    command = [SCRIPT, "--images", photos, "--output", "failing", *FLAGS]
    job = slurm.submit("--array=0-1", *command, cwd=project)
    slurm.wait(job)
    said = "".join(logs(slurm, project, job, [0, 1]).values())
    assert ("FAILED", "1:0") in [slurm.ended(f"{job}_{task}") for task in (0, 1)], said
    assert "main.py: failed: regressor lr_0.001_weight_decay_0: " in said
    assert len(set(FINISHED.findall(said))) == 7
    (project / "failing" / obstacle).rmdir()
    again = slurm.submit("--array=1", *command, cwd=project)
    slurm.wait(again)
    assert slurm.ended(f"{again}_1") == DONE
    assert FINISHED.findall(slurm.log(project, again)) == ["regressor epoch_6_lr_0.001_weight_decay_0"]
    assert differences(project / "failing", expected) == []


def test_ranks_that_train_together_save_and_continue_after_requeueing(
    slurm: Slurm, project: Path, photos: Path
) -> None:
    """Two pretended GPUs are two ranks, which train on the CPU. One of them requeues the job."""
    command = [SCRIPT, "--images", photos, *FLAGS, "--network", "colorizer", "--lr", "0.003", "--output"]
    together = "--export=ALL,TOGETHER=1"
    undisturbed = slurm.submit("--gpus=2", together, *command, "pair", cwd=project)
    stopped = slurm.submit("--gpus=2", f"{together},HOLD=1", *command, "stopped pair", cwd=project)
    wait_until_held(slurm, project / "stopped pair", stopped, "0-0", "0-1")
    slurm.call("scancel", "--signal=USR1", stopped)
    slurm.wait(undisturbed, stopped)
    said = slurm.log(project, stopped)
    for job in (undisturbed, stopped):
        assert slurm.ended(job) == DONE, said
    assert slurm.show(stopped)["Restarts"] == "1"
    assert said.count("2 ranks") == 2
    assert said.count(f"requeued job {stopped}") == 1
    assert differences(project / "stopped pair", contents(project / "pair")) == []
