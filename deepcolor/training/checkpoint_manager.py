"""The checkpoints of one training run, and the best model of a sweep."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from deepcolor.common.files import wait_for_lock
from deepcolor.training import checkpoint
from deepcolor.training.config import TrainingRun, default_of
from deepcolor.training.paths import RunPaths
from utils import UserError


class CheckpointManager:
    """Finds, reads and writes the models and the state of one training run.

    Only files of the same training run count: same network, hyperparameters and images, compared by `fingerprint`.

    Args:
        paths: the output folder.
        training_run: whose checkpoints these are.
        fingerprint: of the training run on these images.
        log: called with a line about each file that is not used.
        ignore_before: files older than this time (seconds since the epoch) do not count; for `--restart`.
    """

    def __init__(
        self,
        paths: RunPaths,
        training_run: TrainingRun,
        fingerprint: dict[str, object],
        log: Callable[[str], None] = lambda line: None,
        ignore_before: float = 0.0,
    ) -> None:
        self.paths = paths
        self.training_run = training_run
        self.fingerprint = fingerprint
        self.log = log
        self.ignore_before = ignore_before
        self.logged_changes = False

    def count_finished(self) -> int:
        """Returns how many snapshots are finished, counted from the first one up to the first gap."""
        for number, epoch in enumerate(self.training_run.snapshot_epochs):
            path = self.paths.checkpoint(self.training_run, epoch)
            model = self._load(path, checkpoint.load_model)
            if model is None:
                return number
            if (model["run"], model["epoch"]) != (path.stem, epoch):
                self.log(f"{path} is the model of another run, {model['run']}: not used")
                return number
        return len(self.training_run.snapshot_epochs)

    def is_finished(self) -> bool:
        return self.count_finished() == len(self.training_run.snapshot_epochs)

    def save_model(self, model: dict, epoch: int) -> Path:
        """Writes a finished model, and keeps the best model of the sweep up to date. Raises OSError."""
        path = self.paths.checkpoint(self.training_run, epoch)
        checkpoint.save(model, path)
        _update_best(self.paths, model)
        return path

    def load_states(self) -> list[dict]:
        """Returns the saved states, newest first. The second one serves if the first one is damaged."""
        newest = self.paths.state(self.training_run)
        version_1 = newest.parent.with_name(".trajectories") / newest.name
        candidates = [path for state in (newest, version_1) for path in (state, _previous(state))]
        states = (self._load(path, checkpoint.load_state) for path in candidates)
        return [state for state in states if state is not None]

    def save_state(self, state: dict) -> None:
        """Writes the state, and keeps the one before it. Raises OSError."""
        newest = self.paths.state(self.training_run)
        if newest.exists():
            os.replace(newest, _previous(newest))
        content = {"format_version": checkpoint.FORMAT_VERSION, **state, "fingerprint": self.fingerprint}
        checkpoint.save(content, newest)

    def _load(self, path: Path, load: Callable[[Path], dict]) -> dict | None:
        """Returns the content of a file of the same training run, or None. Logs why a file is not used."""
        if not os.path.lexists(path) or path.lstat().st_mtime < self.ignore_before:
            return None
        try:
            content = load(path)
        except UserError as error:
            self.log(f"{error}: not used")
            return None
        earlier = content["fingerprint"]
        changed = [key for key, value in self.fingerprint.items() if earlier.get(key, default_of(key)) != value]
        if changed and not self.logged_changes:
            self.log(f"{self.training_run}: starts from the beginning, changed: {', '.join(changed)}")
            self.logged_changes = True
        return None if changed else content


def write_best(paths: RunPaths, models: Sequence[dict]) -> None:
    """Writes best_regressor.pt and best_colorizer.pt from models that `find_models` returned. Raises OSError."""
    for network in {model["network"] for model in models}:
        ranked = [model for model in models if model["network"] == network and _is_rankable(model)]
        if ranked:
            best = min(ranked, key=_val_mse)
            saved = _load_best(paths.best(network))
            if saved is None or any(saved[key] != best[key] for key in ("metrics", "fingerprint")):
                checkpoint.save(checkpoint.load_model(paths.root / best["metrics"]["checkpoint"]), paths.best(network))


def _update_best(paths: RunPaths, model: dict) -> None:
    """Replaces the best model by this one if its validation error is lower, or if the best is of other images."""
    if not _is_rankable(model):
        return
    path = paths.best(model["network"])
    with wait_for_lock(path.with_name(f".{path.stem}.lock")):
        best = _load_best(path)
        same_images = best and best["fingerprint"]["images"] == model["fingerprint"]["images"]
        if not (same_images and _is_rankable(best) and _val_mse(best) <= _val_mse(model)):
            checkpoint.save(model, path)


def _load_best(path: Path) -> dict | None:
    """Returns the best model, or None if the file is missing or damaged."""
    try:
        return checkpoint.load_model(path)
    except UserError:
        return None


def _is_rankable(model: dict) -> bool:
    return model["metrics"]["status"] == "done" and math.isfinite(_val_mse(model))


def _val_mse(model: dict) -> float:
    return model["metrics"]["val_mse"]


def _previous(path: Path) -> Path:
    return path.with_suffix(".previous.pt")
