"""Files of trained models: where they lie, how they are written and read. Plain values and tensors only."""

import contextlib
import os
import platform
import warnings
import zipfile
from pathlib import Path

import numpy as np
import skimage
import torch

import Constants
from deepcolor.common.files import check_writable, try_lock, write_atomically
from deepcolor.training.config import TrainingRun
from utils import UserError

# What a file must hold, and of what kind, to be what it says it is.
MODEL = {
    "model": dict,
    "network": str,
    "activation": str,
    "run": str,
    "feature_maps": int | list | tuple,
    "hyperparameters": dict,
    "swept": list,
    "epoch": int,
    "seed": int,
    "image_size": int,
    "metrics": dict,
    "history": dict,
    "fingerprint": dict,
}
# What it takes to use a model: an earlier version of this program wrote less about it.
USABLE = {key: MODEL[key] for key in ("model", "network", "activation", "feature_maps", "epoch", "image_size")}
STATE = {
    "model": dict,
    "optimizer": dict,
    "epoch": int,
    "batch": int,
    "loss_sum": float,
    "history": dict,
    "seconds": float,
    "diverged": int,
    "fingerprint": dict,
}
HYPERPARAMETERS = {"lr": float | int, "epoch": int, "weight_decay": float | int}
METRICS = {"status": str, "gray_mse": float, "mean_color_mse": float, "seconds": float, "checkpoint": str}
SCORES = {
    "": dict.fromkeys(("train_mse", "val_mse", "test_mse", "test_mse_a", "test_mse_b", "rmse_lab"), float),
    "regressor": {"test_means": list},
    "colorizer": {
        **dict.fromkeys(("psnr", "ssim", "delta_e", "colorfulness", "colorfulness_true", "chroma_ratio"), float),
        "verdict": str,
    },
}


# Version 1.0 of the program -> this version.
_RENAMED_KEYS = {
    "identity": "fingerprint",
    "squares": "loss_sum",
    "copies": "augment_repeats",
    "grey_mse": "gray_mse",
    "mean_colour_mse": "mean_color_mse",
    "colourfulness": "colorfulness",
    "colourfulness_true": "colorfulness_true",
}


class RunPaths:
    """Where everything below `--output` lies."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plots = root / "Plots"
        self.checkpoints = root / "checkpoints"

    def pictures(self, activation: str, kind: str, run: str) -> Path:
        """The folder of a run's "gray" or "color" pictures."""
        return self.root / f"outputs_{activation}" / kind / run

    def plot(self, network: str, activation: str, run: str, what: str) -> Path:
        """A file that belongs to one run below Plots/: what is "loss.png", "triplets.png" or "means.csv"."""
        prefix = f"{activation}_" if activation else ""
        return self.plots / network.capitalize() / f"{prefix}{run}_{what}"

    def checkpoint(self, training_run: TrainingRun, epoch: int) -> Path:
        return self.checkpoints / training_run.task / f"{training_run.run_name(epoch)}.pt"

    def state(self, training_run: TrainingRun) -> Path:
        """From where a training run goes on: the model with its optimizer, in the middle or at the end."""
        return self.checkpoints / training_run.task / ".state" / f"{training_run.name}.pt"

    def claim(self, training_run: TrainingRun) -> contextlib.AbstractContextManager[bool]:
        """Yields whether this process may train the run: no other process holds its lock. Raises OSError."""
        return try_lock(self.state(training_run).with_suffix(".lock"))

    def prepare(self) -> None:
        """Makes the folders, and finds out now rather than after an hour whether they can be written.

        Raises UserError if not.
        """
        for folder in (self.plots, self.checkpoints, self.root / ".cache"):
            check_writable(folder, self.root)


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # plain text: the original is of a class that weights_only refuses
        "numpy": np.__version__,
        "scikit-image": skimage.__version__,
    }


