"""The results of a sweep: results.csv, summary.png and the ranked tables, made from the checkpoints alone."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest

import Constants
from deepcolor.common.files import write_csv
from deepcolor.reporting.plots import loss_plot, summary_picture
from deepcolor.training.checkpoint import find_models
from deepcolor.training.checkpoint_manager import write_best
from deepcolor.training.config import TrainConfig, TrainingRun
from deepcolor.training.paths import RunPaths
from utils import UserError, format_value

SETTING_COLUMNS = ["network", "activation", "feature_maps", "lr", "epoch", "weight_decay"]
SCORE_COLUMNS = (
    "seed status train_mse val_mse test_mse test_mse_a test_mse_b gray_mse mean_color_mse rmse_lab "
    "psnr ssim delta_e colorfulness colorfulness_true colorfulness_abs colorfulness_abs_true delta_colorfulness "
    "seconds checkpoint diverged_epoch beats_gray beats_mean_color chroma_ratio variety_ratio verdict"
).split()

# Heading -> format of a cell in the printed tables.
_SCORE_CELLS = {
    "val mse": "{val_mse:.6f}",
    "test mse": "{test_mse:.6f}",
    "beats gray?": "{beats_gray}",
    "beats mean?": "{beats_mean_color}",
}
_COLORIZER_CELLS = {
    "PSNR": "{psnr:.2f}",
    "SSIM": "{ssim:.3f}",
    "dE": "{delta_e:.2f}",
    "color/true": "{colorfulness:.0f}/{colorfulness_true:.0f}",
    "chroma": "{chroma_ratio:.0%}",
    "verdict": "{verdict}",
}


def gather(paths: RunPaths, redraw: bool = False, study: Sequence[dict] = ()) -> list[str]:
    """Writes results.csv, summary.png and the best checkpoints from all finished models.

    Args:
        paths: the output folder.
        redraw: draw the loss plots too.
        study: the rows of feature_maps.csv, which summary.png shows too.

    Returns:
        The lines to print: remarks, the best Regressor's two numbers for each test image, and the ranked tables.

    Raises:
        UserError: no model is finished.
        OSError: a file cannot be written.
    """
    models, remarks = find_models(paths)
    if not models:
        raise UserError(
            "; ".join(remarks)
            or f"no finished model below {paths.root}: train one first, or choose another folder with --output"
        )
    rows = to_rows(models)
    write_csv(
        paths.plots / "results.csv",
        list(rows[0]),
        ({column: format_value(value) for column, value in row.items()} for row in rows),
    )
    write_best(paths, models)
    best = best_of_each(rows)
    if best:
        summary_picture(paths.plots / "summary.png", rows, best, study)
    if redraw:
        for model in models:
            loss_plot(paths.plot(model["network"], model["activation"], model["run"], "loss.png"), model)
    return [*remarks, *_regressor_lines(models, best), *_ranked_tables(rows), *_best_lines(rows, best)]


def to_rows(models: Sequence[dict]) -> list[dict]:
    """Returns a row of results.csv for each model, sorted by network, activation and hyperparameters.

    Every row has all columns, in order; a cell that does not apply is "". A hyperparameter that is not part of Table 1
    has a column if it was swept, or if the models differ in it. A model that does not know it has the default.
    """
    defaults = asdict(TrainConfig())
    hyperparameters = [{**defaults, **model["hyperparameters"]} for model in models]
    further = dict.fromkeys(key for model in models for key in model["swept"])
    further |= dict.fromkeys(key for values in hyperparameters for key in values if _differs(key, hyperparameters))
    further = [key for key in further if key not in (*SETTING_COLUMNS, *SCORE_COLUMNS)]
    rows = []
    for model, values in zip(models, hyperparameters):
        top_level = {key: model[key] for key in ("network", "activation", "feature_maps", "seed")}
        values = {**values, **model["metrics"], **_comparison(model["metrics"]), **top_level}
        rows.append({column: values.get(column, "") for column in (*SETTING_COLUMNS, *further, *SCORE_COLUMNS)})
    order = ["lr", "epoch", "weight_decay", "feature_maps", *further, "seed"]
    return sorted(rows, key=lambda row: (_task_order(row), [_sort_key(row[column]) for column in order]))


def _differs(key: str, dicts: Sequence[dict]) -> bool:
    return len({format_value(each.get(key, "")) for each in dicts}) > 1


def _comparison(metrics: dict) -> dict[str, str]:
    """Returns "yes" or "no" for each baseline: whether the test error is below it."""
    if metrics["status"] != "done":
        return {}
    baselines = ("gray", "mean_color")
    return {f"beats_{name}": "yes" if metrics["test_mse"] < metrics[f"{name}_mse"] else "no" for name in baselines}


def _task_order(row: dict) -> tuple[int, int]:
    return Constants.NETWORKS.index(row["network"]), ["", *Constants.ACTIVATIONS].index(row["activation"])


def _sort_key(value: object) -> tuple:
    """Numbers in numeric order, followed by everything else as text."""
    is_text = not isinstance(value, int | float)
    return is_text, str(value) if is_text else value


def ranked(rows: Sequence[dict]) -> list[dict]:
    """Returns the rows with a finite validation error, lowest first."""
    return sorted(filter(has_finite_error, rows), key=lambda row: row["val_mse"])


def has_finite_error(row: dict) -> bool:
    """Whether a row of results.csv, or the metrics of a model, can be ranked."""
    return row["status"] == "done" and math.isfinite(row["val_mse"])


def best_of_each(rows: Sequence[dict]) -> dict[tuple[str, str], dict]:
    """Returns (network, activation) -> the row with the lowest validation error.

    A network and activation whose models all diverged have no entry.
    """
    best: dict[tuple[str, str], dict] = {}
    for row in ranked(rows):
        best.setdefault((row["network"], row["activation"]), row)
    return dict(sorted(best.items(), key=lambda item: _task_order(item[1])))


def _regressor_lines(models: Sequence[dict], best: dict[tuple[str, str], dict]) -> list[str]:
    """Returns a table of the mean a and b of each test image, predicted by the best Regressor and true."""
    row = best.get(("regressor", ""))
    if row is None:
        return []
    model = next(model for model in models if model["metrics"]["checkpoint"] == row["checkpoint"])
    return [
        "",
        f"Mean color of each test image, by the best regressor ({model['run']}), in Lab units:",
        f"  {'predicted a':>11} {'b':>7}   {'true a':>7} {'b':>7}   image",
        *(
            f"  {a:11.2f} {b:7.2f}   {true_a:7.2f} {true_b:7.2f}   {name}"
            for name, a, b, true_a, true_b in model["metrics"]["test_means"]
        ),
    ]


def _ranked_tables(rows: Sequence[dict]) -> list[str]:
    """Returns a table for each network, with the lowest validation error first and diverged combinations last."""
    lines = []
    for network in Constants.NETWORKS:
        if members := [row for row in rows if row["network"] == network]:
            title = f"{network.capitalize()}: every combination, best first (by the validation images)"
            lines += ["", title, *_table(members)]
    return lines


def _table(rows: Sequence[dict]) -> list[str]:
    """Returns the lines of the table of one network."""
    is_colorizer = rows[0]["network"] == "colorizer"
    settings = {"activation": "activation"} if is_colorizer else {}
    settings |= {"maps": "feature_maps", "lr": "lr", "epoch": "epoch", "decay": "weight_decay"}
    settings |= {column: column for column in _further_settings(rows)}
    scores = {**_SCORE_CELLS, **_COLORIZER_CELLS} if is_colorizer else _SCORE_CELLS
    best_first = [*ranked(rows), *(row for row in rows if not has_finite_error(row))]
    table = [["", *settings, *scores]]
    for rank, row in enumerate(best_first, 1):
        cells = [cell.format_map(row) for cell in scores.values()] if row["status"] == "done" else []
        table.append([f"{rank}.", *(format_value(row[column]) for column in settings.values()), *cells])
    widths = [max(map(len, column)) for column in zip_longest(*table, fillvalue="")]
    lines = ["  ".join(map(str.rjust, cells, widths)) for cells in table]
    for place, row in enumerate(best_first, 1):
        if row["status"] != "done":
            lines[place] += f"  diverged at epoch {row['diverged_epoch']}"
    return lines


def _further_settings(rows: Sequence[dict]) -> list[str]:
    """Returns the columns of hyperparameters that are not part of Table 1, and the seed if it varies."""
    further = [column for column in rows[0] if column not in (*SETTING_COLUMNS, *SCORE_COLUMNS)]
    return [*further, "seed"] if _differs("seed", rows) else further


def _best_lines(rows: Sequence[dict], best: dict[tuple[str, str], dict]) -> list[str]:
    """Returns a sentence about the best combination of each network and activation."""
    columns = ["lr", "epoch", "weight_decay", *_further_settings(rows)]
    columns += ["feature_maps"] if _differs("feature_maps", rows) else []
    lines = [""]
    for row in best.values():
        name = f"{row['network']} {row['activation']}".strip()
        settings = ", ".join(f"{column.replace('_', ' ')} {format_value(row[column])}" for column in columns)
        beats = "beats" if row["beats_mean_color"] == "yes" else "does NOT beat"
        colors = f"; {row['verdict']}, with {row['chroma_ratio']:.0%} of the true chroma" if row["verdict"] else ""
        lines.append(
            f"Best {name}: {settings}: test mse {row['test_mse']:.6f} {beats} the mean color "
            f"({row['mean_color_mse']:.6f}; gray {row['gray_mse']:.6f}){colors}"
        )
    return lines


def plan_lines(training_runs: Sequence[TrainingRun]) -> list[str]:
    """Returns what --plan prints: the training runs, the combinations of each, and the totals."""
    lines = []
    for number, training_run in enumerate(training_runs):
        lines.append(f"{number:3d}  {training_run}: {_count(training_run.snapshot_epochs[-1], 'epoch')}")
        lines += [f"       {training_run.run_name(epoch)}" for epoch in training_run.snapshot_epochs]
    combinations = sum(len(training_run.snapshot_epochs) for training_run in training_runs)
    epochs = sum(training_run.snapshot_epochs[-1] for training_run in training_runs)
    separate = sum(sum(training_run.snapshot_epochs) for training_run in training_runs)
    counts = f"{_count(combinations, 'combination')} in {_count(len(training_runs), 'training run')}"
    saving = f" instead of {separate}" if separate > epochs else ""
    return [*lines, f"{counts}: {_count(epochs, 'epoch')}{saving}"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
