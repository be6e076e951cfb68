"""colorize.py from the command line: which photographs, which checkpoint, where the pictures go, what is said."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, files_below, picture, without_privileges, write
from PIL import Image

from deepcolor.training import checkpoint

pytest_plugins = ["survival"]

PROGRAM = ROOT / "colorize.py"
Color = Callable[..., object]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Photographs in two folders, and what is no photograph."""
    for number, name in enumerate(("one.jpg", "two.png", "sub/three.JPG", "sub/deeper/four.webp")):
        write(tmp_path / "album" / name, picture(number, 40, 60))
    (tmp_path / "album/notes.txt").write_text("no picture")
    write(tmp_path / "album/.hidden.png", picture(9, 40, 60))
    write(tmp_path / "album/.thumbnails/one.png", picture(9, 40, 60))
    return tmp_path / "album"


def files(folder: Path) -> dict[str, object]:
    """Everything below a folder, by its path in it."""
    return {os.path.relpath(path, folder): what for path, what in files_below(folder).items()}


def colored(folder: Path) -> list[str]:
    """The colored pictures below a folder, each of which must be whole."""
    paths = sorted(folder.rglob("*_color.png"))
    for path in paths:
        Image.open(path).load()
    return [str(path.relative_to(folder)) for path in paths]


# --- What is colored ------------------------------------------------------------------------------


