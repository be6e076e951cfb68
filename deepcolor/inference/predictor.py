"""A trained Colorizer, loaded from its checkpoint for inference."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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
    saturation: float = 1.0  # gave the validation photographs their mean chroma; older checkpoints do not have it
    mean_ab: tuple[float, float] | None = None  # of its training images, in Lab units; older checkpoints do not have it
    own_photographs: bool = True  # whether it learned from others than the built-in images
    # How the network sees a photograph.
    side: int = Constants.IMAGE_SIZE  # pixels of the longer side
    margin: int = 0  # mirrored pixels around it, at least
    average_flipped: bool = False  # whether `predict` averages with the prediction for the flipped photograph

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
            details += f", val mse {_metric(content, 'val_mse', math.nan):.6f}, best of the sweep"
        mean_ab = tuple(_metric(content, key, math.nan) for key in ("train_mean_a", "train_mean_b"))
        predictor = cls(
            network.to(device).eval(),
            device,
            Constants.OUTPUT_SCALES[content["activation"]],
            path,
            f"{path} ({details})",
            saturation=_metric(content, "saturation", 1.0),
            mean_ab=mean_ab if np.isfinite(mean_ab).all() else None,
            own_photographs=bool(_metric(content, "own_photographs", True)),
        )
        # The other networks see an image exactly as in training.
        if hasattr(network, "mobilenet"):
            _fold_batch_norms(network)
            network.to(memory_format=torch.channels_last)  # faster too
            return replace(predictor, side=Constants.PHOTO_SIDE, margin=Constants.MARGIN, average_flipped=True)
        return predictor

    @classmethod
    def load_default(cls, device: torch.device) -> Self:
        """Loads the best colorizer of the current folder's sweep if it learned from the user's own photographs.

        Otherwise loads the pretrained one. Raises UserError if there is neither.
        """
        pretrained = Constants.PRETRAINED
        best = cls.load(Path(), device) if RunPaths(Path()).best("colorizer").exists() else None
        if not pretrained.exists():
            if best:
                return best
            raise UserError(
                f"no trained colorizer: {pretrained} is missing (docs/pretrained.md says how to get or make it), and "
                "there is no sweep in this folder; train one (python3 main.py), or name one with --checkpoint"
            )
        if best and best.own_photographs:
            predictor, hint = best, "--checkpoint pretrained/photos.pt takes the pretrained one"
        else:
            predictor, hint = cls.load(pretrained, device), "--checkpoint FOLDER takes the best of a sweep"
        return replace(predictor, description=f"{predictor.description}; {hint}")

    def for_clips(self) -> Self:
        """Returns the predictor that sees a frame in 128 pixels and does not average, which is faster."""
        return replace(self, side=Constants.IMAGE_SIZE, margin=self.margin // 2, average_flipped=False)

    def forward(self, lightness: Tensor) -> Tensor:
        """L*/100 (N,1,128,128) -> ab (N,2,128,128) in Lab units, on the network's device."""
        offset, scale = self.output_scale
        return self.network(lightness) * scale - offset

    @torch.inference_mode()
    def predict(self, lightness: np.ndarray) -> np.ndarray:
        """L*/100 (H,W) or (N,H,W) -> ab (2,H,W) or (N,2,H,W) in Lab units, all float32.

        If `average_flipped`, the mean of the predictions for the image and for the flipped image.
        """
        batch = torch.from_numpy(lightness).reshape(-1, 1, *lightness.shape[-2:]).to(self.device)
        if self.average_flipped:
            image, flipped = self.forward(torch.cat([batch, batch.flip(3)])).chunk(2)
            ab = ((image + flipped.flip(3)) / 2).cpu().numpy()
        else:
            ab = self.forward(batch).cpu().numpy()
        return ab if lightness.ndim == 3 else ab[0]

    @staticmethod
    def use_one_thread() -> None:
        """Limits PyTorch to one thread in this process, because other processes or threads use the other cores."""
        torch.set_num_threads(1)


def _fold_batch_norms(network: nn.Module) -> None:
    """Replaces each convolution and the BatchNorm2d after it by one faster convolution. For eval mode only."""
    for block in network.modules():
        if isinstance(block, nn.Sequential):
            for index, (layer, norm) in enumerate(pairwise(block)):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    block[index], block[index + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()


def _metric(content: dict, name: str, default: float) -> float:
    """Returns a metric of a checkpoint, or the default if it is missing or not a finite number."""
    metrics = content.get("metrics")
    value = metrics.get(name) if isinstance(metrics, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else default


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
