"""The real program on two ranks: what it writes, how it continues, and how it ends when a rank fails."""

import os
import shutil
import signal
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import SHORT, TASKS, SilentCallbacks, manager, plain, read_checkpoint, train, visible_files
from launch import exit_codes, own_lines, program, ranks, torchrun
from survival import MAIN, Process, alive, wait_until

from deepcolor.common.signals import STOPPED_MESSAGE, Interrupted
from deepcolor.data.dataset import LabDataModule
from deepcolor.training.trainer import Trainer

FLAGS = "--device cpu --activation sigmoid --weight-decay 0 --epoch 2 20 --batch-size 4 --seed 5".split()
CONFIG = {"lr": 0.01, "weight_decay": 0, "batch_size": 4}
SNAPSHOTS = (2, 20)
SECONDS_TO_NOTICE = 20  # that a rank is gone
STOPPED = f"main.py: {STOPPED_MESSAGE}"
LOST = "main.py: another of the 2 ranks failed or does not answer; the same command continues from the last save"


def output(process: Process) -> Path:
    return process.logs[0].parent / "out"


@pytest.fixture(scope="module")
def interrupted(data: LabDataModule, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A Colorizer that a single process trained for an epoch and a half."""
    output = tmp_path_factory.mktemp("ranks") / "out"
    trainer = manager(TASKS[1], data, output, SNAPSHOTS, SilentCallbacks(1.5), **CONFIG, seed=5)
    with pytest.raises(Interrupted):
        trainer.train()
    return trainer


@pytest.fixture(scope="module")
def finished(interrupted: Trainer, photos: Path) -> Process:
    """Two ranks that continued the Colorizer and trained the Regressor. Their output is in `out`."""
    flags = ["--images", photos, *FLAGS, "--lr", 0.01, "--jobs", 2, "--output", "out"]
    with torchrun(*flags, cwd=interrupted.paths.root.parent) as process:
        assert process.finish() == 0, process.stderr
        return process


def test_only_rank_0_prints_and_writes(finished: Process, data: LabDataModule, tmp_path: Path) -> None:
    lines = finished.stdout.splitlines()
    assert len([line for line in lines if "one training run at a time" in line]) == 1
    assert len([line for line in lines if line.startswith("Best ")]) == 2
    for task in ("regressor", "colorizer_sigmoid"):
        for epoch in SNAPSHOTS:
            assert len([line for line in lines if line.startswith(f"{task} epoch_{epoch}_")]) == 1
    assert own_lines(finished) == []
    folders = {path.split("/")[0] for path in visible_files(output(finished))}
    assert folders == {"Plots", "checkpoints", "outputs_sigmoid"}
    for task in TASKS[:2]:
        names = read_checkpoint(output(finished), task, 20)["model"].keys()
        assert names == manager(task, data, tmp_path).model.state_dict().keys()  # as colorize.py loads it


def test_ranks_continue_what_a_single_process_began(interrupted: Trainer, finished: Process) -> None:
    """On CPUs each rank normalizes over its part of a batch, so that ranks that start again have another loss."""
    losses = [read_checkpoint(output(finished), TASKS[1], epoch)["history"]["train_mse"] for epoch in SNAPSHOTS]
    assert [len(history) for history in losses] == list(SNAPSHOTS)
    assert [history[0] for history in losses] == interrupted.history["train_mse"] * 2


@pytest.mark.slow
def test_two_ranks_learn_what_a_single_process_learns(finished: Process, data: LabDataModule, tmp_path: Path) -> None:
    """Within the spread of seeds: on CPUs each rank normalizes over its half of the batch."""

    def losses(model: dict) -> tuple[float, float]:  # the late one averages epochs, because the images are few
        history = model["history"]["train_mse"]
        return history[0], statistics.mean(history[-5:])

    _, found = losses(read_checkpoint(output(finished), TASKS[1], 20))
    singles = [losses(train(TASKS[1], data, tmp_path / str(s), 20, seed=s, **CONFIG)[0]) for s in range(8)]
    early, late = (statistics.mean(values) for values in zip(*singles))
    tolerance = 3 * statistics.stdev(loss for _, loss in singles)
    assert tolerance < early - late  # or untrained networks would pass
    assert abs(found - late) < tolerance


@pytest.mark.slow
def test_ranks_end_without_the_clean_up_of_the_interpreter(photos: Path, tmp_path: Path) -> None:
    """It aborts now and then, while threads of gloo still end."""
    started = program(tmp_path, "import atexit\natexit.register(os._exit, 3)")
    command = ["--images", photos, *SHORT, "--network", "regressor", "--output", "out"]
    with torchrun(*command, cwd=tmp_path, program=started) as process:
        assert process.finish() == 0, process.stderr


# Rank 1 waits for a signal in the third epoch of a run, and the other ranks wait for it.
HOLD = """
from deepcolor.training.trainer import Trainer

def step(self, *inputs, original=Trainer.step):
    deadline = time.monotonic() + 300  # if the test was killed
    held = os.environ["RANK"] == "1" and self.epoch == 2
    while held and not self.callbacks.stop_signal() and time.monotonic() < deadline:
        time.sleep(0.02)
    original(self, *inputs)

Trainer.step = step
"""


@pytest.mark.slow
def test_any_number_of_ranks_continues_a_run(
    finished: Process, photos: Path, data: LabDataModule, tmp_path: Path
) -> None:
    command = ["--images", photos, *FLAGS, "--network", "regressor", "--lr", 0.01, 0.02, "--output", "out"]
    config = {**CONFIG, "seed": 5}
    with pytest.raises(Interrupted):  # a single process starts lr 0.02
        manager(TASKS[0], data, tmp_path / "out", SNAPSHOTS, SilentCallbacks(1.5), **{**config, "lr": 0.02}).train()
    # Two ranks start lr 0.01. Only rank 1 gets the signal.
    with torchrun(*command, cwd=tmp_path, program=program(tmp_path, HOLD)) as process:
        assert wait_until(lambda: list(output(process).glob("checkpoints/regressor/epoch_2_lr_0.01_*.pt")))
        os.kill(ranks(process)[1], signal.SIGINT)
        process.finish()
        assert own_lines(process) == [STOPPED]
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    with torchrun(*command, cwd=tmp_path) as process:  # two ranks continue both
        assert process.finish() == 0, process.stderr
    assert "not used" not in process.stdout
    model = "checkpoints/regressor/epoch_20_lr_0.01_weight_decay_0.pt"
    paths = (tmp_path / "out" / model, output(finished) / model)
    continued, uninterrupted = (torch.load(path, weights_only=True) for path in paths)
    assert plain(continued) == plain(uninterrupted)
    callbacks = SilentCallbacks()  # a single process continues lr 0.01
    manager(TASKS[0], data, tmp_path / "copy", SNAPSHOTS, callbacks, **config).train()
    assert callbacks.advances[0] >= 2
    assert callbacks.logged == []


# --- Failures and signals --------------------------------------------------------------------------

SLOW_DECODER = "from deepcolor.data import lab_cache\nlab_cache.decode_image = lambda content: time.sleep(60)"


def is_training(process: Process) -> object:
    return list(output(process).glob("checkpoints/regressor/epoch_1_*.pt"))


def rank_0_decodes(process: Process) -> object:
    return "decoding" in process.logs[1].read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "moment"), [(1, is_training), (0, rank_0_decodes)])
def test_a_killed_rank_ends_the_others_with_one_line(
    rank: int, moment: Callable[[Process], object], photos: Path, tmp_path: Path
) -> None:
    started = program(tmp_path, SLOW_DECODER) if moment is rank_0_decodes else MAIN
    with torchrun("--images", photos, *SHORT, 100_000, "--output", "out", cwd=tmp_path, program=started) as process:
        assert wait_until(lambda: moment(process))
        pids = ranks(process)
        os.kill(pids[rank], signal.SIGKILL)
        assert process.finish(SECONDS_TO_NOTICE) == 1
        assert not any(map(alive, pids))
        assert own_lines(process) == [LOST]
        killed, other = exit_codes(process)
        assert killed == -signal.SIGKILL
        # The other rank notices the lost connection itself, or torchrun's SIGTERM reaches it first.
        assert other in (1, 128 + signal.SIGTERM)


@pytest.mark.slow
def test_a_signal_while_rank_0_decodes_stops_all_with_one_line(photos: Path, tmp_path: Path) -> None:
    started = program(tmp_path, SLOW_DECODER)
    with torchrun("--images", photos, *SHORT, "--output", "out", cwd=tmp_path, program=started) as process:
        assert wait_until(lambda: rank_0_decodes(process))
        assert process.stop(signal.SIGTERM) < SECONDS_TO_NOTICE
        assert own_lines(process) == [STOPPED]


NO_MEMORY = """
import torch
from deepcolor.training.trainer import Trainer

def step(self, *inputs, original=Trainer.step):
    if os.environ["RANK"] == "1" and self.epoch == 1:
        raise torch.OutOfMemoryError("no memory left")
    original(self, *inputs)

Trainer.step = step
"""
NO_FOLDER = "open('out/checkpoints/regressor/.state', 'w')"  # a file where rank 0 needs a folder


@pytest.mark.parametrize(
    ("changes", "flags", "code", "text"),
    [
        pytest.param("", ["--batch-size", 1], 2, "main.py: --batch-size 1 is", marks=pytest.mark.slow),
        pytest.param(NO_FOLDER, [], 1, ".state", marks=pytest.mark.slow),
        (NO_MEMORY, ["--epoch", 9], 1, "main.py: failed: regressor lr_0.001_weight_decay_0: no memory left"),
    ],
    ids=["user error", "rank 0 cannot write", "rank 1 fails"],
)
def test_an_error_ends_all_ranks_with_one_line(
    changes: str, flags: list[object], code: int, text: str, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "out/checkpoints/regressor").mkdir(parents=True)
    command = ["--images", photos, *SHORT, *flags, "--output", "out"]
    with torchrun(*command, cwd=tmp_path, program=program(tmp_path, changes)) as process:
        assert process.finish() == 1
        (line,) = own_lines(process)
        assert text in line
        assert exit_codes(process) == [code, code]
