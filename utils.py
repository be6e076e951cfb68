"""Small helpers that every part of the package shares."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import Constants

if TYPE_CHECKING:  # elsewhere only where it is used: to import it takes two seconds
    import torch


class UserError(Exception):
    """Something that the person at the keyboard can mend: shown as one line, exit code 2."""


class Grid(list):
    """The axes of a sweep: the list of lists of values, in order, and in `names` what each axis is called."""

    def __init__(self, axes: Mapping[str, list]) -> None:
        super().__init__(list(values) for values in axes.values())
        self.names = tuple(axes)

    def replaced(self, axes: Mapping[str, list]) -> "Grid":
        """This grid with some axes replaced, or new ones appended."""
        return Grid({**dict(zip(self.names, self)), **axes})


class Utils:
    """What the report calls Utils: the hyperparameters and the device."""

    @staticmethod
    def get_hyperparameters() -> Grid:
        """The lists of values whose product is the sweep.

        A further key, `batch_size=[16, 32]` say, is swept without any other change. It may be any
        setting of the Trainer (see `Trainer.TrainConfig`).
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
        """The device of `--device`: "auto" is CUDA where there is a GPU, else the CPU.

        Raises UserError if "cuda" is wished for and there is none.
        """
        import torch

        if requested == "auto":
            requested = "cuda" if torch.cuda.is_available() else "cpu"
        if requested == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu, or leave the flag out")
        return torch.device(requested)

    @staticmethod
    def get_precision(requested: str, device: "torch.device") -> str:
        """What `--precision` comes to on this device: "fp32", "bf16", or "auto" where the network's width decides."""
        import torch

        if requested != "auto":
            return requested
        if device.type == "cuda":
            return "auto" if torch.cuda.is_bf16_supported() else "fp32"
        return "auto" if torch.cpu._is_avx512_bf16_supported() else "fp32"

    @staticmethod
    def is_wide(feature_maps: int | Sequence[int]) -> bool:
        """Whether a network is wide enough for what pays with full vectors only: channels-last, bf16, threads."""
        return (feature_maps if isinstance(feature_maps, int) else max(feature_maps)) >= Constants.WIDE


def seed_for(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, such as ("epoch", 7), independent of whatever else was drawn."""
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
    """A setting as people write it: 0.001, 1e-05, 0, 300, deep; `float` and `parse_feature_maps` read it back."""
    for name, widths in Constants.NAMED_FEATURE_MAPS.items():
        if isinstance(value, tuple | list) and tuple(value) == widths:
            return name
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def format_seconds(seconds: float) -> str:
    """A duration for people: "8 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def is_finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)
