"""From a folder of photographs to datasets of Lab tensors."""

import copy
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import Constants
from deepcolor.data.augment import crop_means, resized_crop
from deepcolor.data.batches import BatchSpec
from deepcolor.data.image_io import find_photos
from deepcolor.data.lab_cache import RECORD_BYTES, LabCache
from deepcolor.data.split import picture_names, split
from utils import UserError, free_gpu_memory

_UPLOAD_CHUNK = 1024  # images copied to GPU memory at a time
# Folders below --output that hold pictures made by this program.
_GENERATED = ("outputs_sigmoid", "outputs_tanh", "Plots", "checkpoints")


class LabDataset(Dataset):
    """The images of one subset as Lab tensors.

    `dataset[i]` returns L (1,128,128) in 0..1 and ab (2,128,128) in Lab units. A DataLoader passes a whole BatchSpec
    to `__getitems__`, which makes the batch in one indexing operation.

    Pickling stores the path of the records, not the pixels. Copies share one memory map.

    Attributes:
        names: the name of each image in output files.
        rows: (N,) int64, the index of each image in `records`.
        statistics: (N,4) float64, the means of a, b, a squared and b squared of each image, in Lab units.
    """

    def __init__(self, cache: LabCache, hashes: list[str], names: list[str]) -> None:
        self.names = names
        self.rows = torch.tensor([cache.row(content_hash) for content_hash in hashes])
        self.statistics = np.array([cache.statistics(content_hash) for content_hash in hashes])
        self._map = cache.map_records()
        self._resident: Tensor | None = None  # the records of this subset alone, in GPU memory
        self._crop_device: torch.device | None = None  # to which batches are copied before they are cropped
        self._mean_ab = False
        self._images_read = 0  # since the records were mapped

    @property
    def records(self) -> Tensor:
        """(M,3,128,128) int16: Lab in steps of 1/256, mapped from disk or in GPU memory."""
        return torch.from_numpy(self._map.array) if self._resident is None else self._resident

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        lightness, ab = self.__getitems__(BatchSpec(torch.tensor([index])))
        return lightness[0], ab[0]

    def __getitems__(self, spec: BatchSpec) -> tuple[Tensor, Tensor]:
        """Returns L (B,1,128,128) in 0..1 and ab (B,2,128,128) in Lab units, both float32.

        After `with_mean_ab`, ab is (B,2,1,1): the mean over the pixels.
        """
        records = self.records
        rows = self.rows[spec.rows.to(self.rows.device)]
        if self._crop_device is not None:
            records = records[rows]
            pinned = records.pin_memory() if self._crop_device.type == "cuda" else records
            records = pinned.to(self._crop_device, non_blocking=True)
            rows = torch.arange(len(rows), device=self._crop_device)
        boxes = None if spec.boxes is None else spec.boxes.to(rows.device)
        if self._mean_ab:
            lightness, ab = resized_crop(records, rows, boxes, channels=1), crop_means(records, rows, boxes)
        else:
            lightness, ab = resized_crop(records, rows, boxes).split([1, 2], dim=1)
        self._images_read += len(rows)
        if self._streams and self._images_read > Constants.MAPPED_IMAGES:
            self._map.remap()
            self._images_read = 0
        return lightness.mul_(0.01 / Constants.LAB_SCALE), ab.mul_(1 / Constants.LAB_SCALE)

    def prefetch(self, spec: BatchSpec) -> None:
        """Starts reading the images of a batch from disk, if the dataset is too large to stay in memory."""
        if self._streams:
            self._map.prefetch(self.rows[spec.rows].tolist())

    def with_mean_ab(self) -> "LabDataset":
        """Returns a copy whose ab is the mean over the pixels, which is faster than making every pixel."""
        images = copy.copy(self)
        images._mean_ab = True
        return images

    def to(self, device: torch.device) -> "LabDataset":
        """Returns a copy for training on a device.

        On a CUDA device, the images are in its memory if they fit into half of what is free there. Otherwise batches
        are copied to it as 16-bit integers and cropped there.
        """
        images = copy.copy(self)
        if device.type != "cuda":
            return images
        if len(self) * RECORD_BYTES < free_gpu_memory(device) / 2:
            images._resident = torch.empty((len(self), *self.records.shape[1:]), dtype=torch.int16, device=device)
            for part in torch.arange(len(self)).split(_UPLOAD_CHUNK):  # no second copy of all images in main memory
                images._resident[part[0] : part[-1] + 1] = self.records[self.rows[part]].to(device)
            images.rows = torch.arange(len(self), device=device)
        else:
            images._crop_device = device
        return images

    @property
    def _streams(self) -> bool:
        """Whether the dataset is too large to stay in memory: images are read from disk and released again."""
        return len(self) > Constants.MAPPED_IMAGES and self._resident is None


