"""Colors a person's own photographs with a trained Colorizer.

    python3 colorize.py grandma.jpg                # writes grandma_color.png beside it
    python3 colorize.py album --output colored    # all photographs of a folder
    python3 colorize.py --help                     # all flags

    from colorize import colorize, load
    colored = colorize(load(), photograph)        # arrays in, arrays out

Exit codes: 0 done; 1 something failed; 2 nothing could be done; 130 interrupted by Ctrl-C, 143 by SIGTERM.
"""

from deepcolor.common import signals

if __name__ == "__main__":
    signals.exit_on_signal()

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import Constants
from deepcolor.common import cli
from deepcolor.common.cli import printable
from deepcolor.common.files import check_writable
from deepcolor.common.system import keep_freed_memory
from deepcolor.data.image_io import Photo
from deepcolor.inference.full_resolution import FullResolution, model_input
from deepcolor.inference.pipeline import InferencePool
from deepcolor.inference.tasks import TaskList, find_tasks
from deepcolor.reporting.progress import bar
from utils import UserError, Utils

if TYPE_CHECKING:
    from deepcolor.inference.predictor import Predictor


def load(path: str | Path = ".", device: str = "auto") -> "Predictor":
    """A trained Colorizer for `colorize`.

    Args:
        path: its checkpoint, or the folder that a sweep wrote to (`--output` of main.py): then its best
            colorizer by the validation images.
        device: "auto" (CUDA where there is a GPU), "cpu" or "cuda".

    Raises:
        utils.UserError: there is no such checkpoint, it is not one of a Colorizer, or there is no GPU.
    """
    # PyTorch takes two seconds to import: the first photographs are decoded meanwhile.
    from deepcolor.inference.predictor import Predictor

    return Predictor.load(Path(path), Utils.get_device(device))


def colorize(model: "Predictor", photos: np.ndarray | Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """Colors one photograph, or several of any sizes at once.

    Args:
        model: what `load` returned.
        photos: one array, or a sequence of arrays: (H,W) gray, uint8 or uint16, (H,W,3) sRGB uint8, or (H,W,4)
            with alpha. Of a photograph in color its lightness L* alone counts.

    Returns:
        (H,W,3) uint8 sRGB, or (H,W,4) with the alpha that was given; for a sequence, a list of these. L* is that
        of the photograph but for the rounding to 8 bits, at most 0.28 of 100.

    Raises:
        ValueError: an array is none of these.
    """
    if isinstance(photos, np.ndarray) and photos.ndim < 4:
        return colorize(model, [photos])[0]
    read = [_photo(array) for array in photos]
    if not read:
        return []
    views = [model_input(photo, Constants.IMAGE_SIZE) for photo in read]
    colors = model.predict(np.stack([seen.lightness for seen in views])[:, None])
    return [FullResolution(*each).whole() for each in zip(read, views, colors)]


def _photo(array: np.ndarray) -> Photo:
    """An array of one photograph -> a Photo. Raises ValueError."""
    gray = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    color = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8
    if not (gray or color) or 0 in array.shape:
        raise ValueError(
            "a photograph is (H,W) uint8 or uint16, or (H,W,3) or (H,W,4) uint8, and not empty; "
            f"not {array.shape} {array.dtype}"
        )
    if gray:
        return Photo(Image.fromarray(np.ascontiguousarray(array)), None)
    alpha = Image.fromarray(np.ascontiguousarray(array[..., 3])) if array.shape[2] == 4 else None
    return Photo(Image.fromarray(np.ascontiguousarray(array[..., :3])), alpha)


# --- Command line ----------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser("colorize.py", description="Colors photographs.")
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO_OR_FOLDER", help="photographs, folders, or patterns in quotes")
    add(
        "--checkpoint",
        metavar="FILE",
        type=Path,
        default=Path("."),
        help="the colorizer to use, or the folder of a sweep, whose best one is taken (.)",
    )
    add("--output", metavar="DIR", type=Path, help="where the colored pictures go (beside the photographs)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is a GPU")
    add("--overwrite", action="store_true", help="make colored pictures anew that exist already")
    return parser


def colorize_all(tasks: TaskList, options: argparse.Namespace) -> int:
    """Colors what is to be colored, says what cannot be, and returns how much was. Raises UserError."""
    done = 0
    alone = len(tasks.todo) == 1
    with InferencePool(tasks.todo) as pool:
        with contextlib.nullcontext():  # nothing is being written yet, and in imports an exception may get lost
            model = load(options.checkpoint, options.device)
        model.keep_to_one_thread()
        print(f"with {printable(model.description)}", flush=True)
        with bar(total=len(tasks.todo), desc="coloring", unit=" photos", disable=alone) as progress:
            for task, failure in pool.serve(model.predict):
                if failure:
                    progress.write(f"colorize.py: cannot color {printable(task.source)}: {failure}", sys.stderr)
                done += not failure
                progress.update()
    return done


def run(options: argparse.Namespace) -> int:
    """Does what the flags ask for and returns the exit code. Raises UserError, Interrupted."""
    if options.output:
        check_writable(options.output, options.output)
    tasks = find_tasks(options.photos, options.output, options.overwrite)
    for problem in tasks.problems:
        print(f"colorize.py: {problem}", file=sys.stderr)
    for path in tasks.kept:
        print(f"colorize.py: {printable(path)} exists and is kept: --overwrite makes it anew", file=sys.stderr)
    if not (tasks.todo or tasks.kept or tasks.problems):
        raise UserError(f"nothing to color: {printable(tasks.own[0])} is a picture that this program made")
    done = colorize_all(tasks, options) if tasks.todo else 0
    if done:
        where = f"below {printable(options.output)}" if options.output else "beside the photographs"
        where = printable(tasks.todo[0].target) if len(tasks.todo) == 1 else where
        print(f"colored {done} of {len(tasks.todo)}: {where}")
    if not (done or tasks.kept):
        return 2
    return 0 if done == len(tasks.todo) and not tasks.problems else 1


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    keep_freed_memory()
    return cli.run("colorize.py", lambda: run(options), options.output or ".")


if __name__ == "__main__":
    cli.exit_now(main())
