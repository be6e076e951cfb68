"""Reading a picture takes a bounded amount of memory, whatever size its header claims."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from survival import png

import Constants

MAX_BYTES = 2.5e9  # for one picture
SIDE = 3000  # of the decoded pictures; their memory is scaled up to the largest allowed picture
LARGEST_JPEG = 46_000  # pixels per side that Pillow opens
PROGRAM = f"""
import re, resource, sys
sys.path.insert(0, {str(ROOT)!r})
from deepcolor.data import image_io
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))  # a failure must not use up the machine's memory
content = open(sys.argv[1], "rb").read()
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) << 10
before = peak()
try:
    image_io.decode_image(content)
    print(peak() - before, "read")
except image_io.Unreadable as error:
    print(peak() - before, error)
"""


def decode(path: Path, content: bytes) -> tuple[int, str]:
    """Returns the bytes of memory that decoding takes in a new process, and "read" or the reason why not."""
    path.write_bytes(content)
    done = subprocess.run([sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    used, _, result = done.stdout.strip().partition(" ")
    return int(used), result


def progressive_jpeg(side: int, complete: bool = True) -> bytes:
    """Returns a black gray progressive JPEG that takes one bit per block of 8 x 8 pixels."""
    table = b"\xff\xdb" + struct.pack(">H", 67) + b"\0" + b"\1" * 64
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\1\x11\0"
    codes = b"\xff\xc4" + struct.pack(">H", 20) + b"\0" + bytes([1] + [0] * 15) + b"\0"
    scan = b"\xff\xda" + struct.pack(">H", 8) + b"\1\1\0" + b"\0\0\0"
    bits = bytes((-(-side // 8)) ** 2 // 8 + 1) if complete else b"\0"
    return b"\xff\xd8" + table + frame + codes + scan + bits + b"\xff\xd9"


QUICK = [(16, 0), (8, 6)]  # (bits, PNG color type)
OTHERS = [(1, 0), (8, 0), (8, 2), (16, 2), (8, 3), (8, 4), (16, 6)]


@pytest.mark.parametrize(
    ("bits", "color"), [*QUICK, *(pytest.param(*kind, marks=pytest.mark.slow) for kind in OTHERS)], ids=str
)
def test_the_largest_allowed_png(tmp_path: Path, bits: int, color: int) -> None:
    used, result = decode(tmp_path / "it.png", png(SIDE, SIDE, bits, color))
    assert result == "read"
    assert used / SIDE**2 * Constants.MAX_PIXELS < MAX_BYTES, f"{used / SIDE**2:.0f} bytes per pixel"


def test_a_png_beyond_the_limit_is_not_decoded(tmp_path: Path) -> None:
    used, result = decode(tmp_path / "it.png", png(20_000, 20_000, 8, 3))
    assert "megapixels" in result
    assert used < 1e8


@pytest.mark.slow
def test_the_largest_progressive_jpeg(tmp_path: Path) -> None:
    """Its coefficients are kept for the whole picture, even when it is decoded at a fraction of its size."""
    used, result = decode(tmp_path / "small.jpg", progressive_jpeg(8000))
    assert result == "read"
    _, result = decode(tmp_path / "large.jpg", progressive_jpeg(LARGEST_JPEG, complete=False))
    assert "megapixels" in result or used / 8000**2 * LARGEST_JPEG**2 < MAX_BYTES
