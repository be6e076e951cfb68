"""What is trained: hyperparameters, training runs, and the grid that expands to them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product

import Constants
from Regressor import layer_widths
from utils import Grid, UserError, Utils, format_value, parse_feature_maps


@dataclass(frozen=True)
class Rule:
    """How a hyperparameter is read from the command line, and which values it can have."""

    parse: Callable[[str], object]
    allows: Callable[[object], bool]
    wanted: str  # the allowed values in words

    def check(self, name: str, value: object) -> None:
        """Raises UserError if the value is not allowed."""
        try:
            allowed = self.allows(value)
        except (TypeError, ValueError):
            allowed = False
        if not allowed:
            raise UserError(f"{name} must be {self.wanted}, not {format_value(value)}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _are_feature_maps(value: object) -> bool:
    layer_widths(value)  # raises ValueError
    return True


def parse_switch(text: str) -> bool:
    """ "on" -> True, "off" -> False. Raises ValueError for anything else."""
    if text not in ("on", "off"):
        raise ValueError(f"on or off, not '{text}'")
    return text == "on"


def one_of(*values: str) -> Rule:
    return Rule(str, lambda value: value in values, " or ".join(values))


POSITIVE = Rule(float, lambda value: 0 < value < math.inf, "a number above 0")
NOT_NEGATIVE = Rule(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
FRACTION = Rule(float, lambda value: 0 < value <= 1, "above 0 and at most 1")
PROBABILITY = Rule(float, lambda value: 0 <= value < 1, "at least 0 and below 1")
AT_LEAST_ONE = Rule(int, lambda value: _is_whole(value) and value >= 1, "a whole number of at least 1")
AT_LEAST_ZERO = Rule(int, lambda value: _is_whole(value) and value >= 0, "a whole number of at least 0")
SWITCH = Rule(parse_switch, lambda value: isinstance(value, bool), "on or off")
HASH = Rule(str, lambda value: isinstance(value, str), "a hash")
FEATURE_MAPS = Rule(parse_feature_maps, _are_feature_maps, f"one number or {Constants.LAYERS} numbers")


def hyperparameter(default: object, rule: Rule, help: str, flag: str | None = "") -> object:
    """A field of TrainConfig. `flag` names it on the command line: "" for --name-of-the-field, None for no flag."""
    return field(default=default, metadata={"rule": rule, "help": help, "flag": flag})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a model becomes, except for the number of epochs.

    A new hyperparameter is one field here, and its use. Its flag, check, help text, table column, part of the run name,
    and its place in checkpoints and their comparison derive from the field. Checkpoints that do not have it count as
    trained with the default.

    Raises:
        UserError: a value is not allowed.
    """

    lr: float = hyperparameter(Constants.LEARNING_RATES[0], POSITIVE, "learning rate")
    weight_decay: float = hyperparameter(Constants.WEIGHT_DECAYS[0], NOT_NEGATIVE, "weight decay")
    feature_maps: int | tuple[int, ...] = hyperparameter(
        Constants.FEATURE_MAPS, FEATURE_MAPS, "maps of all layers, or six numbers with commas, or deep"
    )
    encoder: str = hyperparameter(
        Constants.ENCODERS[0], one_of(*Constants.ENCODERS), "of the Colorizer: regressor, or mobilenet_v2 (pretrained)"
    )
    encoder_lr: float = hyperparameter(
        Constants.ENCODER_LR, NOT_NEGATIVE, "learning rate of a pretrained encoder, as a fraction of --lr; 0: frozen"
    )
    skip: bool = hyperparameter(Constants.SKIP, SWITCH, "skip connections from encoder to decoder: on or off")
    batch_size: int = hyperparameter(Constants.BATCH_SIZE, AT_LEAST_ONE, "images per step")
    augment_repeats: int = hyperparameter(
        Constants.AUGMENT_REPEATS, AT_LEAST_ONE, "passes over the images per epoch", flag="--copies"
    )
    seed: int = hyperparameter(Constants.SEED, AT_LEAST_ZERO, "seed of all randomness")
    optimizer: str = hyperparameter(Constants.OPTIMIZER, one_of("adam", "adamw", "sgd"), "adam, adamw or sgd")
    dropout: float = hyperparameter(Constants.DROPOUT, PROBABILITY, "probability that a bottleneck map is zeroed")
    schedule: str = hyperparameter(
        Constants.SCHEDULE, one_of("constant", "cosine"), "of the learning rate: constant or cosine"
    )
    warmup_steps: int = hyperparameter(Constants.WARMUP_STEPS, AT_LEAST_ZERO, "steps of linear learning-rate warm-up")
    crop_area: float = hyperparameter(Constants.CROP_AREA, FRACTION, "smallest area of a random crop")
    precision: str = hyperparameter("fp32", one_of("auto", "fp32", "bf16"), "of the training step: auto, fp32 or bf16")
    init_from: str = hyperparameter("", HASH, "content hash of the weights from which training starts", flag=None)

    def __post_init__(self) -> None:
        maps = self.feature_maps
        if isinstance(maps, str):
            maps = _parse(parse_feature_maps, maps)
        object.__setattr__(self, "feature_maps", tuple(maps) if isinstance(maps, list) else maps)
        for each in fields(self):
            each.metadata["rule"].check(each.name, getattr(self, each.name))
        if self.precision == "auto":
            object.__setattr__(self, "precision", "bf16" if self.is_wide else "fp32")

    @property
    def is_wide(self) -> bool:
        """Whether channels-last memory, bf16 and several threads make the network faster."""
        return self.encoder != "regressor" or Utils.is_wide(self.feature_maps)


