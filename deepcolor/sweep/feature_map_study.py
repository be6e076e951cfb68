"""The feature-map study, section 9 of the report: which number of feature maps has the lowest error?"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby

import Constants
from deepcolor.common.files import write_csv
from deepcolor.reporting import results
from deepcolor.reporting.plots import feature_maps_picture
from deepcolor.reporting.results import has_finite_error
from deepcolor.training.checkpoint import load_model
from deepcolor.training.config import TrainingRun
from deepcolor.training.paths import RunPaths
from utils import Grid, UserError


def grid(base: Grid, flags: Mapping[str, list]) -> Grid:
    """Returns the grid of the study: 3 to 9 feature maps, several seeds, and the first value of every other axis.

    Args:
        base: the grid of a sweep without the study.
        flags: hyperparameter -> the values given on the command line.

    Raises:
        UserError: a flag gives several values of another hyperparameter than the seed, or any feature maps.
    """
    if "feature_maps" in flags:
        raise UserError("--study-feature-maps chooses the feature maps itself: leave --feature-maps out")
    if several := [name for name, values in flags.items() if name != "seed" and len(values) > 1]:
        raise UserError(f"--study-feature-maps uses one {several[0]} for all networks: give it one value")
    axes = dict(zip(base.names, base))
    seeds = axes.pop("seed", None) or flags.get("seed") or Constants.STUDY_SEEDS
    first = {name: values[:1] for name, values in axes.items()}
    return Grid({**first, "feature_maps": Constants.STUDY_FEATURE_MAPS, "seed": seeds})


def gather(paths: RunPaths, training_runs: Sequence[TrainingRun], redraw: bool = False) -> list[str]:
    """Does what `results.gather` does, and adds the study.

    feature_maps.csv and feature_maps.png show the finished models of the study, and summary.png shows them too.

    Args:
        paths: the output folder.
        training_runs: those of the study.
        redraw: draw the loss plots too.

    Returns:
        The lines to print.

    Raises:
        UserError: no model of the study is finished.
        OSError: a file cannot be written.
    """
    checkpoints = [paths.checkpoint(training_run, training_run.snapshot_epochs[-1]) for training_run in training_runs]
    models = [load_model(path) for path in checkpoints if path.exists()]
    rows = to_rows([model for model in models if has_finite_error(model["metrics"])])
    if not rows:
        raise UserError(f"no model of the study is finished below {paths.root}: run it without --report first")
    write_csv(paths.plots / "feature_maps.csv", list(rows[0]), rows)
    feature_maps_picture(paths.plots / "feature_maps.png", rows)
    unfinished = len(training_runs) - len(models)
    lines = [*results.gather(paths, redraw, rows), *_lines(rows)]
    return [*lines, *([f"{unfinished} training runs of the study are not finished"] if unfinished else [])]


def to_rows(models: Sequence[dict]) -> list[dict]:
    """Returns a row for each network, activation and number of maps, with the mean and spread over the seeds."""

    def group_key(model: dict) -> tuple:
        return Constants.NETWORKS.index(model["network"]), model["activation"], model["feature_maps"]

    rows = []
    for (network, activation, maps), group in groupby(sorted(models, key=group_key), group_key):
        metrics = [model["metrics"] for model in group]
        test_mse = [each["test_mse"] for each in metrics]
        rows.append(
            {
                "network": Constants.NETWORKS[network],
                "activation": activation,
                "feature_maps": maps,
                "seeds": len(metrics),
                "val_mse_mean": statistics.fmean(each["val_mse"] for each in metrics),
                "test_mse_mean": statistics.fmean(test_mse),
                "test_mse_min": min(test_mse),
                "test_mse_max": max(test_mse),
                "test_mse_deviation": statistics.stdev(test_mse) if len(test_mse) > 1 else 0.0,
                "gray_mse": metrics[0]["gray_mse"],
                "mean_color_mse": metrics[0]["mean_color_mse"],
            }
        )
    return rows


def _lines(rows: Sequence[dict]) -> list[str]:
    """Returns the table, the best number of maps of each network by validation error, and the report's result."""
    lines = ["", "Feature maps: test mse, mean over the seeds (minimum to maximum)"]
    best_lines = [""]
    for (network, activation), group in groupby(rows, lambda row: (row["network"], row["activation"])):
        members = list(group)
        name = f"{network} {activation}".strip()
        lines += [
            f"  {name} {row['feature_maps']}: {row['test_mse_mean']:.6f} "
            f"({row['test_mse_min']:.6f} to {row['test_mse_max']:.6f}, {row['seeds']} seeds)"
            for row in members
        ]
        best = min(members, key=lambda row: row["val_mse_mean"])
        best_lines.append(
            f"Best {name}: {best['feature_maps']} maps (by the validation images), test mse {best['test_mse_mean']:.6f}"
        )
    return [*lines, *best_lines, _comparison_with_report(rows)]


def _comparison_with_report(rows: Sequence[dict]) -> str:
    """Returns a line that compares the Regressor's error with the report's."""
    maps, mse = Constants.REPORTED_BEST
    reported = f"The report's best: {maps} maps, with a Regressor mse of {mse:.6f} on its own test images."
    row = next((row for row in rows if (row["network"], row["feature_maps"]) == ("regressor", maps)), None)
    if row is None:
        return f"{reported} It gives no error for the Colorizer."
    here = f"The Regressor with {maps} maps has {row['test_mse_mean']:.6f} here"
    return f"{reported} {here}, and the mean color {row['mean_color_mse']:.6f}."
