"""Compares the test error of Colorizers that are trained in different ways.

    python3 benchmarks/recipe.py [--images DIR] [--epochs N] [--seeds S ...] [--only WORD ...] [--json FILE]
    python3 benchmarks/recipe.py --compare precision [--images DIR] [--epochs N] [--seeds S ...] [--json FILE]

The first command compares `--recipe best` with the recipe after one change. The second one compares `deep` in float32
with `deep` in bf16. Every variant trains a sigmoid Colorizer for the same number of epochs. With the same seed,
networks of the same width start from the same weights. Evaluation is always in float32.
"""

import math
import sys
import time

import common
import torch
from common import show, spread
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import Constants
from ColorizerManager import ColorizerManager
from deepcolor.common.system import available_cores, keep_freed_memory
from deepcolor.training.callbacks import Callbacks
from deepcolor.training.config import TrainConfig, TrainingRun
from utils import Utils

BEST = {name: values[0] for name, values in Constants.RECIPES["best"].items() if name != "epoch"}
CONSTANT = {**BEST, "schedule": "constant", "warmup_steps": 0}
DEEP = {"feature_maps": Constants.NAMED_FEATURE_MAPS["deep"]}
AVERAGED = "weight averaging"  # in the name of a variant
# Name of a variant -> fields of TrainConfig.
RECIPES = {
    "best": BEST,
    "the report's: 3 maps, constant 0.001": {},
    "constant learning rate 0.003": CONSTANT,
    "constant learning rate 0.001": {**CONSTANT, "lr": 0.001},
    "no skip connections": {**BEST, "skip": False},
    "no warm-up": {**BEST, "warmup_steps": 0},
    "learning rate 0.001": {**BEST, "lr": 0.001},
    "learning rate 0.01": {**BEST, "lr": 0.01},
    "9 maps": {**BEST, "feature_maps": 9},
    "`deep`": {**BEST, **DEEP},
    "crops of 0.3 to 1 of the area": {**BEST, "crop_area": 0.3},
    "no crops": {**BEST, "crop_area": 1.0},
    "batches of 8": {**BEST, "batch_size": 8},
    "batches of 32": {**BEST, "batch_size": 32},
    "float32": {**BEST, "precision": "fp32"},
    AVERAGED: BEST,
    f"constant learning rate 0.003, {AVERAGED}": CONSTANT,
}
PRECISIONS = {"float32": {**DEEP, "precision": "fp32"}, "bf16": {**DEEP, "precision": "bf16"}}
COMPARISONS = {"recipe": RECIPES, "precision": PRECISIONS}  # the first variant of each is the reference
_DECAY = 0.99  # per step, of the average, which thus reaches back over some hundred steps


class AveragedColorizerManager(ColorizerManager):
    """Scores an exponential moving average of the weights and of the statistics of the norms."""

    def initialize(self) -> None:
        super().initialize()
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(_DECAY), use_buffers=True)
        run_step = self.run_step

        def run_and_average(*batch: torch.Tensor) -> None:
            run_step(*batch)
            self.average.update_parameters(self.model)

        self.run_step = run_and_average

    def finish(self, epoch: int) -> None:
        self.model = self.average.module
        super().finish(epoch)


class Result(Callbacks):
    """Keeps the metrics of the finished model."""

    def model_saved(self, model: dict) -> None:
        self.metrics = model["metrics"]


def train(
    name: str, fields: dict, seed: int, epochs: int, images: common.Prepared, device: torch.device
) -> dict[str, object]:
    """Trains a variant and returns its metrics."""
    config = TrainConfig(**{"precision": Utils.get_precision("auto", device), **fields, "seed": seed})
    torch.set_num_threads(available_cores() if config.is_wide else 1)
    manager = AveragedColorizerManager if AVERAGED in name else ColorizerManager
    run, result = TrainingRun("colorizer", "sigmoid", config, (epochs,)), Result()
    # Without the files of the variants before, which can have the same name.
    manager(run, images.data.to(device), images.output, device, result, ignore_before=time.time()).train()
    return result.metrics


def main() -> None:
    parser = common.parser("recipe.py", "Compares ways to train a Colorizer.", images=None, device="auto", json=None)
    add = parser.add_argument
    add("--compare", choices=COMPARISONS, default="recipe", help="what varies (recipe)")
    add("--epochs", metavar="N", type=common.at_least_one, default=60, help="epochs of each training run (60)")
    add("--seeds", metavar="S", nargs="+", type=int, default=[0], help="train each variant with each of these (0)")
    add("--only", metavar="WORD", nargs="+", default=[""], help="variants whose name contains one of these (all)")
    options = parser.parse_args()
    common.check_json(options.json)
    keep_freed_memory()
    device, variants = Utils.get_device(options.device), COMPARISONS[options.compare]
    reference, *others = variants
    results: dict[str, dict] = {}
    rows = []
    with common.prepared(options.images) as images:
        for name in (reference, *(name for name in others if any(word in name for word in options.only))):
            print(f"training: {name}", file=sys.stderr)
            metrics = [train(name, variants[name], seed, options.epochs, images, device) for seed in options.seeds]
            mse = [each.get("test_mse", math.nan) for each in metrics]  # a model that diverged has none
            results[name] = {"test_mse": spread(mse), "seconds": spread([each["seconds"] for each in metrics])}
            pairs = zip(mse, results[reference]["test_mse"]["values"])
            results[name]["relative_difference"] = spread([one / other - 1 for one, other in pairs])
            cells = show(results[name]["relative_difference"], "+.1%"), show(results[name]["seconds"])
            rows.append([name, *(f"{each:.6f}" for each in mse), *cells])
    columns = [*(f"test mse, seed {seed}" for seed in options.seeds), f"against {reference}", "seconds"]
    count, mean_color = len(images.paths["train"]), metrics[0]["mean_color_mse"]
    print(f"{common.describe(device)}\n{options.epochs} epochs of {count} images; the mean color: {mean_color:.6f}\n")
    print(common.markdown([options.compare, *columns], rows))
    settings = {key: getattr(options, key) for key in ("compare", "epochs", "seeds")} | {"images": images.describe()}
    common.write_json(options.json, {"settings": settings, "mean_color_mse": mean_color, "results": results}, device)


if __name__ == "__main__":
    sys.exit(common.run("recipe.py", main))
