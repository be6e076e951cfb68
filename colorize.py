"""Colors photographs with a trained Colorizer.

    python3 colorize.py grandma.jpg               # writes grandma_color.png beside it
    python3 colorize.py album --output colored    # all photographs in a folder
    python3 colorize.py clip.mp4                  # writes clip_color.mp4, with its sound
    python3 colorize.py --help                    # all flags

    from colorize import colorize, load
    colored = colorize(load(), photograph)        # arrays in, arrays out

Exit codes: 0 done; 1 some photographs failed; 2 nothing could be done; 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from deepcolor.common import signals

if __name__ == "__main__":
    signals.exit_on_signal()

import argparse
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

import Constants
from deepcolor.common import cli
from deepcolor.common.cli import printable
from deepcolor.common.files import check_writable, remove_abandoned
from deepcolor.common.signals import StopFlag
from deepcolor.common.system import available_cores, keep_freed_memory
from deepcolor.data.image_io import Photo, Unreadable
from deepcolor.inference.full_resolution import colorize_photo
from deepcolor.inference.pipeline import color_file, color_files, start_early
from deepcolor.inference.tasks import ColorizeTask, find_tasks
from utils import UserError, Utils

if TYPE_CHECKING:
    from deepcolor.inference.predictor import Predictor


def load(path: str | Path | None = None, device: str = "cpu") -> "Predictor":
    """Loads a trained Colorizer for `colorize`.

    Args:
        path: a checkpoint, or the output folder of a sweep (`--output` of main.py): its best colorizer. None: the best
            one of the current folder's sweep if that learned from your own photographs, else the pretrained one.
        device: "cpu", "cuda", "mps" or "auto" (a GPU if there is one).

    Raises:
        utils.UserError: there is no such checkpoint, it is not a colorizer checkpoint, or there is no GPU.
    """
    from deepcolor.inference.predictor import Predictor  # imports PyTorch, which takes two seconds

    device = Utils.get_device(device)
    return Predictor.load_default(device) if path is None else Predictor.load(Path(path), device)


def colorize(
    model: "Predictor", photos: np.ndarray | Sequence[np.ndarray], saturation: float | None = None
) -> np.ndarray | list[np.ndarray]:
    """Colors one photograph, or several of any sizes.

    Args:
        model: returned by `load`.
        photos: one array, or a sequence of arrays: (H,W) gray, uint8 or uint16; (H,W,3) sRGB uint8; or (H,W,4) uint8
            with alpha. Only the lightness L* of a color photograph is used.
        saturation: factor of the predicted ab. None: that of the checkpoint, as with `--saturation auto`.

    Returns:
        (H,W,3) uint8 sRGB, or (H,W,4) with the given alpha; a list of them for a sequence. L* is that of the
        photograph up to rounding to 8 bits, which is at most 0.28 of 100.

    Raises:
        ValueError: an array has another shape or type.
    """
    if isinstance(photos, np.ndarray) and photos.ndim < 4:
        return colorize(model, [photos], saturation)[0]
    checked = [_to_photo(array) for array in photos]
    return [np.array(colorize_photo(model, photo, available_cores(), saturation)) for photo in checked]


def colorize_frames(
    model: "Predictor", frames: Iterable[np.ndarray], saturation: float | None = None
) -> Iterator[np.ndarray]:
    """Colors the frames of a clip, with colors that do not flicker. Yields the colored frames in order.

    The frames are arrays as in `colorize`, of the same size. About 30 of them are in memory at a time.
    """
    from deepcolor.inference import video

    for _, colored in video.colorize_frames(model, ((None, _to_photo(frame)) for frame in frames), saturation):
        yield np.array(colored)


def _to_photo(array: np.ndarray) -> Photo:
    gray = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    color = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8
    if not (gray or color) or 0 in array.shape:
        raise ValueError(
            "a photograph is (H,W) uint8 or uint16, or (H,W,3) or (H,W,4) uint8, and not empty; "
            f"not {array.shape} {array.dtype}"
        )
    image = Image.fromarray(array)
    return Photo(image.convert("RGB"), image.getchannel("A")) if image.mode == "RGBA" else Photo(image, None)


# --- Command line ----------------------------------------------------------------------------------


def saturation(text: str) -> float | None:
    """ "auto" -> None, a number from 0 to 4 -> float. Raises ArgumentTypeError for anything else."""
    if text == "auto":
        return None
    try:
        factor = float(text)
    except ValueError:
        factor = -1.0
    if not 0 <= factor <= Constants.MAX_SATURATION:
        raise argparse.ArgumentTypeError(f"auto, or a number from 0 to {Constants.MAX_SATURATION:g}; not '{text}'")
    return factor


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser("colorize.py", description="Colors photographs.")
    add = parser.add_argument
    add("photos", nargs="*", metavar="PHOTO_OR_FOLDER", help="photographs, clips, folders, or patterns in quotes")
    add(
        "--checkpoint",
        metavar="FILE",
        type=Path,
        help="a colorizer checkpoint, or the output folder of a sweep (the best of the sweep in this folder if it "
        "learned from your own photographs, else pretrained/photos.pt)",
    )
    add("--output", metavar="DIR", type=Path, help="where the colored pictures go (beside the photographs)")
    # Starting CUDA takes longer than a thousand photographs take on the CPU.
    add("--device", choices=Constants.DEVICES, default="cpu", help="auto: a GPU if there is one (cpu)")
    factor_help = "of the colors, from 0 to 4, or auto (auto; with --score 1)"
    add("--saturation", type=saturation, metavar="FACTOR", default=argparse.SUPPRESS, help=factor_help)
    add("--overwrite", action="store_true", help="replace colored pictures that exist")
    add(
        "--export",
        metavar="FILE",
        type=Path,
        help="write the network instead of coloring: .onnx, or .pt (half the size)",
    )
    add("--score", action="store_true", help="compare with the photographs' own colors: writes scores.csv instead")
    return parser


def process(tasks: list[ColorizeTask], options: argparse.Namespace, work: Callable, verb: str) -> tuple:
    """Calls `work` for each photograph and prints the failures. Returns the model and the results of the others."""
    alone = len(tasks) == 1
    if not alone:
        start_early()
    model = load(options.checkpoint, options.device)
    model.use_one_thread()  # for the same result as in a worker process
    print(f"with {printable(model.description)}", flush=True)
    results = []
    tqdm.set_lock(threading.RLock())  # the default is a semaphore of the system, which exit_now would leave behind
    seconds = progress_seconds()
    show = partial(tqdm, desc=f"{verb.removesuffix('e')}ing", unit=" photos", leave=False, mininterval=seconds)
    # Signals are handled before the bar appears, so that the line about a stop does not continue the bar's line.
    with nullcontext() if alone else StopFlag() as stop, show(total=len(tasks), disable=alone) as bar:
        for task, result in color_files(tasks, model, work, stop):
            if result and isinstance(result, str):
                bar.write(f"colorize.py: cannot {verb} {printable(task.source)}: {result}", sys.stderr)
            else:
                results.append(result)
            bar.update()
    return model, results


def color_all(todo: list[ColorizeTask], options: argparse.Namespace) -> int:
    """Colors photographs and then clips, and returns how many were colored."""
    for folder in {task.target.parent for task in todo}:
        remove_abandoned(folder)
    photos, clips = ([task for task in todo if task.is_video == is_video] for is_video in (False, True))
    color = partial(color_file, saturation=options.saturation)
    colored = len(process(photos, options, color, "color")[1]) if photos else 0
    if colored:
        where = f"below {printable(options.output)}" if options.output else "beside the photographs"
        print(f"colored {colored} of {len(photos)}: {printable(photos[0].target) if len(photos) == 1 else where}")
    return colored + (color_clips(clips, options) if clips else 0)


def color_clips(clips: list[ColorizeTask], options: argparse.Namespace) -> int:
    """Colors clips and returns how many were colored as a whole."""
    from deepcolor.inference import video

    video.check_installed()
    model = load(options.checkpoint, options.device)
    model.use_one_thread()  # other threads join colors and encode
    print(f"with {printable(model.description)}", flush=True)
    colored = 0
    for task in clips:
        name = printable(task.source.name)
        progress = partial(tqdm, desc=name, unit=" frames", leave=False, mininterval=progress_seconds())
        try:
            print(video.color_video(task, model, progress, options.saturation), flush=True)
            colored += 1
        except (Unreadable, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            print(f"colorize.py: cannot color {printable(task.source)}: {reason}", file=sys.stderr)
    return colored


def progress_seconds() -> float:
    """Returns the time between two updates of a progress bar."""
    return 0.2 if sys.stderr.isatty() else 30


def score_all(todo: list[ColorizeTask], options: argparse.Namespace) -> int:
    """Colors photographs from their L* alone, compares the results with them, and returns how many were scored."""
    from deepcolor.inference import scores

    model, rows = process(todo, options, partial(scores.score_file, saturation=options.saturation), "score")
    if rows:
        table = scores.to_table(rows, model.mean_ab)
        path = (options.output or Path()) / "scores.csv"
        print("\n".join(scores.table_lines(table)))
        scores.write_table(path, table)
        guess = "its training images" if model.mean_ab else "these photographs"
        print(f"scored {len(rows)} of {len(todo)}: {printable(path)}; mean color: that of {guess}")
    return len(rows)


def export(options: argparse.Namespace) -> int:
    """Writes the network as a smaller checkpoint or as an ONNX file. Returns the exit code. Raises UserError."""
    target = options.export
    ending = target.suffix.lower()
    if ending not in (".onnx", ".pt"):
        raise UserError(f"--export {target}: the name of the file must end in .onnx or .pt")
    if target.is_dir():
        raise UserError(f"--export {target}: this is a folder; name a file")
    if ending == ".onnx":
        from deepcolor.inference import onnx_export

        onnx_export.check_installed()
    check_writable(target.parent, target.parent, "--export")
    model = load(options.checkpoint)
    print(f"with {printable(model.description)}", flush=True)
    if ending == ".pt":
        from deepcolor.training import trained_colorizer

        trained_colorizer.export(model.path, target)
        print(f"wrote {printable(target)} in half precision")
        return 0
    difference = onnx_export.export(model, target)
    print(f"wrote {printable(target)}: L (N,1,128,128) -> ab (N,2,128,128), both in Lab units")
    print(f"onnxruntime differs from PyTorch by at most {difference:.1e} in ab")
    return 0


def run(options: argparse.Namespace) -> int:
    """Does what the flags ask for and returns the exit code. Raises UserError, Interrupted."""
    if options.export:
        return export(options)
    if options.output:
        check_writable(options.output, options.output)
    tasks = find_tasks(options.photos, options.output, options.overwrite or options.score)
    if options.score:
        tasks.problems += [
            f"cannot score {printable(task.source)}: it is a clip" for task in tasks.todo if task.is_video
        ]
        tasks.todo = [task for task in tasks.todo if not task.is_video]
    kept = [f"{printable(path)} exists and is kept; use --overwrite to replace it" for path in tasks.kept]
    for line in tasks.problems + kept:
        print(f"colorize.py: {line}", file=sys.stderr)
    done = (score_all if options.score else color_all)(tasks.todo, options) if tasks.todo else 0
    if not (done or kept):
        return 2
    return 0 if done == len(tasks.todo) and not tasks.problems else 1


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if bool(options.photos) == bool(options.export):
        parser().error("either PHOTO_OR_FOLDER or --export is required, and not both")
    # By default, scores are those of the network's own prediction.
    options.saturation = getattr(options, "saturation", 1.0 if options.score else None)
    keep_freed_memory()
    return cli.run("colorize.py", lambda: run(options), options.output or ".")


if __name__ == "__main__":
    cli.exit_now(main())
