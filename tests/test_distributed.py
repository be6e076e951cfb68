"""Two ranks, started by the real torchrun, train what one process trains; and the end of one is the end of all."""

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import two_ranks
from helpers import ROOT, SHORT, TASKS, Silent, checkpoint, manager, only_line, plain, train, visible_files
from survival import MAIN, Process, alive, wait_until, without_bar
from torch import nn

import Sharing
from Distributed import ALONE, World
from Interrupts import STOPPED, Interrupted
from LabData import LabData, TrainingBatches
from utils import UserError

pytest_plugins = ["survival"]

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
FLAGS = "--device cpu --activation sigmoid --weight-decay 0 --epoch 2 20 --batch-size 4 --seed 5".split()
SETTINGS = {"lr": 0.01, "weight_decay": 0, "batch_size": 4}
SNAPSHOTS = (2, 20)
SEEDS = range(5)
WRITTEN = {"Plots", "checkpoints", "outputs_sigmoid"}
SECONDS_TO_NOTICE = 10  # that a rank is gone


def torchrun(*arguments: object, cwd: Path, program: Path = MAIN) -> Process:
    """`torchrun --nproc-per-node=2 main.py …`, whose ranks are sessions of their own: see `ranks`."""
    return Process(*TORCHRUN, program, *arguments, cwd=cwd, program=Path("-m"))


def ranks(process: Process) -> dict[int, int]:
    """rank -> process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            parent = int(path.with_name("stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(entry.partition("=")[::2] for entry in path.read_text().split("\0"))
        except (OSError, ValueError):  # it has just ended, or is not ours
            continue
        if parent == process.pid and "RANK" in variables:
            found[int(variables["RANK"])] = int(path.parent.name)
    return found


def own_lines(process: Process) -> list[str]:
    """What the program itself wrote to stderr: torchrun adds a report of its own, which has a traceback."""
    assert f'File "{ROOT}' not in process.stderr
    return [line for line in process.stderr.splitlines() if "main.py: " in line]


def has(folder: Path, pattern: str) -> Callable[[], list[Path]]:
    return lambda: list((folder / "checkpoints").glob(pattern))


# --- Against one process --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    """What two ranks and, last, one process alone found in `two_ranks`."""
    folder = tmp_path_factory.mktemp("looked")
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, two_ranks.__file__, photos, folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    data = LabData.load(photos, folder)
    alone = {f.__name__: f(data, folder, ALONE) for f in (two_ranks.first_steps, two_ranks.seen, two_ranks.evaluations)}
    return [*(torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)), alone]


def test_the_first_gradients_of_two_ranks_are_those_of_one(looked: list[dict]) -> None:
    first, second, alone = (found["first_steps"] for found in looked)
    assert len(alone) == len(TASKS) * (len(two_ranks.BATCHES) + 3)
    for what, gradients in alone.items():
        for name, gradient in gradients.items():
            size = gradient.abs().max()
            assert size > 0
            torch.testing.assert_close(first[what][name] / size, gradient / size, rtol=1e-4, atol=1e-5)
            assert torch.equal(first[what][name], second[what][name])


def test_every_image_is_looked_at_once_per_epoch_over_both_ranks(looked: list[dict]) -> None:
    first, second, alone = (found["seen"] for found in looked)
    for batch_size, steps in alone.items():
        assert sorted(row for step in steps for row in step) == list(range(17))
        assert len(first[batch_size]) == len(second[batch_size]) == len(steps)
        for one, other, both in zip(first[batch_size], second[batch_size], steps):
            # One image is both ranks', each of which gives it half of its weight: see the gradients.
            assert one + other == both if len(both) > 1 else one == other == both
            assert len(one) - len(other) in (0, 1)


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_the_shares_of_all_ranks_are_the_batch(size: int) -> None:
    batches = TrainingBatches(images=100, batch_size=64, copies=1, seed=3, crop_area=0.6)  # 64 and 36 images
    worlds = [World(rank, size) for rank in range(size)]
    for of_all, whole in (
        (zip(*(Sharing.training_shares(batches, world) for world in worlds)), size > 36),
        (zip(*(Sharing.evaluation_shares(batches, world) for world in worlds)), False),
    ):
        for number, (draw, shares) in enumerate(zip(batches, of_all, strict=True)):
            counts = [len(share.rows) for share in shares]
            if whole and number == 1:  # fewer images than ranks
                assert all(torch.equal(share.rows, draw.rows) for share in shares)
            else:
                assert torch.equal(torch.cat([share.rows for share in shares]), draw.rows)
                assert torch.equal(torch.cat([share.boxes for share in shares]), draw.boxes)
                assert max(counts) - min(counts) <= 1
        # The losses, weighted, are the batch's: whatever each rank's images come to.
        images, weights = zip(*(Sharing.counted(count, 36, world) for count, world in zip(counts, worlds)))
        if not whole and min(counts):
            assert sum(images) == pytest.approx(36)
            assert [weight / size for weight in weights] == pytest.approx([count / 36 for count in counts])


def test_evaluation_by_two_ranks_is_exact(looked: list[dict]) -> None:
    first, second, alone = (found["evaluations"] for found in looked)
    assert first == second
    assert len({mse for pair in alone.values() for mse in pair}) >= len(alone)
    for what, mse in alone.items():
        assert first[what] == pytest.approx(mse, rel=1e-6), what


def test_all_ranks_stop_at_the_same_step_when_one_is_told_to(looked: list[dict]) -> None:
    assert looked[0]["stop"] == looked[1]["stop"] == (signal.SIGINT, 1, 8)


# --- The real program -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Process:
    """Two ranks, from the beginning to the end; what they wrote is in `out`."""
    folder = tmp_path_factory.mktemp("ranks")
    with torchrun("--images", photos, *FLAGS, "--lr", 0.01, "--jobs", 2, "--output", "out", cwd=folder) as process:
        assert process.finish() == 0, process.stderr
        return process


def output(process: Process) -> Path:
    return process.logs[0].parent / "out"


def test_rank_0_alone_speaks_and_writes(undisturbed: Process, data: LabData, tmp_path: Path) -> None:
    lines = undisturbed.stdout.splitlines()
    assert len([line for line in lines if "one trajectory at a time" in line]) == 1
    assert len([line for line in lines if line.startswith("Best ")]) == 2
    for task in ("regressor", "colorizer_sigmoid"):
        for epoch in SNAPSHOTS:
            assert len([line for line in lines if line.startswith(f"{task} epoch_{epoch}_")]) == 1
    assert own_lines(undisturbed) == []
    assert {path.split("/")[0] for path in visible_files(output(undisturbed))} == WRITTEN
    for task in TASKS[:2]:
        names = checkpoint(output(undisturbed), task, 20)["model"].keys()
        assert names == manager(task, data, tmp_path).model.state_dict().keys()  # as colorize loads it


def test_what_two_ranks_learn_is_what_one_learns(undisturbed: Process, data: LabData, tmp_path: Path) -> None:
    """On the CPU, where each rank normalises over its half of the batch: within the spread of one process's seeds."""
    for task in TASKS[:2]:
        by_two = checkpoint(output(undisturbed), task, 20)["metrics"]["test_mse"]
        by_one = [train(task, data, tmp_path / str(s), 20, seed=s, **SETTINGS)[0]["metrics"]["test_mse"] for s in SEEDS]
        spread = statistics.stdev(by_one)
        assert spread < 0.25 * statistics.mean(by_one)  # or the comparison would say little
        assert abs(by_two - statistics.mean(by_one)) < 3 * spread, (task, by_two, by_one)


