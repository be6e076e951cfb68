"""Class Utils with the hyperparameters and the device, and pure helpers used across the package."""

import hashlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import Constants

if TYPE_CHECKING:  # functions that need it import it, which takes two seconds
    import torch


class UserError(Exception):
    """An error that the user can fix. Shown as one line, exit code 2."""


class Grid(list):
    """The values of each swept hyperparameter: a list of lists. `names` holds the name of each."""

    def __init__(self, axes: Mapping[str, list]) -> None:
        super().__init__(list(values) for values in axes.values())
        self.names = tuple(axes)

    def replaced(self, axes: Mapping[str, list]) -> "Grid":
        """Returns a grid with the values of some hyperparameters replaced, or with new ones appended."""
        return Grid({**dict(zip(self.names, self)), **axes})


class Utils:
    """The hyperparameters and the device."""

    @staticmethod
    def get_hyperparameters() -> Grid:
        """Returns the lists whose product (`itertools.product`) is the sweep.

        A key added here, such as `batch_size=[16, 32]`, is swept without any other change. Every field of
        `deepcolor.training.config.TrainConfig` can be a key.
        """
        return Grid(
            dict(
                lr=Constants.LEARNING_RATES,
                epoch=Constants.EPOCHS,
                weight_decay=Constants.WEIGHT_DECAYS,
            )
        )

    @staticmethod
    def get_device(requested: str = "auto") -> "torch.device":
        """Returns the device of `--device`. "auto" is CUDA or MPS (Apple's GPUs) if there is a GPU, else the CPU.

        Raises UserError if a GPU is requested and there is none.
        """
        import torch

        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        if requested == "auto":
            requested = next(name for name, is_available in available.items() if is_available)
        if not available[requested]:
            raise UserError(f"--device {requested}: PyTorch sees no such GPU here; use --device cpu, or omit the flag")
        return torch.device(requested)

    @staticmethod
    def get_precision(requested: str, device: "torch.device") -> str:
        """Returns "fp32" instead of "auto" if the device has no fast bf16. With "auto", the network's width decides."""
        import torch

        if requested != "auto":
            return requested
        if device.type == "mps":
            return "fp32"
        if device.type == "cuda":
            return "auto" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return "auto" if torch.cpu._is_avx512_bf16_supported() else "fp32"

    @staticmethod
    def is_wide(feature_maps: int | Sequence[int]) -> bool:
        """Whether a network is so wide that channels-last memory, bf16 and several threads make it faster."""
        return (feature_maps if isinstance(feature_maps, int) else max(feature_maps)) >= Constants.WIDE


def seems_to_have_gpu() -> bool:
    """Returns whether Slurm, a variable or a program says that there is an NVIDIA GPU. Its driver can be too old."""
    names = ("SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES")
    is_named = any(os.environ.get(name, "").strip() not in ("", "0", "-1") for name in names)
    return is_named or shutil.which("nvidia-smi") is not None


def free_gpu_memory(device: "torch.device") -> float:
    """Returns the bytes that PyTorch can allocate on a GPU, including what it keeps for reuse. On the CPU: infinity."""
    import torch

    if device.type != "cuda":
        return math.inf
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def seed_for(seed: int, *purpose: object) -> int:
    """Returns a 63-bit seed for one purpose, such as ("epoch", 7), independent of every other purpose."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def parse_feature_maps(text: str) -> int | tuple[int, ...]:
    """ "3" -> 3, "32,64,128,256,256,512" or "deep" -> six numbers. Raises ValueError for anything else."""
    if text in Constants.NAMED_FEATURE_MAPS:
        return Constants.NAMED_FEATURE_MAPS[text]
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if len(widths) not in (1, Constants.LAYERS) or not all(0 < w <= Constants.MAX_FEATURE_MAPS for w in widths):
        raise ValueError(
            f"one number or {Constants.LAYERS} numbers with commas, each from 1 to {Constants.MAX_FEATURE_MAPS}, "
            f"or {', '.join(Constants.NAMED_FEATURE_MAPS)}; not '{text}'"
        )
    return widths[0] if len(set(widths)) == 1 else widths


def format_value(value: object) -> str:
    """Returns a hyperparameter as text: 0.001, 1e-05, 0, 300, deep. `float` and `parse_feature_maps` read it back."""
    for name, widths in Constants.NAMED_FEATURE_MAPS.items():
        if isinstance(value, tuple | list) and tuple(value) == widths:
            return name
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def format_seconds(seconds: float) -> str:
    """Returns a duration as text: "8 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def is_finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)
