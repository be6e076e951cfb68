"""Training: what decides the weights, and what must not."""

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import MANAGERS, TASK_NAMES, TASKS, SilentCallbacks, manager, plain, train
from survival import contents
from torch import Tensor, nn

from deepcolor.data.dataset import LabDataModule
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.optimizer import learning_rate
from deepcolor.training.paths import RunPaths
from deepcolor.training.trainer import Trainer

SCORES = ("psnr", "ssim", "delta_e", "colorfulness", "chroma_ratio", "variety_ratio")
each_task = pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)


def weights(model: dict) -> object:
    return plain(model["model"])


@each_task
def test_a_snapshot_of_a_long_run_is_the_short_run_bit_for_bit(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path
) -> None:
    early, late = train(task, data, tmp_path / "long", 1, 2, weight_decay=1e-5)
    train(task, data, tmp_path / "short", 1, weight_decay=1e-5)
    (whole,) = train(task, data, tmp_path / "whole", 2, weight_decay=1e-5)
    short, long = contents(tmp_path / "short"), contents(tmp_path / "long")
    compared = [name for name in short if "epoch_1_" in name]  # the model, and its pictures if it has any
    assert len(compared) >= (1 if task[0] == "regressor" else 1 + 2 * len(data.test))
    assert {name: long[name] for name in compared} == {name: short[name] for name in compared}
    assert plain(late) == plain(whole)
    assert weights(early) != weights(late)
    for name, history in late["history"].items():
        assert len(history) == 2
        assert history[:1] == early["history"][name]


@each_task
def test_the_seed_alone_decides_the_weights(task: tuple[str, str], data: LabDataModule, tmp_path: Path) -> None:
    torch.manual_seed(1)
    trainers = [manager(task, data, tmp_path, seed=seed) for seed in (4, 4, 5)]
    for _ in range(2):
        first, same, other = (plain(trainer.model.state_dict()) for trainer in trainers)
        assert first == same != other
        for trainer in trainers:
            torch.rand(1000)
            trainer.train_epoch()


CHANGES = dict(lr=0.01, weight_decay=0.1, feature_maps=4, batch_size=5, augment_repeats=2, seed=1, optimizer="sgd")
CHANGES |= dict(dropout=0.5, schedule="cosine", warmup_steps=3, crop_area=0.9, precision="bf16", skip=True)
IN_TEST_PRETRAINED = {"encoder", "encoder_lr", "init_from"}  # they need weights


def test_every_hyperparameter_has_an_effect(data: LabDataModule, tmp_path: Path) -> None:
    assert CHANGES.keys() | IN_TEST_PRETRAINED == {field.name for field in fields(TrainConfig)}
    found = []
    for change in ({}, *({name: value} for name, value in CHANGES.items())):
        trainer = manager(TASKS[1], data, tmp_path, **{"batch_size": 8, **change})
        trainer.train_epoch()
        found.append(plain(trainer.model.state_dict()))
    same = [name for name, changed in zip(CHANGES, found[1:]) if changed == found[0]]
    assert same == []


@each_task
def test_evaluation_depends_on_no_batch_size_and_changes_no_weights(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, other = (manager(task, data, tmp_path / str(size), batch_size=size) for size in (4, 1))
    trainer.train()
    before = plain(trainer.model.state_dict())
    other.model.load_state_dict(trainer.model.state_dict())
    images = trainer.data.test
    assert other.evaluate(images) == trainer.evaluate(images)
    found = []
    for size in (1, 3, 64):
        monkeypatch.setattr("Constants.EVALUATION_BATCH", size)
        scores = trainer.test("run", 0.1)
        found.append([*trainer.evaluate(images), *(scores[name] for name in SCORES if name in scores)])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)
    assert plain(trainer.model.state_dict()) == before


