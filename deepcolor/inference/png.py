"""PNG files of large pictures: compressed strip by strip, so that all cores can take part."""

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

import numpy as np

_SUB, _AVERAGE = 1, 3  # filters of a row: what differs from the pixel before, from the mean of that and the one above
_LEVEL = 1  # of no account with Z_RLE, which in filtered photographs saves as much as any search for repetitions
_MODULUS = 65521  # of Adler-32
_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels


class Strip(NamedTuple):
    """Some rows of a picture, compressed."""

    data: bytes
    checksum: int  # Adler-32 of what was compressed
    length: int  # of what was compressed


def compress(pixels: np.ndarray) -> Strip:
    """(H,W,channels) uint8 -> a strip. Works outside Python's lock for the most part."""
    height, width, channels = pixels.shape
    flat = pixels.reshape(height, width * channels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[0, 0], rows[1:, 0] = _SUB, _AVERAGE  # the row above the first is in another strip
    rows[0, 1 : 1 + channels] = flat[0, :channels]
    rows[0, 1 + channels :] = flat[0, channels:] - flat[0, :-channels]
    above, before = flat[:-1], flat[1:, :-channels]
    rows[1:, 1 : 1 + channels] = flat[1:, :channels] - above[:, :channels] // 2
    above = above[:, channels:]
    mean = (above & before) + ((above ^ before) >> 1)  # rounded down, and no ninth bit in between
    np.subtract(flat[1:, channels:], mean, out=rows[1:, 1 + channels :])
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    data = deflate.compress(rows) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return Strip(data, zlib.adler32(rows), rows.nbytes)


def write(file: BinaryIO, width: int, height: int, channels: int, strips: Iterable[Strip]) -> None:
    """Writes a PNG of 8 bits a channel, in sRGB, after the W3C's recommendation. Raises OSError."""
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0))
    _chunk(file, b"sRGB", b"\0")
    checksum, before = 1, b"\x78\x01"  # the header of a zlib stream
    for strip in strips:
        _chunk(file, b"IDAT", before + strip.data)
        checksum, before = _joined(checksum, strip), b""
    _chunk(file, b"IDAT", b"\x03\x00" + struct.pack(">I", checksum))  # an empty last block
    _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _joined(checksum: int, strip: Strip) -> int:
    """Adler-32 of what has `checksum`, followed by a strip: two sums, the second of them over the first (RFC 1950)."""
    first, second = checksum & 0xFFFF, checksum >> 16
    more_first, more_second = strip.checksum & 0xFFFF, strip.checksum >> 16
    second += more_second + strip.length * (first - 1)
    first += more_first - 1
    return second % _MODULUS << 16 | first % _MODULUS