def test_a_photograph_with_the_best_colorizer_of_the_last_sweep(sweep: Path, tmp_path: Path) -> None:
    """As a user would: where the sweep was made, with no more than the photograph."""
    shutil.copytree(sweep, tmp_path, dirs_exist_ok=True)
    write(tmp_path / "grandma.jpg", picture(1, 90, 120))
    done = subprocess.run([sys.executable, PROGRAM, "grandma.jpg"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert colored(tmp_path) == ["grandma_color.png"]
    with open(sweep / "Plots/results.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["network"] == "colorizer"]
    assert len(rows) == 4
    assert min(rows, key=lambda row: float(row["val_mse"]))["checkpoint"] in done.stdout
    assert "grandma_color.png" in done.stdout


def test_the_checkpoint_that_is_named(color: Color, sweep: Path, tmp_path: Path) -> None:
    """It says everything about itself: sigmoid and tanh come out differently, and near each other."""
    pictures = {}
    for activation in ("sigmoid", "tanh"):
        (path,) = (sweep / f"checkpoints/colorizer_{activation}").glob("epoch_3_*.pt")
        photo = write(tmp_path / f"{activation}.png", picture(2, 60, 60))
        said = color(photo, "--checkpoint", path)
        assert said.code == 0
        assert str(path) in said.out
        pictures[activation] = np.asarray(Image.open(tmp_path / f"{activation}_color.png")).astype(int)
    difference = np.abs(pictures["sigmoid"] - pictures["tanh"])
    assert difference.max() > 0
    assert difference.mean() < 60


def test_a_folder_beside_the_photographs(color: Color, album: Path) -> None:
    before = files(album)
    assert color(album).code == 0
    expected = ["one_color.png", "sub/deeper/four_color.png", "sub/three_color.png", "two_color.png"]
    assert colored(album) == expected
    assert {path: what for path, what in files(album).items() if path not in expected} == before


def test_a_folder_below_output_keeps_its_structure(color: Color, album: Path, tmp_path: Path) -> None:
    before = files(album)
    said = color(album, "--output", tmp_path / "new/out")
    assert said.code == 0
    assert said.lines == []
    assert "colored 4 of 4" in said.out
    expected = ["one_color.png", "sub/deeper/four_color.png", "sub/three_color.png", "two_color.png"]
    assert colored(tmp_path / "new/out") == expected
    assert files(album) == before


def test_several_names_keep_what_lies_between_them(color: Color, album: Path, tmp_path: Path) -> None:
    assert color(album / "one.jpg", album / "sub", "--output", tmp_path / "out").code == 0
    assert colored(tmp_path / "out") == ["one_color.png", "sub/deeper/four_color.png", "sub/three_color.png"]


def test_patterns_in_quotes(color: Color, album: Path, tmp_path: Path) -> None:
    assert color(f"{album}/*.*", "--output", tmp_path / "a").code == 0
    assert colored(tmp_path / "a") == ["one_color.png", "two_color.png"]  # and not the notes
    assert color(f"{album}/**/t*", "--output", tmp_path / "b").code == 0
    assert colored(tmp_path / "b") == ["sub/three_color.png", "two_color.png"]


def test_a_photograph_named_twice_is_colored_once(color: Color, album: Path) -> None:
    said = color(album / "one.jpg", album, album / "sub/../one.jpg", f"{album}/o*")
    assert (said.code, said.lines) == (0, [])
    assert "colored 4 of 4" in said.out


def test_links_lead_anywhere_if_named_and_nowhere_else_if_found(color: Color, album: Path, tmp_path: Path) -> None:
    (album / "inner.png").symlink_to(album / "two.png")
    (album / "away").symlink_to(write(tmp_path / "other/x.png", picture(5, 40, 40)).parent)
    (album / "outer.png").symlink_to(tmp_path / "other/x.png")
    said = color(album, "--output", tmp_path / "out")
    assert said.code == 1
    (line,) = said.lines
    assert "outer.png" in line
    assert "out of the folder" in line
    assert "inner_color.png" in colored(tmp_path / "out")
    assert not (tmp_path / "out/away").exists()
    assert color(album / "outer.png").code == 0
    assert (album / "outer_color.png").exists()


# --- Again -----------------------------------------------------------------------------------------


def test_what_exists_is_kept_and_the_programs_own_pictures_are_not_colored(color: Color, album: Path) -> None:
    assert color(album).code == 0
    before = files(album)
    write(album / "five.png", picture(5, 40, 60))
    said = color(album)
    assert said.code == 0
    assert sorted(line.split()[1].rpartition("/")[2] for line in said.lines) == [
        *("four_color.png", "one_color.png", "three_color.png", "two_color.png")
    ]
    assert all("--overwrite" in line for line in said.lines)
    after = files(album)
    assert {path: after[path] for path in before} == before
    assert after.keys() - before.keys() == {"five.png", "five_color.png"}
    assert color(*album.glob("*_color.png")).code == 2


def test_overwrite_makes_it_anew(color: Color, album: Path) -> None:
    (album / "one_color.png").write_text("mine")
    said = color(album / "one.jpg")
    assert said.code == 0
    assert (album / "one_color.png").read_text() == "mine"
    assert color(album / "one.jpg", "--overwrite").code == 0
    assert colored(album) == ["one_color.png"]


def test_an_empty_file_is_no_picture(color: Color, album: Path) -> None:
    """A loss of power can leave one."""
    (album / "one_color.png").touch()
    assert color(album / "one.jpg").lines == []
    assert colored(album) == ["one_color.png"]


def test_a_picture_of_that_name_without_an_original_is_a_photograph(color: Color, tmp_path: Path) -> None:
    assert color(write(tmp_path / "autumn_color.png", picture(1, 30, 30))).code == 0
    assert colored(tmp_path) == ["autumn_color.png", "autumn_color_color.png"]


def test_an_output_within_the_folder_is_not_colored_the_next_time(color: Color, album: Path) -> None:
    for _ in range(2):
        assert color(album, "--output", album / "out").code == 0
    assert len(colored(album)) == 4


# --- Bad input -------------------------------------------------------------------------------------


def test_twins_get_a_line_each_and_the_first_is_colored(color: Color, album: Path) -> None:
    for ending in (".png", ".bmp"):
        write(album / f"one{ending}", picture(7, 40, 60))
    said = color(album)
    assert said.code == 1
    assert len(said.lines) == 2
    assert all("one_color.png belongs to" in line and "one.bmp" in line for line in said.lines)
    assert len(colored(album)) == 4


def test_what_cannot_be_read_is_named_and_the_others_are_colored(color: Color, album: Path, tmp_path: Path) -> None:
    (album / "cut.jpg").write_bytes((album / "one.jpg").read_bytes()[:600])
    (album / "text.png").write_text("no picture")
    (album / "line\nbreak.png").touch()
    os.mkfifo(album / "pipe.png")
    said = color(album, album / "missing.jpg", f"{tmp_path}/*.gif", "--output", tmp_path / "out")
    assert said.code == 1
    assert len(said.lines) == 6
    for words in (["cut.jpg"], ["text.png", "not an image"], ["break.png", "empty"], ["pipe.png", "regular"]):
        assert sum(all(word in line for word in words) for line in said.lines) == 1, (words, said.lines)
    assert sum("missing.jpg" in line for line in said.lines) == 1
    assert sum(".gif" in line for line in said.lines) == 1
    assert "colored 4 of 8" in said.out
    assert len(colored(tmp_path / "out")) == 4


def nothing_named(folder: Path) -> list[object]:
    return []


def missing(folder: Path) -> list[object]:
    return [folder / "nowhere.jpg"]


def empty_folder(folder: Path) -> list[object]:
    (folder / "empty").mkdir()
    return [folder / "empty"]


def corrupt(folder: Path) -> list[object]:
    (folder / "it.jpg").write_text("no picture")
    return [folder / "it.jpg"]


def output_is_a_file(folder: Path) -> list[object]:
    (folder / "file").touch()
    return [write(folder / "it.png", picture(1)), "--output", folder / "file"]


def no_such_checkpoint(folder: Path) -> list[object]:
    return [write(folder / "it.png", picture(1)), "--checkpoint", folder / "none.pt"]


def no_checkpoint_yet(folder: Path) -> list[object]:
    return [write(folder / "it.png", picture(1)), "--checkpoint", folder]


def no_checkpoint_at_all(folder: Path) -> list[object]:
    photo = write(folder / "it.png", picture(1))
    return [photo, "--checkpoint", photo]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (nothing_named, ["PHOTO_OR_FOLDER"]),
        (missing, ["nowhere.jpg"]),
        (empty_folder, ["empty", "no photographs"]),
        (corrupt, ["it.jpg", "not an image"]),
        (output_is_a_file, ["--output"]),
        (no_such_checkpoint, ["none.pt"]),
        (no_checkpoint_yet, ["main.py", "--checkpoint"]),
        (no_checkpoint_at_all, ["it.png", "no checkpoint"]),
    ],
)
def test_if_nothing_can_be_done_one_line_says_why(
    color: Color, tmp_path: Path, arguments: Callable[[Path], list[object]], words: list[str]
) -> None:
    said = color(*arguments(tmp_path))
    assert said.code == 2
    (line,) = said.lines
    assert all(word in line for word in words), line
    assert colored(tmp_path) == []


def changed(sweep: Path, path: Path, change: Callable[[dict], None]) -> Path:
    """A colorizer's checkpoint with something changed."""
    content = torch.load(next((sweep / "checkpoints/colorizer_tanh").glob("*.pt")), weights_only=True)
    change(content)
    checkpoint.save(content, path)
    return path


def test_a_checkpoint_that_an_earlier_version_wrote(color: Color, sweep: Path, tmp_path: Path) -> None:
    def less(content: dict) -> None:
        for key in ("metrics", "history", "fingerprint", "versions", "run", "swept"):
            del content[key]

    path = changed(sweep, tmp_path / "it.pt", less)
    assert color(write(tmp_path / "it.png", picture(1)), "--checkpoint", path).code == 0


def diverged(content: dict) -> None:
    next(value for name, value in content["model"].items() if name.startswith("up."))[0] = float("nan")


def wider(content: dict) -> None:
    content["feature_maps"] = 4


def absurd(content: dict) -> None:
    content["feature_maps"] = 10**9


def lacking(content: dict) -> None:
    content["model"].popitem()


def larger(content: dict) -> None:
    content["image_size"] = 256


@pytest.mark.parametrize("change", [diverged, wider, absurd, lacking, larger])
def test_a_checkpoint_whose_weights_cannot_be_used(
    color: Color, sweep: Path, tmp_path: Path, change: Callable[[dict], None]
) -> None:
    path = changed(sweep, tmp_path / "it.pt", change)
    said = color(write(tmp_path / "it.png", picture(1)), "--checkpoint", path)
    assert said.code == 2
    (line,) = said.lines
    assert str(path) in line


def test_the_checkpoint_of_a_regressor(color: Color, earlier: Path, tmp_path: Path) -> None:
    photo = write(tmp_path / "it.png", picture(1))
    (path,) = (earlier / "checkpoints/regressor").glob("*.pt")
    for unfit, word in ((path, "regressor"), (earlier, "no trained colorizer")):
        said = color(photo, "--checkpoint", unfit)
        assert said.code == 2
        (line,) = said.lines
        assert word in line
        assert str(unfit) in line


def test_a_picture_that_cannot_be_written(color: Color, album: Path) -> None:
    long = write(album / f"{'x' * 250}.png", picture(5, 40, 60))  # a name that leaves no room for a longer one
    said = color(album)
    assert said.code == 1
    (line,) = said.lines
    assert str(long) in line
    assert "cannot be written" in line
    assert len(colored(album)) == 4


def test_a_folder_that_cannot_be_written(color: Color, album: Path) -> None:
    (album / "sub").chmod(0o555)
    with without_privileges():
        beside = color(album / "sub/three.JPG")
        below = color(album / "two.png", "--output", album / "sub")
    (album / "sub").chmod(0o755)
    for said, word in ((beside, "three.JPG"), (below, "--output")):
        assert said.code == 2
        (line,) = said.lines
        assert word in line
        assert "ermission" in line
