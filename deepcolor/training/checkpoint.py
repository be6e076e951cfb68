"""The file format of checkpoints: finished models, and states from which training continues.

A checkpoint is a dict of tensors and plain values, which `torch.load(path, weights_only=True)` reads on any machine.
ModelContent and StateContent list its keys.
"""

import errno
import os
import platform
import warnings
import zipfile
from pathlib import Path
from typing import TypedDict, get_type_hints

import numpy as np
import skimage
import torch
from torch import Tensor

import Constants
from deepcolor.common.files import write_atomically
from deepcolor.training.config import GRID_KEYS, TrainingRun
from deepcolor.training.paths import RunPaths
from utils import UserError

FORMAT_VERSION = 2  # raised whenever a key is renamed or its meaning changes; see _upgrade


class UsableModel(TypedDict):
    """What it takes to use a model. Present in files of every version."""

    model: dict  # state_dict
    network: str  # "regressor" or "colorizer"
    activation: str
    feature_maps: int | list | tuple
    epoch: int
    image_size: int


class ModelContent(UsableModel):
    """A finished model, and everything that describes it."""

    run: str  # name of the combination
    hyperparameters: dict  # epoch, and the fields of TrainConfig
    swept: list
    seed: int
    metrics: dict  # see Metrics
    history: dict  # train_mse and val_mse of every epoch
    fingerprint: dict  # TrainingRun.fingerprint


class Metrics(TypedDict):
    """The metrics of every model. Errors are in units of (ab + 128) / 255."""

    status: str  # "done" or "diverged"
    gray_mse: float
    mean_color_mse: float
    seconds: float
    checkpoint: str  # path below the output folder


class Scores(TypedDict):
    """Further metrics of a model that did not diverge."""

    train_mse: float
    val_mse: float
    test_mse: float
    test_mse_a: float
    test_mse_b: float
    rmse_lab: float


class RegressorScores(Scores):
    test_means: list  # [name, predicted a, predicted b, true a, true b] of each test image, in Lab units


class ColorizerScores(Scores):
    psnr: float
    ssim: float
    delta_e: float
    colorfulness: float
    colorfulness_true: float
    chroma_ratio: float
    verdict: str


class StateContent(TypedDict):
    """The state of a training run between two steps."""

    model: dict  # state_dict
    optimizer: dict  # state_dict
    epoch: int  # finished epochs
    batch: int  # finished batches of the next epoch
    loss_sum: float  # loss of these batches, summed over their images
    history: dict
    seconds: float  # spent training
    diverged: int  # the epoch in which a loss was not finite, or 0
    fingerprint: dict


_HYPERPARAMETERS = {"lr": float | int, "epoch": int, "weight_decay": float | int}
# Keys of version 1 -> keys of this version.
_RENAMED_KEYS = {
    "identity": "fingerprint",
    "squares": "loss_sum",
    "copies": "augment_repeats",
    "grey_mse": "gray_mse",
    "mean_colour_mse": "mean_color_mse",
    "colourfulness": "colorfulness",
    "colourfulness_true": "colorfulness_true",
}


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
    return _upgrade(path, content)


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
    return _check_types(path, load(path), get_type_hints(UsableModel))


def load_state(path: Path) -> dict:
    """Reads a state, and checks the keys of StateContent. Raises UserError."""
    return _check_types(path, load(path), get_type_hints(StateContent))


def load_model(path: Path) -> dict:
    """Reads a finished model, and checks everything that describes it. Raises UserError."""
    content = _check_types(path, load(path), get_type_hints(ModelContent))
    _check_types(path, content["hyperparameters"], _HYPERPARAMETERS)
    metrics = _check_types(path, content["metrics"], get_type_hints(Metrics))
    _check_types(path, content["fingerprint"], {"images": str})
    _check_types(path, content["history"], {"train_mse": list, "val_mse": list})
    if metrics["status"] == "done":
        scores = RegressorScores if content["network"] == "regressor" else ColorizerScores
        _check_types(path, metrics, get_type_hints(scores))
    if wrong := _wrong_values(content):
        raise UserError(f"{path} is not a finished model of this program: wrong {wrong}")
    return content


def _wrong_values(content: dict) -> str:
    """Returns which part of a model has a value that this program does not write, or ""."""
    metrics, histories = content["metrics"], content["history"].values()
    means = metrics.get("test_means", [])
    is_right = {
        "network": content["network"] in Constants.NETWORKS and content["activation"] in ("", *Constants.ACTIVATIONS),
        "hyperparameters": all(map(_is_hyperparameter, content["hyperparameters"].items())),
        "swept": {key for key in content["swept"] if isinstance(key, str)} <= content["hyperparameters"].keys(),
        "status": metrics["status"] in ("done", "diverged"),
        "history": len({len(history) for history in histories}) == 1
        and all(isinstance(value, float | int) for history in histories for value in history),
        "test_means": isinstance(means, list) and all(map(_is_mean, means)),
    }
    return ", ".join(name for name, right in is_right.items() if not right)


def _is_hyperparameter(item: tuple[object, object]) -> bool:
    """Returns whether this is a known key, with a number, a text, or numbers."""
    key, value = item
    values = value if isinstance(value, list | tuple) and len(value) <= Constants.LAYERS else [value]
    return key in GRID_KEYS and all(isinstance(each, float | int | str) for each in values)


def _is_mean(row: object) -> bool:
    """Returns whether this is a row of `RegressorScores.test_means`."""
    return (
        isinstance(row, list | tuple)
        and len(row) == 5
        and isinstance(row[0], str)
        and all(isinstance(value, float | int) for value in row[1:])
    )


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
        task = f"{model['network']}_{model['activation']}".rstrip("_")
        expected = paths.root / model["metrics"]["checkpoint"]
        if path != expected or (path.parent.name, path.stem) != (task, model["run"]):  # `run` becomes a file's name
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


def _upgrade(path: Path, content: dict) -> dict:
    """Renames the keys of version 1. Raises UserError for a version that this program does not know."""
    version = content.get("format_version", 1)
    if version == FORMAT_VERSION:
        return content
    if version != 1:
        raise UserError(f"{path} was written by a newer version of this program: update the program")
    content = _rename_keys(content)
    for part in ("metrics", "hyperparameters", "fingerprint"):
        if isinstance(content.get(part), dict):
            content[part] = _rename_keys(content[part])
    if isinstance(content.get("swept"), list):
        content["swept"] = [_RENAMED_KEYS.get(key, key) if isinstance(key, str) else key for key in content["swept"]]
    metrics = content.get("metrics")
    if isinstance(metrics, dict) and isinstance(metrics.get("verdict"), str):
        metrics["verdict"] = metrics["verdict"].replace("coloured", "colored").replace("grey", "gray")
    return content


def _rename_keys(content: dict) -> dict:
    return {_RENAMED_KEYS.get(key, key): value for key, value in content.items()}


def _check_types(path: Path, content: dict, types: dict[str, type]) -> dict:
    """Returns `content` if it has these keys with values of these types. Raises UserError if not."""
    if wrong := [key for key, kind in types.items() if not isinstance(content.get(key), kind)]:
        raise UserError(f"{path} is not a finished model or state of this program: wrong {', '.join(wrong)}")
    return content
