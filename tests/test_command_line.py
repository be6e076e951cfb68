"""The command line: --plan, --report, combinations that diverge, and exit codes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import SHORT, only_line
from matplotlib.axes import Axes
from survival import result_of

import main


def test_report_of_nothing(fails: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path) in fails("--report", "--output", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_writes_nothing_and_needs_no_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["--plan", "--images", "nowhere", "--output", "out"]) == 0
    assert "81 combinations" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_survives_a_combination_that_diverges(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = "--device cpu --activation tanh --lr 1e30 0.001 --epoch 1 2 --weight-decay 0 --jobs 1".split()
    rows = result_of(tmp_path, "--images", photos, *flags)["Plots/results.csv"]
    assert len(rows) == 8
    for row in rows:
        diverged = float(row["lr"]) > 1
        assert row["status"] == ("diverged" if diverged else "done")
        assert (row["test_mse"] == "") == diverged
        assert row["diverged_epoch"] == ("1" if diverged else "")
    best = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Best ")]
    assert len(best) == 2
    assert all("lr 0.001" in line for line in best)


def test_the_summary_calls_diverged_only_what_diverged(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two commands, no process trained the combinations (0.001, 2) and (0.01, 1)."""
    written: list[str] = []
    original = Axes.text

    def text(axes: Axes, x: float, y: float, words: str, *arguments: object, **options: object) -> object:
        written.append(words)
        return original(axes, x, y, words, *arguments, **options)

    monkeypatch.setattr(Axes, "text", text)
    for lr, epoch in (("0.001", "1"), ("0.01", "2")):
        written.clear()
        rows = result_of(tmp_path, "--images", photos, *SHORT, "--lr", lr, "--epoch", epoch)["Plots/results.csv"]
    figures = [f"{255 * float(row['val_mse']) ** 0.5:.2f}" for row in rows]
    assert set(figures) <= set(written)
    assert "diverged" not in written


def test_the_real_program_says_one_line_and_exits_with_2(
    run_main: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    done = run_main("--images", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "nowhere" in only_line(done.stderr)


@pytest.mark.slow
def test_faces_are_learned_from(faces_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = "--device cpu --activation sigmoid --lr 0.001 --epoch 2 --weight-decay 1e-5".split()
    rows = result_of(tmp_path, "--images", faces_dir, *flags)["Plots/results.csv"]
    assert "left out" not in capsys.readouterr().out
    assert [row["status"] for row in rows] == ["done", "done"]
    assert float(rows[1]["val_mse"]) > 0
    assert len(list((tmp_path / "outputs_sigmoid/color").rglob("*.png"))) >= 30
