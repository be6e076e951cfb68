"""Measures whether memory and time per image are the same for few and for many images.

    python3 benchmarks/scale.py [--images-count 1000 100000] [--json FILE]

For each number of images: writes as many small JPEG files, all different. Then, each in a fresh process: (1) decodes
them into the cache on all cores and trains three maps on images from the whole set, as a first run does; (2) opens the
cache again and trains, as every later run does. 100,000 images take about 11 GB in the temporary folder (TMPDIR), which
are deleted at the end.

Anonymous memory is what the process itself holds, without the pages of the mapped cache, which the system can take back
at any time.
"""

import contextlib
import itertools
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import common
import numpy as np
import torch
from PIL import Image
from skimage.data import astronaut

import Constants
from ColorizerManager import ColorizerManager
from deepcolor.common.system import keep_freed_memory
from deepcolor.data.batches import loader
from deepcolor.data.dataset import LabDataModule
from deepcolor.data.lab_cache import RECORD_BYTES
from deepcolor.training.callbacks import Callbacks
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.paths import RunPaths
from utils import UserError

CPU = torch.device("cpu")
STEPS = 250  # of training, after a warm-up
WARM_UP_STEPS = 25
RUNS = ("first run", "later run")
COLUMNS = ("open, ms per image", "train, ms per image", "anonymous memory, MB")
_SIDE = 64  # pixels of a photograph
_FILE_BYTES = 4096  # of a photograph on disk
_PER_FOLDER = 1000
_POLL_SECONDS = 0.02  # between two looks at the memory in use


def write_photographs(folder: Path, count: int) -> None:
    """Writes small JPEG files: crops of a photograph, made unique by a block of pixels that encodes the number."""
    random = np.random.default_rng(0)
    photograph = astronaut()
    for number in range(count):
        top, left = random.integers(0, photograph.shape[0] - _SIDE, 2)
        pixels = photograph[top : top + _SIDE, left : left + _SIDE].copy()
        bits = np.array([number >> bit & 1 for bit in range(20)], np.uint8).reshape(4, 5)
        pixels[:32, :40] = 255 * bits.repeat(8, axis=0).repeat(8, axis=1)[..., None]
        path = folder / f"{number // _PER_FOLDER:04}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=75)


@contextlib.contextmanager
def anonymous_peak(peak: list[int]) -> Iterator[None]:
    """Keeps `peak[0]` at the peak of the anonymous memory of this process. The kernel does not record it."""
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_POLL_SECONDS):
            peak[0] = max(peak[0], common.status_bytes("RssAnon") + common.status_bytes("RssShmem"))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield
    ended.set()
    thread.join()


def work(folder: Path, output: Path, count: int) -> dict[str, float]:
    """Opens the images, which decodes new ones, and trains. Called in a fresh process. Returns a value per column."""
    keep_freed_memory()
    peak = [0]
    with anonymous_peak(peak):
        start = time.monotonic()
        data = LabDataModule.load(folder, output)
        opened = time.monotonic() - start
        speed = train(data, RunPaths(output))
    return dict(zip(COLUMNS, (1000 * opened / count, 1000 / speed, peak[0] / 1e6)))


def train(data: LabDataModule, paths: RunPaths) -> float:
    """Returns the images per second of a Colorizer with three maps, trained on one thread."""
    torch.set_num_threads(1)
    run = TrainingRun("colorizer", "sigmoid", TrainConfig(), (1,))
    trainer = ColorizerManager(run, data, paths, CPU, Callbacks())
    trainer.model.train()

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for epoch in itertools.count(1):
            trainer.batches.set_epoch(epoch)
            yield from loader(data.train, trainer.batches)

    seen = 0
    for number, (lightness, ab) in enumerate(itertools.islice(batches(), WARM_UP_STEPS + STEPS)):
        if number == WARM_UP_STEPS:
            start, seen = time.monotonic(), 0
        trainer.run_step(lightness, ab)
        seen += len(lightness)
    return seen / (time.monotonic() - start)


def measure(count: int) -> dict[str, object]:
    """Measures a first and a later run over so many images."""
    with tempfile.TemporaryDirectory(prefix="colorization-") as temporary:
        needed = count * (RECORD_BYTES + _FILE_BYTES)
        if shutil.disk_usage(temporary).free < needed:
            raise UserError(f"{count:,} images need {needed / 1e9:.1f} GB in {tempfile.gettempdir()}: set TMPDIR")
        folder, output = Path(temporary) / "images", Path(temporary) / "output"
        write_photographs(folder, count)
        os.sync()  # so that the system does not write them while the runs are measured
        RunPaths(output).prepare("fp32")
        results: dict[str, object] = {"images": count}
        for run in RUNS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                results[run] = fresh.submit(work, folder, output, count).result()
    return results


def table(measured: list[dict]) -> str:
    """Returns a row for each number of images and run, and rows that compare the last number with the first."""
    rows = []
    for run in RUNS:
        rows += [
            [f"{each['images']:,}, {run}", *(f"{value:,.3f}" for value in each[run].values())] for each in measured
        ]
        ratios = (f"x {measured[-1][run][column] / measured[0][run][column]:.2f}" for column in COLUMNS)
        rows.append([f"last against first, {run}", *ratios])
    return common.markdown(["images", *COLUMNS], rows)


def main() -> None:
    parser = common.parser("scale.py", "Compares few with many images.", json=None)
    counts = {"nargs": "+", "type": common.at_least_one, "default": [1000, 100_000]}
    parser.add_argument("--images-count", metavar="N", help="numbers of images to compare (1000 100000)", **counts)
    options = parser.parse_args()
    common.check_json(options.json)
    measured = [measure(count) for count in options.images_count]
    print(common.describe(CPU), table(measured), sep="\n\n")
    content = {"trained_images": STEPS * Constants.BATCH_SIZE, "results": measured}
    common.write_json(options.json, content, CPU)


if __name__ == "__main__":
    sys.exit(common.run("scale.py", main))
