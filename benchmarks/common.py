"""What the benchmarks share: the images, timing, spread, memory, the machine, and how results are written."""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the scripts run without an installation

from deepcolor.data import sample_photos
from deepcolor.data.dataset import LabDataModule, split
from deepcolor.data.image_io import find_photos
from deepcolor.data.lab_cache import LabCache
from deepcolor.training import checkpoint
from deepcolor.training.checkpoint import RunPaths
from utils import UserError, parse_feature_maps

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")


# --- Command line ----------------------------------------------------------------------------------


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not '{text}'")
    return int(text)


def feature_maps(text: str) -> int | tuple[int, ...]:
    try:
        return parse_feature_maps(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(program: str, work: Callable[[], None]) -> int:
    """Does the work and returns the exit code; an error that a user can mend is one line, code 2."""
    try:
        work()
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


# --- Images ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """Photographs, ready for the package and, as a list of files, for the plain way."""

    folder: Path
    data: LabDataModule
    output: RunPaths
    paths: dict[str, list[Path]]  # of each subset
    seconds: float  # that decoding them into the package's cache took
    built_in: bool

    def describe(self) -> dict[str, object]:
        return {
            "source": "the built-in photographs" if self.built_in else "a folder of photographs",
            "decoding_seconds": self.seconds,
            **{subset: len(paths) for subset, paths in self.paths.items()},
        }


@contextlib.contextmanager
def prepared(images: Path | None) -> Iterator[Prepared]:
    """The photographs of a folder, or the built-in ones; all that is written goes to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="colorization-") as temporary:
        folder = images or Path(temporary) / "data"
        if images is None:
            sample_photos.fill(folder)
        output = RunPaths(Path(temporary) / "output")
        output.prepare()
        began = time.monotonic()
        data = LabDataModule.load(folder, output.root)
        seconds = time.monotonic() - began
        entries = LabCache(output.root / ".cache", folder).update(sorted(find_photos(folder)), lambda work, total: work)
        subsets = split({path: entry for path, entry in entries.items() if entry.sha}, folder)
        paths = {subset: [folder / path for path in found] for subset, found in subsets.items()}
        yield Prepared(folder, data, output, paths, seconds, images is None)


# --- Time ------------------------------------------------------------------------------------------


def clock(device: torch.device) -> float:
    """Seconds on a clock that all processes share, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def per_call(function: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The mean time of a call, over calls for at least so many seconds, after one off the clock."""
    function()
    calls, began = 0, clock(device)
    while True:
        function()
        calls += 1
        elapsed = clock(device) - began
        if elapsed >= seconds:
            return elapsed / calls


def spread(values: Sequence[float]) -> dict[str, object]:
    """Median, least and greatest of repeated measurements, and the measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def show(measured: dict[str, object], form: str = ",.0f") -> str:
    """A spread as people read it: 120 (110 to 125)."""
    median, low, high = (format(measured[key], form) for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"


# --- Memory, machine -------------------------------------------------------------------------------


def status_bytes(key: str, process: int | str = "self") -> int:
    """A figure of /proc/<process>/status in bytes, such as VmHWM: the peak of what was resident. 0 if unknown."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) << 10
    return 0


def children(process: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found: list[int] = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def peak_memory(device: torch.device, with_children: bool = False) -> list[dict[str, int]]:
    """The peak memory in bytes of this process, and of those it started: "rss" of the machine's, "gpu" of the GPU's."""
    processes: list[int | str] = ["self", *(children(os.getpid()) if with_children else [])]
    gpu = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    return [
        {"rss": status_bytes("VmHWM", process), "gpu": 0 if number else gpu} for number, process in enumerate(processes)
    ]


def versions() -> dict[str, str]:
    return {**checkpoint.versions(), "torchvision": str(torchvision.__version__), "pillow": PIL.__version__}


def machine(device: torch.device) -> dict[str, object]:
    """What the figures were measured on."""
    information: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            information.setdefault(key.strip(), value.strip())
    flags = (information.get("flags") or information.get("Features", "")).split()
    return {
        "cpu": information.get("model name") or platform.processor() or platform.machine(),
        "cpu_family_model": [information.get("cpu family"), information.get("model")],
        "cores": len(os.sched_getaffinity(0)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def describe(device: torch.device) -> str:
    """The machine and the versions in one line."""
    what, made_with = machine(device), versions()
    flags = f" ({', '.join(what['cpu_flags'])})" if what["cpu_flags"] else ""
    gpu = f"{what['gpu']}; " if what["gpu"] else ""
    return (
        f"{gpu}{what['cores']} cores of {what['cpu']}{flags}; Python {made_with['python']}, torch {made_with['torch']}"
    )


# --- Results ---------------------------------------------------------------------------------------


def check_json(path: Path | None) -> None:
    """Finds out before an hour of measuring whether the result can be written. Raises UserError."""
    if path is None:
        return
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with --json") from error


def write_json(path: Path | None, results: dict[str, object], device: torch.device) -> None:
    """Writes results with the machine and the versions that they were measured with."""
    if path is not None:
        content = {"machine": machine(device), "versions": versions(), **results}
        path.write_text(json.dumps(content, indent=1) + "\n")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; the first is flush left."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, rule)
    aligned = [[line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)
