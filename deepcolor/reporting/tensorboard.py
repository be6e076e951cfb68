"""--tensorboard: loss curves, the sweep and the triplets, for who would rather look than read.

    tensorboard --logdir Plots/tensorboard

Imported only when asked for: TensorBoard takes longer to import than most of the rest.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from deepcolor.training import checkpoint
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainingRun
from utils import format_value

METRICS = ("val_mse", "test_mse", "psnr", "ssim", "delta_e", "chroma_ratio")


class TensorBoardLogger:
    """The log of one training run, written anew whenever a run comes to it, so that nothing is in it twice.

    Curves epoch by epoch as they come; of each finished model its hyperparameters, figures, and a colorizer's triplets.
    """

    def __init__(self, output: RunPaths, training_run: TrainingRun) -> None:
        self.output = output
        self.folder = output.plots / "tensorboard" / training_run.task / training_run.name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.writer = SummaryWriter(str(self.folder))
        self.written = 0

    def epochs(self, history: Mapping[str, list[float]]) -> None:
        """Adds the epochs of a history (mse in units of (ab + 128) / 255) that are not there yet."""
        for number in range(self.written, len(history["val_mse"])):
            for name, values in history.items():
                self.writer.add_scalar(f"loss/{name}", values[number], number + 1)
        self.written = len(history["val_mse"])
        self.writer.flush()

    def model(self, path: Path) -> None:
        """Adds a finished model. Raises UserError if there is none at `path`."""
        content = checkpoint.load_model(path)
        self.epochs(content["history"])
        settings = {key: format_value(value) for key, value in content["hyperparameters"].items()}
        settings |= {key: content["hyperparameters"][key] for key in ("lr", "epoch", "weight_decay")}
        settings |= {"network": content["network"], "activation": content["activation"]}
        figures = {name: content["metrics"][name] for name in METRICS if name in content["metrics"]}
        # In a folder of its own, which TensorBoard's table of hyperparameters shows as a row.
        self.writer.add_hparams(settings, figures, run_name=content["run"], global_step=content["epoch"])
        triplets = self.output.plot(content["network"], content["activation"], content["run"], "triplets.png")
        if triplets.exists():
            with Image.open(triplets) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self.writer.add_image("triplets", pixels, content["epoch"], dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
