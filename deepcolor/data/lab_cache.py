"""The on-disk cache of decoded photographs: Lab records of fixed size that are decoded once and mapped into memory."""

import hashlib
import json
import mmap
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import Constants
from deepcolor.common.color import srgb_to_lab
from deepcolor.common.files import wait_for_lock, write_atomically
from deepcolor.common.system import available_cores
from deepcolor.data.image_io import Unreadable, decode_image, read_file

FORMAT = 2  # raised whenever a record would come out differently
SHAPE = (3, Constants.IMAGE_SIZE, Constants.IMAGE_SIZE)
RECORD_BYTES = 2 * int(np.prod(SHAPE))
_SAVE_SECONDS = 10  # an interrupted build loses at most this much work
_AHEAD = 64  # photographs in flight: bounds the memory, keeps every core busy


def rgb_to_record(rgb: np.ndarray) -> np.ndarray:
    """(128,128,3) uint8 sRGB -> (3,128,128) int16 Lab in steps of 1/256. Lab: scikit-image, D65, 2 degrees."""
    return np.rint(srgb_to_lab(rgb) * Constants.LAB_SCALE).astype(np.int16).transpose(2, 0, 1)


def read_ahead(records: np.memmap, rows: Iterable[int]) -> None:
    """Has the system fetch these records from the disk while we do something else. Where it cannot, does nothing."""
    if hasattr(mmap, "MADV_WILLNEED"):
        for row in rows:
            records.base.madvise(mmap.MADV_WILLNEED, row * RECORD_BYTES, RECORD_BYTES)


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


@dataclass(frozen=True)
class Entry:
    """What the cache knows of one file: its record, or why there is none."""

    sha: str = ""
    reason: str = ""


