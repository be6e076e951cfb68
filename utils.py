"""Small helpers that every part of the package shares."""

import contextlib
import ctypes
import fcntl
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import Constants

if TYPE_CHECKING:  # elsewhere only where it is used: to import it takes two seconds
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


class UserError(Exception):
    """Something that the person at the keyboard can mend: shown as one line, exit code 2."""


class Grid(list):
    """The axes of a sweep: the list of lists of values, in order, and in `names` what each axis is called."""

    def __init__(self, axes: Mapping[str, list]) -> None:
        super().__init__(list(values) for values in axes.values())
        self.names = tuple(axes)

    def replaced(self, axes: Mapping[str, list]) -> "Grid":
        """This grid with some axes replaced, or new ones appended."""
        return Grid({**dict(zip(self.names, self)), **axes})


class Utils:
    """What the report calls Utils: the hyperparameters and the device."""

    @staticmethod
    def get_hyperparameters() -> Grid:
        """The lists of values whose product is the sweep.

        A further key, `batch_size=[16, 32]` say, is swept without any other change. It may be any
        setting of the Trainer (see `Trainer.TrainConfig`).
        """
        return Grid(
            dict(
                lr=Constants.LEARNING_RATES,
                epoch=Constants.EPOCHS,
                weight_decay=Constants.WEIGHT_DECAYS,
            )
        )

    @staticmethod
    def get_device(requested: str = "auto") -> "torch.device":
        """The device of `--device`: "auto" is CUDA where there is a GPU, else the CPU.

        Raises UserError if "cuda" is wished for and there is none.
        """
        import torch

        if requested == "auto":
            requested = "cuda" if torch.cuda.is_available() else "cpu"
        if requested == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu, or leave the flag out")
        return torch.device(requested)

    @staticmethod
    def get_precision(requested: str, device: "torch.device") -> str:
        """What `--precision` comes to on this device: "fp32", "bf16", or "auto" where the network's width decides."""
        import torch

        if requested != "auto":
            return requested
        if device.type == "cuda":
            return "auto" if torch.cuda.is_bf16_supported() else "fp32"
        return "auto" if torch.cpu._is_avx512_bf16_supported() else "fp32"

    @staticmethod
    def is_wide(feature_maps: int | Sequence[int]) -> bool:
        """Whether a network is wide enough for what pays with full vectors only: channels-last, bf16, threads."""
        return (feature_maps if isinstance(feature_maps, int) else max(feature_maps)) >= Constants.WIDE

    @staticmethod
    def get_cores() -> int:
        """The processors that this process may use, which on a cluster are fewer than the machine has."""
        return len(os.sched_getaffinity(0))

    @staticmethod
    def get_free_memory() -> int:
        """The bytes of main memory that programs can still take; a terabyte where the system does not tell."""
        with contextlib.suppress(OSError, ValueError):
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
        return 1 << 40

    @staticmethod
    def keep_memory() -> None:
        """Has glibc keep freed memory instead of handing it back to the system and faulting it in anew every step.

        A step of a small network frees and takes blocks of some megabytes again and again: 1.2 times the speed.
        Does nothing where there is no glibc.
        """
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc accepts
            libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def seed_for(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, such as ("epoch", 7), independent of whatever else was drawn."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def parse_feature_maps(text: str) -> int | tuple[int, ...]:
    """ "3" -> 3, "32,64,128,256,256,512" or "deep" -> six numbers. Raises ValueError for anything else."""
    if text in Constants.NAMED_FEATURE_MAPS:
        return Constants.NAMED_FEATURE_MAPS[text]
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if len(widths) not in (1, Constants.LAYERS) or not all(0 < w <= Constants.MAX_FEATURE_MAPS for w in widths):
        raise ValueError(
            f"one number or {Constants.LAYERS} numbers with commas, each from 1 to {Constants.MAX_FEATURE_MAPS}, "
            f"or {', '.join(Constants.NAMED_FEATURE_MAPS)}; not '{text}'"
        )
    return widths[0] if len(set(widths)) == 1 else widths


def format_value(value: object) -> str:
    """A setting as people write it: 0.001, 1e-05, 0, 300, deep; `float` and `parse_feature_maps` read it back."""
    for name, widths in Constants.NAMED_FEATURE_MAPS.items():
        if isinstance(value, tuple | list) and tuple(value) == widths:
            return name
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def format_seconds(seconds: float) -> str:
    """A duration for people: "8 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def is_finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def check_writable(folder: Path, output: Path) -> None:
    """Makes a folder at or below `output`, and finds out now whether it can be written. Raises UserError if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".writable-", dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write below {output}: {error.strerror}; choose another folder with --output"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Makes `path` what `write(temporary file)` wrote: whoever looks, sees the old file or the new one, never half.

    Unless `durable`, it is left to the system when the file comes to the disk, and a loss of power may leave it empty.
    Raises OSError if the file cannot be written; the old one is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=f".part{path.suffix}", dir=path.parent)
    temporary = Path(name)
    try:
        write(temporary)
        if durable:
            os.fsync(handle)
        os.fchmod(handle, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(handle)
    if durable:
        _sync_folder(path.parent)


@contextlib.contextmanager
def locked(path: Path, shared: bool = False, wait: str = "") -> Iterator[None]:
    """Holds a lock on the file `path`, which is made and stays; `shared`: with others who share it.

    Where another process holds it: says `wait` and waits for that. Without `wait`, raises BlockingIOError.
    Raises OSError if the file cannot be written or its file system knows no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    # To read and to write: over a network, a shared lock wants the one and an exclusive lock the other.
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            print(wait, flush=True)
            fcntl.flock(file, kind)
        yield


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power loss, as far as the file system promises it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Read once, at import, before there are threads: the only way to read the mask is to set it.
_UMASK = os.umask(0)
os.umask(_UMASK)
