"""Hundreds of mutated image files and checkpoints: each is read or refused, and none crashes, hangs or runs code."""

import io
import multiprocessing
import random
import struct
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture
from PIL import Image
from survival import figure

from deepcolor.data import image_io
from deepcolor.training import checkpoint
from utils import UserError

pytest_plugins = ["survival"]

IMAGES, CHECKPOINTS = 840, 400  # mutated files
MOST_SECONDS = 10  # for one of them, on however busy a machine


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A few flipped bits, foreign bytes, a cut, an exchange of blocks, a repetition, or a hole of zeros."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        if not changed:
            break
        start, stop = sorted(draw.randrange(len(changed) + 1) for _ in range(2))
        # Headers are where most of the sense is.
        at = draw.randrange(len(changed) if draw.random() < 0.5 else min(64, len(changed)))
        size = draw.randrange(1, 200)
        match draw.randrange(7):
            case 0 | 1:
                changed[at] ^= 1 << draw.randrange(8)
            case 2:
                changed[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 3:
                del changed[start if draw.random() < 0.5 else at :]
            case 4:
                changed[start:stop] = changed[stop - size : stop] + changed[start : stop - size]
            case 5:
                changed[at:at] = changed[at : at + size]
            case _:
                changed[at : at + size] = bytes(size)
    return bytes(changed)


def with_right_sums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums that belong to their contents, so that more than the first is read."""
    fixed, place = bytearray(content), 8
    while place + 12 <= len(fixed):
        (size,) = struct.unpack_from(">I", fixed, place)
        end = place + 8 + size
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[place + 4 : end]))
        place = end + 4
    return bytes(fixed)


def originals() -> dict[str, bytes]:
    """Small pictures of every format that people have, and of every way in which a TIFF can be packed."""
    rgb = Image.fromarray(picture(1, 48, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict]] = {
        "jpeg": (rgb, "JPEG", {"exif": exif}),
        "progressive jpeg": (rgb.convert("CMYK"), "JPEG", {"progressive": True}),
        "png": (rgb.convert("RGBA"), "PNG", {"exif": exif}),
        "palette png": (rgb.convert("P"), "PNG", {"transparency": 3}),
        "tiff": (rgb, "TIFF", {}),
        "lzw tiff": (rgb.convert("CMYK"), "TIFF", {"compression": "tiff_lzw"}),
        "zip tiff": (rgb.convert("F"), "TIFF", {"compression": "tiff_deflate"}),
        "jpeg tiff": (rgb, "TIFF", {"compression": "jpeg"}),
        "fax tiff": (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        "gif": (rgb.convert("P"), "GIF", {"save_all": True, "append_images": [rgb.convert("P").rotate(90)]}),
        "webp": (rgb, "WEBP", {}),
        "bmp": (rgb, "BMP", {}),
    }
    contents = {}
    for name, (image, kind, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, kind, **options)
        contents[name] = file.getvalue()
    return contents


def read_image(content: bytes) -> str:
    """ "read" or "refused"; anything else is a fault."""
    began = time.monotonic()
    try:
        pixels = image_io.decode_image(content)
        result = "read" if pixels.shape == (128, 128, 3) and pixels.dtype == np.uint8 else f"not RGB: {pixels.shape}"
    except image_io.Unreadable as error:
        result = "refused" if str(error) and "\n" not in str(error) else f"no reason: {error!r}"
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"
    return result if time.monotonic() - began < MOST_SECONDS else f"took {time.monotonic() - began:.0f} s"


@pytest.fixture
def apart() -> Iterator[Callable]:
    """Calls a function for each of many values, in a process apart: a crash of it fails the test and nothing else."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        yield lambda function, values: pool.map(function, values, chunksize=20, timeout=120)


def test_mutated_images(apart: Callable) -> None:
    draw = random.Random(7)
    kinds = originals()
    assert all(read_image(content) == "read" for content in kinds.values())
    tried = []
    for number in range(IMAGES):
        kind = list(kinds)[number % len(kinds)]
        content = mutated(kinds[kind], draw)
        tried.append((kind, with_right_sums(content) if "png" in kind and draw.random() < 0.7 else content))
    results = list(apart(read_image, [content for _, content in tried]))
    counts = Counter(results)
    figure(f"Mutated images: {len(tried)} tried, {counts['read']} read, {counts['refused']} refused")
    faults = [(number, tried[number][0], r) for number, r in enumerate(results) if r not in ("read", "refused")]
    assert not faults
    assert min(counts["read"], counts["refused"]) > IMAGES / 10  # mutations that matter, and not too much


# --- Checkpoints -----------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> str:
    """ "read" or "refused"; anything else is a fault, and so is a warning, which would be a second line."""
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for load in (checkpoint.load, checkpoint.load_model):
            try:
                result = "read" if isinstance(load(path), dict) else "no dict"
            except UserError as error:
                result = "refused" if str(path) in str(error) and "\n" not in str(error) else f"unclear: {error}"
            except BaseException as error:
                return f"{load.__name__}: {type(error).__name__}: {error}"
    if warned:
        return f"warned: {warned[0].message}"
    return result if time.monotonic() - began < MOST_SECONDS else "took too long"


def mutated_entry(content: bytes, draw: random.Random) -> bytes:
    """The archive, well-formed, with one of its files mutated: behind the checksums, where the pickle is."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as archive:
        victim = draw.choice([name for name in source.namelist() for _ in range(5 if "pkl" in name else 1)])
        for name in source.namelist():
            archive.writestr(name, mutated(source.read(name), draw) if name == victim else source.read(name))
    return target.getvalue()


def test_mutated_checkpoints(earlier: Path, tmp_path: Path, apart: Callable) -> None:
    draw = random.Random(8)
    (original,) = (path.read_bytes() for path in earlier.rglob("epoch_*.pt"))
    old_format = io.BytesIO()
    torch.save(torch.load(io.BytesIO(original)), old_format, _use_new_zipfile_serialization=False)
    paths = []
    for number in range(CHECKPOINTS):
        path = tmp_path / f"{number}.pt"
        change = (mutated, mutated_entry, mutated_entry)[number % 3]
        path.write_bytes(mutated(old_format.getvalue(), draw) if number % 10 == 0 else change(original, draw))
        paths.append(path)
    results = list(apart(read_checkpoint, paths))
    counts = Counter(results)
    figure(f"Mutated checkpoints: {len(paths)} tried, {counts['read']} read, {counts['refused']} refused")
    assert not [(number, r) for number, r in enumerate(results) if r not in ("read", "refused")]
    assert counts["refused"] > CHECKPOINTS / 10