class LabCache:
    """Decoded photographs of one folder, below `home`.

    `records.lab` holds the pixels, one record after the other; `index.txt` says which there are, after a line with
    its own checksum, and is replaced only after the pixels it speaks of are on the disk. What lies behind the last
    record that the index knows is the rest of an interrupted build, and is overwritten.
    """

    def __init__(self, home: Path, root: Path) -> None:
        self.home = home / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        self.root = root
        self.records: dict[str, list] = {}  # sha -> [row, checksum, mean a, mean b, mean a squared, mean b squared]
        self.files: dict[str, list] = {}  # path -> [size, modified, changed, sha, reason]
        self.damage = ""  # what was wrong with the cache that lay there

    def update(self, paths: Iterable[str], progress: Callable[[Iterable, int], Iterable]) -> dict[str, Entry]:
        """Brings the cache up to date with the files, and returns what it knows of each, in the order given.

        `progress(iterable, total)` wraps the work for display. Only what is new or has changed is decoded.
        Raises OSError if the cache cannot be written.
        """
        # One process builds at a time; the others wait, and then find the work done.
        with wait_for_lock(self.home / "lock", f"another run is reading the images in {self.root}: waiting for it"):
            self._load()
            found = {path: self._signature(path) for path in paths}
            fresh = [path for path, signature in found.items() if self.files.get(path, [])[:3] != signature]
            if fresh:
                self._decode(fresh, progress)
            return {path: Entry(*self.files[path][3:]) for path in found}

    @property
    def map(self) -> Callable[[], np.memmap]:
        """Maps all records (N,3,128,128) int16 from the disk: read when touched, shared between processes."""
        # Copy-on-write, so that PyTorch may take it for a tensor; nobody writes to it.
        return partial(np.memmap, self._records_path, np.int16, mode="c", shape=(len(self.records), *SHAPE))

    def row(self, sha: str) -> int:
        return self.records[sha][0]

    def statistics(self, sha: str) -> list[float]:
        """Mean a, mean b, mean a squared, mean b squared, in Lab units."""
        return self.records[sha][2:]

    @property
    def _records_path(self) -> Path:
        return self.home / "records.lab"

    @property
    def _index_path(self) -> Path:
        return self.home / "index.txt"

    def _load(self) -> None:
        """Reads the index; whatever is wrong with it or with the records means to start from nothing."""
        try:
            checksum, _, text = self._index_path.read_bytes().partition(b"\n")
            if checksum != _checksum(text):
                raise ValueError("its index is damaged")
            index = json.loads(text)
            if index["format"] != FORMAT or index["shape"] != list(SHAPE):
                raise ValueError("it is of another version")
            self.records, self.files = index["records"], index["files"]
            # Records that nobody has written to since need no second look, which takes seconds for a large set.
            if self.records and index["stamp"] != self._stamp() and not self._intact():
                raise ValueError("its records are damaged")
        except (OSError, ValueError) as error:
            if self.records and isinstance(error, FileNotFoundError):
                self.damage = "its records are missing"
            elif not isinstance(error, FileNotFoundError):
                self.damage = error.strerror if isinstance(error, OSError) else str(error)
            self.records, self.files = {}, {}
            # A new file, not the old one overwritten: another process may have that mapped.
            self._records_path.unlink(missing_ok=True)

    def _save(self) -> None:
        index = {
            "format": FORMAT,
            "shape": SHAPE,
            "stamp": self._stamp(),
            "records": self.records,
            "files": self.files,
        }
        text = json.dumps(index).encode()
        write_atomically(self._index_path, lambda path: path.write_bytes(_checksum(text) + b"\n" + text))

    def _stamp(self) -> list[int]:
        """What changes whenever somebody writes to the records."""
        status = self._records_path.stat()
        return [status.st_size, status.st_mtime_ns]

    def _intact(self) -> bool:
        """Whether every record still has its checksum."""
        with open(self._records_path, "rb") as file:
            # In the order of their rows, in which the dictionary was filled.
            return all(zlib.crc32(file.read(RECORD_BYTES)) == entry[1] for entry in self.records.values())

    def _signature(self, path: str) -> list[int]:
        """What changes whenever the file does: size, time of the last write, time of the last change of any kind."""
        try:
            status = os.stat(self.root / path)
        except OSError:
            return [0, 0, 0]
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]

    def _decode(self, paths: list[str], progress: Callable[[Iterable, int], Iterable]) -> None:
        """Decodes the files on all cores and appends what is new to the records."""
        saved = time.monotonic()
        # Not truncated: other processes may have the records mapped that are there already.
        with open(os.open(self._records_path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            file.seek(len(self.records) * RECORD_BYTES)
            for path, signature, sha, record, reason in progress(self._read_ahead(paths), len(paths)):
                if record is not None and sha not in self.records:
                    color = record[1:].reshape(2, -1) / Constants.LAB_SCALE
                    statistics = [*color.mean(axis=1).tolist(), *(color**2).mean(axis=1).tolist()]
                    file.write(record)
                    self.records[sha] = [len(self.records), zlib.crc32(record), *statistics]
                self.files[path] = [*signature, sha, reason]
                if time.monotonic() - saved > _SAVE_SECONDS:
                    self._commit(file)
                    saved = time.monotonic()
            self._commit(file)

    def _commit(self, file) -> None:
        """The pixels first, then the index that speaks of them."""
        file.flush()
        os.fsync(file.fileno())
        self._save()

    def _read_ahead(self, paths: list[str]) -> Iterator[tuple]:
        """`_read` of every path, in order, a bounded number at a time. Decoders work outside Python's lock."""
        pool = ThreadPoolExecutor(available_cores())
        waiting: deque = deque()
        try:
            for path in paths:
                waiting.append(pool.submit(self._read, path))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Whoever is told to stop cannot wait for a picture that takes minutes.
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, path: str) -> tuple[str, list[int], str, np.ndarray | None, str]:
        """(path, signature, hash of the content, record or None, reason if None) of one file."""
        signature = self._signature(path)  # before reading: a file that changes meanwhile is read again next time
        try:
            content = read_file(self.root / path, self.root)
            sha = hashlib.sha256(content).hexdigest()
            known = sha in self.records
            record = None if known else np.ascontiguousarray(rgb_to_record(decode_image(content)))
            return path, signature, sha, record, ""
        except Unreadable as error:
            return path, signature, "", None, str(error)
