"""Loads a trained Colorizer from its checkpoint, for inference and for fine-tuning."""

import hashlib
from pathlib import Path
from typing import get_type_hints

import torch

import Constants
from Colorizer import Colorizer
from deepcolor.training import checkpoint
from deepcolor.training.checkpoint_schema import FORMAT_VERSION, UsableModel
from deepcolor.training.config import default_of
from utils import UserError

_EXPORTED_METRICS = ("saturation", "train_mean_a", "train_mean_b", "own_photographs")
# The hyperparameters that decide which layers a Colorizer has.
ARCHITECTURE = ("feature_maps", "skip", "encoder")


def load_colorizer(path: Path) -> tuple[Colorizer, dict]:
    """Returns the network of a colorizer checkpoint, with float32 weights, and the content of the checkpoint.

    Raises UserError if the file is missing, is not a colorizer checkpoint, is for another image size, or has unusable
    weights.
    """
    content = checkpoint.load_usable(path)
    if content["network"] != "colorizer":
        raise UserError(f"{path} is a {content['network']} checkpoint; pass a colorizer checkpoint")
    if content["image_size"] != Constants.IMAGE_SIZE:
        side = Constants.IMAGE_SIZE
        raise UserError(f"{path} is for images of another size, not of {side} pixels; pass another checkpoint")
    try:
        with torch.device("meta"):  # without initial weights, which would be overwritten
            network = Colorizer(activation=content["activation"], **architecture(content))
        network.load_state_dict({name: value.float() for name, value in content["model"].items()}, assign=True)
        finite = all(value.isfinite().all() for value in network.state_dict().values())
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: its weights do not match the network that it describes") from error
    if not finite:
        raise UserError(f"{path} has weights that are not finite: its training diverged; pass another checkpoint")
    return network, content


def architecture(content: dict) -> dict[str, object]:
    """Returns the values of ARCHITECTURE of a checkpoint. Those that an older checkpoint lacks are the defaults."""
    known = {**content.get("hyperparameters", {}), "feature_maps": content["feature_maps"]}
    return {name: known.get(name, default_of(name)) for name in ARCHITECTURE}


def export(path: Path, target: Path) -> None:
    """Writes the network of a colorizer checkpoint and what its use needs, in half precision. Raises UserError.

    The file is a checkpoint, of half the size: without losses, fingerprint and most metrics.
    """
    _, content = load_colorizer(path)
    kept = {key: content[key] for key in get_type_hints(UsableModel)}
    metrics = content.get("metrics", {})
    kept["metrics"] = {key: metrics[key] for key in _EXPORTED_METRICS if key in metrics}
    kept["hyperparameters"] = architecture(content)
    kept["model"] = {key: value.half() if value.is_floating_point() else value for key, value in kept["model"].items()}
    checkpoint.save({"format_version": FORMAT_VERSION, **kept}, target)


def content_hash(path: Path) -> str:
    """Returns 16 hexadecimal digits that identify the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
