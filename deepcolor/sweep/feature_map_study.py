"""Section 9 of the report: how many feature maps are best? Its table, its picture, and the answer in words."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import Constants
from deepcolor.common.files import write_atomically
from deepcolor.reporting.plots import feature_maps_picture
from deepcolor.training import checkpoint
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainingRun
from utils import Grid, UserError

COLUMNS = (
    "network activation feature_maps seeds val_mse_mean test_mse_mean test_mse_min test_mse_max test_mse_deviation "
    "gray_mse mean_color_mse"
).split()


def grid(asked: Grid, flags: Mapping[str, object]) -> Grid:
    """The grid of the study: 3 to 9 maps, some seeds, and of every other axis the first value.

    `asked` is the grid that would be swept without the study, `flags` what the command line gave. Raises UserError if
    it gave several values of an axis, or feature maps.
    """
    axes = dict(zip(asked.names, asked))
    if several := [name for name in axes if name in flags and len(axes[name]) > 1]:
        raise UserError(f"--study-feature-maps compares networks at one {several[0]}: give it one value")
    if "feature_maps" in flags:
        raise UserError("--study-feature-maps chooses the feature maps itself: leave --feature-maps out")
    seeds = axes.get("seed") or ([flags["seed"]] if "seed" in flags else Constants.STUDY_SEEDS)
    first = {name: values[:1] for name, values in axes.items() if name != "seed"}
    return Grid({**first, "feature_maps": Constants.STUDY_FEATURE_MAPS, "seed": seeds})


def gather(output: RunPaths, training_runs: Sequence[TrainingRun]) -> list[str]:
    """Makes feature_maps.csv and .png of the models that are finished, and returns the lines to print.

    Raises UserError if none is finished, OSError if a file cannot be written.
    """
    models = []
    for training_run in training_runs:
        path = output.checkpoint(training_run, training_run.snapshot_epochs[-1])
        if path.exists():
            models.append(checkpoint.load_model(path))
    rows = to_rows([model for model in models if model["metrics"]["status"] == "done"])
    if not rows:
        raise UserError(f"nothing of the study is finished below {output.root}: run it without --report first")
    write_atomically(output.plots / "feature_maps.csv", lambda temporary: _write(temporary, rows))
    feature_maps_picture(output.plots / "feature_maps.png", rows)
    unfinished = len(training_runs) - len(models)
    return [*_lines(rows), *([f"{unfinished} trainings of the study are not finished"] if unfinished else [])]


def to_rows(models: Sequence[dict]) -> list[dict]:
    """A row for each network, activation and number of maps: the mean and the spread over the seeds."""

    def kind(model: dict) -> tuple:
        return Constants.NETWORKS.index(model["network"]), model["activation"], model["feature_maps"]

    rows = []
    for (network, activation, maps), group in groupby(sorted(models, key=kind), kind):
        metrics = [model["metrics"] for model in group]
        mse = [each["test_mse"] for each in metrics]
        rows.append(
            {
                "network": Constants.NETWORKS[network],
                "activation": activation,
                "feature_maps": maps,
                "seeds": len(mse),
                "val_mse_mean": statistics.fmean(each["val_mse"] for each in metrics),
                "test_mse_mean": statistics.fmean(mse),
                "test_mse_min": min(mse),
                "test_mse_max": max(mse),
                "test_mse_deviation": statistics.stdev(mse) if len(mse) > 1 else 0.0,
                "gray_mse": metrics[0]["gray_mse"],
                "mean_color_mse": metrics[0]["mean_color_mse"],
            }
        )
    return rows


def _write(path: Path, rows: Sequence[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _lines(rows: Sequence[dict]) -> list[str]:
    """The table, and for each network the best number of maps by the validation images, beside the report's."""
    lines = ["", "Feature maps: test mse, mean over the seeds (least to greatest)"]
    answers = [""]
    for (network, activation), group in groupby(rows, lambda row: (row["network"], row["activation"])):
        members = list(group)
        name = f"{network} {activation}".strip()
        lines += [
            f"  {name} {row['feature_maps']}: {row['test_mse_mean']:.6f} "
            f"({row['test_mse_min']:.6f} to {row['test_mse_max']:.6f}, {row['seeds']} seeds)"
            for row in members
        ]
        best = min(members, key=lambda row: row["val_mse_mean"])
        answers.append(
            f"Best {name}: {best['feature_maps']} maps (by the validation images), test mse {best['test_mse_mean']:.6f}"
        )
    maps, mse = Constants.REPORTED_BEST
    return [*lines, *answers, f"The report found {maps} maps, mse {mse:.6f}, on images of its own."]
