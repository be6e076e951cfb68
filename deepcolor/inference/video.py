"""Colors clips: frame by frame at full resolution, with colors that do not flicker, and with their sound."""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from deepcolor.common.cli import printable
from deepcolor.common.files import write_atomically
from deepcolor.common.signals import Interrupted, StopFlag
from deepcolor.common.system import available_cores
from deepcolor.data.image_io import Photo, Unreadable
from deepcolor.inference.full_resolution import join, model_input, predict_ab
from deepcolor.inference.smoothing import Frame, smooth_colors
from deepcolor.inference.tasks import ColorizeTask
from utils import UserError, format_seconds

if TYPE_CHECKING:
    from deepcolor.inference.predictor import Predictor

T = TypeVar("T")

_BATCH = 16  # frames that the network sees at once
_BATCH_PIXELS = 16 << 20  # fewer frames if they are large


def check_installed() -> None:
    """Raises UserError if PyAV is missing."""
    if find_spec("av") is None:
        raise UserError("coloring a clip needs the package av: pip install av")


def colorize_frames(
    predictor: "Predictor", frames: Iterable[tuple[T, Photo]], saturation: float | None = None
) -> Iterator[tuple[T, Image.Image]]:
    """Colors the frames of a clip: several at once, and smoothed over time within each shot.

    Args:
        predictor: a trained colorizer.
        frames: pairs of anything, which is passed on, and a frame. A thread reads about 40 frames ahead.
        saturation: factor of the predicted ab. None: that of the checkpoint.

    Yields:
        the same pairs in the same order, with colored frames.
    """
    cores = available_cores()
    predictor = predictor.for_clips()
    with ThreadPoolExecutor(cores) as pool, ThreadPoolExecutor(1) as one_thread:
        batches = _run_ahead(_predict_batches(predictor, frames, saturation, pool), one_thread)
        waiting = deque()
        for frame in smooth_colors(itertools.chain.from_iterable(batches)):
            key, photo, seen = frame.source
            waiting.append((key, pool.submit(join, photo, seen, frame.ab)))
            if len(waiting) > 2 * cores:
                key, colored = waiting.popleft()
                yield key, colored.result()
        for key, colored in waiting:
            yield key, colored.result()


def _predict_batches(
    predictor: "Predictor", frames: Iterable[tuple[T, Photo]], saturation: float | None, pool: ThreadPoolExecutor
) -> Iterator[list[Frame]]:
    """Yields the frames with their predicted colors. The source of each is its key, photograph and ModelInput."""
    frames = iter(frames)
    for first in frames:
        width, height = first[1].color.size
        count = max(1, min(_BATCH, _BATCH_PIXELS // (width * height)))
        batch = [first, *itertools.islice(frames, count - 1)]
        inputs = list(pool.map(lambda pair: model_input(pair[1], predictor.margin, predictor.side), batch))
        predicted = predict_ab(predictor, np.stack([seen.lightness for seen in inputs]), saturation)
        yield [
            Frame((key, photo, seen), seen.lightness, ab) for (key, photo), seen, ab in zip(batch, inputs, predicted)
        ]


def _run_ahead(items: Iterator[T], one_thread: ThreadPoolExecutor) -> Iterator[T]:
    """Yields the items. While the caller uses an item, the thread makes the next one."""
    following = one_thread.submit(next, items, None)
    while (item := following.result()) is not None:
        following = one_thread.submit(next, items, None)
        yield item


def color_video(
    task: ColorizeTask,
    predictor: "Predictor",
    progress: Callable[..., Iterable],
    saturation: float | None = None,
) -> str:
    """Colors a clip with the predictor, and copies its sound. Returns a line about the result.

    Args:
        task: the clip, and the file to write.
        predictor: a trained colorizer.
        progress: `progress(iterable, total=number)` returns an iterable over the same items that displays progress.
        saturation: factor of the predicted ab. None: that of the checkpoint.

    Raises:
        Unreadable: the clip cannot be read, or only a part of it; this part is colored.
        OSError: the result cannot be written.
        Interrupted: after a stop signal. The frames so far are in the result, which can be played.
    """
    from deepcolor.inference.video_files import Reader, Writer, to_photo

    start = time.monotonic()
    with StopFlag() as stop, contextlib.closing(Reader(task.source)) as reader:
        written = 0

        def write(temporary: Path) -> None:
            nonlocal written
            with contextlib.closing(Writer(temporary, reader)) as writer:
                frames = ((frame, to_photo(frame)) for frame in reader.frames(writer.copy_sound))
                # Closed before the reader is, because a thread reads ahead.
                with contextlib.closing(colorize_frames(predictor, frames, saturation)) as colored:
                    for frame, picture in progress(colored, total=reader.total):
                        if stop.signal:
                            break
                        writer.write(frame, picture)
                written = writer.finish()

        write_atomically(task.target, write, durable=False)
    target, seconds = printable(task.target), time.monotonic() - start
    if stop.signal:
        raise Interrupted(
            stop.signal, f"stopped; {target} has the first {written} frames; color it again with --overwrite"
        )
    if reader.remark:
        raise Unreadable(f"{reader.remark}; {target} has the {written} frames before")
    return f"colored {target}: {written} frames in {format_seconds(seconds)} ({written / seconds:.1f} frames/s)"
