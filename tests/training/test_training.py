"""Training: what decides the weights, and what must not."""

import math
import weakref
from pathlib import Path

import pytest
import torch
from helpers import MANAGERS, TASK_NAMES, TASKS, Silent, manager, plain, train
from torch import Tensor, nn

from deepcolor.data.dataset import LabDataModule
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.trainer import Trainer

FIGURES = ("train_mse", "val_mse", "test_mse", "test_mse_a", "test_mse_b", "psnr", "ssim", "delta_e", "colorfulness")


def weights(model: dict) -> object:
    return plain(model["model"])


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_a_snapshot_of_a_long_run_is_the_short_run_bit_for_bit(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path
) -> None:
    early, _, late = train(task, data, tmp_path / "long", 2, 3, 5, weight_decay=1e-5)
    (short,) = train(task, data, tmp_path / "short", 2, weight_decay=1e-5)
    (whole,) = train(task, data, tmp_path / "whole", 5, weight_decay=1e-5)
    assert plain(early) == plain(short)
    assert plain(late) == plain(whole)
    assert weights(early) != weights(late)
    assert late["history"]["train_mse"][:2] == early["history"]["train_mse"]
    assert late["history"]["val_mse"][:2] == early["history"]["val_mse"]
    assert [len(model["history"]["val_mse"]) for model in (early, late)] == [2, 5]


def test_the_pictures_of_a_snapshot_are_those_of_the_short_run(data: LabDataModule, tmp_path: Path) -> None:
    train(TASKS[1], data, tmp_path / "long", 1, 2)
    train(TASKS[1], data, tmp_path / "short", 1)
    written = [path.relative_to(tmp_path / "short") for path in (tmp_path / "short/outputs_sigmoid").rglob("*.png")]
    assert len(written) == 2 * len(data.test)
    for path in written:
        assert (tmp_path / "short" / path).read_bytes() == (tmp_path / "long" / path).read_bytes()


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_the_seed_alone_decides_the_weights(task: tuple[str, str], data: LabDataModule, tmp_path: Path) -> None:
    torch.manual_seed(1)
    (first,) = train(task, data, tmp_path / "1", 2, seed=4)
    torch.manual_seed(2)
    torch.rand(1000)
    (second,) = train(task, data, tmp_path / "2", 2, seed=4)
    (other,) = train(task, data, tmp_path / "3", 2, seed=5)
    assert plain(first) == plain(second)
    assert weights(first) != weights(other)


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_the_first_weights_depend_on_the_seed(task: tuple[str, str], data: LabDataModule, tmp_path: Path) -> None:
    first, same, other = (plain(manager(task, data, tmp_path, seed=seed).model.state_dict()) for seed in (1, 1, 2))
    assert first == same
    assert first != other


