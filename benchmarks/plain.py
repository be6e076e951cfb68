"""The plain side of throughput.py: the two networks, trained as most scripts do it.

A dataset whose `__getitem__` opens, decodes, resizes and converts one file, again in every epoch; torchvision's
augmentation of one image at a time; PyTorch's own DataLoader; float32, the default memory format, Adam with its
defaults; `loss.item()` after each step; one process with all threads; every combination from epoch 0. The networks are
the package's, so that only the training differs.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sides import SideProcess
from skimage.color import rgb2lab
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import Constants
from Colorizer import Colorizer
from Regressor import Regressor

_LOADER_WORKERS = {"cpu": (0, 2), "cuda": (8,)}  # numbers of loader workers to try; the fastest is used


class PhotoFolder(Dataset):
    """`dataset[i]` returns L (1,128,128) in 0..1 and ab (2,128,128) in Lab units of a file."""

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


class PlainProcess(SideProcess):
    """Trains one network the plain way.

    Args:
        feature_maps: of the network.
        paths: subset -> files.
        device: of the network.
    """

    def __init__(self, feature_maps: int | tuple[int, ...], paths: dict[str, list[Path]], device: torch.device) -> None:
        self.feature_maps, self.paths, self.device = feature_maps, paths, device
        self.steps = math.ceil(len(paths["train"]) / Constants.BATCH_SIZE)

    def warm_up(self, network: str, seconds: float) -> float:
        self.regresses = network == "regressor"
        model: nn.Module = Regressor(self.feature_maps) if self.regresses else Colorizer(self.feature_maps)
        self.model = model.to(self.device)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
        loaders = {workers: self._build_loaders(workers) for workers in _LOADER_WORKERS[self.device.type]}
        self.tried = {}
        for workers in loaders:
            self.loaders = loaders[workers]
            self.tried[workers] = common.per_call(self.train_epoch, self.device, seconds)
        fastest = min(self.tried, key=self.tried.__getitem__)
        self.loaders = loaders[fastest]
        return self.tried[fastest]

    def _build_loaders(self, workers: int) -> dict[str, DataLoader]:
        datasets = {
            "train": PhotoFolder(self.paths["train"], augment=True),
            "unaugmented": PhotoFolder(self.paths["train"], augment=False),
            "val": PhotoFolder(self.paths["val"], augment=False),
        }
        return {
            name: DataLoader(
                dataset,
                batch_size=Constants.BATCH_SIZE,
                shuffle=name != "val",
                num_workers=workers,
                multiprocessing_context="fork" if workers else None,  # the default of a script on Linux
                persistent_workers=workers > 0,  # the faster choice: started once, not in every epoch
                pin_memory=self.device.type == "cuda",
            )
            for name, dataset in datasets.items()
        }

    def train_epoch(self) -> None:
        self.model.train()
        for batch in self.loaders["train"]:
            self.step(*batch)
        self.validate()

    def batches(self, augment: bool) -> DataLoader:
        self.model.train()
        return self.loaders["train" if augment else "unaugmented"]

    def step(self, lightness: Tensor, ab: Tensor) -> float:
        """Takes one step of Adam and returns the loss of the batch, summed over its images."""
        loss = self._loss(lightness.to(self.device), ab.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item() * len(lightness)

    @torch.no_grad()
    def validate(self) -> float:
        """Returns the mse on the validation images."""
        self.model.eval()
        total = 0.0
        for lightness, ab in self.loaders["val"]:
            total += self._loss(lightness.to(self.device), ab.to(self.device)).item() * len(lightness)
        return total / len(self.paths["val"])

    def _loss(self, lightness: Tensor, ab: Tensor) -> Tensor:
        target = (ab + 128) / 255
        if self.regresses:
            target = target.mean(dim=(2, 3))
        return F.mse_loss(self.model(lightness), target)

    def loader_workers(self) -> dict[int, float]:
        """Returns the seconds of an epoch for each number of loader workers that was tried."""
        return self.tried

    def flops(self) -> float:
        """Returns the floating-point operations of a training step per image, forward and backward."""
        batch, side = Constants.BATCH_SIZE, Constants.IMAGE_SIZE
        lightness, ab = (torch.zeros(batch, channels, side, side, device=self.device) for channels in (1, 2))
        with FlopCounterMode(display=False) as counter:
            self._loss(lightness, ab).backward()
        return counter.get_total_flops() / batch
