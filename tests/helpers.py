"""What several tests share: made photographs, short trainings, and a look at what training really sees."""

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

from ColorizerManager import ColorizerManager
from deepcolor.data.dataset import LabDataModule, LabDataset
from deepcolor.training.callbacks import Callbacks
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.paths import RunPaths
from deepcolor.training.trainer import Trainer
from Regressor_Manager import RegressorManager

ROOT = Path(__file__).resolve().parent.parent
TEST_PHOTOS = {"cliff.png": (128, 128), "dune.png": (128, 200), "elm.bmp": (128, 128), "fern.png": (180, 128)}
SIDE = 128
ORIENTATION = 0x0112  # the tag of EXIF
TASKS = [("regressor", ""), ("colorizer", "sigmoid"), ("colorizer", "tanh")]
TASK_NAMES = ["regressor", "colorizer_sigmoid", "colorizer_tanh"]  # the folders of their checkpoints
SUBSETS = ("train", "val", "test")
SHORT = "--device cpu --network regressor --lr 0.001 --weight-decay 0 --epoch 1".split()  # the shortest run there is


def copy_program(folder: Path) -> None:
    """Copies the program's modules into a folder."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "deepcolor", folder / "deepcolor", ignore=shutil.ignore_patterns("__pycache__"))


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A made photograph (H,W,3) uint8: a colored gradient, three colored blobs and a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / SIDE
    corners = random.uniform(30, 225, (3, 3))
    rgb = corners[0] + (corners[1] - corners[0]) * x[..., None] / 2 + (corners[2] - corners[0]) * y[..., None] / 2
    for _ in range(3):
        center_y, center_x, radius = random.uniform(0.1, 0.9, 3)
        weight = np.exp(-((y - center_y) ** 2 + (x - center_x) ** 2) / (0.05 + 0.1 * radius))[..., None]
        rgb = rgb * (1 - weight) + random.uniform(20, 235, 3) * weight
    return (rgb + random.normal(0, 3, rgb.shape)).clip(0, 255).round().astype(np.uint8)


def flat(color: tuple[int, int, int]) -> np.ndarray:
    """A picture (128,128,3) uint8 of one color: no crop and no mirroring changes it."""
    return np.broadcast_to(np.array(color, np.uint8), (SIDE, SIDE, 3))


def write(path: Path, rgb: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(rgb)).save(path, **options)
    return path


def photo(path: Path) -> np.ndarray:
    """(128,128,3) uint8: the middle of a picture whose shorter side is 128 pixels, so that nothing is resized_crop."""
    rgb = np.asarray(Image.open(path).convert("RGB"))
    assert min(rgb.shape[:2]) == SIDE
    top, left = (rgb.shape[0] - SIDE) // 2, (rgb.shape[1] - SIDE) // 2
    return rgb[top : top + SIDE, left : left + SIDE]


def lab_of(images: LabDataset, index: int) -> np.ndarray:
    """Image `index` as it is given to training, as Lab (128,128,3) float64."""
    lightness, ab = images[index]
    return torch.cat([lightness * 100, ab]).double().numpy().transpose(1, 2, 0)


def named(data: LabDataModule) -> dict[str, tuple[str, int]]:
    """Where each image is: name -> (subset, index)."""
    return {name: (s, index) for s in SUBSETS for index, name in enumerate(getattr(data, s).names)}


def subsets_by_content(folder: Path, data: LabDataModule) -> dict[str, set[str]]:
    """Hash of a file's content -> the subsets in which it is found. The files need names of their own."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.*"):
        # A picture in a subfolder is named by that as well.
        (place,) = (place for name, place in named(data).items() if name.endswith(path.stem))
        found.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), set()).add(place[0])
    return found


def as_the_camera_lay(upright: np.ndarray, orientation: int) -> np.ndarray:
    """(H,W,3) -> how the pixels have to lie for each value of the orientation tag, after the Exif standard's table."""
    turned = upright.transpose(1, 0, 2)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: turned,
        6: turned[::-1],
        7: turned[::-1, ::-1],
        8: turned[:, ::-1],
    }
    return np.ascontiguousarray(stored[orientation])


