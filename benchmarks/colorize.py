"""Measures colorize.py: the time and memory of a large photograph, and many small ones against decoding alone.

    python3 benchmarks/colorize.py [--checkpoint FILE] [--megapixels 24] [--photos 1000] [--repeats 5] [--json FILE]

Every figure is of the real command in a process of its own, from its start to its end. The large photograph is a JPEG
of a real one, enlarged, with grain, so that it is as hard to decode and to compress as one from a camera. Of the small
ones the command's start is taken off by coloring a tenth of them as well. Without --checkpoint, a network is trained
for a moment: how well it colors makes no difference here.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
import torch
from PIL import Image
from skimage.data import astronaut

import Constants
from deepcolor.common import cli
from deepcolor.common.system import available_cores
from deepcolor.data.image_io import find_photos, open_image, read_file, read_photo
from deepcolor.inference.predictor import Predictor
from deepcolor.reporting.results import find_models
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import expand_grid
from utils import Grid, UserError, Utils, format_value

_PROGRAM = Path(__file__).resolve().parent.parent / "colorize.py"
_BATCH = 16
_SECONDS_BETWEEN_LOOKS = 0.01  # at the memory in use


def arguments() -> argparse.Namespace:
    parser = cli.Parser("colorize.py", description="Speed and memory of colorize.py.")
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", type=Path, help="a colorizer's checkpoint (one trained for a moment)")
    add("--feature-maps", metavar="MAPS", type=common.feature_maps, default=3, help="of that one (3)")
    add("--megapixels", metavar="N", type=common.at_least_one, default=24, help="of the large photograph (24)")
    add("--photos", metavar="N", type=common.at_least_one, default=1000, help="number of small photographs (1000)")
    add("--side", metavar="N", type=common.at_least_one, default=256, help="pixels a side of these (256)")
    add("--repeats", metavar="N", type=common.at_least_one, default=5, help="of each measurement (5)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is a GPU")
    add("--json", metavar="FILE", type=Path, help="where to write all figures")
    return parser.parse_args()


# --- What is colored ------------------------------------------------------------------------------


def write_large(path: Path, megapixels: int) -> None:
    """A photograph in the shape of a camera's, 3 to 2, with structure and grain down to the pixel."""
    random = np.random.default_rng(0)
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    size = (megapixels * 1_000_000 // height, height)
    photo = Image.fromarray(astronaut()).resize(size, Image.Resampling.BICUBIC)
    texture = Image.fromarray(random.integers(0, 256, (height // 4, size[0] // 4, 3), dtype=np.uint8))
    texture = texture.resize(size, Image.Resampling.BICUBIC)
    grain = random.normal(0, 3, (height, size[0], 3)).astype(np.float32)
    pixels = np.asarray(photo) + (np.asarray(texture, np.float32) - 128) / 4 + grain
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def write_small(folder: Path, count: int, side: int) -> None:
    """Cuttings of a photograph, as JPEG."""
    folder.mkdir()
    random = np.random.default_rng(0)
    photo = Image.fromarray(astronaut())
    photo = photo.resize((max(photo.width, 2 * side), max(photo.height, 2 * side)))
    for number in range(count):
        left, top = (int(random.integers(0, length - side + 1)) for length in photo.size)
        photo.crop((left, top, left + side, top + side)).save(folder / f"{number:05}.jpg", quality=90)


def train(maps: int | tuple[int, ...], folder: Path) -> Path:
    """The checkpoint of a network with so many feature maps. Raises UserError."""
    with common.prepared(None) as images:
        axes = dict(lr=[0.001], epoch=[1], weight_decay=[0])
        training_runs = expand_grid(Grid(axes), {"feature_maps": maps}, ["colorizer"], Constants.ACTIVATIONS[:1])
        output = RunPaths(folder)
        output.prepare()
        if failures := Sweep(training_runs, images.data, output, torch.device("cpu")).run():
            raise UserError("; ".join(failures))
    models, _ = find_models(output)
    return folder / models[0]["metrics"]["checkpoint"]


# --- Measuring -------------------------------------------------------------------------------------


def run(*arguments: object) -> dict[str, float]:
    """Runs the command: seconds, and the most memory of each of its processes, summed. Raises UserError if it fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(_PROGRAM), *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in (process.pid, *common.children(process.pid)):
            peaks[pid] = max(peaks.get(pid, 0), common.status_bytes("VmHWM", pid))
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    seconds = time.monotonic() - began
    if process.returncode:
        error = process.stderr.read().decode(errors="replace").strip()
        raise UserError(error.rpartition("\n")[2] or f"ended with code {process.returncode}")
    return {"seconds": seconds, "bytes": sum(peaks.values())}


def repeated(repeats: int, *arguments: object) -> dict[str, dict]:
    """The spread of several runs, after one off the clock."""
    run(*arguments)
    runs = [run(*arguments) for _ in range(repeats)]
    return {key: common.spread([each[key] for each in runs]) for key in ("seconds", "bytes")}


def decoding(folder: Path) -> float:
    """Seconds to read and decode all photographs of a folder on all cores, and nothing else."""
    paths = [folder / path for path in find_photos(folder)]
    began = time.monotonic()
    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(lambda path: read_photo(open_image(read_file(path, folder))), paths):
            pass
    return time.monotonic() - began


def predicting(checkpoint: Path, count: int, device: torch.device) -> float:
    """Seconds of the network alone for so many photographs, in the batches and the one thread that it has there."""
    predictor = Predictor.load(checkpoint, device)
    predictor.keep_to_one_thread()
    batch = np.random.default_rng(0).random((_BATCH, 1, Constants.IMAGE_SIZE, Constants.IMAGE_SIZE), np.float32)
    return common.per_call(lambda: predictor.predict(batch), device, 1.0) / _BATCH * count


def measure(options: argparse.Namespace, checkpoint: Path, folder: Path) -> dict[str, object]:
    flags = ("--checkpoint", checkpoint, "--device", options.device, "--overwrite")
    write_large(folder / "large.jpg", options.megapixels)
    large = repeated(options.repeats, folder / "large.jpg", *flags)
    counts = {"all": options.photos, "a tenth": max(1, options.photos // 10)}
    small: dict[str, object] = {"counts": counts}
    for name, count in counts.items():
        write_small(folder / name, count, options.side)
        output = ("--output", folder / f"{name} colored")
        small[name] = repeated(options.repeats, folder / name, *output, *flags)["seconds"]
    seconds = [decoding(folder / "all") for _ in range(options.repeats + 1)][1:]
    small["decoding"] = common.spread(seconds)
    small["network"] = predicting(checkpoint, counts["all"], Utils.get_device(options.device))
    return {"large": large, "small": small}


def report(options: argparse.Namespace, results: dict) -> str:
    large, small = results["large"], results["small"]
    whole, part = (statistics.median(small[name]["values"]) for name in small["counts"])
    count = small["counts"]["all"]
    without_start = (whole - part) * count / (count - small["counts"]["a tenth"]) if part < whole else whole
    rows = [
        [f"{options.megapixels} megapixels, seconds", common.show(large["seconds"], ".2f")],
        [f"{options.megapixels} megapixels, MB", common.show({k: _mb(large["bytes"][k]) for k in _SHOWN})],
        [f"{count:,} of {options.side} x {options.side}, seconds", common.show(small["all"], ".2f")],
        ["... without the start of the program", f"{without_start:.2f}"],
        ["... decoding them, and nothing else", common.show(small["decoding"], ".2f")],
        ["... the network, and nothing else", f"{small['network']:.2f}"],
    ]
    return common.markdown(["colorize.py", "median (range)"], rows)


_SHOWN = ("median", "min", "max")


def _mb(size: float) -> float:
    return size / 1e6


def main() -> None:
    options = arguments()
    common.check_json(options.json)
    device = Utils.get_device(options.device)
    with tempfile.TemporaryDirectory(prefix="colorization-") as temporary:
        checkpoint = options.checkpoint or train(options.feature_maps, Path(temporary) / "sweep")
        results = measure(options, checkpoint, Path(temporary))
    print(f"{common.describe(device)}\n\n{report(options, results)}")
    settings = {key: getattr(options, key) for key in ("megapixels", "photos", "side", "repeats")}
    settings["feature_maps"] = None if options.checkpoint else format_value(options.feature_maps)
    common.write_json(options.json, {"settings": settings, "results": results}, device)


if __name__ == "__main__":
    sys.exit(common.run("colorize.py", main))
