"""Makes pretrained/photos.pt.

    python3 benchmarks/pretrain.py PHOTOS FOLDER

PHOTOS holds sharp photographs (.jpg) and tiny-imagenet-60k.tar, with photographs of 64x64 pixels (.JPEG). All results
go into FOLDER, which needs 30 GB. FOLDER/photos.pt is the colorizer: the mean of the weights of three stages. The same
command continues after a stop.
"""

import os
import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import chroma
import common
import numpy as np
import torch
from PIL import Image

import Constants
from deepcolor.inference.predictor import Predictor
from deepcolor.training import checkpoint
from deepcolor.training.trained_colorizer import load_colorizer
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
ARCHIVE = "tiny-imagenet-60k.tar"
NETWORK = (
    "--network colorizer --activation tanh --encoder mobilenet_v2 --skip on --feature-maps 32,32,64,96,128,256 "
    "--weight-decay 0 --batch-size 32 --schedule cosine --warmup-steps 100 --precision fp32"
)


class Stage(NamedTuple):
    copies: int  # of each sharp photograph among the small ones
    crops: bool  # whether the copies after the first are random square crops
    small: int  # takes every small photograph (1) or every second one (2)
    processes: int
    flags: str  # of main.py


STAGES = {
    "stage1": Stage(1, False, 1, 1, "--epoch 1 --lr 0.002"),
    "stage2": Stage(8, False, 1, 2, "--epoch 3 --lr 0.002"),
    "stage3": Stage(12, True, 2, 2, "--epoch 2 --lr 0.001 --encoder-lr 0.1 --dropout 0.2"),
}


def subset(number: int) -> str:
    """Returns the subset of a sharp photograph from its position in the sorted names."""
    return {0: "test", 7: "test", 3: "val"}.get(number % 13, "train")


def collect(photos: Path, folder: Path, stage: Stage) -> None:
    """Fills `folder` with the three subsets. The small photographs are for training only."""
    if folder.exists():
        return
    unfinished = folder.with_name(folder.name + "~")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in Constants.SUBSETS:
        (unfinished / name).mkdir(parents=True)
    for number, photo in enumerate(sorted(photos.glob("*.jpg"))):
        name = subset(number)
        shutil.copy(photo, unfinished / name)
        if name == "train":
            targets = [unfinished / name / f"{photo.stem}_{copy}.jpg" for copy in range(1, stage.copies)]
            save_copies(photo, targets, stage.crops)
    with tarfile.open(photos / ARCHIVE) as archive:
        small = {Path(member.name).name: member for member in archive if member.isfile()}
        for name in sorted(small)[:: stage.small]:
            small[name].name = name
            archive.extract(small[name], unfinished / "train", filter="data")
    unfinished.rename(folder)


def save_copies(photo: Path, targets: list[Path], crops: bool) -> None:
    """Copies a photograph, or saves random square crops whose side is at least half of its shorter side."""
    if not crops:
        for target in targets:
            shutil.copy(photo, target)
        return
    generator = random.Random(photo.name)
    with Image.open(photo) as file:
        image = file.convert("RGB")
    for target in targets:
        side = round(min(image.size) * generator.uniform(0.5, 1))
        left, top = (generator.randint(0, length - side) for length in image.size)
        image.crop((left, top, left + side, top + side)).save(target, quality=95)


def main() -> None:
    parser = common.parser("pretrain.py", "Makes pretrained/photos.pt.")
    parser.add_argument("photos", metavar="PHOTOS", type=Path, help="folder of the photographs to learn from")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where all results go")
    options = parser.parse_args()
    if not (options.photos / ARCHIVE).is_file():
        raise UserError(f"{options.photos} has no {ARCHIVE}: docs/pretrained.md says where the photographs come from")
    trained: list[Path] = []
    for name, stage in STAGES.items():
        images, output = options.folder / f"{name}_photos", options.folder / name
        collect(options.photos, images, stage)
        flags = [*NETWORK.split(), *stage.flags.split(), "--images", images, "--output", output]
        start = ["--init-from", trained[-1]] if trained else []
        run(*TORCHRUN, "--nproc-per-node", stage.processes, ROOT / "main.py", *flags, *start)
        trained.append(output / "checkpoints/best_colorizer.pt")
    mean = options.folder / "mean.pt"
    average(trained, images / "val", mean)
    run(ROOT / "colorize.py", "--checkpoint", mean, "--export", options.folder / "photos.pt")


def average(checkpoints: list[Path], photos: Path, target: Path) -> None:
    """Writes a checkpoint with the means of the weights. Its saturation gives `photos` their mean chroma."""
    networks, contents = zip(*map(load_colorizer, checkpoints))
    states = [network.state_dict() for network in networks]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    networks[-1].load_state_dict(mean)
    model = replace(Predictor.load(checkpoints[-1], torch.device("cpu")), network=networks[-1].eval())
    predicted, true = np.mean([chroma.compare(model, path)[0, :2] for path in photos.iterdir()], axis=0)
    metrics = {**contents[-1]["metrics"], "saturation": min(float(true / predicted), Constants.MAX_AUTO_SATURATION)}
    checkpoint.save({**contents[-1], "model": networks[-1].state_dict(), "metrics": metrics}, target)


def run(*arguments: object) -> None:
    """Runs Python with one thread per process. Raises UserError if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if subprocess.run([sys.executable, *map(str, arguments)], env=environment).returncode:
        raise UserError("a program did not finish; the same command continues")


if __name__ == "__main__":
    sys.exit(common.run("pretrain.py", main))
