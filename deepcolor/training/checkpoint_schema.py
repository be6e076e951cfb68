"""What checkpoints contain, and checks of files that may come from elsewhere."""

from itertools import chain
from pathlib import Path
from typing import TypedDict, get_type_hints

import Constants
from deepcolor.training.config import GRID_KEYS
from utils import UserError

FORMAT_VERSION = 2  # raised whenever a key is renamed or its meaning changes; see upgrade


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
# Keys of version 1 -> keys of this version, whose spelling is American as well.
_RENAMED_KEYS = {"identity": "fingerprint", "squares": "loss_sum", "copies": "augment_repeats"}
_SPELLINGS = (("colour", "color"), ("grey", "gray"))


def check_usable(path: Path, content: dict) -> dict:
    """Returns `content` if it has the keys of UsableModel. Raises UserError if not."""
    return _check_types(path, content, get_type_hints(UsableModel))


def check_state(path: Path, content: dict) -> dict:
    """Returns `content` if it has the keys of StateContent. Raises UserError if not."""
    return _check_types(path, content, get_type_hints(StateContent))


def check_model(path: Path, content: dict) -> dict:
    """Returns `content` if it is a finished model with everything that describes it. Raises UserError if not."""
    _check_types(path, content, get_type_hints(ModelContent))
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
    metrics = dict(content["metrics"])
    means = metrics.pop("test_means", [])
    losses = [content["history"][key] for key in ("train_mse", "val_mse")]
    is_right = {
        "network": content["network"] in Constants.NETWORKS and content["activation"] in ("", *Constants.ACTIVATIONS),
        "hyperparameters": all(map(_is_hyperparameter, content["hyperparameters"].items())),
        "swept": all(isinstance(key, str) and key in content["hyperparameters"] for key in content["swept"]),
        "status": metrics["status"] in ("done", "diverged"),
        "metrics": all(isinstance(value, float | int | str) for value in metrics.values()),
        "history": len(losses[0]) == len(losses[1]) and all(isinstance(x, float | int) for x in chain(*losses)),
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


def upgrade(path: Path, content: dict) -> dict:
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
        content["swept"] = [_rename(key) for key in content["swept"]]
    metrics = content.get("metrics")
    if isinstance(metrics, dict) and "verdict" in metrics:
        metrics["verdict"] = _rename(metrics["verdict"])
    return content


def _rename(name: object) -> object:
    """Returns what this version calls a name of version 1. Other values are returned as they are."""
    if not isinstance(name, str):
        return name
    for british, american in _SPELLINGS:
        name = name.replace(british, american)
    return _RENAMED_KEYS.get(name, name)


def _rename_keys(content: dict) -> dict:
    return {_rename(key): value for key, value in content.items()}


def _check_types(path: Path, content: dict, types: dict[str, type]) -> dict:
    """Returns `content` if it has these keys with values of these types. Raises UserError if not."""
    if wrong := [key for key, kind in types.items() if not isinstance(content.get(key), kind)]:
        raise UserError(f"{path} is not a finished model or state of this program: wrong {', '.join(wrong)}")
    return content
