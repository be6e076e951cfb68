"""A trained Colorizer, loaded from its checkpoint for inference."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

import Constants
from Colorizer import Colorizer
from deepcolor.training.paths import RunPaths
from deepcolor.training.trained_colorizer import load_colorizer
from utils import UserError


@dataclass(frozen=True)
class Predictor:
    """A Colorizer in eval mode on its device."""

    network: Colorizer
    device: torch.device
    output_scale: tuple[float, float]  # (offset, scale) of Constants.OUTPUT_SCALES
    path: Path  # the checkpoint
    description: str  # one line about it
    mean_ab: tuple[float, float] | None = None  # of its training images, in Lab units; older checkpoints do not have it

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Self:
        """Loads a colorizer checkpoint, or the best one of the sweep whose output folder is `path`.

        Raises UserError if the file is missing, is not a colorizer checkpoint or has unusable weights.
        """
        is_sweep = path.is_dir()
        path = _best_checkpoint(path) if is_sweep else path
        network, content = load_colorizer(path)
        details = f"{content['activation']}, {content['epoch']} epochs"
        if is_sweep:
            details += f", val mse {content.get('metrics', {}).get('val_mse', math.nan):.6f}, best of the sweep"
        scale = Constants.OUTPUT_SCALES[content["activation"]]
        mean_ab = tuple(content.get("metrics", {}).get(key) for key in ("train_mean_a", "train_mean_b"))
        return cls(
            network.to(device).eval(), device, scale, path, f"{path} ({details})", None if None in mean_ab else mean_ab
        )

    def forward(self, lightness: Tensor) -> Tensor:
        """L*/100 (N,1,128,128) -> ab (N,2,128,128) in Lab units, on the network's device."""
        offset, scale = self.output_scale
        return self.network(lightness) * scale - offset

    @torch.inference_mode()
    def predict(self, lightness: np.ndarray) -> np.ndarray:
        """L*/100 (128,128) or (N,128,128) -> ab (2,128,128) or (N,2,128,128) in Lab units, all float32."""
        batch = torch.from_numpy(lightness).reshape(-1, 1, *lightness.shape[-2:])
        ab = self.forward(batch.to(self.device)).cpu().numpy()
        return ab if lightness.ndim == 3 else ab[0]

    @staticmethod
    def use_one_thread() -> None:
        """Limits PyTorch to one thread in this process, because other processes or threads use the other cores."""
        torch.set_num_threads(1)


def _best_checkpoint(folder: Path) -> Path:
    """Returns the path of the best colorizer of the sweep in `folder`. Raises UserError if there is none."""
    paths = RunPaths(folder)
    best = paths.best("colorizer")
    if best.exists():
        return best
    if any(paths.checkpoints.glob("colorizer_*/*.pt")):  # trained by an older version
        find_best = f"run python3 main.py --report --output {folder} to find the best one"
        raise UserError(f"no {best}: {find_best}, or pass a checkpoint with --checkpoint")
    raise UserError(f"no trained colorizer below {folder}: train one (python3 main.py), or name one with --checkpoint")