def test_an_interrupted_run_goes_on_with_as_many_ranks_as_there_are(
    undisturbed: Process, photos: Path, data: LabData, tmp_path: Path
) -> None:
    command = ["--images", photos, *FLAGS, "--network", "regressor", "--lr", 0.01, 0.02, "--output", "out"]
    with pytest.raises(Interrupted):  # the one begun by one process
        half = {**SETTINGS, "lr": 0.02, "seed": 5}
        manager(TASKS[0], data, tmp_path / "out", SNAPSHOTS, Silent(stop_after=1.5), **half).train()
    with torchrun(*command, cwd=tmp_path) as process:  # the other by two
        assert wait_until(has(tmp_path / "out", "regressor/epoch_2_lr_0.01_*.pt"))
        process.stop(signal.SIGINT)
        assert own_lines(process) == [f"main.py: {STOPPED}"]
    assert not has(tmp_path / "out", "regressor/epoch_20_lr_0.02_*.pt")()
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    with torchrun(*command, cwd=tmp_path) as process:
        assert process.finish() == 0, process.stderr
        assert "anew" not in process.stdout
        assert "not used" not in process.stdout
    name = "checkpoints/regressor/epoch_20_lr_0.01_weight_decay_0.pt"
    models = [torch.load(folder / name, weights_only=True) for folder in (tmp_path / "out", output(undisturbed))]
    assert plain(models[0]) == plain(models[1])
    progress = Silent()
    manager(TASKS[0], data, tmp_path / "copy", SNAPSHOTS, progress, **SETTINGS, seed=5).train()
    assert progress.advances[0] >= 2
    assert not any("anew" in line or "not used" in line for line in progress.said)
    assert (tmp_path / "copy" / name).exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_job_with_a_line(rank: int, photos: Path, tmp_path: Path) -> None:
    with torchrun("--images", photos, *SHORT, 100_000, "--output", "out", cwd=tmp_path) as process:
        assert wait_until(has(tmp_path / "out", "regressor/epoch_1_*.pt"))
        both = ranks(process)
        os.kill(both[rank], signal.SIGKILL)
        assert process.finish(SECONDS_TO_NOTICE) == 1
        assert not any(map(alive, both.values()))
        (line,) = own_lines(process)
        assert "another of the 2 ranks has ended" in line


