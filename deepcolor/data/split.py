"""Assigns photographs to the training, validation and test sets, and names them."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

import Constants
from deepcolor.common.files import name_key
from utils import UserError

# Names that mean devices on Windows, with any ending.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def split(hashes: dict[str, str], folder: Path) -> dict[str, dict[str, str]]:
    """Splits the files of a folder into subsets.

    If `train/` and `test/` hold images, they are used as they are, and so is `val/`. If `val/` holds none, a tenth of
    `train/` becomes the validation set. Otherwise the hash of each file's content decides.

    Args:
        hashes: path -> SHA-256 of the content, for each file. Paths are relative to the folder.
        folder: named in errors.

    Returns:
        subset -> path -> hash.

    Raises:
        UserError: a subset would be empty.
    """
    given = {s: {p: h for p, h in hashes.items() if p.startswith(f"{s}/")} for s in Constants.SUBSETS}
    if not (given["train"] and given["test"]):
        return _split_by_hash(hashes, dict(zip(Constants.SUBSETS, Constants.SPLIT)), folder)
    if not given["val"]:
        shares = {"train": 1 - Constants.VALIDATION_SHARE, "val": Constants.VALIDATION_SHARE}
        given |= _split_by_hash(given["train"], shares, folder)
    return given


def _split_by_hash(hashes: dict[str, str], shares: dict[str, float], folder: Path) -> dict[str, dict[str, str]]:
    """Divides the interval 0..1 by the shares. A hash, read as a number in that interval, gives the subset.

    A subset that would be empty gets one photograph of the largest subset.
    """
    contents = sorted(set(hashes.values()))
    if len(contents) < len(shares):
        raise UserError(
            f"{folder} holds {len(contents)} different readable image(s), too few for {', '.join(shares)}: "
            f"at least {len(shares)} are needed"
        )
    subsets = list(shares)
    bounds = np.cumsum(list(shares.values()))[:-1]
    places = {h: subsets[int(np.searchsorted(bounds, int(h[:16], 16) / 2**64, side="right"))] for h in contents}
    for subset in subsets:
        if subset not in places.values():
            sizes = Counter(places.values())
            largest = max(subsets, key=lambda name: sizes[name])
            places[next(h for h in contents if places[h] == largest)] = subset
    return {subset: {path: h for path, h in hashes.items() if places[h] == subset} for subset in subsets}


def picture_names(paths: list[str]) -> list[str]:
    """Returns a unique name without extension for each path, valid on every file system: cats/tom.jpg -> cats_tom."""
    names = [_valid("".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in _stem(p))) for p in paths]
    counts = Counter(map(name_key, names))
    return [
        f"{name}-{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:8]}"
        if counts[name_key(name)] > 1
        else name
        for name, path in zip(names, paths)
    ]


def _valid(name: str) -> str:
    """Changes a name that Windows does not allow: devices such as "con", and dots and spaces at the end."""
    trimmed = name.rstrip(". ")
    name = trimmed + "_" * (len(name) - len(trimmed))
    return f"{name}_" if name.partition(".")[0].casefold() in _DEVICES else name


def _stem(path: str) -> str:
    """Returns the path below its subset folder without extension, cut to its last 100 bytes to fit a file name."""
    relative = Path(path)
    if relative.parts[0] in Constants.SUBSETS and len(relative.parts) > 1:
        relative = relative.relative_to(relative.parts[0])
    name = str(relative.with_suffix("")).replace("/", "_")
    return name.encode(errors="surrogateescape")[-100:].decode(errors="ignore")
