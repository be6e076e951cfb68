"""From a folder of image files to Lab tensors: split, gather, augmentation."""

import copy
import hashlib
from collections import Counter
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
from deepcolor.data.lab_cache import Entry, LabCache, read_ahead
from utils import UserError


class LabDataset(Dataset):
    """The images of one subset: a batch is one gather from the mapped records.

    `images[i]` is the i-th image as (L (1,128,128) in 0..1, ab (2,128,128) in Lab units); batches come
    from `__getitems__`, which the DataLoader calls with a whole `BatchSpec`. Pickled, it takes along where the
    records are, not what they hold.
    """

    def __init__(self, cache: LabCache, shas: list[str], names: list[str]) -> None:
        self.map_records = cache.map
        self.rows = torch.tensor([cache.row(sha) for sha in shas])
        self.names = names
        self.statistics = np.array([cache.statistics(sha) for sha in shas])  # (N,4): means and mean loss_sum of a, b
        self.open()
        self.averaged = False
        # From a record to L in 0..1, and to a and b in Lab units.
        self.units = torch.tensor([0.01, 1, 1]).view(3, 1, 1) / Constants.LAB_SCALE

    def open(self) -> None:
        """Maps the records anew: no page of them counts as our memory until it is read."""
        self.mapped = self.map_records()
        self.records = torch.from_numpy(self.mapped)
        self.touched = 0

    def __copy__(self) -> "LabDataset":
        """Shares the map, which a copy by way of the pickled state would make anew."""
        images = object.__new__(type(self))
        images.__dict__.update(self.__dict__)
        return images

    def __getstate__(self) -> dict:
        return {**self.__dict__, "records": None, "mapped": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.open()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        lightness, ab = self.__getitems__(BatchSpec(torch.tensor([index])))
        return lightness[0], ab[0]

    def __getitems__(self, draw: BatchSpec) -> tuple[Tensor, Tensor]:
        """L (B,1,128,128) in 0..1 and ab (B,2,128,128) in Lab units, both float32, augmented as drawn.

        Of images that are `averaged`, ab is the mean over the pixels: (B,2,1,1).
        """
        rows = self.rows[draw.rows.to(self.rows.device)]
        boxes = None if draw.boxes is None else draw.boxes.to(rows.device)
        if self.averaged:
            parts = resized_crop(self.records, rows, boxes, channels=1), crop_means(self.records, rows, boxes)
        else:
            parts = resized_crop(self.records, rows, boxes).split([1, 2], dim=1)
        self._release(len(rows))
        return parts[0].mul_(self.units[:1]), parts[1].mul_(self.units[1:])

    def with_mean_ab(self) -> "LabDataset":
        """The same images for who needs no more of ab than its mean, which is had without making every pixel."""
        images = copy.copy(self)
        images.averaged = True
        return images

    def to(self, device: torch.device) -> "LabDataset":
        """The same images, resident on a GPU if they fit into half of its free memory."""
        images = copy.copy(self)
        size = len(self) * self.records[0].nbytes
        if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2:
            images.records = self.records.index_select(0, self.rows).to(device)
            images.rows = torch.arange(len(self), device=device)
            images.units = self.units.to(device)
        return images

    @property
    def streamed(self) -> bool:
        """Whether the images come from the disk as they are needed, and leave the memory again."""
        return len(self) > Constants.MAPPED_IMAGES and not self.records.is_cuda

    def prefetch(self, draw: BatchSpec) -> None:
        """Says which batch comes next: of a set too large to stay in memory, it is fetched meanwhile."""
        if self.streamed:
            read_ahead(self.mapped, self.rows[draw.rows].tolist())

    def _release(self, count: int) -> None:
        """Gives mapped pages back now and then, lest a large set count as our memory. The system's cache keeps them."""
        self.touched += count
        if self.touched > Constants.MAPPED_IMAGES and self.streamed:
            self.open()


@dataclass
class LabDataModule:
    """The three subsets, what identifies them, and what was left out."""

    train: LabDataset
    val: LabDataset
    test: LabDataset
    fingerprint: str
    left_out: dict[str, str] = field(default_factory=dict)  # path -> reason
    cache_damage: str = ""  # what was wrong with the cache, which was then built anew

    @property
    def mean_ab(self) -> tuple[float, float]:
        """The mean a and b of the training images, in Lab units: what the mean-color baseline predicts."""
        a, b = self.train.statistics[:, :2].mean(axis=0)
        return float(a), float(b)

    def with_mean_ab(self) -> "LabDataModule":
        """The same data, of whose ab only the mean over the pixels is given."""
        return replace(self, **{name: getattr(self, name).with_mean_ab() for name in Constants.SUBSETS})

    def to(self, device: torch.device) -> "LabDataModule":
        """The same data, its images resident on a GPU where they fit."""
        subsets = {name: getattr(self, name).to(device) for name in Constants.SUBSETS}
        return replace(self, **subsets)

    @staticmethod
    def load(
        folder: Path, output: Path, progress: Callable[[Iterable, int], Iterable] = lambda iterable, total: iterable
    ) -> "LabDataModule":
        """Reads a folder of photographs, through the cache below `output`.

        Raises UserError if the folder is missing or closed, holds no readable image, or too few to split.
        """
        try:
            if not folder.is_dir():
                raise UserError(f"no images folder at {folder}: give an existing one with --images DIR")
            next(folder.iterdir(), None)
        except OSError as error:
            raise UserError(
                f"cannot look into {folder}: {error.strerror}; see to it, or name another folder with --images"
            ) from error
        # A picture that an earlier run wrote is not a photograph to learn from.
        made_here = [output / name for name in ("outputs_sigmoid", "outputs_tanh", "Plots", "checkpoints")]
        paths = list(find_photos(folder, skip=made_here))
        cache = LabCache(output / ".cache", folder)
        try:
            entries = cache.update(sorted(paths), progress)
        except OSError as error:
            raise UserError(
                f"cannot write the cache below {output}: {error.strerror}; choose another --output"
            ) from error
        readable = {path: entry for path, entry in entries.items() if entry.sha}
        left_out = {path: entry.reason for path, entry in entries.items() if not entry.sha}
        if not readable:
            others = f" ({len(left_out)} could not be read)" if left_out else ""
            raise UserError(
                f"no readable image in {folder}{others}: put photographs there, or name a folder with --images"
            )
        for subset in ("train", "test"):
            mine = {path for path in entries if path.startswith(f"{subset}/")}
            if mine and not mine & readable.keys():
                raise UserError(
                    f"no readable image in {folder / subset}: put photographs there, or remove what is there"
                )
        data = _assemble(cache, split(readable, folder), left_out)
        return replace(data, cache_damage=cache.damage)


def _assemble(cache: LabCache, subsets: dict[str, dict[str, Entry]], left_out: dict[str, str]) -> LabDataModule:
    fingerprint = hashlib.sha256(str(Constants.IMAGE_SIZE).encode())
    images = {}
    for subset in Constants.SUBSETS:
        # In the order of the hashes: neither names nor the listing of the folder can matter.
        pairs = sorted((entry.sha, path) for path, entry in subsets[subset].items())
        shas = [sha for sha, _ in pairs]
        fingerprint.update(f"{subset} {' '.join(shas)}\n".encode())
        images[subset] = LabDataset(cache, shas, picture_names([path for _, path in pairs]))
    return LabDataModule(**images, fingerprint=fingerprint.hexdigest()[:16], left_out=left_out)


def split(entries: dict[str, Entry], folder: Path) -> dict[str, dict[str, Entry]]:
    """Which file belongs to which subset: as the folders train/, val/ and test/ say, else by the hash of the content.

    Raises UserError if a subset would be empty.
    """
    given = {s: {p: e for p, e in entries.items() if p.startswith(f"{s}/")} for s in Constants.SUBSETS}
    if given["train"] and given["test"]:
        if not given["val"]:
            shares = (1 - Constants.VALIDATION_SHARE, Constants.VALIDATION_SHARE)
            given.update(_split_by_hash(given["train"], dict(zip(("train", "val"), shares)), folder))
        return given
    return _split_by_hash(entries, dict(zip(Constants.SUBSETS, Constants.SPLIT)), folder)


def _split_by_hash(entries: dict[str, Entry], shares: dict[str, float], folder: Path) -> dict[str, dict[str, Entry]]:
    """Divides 0..1 by the shares; the hash of a file's content, read as a number there, says where it belongs."""
    contents = sorted({entry.sha for entry in entries.values()})
    if len(contents) < len(shares):
        raise UserError(
            f"{folder} holds {len(contents)} different readable image(s), too few for {', '.join(shares)}: "
            f"at least {len(shares)} are needed"
        )
    bounds = np.cumsum(list(shares.values()))[:-1]
    names = list(shares)
    home = {sha: names[int(np.searchsorted(bounds, int(sha[:16], 16) / 2**64, side="right"))] for sha in contents}
    for name in names:
        if name not in home.values():
            fullest = max(names, key=lambda n: sum(subset == n for subset in home.values()))
            home[next(sha for sha in contents if home[sha] == fullest)] = name
    return {name: {path: e for path, e in entries.items() if home[e.sha] == name} for name in names}


def picture_names(paths: list[str]) -> list[str]:
    """A name without ending for each path, all different and fit for any file system: cats/tom.jpg is "cats_tom"."""
    plain = ["".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in _stem(path)) for path in paths]
    taken = Counter(plain)
    return [
        f"{name}-{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:8]}" if taken[name] > 1 else name
        for name, path in zip(plain, paths)
    ]


def _stem(path: str) -> str:
    """The path below its subset, without the ending: at most 100 bytes of it, which leaves room for a suffix."""
    relative = Path(path)
    if relative.parts[0] in Constants.SUBSETS and len(relative.parts) > 1:
        relative = relative.relative_to(relative.parts[0])
    name = str(relative.with_suffix("")).replace("/", "_")
    return name.encode(errors="surrogateescape")[-100:].decode(errors="ignore")
