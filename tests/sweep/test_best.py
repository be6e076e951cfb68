"""checkpoints/best_colorizer.pt and best_regressor.pt are the models with the lowest validation error."""

from pathlib import Path

import torch
from helpers import plain
from survival import result_of

import main

FLAGS = "--device cpu --weight-decay 0 --jobs 1 --epoch 1".split()


def check_best(output: Path) -> dict[str, str]:
    """Checks the best models against all models, and returns the run of each."""
    found = {}
    for network in ("regressor", "colorizer"):
        paths = (output / "checkpoints").glob(f"{network}*/epoch_*.pt")
        models = [torch.load(path, weights_only=True) for path in paths]
        done = [model for model in models if model["metrics"]["status"] == "done"]
        expected = min(done, key=lambda model: model["metrics"]["val_mse"])
        best = torch.load(output / f"checkpoints/best_{network}.pt", weights_only=True)
        assert plain(best) == plain(expected)
        found[network] = best["metrics"]["checkpoint"]
    return found


def test_the_best_models_are_kept_up_to_date(photos: Path, tmp_path: Path) -> None:
    command = ["--images", photos, *FLAGS]
    result_of(tmp_path, *command, "--activation", "tanh", "--lr", "1e-6", "1e30")  # the second diverges
    first = check_best(tmp_path)
    # A better model, and a worse one after it.
    result_of(tmp_path, *command, "--activation", "sigmoid", "--lr", "0.01", "1e-7")
    second = check_best(tmp_path)
    assert all("lr_0.01" in second[network] and "lr_1e-06" in first[network] for network in first)
    # What --report finds: one is lost, the other is damaged, and the best model itself was deleted.
    (tmp_path / "checkpoints/best_regressor.pt").unlink()
    (tmp_path / "checkpoints/best_colorizer.pt").write_text("no model")
    (tmp_path / second["colorizer"]).unlink()
    assert main.main(["--report", "--output", str(tmp_path)]) == 0
    third = check_best(tmp_path)
    assert third["regressor"] == second["regressor"]
    assert third["colorizer"] != second["colorizer"]


def test_the_best_model_of_other_images_does_not_count(photos: Path, tmp_path: Path) -> None:
    command = [*FLAGS, "--network", "regressor", "--lr"]
    result_of(tmp_path, "--images", photos, *command, "0.01")
    best = torch.load(tmp_path / "checkpoints/best_regressor.pt", weights_only=True)
    best["metrics"]["val_mse"] = 1e-9
    torch.save(best, tmp_path / "checkpoints/best_regressor.pt")
    result_of(tmp_path, "--images", photos / "train", *command, "1e-6")
    best = torch.load(tmp_path / "checkpoints/best_regressor.pt", weights_only=True)
    assert "lr_1e-06" in best["run"]
