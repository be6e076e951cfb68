"""Makes pretrained/photos.pt.

    python3 benchmarks/pretrain.py PHOTOS FOLDER

PHOTOS holds sharp photographs (.jpg) and tiny-imagenet-60k.tar, with photographs of 64x64 pixels (.JPEG). All results
go into FOLDER, which needs 20 GB. FOLDER/photos.pt is the colorizer. The same command continues after a stop.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import common

import Constants
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
ARCHIVE = "tiny-imagenet-60k.tar"
NETWORK = (
    "--network colorizer --activation tanh --encoder mobilenet_v2 --skip on --feature-maps 32,32,64,96,128,256 "
    "--weight-decay 0 --batch-size 32 --schedule cosine --warmup-steps 100 --precision fp32"
)
# Copies of each sharp photograph among the small ones, processes, and the flags of the training run.
STAGES = {
    "stage1": (1, 1, "--epoch 1 --lr 0.002"),
    "stage2": (8, 2, "--epoch 3 --lr 0.002"),
}


def subset(number: int) -> str:
    """Returns the subset of a sharp photograph from its position in the sorted names."""
    return {0: "test", 7: "test", 3: "val"}.get(number % 13, "train")


def collect(photos: Path, folder: Path, copies: int) -> None:
    """Fills `folder` with the three subsets. The small photographs are for training only."""
    if folder.exists():
        return
    unfinished = folder.with_name(folder.name + "~")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in Constants.SUBSETS:
        (unfinished / name).mkdir(parents=True)
    for number, photo in enumerate(sorted(photos.glob("*.jpg"))):
        name = subset(number)
        for copy in range(copies if name == "train" else 1):
            shutil.copy(photo, unfinished / name / f"{photo.stem}_{copy}.jpg")
    with tarfile.open(photos / ARCHIVE) as archive:
        for member in archive:
            if member.isfile():
                member.name = Path(member.name).name
                archive.extract(member, unfinished / "train", filter="data")
    unfinished.rename(folder)


def main() -> None:
    parser = common.parser("pretrain.py", "Makes pretrained/photos.pt.")
    parser.add_argument("photos", metavar="PHOTOS", type=Path, help="folder of the photographs to learn from")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where all results go")
    options = parser.parse_args()
    if not (options.photos / ARCHIVE).is_file():
        raise UserError(f"{options.photos} has no {ARCHIVE}: docs/pretrained.md says where the photographs come from")
    trained: list[Path] = []
    for stage, (copies, processes, flags) in STAGES.items():
        images, output = options.folder / f"{stage}_photos", options.folder / stage
        collect(options.photos, images, copies)
        start = ["--init-from", trained[-1]] if trained else []
        command = [ROOT / "main.py", *NETWORK.split(), *flags.split(), *start, "--images", images, "--output", output]
        run(*TORCHRUN, "--nproc-per-node", processes, *command)
        trained.append(output / "checkpoints/best_colorizer.pt")
    run(ROOT / "colorize.py", "--checkpoint", trained[-1], "--export", options.folder / "photos.pt")


def run(*arguments: object) -> None:
    """Runs Python with one thread per process. Raises UserError if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if subprocess.run([sys.executable, *map(str, arguments)], env=environment).returncode:
        raise UserError("a program did not finish; the same command continues")


if __name__ == "__main__":
    sys.exit(common.run("pretrain.py", main))
