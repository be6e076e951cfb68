"""Which images make a batch, and with which crops: decided for whole epochs, before anything is read."""

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

import Constants
from utils import seed_for

if TYPE_CHECKING:
    from deepcolor.data.dataset import LabDataset


class BatchSpec(NamedTuple):
    """One batch, decided but not yet read: which images, and the box of each that is to fill the picture."""

    rows: Tensor  # (B,) int64
    boxes: Tensor | None = None  # (B,4) float32, as `Crops.resized_crop` takes them


class TrainingBatches(Sampler):
    """The draws of one epoch: every image once per copy, in an order that depends on (seed, epoch) alone.

    `set_epoch(epoch, start)` chooses the epoch, and the batch to begin with where one goes on within it.
    """

    def __init__(self, images: int, batch_size: int, augment_repeats: int, seed: int, crop_area: float) -> None:
        self.images = images
        self.batch_size = batch_size
        self.augment_repeats = augment_repeats
        self.seed = seed
        self.crop_area = crop_area
        self.device = torch.device("cpu")
        self.set_epoch(1)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return -(-self.images * self.augment_repeats // self.batch_size)

    def size(self, number: int) -> int:
        """How many images batch `number` has, counted from 0."""
        return min(self.batch_size, self.images * self.augment_repeats - number * self.batch_size)

    def __iter__(self) -> Iterator[BatchSpec]:
        generator = torch.Generator().manual_seed(seed_for(self.seed, "epoch", self.epoch))
        order = torch.cat([torch.randperm(self.images, generator=generator) for _ in range(self.augment_repeats)])
        boxes = self._boxes(len(order), generator)
        draws = (part.to(self.device).split(self.batch_size) for part in (order, boxes))
        return map(BatchSpec, *(parts[self.start :] for parts in draws))

    def _boxes(self, count: int, generator: torch.Generator) -> Tensor:
        """Boxes of random area and aspect, half of them mirrored: torchvision's RandomResizedCrop, for whole epochs."""
        area, aspect, top, left, mirrored = torch.rand(5, count, generator=generator)
        side = Constants.IMAGE_SIZE
        area = self.crop_area + (1 - self.crop_area) * area
        aspect = Constants.CROP_ASPECT ** (2 * aspect - 1)  # width over height, uniform in its logarithm
        height = (side * (area / aspect).sqrt()).clamp(max=side)
        width = (side * (area * aspect).sqrt()).clamp(max=side)
        top, left = top * (side - height), left * (side - width)
        return torch.stack([top, left, height, torch.where(mirrored < 0.5, -width, width)], dim=1)


class EvaluationBatches(Sampler):
    """Every image once, in order, unchanged, in batches of a fixed size for each of the ranks that share them."""

    def __init__(self, images: int, ranks: int = 1) -> None:
        self.images = images
        self.batch_size = Constants.EVALUATION_BATCH * ranks

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[BatchSpec]:
        return (BatchSpec(rows) for rows in torch.arange(self.images).split(self.batch_size))


def loader(images: "LabDataset", batches: Iterable[BatchSpec]) -> DataLoader:
    """A DataLoader of (L (B,1,128,128), ab (B,2,128,128)); `__getitems__` has already made the batch."""
    return DataLoader(images, batch_sampler=_PrefetchSampler(images, batches), collate_fn=_identity)


class _PrefetchSampler(Sampler):
    """Batches, each of which is announced to the images while the one before it is in use."""

    def __init__(self, images: "LabDataset", batches: Iterable[BatchSpec]) -> None:
        self.images = images
        self.batches = batches

    def __iter__(self) -> Iterator[BatchSpec]:
        for draw, following in pairwise(chain(self.batches, [None])):
            if following:
                self.images.prefetch(following)
            yield draw


def _identity(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch
