"""checkpoints/best_colorizer.pt and best_regressor.pt are the models with the lowest validation error."""

from pathlib import Path

import torch
from helpers import plain
from survival import result_of

import main
from deepcolor.training.checkpoint_manager import CheckpointManager
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.paths import RunPaths

FLAGS = "--device cpu --network regressor --weight-decay 0 --jobs 1 --epoch 1 --lr".split()


def check_best(output: Path) -> str:
    """Checks the best model against all models, and returns the path of the model that it is."""
    models = [torch.load(path, weights_only=True) for path in (output / "checkpoints").glob("regressor/epoch_*.pt")]
    done = [model for model in models if model["metrics"]["status"] == "done"]
    best = torch.load(output / "checkpoints/best_regressor.pt", weights_only=True)
    assert plain(best) == plain(min(done, key=lambda model: model["metrics"]["val_mse"]))
    return best["metrics"]["checkpoint"]


def test_the_best_model_is_kept_up_to_date(photos: Path, tmp_path: Path) -> None:
    command = ["--images", photos, *FLAGS]
    result_of(tmp_path, *command, "1e-6", "1e30")  # the second diverges
    assert "lr_1e-06" in check_best(tmp_path)
    result_of(tmp_path, *command, "0.01", "1e-7")  # a better model, and a worse one after it
    best = check_best(tmp_path)
    assert "lr_0.01" in best


def test_a_report_restores_the_best_model(photos: Path, tmp_path: Path) -> None:
    result_of(tmp_path, "--images", photos, *FLAGS, "1e-6", "0.01")
    first, path = check_best(tmp_path), tmp_path / "checkpoints/best_regressor.pt"
    report = ["--report", "--output", str(tmp_path)]
    for harm in (Path.unlink, lambda path: path.write_text("no model")):
        harm(path)
        assert main.main(report) == 0
        assert check_best(tmp_path) == first
    (tmp_path / first).unlink()
    assert main.main(report) == 0
    assert check_best(tmp_path) != first


def test_the_best_model_of_other_images_does_not_count(photos: Path, tmp_path: Path) -> None:
    result_of(tmp_path, "--images", photos, *FLAGS, "0.01")
    best = torch.load(tmp_path / "checkpoints/best_regressor.pt", weights_only=True)
    best["metrics"]["val_mse"] = 1e-9
    torch.save(best, tmp_path / "checkpoints/best_regressor.pt")
    result_of(tmp_path, "--images", photos / "train", *FLAGS, "1e-6")
    best = torch.load(tmp_path / "checkpoints/best_regressor.pt", weights_only=True)
    assert "lr_1e-06" in best["run"]


def test_the_validation_error_decides_not_the_training_error(earlier: Path, tmp_path: Path) -> None:
    (path,) = earlier.glob("checkpoints/regressor/epoch_*.pt")
    model = torch.load(path, weights_only=True)
    manager = CheckpointManager(RunPaths(tmp_path), TrainingRun("regressor", "", TrainConfig(), (1,)), {})
    for val_mse, train_mse in ((0.2, 0.1), (0.1, 0.2), (0.3, 0.0)):
        metrics = {**model["metrics"], "val_mse": val_mse, "train_mse": train_mse}
        manager.save_model({**model, "metrics": metrics}, 1)
    assert torch.load(tmp_path / "checkpoints/best_regressor.pt", weights_only=True)["metrics"]["val_mse"] == 0.1
