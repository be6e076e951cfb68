"""Turns the arguments of colorize.py into photographs and clips to color, and the paths of the results."""

import functools
import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import Constants
from deepcolor.common.cli import printable
from deepcolor.common.files import name_key
from deepcolor.data.image_io import find_photos

SUFFIX = "_color"
# Endings of clips that keep them. The other clips become .mkv files, which can hold any sound.
_KEPT_ENDINGS = (".m4v", ".mkv", ".mov", ".mp4")


class ColorizeTask(NamedTuple):
    """One photograph or clip to color."""

    source: Path
    root: Path  # a link must not lead out of this folder
    target: Path

    @property
    def is_video(self) -> bool:
        return is_video(self.source)


@dataclass
class TaskList:
    """What to color, and what not."""

    todo: list[ColorizeTask] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)  # colored pictures that exist
    problems: list[str] = field(default_factory=list)  # one line each, for the user


def find_tasks(names: Iterable[str], output: Path | None, overwrite: bool) -> TaskList:
    """Finds the photographs behind files, folders and patterns such as "album/**/*.jpg", each once.

    Clips are found behind files and patterns only.

    A colored picture goes beside its photograph, or below `output` in the folder structure that the photographs have
    below their common folder. Existing pictures are kept unless `overwrite`. grandma_color.png beside grandma.jpg is
    not colored.
    """
    tasks = TaskList()
    # By absolute path: the photograph, the folder that links must not leave, and the folder that the user named.
    photos: dict[str, tuple[Path, Path, Path]] = {}
    for name in names:
        for path in _expand(name, tasks.problems):
            if path.is_dir():
                found = [(photo, path, path) for photo in _photos_in(path, output, tasks.problems)]
            else:  # a link that the user names may lead anywhere
                found = [(path, Path(os.path.realpath(path)).parent, path.parent)]
            for photo in found:
                photos.setdefault(os.path.abspath(photo[0]), photo)
    common = os.path.commonpath([os.path.abspath(named) for *_, named in photos.values()]) if photos else ""
    stems = functools.cache(_photo_stems)
    sources: dict[str, Path] = {}  # by target
    own: list[Path] = []
    for source, root, _ in photos.values():
        original = source.stem.removesuffix(SUFFIX)
        folder = output / os.path.relpath(source.parent, common) if output else source.parent
        target = folder / f"{source.stem}{SUFFIX}{_target_ending(source)}"
        if original != source.stem and source.suffix == target.suffix and original in stems(source.parent):
            own.append(source)
            continue
        key = name_key(str(target))
        if key in sources:
            reason = f"{printable(target)} belongs to {printable(sources[key])}; rename one of the two"
            tasks.problems.append(f"cannot color {printable(source)}: {reason}")
        elif not overwrite and _is_occupied(target):
            tasks.kept.append(target)
        else:
            tasks.todo.append(ColorizeTask(source, root, target))
        sources.setdefault(key, source)
    if own and not (tasks.todo or tasks.kept or tasks.problems):
        tasks.problems.append(f"nothing to color: {printable(own[0])} is a colored picture of this program")
    return tasks


def _expand(name: str, problems: list[str]) -> list[Path]:
    """Returns the path `name`, or the photographs and folders that match it as a pattern."""
    if os.path.lexists(name):
        return [Path(name)]
    if not glob.has_magic(name):
        problems.append(f"no photograph or folder at {printable(name)}")
        return []
    found = sorted(map(Path, glob.glob(name, recursive=True)))
    matches = [path for path in found if path.is_dir() or _is_photo(path) or is_video(path)]
    if not matches:
        problems.append(f"no photograph matches {printable(name)}")
    return matches


def _photos_in(folder: Path, output: Path | None, problems: list[str]) -> list[Path]:
    """Returns the photographs in a folder, except those below `output`."""
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        problems.append(f"cannot read the folder {printable(folder)}: {error.strerror}")
        return []
    found = sorted(find_photos(folder, skip=[output] if output else []))
    if not found:
        problems.append(f"no photographs in {printable(folder)}: put some there, or name another folder")
    return [folder / name for name in found]


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in Constants.IMAGE_ENDINGS


def is_video(path: Path) -> bool:
    """Returns whether a file is a clip, by its ending."""
    return path.suffix.lower() in Constants.VIDEO_ENDINGS


def _target_ending(source: Path) -> str:
    if not is_video(source):
        return ".png"
    return source.suffix if source.suffix.lower() in _KEPT_ENDINGS else ".mkv"


def _photo_stems(folder: Path) -> set[str]:
    """Returns the names of the photographs and clips in a folder, without their endings."""
    try:
        return {path.stem for path in folder.iterdir() if _is_photo(path) or is_video(path)}
    except OSError:
        return set()


def _is_occupied(path: Path) -> bool:
    """Returns whether there is anything but an empty file, which a power failure can leave."""
    return os.path.lexists(path) and not (path.is_file() and path.stat().st_size == 0)
