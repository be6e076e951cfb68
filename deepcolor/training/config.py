"""What is to be trained: the settings, the training runs, and the one plan that all parts of the package follow."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product

import Constants
from Regressor import layer_widths
from utils import Grid, UserError, Utils, format_value, parse_feature_maps


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a model becomes, except for how long it is trained. Raises UserError."""

    lr: float = Constants.LEARNING_RATES[0]
    weight_decay: float = Constants.WEIGHT_DECAYS[0]
    feature_maps: int | tuple[int, ...] = Constants.FEATURE_MAPS
    batch_size: int = Constants.BATCH_SIZE
    augment_repeats: int = Constants.AUGMENT_REPEATS
    seed: int = Constants.SEED
    schedule: str = Constants.SCHEDULE
    warmup_steps: int = Constants.WARMUP_STEPS
    crop_area: float = Constants.CROP_AREA
    precision: str = "fp32"  # of the training step; "auto" becomes bf16 for a wide network, fp32 for a narrow one

    def __post_init__(self) -> None:
        try:
            maps = parse_feature_maps(self.feature_maps) if isinstance(self.feature_maps, str) else self.feature_maps
            object.__setattr__(self, "feature_maps", tuple(maps) if isinstance(maps, list) else maps)
            layer_widths(self.feature_maps)
            self._check_ranges()
            if self.precision == "auto":
                object.__setattr__(self, "precision", "bf16" if Utils.is_wide(self.feature_maps) else "fp32")
        except (ValueError, TypeError) as error:
            raise UserError(f"a hyperparameter cannot be used: {error}") from error

    def _check_ranges(self) -> None:
        _check("lr", self.lr, self.lr > 0 and math.isfinite(self.lr), "a number above 0")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "a number of at least 0")
        _check("batch_size", self.batch_size, _whole(self.batch_size, 1), "a whole number of at least 1")
        _check("augment_repeats", self.augment_repeats, _whole(self.augment_repeats, 1), "a whole number of at least 1")
        _check("seed", self.seed, _whole(self.seed, 0), "a whole number of at least 0")
        _check("schedule", self.schedule, self.schedule in ("constant", "cosine"), "constant or cosine")
        _check("warmup_steps", self.warmup_steps, _whole(self.warmup_steps, 0), "a whole number of at least 0")
        _check("crop_area", self.crop_area, 0 < self.crop_area <= 1, "above 0 and at most 1")
        _check("precision", self.precision, self.precision in ("auto", "fp32", "bf16"), "auto, fp32 or bf16")


CONFIG_FIELDS = tuple(field.name for field in fields(TrainConfig))
GRID_KEYS = ("epoch", *CONFIG_FIELDS)


def _check(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise UserError(f"{name} must be {wanted}, not {format_value(value)}")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


@dataclass(frozen=True)
class TrainingRun:
    """One model on its way through all the epochs at which a combination of the grid asks for it."""

    network: str  # "regressor" or "colorizer"
    activation: str  # of the Colorizer; "" for the Regressor, which has none
    config: TrainConfig
    snapshot_epochs: tuple[int, ...]  # ascending
    swept: tuple[str, ...] = ()  # the keys of the grid beyond Table 1's, which runs are named by as well

    @property
    def task(self) -> str:
        """The folder of its checkpoints: regressor, colorizer_sigmoid or colorizer_tanh."""
        return f"{self.network}_{self.activation}" if self.activation else self.network

    @property
    def name(self) -> str:
        """What all of its snapshots have in common: lr_0.001_weight_decay_1e-05."""
        keys = ("lr", "weight_decay", *self.swept)
        name = "_".join(f"{key}_{format_value(getattr(self.config, key))}" for key in keys)
        return name if self.config.schedule == "constant" else self._prefixed(self.snapshot_epochs[-1], name)

    def run_name(self, epoch: int) -> str:
        """The name of one combination: epoch_100_lr_0.001_weight_decay_1e-05."""
        return self.name if self.config.schedule != "constant" else self._prefixed(epoch, self.name)

    @staticmethod
    def _prefixed(epoch: int, name: str) -> str:
        return f"epoch_{epoch}_{name}"

    def fingerprint(self, data_fingerprint: str) -> dict[str, object]:
        """What must be equal for two trainings to be the same one, as far as they have come."""
        horizon = {} if self.config.schedule == "constant" else {"epochs": self.snapshot_epochs[-1]}
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.config).items()}
        return {"network": self.network, "activation": self.activation, **values, **horizon, "images": data_fingerprint}


def expand_grid(
    grid: Grid, base: dict[str, object], networks: Sequence[str], activations: Sequence[str]
) -> list[TrainingRun]:
    """The training runs that pass through every combination of the grid, each combination once, in a fixed order.

    Combinations that differ only in `epoch` share one training run; a schedule that looks at the total number of
    epochs gives each a training run of its own. `base` holds the config that the grid does not sweep.
    Raises UserError for an unknown key, a list without values, or a value that cannot be.
    """
    _check_grid(grid)
    tasks = [(n, a) for n in networks for a in (activations if n == "colorizer" else [""])]
    swept = tuple(name for name in grid.names if name not in ("lr", "epoch", "weight_decay"))
    stops: dict[tuple, set[int]] = {}
    for values in product(*(_unique(values) for values in grid)):
        chosen = dict(zip(grid.names, values))
        epoch = chosen.pop("epoch")
        config = TrainConfig(**{**base, **chosen})
        key = (config, None if config.schedule == "constant" else epoch)
        stops.setdefault(key, set()).add(epoch)
    return [
        TrainingRun(network, activation, config, tuple(sorted(epochs)), swept)
        for network, activation in tasks
        for (config, _), epochs in stops.items()
    ]


def _check_grid(grid: Grid) -> None:
    if unknown := [name for name in grid.names if name not in GRID_KEYS]:
        raise UserError(
            f"unknown hyperparameter {', '.join(unknown)} in Utils.get_hyperparameters(); "
            f"known are {', '.join(GRID_KEYS)}"
        )
    axes = dict(zip(grid.names, grid))
    if "epoch" not in axes:
        raise UserError("Utils.get_hyperparameters() lacks epoch: say how long to train")
    for name, values in axes.items():
        if not values:
            raise UserError(f"no value for the hyperparameter {name} in Utils.get_hyperparameters(): give at least one")
    for epoch in axes["epoch"]:
        _check("epoch", epoch, _whole(epoch, 1), "a whole number of at least 1")


def _unique(values: Iterable) -> list:
    """Without repetitions, in order. 0 and 0.0 are the same value, and so are a list and a tuple."""
    return list(dict.fromkeys(tuple(v) if isinstance(v, list) else v for v in values))
