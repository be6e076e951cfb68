"""What the sweep came to: results.csv, the summary picture, the ranked table. Made from the checkpoints alone."""

import csv
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import Constants
from deepcolor.common.files import write_atomically
from deepcolor.training import checkpoint
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.checkpoint_manager import count_unfinished_combinations
from deepcolor.training.config import TrainingRun
from utils import UserError, format_value

SETTING_COLUMNS = ["network", "activation", "feature_maps", "lr", "epoch", "weight_decay"]
SCORE_COLUMNS = (
    "seed status train_mse val_mse test_mse test_mse_a test_mse_b gray_mse mean_color_mse rmse_lab "
    "psnr ssim delta_e colorfulness colorfulness_true seconds checkpoint diverged_epoch "
    "beats_gray beats_mean_color chroma_ratio variety_ratio verdict"
).split()


def find_models(output: RunPaths) -> tuple[list[dict], list[str]]:
    """The finished models below `output`, without their weights, and a line about each file that is none.

    Models that learned from other images than the newest one are left out: their figures cannot be compared.
    """
    models, remarks = [], []
    # Hidden files are what a killed run left half written.
    paths = sorted(output.checkpoints.glob("*/[!.]*.pt"), key=lambda path: path.lstat().st_mtime)
    for path in paths:
        try:
            model = checkpoint.load_model(path)
        except UserError as error:
            remarks.append(f"{error}: left out")
            continue
        if path != output.root / model["metrics"]["checkpoint"]:
            remarks.append(f"{path} is a copy of another run's model, {model['run']}: left out")
        else:
            del model["model"]
            models.append(model)
    if models:
        images = models[-1]["fingerprint"]["images"]
        others = sum(model["fingerprint"]["images"] != images for model in models)
        if others:
            remarks.append(f"{others} model(s) of an earlier run on other images: left out")
        models = [model for model in models if model["fingerprint"]["images"] == images]
    return models, remarks


def to_rows(models: Sequence[dict]) -> list[dict]:
    """A row of results per model: the regressors first, then by activation, learning rate, epoch and weight decay.

    A setting that was swept, or in which the models differ for another reason, has a column.
    """
    rows = []
    told = dict.fromkeys(key for model in models for key in model["swept"])
    told |= dict.fromkeys(key for model in models for key in model["hyperparameters"] if _differs(key, models))
    for model in models:
        keys = ("lr", "epoch", "weight_decay", *told)
        settings = {key: model["hyperparameters"][key] for key in keys if key in model["hyperparameters"]}
        scores = {key: value for key, value in model["metrics"].items() if key in SCORE_COLUMNS}
        fixed = {key: model[key] for key in ("network", "activation", "seed", "feature_maps")}
        rows.append({**settings, **fixed, **scores, **beaten(model["metrics"])})
    return sorted(rows, key=lambda row: (_task_order(row), row["lr"], row["epoch"], row["weight_decay"], str(row)))


def beaten(metrics: dict) -> dict[str, str]:
    """Whether a model is better than the two guesses that look at nothing: "yes" or "no" for each."""
    if metrics["status"] != "done":
        return {}
    guesses = ("gray", "mean_color")
    return {f"beats_{guess}": "yes" if metrics["test_mse"] < metrics[f"{guess}_mse"] else "no" for guess in guesses}


def _differs(key: str, models: Sequence[dict]) -> bool:
    return len({str(model["hyperparameters"].get(key)) for model in models}) > 1


def _task_order(row: dict) -> tuple[int, int]:
    return Constants.NETWORKS.index(row["network"]), ["", *Constants.ACTIVATIONS].index(row["activation"])


def best_of_each(rows: Sequence[dict]) -> dict[tuple[str, str], dict]:
    """The best row of each network and activation, by the validation images; none where all diverged."""
    best: dict[tuple[str, str], dict] = {}
    for row in ranked(rows):
        best.setdefault((row["network"], row["activation"]), row)
    return dict(sorted(best.items(), key=lambda item: _task_order(item[1])))


def ranked(rows: Sequence[dict]) -> list[dict]:
    """The rows that did not diverge, best first, by the validation images."""
    return sorted((row for row in rows if row["status"] == "done"), key=lambda row: row["val_mse"])


def columns(rows: Sequence[dict]) -> list[str]:
    """The columns of results.csv: the further keys that were swept follow Table 1's."""
    known = {*SETTING_COLUMNS, *SCORE_COLUMNS}
    swept = dict.fromkeys(key for row in rows for key in row if key not in known)
    return [*SETTING_COLUMNS, *swept, *SCORE_COLUMNS]