@dataclass
class LabDataModule:
    """The training, validation and test sets of a folder of photographs.

    Attributes:
        fingerprint: identifies the content and the split of the images.
        left_out: path -> reason for each file that could not be read.
        cache_damage: why an existing cache was not used, or "".
    """

    train: LabDataset
    val: LabDataset
    test: LabDataset
    fingerprint: str
    left_out: dict[str, str] = field(default_factory=dict)
    cache_damage: str = ""

    @property
    def mean_ab(self) -> tuple[float, float]:
        """The mean a and b of the training images in Lab units, which the mean-color baseline predicts."""
        a, b = self.train.statistics[:, :2].mean(axis=0)
        return float(a), float(b)

    def with_mean_ab(self) -> "LabDataModule":
        """Applies `LabDataset.with_mean_ab` to all subsets."""
        return self._map_subsets(LabDataset.with_mean_ab)

    def to(self, device: torch.device) -> "LabDataModule":
        """Applies `LabDataset.to` to all subsets."""
        return self._map_subsets(lambda images: images.to(device))

    def _map_subsets(self, function: Callable[[LabDataset], LabDataset]) -> "LabDataModule":
        return replace(self, **{subset: function(getattr(self, subset)) for subset in Constants.SUBSETS})

    @staticmethod
    def load(
        folder: Path, output: Path, progress: Callable[[Iterable, int], Iterable] = lambda iterable, total: iterable
    ) -> "LabDataModule":
        """Reads a folder of photographs.

        Args:
            folder: searched recursively.
            output: the folder of the cache, and of pictures that are not read because this program made them.
            progress: `progress(iterable, total)` returns an iterable over the same items that displays progress.

        Raises:
            UserError: the folder cannot be read or holds too few readable images, or the cache cannot be written.
        """
        _check_readable(folder)
        cache = LabCache(output / ".cache", folder)
        paths = sorted(find_photos(folder, skip=[output / name for name in _GENERATED]))
        try:
            hashes, left_out = cache.update(paths, progress)
        except OSError as error:
            raise UserError(
                f"cannot write the cache below {output}: {error.strerror}; choose another folder with --output"
            ) from error
        _check_not_empty(folder, hashes, left_out)
        fingerprint = hashlib.sha256(str(Constants.IMAGE_SIZE).encode())
        datasets = {}
        for subset, members in split(hashes, folder).items():
            # In the order of the hashes, so that names and the order of the listing do not matter.
            pairs = sorted((content_hash, path) for path, content_hash in members.items())
            ordered = [content_hash for content_hash, _ in pairs]
            fingerprint.update(f"{subset} {' '.join(ordered)}\n".encode())
            datasets[subset] = LabDataset(cache, ordered, picture_names([path for _, path in pairs]))
        return LabDataModule(
            **datasets, fingerprint=fingerprint.hexdigest()[:16], left_out=left_out, cache_damage=cache.damage
        )


def _check_readable(folder: Path) -> None:
    """Raises UserError if the folder does not exist or cannot be listed."""
    try:
        if not folder.is_dir():
            raise UserError(f"no images folder at {folder}: choose an existing folder with --images")
        next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(
            f"cannot read the folder {folder}: {error.strerror}; change its permissions or choose another with --images"
        ) from error


def _check_not_empty(folder: Path, readable: dict[str, str], unreadable: dict[str, str]) -> None:
    """Raises UserError if there is no readable image, or if train/ or test/ holds only unreadable ones."""
    if not readable:
        count = f" ({len(unreadable)} could not be read)" if unreadable else ""
        raise UserError(
            f"no readable image in {folder}{count}: put photographs there or choose another folder with --images"
        )
    for subset in ("train", "test"):
        prefix = f"{subset}/"
        if any(p.startswith(prefix) for p in unreadable) and not any(p.startswith(prefix) for p in readable):
            raise UserError(
                f"no readable image in {folder / subset}: put photographs there or remove the unreadable files"
            )
