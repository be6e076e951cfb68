"""--tensorboard: curves, hyperparameters and triplets, as TensorBoard itself reads them; nothing twice."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from deepcolor.training import checkpoint

FLAGS = "--device cpu --activation tanh --lr 0.003 --weight-decay 0 --tensorboard".split()
TASKS = ("regressor", "colorizer_tanh")


@pytest.fixture
def sweep(photos: Path, tmp_path: Path) -> Callable[..., None]:
    def run(*epochs: int) -> None:
        flags = ["--images", str(photos), "--output", str(tmp_path), *FLAGS, "--epoch", *map(str, epochs)]
        assert main.main(flags) == 0

    return run


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def check(output: Path, *epochs: int) -> None:
    for task in TASKS:
        name = "lr_0.003_weight_decay_0"
        model = checkpoint.load_model(output / f"checkpoints/{task}/epoch_{epochs[-1]}_{name}.pt")
        folder = output / "Plots/tensorboard" / task / name
        events = read(folder)
        for tag, values in model["history"].items():
            points = events.Scalars(f"loss/{tag}")
            assert [point.step for point in points] == list(range(1, epochs[-1] + 1))
            assert [point.value for point in points] == pytest.approx(values)
        shown = [image.step for image in events.Images("triplets")] if "triplets" in events.Tags()["images"] else []
        assert shown == (list(epochs) if task == "colorizer_tanh" else [])
        for epoch in epochs:
            scores = read(folder / f"epoch_{epoch}_{name}")
            model = checkpoint.load_model(output / f"checkpoints/{task}/epoch_{epoch}_{name}.pt")
            (point,) = scores.Scalars("test_mse")
            assert point.value == pytest.approx(model["metrics"]["test_mse"])
            assert "_hparams_/session_start_info" in scores.summary_metadata


def test_curves_hyperparameters_and_triplets(sweep: Callable[..., None], tmp_path: Path) -> None:
    sweep(1, 3)
    check(tmp_path, 1, 3)
    # Trained on, and then again with nothing left to do.
    sweep(1, 3, 4)
    check(tmp_path, 1, 3, 4)
    sweep(1, 3, 4)
    check(tmp_path, 1, 3, 4)


def test_no_logs_unless_asked_for(earlier: Path) -> None:
    assert not (earlier / "Plots/tensorboard").exists()
