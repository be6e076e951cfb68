"""Where everything below `--output` lies."""

import contextlib
import shutil
from pathlib import Path

from deepcolor.common.files import check_writable, remove_abandoned, try_lock, write_atomically
from deepcolor.training.config import TrainingRun


class RunPaths:
    """The files and folders below `--output`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plots = root / "Plots"
        self.checkpoints = root / "checkpoints"
        self.cache = root / ".cache"

    def pictures(self, activation: str, kind: str, run: str) -> Path:
        """The folder of a run's "gray" or "color" pictures."""
        return self.root / f"outputs_{activation}" / kind / run

    def plot(self, network: str, activation: str, run: str, what: str) -> Path:
        """A file of one run below Plots/: `what` is "loss.png", "triplets.png" or "means.csv"."""
        prefix = f"{activation}_" if activation else ""
        return self.plots / network.capitalize() / f"{prefix}{run}_{what}"

    def checkpoint(self, training_run: TrainingRun, epoch: int) -> Path:
        """The model of one combination."""
        return self.checkpoints / training_run.task / f"{training_run.run_name(epoch)}.pt"

    def state(self, training_run: TrainingRun) -> Path:
        """The model with its optimizer, from which a training run continues."""
        return self.checkpoints / training_run.task / ".state" / f"{training_run.name}.pt"

    def best(self, network: str) -> Path:
        """The model with the lowest validation error of all combinations."""
        return self.checkpoints / f"best_{network}.pt"

    def initial_weights(self, content_hash: str) -> Path:
        """The copy of the checkpoint from which training starts; `content_hash` is that of the file."""
        return self.checkpoints / f"init_{content_hash}.pt"

    def keep_initial_weights(self, path: Path, content_hash: str) -> None:
        """Copies the checkpoint from which training starts, so that training continues without it. Raises OSError."""
        kept = self.initial_weights(content_hash)
        if not kept.exists():
            write_atomically(kept, lambda temporary: shutil.copyfile(path, temporary))

    def claim(self, training_run: TrainingRun) -> contextlib.AbstractContextManager[bool]:
        """Yields whether this process may train the run, which is whether no other process holds its lock.

        The system releases the lock when its holder dies. Raises OSError.
        """
        return try_lock(self.state(training_run).with_suffix(".lock"))

    def precision(self, default: str) -> str:
        """Returns what --precision auto means for this folder: what it meant when training began here."""
        try:
            return self._precision.read_text().strip() or default
        except OSError:  # missing; `prepare` reports a folder that cannot be used
            return default

    @property
    def _precision(self) -> Path:
        return self.checkpoints / ".precision"

    def prepare(self, precision: str) -> None:
        """Creates the folders and checks that they can be written, before hours of training.

        In a new folder, keeps the meaning of --precision auto, so that a run can continue on another machine. Raises
        UserError or OSError.
        """
        for folder in (self.plots, self.checkpoints, self.cache):
            check_writable(folder, self.root)
        with contextlib.suppress(FileExistsError), open(self._precision, "x") as file:
            file.write(precision)
        for folder in (self.plots, self.checkpoints, self.cache, *self.root.glob("outputs_*")):
            for each in (folder, *folder.rglob("*/")):
                remove_abandoned(each)
