"""A trained Colorizer, ready to be used: read from its checkpoint, which says everything about it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import Constants
from Colorizer import Colorizer
from deepcolor.training import checkpoint
from deepcolor.training.checkpoint import RunPaths
from utils import UserError


@dataclass(frozen=True)
class Predictor:
    """A Colorizer in eval mode on its device, and what its output means."""

    network: Colorizer
    device: torch.device
    output_scale: tuple[float, float]  # (offset, scale) of Constants.OUTPUT_SCALES
    description: str  # one line: which checkpoint, and why this one

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Predictor":
        """Reads a checkpoint, or of the folder of a sweep the best colorizer by the validation images.

        Raises UserError if there is none, or if it is not the checkpoint of a Colorizer with finite weights.
        """
        path, why = best_below(path) if path.is_dir() else (path, "")
        content = checkpoint.load_usable(path)
        if content["network"] != "colorizer":
            raise UserError(f"{path} is of a {content['network']}, which colors nothing: name one of a colorizer")
        network = _network(path, content).to(device).eval()
        run = f"{content['activation']}, {content['epoch']} epochs"
        return cls(network, device, Constants.OUTPUT_SCALES[content["activation"]], f"{path} ({run}{why})")

    @staticmethod
    def keep_to_one_thread() -> None:
        """For a program whose other threads have the other cores: PyTorch's would wait for these, and burn them."""
        torch.set_num_threads(1)

    @torch.inference_mode()
    def predict(self, lightness: np.ndarray) -> np.ndarray:
        """L (N,1,128,128) in 0..1 -> ab (N,2,128,128) in Lab units, both float32."""
        offset, scale = self.output_scale
        parts = torch.from_numpy(lightness).split(Constants.EVALUATION_BATCH)
        return torch.cat([self.network(part.to(self.device)).cpu() for part in parts]).mul_(scale).sub_(offset).numpy()


def _network(path: Path, content: dict) -> Colorizer:
    """The Colorizer of a checkpoint. Raises UserError if the weights are not what the description says."""
    try:
        if content["image_size"] != Constants.IMAGE_SIZE:
            raise ValueError("of another version")
        with torch.device("meta"):  # its first weights would only be overwritten
            network = Colorizer(content["feature_maps"], content["activation"])
        network.load_state_dict({name: value.float() for name, value in content["model"].items()}, assign=True)
        finite = all(value.isfinite().all() for value in network.state_dict().values())
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: its weights are not those of the network that it describes") from error
    if not finite:
        raise UserError(f"{path} is of a training that diverged: name another checkpoint")
    return network


def best_below(folder: Path) -> tuple[Path, str]:
    """The best colorizer of the last sweep below a folder, by the validation images, and this in words.

    Raises UserError if none is finished.
    """
    from deepcolor.reporting import results  # needs much that takes long to import

    models, remarks = results.find_models(RunPaths(folder))
    best = results.best_of_each(results.to_rows(models))
    rows = [row for (network, _), row in best.items() if network == "colorizer"]
    if not rows:
        others = f" ({'; '.join(remarks)})" if remarks else ""
        raise UserError(
            f"no trained colorizer below {folder}{others}: train one (python3 main.py), or name it with --checkpoint"
        )
    row = min(rows, key=lambda row: row["val_mse"])
    count = sum(model["network"] == "colorizer" for model in models)
    return folder / row["checkpoint"], f", val mse {row['val_mse']:.6f}, the best of {count}"
