"""The file format of checkpoints: finished models, and states from which training continues.

A checkpoint is a dict of tensors and plain values, which `torch.load(path, weights_only=True)` reads on any machine.
`checkpoint_schema` lists its keys.
"""

import errno
import os
import platform
import warnings
import zipfile
from pathlib import Path

import numpy as np
import skimage
import torch
from torch import Tensor

import Constants
from deepcolor.common.files import write_atomically
from deepcolor.training.checkpoint_schema import FORMAT_VERSION, check_model, check_state, check_usable, upgrade
from deepcolor.training.config import TrainingRun, task_name
from deepcolor.training.paths import RunPaths
from utils import UserError


def describe(
    training_run: TrainingRun,
    epoch: int,
    fingerprint: dict[str, object],
    model: dict[str, Tensor],
    metrics: dict[str, object],
    history: dict[str, list[float]],
) -> dict[str, object]:
    """Returns the content of a finished model's checkpoint, which needs nothing else to be understood."""
    not_hyperparameters = ("network", "activation", "images", "epochs")
    values = {key: value for key, value in fingerprint.items() if key not in not_hyperparameters}
    return {
        "format_version": FORMAT_VERSION,
        "model": model,
        "network": training_run.network,
        "activation": training_run.activation,
        "run": training_run.run_name(epoch),
        "feature_maps": values["feature_maps"],
        "hyperparameters": {"epoch": epoch, **values},
        "swept": list(training_run.swept),
        "epoch": epoch,
        "seed": training_run.config.seed,
        "image_size": Constants.IMAGE_SIZE,
        "metrics": metrics,
        "history": history,
        "fingerprint": fingerprint,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # its own class is refused by weights_only
        "numpy": np.__version__,
        "scikit-image": skimage.__version__,
    }


def save(content: dict, path: Path) -> None:
    """Writes a checkpoint atomically. Raises OSError."""

    def write(temporary: Path) -> None:
        # Through a file object, so that a full disk is an OSError: PyTorch's own writer hides the reason.
        with open(temporary, "wb") as file:
            torch.save(_to_cpu(content), file)

    write_atomically(path, write)


def _to_cpu(content: object) -> object:
    """Returns the content with all tensors on the CPU, so that a computer without a GPU can load it."""
    if isinstance(content, torch.Tensor):
        return content.cpu()
    if isinstance(content, dict):
        return type(content)((key, _to_cpu(value)) for key, value in content.items())
    return content


def load(path: Path) -> dict:
    """Reads a checkpoint of any version to the CPU.

    Raises UserError if it is missing, damaged or not one, and OSError or MemoryError if it cannot be read: then it may
    be undamaged.
    """
    try:
        _verify_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's remarks on foreign files
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError("not a dict")
        if _bytes_of(content) > path.stat().st_size:
            raise ValueError("tensors that share memory")  # a small file must not become large when it is copied
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except MemoryError:
        raise
    except Exception as error:  # a foreign file can make a reader raise anything
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a wrong offset in the file
            raise
        raise UserError(f"{path} is damaged, or not a checkpoint of this program") from error
    return upgrade(path, content)


def _bytes_of(content: dict) -> int:
    """Returns the size of all tensors in a content, if each had memory of its own."""
    size, pending, seen = 0, [content], set()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            size += value.nbytes
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:  # lists that hold one list many times
            seen.add(id(value))
            pending += value.values() if isinstance(value, dict) else value
    return size


def load_usable(path: Path) -> dict:
    """Reads a model of any version, and checks the keys of UsableModel. Raises UserError."""
    return check_usable(path, load(path))


def load_state(path: Path) -> dict:
    """Reads a state, and checks the keys of StateContent. Raises UserError."""
    return check_state(path, load(path))


def load_model(path: Path) -> dict:
    """Reads a finished model, and checks everything that describes it. Raises UserError."""
    return check_model(path, load(path))


def find_models(paths: RunPaths) -> tuple[list[dict], list[str]]:
    """Returns the finished models below the output folder, without their weights, and a line for each other file.

    Models trained on other images than the newest model are left out: their scores cannot be compared.
    """
    models, remarks = [], []
    # Hidden files are half written: their process was killed.
    found = sorted(paths.checkpoints.glob("*/[!.]*.pt"), key=lambda path: path.lstat().st_mtime)
    for path in found:
        try:
            model = load_model(path)
        except UserError as error:
            remarks.append(f"{error}: left out")
            continue
        # `run` becomes a part of file names: it must not lead out of the output folder.
        named = paths.checkpoints / task_name(model["network"], model["activation"]) / f"{model['run']}.pt"
        if not path == named == paths.root / model["metrics"]["checkpoint"]:
            remarks.append(f"{path} is a copy of the model of another run, {model['run']}: left out")
        else:
            del model["model"]
            models.append(model)
    if models:
        images = models[-1]["fingerprint"]["images"]
        others = sum(model["fingerprint"]["images"] != images for model in models)
        if others:
            remarks.append(f"{others} model(s) of an earlier run on other images: left out")
        models = [model for model in models if model["fingerprint"]["images"] == images]
    return models, remarks


def _verify_archive(path: Path) -> None:
    """Compares every part of the file with its checksum, which PyTorch writes but does not read.

    Raises OSError, ValueError, or what `zipfile` raises for a file that is not an archive.
    """
    if not path.is_file():  # opening a pipe would block
        raise FileNotFoundError(path) if not os.path.lexists(path) else ValueError("not a regular file")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        # PyTorch does not compress: a small file must not become large in memory.
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("compressed")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("parts that overlap")
        if damaged := archive.testzip():
            raise ValueError(f"damaged: {damaged}")
