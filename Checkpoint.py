"""Files of trained models: where they lie, how they are written and read. Plain values and tensors only."""

import contextlib
import fcntl
import os
import pickle
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
import torch

import Constants
from Plan import Trajectory
from utils import UserError, write_atomically

REQUIRED = (
    "model",
    "network",
    "activation",
    "feature_maps",
    "hyperparameters",
    "epoch",
    "seed",
    "image_size",
    "metrics",
)


class Output:
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

    def checkpoint(self, trajectory: Trajectory, epoch: int) -> Path:
        return self.checkpoints / trajectory.task / f"{trajectory.run_name(epoch)}.pt"

    def state(self, trajectory: Trajectory) -> Path:
        """From where a trajectory goes on: the model with its optimizer, in the middle or at the end."""
        return self.checkpoints / trajectory.task / ".trajectories" / f"{trajectory.name}.pt"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within, no other run writes below this folder. Raises UserError if one does already."""
        with open(self.root / ".cache" / "running", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"another run is writing below {self.root}: wait for it, or choose another folder with --output"
                ) from error
            yield

    def prepare(self) -> None:
        """Makes the folders, and finds out now rather than after an hour whether they can be written.

        Raises UserError if not.
        """
        try:
            for folder in (self.plots, self.checkpoints, self.root / ".cache"):
                folder.mkdir(parents=True, exist_ok=True)
                trial = folder / f".writable-{os.getpid()}"
                trial.touch()
                trial.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write below {self.root}: {error.strerror}; choose another folder with --output"
            ) from error


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # plain text: the original is of a class that weights_only refuses
        "numpy": np.__version__,
        "scikit-image": skimage.__version__,
    }


def describe(
    trajectory: Trajectory,
    epoch: int,
    identity: dict[str, object],
    model: dict[str, torch.Tensor],
    metrics: dict[str, object],
    history: dict[str, list[float]],
) -> dict[str, object]:
    """The content of a finished model's checkpoint, which needs nothing else to be understood."""
    foreign = ("network", "activation", "images", "epochs")
    hyperparameters = {"epoch": epoch, **{key: value for key, value in identity.items() if key not in foreign}}
    return {
        "model": model,
        "network": trajectory.network,
        "activation": trajectory.activation,
        "run": trajectory.run_name(epoch),
        "feature_maps": hyperparameters["feature_maps"],
        "hyperparameters": hyperparameters,
        "swept": list(trajectory.swept),
        "epoch": epoch,
        "seed": trajectory.settings.seed,
        "image_size": Constants.IMAGE_SIZE,
        "metrics": metrics,
        "history": history,
        "identity": identity,
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
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged, or no checkpoint of this program") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of this program")
    return content


def load_model(path: Path) -> dict:
    """The same for a finished model: raises UserError also if what describes it is missing."""
    content = load(path)
    if missing := [key for key in REQUIRED if key not in content]:
        raise UserError(f"{path} is no finished model of this program: it lacks {', '.join(missing)}")
    return content
