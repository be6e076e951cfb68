"""Measures whether memory and time per image stay level from few images to many.

    python3 benchmarks/scale.py [--images-count 1000 100000] [--json FILE]

For each number of images: writes as many small JPEG files, no two alike, and, each in a fresh process, (1) builds
the package's cache of them on all cores and trains three maps on images from all over the set, as a first run does;
(2) opens the cache again and trains, as every later run does. 100,000 images take about 11 GB in the temporary
folder (TMPDIR chooses it), which are removed at the end.

Memory: "anonymous" is what the process itself holds; "resident" counts the pages of the mapped cache as well, which
the system takes back whenever it needs them.
"""

import argparse
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
from deepcolor.common import cli
from deepcolor.common.system import keep_freed_memory
from deepcolor.data.batches import loader
from deepcolor.data.dataset import LabDataModule
from deepcolor.data.lab_cache import RECORD_BYTES
from deepcolor.reporting.progress import Silent
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainConfig, TrainingRun
from utils import UserError

_SIDE = 64  # pixels of a made photograph
_FILE_BYTES = 4096  # that it takes on the disk
_PER_FOLDER = 1000
_SECONDS_BETWEEN_LOOKS = 0.02  # at the memory in use


def arguments() -> argparse.Namespace:
    parser = cli.Parser("scale.py", description="Memory and time per image, few and many.")
    add = parser.add_argument
    many = {"nargs": "+", "type": common.at_least_one, "metavar": "N"}
    add("--images-count", **many, default=[1000, 100_000], help="numbers of images to compare (1000 100000)")
    add("--trained", metavar="N", type=common.at_least_one, default=4000, help="images to train on (4000)")
    add("--json", metavar="FILE", type=Path, help="where to write all figures")
    return parser.parse_args()


def write_photographs(folder: Path, count: int) -> None:
    """Small JPEG files: cuttings of a photograph, made unique by a block of pixels that spells the number."""
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


class AnonymousPeak:
    """The most anonymous memory of this process while it lasts, in bytes: the kernel keeps no peak of that."""

    def __init__(self) -> None:
        self.bytes = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self.ended.wait(_SECONDS_BETWEEN_LOOKS):
            self.bytes = max(self.bytes, common.status_bytes("RssAnon") + common.status_bytes("RssShmem"))

    def __enter__(self) -> "AnonymousPeak":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()


def work(folder: Path, output: Path, trained: int) -> dict[str, float]:
    """What a run does, in a process of its own: opens the images, decoding what is new, and trains."""
    keep_freed_memory()
    with AnonymousPeak() as anonymous:
        began = time.monotonic()
        data = LabDataModule.load(folder, output)
        opened = time.monotonic() - began
        resident = common.status_bytes("VmHWM")
        training = train(data, output, trained)
    return {
        "open_seconds": opened,
        "train_images_per_second": training,
        "anonymous_peak": anonymous.bytes,
        "resident_peak_after_opening": resident,
        "resident_peak": common.status_bytes("VmHWM"),
        "resident_at_end": common.status_bytes("VmRSS"),
    }


def train(data: LabDataModule, output: Path, count: int) -> float:
    """Images per second of a three-map Colorizer over `count` images, drawn from the whole set as an epoch does."""
    training_run = TrainingRun("colorizer", "sigmoid", TrainConfig(), (1,))
    trainer = Sweep([training_run], data, RunPaths(output), torch.device("cpu")).trainer(training_run, Silent())
    trainer.model.train()

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for epoch in itertools.count(1):
            trainer.batches.set_epoch(epoch)
            yield from loader(data.train, trainer.batches)

    steps = -(-count // Constants.BATCH_SIZE)
    warm_up = max(1, steps // 10)
    seen = 0
    for number, (lightness, ab) in enumerate(itertools.islice(batches(), warm_up + steps)):
        if number == warm_up:
            began = time.monotonic()
        trainer.take_step(lightness, ab)
        seen += len(lightness) if number >= warm_up else 0
    return seen / (time.monotonic() - began)


def measure(count: int, trained: int) -> dict[str, object]:
    """A first and a later run over so many images, each in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="colorization-") as temporary:
        needed = count * (RECORD_BYTES + _FILE_BYTES)
        if shutil.disk_usage(temporary).free < needed:
            raise UserError(f"{count:,} images need {needed / 1e9:.1f} GB in {tempfile.gettempdir()}: set TMPDIR")
        folder, output = Path(temporary) / "images", Path(temporary) / "output"
        write_photographs(folder, count)
        os.sync()  # so that writing them out is not part of what is measured
        RunPaths(output).prepare()
        results: dict[str, object] = {"images": count}
        for run in ("first run", "later run"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                results[run] = fresh.submit(work, folder, output, trained).result()
    return results


def table(measured: list[dict]) -> str:
    """A row per number of images and run, and the last number against the first."""
    head = ["images", "open, ms per image", "train, ms per image", "anonymous, MB", "resident, MB", "at the end, MB"]
    rows = []
    for run in ("first run", "later run"):
        cells = [_cells(each["images"], each[run]) for each in measured]
        for each, values in zip(measured, cells):
            rows.append(
                [f"{each['images']:,}, {run}", *(f"{v:,.3f}" for v in values[:2]), *(f"{v:,.0f}" for v in values[2:])]
            )
        (open_0, train_0, *memory_0), (open_1, train_1, *memory_1) = cells[0], cells[-1]
        differences = (f"{b - a:+,.0f}" for a, b in zip(memory_0, memory_1))
        rows.append(
            [f"last against first, {run}", f"x {open_1 / open_0:.2f}", f"x {train_1 / train_0:.2f}", *differences]
        )
    return common.markdown(head, rows)


def _cells(count: int, figures: dict[str, float]) -> list[float]:
    memory = [figures[key] / 1e6 for key in ("anonymous_peak", "resident_peak", "resident_at_end")]
    return [1000 * figures["open_seconds"] / count, 1000 / figures["train_images_per_second"], *memory]


def main() -> None:
    options = arguments()
    common.check_json(options.json)
    device = torch.device("cpu")
    measured = [measure(count, options.trained) for count in options.images_count]
    print(f"{common.describe(device)}\n\n{table(measured)}")
    common.write_json(options.json, {"trained_images": options.trained, "results": measured}, device)


if __name__ == "__main__":
    sys.exit(common.run("scale.py", main))
