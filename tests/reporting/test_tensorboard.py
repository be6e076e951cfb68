"""--tensorboard: losses, hyperparameters, scores and triplets as TensorBoard reads them, each exactly once."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from deepcolor.training.checkpoint import load_model

FLAGS = "--device cpu --network colorizer --activation tanh --lr 0.003 --weight-decay 0 --tensorboard".split()
RUN = "lr_0.003_weight_decay_0"


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def check_log(output: Path, task: str, epochs: tuple[int, ...]) -> None:
    """Compares the log of a training run with its checkpoints."""
    models = {epoch: load_model(output / f"checkpoints/{task}/epoch_{epoch}_{RUN}.pt") for epoch in epochs}
    folder = output / "Plots/tensorboard" / task / RUN
    events = read(folder)
    for tag, values in models[epochs[-1]]["history"].items():
        points = events.Scalars(f"loss/{tag}")
        assert [point.step for point in points] == list(range(1, epochs[-1] + 1))
        assert [point.value for point in points] == pytest.approx(values)
    triplets = events.Images("triplets") if "triplets" in events.Tags()["images"] else []
    assert [image.step for image in triplets] == (list(epochs) if task == "colorizer_tanh" else [])
    for epoch, model in models.items():
        scores = read(folder / f"epoch_{epoch}_{RUN}")
        (point,) = scores.Scalars("test_mse")
        assert point.value == pytest.approx(model["metrics"]["test_mse"])
        assert "_hparams_/session_start_info" in scores.summary_metadata


def test_log_matches_checkpoints_after_training_resuming_and_repeating(photos: Path, tmp_path: Path) -> None:
    for epochs in ((1,), (1, 2), (1, 2)):
        flags = [*FLAGS, "--images", str(photos), "--output", str(tmp_path), "--epoch", *map(str, epochs)]
        assert main.main(flags) == 0
        check_log(tmp_path, "colorizer_tanh", epochs)


def test_no_logs_without_the_flag(earlier: Path) -> None:
    assert not (earlier / "Plots/tensorboard").exists()