@pytest.mark.parametrize(
    ("task", "optimizer"),
    [(TASKS[0], torch.optim.AdamW), (TASKS[1], torch.optim.Adam), (TASKS[2], partial(torch.optim.SGD, momentum=0.9))],
    ids=("adamw", "adam", "sgd"),
)
def test_a_step_is_that_of_pytorch_s_optimizer_on_the_mean_squared_error(
    task: tuple[str, str], optimizer: Callable, request: pytest.FixtureRequest, data: LabDataModule, tmp_path: Path
) -> None:
    config = {"lr": 0.01, "weight_decay": 0.1}
    trainer = manager(task, data, tmp_path, optimizer=request.node.callspec.id, batch_size=8, **config)
    model = trainer.build().train()
    model.load_state_dict(trainer.model.state_dict())
    trainer.batches.set_epoch(1, 0)
    lightness, ab = next(iter(trainer.training_batches()))
    trainer.model.train()
    trainer.step(lightness, ab)
    target = ab / 128 if task[1] == "tanh" else (ab + 128) / 255
    expected = optimizer(model.parameters(), **config)
    nn.functional.mse_loss(model(lightness), target.mean(dim=(2, 3)) if task[0] == "regressor" else target).backward()
    expected.step()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_the_cosine_schedule_ends_at_zero_after_a_linear_warm_up() -> None:
    config = TrainConfig(lr=0.4, schedule="cosine", warmup_steps=3)
    rates = [learning_rate(config, step, 10) for step in range(11)]
    cosine = [0.2 * (1 + math.cos(math.pi * step / 10)) for step in range(11)]
    assert rates == pytest.approx([c * min(1, (step + 1) / 4) for step, c in enumerate(cosine)])
    assert [learning_rate(TrainConfig(lr=0.4), step, 10) for step in (0, 5, 10)] == [0.4] * 3


@each_task
def test_training_lowers_the_loss(task: tuple[str, str], data: LabDataModule, tmp_path: Path) -> None:
    (model,) = train(task, data, tmp_path, 8, lr=0.01, batch_size=8)
    losses = model["history"]["train_mse"]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


class Diverging(Trainer):
    """Its targets are not numbers after some steps."""

    steps = 0

    def target(self, ab: Tensor) -> Tensor:
        self.steps += self.model.training
        return super().target(ab) * (math.nan if self.steps > 4 else 1)


@each_task
def test_a_loss_that_is_not_finite_ends_the_run_and_is_recorded(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path
) -> None:
    kind = type("Kind", (Diverging, MANAGERS[task[0]]), {})
    models = train(task, data, tmp_path, 1, 4, 6, batch_size=8, kind=kind)  # 3 steps per epoch
    assert [model["metrics"]["status"] for model in models] == ["done", "diverged", "diverged"]
    assert [model["metrics"].get("diverged_epoch") for model in models] == [None, 2, 2]
    assert all("test_mse" not in model["metrics"] for model in models[1:])
    assert math.isfinite(models[0]["metrics"]["test_mse"])
    callbacks = SilentCallbacks()
    *again, later = train(task, data, tmp_path, 1, 4, 6, 8, batch_size=8, callbacks=callbacks)
    assert callbacks.advances == [pytest.approx(2)]  # restored, and not trained further
    assert plain(again) == plain(models)
    assert later["metrics"]["diverged_epoch"] == 2


def test_nothing_of_a_finished_run_stays_in_memory(
    data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[weakref.ref] = []
    for kind in MANAGERS.values():

        def watched(trainer: Trainer, build=kind.build) -> nn.Module:
            network = build(trainer)
            built.append(weakref.ref(network))
            return network

        monkeypatch.setattr(kind, "build", watched)
    runs = [TrainingRun(*task, TrainConfig(), (1,)) for task in TASKS]
    gc.collect()
    maps = count_maps()
    assert Sweep(runs, data, RunPaths(tmp_path), torch.device("cpu")).run(1) == []
    assert built and not any(network() for network in built)
    assert count_maps() == maps > 0


def count_maps() -> int:
    """Returns how often records of images are mapped into this process."""
    return Path("/proc/self/maps").read_text().count("records.lab")
