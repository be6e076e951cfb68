"""Which images form a batch and how each is cropped, decided for a whole epoch before any image is read."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

import Constants
from utils import seed_for


class BatchSpec(NamedTuple):
    """Describes one batch: which images of a subset it has, and how to crop them."""

    rows: Tensor  # (B,) int64, indices of the images in their subset
    boxes: Tensor | None = None  # (B,4) float32, see deepcolor.data.augment; None: whole images


class TrainingBatches(Sampler):
    """Yields the batches of one epoch: every image `augment_repeats` times, shuffled, each with a random crop.

    The batches depend on the seed and the epoch alone. The last batch can be smaller.

    Args:
        images: number of images in the training set.
        batch_size: images per batch.
        augment_repeats: passes over the images per epoch.
        seed: of the order and the crops.
        crop_area: smallest area of a crop, as a fraction of the image.
    """

    def __init__(self, images: int, batch_size: int, augment_repeats: int, seed: int, crop_area: float) -> None:
        self.images = images
        self.batch_size = batch_size
        self.augment_repeats = augment_repeats
        self.seed = seed
        self.crop_area = crop_area
        self.device = torch.device("cpu")  # of the batches; random numbers are always drawn on the CPU
        self.set_epoch(1)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Selects the epoch, and the batch to start with when an epoch is resumed."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Returns the number of batches in a whole epoch."""
        return math.ceil(self.images * self.augment_repeats / self.batch_size)

    def size(self, number: int) -> int:
        """Returns the number of images in batch `number`, counted from 0."""
        return min(self.batch_size, self.images * self.augment_repeats - number * self.batch_size)

    def __iter__(self) -> Iterator[BatchSpec]:
        generator = torch.Generator().manual_seed(seed_for(self.seed, "epoch", self.epoch))
        order = torch.cat([torch.randperm(self.images, generator=generator) for _ in range(self.augment_repeats)])
        boxes = self._random_boxes(len(order), generator)
        rows, boxes = (tensor.to(self.device).split(self.batch_size)[self.start :] for tensor in (order, boxes))
        return map(BatchSpec, rows, boxes)

    def _random_boxes(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns (count,4) random boxes like those of torchvision's RandomResizedCrop, half of them flipped."""
        area, aspect, top, left, flip = torch.rand(5, count, generator=generator)
        side = Constants.IMAGE_SIZE
        area = self.crop_area + (1 - self.crop_area) * area
        aspect = Constants.CROP_ASPECT ** (2 * aspect - 1)  # width / height, with a uniform logarithm
        height = (side * (area / aspect).sqrt()).clamp(max=side)
        width = (side * (area * aspect).sqrt()).clamp(max=side)
        top, left = top * (side - height), left * (side - width)
        return torch.stack([top, left, height, torch.where(flip < 0.5, -width, width)], dim=1)


class EvaluationBatches(Sampler):
    """Yields every image once, in order and without augmentation.

    A batch has EVALUATION_BATCH images for each of `ranks` processes that evaluate together.
    """

    def __init__(self, images: int, ranks: int = 1) -> None:
        self.images = images
        self.batch_size = Constants.EVALUATION_BATCH * ranks

    def __len__(self) -> int:
        return math.ceil(self.images / self.batch_size)

    def __iter__(self) -> Iterator[BatchSpec]:
        return (BatchSpec(rows) for rows in torch.arange(self.images).split(self.batch_size))


def loader(dataset: Dataset, batches: Iterable[BatchSpec]) -> DataLoader:
    """Returns a DataLoader of the tensors that `dataset.__getitems__` returns for each batch.

    Before the dataset reads a batch, `dataset.prefetch` is called with the batch that follows.
    """
    # __getitems__ returns a whole batch, so there is nothing to collate.
    return DataLoader(
        dataset, batch_sampler=_PrefetchSampler(batches, dataset.prefetch), collate_fn=lambda batch: batch
    )


class _PrefetchSampler(Sampler):
    """Yields the batches, and calls `prefetch` with the next batch before it yields the current one."""

    def __init__(self, batches: Iterable[BatchSpec], prefetch: Callable[[BatchSpec], None]) -> None:
        self.batches = batches
        self.prefetch = prefetch

    def __iter__(self) -> Iterator[BatchSpec]:
        for spec, following in pairwise(chain(self.batches, [None])):
            if following is not None:
                self.prefetch(following)
            yield spec
