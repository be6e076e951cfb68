"""colorize.py from the command line: checkpoints, pictures, messages and exit codes."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, files_below, picture, without_privileges, write
from PIL import Image

from colorize import colorize, load

Run = Callable[..., object]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for number, name in enumerate(("one.jpg", "two.png", "sub/three.JPG", "sub/four.webp")):
        write(tmp_path / "album" / name, picture(number, 40 + 30 * number, 60))
    return tmp_path / "album"


def colored(folder: Path) -> list[str]:
    """Returns the colored pictures below a folder, after checking that each is complete."""
    paths = sorted(folder.rglob("*_color.png"))
    for path in paths:
        Image.open(path).load()
    return [str(path.relative_to(folder)) for path in paths]


def only_line(result: object, code: int) -> str:
    assert result.code == code, result.lines
    (line,) = result.lines
    return line


# --- What is colored -------------------------------------------------------------------------------


def test_a_photograph_with_the_best_colorizer_of_the_sweep(sweep: Path, tmp_path: Path) -> None:
    """As a user does it: in the folder of the sweep, with only the photograph."""
    shutil.copytree(sweep, tmp_path, dirs_exist_ok=True)
    write(tmp_path / "grandma.jpg", picture(1, 90, 120))
    command = [sys.executable, ROOT / "colorize.py", "grandma.jpg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert colored(tmp_path) == ["grandma_color.png"]
    with open(sweep / "Plots/results.csv", newline="") as file:
        errors = [float(row["val_mse"]) for row in csv.DictReader(file) if row["network"] == "colorizer"]
    assert len(errors) == 4
    assert "checkpoints/best_colorizer.pt (" in done.stdout
    assert f"val mse {min(errors):.6f}, best of the sweep" in done.stdout
    assert "colored 1 of 1: grandma_color.png" in done.stdout


def test_a_named_checkpoint(run_colorize: Run, sweep: Path, tmp_path: Path) -> None:
    """Its activation decides what its output means: both give similar colors."""
    pictures = []
    for activation in ("sigmoid", "tanh"):
        (path,) = (sweep / f"checkpoints/colorizer_{activation}").glob("epoch_3_*.pt")
        result = run_colorize(write(tmp_path / f"{activation}.png", picture(2, 60, 60)), "--checkpoint", path)
        assert result.code == 0
        assert f"with {path} ({activation}, 3 epochs)" in result.out
        pictures.append(np.asarray(Image.open(tmp_path / f"{activation}_color.png")).astype(int))
    difference = np.abs(pictures[0] - pictures[1])
    assert difference.max() > 0
    assert difference.mean() < 60


def test_a_folder_and_the_same_command_again(run_colorize: Run, album: Path, sweep: Path, tmp_path: Path) -> None:
    """The pictures are the same, bit for bit, in a folder, alone, again and from Python."""
    originals = files_below(album)
    expected = ["one_color.png", "sub/four_color.png", "sub/three_color.png", "two_color.png"]
    result = run_colorize(album, "--output", tmp_path / "new/out")
    assert (result.code, result.lines) == (0, [])
    assert "colored 4 of 4" in result.out
    assert colored(tmp_path / "new/out") == expected
    assert files_below(album) == originals
    pictures = files_below(tmp_path / "new/out")

    result = run_colorize(album, "--output", tmp_path / "new/out")
    assert (result.code, result.out) == (0, "")
    assert sorted(line.split()[1].rpartition("/out/")[2] for line in result.lines) == expected
    assert all("--overwrite" in line for line in result.lines)
    assert files_below(tmp_path / "new/out") == pictures

    assert run_colorize(album, "--output", tmp_path / "new/out", "--overwrite").code == 0
    assert run_colorize(album / "two.png").code == 0
    again = {path: content for path, (content, _) in files_below(tmp_path / "new/out").items()}
    assert again == {path: content for path, (content, _) in pictures.items()}
    assert (album / "two_color.png").read_bytes() == (tmp_path / "new/out/two_color.png").read_bytes()
    with Image.open(album / "two_color.png") as image:
        assert np.array_equal(colorize(load(sweep, "cpu"), picture(1, 70, 60)), np.asarray(image))
    assert only_line(run_colorize(album / "two_color.png"), 2).endswith("is a colored picture of this program")


# --- Bad input -------------------------------------------------------------------------------------


def test_what_cannot_be_colored_is_named_and_the_others_are_colored(
    run_colorize: Run, album: Path, tmp_path: Path
) -> None:
    (album / "cut.jpg").write_bytes((album / "one.jpg").read_bytes()[:600])
    (album / "text.png").write_text("not a picture")
    (album / "line\nbreak.png").touch()
    os.mkfifo(album / "pipe.png")
    write(album / f"{'x' * 250}.png", picture(5))  # its colored picture would have too long a name
    write(tmp_path / "other/x.png", picture(5, 40, 40))
    (album / "inner.png").symlink_to(album / "two.png")
    (album / "outer.png").symlink_to(tmp_path / "other/x.png")
    (album / "away").symlink_to(tmp_path / "other")
    result = run_colorize(album, album / "missing.jpg", f"{tmp_path}/*.gif", "--output", tmp_path / "out")
    assert result.code == 1
    reasons = {
        "cut.jpg": "",
        "text.png": "not an image",
        "break.png": "empty",
        "pipe.png": "not a regular file",
        "xxx.png": "cannot be written",
        "outer.png": "out of the folder",
        "missing.jpg": "no photograph",
        "*.gif": "no photograph matches",
    }
    assert len(result.lines) == len(reasons)
    for name, reason in reasons.items():
        assert sum(name in line and reason in line for line in result.lines) == 1, (name, result.lines)
    assert "colored 5 of 11" in result.out
    assert colored(tmp_path / "out") == [
        *("inner_color.png", "one_color.png", "sub/four_color.png", "sub/three_color.png", "two_color.png")
    ]
    assert run_colorize(album / "outer.png").code == 0  # a link that is named may lead anywhere


def diverge(content: dict) -> None:
    next(value for name, value in content["model"].items() if name.startswith("up."))[0] = float("nan")


UNUSABLE: dict[str, Callable[[dict], object]] = {
    "diverged.pt": diverge,
    "wider.pt": lambda content: content.update(feature_maps=4),
    "absurd.pt": lambda content: content.update(feature_maps=10**9),
    "unknown.pt": lambda content: content.update(activation="none"),
    "incomplete.pt": lambda content: content["model"].popitem(),
    "larger.pt": lambda content: content.update(image_size=256),
    "regressor.pt": lambda content: content.update(network="regressor"),
}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["PHOTO_OR_FOLDER"]),
        (["nowhere.jpg"], ["nowhere.jpg"]),
        (["empty"], ["empty", "no photographs"]),
        (["corrupt.jpg"], ["corrupt.jpg", "not an image"]),
        (["it.png", "--output", "corrupt.jpg"], ["--output", "corrupt.jpg"]),
        (["it.png", "--checkpoint", "none.pt"], ["none.pt", "no checkpoint"]),
        (["it.png", "--checkpoint", "empty"], ["no trained colorizer", "empty", "main.py", "--checkpoint"]),
        (["it.png", "--checkpoint", "old"], ["main.py --report --output old", "best_colorizer.pt"]),
        (["it.png", "--checkpoint", "it.png"], ["it.png", "not a checkpoint"]),
        *((["it.png", "--checkpoint", name], [name]) for name in UNUSABLE),
    ],
    ids=lambda value: " ".join(value),
)
def test_if_nothing_can_be_done_one_line_says_why(
    run_colorize: Run,
    sweep: Path,
    change_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "it.png", picture(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt.jpg").write_text("not a picture")
    if arguments[-1:] == ["old"]:
        shutil.copytree(sweep / "checkpoints", tmp_path / "old/checkpoints")
        (tmp_path / "old/checkpoints/best_colorizer.pt").unlink()
    if arguments and arguments[-1] in UNUSABLE:
        change_checkpoint(UNUSABLE[arguments[-1]], tmp_path / arguments[-1])
    line = only_line(run_colorize(*arguments), 2)
    assert all(word in line for word in words), line
    assert colored(tmp_path) == []


def test_a_checkpoint_of_an_older_version(
    run_colorize: Run, change_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    def remove(content: dict) -> None:
        for key in ("metrics", "history", "fingerprint", "versions", "run", "swept", "format_version"):
            content.pop(key, None)

    photo = write(tmp_path / "it.png", picture(1))
    assert run_colorize(photo, "--checkpoint", change_checkpoint(remove, tmp_path / "it.pt")).code == 0


def test_a_folder_that_cannot_be_written(run_colorize: Run, album: Path) -> None:
    (album / "sub").chmod(0o555)
    with without_privileges():
        lines = [
            only_line(run_colorize(album / "sub/three.JPG"), 2),
            only_line(run_colorize(album / "two.png", "--output", album / "sub"), 2),
        ]
    (album / "sub").chmod(0o755)
    for line, word in zip(lines, ("three.JPG", "--output")):
        assert word in line
        assert "ermission" in line
