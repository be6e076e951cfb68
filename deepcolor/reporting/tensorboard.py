"""TensorBoard logging: loss curves, hyperparameters, scores and triplets.

Show the logs with `tensorboard --logdir Plots/tensorboard`.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from deepcolor.training.checkpoint import load_model
from deepcolor.training.config import TrainingRun
from deepcolor.training.paths import RunPaths
from utils import format_value

METRICS = ("val_mse", "test_mse", "psnr", "ssim", "delta_e", "chroma_ratio")


class TensorBoardLogger:
    """Writes the log of one training run.

    Replaces an earlier log of the training run. Since checkpoints hold the whole history, a resumed run logs every
    epoch exactly once.
    """

    def __init__(self, paths: RunPaths, training_run: TrainingRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, because it is optional and takes long to import

        self.paths = paths
        self.folder = paths.plots / "tensorboard" / training_run.task / training_run.name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.writer = SummaryWriter(str(self.folder))
        self.logged_epochs = 0

    def log_epochs(self, history: Mapping[str, list[float]]) -> None:
        """Logs the losses of the epochs that are not logged yet. `history` is that of a checkpoint."""
        epochs = len(history["val_mse"])
        for index in range(self.logged_epochs, epochs):
            for name, values in history.items():
                self.writer.add_scalar(f"loss/{name}", values[index], index + 1)
        self.logged_epochs = epochs
        self.writer.flush()

    def log_model(self, path: Path) -> None:
        """Logs the hyperparameters and scores of a finished model, and a Colorizer's triplets.

        Raises UserError if there is no finished model at `path`.
        """
        model = load_model(path)
        self.log_epochs(model["history"])
        settings = {key: format_value(value) for key, value in model["hyperparameters"].items()}
        settings |= {key: model["hyperparameters"][key] for key in ("lr", "epoch", "weight_decay")}
        settings |= {"network": model["network"], "activation": model["activation"]}
        scores = {name: model["metrics"][name] for name in METRICS if name in model["metrics"]}
        # In its own folder, which TensorBoard shows as one row of its table of hyperparameters.
        self.writer.add_hparams(settings, scores, run_name=model["run"], global_step=model["epoch"])
        triplets = self.paths.plot(model["network"], model["activation"], model["run"], "triplets.png")
        if triplets.exists():
            with Image.open(triplets) as image:
                pixels = np.asarray(image.convert("RGB"))
            self.writer.add_image("triplets", pixels, model["epoch"], dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
