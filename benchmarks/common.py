"""Shared by the benchmarks: flags, images, timing, memory, the machine, and results."""

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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the scripts run without an installation

from deepcolor.common import cli
from deepcolor.data import sample_photos
from deepcolor.data.dataset import LabDataModule
from deepcolor.data.image_io import find_photos
from deepcolor.data.lab_cache import LabCache
from deepcolor.data.split import split
from deepcolor.training import checkpoint
from deepcolor.training.paths import RunPaths
from utils import UserError, parse_feature_maps

# What decides how fast a processor multiplies matrices.
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")


# --- Command line ----------------------------------------------------------------------------------


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not '{text}'")
    return int(text)


feature_maps = cli.argument_type(parse_feature_maps)
_FLAGS = {
    "images": {"metavar": "DIR", "type": Path, "help": "photographs to measure with (the built-in ones)"},
    "device": {"choices": ("auto", "cpu", "cuda"), "help": "where to train (%(default)s)"},
    "repeats": {"metavar": "N", "type": at_least_one, "help": "measurements of each number (%(default)s)"},
    "json": {"metavar": "FILE", "type": Path, "help": "where to write all numbers"},
}


def parser(program: str, description: str, **defaults: object) -> cli.Parser:
    """Returns a parser with the flags of _FLAGS that `defaults` names."""
    parser = cli.Parser(program, description=description)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default, **_FLAGS[name])
    return parser


def run(program: str, work: Callable[[], None]) -> int:
    """Calls `work` and returns the exit code. A UserError is printed as one line and gives 2."""
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
    """Photographs as a data module and as a list of files."""

    folder: Path
    data: LabDataModule
    output: RunPaths
    paths: dict[str, list[Path]]  # subset -> files
    seconds: float  # to decode the photographs into the cache
    built_in: bool

    def describe(self) -> dict[str, object]:
        return {
            "source": "the built-in photographs" if self.built_in else "a folder of photographs",
            "decoding_seconds": self.seconds,
            **{subset: len(paths) for subset, paths in self.paths.items()},
        }


@contextlib.contextmanager
def prepared(images: Path | None) -> Iterator[Prepared]:
    """Yields the photographs of a folder, or the built-in ones if it is None. All output goes to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="colorization-") as temporary:
        folder = images or Path(temporary) / "data"
        if images is None:
            sample_photos.fill(folder)
        output = RunPaths(Path(temporary) / "output")
        output.prepare("fp32")
        start = time.monotonic()
        data = LabDataModule.load(folder, output.root)
        seconds = time.monotonic() - start
        hashes, _ = LabCache(output.cache, folder).update(sorted(find_photos(folder)), lambda work, total: work)
        paths = {subset: [folder / path for path in members] for subset, members in split(hashes, folder).items()}
        yield Prepared(folder, data, output, paths, seconds, images is None)


# --- Time ------------------------------------------------------------------------------------------


def clock(device: torch.device) -> float:
    """Returns the seconds of a clock that all processes share, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def per_call(function: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Returns the mean time of a call, over calls that take at least `seconds` in total, after a warm-up call."""
    function()
    calls, start = 0, clock(device)
    while True:
        function()
        calls += 1
        elapsed = clock(device) - start
        if elapsed >= seconds:
            return elapsed / calls


def spread(values: Sequence[float]) -> dict[str, object]:
    """Returns the median, minimum and maximum of repeated measurements, and the measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def show(measured: dict[str, object], form: str = ",.0f") -> str:
    """Returns a spread as text: 120 (110 to 125)."""
    median, low, high = (format(measured[key], form) for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"


# --- Memory, machine -------------------------------------------------------------------------------


def status_bytes(key: str, process: int | str = "self") -> int:
    """Returns a number of /proc/<process>/status in bytes, such as VmHWM, the peak resident memory. 0 if unknown."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) << 10
    return 0


def machine(device: torch.device) -> dict[str, object]:
    """Returns what the numbers were measured on."""
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
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def versions() -> dict[str, str]:
    return {**checkpoint.versions(), "torchvision": str(torchvision.__version__), "pillow": PIL.__version__}


def describe(device: torch.device) -> str:
    """Returns the machine and the versions in one line."""
    what, made_with = machine(device), versions()
    flags = f" ({', '.join(what['cpu_flags'])})" if what["cpu_flags"] else ""
    gpu = f"{what['gpu']}; " if what["gpu"] else ""
    return (
        f"{gpu}{what['cores']} cores of {what['cpu']}{flags}; Python {made_with['python']}, torch {made_with['torch']}"
    )


# --- Results ---------------------------------------------------------------------------------------


def check_json(path: Path | None) -> None:
    """Checks that the results can be written, before they are measured. Raises UserError."""
    if path is None:
        return
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with --json") from error


def write_json(path: Path | None, results: dict[str, object], device: torch.device) -> None:
    """Writes the results with the machine and the versions that they were measured with."""
    if path is not None:
        content = {"machine": machine(device), "versions": versions(), **results}
        path.write_text(json.dumps(content, indent=1) + "\n")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with aligned columns, the first one to the left."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)
