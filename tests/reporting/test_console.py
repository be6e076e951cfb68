"""What the program prints during training and at the end."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import oracles
import pytest
from helpers import TASK_NAMES, TASKS, Run, photo, picture, write

import main

NUMBER = r"(-?\d+\.\d+)"
RUNS = [f"epoch_{epoch}_lr_0.003_weight_decay_{decay}" for epoch in (2, 4) for decay in ("0", "1e-05")]


def results(output: Path) -> list[dict[str, str]]:
    with open(output / "Plots/results.csv", newline="") as file:
        return list(csv.DictReader(file))


def best(rows: list[dict[str, str]], network: str, activation: str) -> dict[str, str]:
    """Returns the row with the lowest validation error."""
    members = [row for row in rows if (row["network"], row["activation"]) == (network, activation)]
    return min(members, key=lambda row: float(row["val_mse"]))


def test_the_images_the_plan_and_the_time_come_first(run: Run) -> None:
    first = run.stdout.splitlines()[:3]
    assert "17 training, 3 validation and 4 test images" in first[0]
    assert "12 combinations in 6 training runs: 24 epochs" in first[1]
    assert re.search(r"[Aa]bout \d+ (s|min|h)", first[2])


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_combination_has_a_line_when_it_is_finished(run: Run, task: str) -> None:
    for name in RUNS:
        lines = [line for line in run.stdout.splitlines() if line.startswith(f"{task} {name}:")]
        assert len(lines) == 1
        network, _, activation = task.partition("_")
        (row,) = (r for r in results(run.output) if r["checkpoint"] == f"checkpoints/{task}/{name}.pt")
        assert (row["network"], row["activation"]) == (network, activation)
        assert f"test mse {float(row['test_mse']):.6f}" in lines[0]


def test_the_two_numbers_of_every_test_image(run: Run) -> None:
    row = best(results(run.output), "regressor", "")
    means = run.output / f"Plots/Regressor/{Path(row['checkpoint']).stem}_means.csv"
    with open(means, newline="") as file:
        written = {line["image"]: line for line in csv.DictReader(file)}
    photos = sorted((run.photos / "test").iterdir())
    assert set(written) == {path.stem for path in photos}
    errors = []
    for path in photos:
        image = path.stem
        (line,) = (line for line in run.stdout.splitlines() if line.endswith(f" {image}"))
        a, b, true_a, true_b = (float(number) for number in re.findall(NUMBER, line))
        expected = oracles.lab(photo(path))[..., 1:].mean(axis=(0, 1))
        assert [true_a, true_b] == pytest.approx(list(expected), abs=0.011)
        assert [a, b] == pytest.approx([float(written[image][f"predicted_{c}"]) for c in "ab"], abs=0.011)
        errors += [(a - expected[0]) ** 2, (b - expected[1]) ** 2]
    assert sum(errors) / len(errors) / 255**2 == pytest.approx(float(row["test_mse"]), rel=0.02)


def test_the_tables_are_ranked_by_the_validation_images(run: Run) -> None:
    rows = results(run.output)
    for network, count in (("Regressor", 4), ("Colorizer", 8)):
        table = run.stdout.split(f"{network}: every combination")[1].split("\n\n")[0]
        values = [float(re.findall(r"0\.\d{6}", line)[0]) for line in re.findall(r"^ *\d+\. .*$", table, re.MULTILINE)]
        assert len(values) == count
        assert values == sorted(values)
        expected = [float(row["val_mse"]) for row in rows if row["network"] == network.lower()]
        assert values == pytest.approx(sorted(expected), abs=1e-6)


@pytest.mark.parametrize(("network", "activation"), TASKS)
def test_the_best_is_named_and_whether_it_beats_the_mean_color(run: Run, network: str, activation: str) -> None:
    row = best(results(run.output), network, activation)
    (line,) = (x for x in run.stdout.splitlines() if x.startswith(f"Best {f'{network} {activation}'.strip()}:"))
    assert f"lr {row['lr']}, epoch {row['epoch']}, weight decay {row['weight_decay']}" in line
    assert f"{float(row['test_mse']):.6f}" in line
    beaten = float(row["test_mse"]) < float(row["mean_color_mse"])
    assert (" beats the mean color" in line, " does NOT beat the mean color" in line) == (beaten, not beaten)


def test_nothing_but_the_progress_bar_is_on_stderr(run: Run) -> None:
    assert "\n" not in run.stderr  # the bar is removed at the end
    assert run.stderr.rpartition("\r")[2].strip() == ""


def test_a_model_that_does_not_beat_the_mean_color_is_reported_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in range(9):  # all of them orange: the mean color is hard to beat without learning
        subset = ("train", "val", "test")[number % 3]
        write(tmp_path / f"images/{subset}/{number}.png", picture(number) // 8 + np.uint8([200, 120, 20]))
    flags = "--network regressor --lr 1e-9 --epoch 1 --weight-decay 0 --device cpu".split()
    assert main.main(["--images", str(tmp_path / "images"), "--output", str(tmp_path), *flags]) == 0
    (row,) = results(tmp_path)
    assert float(row["test_mse"]) > float(row["mean_color_mse"])
    assert "does NOT beat the mean color" in capsys.readouterr().out


def test_report_gathers_what_is_finished_without_training(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output = shutil.copytree(run.output, tmp_path / "out")
    expected = (output / "Plots/results.csv").read_text()
    kept = {path: path.read_bytes() for path in (output / "checkpoints").rglob("epoch_*.pt")}
    for path in [path for path in (output / "Plots").rglob("*") if path.suffix in (".csv", ".png")]:
        if not path.name.endswith(("_triplets.png", "_means.csv")):
            path.unlink()
    monkeypatch.chdir(tmp_path)
    assert main.main(["--report", "--output", str(output)]) == 0
    assert (output / "Plots/results.csv").read_text() == expected
    assert len(list((output / "Plots").rglob("*_loss.png"))) == 12
    assert (output / "Plots/summary.png").stat().st_size > 0
    assert {path: path.read_bytes() for path in (output / "checkpoints").rglob("epoch_*.pt")} == kept
    ending = run.stdout[run.stdout.index("Mean color of each test image") :]
    assert capsys.readouterr().out.endswith(ending)
    assert not (tmp_path / "data").exists()
