"""However large a picture says it is, reading it takes a bounded amount of memory."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from survival import png

import Constants

MOST_BYTES = 2.5e9  # for one picture, whatever its size
SIDE = 3000  # of the pictures that are really read; what they take is scaled up to the largest that would be
LARGEST_JPEG = 46_000  # that Pillow opens
PROGRAM = f"""
import re, resource, sys
sys.path.insert(0, {str(ROOT)!r})
from deepcolor.data import image_io
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))  # lest a failure take the machine along
content = open(sys.argv[1], "rb").read()
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) << 10
before = peak()
try:
    image_io.decode_image(content)
    print(peak() - before, "read")
except image_io.Unreadable as error:
    print(peak() - before, error)
"""


def decode(path: Path) -> tuple[int, str]:
    """Bytes of memory that reading takes in a process of its own, and what came of it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    taken, _, result = done.stdout.strip().partition(" ")
    return int(taken), result


def progressive_jpeg(side: int, complete: bool = True) -> bytes:
    """A gray progressive JPEG that is black, of one bit for each 8 x 8 pixels."""
    table = b"\xff\xdb" + struct.pack(">H", 67) + b"\0" + b"\1" * 64
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\1\x11\0"
    codes = b"\xff\xc4" + struct.pack(">H", 20) + b"\0" + bytes([1] + [0] * 15) + b"\0"
    scan = b"\xff\xda" + struct.pack(">H", 8) + b"\1\1\0" + b"\0\0\0"
    bits = bytes((-(-side // 8)) ** 2 // 8 + 1) if complete else b"\0"
    return b"\xff\xd8" + table + frame + codes + scan + bits + b"\xff\xd9"


@pytest.mark.parametrize(
    ("bits", "color"), [(1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 3), (8, 4), (8, 6), (16, 6)], ids=str
)
def test_the_largest_png_of_every_kind(tmp_path: Path, bits: int, color: int) -> None:
    (tmp_path / "it.png").write_bytes(png(SIDE, SIDE, bits, color))
    taken, result = decode(tmp_path / "it.png")
    assert result == "read"
    assert taken / SIDE**2 * Constants.MAX_PIXELS < MOST_BYTES, f"{taken / SIDE**2:.0f} bytes for each pixel"


def test_a_picture_beyond_the_limit_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "it.png").write_bytes(png(20_000, 20_000, 8, 3))
    taken, result = decode(tmp_path / "it.png")
    assert "megapixels" in result
    assert taken < 1e8


def test_the_largest_progressive_jpeg(tmp_path: Path) -> None:
    """Its coefficients are kept for the whole picture, however small it is to be."""
    (tmp_path / "small.jpg").write_bytes(progressive_jpeg(8000))
    (tmp_path / "large.jpg").write_bytes(progressive_jpeg(LARGEST_JPEG, complete=False))
    taken, result = decode(tmp_path / "small.jpg")
    assert result == "read"
    _, result = decode(tmp_path / "large.jpg")
    assert "megapixels" in result or taken / 8000**2 * LARGEST_JPEG**2 < MOST_BYTES