def describe(
    training_run: TrainingRun,
    epoch: int,
    fingerprint: dict[str, object],
    model: dict[str, torch.Tensor],
    metrics: dict[str, object],
    history: dict[str, list[float]],
) -> dict[str, object]:
    """The content of a finished model's checkpoint, which needs nothing else to be understood."""
    foreign = ("network", "activation", "images", "epochs")
    hyperparameters = {"epoch": epoch, **{key: value for key, value in fingerprint.items() if key not in foreign}}
    return {
        "model": model,
        "network": training_run.network,
        "activation": training_run.activation,
        "run": training_run.run_name(epoch),
        "feature_maps": hyperparameters["feature_maps"],
        "hyperparameters": hyperparameters,
        "swept": list(training_run.swept),
        "epoch": epoch,
        "seed": training_run.config.seed,
        "image_size": Constants.IMAGE_SIZE,
        "metrics": metrics,
        "history": history,
        "fingerprint": fingerprint,
        "versions": versions(),
    }


def save(content: dict, path: Path) -> None:
    """Writes a checkpoint: the old file or the new one, never half. Raises OSError."""

    def write(temporary: Path) -> None:
        # Through a file object, whose errors are OSErrors: PyTorch's own writer hides the reason, a full disk say.
        with open(temporary, "wb") as file:
            torch.save(content, file)

    write_atomically(path, write)


def load(path: Path) -> dict:
    """Reads a file that `save` wrote, to the CPU. Raises UserError if it is missing, damaged or not one of ours."""
    try:
        _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch thinks of a foreign file is no help to anybody
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except Exception as error:  # a foreign file can make a reader raise anything at all
        raise UserError(f"{path} is damaged, or no checkpoint of this program") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of this program")
    return _upgrade(content)


def _upgrade(content: dict) -> dict:
    """Renames the keys that version 1.0 spelled differently, so that its files load like those of this version."""
    renamed = {_RENAMED_KEYS.get(key, key): value for key, value in content.items()}
    for part in ("metrics", "hyperparameters", "fingerprint"):
        if isinstance(renamed.get(part), dict):
            renamed[part] = {_RENAMED_KEYS.get(key, key): value for key, value in renamed[part].items()}
    if isinstance(renamed.get("swept"), list):
        renamed["swept"] = [_RENAMED_KEYS.get(key, key) if isinstance(key, str) else key for key in renamed["swept"]]
    metrics = renamed.get("metrics")
    if isinstance(metrics, dict) and isinstance(metrics.get("verdict"), str):
        metrics["verdict"] = metrics["verdict"].replace("coloured", "colored").replace("grey", "gray")
    return renamed


def _check_sums(path: Path) -> None:
    """Compares every part of the archive with its checksum, which PyTorch writes but does not look at.

    Raises OSError, ValueError, or what `zipfile` raises for what is no archive.
    """
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(path) if not os.path.lexists(path) else ValueError("not a regular file")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        # PyTorch does not compress: nothing that is small here may become large.
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("compressed")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("parts that overlap")
        if damaged := archive.testzip():
            raise ValueError(f"damaged: {damaged}")


def load_state(path: Path) -> dict:
    """The same for the state of a training run: raises UserError also if a part of it is missing."""
    return _complete(path, load(path), STATE)


def load_usable(path: Path) -> dict:
    """The same for a model of any version: raises UserError also if what it takes to use it is missing."""
    return _complete(path, load(path), USABLE)


def load_model(path: Path) -> dict:
    """The same for a finished model: raises UserError also if a part of what describes it is missing."""
    content = _complete(path, load(path), MODEL)
    _complete(path, content["hyperparameters"], HYPERPARAMETERS)
    _complete(path, content["metrics"], METRICS)
    _complete(path, content["fingerprint"], {"images": str})
    _complete(path, content["history"], {"train_mse": list, "val_mse": list})
    if content["network"] not in Constants.NETWORKS or content["activation"] not in ("", *Constants.ACTIVATIONS):
        raise UserError(f"{path} is no finished model of this program: of an unknown network")
    if not set(content["swept"]) <= content["hyperparameters"].keys():
        raise UserError(f"{path} is no finished model of this program: it lacks what it says was swept")
    if content["metrics"]["status"] == "done":
        _complete(path, content["metrics"], {**SCORES[""], **SCORES[content["network"]]})
    return content


def _complete(path: Path, content: dict, kinds: dict[str, type]) -> dict:
    """`content`, if it has these keys with values of these kinds; else raises UserError."""
    if wrong := [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]:
        raise UserError(f"{path} is no finished model or state of this program: no right {', '.join(wrong)}")
    return content