def _parse(parse: Callable[[str], object], text: str) -> object:
    try:
        return parse(text)
    except ValueError as error:
        raise UserError(str(error)) from error


def default_of(name: str) -> object:
    """Returns the default of a field of TrainConfig, or None if there is no such field."""
    return {each.name: each.default for each in fields(TrainConfig)}.get(name)


def task_name(network: str, activation: str) -> str:
    """Returns regressor, colorizer_sigmoid or colorizer_tanh."""
    return f"{network}_{activation}" if activation else network


GRID_KEYS = ("epoch", *(each.name for each in fields(TrainConfig)))


@dataclass(frozen=True)
class TrainingRun:
    """One model on its way through all the epochs at which combinations of the grid ask for a snapshot."""

    network: str  # "regressor" or "colorizer"
    activation: str  # of the Colorizer; "" for the Regressor
    config: TrainConfig
    snapshot_epochs: tuple[int, ...]  # ascending
    swept: tuple[str, ...] = ()  # grid keys besides those of Table 1; they are part of the name

    @property
    def task(self) -> str:
        """The folder of its checkpoints: regressor, colorizer_sigmoid or colorizer_tanh."""
        return task_name(self.network, self.activation)

    @property
    def name(self) -> str:
        """What its snapshots have in common: lr_0.001_weight_decay_1e-05."""
        keys = ("lr", "weight_decay", *self.swept)
        name = "_".join(f"{key}_{format_value(getattr(self.config, key))}" for key in keys)
        return name if self.config.schedule == "constant" else f"epoch_{self.snapshot_epochs[-1]}_{name}"

    def __str__(self) -> str:
        return f"{self.task} {self.name}"

    def run_name(self, epoch: int) -> str:
        """The name of one combination: epoch_100_lr_0.001_weight_decay_1e-05."""
        return f"epoch_{epoch}_{self.name}" if self.config.schedule == "constant" else self.name

    def fingerprint(self, data_fingerprint: str) -> dict[str, object]:
        """Returns what must be equal for two training runs to be the same up to the epoch both have reached."""
        # The cosine schedule depends on the total number of epochs.
        total = {} if self.config.schedule == "constant" else {"epochs": self.snapshot_epochs[-1]}
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.config).items()}
        return {"network": self.network, "activation": self.activation, **values, **total, "images": data_fingerprint}


def expand_grid(
    grid: Grid, base: dict[str, object], networks: Sequence[str], activations: Sequence[str]
) -> list[TrainingRun]:
    """Returns the training runs that pass through every combination of the grid, in a fixed order.

    Combinations that differ only in `epoch` share one training run, unless the schedule depends on that number.

    Args:
        grid: the values of each swept hyperparameter, and of `epoch`.
        base: the values of hyperparameters that are not swept.
        networks: "regressor", "colorizer", or both.
        activations: of the Colorizer.

    Raises:
        UserError: an unknown key, a key without values, or a value that is not allowed.
    """
    _check_grid(grid)
    tasks = [(n, a) for n in networks for a in (activations if n == "colorizer" else [""])]
    swept = tuple(name for name in grid.names if name not in ("lr", "epoch", "weight_decay"))
    epochs_of: dict[tuple, set[int]] = {}
    for values in product(*(_unique(values) for values in grid)):
        chosen = dict(zip(grid.names, values))
        epoch = chosen.pop("epoch")
        config = TrainConfig(**{**base, **chosen})
        key = (config, None if config.schedule == "constant" else epoch)
        epochs_of.setdefault(key, set()).add(epoch)
    return [
        TrainingRun(network, activation, config, tuple(sorted(epochs)), swept)
        for network, activation in tasks
        for (config, _), epochs in epochs_of.items()
    ]


def _check_grid(grid: Grid) -> None:
    if unknown := [name for name in grid.names if name not in GRID_KEYS]:
        raise UserError(
            f"unknown hyperparameter {', '.join(unknown)} in Utils.get_hyperparameters(); "
            f"known are {', '.join(GRID_KEYS)}"
        )
    axes = dict(zip(grid.names, grid))
    if "epoch" not in axes:
        raise UserError("Utils.get_hyperparameters() lacks epoch: add the numbers of epochs to train")
    for name, values in axes.items():
        if not values:
            raise UserError(f"no value for the hyperparameter {name} in Utils.get_hyperparameters(): give at least one")
    for epoch in axes["epoch"]:
        AT_LEAST_ONE.check("epoch", epoch)


def _unique(values: Iterable) -> list:
    """Removes repetitions and keeps the order. 0 and 0.0 are the same value, and so are a list and a tuple."""
    return list(dict.fromkeys(tuple(value) if isinstance(value, list) else value for value in values))
