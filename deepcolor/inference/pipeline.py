"""Colors files: one photograph from file to file, and many photographs in worker processes."""

import contextlib
import functools
import multiprocessing
import signal
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.PngImagePlugin import PngInfo

from deepcolor.common.files import write_atomically
from deepcolor.common.signals import Interrupted, StopFlag
from deepcolor.common.system import (
    available_cores,
    available_memory,
    exit_with_parent,
    keep_freed_memory,
    process_context,
    signals_blocked,
    start_fork_server,
    unblock_signals,
)
from deepcolor.data.image_io import Unreadable, open_image, read_file, read_photo
from deepcolor.inference.full_resolution import colorize_photo
from deepcolor.inference.tasks import ColorizeTask
from utils import free_gpu_memory

if TYPE_CHECKING:
    import torch

    from deepcolor.inference.predictor import Predictor

Result = tuple[ColorizeTask, str | dict]  # a task, and why it failed, or its result: "" or the scores

_PRELOAD = ("torch",)
_BYTES_PER_WORKER = 1 << 30
_POLL_SECONDS = 0.2  # between two looks at the stop flag
_SRGB = PngInfo()
_SRGB.add(b"sRGB", b"\0")  # names the color space


def color_file(
    task: ColorizeTask, load: Callable[[], "Predictor"], threads: int, saturation: float | None = None
) -> str:
    """Colors one photograph with the predictor that `load` returns. Returns why it failed, or ""."""
    try:
        photo = read_photo(open_image(read_file(task.source, task.root)))
        colored = colorize_photo(load(), photo, threads, saturation)
        # Fast rather than small: run-length encoding saves as much in a photograph as a search for repetitions.
        options = {"format": "PNG", "pnginfo": _SRGB, "compress_level": 1, "compress_type": zlib.Z_RLE}
        # Not durable: waiting for the disk takes longer than coloring, and the picture can be made again.
        write_atomically(task.target, lambda path: colored.save(path, **options), durable=False)
    except Unreadable as error:
        return str(error)
    except OSError as error:  # from writing: reading raises Unreadable
        return f"the colored picture cannot be written: {error.strerror or error}"
    except Exception as error:  # out of memory, or a defect of this program: the other photographs are still colored
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def color_files(
    tasks: Sequence[ColorizeTask], predictor: "Predictor", work: Callable[..., str | dict], stop: StopFlag | None
) -> Iterator[Result]:
    """Calls `work(task, load, threads)` for photographs, several in parallel, and yields each result when it is ready.

    A photograph that kills its process is reported as failed, and the others are colored. Raises Interrupted after a
    stop signal; the pictures written so far are complete. A single photograph needs no `stop`.
    """
    cores = available_cores()
    if len(tasks) == 1:  # a thread starts faster than a process. Without it, signals would wait for the decoder.
        yield tasks[0], ThreadPoolExecutor(1).submit(work, tasks[0], lambda: predictor, cores).result()
        return
    memory = min(available_memory(), free_gpu_memory(predictor.device))
    workers = max(1, min(cores, int(memory // _BYTES_PER_WORKER), len(tasks)))
    load = functools.partial(_load_once, predictor.path, predictor.device)
    color = functools.partial(work, load=load, threads=max(1, cores // workers))
    waiting = deque(tasks)
    while waiting:
        suspects = yield from _run_pool(workers, color, waiting, stop)
        for task in suspects:  # A worker died. Only the photograph that killed it kills a second one.
            if (yield from _run_pool(1, color, deque([task]), stop)):
                yield task, "its process was killed, perhaps because memory ran out"


def _run_pool(
    workers: int, color: Callable[[ColorizeTask], str | dict], waiting: deque[ColorizeTask], stop: StopFlag
) -> Generator[Result, None, list[ColorizeTask]]:
    """Colors `waiting` until it is empty or a worker dies. Returns the tasks that the workers then had."""
    running: dict[Future[str | dict], ColorizeTask] = {}
    with _worker_pool(workers) as pool, contextlib.suppress(BrokenProcessPool):
        while waiting or running:
            while waiting and len(running) < 2 * workers:  # each worker has one in work and one ready
                with signals_blocked():  # submit() starts the processes
                    future = pool.submit(color, waiting[0])
                running[future] = waiting.popleft()
            done, _ = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
            if stop.signal:
                raise Interrupted(stop.signal)
            for future in done:
                result = future.result()
                yield running.pop(future), result
    return list(running.values())


@contextlib.contextmanager
def _worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yields a process pool. Leaving the context kills its processes, whatever they are doing."""
    pool = ProcessPoolExecutor(workers, process_context(_PRELOAD), _initialize_worker)
    try:
        yield pool
    finally:
        for process in multiprocessing.active_children():
            process.kill()
        pool.shutdown()


def start_early() -> None:
    """Starts to import PyTorch for the workers, while this process imports it too. Optional."""
    start_fork_server(_PRELOAD)


# --- In a worker process ---------------------------------------------------------------------------


def _initialize_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal. The parent decides.
    unblock_signals([signal.SIGTERM])  # the pool sends it when it is broken
    exit_with_parent()
    keep_freed_memory()


@functools.cache
def _load_once(checkpoint: Path, device: "torch.device") -> "Predictor":
    from deepcolor.inference.predictor import Predictor

    predictor = Predictor.load(checkpoint, device)
    predictor.use_one_thread()
    return predictor
