"""The plain way to train the two networks, to compare the package with: what most scripts do.

A dataset whose `__getitem__` opens, decodes, resizes and converts one file, again in every epoch; torchvision's
augmentation of one picture at a time; PyTorch's own DataLoader; float32, the default memory format, Adam as it
comes; `loss.item()` after each step; one process with all threads; every combination from epoch 0. The networks are
the package's, so that what is compared is the training.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path

import common
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import Constants
from Colorizer import Colorizer
from Regressor import Regressor

_PREFETCHED = 32  # batches held to measure the step alone
_TRIES = 3  # of each number of loader workers, in turns


class PhotoFolder(Dataset):
    """(L (1,128,128) in 0..1, ab (2,128,128) in Lab units) of one file after the other."""

    def __init__(self, paths: Sequence[Path], augment: bool) -> None:
        self.paths = paths
        side, aspect = Constants.IMAGE_SIZE, Constants.CROP_ASPECT
        steps: list = [transforms.Resize(side), transforms.CenterCrop(side)]
        if augment:
            scale, ratio = (Constants.CROP_AREA, 1.0), (1 / aspect, aspect)
            steps += [transforms.RandomResizedCrop(side, scale, ratio), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[index]) as image:
            rgb = self.transform(image.convert("RGB"))
        lab = torch.from_numpy(rgb2lab(np.asarray(rgb)).astype(np.float32)).permute(2, 0, 1)
        return lab[:1] / 100, lab[1:]


class PlainTraining:
    """One network in training. An epoch is a pass over the training images and the mse on the validation images."""

    def __init__(
        self,
        network: str,
        feature_maps: int | tuple[int, ...],
        paths: dict[str, list[Path]],
        workers: int,
        device: torch.device,
    ) -> None:
        self.regresses = network == "regressor"
        self.paths, self.workers, self.device = paths, workers, device
        self.model: nn.Module = Regressor(feature_maps) if self.regresses else Colorizer(feature_maps)
        self.model.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001)
        self.training_batches = self.loader("train", augment=True)
        self.validation_batches = self.loader("val", augment=False)

    def loader(self, subset: str, augment: bool) -> DataLoader:
        return DataLoader(
            PhotoFolder(self.paths[subset], augment),
            batch_size=Constants.BATCH_SIZE,
            shuffle=subset == "train",
            num_workers=self.workers,
            persistent_workers=self.workers > 0,  # in the plain way's favor: started once, not in every epoch
            pin_memory=self.device.type == "cuda",
        )

    def loss(self, lightness: Tensor, ab: Tensor) -> Tensor:
        target = (ab + 128) / 255
        if self.regresses:
            target = target.mean(dim=(2, 3))
        return F.mse_loss(self.model(lightness), target)

    def epoch(self) -> tuple[float, float]:
        """Trains for one epoch; returns the mse on the training and on the validation images."""
        self.model.train()
        total = sum(self.step(*batch) for batch in self.training_batches)
        return total / len(self.paths["train"]), self.validate()

    def step(self, lightness: Tensor, ab: Tensor) -> float:
        """One step of Adam; returns the batch's loss, summed over its images."""
        loss = self.loss(lightness.to(self.device), ab.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item() * len(lightness)

    @torch.no_grad()
    def validate(self) -> float:
        self.model.eval()
        total = 0.0
        for lightness, ab in self.validation_batches:
            total += self.loss(lightness.to(self.device), ab.to(self.device)).item() * len(lightness)
        return total / len(self.paths["val"])

    @functools.cached_property
    def unaugmented_batches(self) -> DataLoader:
        return self.loader("train", augment=False)

    def parts(self, seconds: float) -> dict[str, float]:
        """Seconds per epoch of what an epoch consists of, each measured alone."""
        measure = functools.partial(common.per_call, device=self.device, seconds=seconds)
        unaugmented = measure(lambda: [None for _ in self.unaugmented_batches])
        augmented = measure(lambda: [None for _ in self.training_batches])
        batches = [[tensor.to(self.device) for tensor in batch] for batch in islice(self.training_batches, _PREFETCHED)]
        self.model.train()
        steps = measure(lambda: [self.step(*batch) for batch in batches])
        return {
            "loader": unaugmented,
            "augmentation": augmented - unaugmented,
            "step": steps * len(self.training_batches) / len(batches),
            "validation": measure(self.validate),
        }

    def flops(self) -> float:
        """Floating-point operations of a training step per image, forward and backward."""
        lightness, ab = (torch.zeros(Constants.BATCH_SIZE, maps, 128, 128, device=self.device) for maps in (1, 2))
        with FlopCounterMode(display=False) as counter:
            self.loss(lightness, ab).backward()
        return counter.get_total_flops() / Constants.BATCH_SIZE


@dataclass(frozen=True)
class _Setup:
    """All that the process of the plain way needs to know."""

    feature_maps: int | tuple[int, ...]
    paths: dict[str, list[Path]]
    device: torch.device
    workers: tuple[int, ...]  # numbers of loader workers to choose from: the fastest is taken


class Plain:
    """The plain way in a process of its own, which trains nothing but what it is asked to. A context manager."""

    name = "plain"
    at_once = 1

    def __init__(
        self,
        feature_maps: int | tuple[int, ...],
        paths: dict[str, list[Path]],
        device: torch.device,
        workers: tuple[int, ...],
    ) -> None:
        context = get_context("spawn")
        self.connection, other = context.Pipe()
        # Not a daemon: those may not have the children that a DataLoader starts.
        self.process = context.Process(target=_serve, args=(other, _Setup(feature_maps, paths, device, workers)))
        self.process.start()
        other.close()

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()
        self.process.join(10)
        self.process.terminate()
        self.process.join()

    def _ask(self, *order: object) -> object:
        self.connection.send(order)
        try:
            return self.connection.recv()
        except EOFError:
            raise SystemExit("throughput.py: the process of the plain way has died") from None

    def warm_up(self, network: str, seconds: float) -> float:
        """Gets ready, off the clock, and returns the seconds of an epoch, roughly."""
        return self._ask("warm_up", network, seconds)

    def epoch_seconds(self, network: str, epochs: int) -> float:
        return self._ask("epoch_seconds", network, epochs)

    def parts(self, network: str, seconds: float) -> dict[str, float]:
        return self._ask("parts", network, seconds)

    def workers(self, network: str) -> dict[int, float]:
        """Seconds of an epoch for each number of loader workers that was tried; the least was taken."""
        return self._ask("workers", network)

    def flops(self, network: str) -> float:
        return self._ask("flops", network)

    def memory(self) -> list[dict[str, int]]:
        """The peak memory of each process, in bytes."""
        return self._ask("memory")


class _Served:
    """What the process of the plain way does when it is asked."""

    def __init__(self, setup: _Setup) -> None:
        self.setup = setup
        self.trainings: dict[str, PlainTraining] = {}
        self.tried: dict[str, dict[int, float]] = {}

    def warm_up(self, network: str, seconds: float) -> float:
        self.trainings.clear()  # with its loader workers
        setup = self.setup
        candidates = {
            workers: PlainTraining(network, setup.feature_maps, setup.paths, workers, setup.device)
            for workers in setup.workers
        }
        tried = dict.fromkeys(candidates, math.inf)
        for _ in range(_TRIES):
            for workers, training in candidates.items():
                tried[workers] = min(tried[workers], common.per_call(training.epoch, setup.device, seconds / _TRIES))
        best = min(tried, key=tried.__getitem__)
        self.trainings[network], self.tried[network] = candidates[best], tried
        return tried[best]

    def workers(self, network: str) -> dict[int, float]:
        return self.tried[network]

    def epoch_seconds(self, network: str, epochs: int) -> float:
        began = common.clock(self.setup.device)
        for _ in range(epochs):
            self.trainings[network].epoch()
        return (common.clock(self.setup.device) - began) / epochs

    def parts(self, network: str, seconds: float) -> dict[str, float]:
        return self.trainings[network].parts(seconds)

    def flops(self, network: str) -> float:
        return self.trainings[network].flops()

    def memory(self) -> list[dict[str, int]]:
        return common.peak_memory(self.setup.device, with_children=True)


def _serve(connection: Connection, setup: _Setup) -> None:
    """The life of the process: answers until the other end is closed."""
    set_start_method("fork", force=True)  # of loader workers, as in a script: this process itself was spawned
    served = _Served(setup)
    while True:
        try:
            name, *arguments = connection.recv()
        except (EOFError, KeyboardInterrupt):
            served.trainings.clear()  # with their loader workers
            return
        connection.send(getattr(served, name)(*arguments))
