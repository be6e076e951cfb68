"""Measures what each part of `--recipe best` is worth: the recipe, and the recipe with one part taken back.

    python3 benchmarks/recipe.py [--images DIR] [--epochs N] [--seeds S ...] [--only WORD ...] [--json FILE]

Every variant trains a sigmoid Colorizer for the same number of epochs, from the same seeds.
"""

import argparse
import sys
from pathlib import Path
from unittest.mock import patch

import common
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import Constants
from ColorizerManager import ColorizerManager
from deepcolor.common import cli
from deepcolor.common.system import keep_freed_memory
from deepcolor.sweep.sweep import MANAGERS, Sweep
from deepcolor.training.checkpoint import load_model
from deepcolor.training.config import TrainingRun, expand_grid
from utils import Grid, UserError, Utils

# What is changed in the recipe; the first is what the report does.
VARIANTS = {
    "the report's: 3 maps, constant 0.001": None,
    "best": {},
    "constant learning rate 0.003": {"schedule": "constant", "warmup_steps": 0},
    "constant learning rate 0.001": {"schedule": "constant", "warmup_steps": 0, "lr": 0.001},
    "no warm-up": {"warmup_steps": 0},
    "learning rate 0.001": {"lr": 0.001},
    "learning rate 0.01": {"lr": 0.01},
    "9 maps": {"feature_maps": 9},
    "`deep`": {"feature_maps": Constants.NAMED_FEATURE_MAPS["deep"]},
    "crops of 0.3 to 1 of the area": {"crop_area": 0.3},
    "no crops": {"crop_area": 1.0},
    "batches of 8": {"batch_size": 8},
    "batches of 32": {"batch_size": 32},
    "float32": {"precision": "fp32"},
    "weight averaging": {"averaged": True},
    "constant learning rate 0.003, weight averaging": {"schedule": "constant", "warmup_steps": 0, "averaged": True},
}
_DECAY = 0.99  # of the average, per step: it reaches back over some hundred steps


class Averaged(ColorizerManager):
    """Scores, at the end, an exponential moving average of the weights and of the norms' statistics."""

    def start(self) -> None:
        super().start()
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(_DECAY), use_buffers=True)
        take_step = self.take_step

        def step(*batch: object) -> None:
            take_step(*batch)
            self.average.update_parameters(self.model)

        self.take_step = step

    def finish(self, epoch: int) -> None:
        self.model = self.average.module
        super().finish(epoch)


def arguments() -> argparse.Namespace:
    parser = cli.Parser("recipe.py", description="The parts of --recipe best.")
    add = parser.add_argument
    add("--images", metavar="DIR", type=Path, help="photographs to train on (the built-in ones)")
    add("--epochs", metavar="N", type=common.at_least_one, default=60, help="epochs of each training (60)")
    add("--seeds", nargs="+", type=int, default=[0], help="a training of each variant for each (0)")
    add("--only", nargs="+", metavar="WORD", default=[""], help="the variants whose name has one of these words (all)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is a GPU")
    add("--json", metavar="FILE", type=Path, help="where to write all figures")
    return parser.parse_args()


def training_run(change: dict | None, epochs: int, seed: int, precision: str) -> TrainingRun:
    recipe = Constants.RECIPES["best"] if change is not None else {"lr": [Constants.LEARNING_RATES[0]]}
    settings = {"precision": precision, **recipe, **(change or {}), "seed": seed}
    lr = settings.pop("lr")
    settings = {key: value for key, value in settings.items() if key not in ("epoch", "weight_decay", "averaged")}
    grid = Grid(dict(lr=lr if isinstance(lr, list) else [lr], epoch=[epochs], weight_decay=[0]))
    (found,) = expand_grid(grid, settings, ["colorizer"], ["sigmoid"])
    return found


def train(options: argparse.Namespace, images: common.Prepared) -> dict[str, dict[str, object]]:
    """Test mse and seconds of every variant, one value for each seed. Raises UserError if a training fails."""
    device = Utils.get_device(options.device)
    precision = Utils.get_precision("auto", device)
    found = {}
    names = [name for name in VARIANTS if name == "best" or any(word in name for word in options.only)]
    for number, name in enumerate(names):
        print(f"{name} ({number + 1} of {len(names)})", file=sys.stderr)
        change = VARIANTS[name]
        manager = Averaged if change and change.get("averaged") else ColorizerManager
        training_runs = [training_run(change, options.epochs, seed, precision) for seed in options.seeds]
        metrics = []
        for each in training_runs:
            # One after the other into the same names: seeds are no part of a run's name here.
            with patch.dict(MANAGERS, colorizer=manager):
                if failures := Sweep([each], images.data, images.output, device, restart=True).run(1):
                    raise UserError("; ".join(failures))
            metrics.append(load_model(images.output.checkpoint(each, options.epochs))["metrics"])
        found[name] = {
            "test_mse": common.spread([m.get("test_mse", float("nan")) for m in metrics]),
            "seconds": common.spread([m["seconds"] for m in metrics]),
        }
    return found


def main() -> None:
    options = arguments()
    common.check_json(options.json)
    keep_freed_memory()
    device = Utils.get_device(options.device)
    with common.prepared(options.images) as images:
        results = train(options, images)
        settings = {"epochs": options.epochs, "seeds": options.seeds, "images": images.describe()}
        count = len(images.paths["train"])
    best = results["best"]["test_mse"]["median"]
    rows = [
        [
            name,
            common.show(found["test_mse"], ".6f"),
            f"{found['test_mse']['median'] / best - 1:+.1%}",
            common.show(found["seconds"]),
        ]
        for name, found in results.items()
    ]
    head = ["recipe with this change", "test mse", "against best", "seconds"]
    print(
        f"{common.describe(device)}\n{options.epochs} epochs of {count} images, "
        f"seeds {', '.join(map(str, options.seeds))}\n\n{common.markdown(head, rows)}"
    )
    common.write_json(options.json, {"settings": settings, "results": results}, device)


if __name__ == "__main__":
    sys.exit(common.run("recipe.py", main))