def write_results(path: Path, rows: Sequence[dict]) -> None:
    """Writes results.csv: empty where a column does not apply. Raises OSError."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns(rows), restval="")
            writer.writeheader()
            writer.writerows({key: format_value(value) for key, value in row.items()} for row in rows)

    write_atomically(path, write)


def gather(output: RunPaths, redraw: bool = False) -> list[str]:
    """Makes results.csv and summary.png of everything that is finished, and returns the lines to print.

    `redraw`: the loss plots too. Raises UserError if nothing is finished.
    """
    # To find the best model needs no pictures, and what draws them takes two seconds to import.
    from deepcolor.reporting.plots import loss_plot, summary_picture

    models, remarks = find_models(output)
    if not models:
        raise UserError(
            "; ".join(remarks)
            or f"nothing finished below {output.root}: train something first, or name its folder with --output"
        )
    rows = to_rows(models)
    write_results(output.plots / "results.csv", rows)
    best = best_of_each(rows)
    if best:
        summary_picture(output.plots / "summary.png", rows, best)
    if redraw:
        for model in models:
            loss_plot(output.plot(model["network"], model["activation"], model["run"], "loss.png"), model)
    return [*remarks, *_regressor_lines(models, best), *_tables(rows, best)]


def what_is_missing(output: RunPaths, training_runs: Sequence[TrainingRun], fingerprint: str) -> str:
    """A line about the combinations of a plan that are not finished yet on these images; "" if all are."""
    missing = count_unfinished_combinations(training_runs, output, fingerprint)
    if not missing:
        return ""
    count = sum(len(training_run.snapshot_epochs) for training_run in training_runs)
    return (
        f"not finished yet: {missing} of {count} combinations. The last part to finish gathers all into Plots/; "
        f"python3 main.py --report --output {shlex.quote(str(output.root))} gathers what there is"
    )


def _regressor_lines(models: Sequence[dict], best: dict[tuple[str, str], dict]) -> list[str]:
    """The two numbers of each test image, from the best regressor."""
    winner = best.get(("regressor", ""))
    if winner is None:
        return []
    model = next(m for m in models if m["metrics"]["checkpoint"] == winner["checkpoint"])
    lines = ["", f"Mean color of each test image, by the best regressor ({model['run']}), in Lab units:"]
    lines.append(f"  {'predicted a':>11} {'b':>7}   {'true a':>7} {'b':>7}   image")
    for name, *values in model["metrics"]["test_means"]:
        a, b, true_a, true_b = values
        lines.append(f"  {a:11.2f} {b:7.2f}   {true_a:7.2f} {true_b:7.2f}   {name}")
    return lines


def _tables(rows: Sequence[dict], best: dict[tuple[str, str], dict]) -> list[str]:
    """A ranked table for each network, and a sentence about the best combination of each network and activation."""
    lines = []
    for network in Constants.NETWORKS:
        members = [row for row in rows if row["network"] == network]
        if members:
            lines += [
                "",
                f"{network.capitalize()}: every combination, best first (by the validation images)",
                *_table(members),
            ]
    lines.append("")
    for row in best.values():
        name = " ".join(filter(None, (row["network"], row["activation"])))
        beats = "beats" if row["beats_mean_color"] == "yes" else "does NOT beat"
        lines.append(
            f"Best {name}: lr {format_value(row['lr'])}, epoch {row['epoch']}, weight decay "
            f"{format_value(row['weight_decay'])}: test mse {row['test_mse']:.6f} {beats} the mean color "
            f"({row['mean_color_mse']:.6f}; gray {row['gray_mse']:.6f}){_colors(row)}"
        )
    return lines


def _colors(row: dict) -> str:
    """In words, how much of the colors a colorizer uses; "" for a regressor."""
    if "verdict" not in row:
        return ""
    return f"; {row['verdict']}, with {row['chroma_ratio']:.0%} of the true chroma"


def _table(rows: Sequence[dict]) -> list[str]:
    swept = [key for key in columns(rows) if key not in (*SETTING_COLUMNS, *SCORE_COLUMNS)]
    if len({row["seed"] for row in rows}) > 1:
        swept.append("seed")
    colorizer = rows[0]["network"] == "colorizer"
    head = ["", *(["activation"] if colorizer else []), "maps", "lr", "epoch", "decay", *swept]
    head += ["val mse", "test mse", "beats gray?", "mean?"]
    head += ["PSNR", "SSIM", "dE", "color/true", "chroma", "verdict"] if colorizer else []
    table = [head]
    diverged = [row for row in rows if row["status"] != "done"]
    for rank, row in enumerate([*ranked(rows), *diverged], 1):
        keys = [*(["activation"] if colorizer else []), "feature_maps", "lr", "epoch", "weight_decay", *swept]
        settings = [format_value(row.get(key, "")) for key in keys]
        table.append([f"{rank}.", *settings, *_score_cells(row, colorizer)])
    widths = [max(len(line[i]) if i < len(line) else 0 for line in table) for i in range(len(head))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip() for line in table]


def _score_cells(row: dict, colorizer: bool) -> list[str]:
    if row["status"] != "done":
        return [f"diverged at epoch {row['diverged_epoch']}"]
    cells = [f"{row['val_mse']:.6f}", f"{row['test_mse']:.6f}"]
    cells += [row["beats_gray"], row["beats_mean_color"]]
    if colorizer:
        cells += [f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", f"{row['delta_e']:.2f}"]
        cells.append(f"{row['colorfulness']:.0f}/{row['colorfulness_true']:.0f}")
        cells += [f"{row['chroma_ratio']:.0%}", row["verdict"]]
    return cells


def plan_lines(numbered: Mapping[int, TrainingRun]) -> list[str]:
    """What --plan prints: every combination under its training run and that one's number, and the sums."""
    lines = []
    training_runs = numbered.values()
    for number, training_run in numbered.items():
        lines.append(f"{number:3d}  {training_run.task} {training_run.name}: {training_run.snapshot_epochs[-1]} epochs")
        lines += [f"       {training_run.run_name(epoch)}" for epoch in training_run.snapshot_epochs]
    combinations = sum(len(training_run.snapshot_epochs) for training_run in training_runs)
    epochs = sum(training_run.snapshot_epochs[-1] for training_run in training_runs)
    apart = sum(sum(training_run.snapshot_epochs) for training_run in training_runs)
    counts = f"{_count(combinations, 'combination')} in {_count(len(training_runs), 'training run')}"
    lines.append(f"{counts}: {_count(epochs, 'epoch')}" + (f" instead of {apart}" if apart > epochs else ""))
    return lines


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
