"""Atomic writes and file locks."""

import contextlib
import csv
import errno
import os
import secrets
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from deepcolor.common.system import sync_folder
from utils import UserError

_ABANDONED_SECONDS = 3600
_TOKEN_BYTES = 8  # of the random part of temporary names


def check_writable(folder: Path, output: Path, flag: str = "--output") -> None:
    """Creates a folder at or below `output` and checks that files can be written there. Raises UserError if not.

    `flag` names the folder on the command line.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".writable-", dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write below {output}: {error.strerror}; choose another folder with {flag}") from error


def write_atomically(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Calls `write(temporary_file)` and renames the result to `path`, so that readers see the old or the new file.

    Args:
        path: the file to create or replace. Missing parent folders are created.
        write: writes the content to the path it is given.
        durable: flush to disk before and after the rename. Without it, a power failure can leave an empty file.

    Raises:
        OSError: the file cannot be written. The old file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(_TOKEN_BYTES)}.part{path.suffix}")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write(temporary)
        if durable:
            os.fsync(handle)
        os.close(handle)
        handle = -1
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        if handle >= 0:
            os.close(handle)
    if durable:
        sync_folder(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Deletes temporary files of `write_atomically` in a folder whose process was killed at least an hour ago."""
    for path in folder.glob(f".{'[0-9a-f]' * 2 * _TOKEN_BYTES}.part*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime < time.time() - _ABANDONED_SECONDS:
                path.unlink()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Writes rows as a CSV file with a header. A missing value is an empty cell. Raises OSError."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def name_key(name: str) -> str:
    """Returns what two file names have in common if they are the same file on macOS or Windows."""
    return unicodedata.normalize("NFC", name).casefold()


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yields whether this process holds the lock file `path`. The system releases it when its holder dies.

    Raises OSError if the file cannot be created or its file system does not support locks.
    """
    lock = _lock(path)
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextlib.contextmanager
def wait_for_lock(path: Path, message: str = "") -> Iterator[None]:
    """Holds the lock file `path`. While another process holds it, prints `message` and waits. Raises OSError."""
    lock = _lock(path)
    try:
        if not lock.is_locked:
            if message:
                print(message, flush=True)
            lock.acquire()
        yield
    finally:
        lock.release()


def _lock(path: Path) -> FileLock:
    """Returns a lock that is held unless another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)  # a killed process never frees a soft lock
    try:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        raise OSError(errno.ENOLCK, "this file system does not support locks", str(path)) from error
    return lock