@pytest.mark.parametrize(
    "change", [{"lr": 0.01}, {"weight_decay": 0.1}, {"batch_size": 5}, {"augment_repeats": 2}], ids=str
)
def test_every_setting_has_an_effect(data: LabDataModule, tmp_path: Path, change: dict[str, float]) -> None:
    (plainly,) = train(TASKS[1], data, tmp_path / "plain", 1)
    (changed,) = train(TASKS[1], data, tmp_path / "changed", 1, **change)
    assert weights(plainly) != weights(changed)


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_evaluation_does_not_depend_on_the_batch_size(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (1, 3, 64):
        monkeypatch.setattr("Constants.EVALUATION_BATCH", size)
        metrics = train(task, data, tmp_path / str(size), 1)[0]["metrics"]
        found.append({key: metrics[key] for key in FIGURES if key in metrics})
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_evaluation_does_not_depend_on_the_training_batch_size(data: LabDataModule, tmp_path: Path) -> None:
    trainers = [manager(TASKS[1], data, tmp_path / str(size), batch_size=size) for size in (1, 4, 64)]
    trainers[0].train()
    for trainer in trainers[1:]:
        trainer.model.load_state_dict(trainers[0].model.state_dict())
    results = [trainer.evaluate(data.test) for trainer in trainers]
    assert results[0] == results[1] == results[2]


def test_evaluation_does_not_change_the_model(data: LabDataModule, tmp_path: Path) -> None:
    trainer = manager(TASKS[2], data, tmp_path)
    trainer.train()
    before = plain(trainer.model.state_dict())
    assert trainer.evaluate(data.test) == trainer.evaluate(data.test)
    assert plain(trainer.model.state_dict()) == before


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_the_first_step_is_adam_on_the_mean_squared_error(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replayed from what the network was given, with an optimizer of PyTorch and the loss as the contract has it."""
    seen: list[tuple[Tensor, dict]] = []
    truths: list[Tensor] = []

    class Watched(MANAGERS[task[0]]):
        def build(self) -> nn.Module:
            model = super().build()
            model.register_forward_pre_hook(self.keep)
            return model

        def keep(self, model: nn.Module, inputs: tuple[Tensor]) -> None:
            seen.append((inputs[0].clone(), {k: v.clone() for k, v in model.state_dict().items()}))

        def target(self, ab: Tensor) -> Tensor:
            truths.append(ab.clone())
            return super().target(ab)

    watched = manager(task, data, tmp_path, (1,), kind=Watched, batch_size=8, lr=0.01, weight_decay=0.1)
    model = watched.build()
    watched.train()
    lightness, state = seen[0]
    model.load_state_dict(state)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    target = truths[0] / 128 if task[1] == "tanh" else (truths[0] + 128) / 255
    if task[0] == "regressor":
        target = target.mean(dim=(2, 3))
    nn.functional.mse_loss(model.train()(lightness), target).backward()
    optimizer.step()
    after = seen[1][1]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, after[name], rtol=1e-4, atol=1e-6)


def test_the_cosine_schedule_ends_at_zero_after_a_linear_warm_up(data: LabDataModule, tmp_path: Path) -> None:
    trainer = manager(TASKS[0], data, tmp_path, (10,), lr=0.4, schedule="cosine", warmup_steps=3, batch_size=17)
    rates = []
    for step in range(11):
        trainer.set_learning_rate(step)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    cosine = [0.2 * (1 + math.cos(math.pi * step / 10)) for step in range(11)]
    assert rates == pytest.approx([c * min(1, (step + 1) / 4) for step, c in enumerate(cosine)])


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_training_lowers_the_loss(task: tuple[str, str], data: LabDataModule, tmp_path: Path) -> None:
    (model,) = train(task, data, tmp_path, 12, lr=0.01, batch_size=8)
    losses = model["history"]["train_mse"]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


class Diverging(Trainer):
    """Its truth is not a number in training, from some step on."""

    steps = 0

    def target(self, ab: Tensor) -> Tensor:
        self.steps += self.model.training
        return super().target(ab) * (math.nan if self.steps > 4 else 1)


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_a_loss_that_is_not_finite_ends_the_trajectory_and_is_noted(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path
) -> None:
    kind = type("Kind", (Diverging, MANAGERS[task[0]]), {})
    progress = Silent()
    models = train(task, data, tmp_path, 1, 4, 6, batch_size=8, kind=kind, progress=progress)  # 3 steps an epoch
    assert [model["metrics"]["status"] for model in models] == ["done", "diverged", "diverged"]
    assert [model["metrics"].get("diverged_epoch") for model in models] == [None, 2, 2]
    assert all("test_mse" not in model["metrics"] for model in models[1:])
    assert math.isfinite(models[0]["metrics"]["test_mse"])
    assert any("diverged" in line for line in progress.said)
    again = train(task, data, tmp_path, 1, 4, 6, batch_size=8)
    assert [plain(model) for model in again] == [plain(model) for model in models]


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_nothing_of_a_finished_trajectory_stays_in_memory(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[weakref.ref] = []
    build = MANAGERS[task[0]].build

    def watched(trainer: Trainer) -> nn.Module:
        network = build(trainer)
        built.append(weakref.ref(network))
        return network

    monkeypatch.setattr(MANAGERS[task[0]], "build", watched)
    training_run = TrainingRun(*task, TrainConfig(), (1,))
    maps = count_maps(data)
    assert Sweep([training_run], data, RunPaths(tmp_path), torch.device("cpu")).train(training_run, Silent()) == ""
    assert built and not any(network() for network in built)
    assert count_maps(data) == maps > 0


def count_maps(data: LabDataModule) -> int:
    """How often the records are mapped into this process."""
    return Path("/proc/self/maps").read_text().count(data.train.mapped.filename.name)