def swapped_profile() -> bytes:
    """sRGB's profile with the primaries of red and blue exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    names = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
    for tag in range(struct.unpack(">I", profile[128:132])[0]):
        place = 132 + 12 * tag
        name = bytes(profile[place : place + 4])
        profile[place : place + 4] = names.get(name, name)
    return bytes(profile)


class SilentCallbacks(Callbacks):
    """Shows nothing, keeps what is logged, and can ask for a stop after a number of epochs."""

    def __init__(self, stop_after: float | None = None, signal: int = 2) -> None:
        self.stop_after = stop_after
        self.signal = signal
        self.advances: list[float] = []
        self.logged: list[str] = []

    def advance(self, epochs: float, status: str) -> None:
        self.advances.append(epochs)

    def log(self, line: str) -> None:
        self.logged.append(line)

    def stop_signal(self) -> int:
        return self.signal if self.stop_after is not None and sum(self.advances) >= self.stop_after else 0


MANAGERS: Mapping[str, type[Trainer]] = {"regressor": RegressorManager, "colorizer": ColorizerManager}


def manager(
    task: tuple[str, str],
    data: LabDataModule,
    output: Path,
    snapshot_epochs: Iterable[int] = (1,),
    callbacks: Callbacks | None = None,
    kind: type[Trainer] | None = None,
    **config: object,
) -> Trainer:
    """Returns the manager of one training run on the CPU."""
    training_run = TrainingRun(*task, TrainConfig(**config), tuple(snapshot_epochs))
    kind = kind or MANAGERS[task[0]]
    return kind(training_run, data, RunPaths(output), torch.device("cpu"), callbacks or SilentCallbacks())


def train(
    task: tuple[str, str], data: LabDataModule, output: Path, *snapshot_epochs: int, **options: object
) -> list[dict]:
    """Trains one training run, and returns the models that it wrote."""
    manager(task, data, output, snapshot_epochs, **options).train()
    return [read_checkpoint(output, task, epoch) for epoch in snapshot_epochs]


def read_checkpoint(output: Path, task: tuple[str, str], epoch: int) -> dict:
    """The only model of so many epochs that lies below an output folder."""
    (path,) = (output / "checkpoints" / "_".join(filter(None, task))).glob(f"epoch_{epoch}_*.pt")
    return torch.load(path, weights_only=True)


def plain(content: object) -> object:
    """Checkpoint contents without what a clock decided, comparable bit for bit: a NaN is equal to a NaN."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items() if key != "seconds"}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, float):
        return content.hex()
    return (content.dtype, content.shape, content.numpy().tobytes()) if isinstance(content, Tensor) else content


def files_below(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Everything below a folder: path -> content and time of the last change."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def visible_files(output: Path) -> dict[str, bytes]:
    """The visible files: the hidden ones are the program's own, to speed up and to go on."""
    found = ((path.relative_to(output), path) for path in output.rglob("*") if path.is_file())
    return {str(name): path.read_bytes() for name, path in found if not any(p.startswith(".") for p in name.parts)}


def lines_of(text: str, program: str = "main.py") -> list[str]:
    """The lines of stderr, each without what a progress bar has left before it; a traceback fails."""
    assert "Traceback" not in text
    lines = [line.rpartition("\r")[2] for line in re.split("(?<=\n)", text)]
    assert all(line.startswith(f"{program}: ") and line.endswith("\n") for line in lines if line.strip()), text
    return [line.rstrip("\n") for line in lines if line.strip()]


def only_line(text: str) -> str:
    """The only line of stderr; a second one fails."""
    (line,) = lines_of(text)
    return line


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """As an ordinary user: root may read and write everything, so that a refusal shows nothing.

    This thread gives up the capabilities that overrule permissions, and stays the owner of its own files: as another
    user it could not even read an environment that its owner keeps closed.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice: lower and upper 32 bits
    if libc.capget(header, sets) != 0:
        pytest.skip("root, and cannot give up its privileges")
    before = sets[0]
    sets[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0