def by_hand(*arguments: object, cwd: Path, program: Path = MAIN) -> list[subprocess.CompletedProcess]:
    """What two ranks come to that are started without torchrun, which hides their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, program, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in ("0", "1")
    ]
    said = [[stream.decode() for stream in process.communicate(timeout=120)] for process in started]
    return [subprocess.CompletedProcess(p.args, p.returncode, *texts) for p, texts in zip(started, said)]


def test_a_file_that_rank_0_cannot_write_ends_all_with_a_line(photos: Path, tmp_path: Path) -> None:
    obstacle = tmp_path / "out/checkpoints/regressor/.trajectories"
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()  # where rank 0 will want a folder
    first, second = by_hand("--images", photos, *SHORT, "--output", "out", cwd=tmp_path)
    assert (first.returncode, second.returncode) == (1, 1)
    line = only_line(first.stderr)
    assert line.startswith("main.py: failed: regressor lr_0.001_weight_decay_0: ")
    assert ".trajectories" in line
    assert (second.stdout, second.stderr) == ("", "")


FAILED = "main.py: failed: regressor lr_0.001_weight_decay_0: no memory left"
FAILING = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
import main
from Distributed import among_ranks
from Trainer import Trainer

def step(self, *inputs, original=Trainer.step):
    if os.environ["RANK"] == "1" and self.epoch == 1:
        raise torch.OutOfMemoryError("no memory left")
    original(self, *inputs)

Trainer.step = step
sys.exit(among_ranks(lambda world: main.main(world=world)))
"""


def test_an_error_on_one_rank_alone_ends_all_with_a_line(photos: Path, tmp_path: Path) -> None:
    program = tmp_path / "failing.py"
    program.write_text(FAILING)
    first, second = by_hand("--images", photos, *SHORT, 9, "--output", "out", cwd=tmp_path, program=program)
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


# --- Without other ranks --------------------------------------------------------------------------


def test_batchnorm_is_synchronised_on_gpus_and_named_as_ever(data: LabData, tmp_path: Path) -> None:
    """Converted only: PyTorch runs it on GPUs alone."""
    gpu, cpu, two = torch.device("cuda"), torch.device("cpu"), World(size=2)
    for task in TASKS:
        model = manager(task, data, tmp_path).model
        names = list(model.state_dict())
        assert Sharing.synchronised(model, gpu, ALONE) is model
        assert Sharing.synchronised(model, cpu, two) is model
        parameters = list(model.parameters())
        converted = Sharing.synchronised(model, gpu, two)
        assert list(converted.state_dict()) == names
        assert all(one is other for one, other in zip(converted.parameters(), parameters, strict=True))
        kinds = [type(module) for module in converted.modules()]
        assert kinds.count(nn.SyncBatchNorm) == (6 if task[0] == "regressor" else 11)
        assert nn.BatchNorm2d not in kinds


# --- The environment ------------------------------------------------------------------------------

TOLD = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}


def test_the_world_is_what_torchrun_says_and_nothing_else() -> None:
    world = World.from_environment(TOLD)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_NUM_NODES": "2"}
    for variables in ({}, slurm, {**slurm, "RANK": "3"}, {**TOLD, "WORLD_SIZE": "1", "RANK": "0"}):
        assert World.from_environment(variables).size == 1


@pytest.mark.parametrize(
    "wrong", [{"RANK": "4"}, {"RANK": "-1"}, {"RANK": ""}, {"WORLD_SIZE": "four"}, {"MASTER_PORT": ""}], ids=str
)
def test_half_a_world_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="torchrun"):
        World.from_environment({**TOLD, **wrong})


def test_a_batch_smaller_than_the_ranks_is_refused() -> None:
    Sharing.check_batch_size(4, World(size=4))
    with pytest.raises(UserError, match="--batch-size 4"):
        Sharing.check_batch_size(3, World(size=4))
