"""A trained Colorizer, loaded from its checkpoint for inference."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

import Constants
from Colorizer import Colorizer
from deepcolor.training.checkpoint import load_usable
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
    # How it sees a photograph: pixels of the longer side, mirrored pixels around it, and whether the prediction is
    # averaged with that for the mirror image.
    side: int = Constants.IMAGE_SIZE
    margin: int = 0
    mirrors: bool = False

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
        metrics = content.get("metrics", {})
        mean_ab = tuple(metrics.get(key) for key in ("train_mean_a", "train_mean_b"))
        predictor = cls(
            network.to(device).eval(),
            device,
            scale,
            path,
            f"{path} ({details})",
            metrics.get("saturation", 1.0),
            None if None in mean_ab else mean_ab,
        )
        # The other networks see an image exactly as in training.
        if hasattr(network, "mobilenet"):
            return replace(predictor, side=Constants.PHOTO_SIDE, margin=Constants.MARGIN, mirrors=True)
        return predictor

    @classmethod
    def load_default(cls, device: torch.device) -> Self:
        """Loads the best colorizer of the current folder's sweep if it learned from the user's own photographs.

        Otherwise loads the pretrained one. Raises UserError if there is neither.
        """
        best, pretrained = RunPaths(Path()).best("colorizer"), Constants.PRETRAINED
        own = best.exists() and load_usable(best).get("metrics", {}).get("own_photographs", True)
        if best.exists() and (own or not pretrained.exists()):
            hint = "; --checkpoint pretrained/photos.pt takes the pretrained one" if pretrained.exists() else ""
            predictor = cls.load(Path(), device)
        elif pretrained.exists():
            hint = "; --checkpoint FOLDER takes the best of a sweep"
            predictor = cls.load(pretrained, device)
        else:
            raise UserError(
                f"no trained colorizer: {pretrained} is missing (docs/pretrained.md says how to get or make it), and "
                "there is no sweep in this folder; train one (python3 main.py), or name one with --checkpoint"
            )
        return replace(predictor, description=predictor.description + hint)

    def for_clips(self) -> Self:
        """Returns the predictor that sees a frame in 128 pixels and without its mirror image, which is faster."""
        return replace(self, side=Constants.IMAGE_SIZE, margin=self.margin // 2, mirrors=False)

    def forward(self, lightness: Tensor) -> Tensor:
        """L*/100 (N,1,128,128) -> ab (N,2,128,128) in Lab units, on the network's device."""
        offset, scale = self.output_scale
        return self.network(lightness) * scale - offset

    @torch.inference_mode()
    def predict(self, lightness: np.ndarray) -> np.ndarray:
        """L*/100 (H,W) or (N,H,W) -> ab (2,H,W) or (N,2,H,W) in Lab units, all float32.

        If `mirrors`, the mean of the predictions for the image and for its mirror image.
        """
        batch = torch.from_numpy(lightness).reshape(-1, 1, *lightness.shape[-2:]).to(self.device)
        if self.mirrors:
            image, mirrored = self.forward(torch.cat([batch, batch.flip(3)])).chunk(2)
            ab = ((image + mirrored.flip(3)) / 2).cpu().numpy()
        else:
            ab = self.forward(batch).cpu().numpy()
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
