"""Measures colorize.py: time and memory of one large photograph, and time of many small ones.

    python3 benchmarks/colorize.py [--checkpoint FILE] [--megapixels 24] [--photos 1000] [--repeats 5] [--json FILE]

Each measurement is a run of the real command, from its start to its end. The large photograph is a JPEG with the
structure and grain of one from a camera. A tenth of the small ones is measured too, to separate the time per photograph
from the time of the start. Without --checkpoint, an untrained network is used: the time does not depend on its weights.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import common
import numpy as np
from PIL import Image
from skimage.data import astronaut

import Constants
from Colorizer import Colorizer
from deepcolor.training import checkpoint
from utils import UserError, Utils, format_value

_PROGRAM = Path(__file__).resolve().parent.parent / "colorize.py"


def arguments() -> argparse.Namespace:
    description = "Speed and memory of colorize.py."
    parser = common.parser("colorize.py", description, device="auto", repeats=5, json=None)
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", type=Path, help="a colorizer checkpoint (an untrained network)")
    add("--feature-maps", metavar="MAPS", type=common.feature_maps, default=3, help="of the untrained network (3)")
    add("--megapixels", metavar="N", type=common.at_least_one, default=24, help="of the large photograph (24)")
    add("--photos", metavar="N", type=common.at_least_one, default=1000, help="number of small photographs (1000)")
    add("--side", metavar="N", type=common.at_least_one, default=256, help="their width and height in pixels (256)")
    return parser.parse_args()


def write_large(path: Path, megapixels: int) -> None:
    """Writes an enlarged photograph, 3 to 2, with added structure and grain down to the pixel."""
    random = np.random.default_rng(0)
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    size = (megapixels * 1_000_000 // height, height)
    texture = Image.fromarray(random.integers(0, 256, (height // 4, size[0] // 4, 3), dtype=np.uint8))
    photo, texture = (image.resize(size, Image.Resampling.BICUBIC) for image in (Image.fromarray(astronaut()), texture))
    grain = random.normal(0, 3, (height, size[0], 3)).astype(np.float32)
    pixels = np.asarray(photo) + (np.asarray(texture, np.float32) - 128) / 4 + grain
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def write_small(folder: Path, count: int, side: int) -> None:
    """Writes random crops of a photograph."""
    folder.mkdir()
    random = np.random.default_rng(0)
    photo = Image.fromarray(astronaut())
    photo = photo.resize((max(photo.width, 2 * side), max(photo.height, 2 * side)))
    for number in range(count):
        left, top = (int(random.integers(0, length - side + 1)) for length in photo.size)
        photo.crop((left, top, left + side, top + side)).save(folder / f"{number:05}.jpg", quality=90)


def write_checkpoint(path: Path, feature_maps: int | tuple[int, ...]) -> Path:
    """Writes a checkpoint of an untrained network, with what it takes to use it."""
    activation = Constants.ACTIVATIONS[0]
    content = {"network": "colorizer", "activation": activation, "feature_maps": feature_maps, "epoch": 0}
    model = Colorizer(feature_maps, activation).state_dict()
    checkpoint.save({**content, "image_size": Constants.IMAGE_SIZE, "model": model}, path)
    return path


def run(command: Iterable[object]) -> tuple[float, float]:
    """Runs colorize.py. Returns the seconds and the peak megabytes of its first process. Raises UserError."""
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, str(_PROGRAM), *map(str, command)], stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, common.status_bytes("VmHWM", process.pid))
            time.sleep(0.01)
        seconds = time.monotonic() - start
        if process.returncode:
            log.seek(0)
            raise UserError(log.read().decode(errors="replace").strip().rpartition("\n")[2])
    return seconds, peak / 1e6


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict]:
    """Returns the spread of every measurement, after a warm-up run."""
    checkpoint = options.checkpoint or write_checkpoint(folder / "untrained.pt", options.feature_maps)
    flags = ("--checkpoint", checkpoint, "--device", options.device, "--overwrite")
    write_large(folder / "large.jpg", options.megapixels)
    commands = {"large": (folder / "large.jpg", *flags)}
    for name, count in (("small", options.photos), ("tenth", max(1, options.photos // 10))):
        write_small(folder / name, count, options.side)
        commands[name] = (folder / name, "--output", folder / f"{name} colored", *flags)
    results: dict[str, dict] = {}
    for name, command in commands.items():
        seconds, megabytes = zip(*[run(command) for _ in range(options.repeats + 1)][1:])
        results[f"{name}_seconds"] = common.spread(seconds)
        results[f"{name}_megabytes"] = common.spread(megabytes)
    return results


def report(options: argparse.Namespace, results: dict[str, dict]) -> str:
    large, small = f"{options.megapixels} megapixels", f"{options.photos:,} of {options.side} x {options.side}"
    difference = results["small_seconds"]["median"] - results["tenth_seconds"]["median"]
    each = difference / max(1, options.photos - max(1, options.photos // 10))
    rows = [
        [f"{large}, seconds", common.show(results["large_seconds"], ".2f")],
        [f"{large}, MB", common.show(results["large_megabytes"])],
        [f"{small}, seconds", common.show(results["small_seconds"], ".2f")],
        ["... milliseconds for each further one", f"{each * 1000:.1f}"],
    ]
    return common.markdown(["colorize.py", "median (range)"], rows)


def main() -> None:
    options = arguments()
    common.check_json(options.json)
    device = Utils.get_device(options.device)
    with tempfile.TemporaryDirectory(prefix="colorization-") as temporary:
        results = measure(options, Path(temporary))
    print(f"{common.describe(device)}\n\n{report(options, results)}")
    settings = {key: getattr(options, key) for key in ("megapixels", "photos", "side", "repeats")}
    settings["feature_maps"] = None if options.checkpoint else format_value(options.feature_maps)
    common.write_json(options.json, {"settings": settings, "results": results}, device)


if __name__ == "__main__":
    sys.exit(common.run("colorize.py", main))
