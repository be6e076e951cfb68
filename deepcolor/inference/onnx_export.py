"""Writes a Colorizer as an ONNX file, which runs without PyTorch."""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

import Constants
from deepcolor.common.files import write_atomically
from utils import UserError

if TYPE_CHECKING:
    from deepcolor.inference.predictor import Predictor

PACKAGES = ("onnx", "onnxruntime")
LARGEST_DIFFERENCE = 0.01  # between ab from onnxruntime and from PyTorch, in Lab units
_OPSET = 17
_SHAPE = (1, Constants.IMAGE_SIZE, Constants.IMAGE_SIZE)


class LabColorizer(nn.Module):
    """L* (N,1,128,128) in 0..100 -> ab (N,2,128,128) in Lab units, whatever the architecture of the network."""

    def __init__(self, predictor: "Predictor") -> None:
        super().__init__()
        self.network = predictor.network
        self.predictor = predictor

    def forward(self, lightness: Tensor) -> Tensor:
        return self.predictor.forward(lightness * 0.01)


def check_installed() -> None:
    """Raises UserError if packages are missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--export needs the package {' and '.join(missing)}: pip install {' '.join(missing)}")


def export(predictor: "Predictor", path: Path) -> float:
    """Writes the network as an ONNX file and compares it with PyTorch. An existing file is replaced.

    Args:
        predictor: on the CPU.
        path: the file to write.

    Returns:
        The largest difference between ab from onnxruntime and from PyTorch, in Lab units.

    Raises:
        UserError: the difference exceeds LARGEST_DIFFERENCE. Nothing is written.
        OSError: the file cannot be written.
    """
    import onnx

    model = LabColorizer(predictor).eval()
    difference = 0.0

    def write(temporary: Path) -> None:
        nonlocal difference
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the exporter that needs no further package is deprecated
            torch.onnx.export(
                model,
                (torch.rand(2, *_SHAPE) * 100,),
                temporary,
                input_names=["L"],
                output_names=["ab"],
                dynamic_axes={"L": {0: "N"}, "ab": {0: "N"}},
                opset_version=_OPSET,
                dynamo=False,
            )
        content = onnx.load(temporary)
        onnx.helper.set_model_props(content, metadata(predictor))
        onnx.checker.check_model(content, full_check=True)
        onnx.save(content, temporary)
        difference = _difference(model, temporary)
        if not difference < LARGEST_DIFFERENCE:
            raise UserError(
                f"cannot export {predictor.path}: onnxruntime differs from PyTorch by {difference:.3g} in ab"
            )

    write_atomically(path, write)
    return difference


def metadata(predictor: "Predictor") -> dict[str, str]:
    """Returns what the file says about itself."""
    side = Constants.IMAGE_SIZE
    return {
        "description": "Predicts the colors of a photograph from its lightness.",
        "color_space": "CIE Lab of sRGB, D65, 2 degree observer, as in skimage.color.rgb2lab",
        "input": f"L (N,1,{side},{side}) float32: L* in 0..100",
        "output": f"ab (N,2,{side},{side}) float32: a and b in Lab units",
        "units": json.dumps({"L": "L*, 0..100", "ab": "Lab units, -128..128"}),
        "checkpoint": predictor.description,
    }


def _difference(model: nn.Module, path: Path) -> float:
    """Returns the largest difference of ab for batches of one and of three images, in Lab units."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for batch in (1, 3):
        lightness = np.random.default_rng(batch).uniform(0, 100, (batch, *_SHAPE)).astype(np.float32)
        (found,) = session.run(["ab"], {"L": lightness})
        with torch.inference_mode():
            differences.append(np.abs(found - model(torch.from_numpy(lightness)).numpy()).max())
    return float(np.max(differences))
