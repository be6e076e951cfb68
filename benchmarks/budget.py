"""Plans the training of many images on many GPUs: bytes, step time, gradient traffic, bandwidth, hours.

    python3 benchmarks/budget.py [--images DIR] [--images-count 1000000] [--gpus 8 64] [--speed IMAGES_PER_SECOND]

What can be measured on this machine is measured: what an image costs to decode, to keep, to read with a random crop and
to score, and what the networks consist of. What a GPU and a network can do at most is their vendor's figure, and stands
in the flags. `--speed` is what one GPU makes of a network, as `throughput.py --device cuda` measures it; without it the
hours are those that the loader and the GPU's peak allow at best. docs/scaling.md explains the formulas.
"""

import argparse
import math
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import common
import torch
from torch.utils.flop_counter import FlopCounterMode

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
from deepcolor.training.trainer import Trainer
from utils import format_seconds, format_value

_LEAST_CALLS = 5
WIDTHS = (Constants.FEATURE_MAPS, Constants.NAMED_FEATURE_MAPS["deep"])


def arguments() -> argparse.Namespace:
    parser = cli.Parser("budget.py", description="A plan for many images on many GPUs.")
    add = parser.add_argument
    add("--images", metavar="DIR", type=Path, help="photographs to measure with (the built-in ones)")
    add("--images-count", metavar="N", type=common.at_least_one, default=1_000_000, help="to plan for (1000000)")
    add("--gpus", nargs="+", metavar="N", type=common.at_least_one, default=[8, 64], help="to plan for (8 64)")
    add("--per-node", metavar="N", type=common.at_least_one, default=8, help="GPUs of a node (8)")
    add("--cores", metavar="N", type=common.at_least_one, default=104, help="cores of a node (104)")
    add("--batch", metavar="N", type=common.at_least_one, default=64, help="images per GPU and step (64)")
    add("--epochs", metavar="N", type=common.at_least_one, default=100, help="to plan for (100)")
    add("--speed", metavar="V", type=float, nargs=2, help="images/s of one GPU, measured: for 3 maps and for deep")
    add("--peak", metavar="FLOPS", type=float, default=989e12, help="of one GPU, per second (989e12)")
    add("--link", metavar="BYTES", type=float, default=450e9, help="per second and GPU, in a node (450e9)")
    add("--network", metavar="BYTES", type=float, default=50e9, help="per second and GPU, between nodes (50e9)")
    return parser.parse_args()


@dataclass(frozen=True)
class Image:
    """What one image costs: seconds of one core, and bytes."""

    decode: float
    open: float
    load: float
    score: float
    index_bytes: float
    memory_bytes: float


@dataclass(frozen=True)
class Network:
    """What one Colorizer consists of."""

    width: int | tuple[int, ...]
    parameters: int
    flops: float  # of a training step, per image


def core_seconds(work: Callable[[], object], least: float = 2.0) -> float:
    """Seconds of processor time of one call, of all threads together.

    The least of the calls in at least that much time: other programs can only make it longer.
    """
    spent: list[float] = []
    while sum(spent) < least or len(spent) < _LEAST_CALLS:
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


def measure_image(images: common.Prepared, folder: Path) -> Image:
    """Each figure from this machine."""
    torch.set_num_threads(1)
    count = sum(map(len, images.paths.values()))

    def decode() -> None:
        with tempfile.TemporaryDirectory(prefix="colorization-") as fresh:
            LabDataModule.load(folder, Path(fresh))

    (index,) = images.output.root.glob(".cache/*/index.txt")
    trainer = colorizer(WIDTHS[0], images.data, images.output)
    Constants.MAX_PICTURES = 0  # of many images, few are written as pictures
    return Image(
        decode=core_seconds(decode) / count,
        open=core_seconds(lambda: LabDataModule.load(folder, images.output.root)) / count,
        load=core_seconds(lambda: list(map(len, loader(images.data.train, trainer.batches)))) / len(images.data.train),
        score=core_seconds(lambda: trainer.test("budget", 0.0)) / len(images.data.test),
        index_bytes=index.stat().st_size / count,
        memory_bytes=len(pickle.dumps(images.data)) / count,
    )


