"""The on-disk cache of decoded photographs: Lab records of a fixed size, which are mapped into memory."""

import hashlib
import json
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

import Constants
from deepcolor.common.color import srgb_to_lab
from deepcolor.common.files import wait_for_lock, write_atomically
from deepcolor.common.system import available_cores, available_memory, prefetch
from deepcolor.data.image_io import Unreadable, decode_image, read_file

FORMAT = 2  # increased when the same photograph gives a different record
SHAPE = (3, Constants.IMAGE_SIZE, Constants.IMAGE_SIZE)
RECORD_BYTES = 2 * int(np.prod(SHAPE))
_SAVE_SECONDS = 10  # between two saves while decoding: at most this much work is lost
_BYTES_PER_DECODER = 640 << 20  # a picture of Constants.LARGE_PIXELS, decoded and converted
_MAX_PENDING = 64  # decoded photographs waiting to be written, enough to keep every core busy


def rgb_to_record(rgb: np.ndarray) -> np.ndarray:
    """(128,128,3) uint8 sRGB -> (3,128,128) int16 Lab in steps of 1/256."""
    return np.rint(srgb_to_lab(rgb) * Constants.LAB_SCALE).astype(np.int16).transpose(2, 0, 1)


class RecordMap:
    """All records of a cache, mapped into memory. Processes that map the same file share its pages.

    `array` is (N,3,128,128) int16 and is read from disk as it is accessed. Pickling stores the path only.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.count = count
        self.remap()

    def __reduce__(self) -> tuple:
        return RecordMap, (self.path, self.count)

    def remap(self) -> None:
        """Maps the file again, so that pages read so far no longer count as memory of this process."""
        # Copy-on-write, because PyTorch warns about read-only arrays. Nothing writes to it.
        self.array = np.memmap(self.path, np.int16, mode="c", shape=(self.count, *SHAPE))

    def prefetch(self, rows: Iterable[int]) -> None:
        """Asks the system to read these records from disk in the background, if it can do that."""
        for row in rows:
            prefetch(self.array.base, row * RECORD_BYTES, RECORD_BYTES)


class LabCache:
    """The decoded photographs of one folder.

    `records.lab` holds the records one after another. `index.txt` describes them as JSON after a line with the
    checksum of that JSON, and is replaced only after the records it describes are on disk. Records behind the last
    one in the index are left from an interrupted run and are overwritten.

    Args:
        home: folder of the caches of all image folders.
        root: folder of the photographs.

    Attributes:
        damage: why the existing cache could not be used, or "".
    """

    def __init__(self, home: Path, root: Path) -> None:
        self.home = home / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        self.root = root
        self.damage = ""
        # content hash -> [row, checksum, mean a, mean b, mean a squared, mean b squared]
        self._records: dict[str, list] = {}
        # path -> [size, time modified, time changed, content hash, reason if unreadable]
        self._files: dict[str, list] = {}
        self._records_path = self.home / "records.lab"
        self._index_path = self.home / "index.txt"

    def update(
        self, paths: Iterable[str], progress: Callable[[Iterable, int], Iterable]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Decodes the files that are new or have changed.

        Args:
            paths: the files, relative to `root`.
            progress: `progress(iterable, total)` returns an iterable over the same items that displays progress.

        Returns:
            path -> SHA-256 of the content for each readable file, and path -> reason for each unreadable file.

        Raises:
            OSError: the cache cannot be written.
        """
        message = f"another run is decoding the images in {self.root}: waiting for it"
        with wait_for_lock(self.home / "lock", message):
            self._load()
            signatures = {path: self._signature(path) for path in paths}
            changed = [path for path, found in signatures.items() if self._files.get(path, [])[:3] != found]
            if changed:
                self._decode_and_append(changed, progress)
        hashes, reasons = {}, {}
        for path in signatures:
            *_, content_hash, reason = self._files[path]
            if content_hash:
                hashes[path] = content_hash
            else:
                reasons[path] = reason
        return hashes, reasons

    def map_records(self) -> RecordMap:
        """Maps all records into memory. Valid after `update`."""
        return RecordMap(self._records_path, len(self._records))

    def row(self, content_hash: str) -> int:
        """Returns the index of the record of the photograph with this content hash."""
        return self._records[content_hash][0]

    def statistics(self, content_hash: str) -> list[float]:
        """Returns mean a, mean b, mean a squared and mean b squared of a record, in Lab units."""
        return self._records[content_hash][2:]

    # --- Index ---------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Reads the index. Starts an empty cache if there is none or if the cache is damaged."""
        self._records, self._files = {}, {}
        try:
            if self._index_path.exists():
                self._records, self._files = self._read_index()
                return
        except (OSError, ValueError) as error:
            self.damage = getattr(error, "strerror", None) or str(error)
        except (AttributeError, LookupError, TypeError):
            self.damage = "its index is damaged"
        # Deleted instead of overwritten, because another process may have mapped it.
        self._records_path.unlink(missing_ok=True)

    def _read_index(self) -> tuple[dict[str, list], dict[str, list]]:
        """Returns the contents of the index. Raises ValueError if the index or the records are damaged."""
        checksum, _, text = self._index_path.read_bytes().partition(b"\n")
        if checksum != _checksum(text):
            raise ValueError("its index is damaged")
        index = json.loads(text)
        if index["format"] != FORMAT or index["shape"] != list(SHAPE):
            raise ValueError("it is of another version")
        records = index["records"]
        if records and not self._records_path.exists():
            raise ValueError("its records are missing")
        # Checking all records takes seconds for a large set, so it is done only after a write to the file.
        if records and index["stamp"] != self._stamp() and not self._is_intact(records):
            raise ValueError("its records are damaged")
        if not _is_index(records, index["files"]):
            raise ValueError("its index is damaged")
        return records, index["files"]

    def _write_index(self) -> None:
        index = {
            "format": FORMAT,
            "shape": SHAPE,
            "stamp": self._stamp(),
            "records": self._records,
            "files": self._files,
        }
        text = json.dumps(index).encode()
        write_atomically(self._index_path, lambda path: path.write_bytes(_checksum(text) + b"\n" + text))

    def _stamp(self) -> list[int]:
        """Returns numbers that change with every write to the records."""
        status = self._records_path.stat()
        return [status.st_size, status.st_mtime_ns]

    def _is_intact(self, records: dict[str, list]) -> bool:
        """Returns whether every record has its checksum."""
        with open(self._records_path, "rb") as file:  # the dictionary is in the order of the file
            return all(zlib.crc32(file.read(RECORD_BYTES)) == checksum for _, checksum, *_ in records.values())

    def _signature(self, path: str) -> list[int]:
        """Returns numbers that change with the file: its size and the times of the last write and status change."""
        try:
            status = os.stat(self.root / path)
        except OSError:
            return [0, 0, 0]
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]

    # --- Decoding ------------------------------------------------------------------------------------

    def _decode_and_append(self, paths: list[str], progress: Callable[[Iterable, int], Iterable]) -> None:
        """Decodes files and appends those with new content to the records."""
        saved_at = time.monotonic()
        # Opened without truncating, because other processes may have mapped the existing records.
        # O_NOFOLLOW, which Windows does not have: a link must not lead to a file of the user.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(self._records_path, flags, 0o666), "r+b") as file:
            file.seek(len(self._records) * RECORD_BYTES)
            for path, signature, content_hash, record, reason in progress(self._decode_all(paths), len(paths)):
                if record is not None and content_hash not in self._records:
                    color = record[1:].reshape(2, -1) / Constants.LAB_SCALE
                    statistics = [*color.mean(axis=1).tolist(), *(color**2).mean(axis=1).tolist()]
                    file.write(record)
                    self._records[content_hash] = [len(self._records), zlib.crc32(record), *statistics]
                self._files[path] = [*signature, content_hash, reason]
                if time.monotonic() - saved_at > _SAVE_SECONDS:
                    self._save(file)
                    saved_at = time.monotonic()
            self._save(file)

    def _save(self, records_file: BinaryIO) -> None:
        """Writes the records to disk, and then the index that describes them."""
        records_file.flush()
        os.fsync(records_file.fileno())
        self._write_index()

    def _decode_all(self, paths: list[str]) -> Iterator["_Decoded"]:
        """Yields the decoded files in order. Decodes on all cores, because Pillow releases Python's global lock."""
        pool = ThreadPoolExecutor(max(1, min(available_cores(), available_memory() // _BYTES_PER_DECODER)))
        pending: deque = deque()
        try:
            for path in paths:
                pending.append(pool.submit(self._decode, path))
                if len(pending) >= _MAX_PENDING:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after a stop signal, do not wait for large pictures

    def _decode(self, path: str) -> "_Decoded":
        # Taken before the file is read: if the file changes meanwhile, the next run decodes it again.
        signature = self._signature(path)
        try:
            content = read_file(self.root / path, self.root)
            content_hash = hashlib.sha256(content).hexdigest()
            known = content_hash in self._records
            record = None if known else np.ascontiguousarray(rgb_to_record(decode_image(content)))
            return _Decoded(path, signature, content_hash, record, "")
        except Unreadable as error:
            return _Decoded(path, signature, "", None, str(error))


def _is_index(records: dict[str, list], files: dict[str, list]) -> bool:
    """Returns whether LabCache can have written these entries. Raises what an entry of another type causes."""
    return all(
        row == number and len(statistics) == 5 and all(isinstance(value, float | int) for value in statistics)
        for number, (row, *statistics) in enumerate(records.values())
    ) and all(
        len(signature) == 3
        and all(isinstance(number, int) for number in signature)
        and (content_hash in records or (content_hash == "" and isinstance(reason, str)))
        for *signature, content_hash, reason in files.values()
    )


class _Decoded(NamedTuple):
    path: str
    signature: list[int]
    content_hash: str  # SHA-256 of the content, or "" if the file is unreadable
    record: np.ndarray | None  # None if the cache already has this content
    reason: str  # why the file is unreadable


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
