"""What a person asks to have colored: which photographs, and where each is to be written."""

import functools
import glob
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import Constants
from deepcolor.common.cli import printable
from deepcolor.data.image_io import find_photos

SUFFIX = "_color"


@dataclass(frozen=True)
class ColorizeTask:
    """One photograph to color."""

    source: Path
    root: Path  # a link must not lead out of it
    target: Path


@dataclass
class TaskList:
    """What is to be colored, and what is not. Each problem is a line for the user."""

    todo: list[ColorizeTask] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)  # colored pictures that exist already
    problems: list[str] = field(default_factory=list)
    own: list[Path] = field(default_factory=list)  # colored pictures that were named among the photographs


def find_tasks(names: Iterable[str], output: Path | None, overwrite: bool) -> TaskList:
    """The photographs behind files, folders and patterns such as "album/**/*.jpg", each once, in order.

    A colored picture lies beside its photograph; below `output`, if that is given, as the photographs lie below
    the folder that all have in common. One that exists is kept unless `overwrite`. What this program made itself,
    grandma_color.png beside a grandma.jpg, is no photograph to color.
    """
    tasks = TaskList()
    found = _found(names, output, tasks.problems)
    common = os.path.commonpath([photo.below for photo in found]) if found else ""
    stems = functools.cache(_stems)
    taken: dict[Path, Path] = {}
    for source, root, _ in found:
        original = source.stem.removesuffix(SUFFIX)
        if original != source.stem and source.suffix == ".png" and original in stems(source.parent):
            tasks.own.append(source)
            continue
        folder = output / os.path.relpath(source.parent, common) if output else source.parent
        target = folder / f"{source.stem}{SUFFIX}.png"
        if target in taken:
            twin = f"{printable(target)} belongs to {printable(taken[target])}"
            tasks.problems.append(f"cannot color {printable(source)}: {twin}; rename one of the two")
        elif not overwrite and _is_something(target):
            tasks.kept.append(target)
        else:
            tasks.todo.append(ColorizeTask(source, root, target))
        taken.setdefault(target, source)
    return tasks


class _Found(NamedTuple):
    """A photograph that was asked for."""

    source: Path
    root: Path  # a link must not lead out of it
    below: str  # the folder that was named, or in which the file lies that was named


def _found(names: Iterable[str], output: Path | None, problems: list[str]) -> list[_Found]:
    """All photographs behind the names, each once."""
    found: dict[str, _Found] = {}
    for name in names:
        for path in _expanded(name, problems):
            if path.is_dir():
                photos = [_Found(source, path, os.path.abspath(path)) for source in _below(path, output, problems)]
            else:  # a link that is named may lead anywhere
                photos = [_Found(path, Path(os.path.realpath(path)).parent, os.path.abspath(path.parent))]
            for photo in photos:
                found.setdefault(os.path.abspath(photo.source), photo)
    return list(found.values())


def _expanded(name: str, problems: list[str]) -> list[Path]:
    """What a name stands for: itself, or all photographs and folders that match it as a pattern."""
    if os.path.lexists(name):
        return [Path(name)]
    if not glob.has_magic(name):
        problems.append(f"no photograph or folder at {printable(name)}")
        return []
    matches = sorted(map(Path, glob.glob(name, recursive=True)))
    matches = [path for path in matches if path.is_dir() or path.suffix.lower() in Constants.IMAGE_ENDINGS]
    if not matches:
        problems.append(f"no photograph matches {printable(name)}")
    return matches


def _below(folder: Path, output: Path | None, problems: list[str]) -> list[Path]:
    """The photographs of a folder, but for those below `output`."""
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        problems.append(f"cannot look into {printable(folder)}: {error.strerror}")
        return []
    paths = sorted(find_photos(folder, skip=[output] if output else []))
    if not paths:
        problems.append(f"no photographs in {printable(folder)}: put some there, or name another folder")
    return [folder / path for path in paths]


def _is_something(path: Path) -> bool:
    """Whether there is anything but an empty file, which a loss of power can have left."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_size > 0 or not stat.S_ISREG(status.st_mode)


def _stems(folder: Path) -> set[str]:
    """The names without ending of the photographs in a folder."""
    try:
        parts = map(os.path.splitext, os.listdir(folder))
        return {stem for stem, ending in parts if ending.lower() in Constants.IMAGE_ENDINGS}
    except OSError:
        return set()
