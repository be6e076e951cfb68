"""Measures whether bf16 costs quality: the mse on the test images at equal epochs, bf16 against float32.

    python3 benchmarks/precision.py [--images DIR] [--epochs N] [--feature-maps MAPS] [--seeds S ...] [--json FILE]

Both precisions start from the same weights and see the same batches, seed by seed; what differs is the precision of
the training step. Evaluation is in float32 for both.
"""

import argparse
import statistics
import sys
from pathlib import Path

import common
from common import spread

import Constants
from deepcolor.common import cli
from deepcolor.common.system import keep_freed_memory
from deepcolor.reporting.results import find_models
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.config import expand_grid
from utils import Grid, UserError, Utils, format_value

PRECISIONS = ("fp32", "bf16")


def arguments() -> argparse.Namespace:
    parser = cli.Parser("precision.py", description="bf16 against float32.")
    add = parser.add_argument
    add("--images", metavar="DIR", type=Path, help="photographs to train on (the built-in ones)")
    add("--epochs", metavar="N", type=common.at_least_one, default=100, help="epochs of each training (100)")
    add("--feature-maps", metavar="MAPS", type=common.feature_maps, default=Constants.NAMED_FEATURE_MAPS["deep"])
    add("--network", choices=Constants.NETWORKS, default="colorizer", help="which to train (colorizer)")
    add("--lr", type=float, default=Constants.LEARNING_RATES[0], help=f"learning rate ({Constants.LEARNING_RATES[0]})")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a training of each precision for each (0 1 2)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is a GPU")
    add("--json", metavar="FILE", type=Path, help="where to write all figures")
    return parser.parse_args()


def train(options: argparse.Namespace, images: common.Prepared) -> dict[str, dict[int, dict]]:
    """The metrics of each precision and seed, as a sweep over the two trains them. Raises UserError."""
    device = Utils.get_device(options.device)
    seeds = list(dict.fromkeys(options.seeds))
    axes = dict(lr=[options.lr], epoch=[options.epochs], weight_decay=[0], seed=seeds, precision=list(PRECISIONS))
    base = {"feature_maps": options.feature_maps}
    training_runs = expand_grid(Grid(axes), base, [options.network], Constants.ACTIVATIONS[:1])
    failures = Sweep(training_runs, images.data, images.output, device).run()
    models, _ = find_models(images.output)
    found: dict[str, dict[int, dict]] = {precision: {} for precision in PRECISIONS}
    for model in models:
        if model["metrics"]["status"] == "done":
            found[model["hyperparameters"]["precision"]][model["seed"]] = model["metrics"]
    if failures or any(len(metrics) < len(seeds) for metrics in found.values()):
        raise UserError("; ".join(failures) or f"a training diverged with --lr {options.lr:g}: choose a smaller one")
    return found


def summarize(found: dict[str, dict[int, dict]]) -> dict[str, object]:
    """Test mse by precision and seed, and the difference of the two, seed by seed, relative to float32."""
    seeds = list(found["fp32"])
    mse = {precision: [found[precision][seed]["test_mse"] for seed in seeds] for precision in PRECISIONS}
    return {
        "seeds": seeds,
        "test_mse": {precision: _summary(values) for precision, values in mse.items()},
        "relative_difference": _summary([b / f - 1 for f, b in zip(mse["fp32"], mse["bf16"])]),
        "seconds": {p: spread([found[p][seed]["seconds"] for seed in seeds]) for p in PRECISIONS},
        "mean_color_mse": found["fp32"][seeds[0]]["mean_color_mse"],
    }


def _summary(values: list[float]) -> dict[str, object]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {**spread(values), "mean": statistics.mean(values), "standard_deviation": deviation}


def table(results: dict) -> str:
    """A row per seed, then the mean, the least and the greatest."""
    mse, difference = results["test_mse"], results["relative_difference"]
    columns = [mse["fp32"], mse["bf16"], difference]
    forms = ("{:.6f}", "{:.6f}", "{:+.2%}")
    rows = [
        [f"seed {seed}", *(form.format(column["values"][i]) for form, column in zip(forms, columns))]
        for i, seed in enumerate(results["seeds"])
    ]
    for key, name in (("mean", "mean"), ("min", "least"), ("max", "greatest"), ("standard_deviation", "deviation")):
        forms = ("{:.6f}", "{:.6f}", "{:.2%}" if key == "standard_deviation" else "{:+.2%}")
        rows.append([name, *(form.format(column[key]) for form, column in zip(forms, columns))])
    return common.markdown(["test mse", *PRECISIONS, "bf16 against fp32"], rows)


def main() -> None:
    options = arguments()
    common.check_json(options.json)
    keep_freed_memory()
    with common.prepared(options.images) as images:
        results = summarize(train(options, images))
        settings = {key: getattr(options, key) for key in ("epochs", "network", "lr")}
        settings |= {"feature_maps": format_value(options.feature_maps), "images": images.describe()}
    device = Utils.get_device(options.device)
    seconds = ", ".join(f"{p} {common.show(results['seconds'][p])} s" for p in PRECISIONS)
    print(
        f"{common.describe(device)}\n{settings['feature_maps']} {options.network}, {options.epochs} epochs of "
        f"{len(images.paths['train'])} images; the mean color's test mse: {results['mean_color_mse']:.6f}\n\n"
        f"{table(results)}\n\nTraining took: {seconds}"
    )
    common.write_json(options.json, {"settings": settings, "results": results}, device)


if __name__ == "__main__":
    sys.exit(common.run("precision.py", main))