def measure_network(width: int | tuple[int, ...], images: common.Prepared) -> Network:
    trainer = colorizer(width, images.data, images.output)
    trainer.model.train()
    batch = next(iter(loader(images.data.train, trainer.batches)))
    with FlopCounterMode(display=False) as counter:
        trainer.step(*batch)
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return Network(width, parameters, counter.get_total_flops() / len(batch[0]))


def colorizer(width: int | tuple[int, ...], data: LabDataModule, output: RunPaths) -> Trainer:
    training_run = TrainingRun("colorizer", "sigmoid", TrainConfig(feature_maps=width), (1,))
    return Sweep([training_run], data, output, torch.device("cpu")).trainer(training_run, Silent())


def image_table(image: Image, options: argparse.Namespace) -> str:
    """What all images cost, where the number of GPUs does not matter."""
    count, tested = options.images_count, options.images_count * Constants.SPLIT[2]
    rows = [
        ["decoding, once", f"{1e3 * image.decode:.2f} ms", f"{format_seconds(count * image.decode / options.cores)} *"],
        ["records, on the disk", f"{RECORD_BYTES:,} bytes", f"{count * RECORD_BYTES / 1e9:,.1f} GB"],
        ["index, on the disk", f"{image.index_bytes:,.0f} bytes", f"{count * image.index_bytes / 1e9:,.2f} GB"],
        ["opening the cache again, rank 0", f"{1e3 * image.open:.3f} ms", format_seconds(count * image.open)],
        [
            "what each rank is told of it",
            f"{image.memory_bytes:,.0f} bytes",
            f"{count * image.memory_bytes / 1e9:,.2f} GB",
        ],
        ["reading with a random crop", f"{1e3 * image.load:.3f} ms", f"{1 / image.load:,.0f} images/s a core"],
        ["scoring a test image, rank 0", f"{1e3 * image.score:.2f} ms", f"{format_seconds(tested * image.score)} **"],
    ]
    return common.markdown(["", "one image, one core", f"{count:,} images"], rows)


def expand_grid(network: Network, gpus: int, image: Image, options: argparse.Namespace) -> list[str]:
    """A row of the plan: one Colorizer on so many GPUs."""
    batch = options.batch * gpus
    trained, validated = (int(options.images_count * share) for share in Constants.SPLIT[:2])
    steps = math.ceil(trained / batch)
    speed = options.speed[WIDTHS.index(network.width)] if options.speed else options.peak / network.flops
    loading, computing = options.batch * image.load, options.batch / speed
    traffic = 2 * (gpus - 1) / gpus * 4 * network.parameters
    sending = traffic / (options.network if gpus > options.per_node else options.link)
    step = max(loading, computing, sending)
    epoch = steps * step + validated / gpus * max(image.load, 1 / speed)
    read = options.batch / step * min(gpus, options.per_node) * RECORD_BYTES
    return [
        f"`{format_value(network.width)}`, {gpus} GPUs",
        *(f"{number:,}" for number in (batch, steps)),
        *(f"{1e3 * seconds:.2f}" for seconds in (loading, computing)),
        f"{traffic / 1e6:,.2f}",
        f"{1e3 * sending:.3f}",
        f"{read / 1e9:.1f}",
        f"{epoch:,.1f}",
        f"{options.epochs * epoch / 3600:.2f}",
    ]


def main() -> None:
    options = arguments()
    keep_freed_memory()
    with common.prepared(options.images) as images:
        image = measure_image(images, images.folder)
        networks = [measure_network(width, images) for width in WIDTHS]
    head = [
        "",
        "batch",
        "steps an epoch",
        "loading, ms",
        "computing, ms",
        "traffic, MB",
        "sending, ms",
        "GB/s a node",
    ]
    head += ["s an epoch", f"h for {options.epochs} epochs"]
    rows = [expand_grid(network, gpus, image, options) for network in networks for gpus in options.gpus]
    print(f"{common.describe(torch.device('cpu'))}\n\n{image_table(image, options)}")
    print(f"* on {options.cores} cores. ** the tenth of the images that is not trained on; for every snapshot.\n")
    for network in networks:
        print(
            f"`{format_value(network.width)}` Colorizer: {network.parameters:,} parameters, "
            f"{4 * network.parameters / 1e6:.3f} MB of gradients, {network.flops / 1e9:.4f} GFLOP an image"
        )
    print(f"\n{common.markdown(head, rows)}")


if __name__ == "__main__":
    sys.exit(common.run("budget.py", main))
