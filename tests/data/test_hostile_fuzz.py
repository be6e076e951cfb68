"""Mutated image files and checkpoints are read or refused. They never crash, hang or raise anything unexpected."""

import io
import multiprocessing
import random
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ORIENTATION, picture
from PIL import Image
from survival import figure

from deepcolor.data import image_io
from deepcolor.training import checkpoint
from utils import UserError

pytest_plugins = ["survival"]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Flips bits, replaces bytes, truncates, exchanges blocks, repeats a block, or writes zeros."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if not changed:
            break
        start, stop = sorted(rng.randrange(len(changed) + 1) for _ in range(2))
        # Half of the mutations are in the header.
        at = rng.randrange(len(changed) if rng.random() < 0.5 else min(64, len(changed)))
        size = rng.randrange(1, 200)
        match rng.randrange(7):
            case 0 | 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 3:
                del changed[start if rng.random() < 0.5 else at :]
            case 4:
                changed[start:stop] = changed[stop - size : stop] + changed[start : stop - size]
            case 5:
                changed[at:at] = changed[at : at + size]
            case _:
                changed[at : at + size] = bytes(size)
    return bytes(changed)


def check_all(read: Callable, inputs: list, name: str) -> None:
    """Calls `read` on every input in another process: it has to return "read" or "refused"."""
    # A crash of the process breaks the pool, and a hang is a timeout: both fail the test and nothing else.
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        results = list(pool.map(read, inputs, chunksize=20, timeout=240))
    counts = Counter(results)
    figure(f"Mutated {name}: {len(inputs)} tried, {counts['read']} read, {counts['refused']} refused")
    assert not [(number, result) for number, result in enumerate(results) if result not in ("read", "refused")]
    assert min(counts["read"], counts["refused"]) > len(inputs) / 10  # the mutations matter, but not too much


# --- Images --------------------------------------------------------------------------------------------


def image_files() -> dict[str, bytes]:
    """Returns small pictures in the usual formats and in every compression of TIFF."""
    rgb = Image.fromarray(picture(1, 48, 64))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
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


def other_files() -> list[bytes]:
    """Returns pictures in formats that are not meant, which must be refused whatever their files are called."""
    rgb, contents = Image.fromarray(picture(1, 48, 64)), []
    for kind in ("ICO", "EPS", "PDF", "PCX", "SGI"):
        file = io.BytesIO()
        rgb.save(file, kind)
        contents.append(file.getvalue())
    return contents


def fix_png_checksums(content: bytes) -> bytes:
    """Corrects the checksum of every chunk, so that decoding does not stop at the first."""
    fixed, start = bytearray(content), 8
    while start + 12 <= len(fixed):
        end = start + 8 + struct.unpack_from(">I", fixed, start)[0]
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[start + 4 : end]))
        start = end + 4
    return bytes(fixed)


def read_image(content: bytes) -> str:
    try:
        pixels = image_io.decode_image(content)
        return "read" if pixels.shape == (128, 128, 3) and pixels.dtype == np.uint8 else f"not RGB: {pixels.shape}"
    except image_io.Unreadable as error:
        return "refused" if str(error) and "\n" not in str(error) else f"no reason: {error!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def test_mutated_images() -> None:
    rng = random.Random(7)
    originals = image_files()
    assert {read_image(content) for content in originals.values()} == {"read"}
    assert {read_image(content) for content in other_files()} == {"refused"}
    inputs = [mutate(content, rng) for content in other_files() for _ in range(10)]
    for number in range(840):
        kind = list(originals)[number % len(originals)]
        content = mutate(originals[kind], rng)
        inputs.append(fix_png_checksums(content) if "png" in kind and rng.random() < 0.7 else content)
    check_all(read_image, inputs, "images")


# --- Checkpoints ---------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> str:
    with warnings.catch_warnings(record=True) as caught:  # a warning would be a second line of output
        warnings.simplefilter("always")
        for load in (checkpoint.load, checkpoint.load_model):
            try:
                result = "read" if isinstance(load(path), dict) else "not a dictionary"
            except UserError as error:
                result = "refused" if str(path) in str(error) and "\n" not in str(error) else f"unclear: {error}"
            except BaseException as error:
                return f"{load.__name__}: {type(error).__name__}: {error}"
    return f"warning: {caught[0].message}" if caught else result


def mutate_member(content: bytes, rng: random.Random) -> bytes:
    """Mutates one file of the archive, most often the pickle, and writes a valid archive with right checksums."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as archive:
        names = source.namelist()
        chosen = rng.choice([name for name in names for _ in range(5 if "pkl" in name else 1)])
        for name in names:
            archive.writestr(name, mutate(source.read(name), rng) if name == chosen else source.read(name))
    return target.getvalue()


def odd_values() -> list[object]:
    nested: list = [1]
    for _ in range(40):  # its text doubles with each level
        nested = [nested, nested]
    numbers = [float("nan"), float("inf"), -1, 10**30, True]
    return [None, "text", "../../x", [], {}, nested, torch.zeros(1).expand(1 << 27), *numbers]


def change_a_field(content: bytes, rng: random.Random) -> bytes:
    """Replaces, removes or adds a value somewhere in a checkpoint."""
    model = torch.load(io.BytesIO(content), weights_only=True)
    part = model
    while (inner := [value for value in part.values() if isinstance(value, dict) and value]) and rng.random() < 0.6:
        part = rng.choice(inner)
    key = rng.choice([*part, "another"])
    if rng.random() < 0.2:
        part.pop(key, None)
    else:
        part[key] = rng.choice(odd_values())
    changed = io.BytesIO()
    torch.save(model, changed)
    return changed.getvalue()


@pytest.mark.parametrize("count", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_mutated_checkpoints(earlier: Path, tmp_path: Path, count: int) -> None:
    rng = random.Random(8)
    (original,) = (path.read_bytes() for path in earlier.rglob("epoch_*.pt"))
    old_format = io.BytesIO()
    torch.save(torch.load(io.BytesIO(original)), old_format, _use_new_zipfile_serialization=False)
    paths = []
    for number in range(count):
        path = tmp_path / f"{number}.pt"
        change = (mutate, mutate_member, change_a_field)[number % 3]
        path.write_bytes(mutate(old_format.getvalue(), rng) if number % 10 == 0 else change(original, rng))
        paths.append(path)
    check_all(read_checkpoint, paths, "checkpoints")
