"""What a training run leaves on the disk, and what an earlier run has left of it."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from deepcolor.training import checkpoint
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainingRun
from utils import UserError


class CheckpointManager:
    """The files of one training run: its state, from which it goes on, and a model for each snapshot.

    Only files of the very same training count: same network, settings and images, which `fingerprint` tells.
    """

    def __init__(
        self,
        output: RunPaths,
        training_run: TrainingRun,
        fingerprint: dict[str, object],
        log: Callable[[str], None],
        restart: bool,
    ) -> None:
        self.output = output
        self.training_run = training_run
        self.fingerprint = fingerprint
        self.log = log
        self.restart = restart  # nothing that lies there counts
        self.said_anew = False

    def finished(self) -> int:
        """How many of the snapshots are finished, from the first on without a gap."""
        for number, epoch in enumerate(self.training_run.snapshot_epochs):
            path = self.output.checkpoint(self.training_run, epoch)
            model = self._left_over(path, checkpoint.load_model)
            if model is None:
                return number
            if (model["run"], model["epoch"]) != (path.stem, epoch):
                self.log(f"{path} is the model of another run, {model['run']}: not used")
                return number
        return len(self.training_run.snapshot_epochs)

    def save_model(self, model: dict, epoch: int) -> None:
        """Raises OSError."""
        checkpoint.save(model, self.output.checkpoint(self.training_run, epoch))

    def states(self) -> list[dict]:
        """The saved states, newest first: the second is there for the case that the first is damaged."""
        newest = self.output.state(self.training_run)
        version_1 = newest.parent.with_name(".trajectories") / newest.name  # where version 1.0 kept it
        paths = (path for state in (newest, version_1) for path in (state, _previous(state)))
        found = (self._left_over(path, checkpoint.load_state) for path in paths)
        return [state for state in found if state is not None]

    def save_state(self, state: dict) -> None:
        """Saves the state, and keeps the one before. Raises OSError."""
        newest = self.output.state(self.training_run)
        if newest.exists():
            os.replace(newest, _previous(newest))
        checkpoint.save({**state, "fingerprint": self.fingerprint}, newest)

    def _left_over(self, path: Path, load: Callable[[Path], dict]) -> dict | None:
        """What an earlier run left at `path`, if it is of this very training; says what is wrong with it if not."""
        if self.restart or not os.path.lexists(path):
            return None
        try:
            content = load(path)
        except UserError as error:
            self.log(f"{error}: not used")
            return None
        earlier = content["fingerprint"]
        changed = [key for key, value in self.fingerprint.items() if earlier.get(key) != value]
        if changed and not self.said_anew:
            self.log(f"{self.training_run.task} {self.training_run.name}: starts anew, changed: {', '.join(changed)}")
            self.said_anew = True
        return None if changed else content


def restore_optimizer(optimizer: torch.optim.Adam, moments: dict[int, dict[str, torch.Tensor]], begun: bool) -> None:
    """Gives Adam back the saved moments of its parameters, and nothing else of what a file may say.

    `begun`: whether a step was taken, before which there are none. Raises ValueError or KeyError without the moments of
    every parameter, in its shape, which nothing else checks before they are used.
    """
    parameters = optimizer.param_groups[0]["params"]
    if moments.keys() != (set(range(len(parameters))) if begun else set()):
        raise ValueError("not the moments of these parameters")
    for number, moment in moments.items():
        shapes = {name: moment[name].shape for name in ("step", "exp_avg", "exp_avg_sq")}
        like = parameters[number].shape
        if shapes != {"step": torch.Size(), "exp_avg": like, "exp_avg_sq": like}:
            raise ValueError(f"moments of other shapes: {shapes}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def count_unfinished_combinations(training_runs: Iterable[TrainingRun], output: RunPaths, fingerprint: str) -> int:
    """How many combinations of a plan, on the images with that fingerprint, no run has finished yet."""
    stores = (CheckpointManager(output, t, t.fingerprint(fingerprint), _no_log, restart=False) for t in training_runs)
    return sum(len(store.training_run.snapshot_epochs) - store.finished() for store in stores)


def _no_log(line: str) -> None: ...


def _previous(path: Path) -> Path:
    return path.with_suffix(".previous.pt")
