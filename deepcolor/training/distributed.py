"""Several processes, the ranks, that train one model together; and one process alone, for which all of it is nothing.

torchrun starts the ranks and tells each its place in RANK, WORLD_SIZE, LOCAL_RANK and their like. Nothing else makes a
run distributed: no variable of a cluster's scheduler does. What the ranks say to each other goes over gloo, on the CPU;
only gradients and the statistics of BatchNorm on GPUs go over NCCL.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

import Constants
from deepcolor.common import cli, signals
from deepcolor.common.signals import Interrupted
from utils import UserError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")


class DistributedContext:
    """The ranks of a run, and which of them this process is. `DistributedContext()` is a process of its own, which asks nobody.

    A method that says "all ranks" must be called by all of them, in the same order. Where another rank has ended or
    does not answer, it ends this process, with a line if none was written yet.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, local_world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.local_rank, self.local_world_size = local_rank, local_world_size  # among those on this machine
        self.spoken_for = False  # whether rank 0 tells why this rank ends

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> "DistributedContext":
        """The context that torchrun tells of. Raises UserError if it tells only half of it."""
        if variables.get("WORLD_SIZE", "1") == "1":
            return cls()
        if missing := [name for name in _VARIABLES if not variables.get(name)]:
            raise UserError(
                f"WORLD_SIZE is {variables['WORLD_SIZE']!r}, but there is no {', '.join(missing)}: "
                "start the ranks with torchrun, or unset WORLD_SIZE"
            )
        try:
            rank, world_size, local_rank, local_world_size = (int(variables[name]) for name in _VARIABLES[:4])
        except ValueError:
            rank, world_size = -1, 0
        if not 0 <= rank < world_size:
            told = ", ".join(f"{name}={variables[name]}" for name in _VARIABLES[:4])
            raise UserError(f"{told} cannot be: start the ranks with torchrun, or unset WORLD_SIZE")
        return cls(rank, world_size, local_rank, local_world_size)

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which alone speaks and writes."""
        return self.rank == 0

    # --- Beginning and end -------------------------------------------------------------------------

    def join(self) -> None:
        """Meets the other ranks. Raises UserError if they cannot be found."""
        patience, long_patience = (timedelta(seconds=s) for s in (Constants.RANK_SECONDS, Constants.ALONE_SECONDS))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            # Whoever waits for a rank that has died hears of no signal: here it ends the process by itself.
            with signals.handled(signal.SIG_DFL):
                self.store, _, _ = next(dist.rendezvous("env://", timeout=patience))
                place = {
                    "store": dist.PrefixStore("ranks", self.store),
                    "rank": self.rank,
                    "world_size": self.world_size,
                }
                dist.init_process_group(backend, timeout=patience, **place)
                # For what rank 0 does alone while the others wait: reading all images for the first time takes hours.
                self.patient = dist.new_group(backend="gloo", timeout=long_patience)
        except (RuntimeError, ValueError) as error:
            where = ":".join(os.environ[name] for name in _VARIABLES[4:])
            raise UserError(f"rank {self.rank} does not meet the others at {where}: {_brief(error)}") from error

    def leave(self) -> None:
        """Parts from the other ranks once all has gone well."""
        dist.destroy_process_group()

    def claim(self) -> bool:
        """Whether this rank is the first to say why the run ends; from then on no other does."""
        try:
            if not self.is_main_process:  # rank 0 fails of the same, perhaps, and may then say so
                wait_until = time.monotonic() + Constants.CLAIM_SECONDS
                while not self.store.check(["failed"]) and time.monotonic() < wait_until:
                    time.sleep(0.05)
            return self.store.add("failed", 1) == 1
        except RuntimeError:  # the launcher, which keeps the store, is gone
            return True

    def end(self, code: int, line: str | None) -> NoReturn:
        """Ends this process at once, with a line if it is the first to say one. None leaves that to another rank."""
        with signals.handled(signal.SIG_IGN):  # the launcher's, which ends those that another rank has left
            if line is not None and self.claim() and line:
                # Rank 0's progress bar may have left the line unfinished.
                print(f"\n{line}", file=sys.__stderr__, flush=True)
            cli.exit_now(code)  # without a clean-up, which would wait for those that are gone

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Ends this process where what is done within fails for want of another rank.

        A signal waits: only what comes of the others shows whether it is a stop for all, or the launcher's, which ends
        those that another rank has left.
        """
        try:
            with signals.held():
                yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            self.end(
                1,
                f"main.py: another of the {self.world_size} ranks has ended or does not answer; "
                "the same command goes on from what was saved",
            )

    # --- Doing things together ---------------------------------------------------------------------

    def run_on_main(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0, which alone calls it, for all ranks.

        What it raises there is raised by all ranks, if it is an error that a user can mend, or a stop.
        """
        if self.world_size == 1:
            return function()
        if not self.is_main_process:
            value, error = self._broadcast_from_main(None)
            if error is not None:
                self.spoken_for = True
                raise error
            return value
        try:
            value = function()
        except (UserError, OSError, Interrupted, KeyboardInterrupt) as error:
            self._broadcast_from_main((None, error))
            raise
        self._broadcast_from_main((value, None))
        return value

    def _broadcast_from_main(self, outcome: tuple | None) -> tuple:
        carried = [outcome]
        try:
            with self.together():
                dist.broadcast_object_list(carried, src=0, group=self.patient)
        except OSError as error:  # the images are mapped where they arrive
            raise UserError(
                f"rank {self.rank} does not see {error.filename}: --output must be a folder that all nodes share"
            ) from error
        return carried[0]

    @contextlib.contextmanager
    def hold_on_main(self, held: Callable[[], contextlib.AbstractContextManager]) -> Iterator[None]:
        """Within, rank 0 holds what `held()` manages. All ranks raise what entering it raises."""
        with contextlib.ExitStack() as stack:
            self.run_on_main(lambda: stack.enter_context(held()) and None)
            yield

    def sync_stop(self, stop: int, due: bool = False, step: int = 0) -> tuple[int, bool]:
        """The signal that any of all ranks was asked to stop by, 0 if none; and whether rank 0 finds something due.

        They ask each other at every so manieth step only, and otherwise sync_stop on nothing.
        """
        if self.world_size == 1:
            return stop, due
        if step % Constants.AGREE_STEPS:
            return 0, False
        asked = torch.tensor([stop, due and self.is_main_process], dtype=torch.int64)
        with self.together():
            dist.all_reduce(asked, dist.ReduceOp.MAX)
        stop, due = asked.tolist()
        self.spoken_for = stop > 0
        return stop, bool(due)

    def sum(self, mine: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        if self.world_size == 1:
            return mine
        total = mine.cpu()  # over gloo, where an error shows at once
        total = total.clone() if total is mine else total
        with self.together():
            dist.all_reduce(total)
        return total.to(mine.device)

    def sum_on_main(self, mine: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, which from now on is rank 0's, while the others have zero."""
        total = self.sum(mine)
        if self.world_size > 1:
            mine.copy_(total) if self.is_main_process else mine.zero_()
        return total

    def local_device(self, device: torch.device) -> torch.device:
        """This rank's GPU, where the device is a GPU. Raises UserError, on all ranks, if there are too few of them."""
        if self.world_size == 1:
            return device
        wanted = device.type == "cuda"
        own = wanted and self.local_rank < torch.cuda.device_count()
        wanting, having = self.sum(torch.tensor([wanted, own], dtype=torch.int64)).tolist()
        if not wanting:
            return device
        if having < self.world_size:
            self.spoken_for = True
            raise UserError(
                f"{having} of the {self.world_size} ranks have a GPU of their own: start as many per node as it has GPUs "
                "(--nproc-per-node), or use --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)


SINGLE_PROCESS = DistributedContext()  # one process; also rank 0 in what it does while the others wait


def launch(main: Callable[[DistributedContext], int]) -> int:
    """Runs `main` as the only process there is, or as one of torchrun's ranks, of which rank 0 speaks for all.

    Returns the exit code. What fails on another rank alone is written by that rank; a rank that has failed ends here.
    """
    try:
        context = DistributedContext.from_environment()
        if context.world_size == 1:
            return main(context)
        context.join()
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as muted:
        errors = muted.enter_context(tempfile.TemporaryFile("w+"))
        if not context.is_main_process:
            muted.enter_context(contextlib.redirect_stdout(muted.enter_context(open(os.devnull, "w"))))
            muted.enter_context(contextlib.redirect_stderr(errors))
        code = _code(main, context)
        errors.seek(0)
        line = errors.read().rstrip("\n").rpartition("\n")[2]  # empty on rank 0, which has spoken
    # From the launcher, once one of the others has ended.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if code:
        told_by_first = context.spoken_for or code > 128  # a signal reaches rank 0 as well
        context.end(code, None if told_by_first and not context.is_main_process else line)
    context.leave()
    return 0


def _code(main: Callable[[DistributedContext], int], context: DistributedContext) -> int:
    """The exit code of `main`, however it ends."""
    try:
        return main(context)
    except SystemExit as stop:  # argparse
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:  # a defect of ours: shown in full
        traceback.print_exc(file=sys.__stderr__)
        return 1


def _brief(error: Exception) -> str:
    """The first line of what an error says, without the stack of the library that raised it."""
    return str(error).partition("\n")[0][:200]
