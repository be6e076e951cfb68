"""What depends on the machine: cores, memory and the C library. Standard library only."""

import contextlib
import ctypes
import os
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def available_cores() -> int:
    """Returns the number of processors that this process may use. On a cluster the machine can have more."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS and Windows


def available_memory() -> int:
    """Returns the bytes of main memory that programs can still allocate, or 1 TB if the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 1 << 40


def keep_freed_memory() -> None:
    """Raises glibc's malloc thresholds so that freed memory is reused (1.2x faster steps for small networks).

    Does nothing where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
