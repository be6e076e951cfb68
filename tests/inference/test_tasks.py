"""Which photographs colorize.py colors, and where the pictures go."""

import os
from pathlib import Path

import pytest
from helpers import picture, write

from deepcolor.inference.tasks import TaskList, find_tasks

ALL = ["one_color.png", "sub/deeper/four_color.png", "sub/three_color.png", "two_color.png"]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Photographs in two folders, and files that are not photographs."""
    for name in ("one.jpg", "two.png", "sub/three.JPG", "sub/deeper/four.webp", ".hidden.png", ".thumbnails/one.png"):
        write(tmp_path / "album" / name, picture(1, 4, 6))
    (tmp_path / "album/notes.txt").write_text("not a photograph")
    return tmp_path / "album"


def targets(tasks: TaskList, folder: Path) -> list[str]:
    return sorted(os.path.relpath(task.target, folder) for task in tasks.todo)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["."], ALL),
        ([".", "one.jpg", "sub/../one.jpg", "o*"], ALL),
        (["one.jpg", "sub"], ["one_color.png", "sub/deeper/four_color.png", "sub/three_color.png"]),
        (["*.*"], ["one_color.png", "two_color.png"]),
        (["**/t*"], ["sub/three_color.png", "two_color.png"]),
    ],
)
def test_files_folders_and_patterns(album: Path, tmp_path: Path, names: list[str], expected: list[str]) -> None:
    """Each photograph once, and --output keeps the folder structure."""
    names = [f"{album}/{name}" for name in names]
    for output in (None, tmp_path / "out", album / "out"):
        tasks = find_tasks(names, output, overwrite=False)
        assert targets(tasks, output or album) == expected
        assert (tasks.problems, tasks.kept) == ([], [])


def test_existing_pictures_are_kept_unless_overwrite(album: Path) -> None:
    """They are not photographs either. An empty file, which a power failure can leave, is not a picture."""
    (album / "one_color.png").write_text("mine")
    (album / "two_color.png").touch()
    tasks = find_tasks([str(album)], None, overwrite=False)
    assert tasks.kept == [album / "one_color.png"]
    assert targets(tasks, album) == ALL[1:]
    assert targets(find_tasks([str(album)], None, overwrite=True), album) == ALL
    (line,) = find_tasks([str(album / "one_color.png")], None, overwrite=False).problems
    assert "nothing to color" in line
    write(album / "autumn_color.png", picture(1, 4, 6))  # without an original, it is a photograph
    assert "autumn_color_color.png" in targets(find_tasks([str(album)], None, overwrite=False), album)


def test_pictures_in_the_output_folder_are_not_photographs(album: Path) -> None:
    write(album / "out/one_color.png", picture(1, 4, 6))
    tasks = find_tasks([str(album)], album / "out", overwrite=False)
    assert tasks.kept == [album / "out/one_color.png"]
    assert targets(tasks, album / "out") == ALL[1:]


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_several_photographs_with_the_same_target_the_first_is_colored(album: Path, overwrite: bool) -> None:
    for ending in (".png", ".bmp"):
        write(album / f"one{ending}", picture(7, 4, 6))
    tasks = find_tasks([str(album)], None, overwrite)
    assert targets(tasks, album) == ALL
    assert album / "one.bmp" in [task.source for task in tasks.todo]
    assert len(tasks.problems) == 2
    assert all("one_color.png belongs to" in line and "one.bmp" in line for line in tasks.problems)
