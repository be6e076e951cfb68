"""Data-parallel training of one model by several processes (ranks) that torchrun starts.

All ranks iterate over the same batches, and each processes its slice of every batch. The mean of the ranks' gradients
is the gradient of the global batch. Gradients and SyncBatchNorm on GPUs use NCCL; everything else uses gloo.

All ranks must call functions that communicate in the same order. These raise a RuntimeError if another rank failed,
which `launch` handles.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import Constants
from deepcolor.common import cli
from deepcolor.common.signals import STOP_SIGNALS, STOPPED_MESSAGE, Interrupted
from deepcolor.data.batches import BatchSpec
from utils import UserError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_FAILED = "failed"  # a key in the store: how many ranks failed
T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """This process's place among the ranks. All methods are no-ops when world_size is 1."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    store: dist.Store | None = None
    patient_group: dist.ProcessGroup | None = None  # all ranks, with a long timeout

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, the only rank that prints and writes files."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> "DistributedContext":
        """Reads torchrun's variables. Raises UserError if they are incomplete or inconsistent."""
        if variables.get("WORLD_SIZE", "1") == "1":
            return cls()
        with contextlib.suppress(KeyError, ValueError):
            context = cls(*(int(variables[name]) for name in _VARIABLES))
            if 0 <= context.rank < context.world_size:
                return context
        found = ", ".join(f"{name}={variables.get(name, '')}" for name in _VARIABLES)
        raise UserError(f"cannot use {found}: start the ranks with torchrun, or unset WORLD_SIZE")

    def run_on_main(self, function: Callable[[], T]) -> T:
        """Calls `function` on rank 0 and returns its value on all ranks.

        A UserError, OSError or Interrupted that it raises is raised on all ranks.
        """
        if self.world_size == 1:
            return function()
        result = [(None, None)]
        if self.is_main_process:
            try:
                result = [(function(), None)]
            except (UserError, OSError, Interrupted) as error:
                result = [(None, error)]
        dist.broadcast_object_list(result, src=0, group=self.patient_group)
        value, error = result[0]
        if error is not None:
            raise error
        return value

    def sync_stop(self, stop: int, due: bool = False, step: int = 0) -> tuple[int, bool]:
        """Returns the largest `stop` of all ranks (a signal, or 0), and rank 0's `due`.

        Communicates every SYNC_STEPS steps. At other steps it returns (0, False).
        """
        if self.world_size == 1:
            return stop, due
        if step % Constants.SYNC_STEPS:
            return 0, False
        flags = torch.tensor([stop, due and self.is_main_process], dtype=torch.int64)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return int(flags[0]), bool(flags[1])

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over all ranks."""
        if self.world_size == 1:
            return tensor
        total = tensor.cpu().clone()  # gloo reports a failed rank at once
        dist.all_reduce(total)
        return total.to(tensor.device)

    def sum_on_main(self, tensor: Tensor) -> Tensor:
        """Replaces a tensor by its sum over all ranks on rank 0 and by zeros elsewhere. Returns the sum."""
        total = self.sum(tensor)
        if self.world_size > 1:
            tensor.copy_(total) if self.is_main_process else tensor.zero_()
        return total

    def local_device(self, device: torch.device) -> torch.device:
        """Returns this rank's GPU if the ranks use GPUs. Raises UserError on all ranks if there are too few."""
        if self.world_size == 1:
            return device
        has_gpu = device.type == "cuda" and self.local_rank < torch.cuda.device_count()
        gpus = int(self.sum(torch.tensor(int(has_gpu))))
        if gpus == 0:
            return torch.device("cpu")  # also on a Mac, whose ranks would share one GPU
        if gpus < self.world_size:
            raise UserError(
                f"only {gpus} of the {self.world_size} ranks have a GPU: start one rank per GPU (--nproc-per-node), "
                "or use --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)


SINGLE_PROCESS = DistributedContext()


# --- Start and end ---------------------------------------------------------------------------------


def launch(main: Callable[[DistributedContext], int]) -> int:
    """Runs `main` as the only process, and returns its exit code, or as one of torchrun's ranks, which exits.

    Ranks other than 0 print nothing but the reason of a failure that no other rank has printed.
    """
    try:
        context = DistributedContext.from_environment()
        if context.world_size == 1:
            return main(context)
        context = _join(context)
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    code, reason = _run_rank(main, context)
    if code:
        _fail(context, code, reason)
    dist.destroy_process_group()
    return cli.exit_now(0)  # the interpreter's clean-up aborts if a thread of gloo has not ended


def _join(context: DistributedContext) -> DistributedContext:
    """Connects to the other ranks. Raises UserError if that fails."""
    for number in STOP_SIGNALS:  # Python handlers do not run while this process waits for a connection
        signal.signal(number, signal.SIG_DFL)
    timeout, long_timeout = timedelta(seconds=Constants.RANK_SECONDS), timedelta(seconds=Constants.MAIN_SECONDS)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)
        group = dist.new_group(backend="gloo", timeout=long_timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"rank {context.rank} cannot connect to the other ranks: {reason}") from error
    context = replace(context, store=store, patient_group=group)
    reason = f"main.py: {STOPPED_MESSAGE}" if context.is_main_process else _lost_rank(context)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: _fail(context, 128 + number, reason))
    return context


def _run_rank(main: Callable[[DistributedContext], int], context: DistributedContext) -> tuple[int, str]:
    """Returns the exit code of `main` and, if this rank has not printed it, the reason of a failure."""
    with contextlib.ExitStack() as stack:
        if not context.is_main_process:
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            stack.enter_context(contextlib.redirect_stdout(log))
            stack.enter_context(contextlib.redirect_stderr(log))
        try:
            code = main(context)
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        except Exception as error:
            lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
            return 1, _lost_rank(context) if lost else traceback.format_exc()
        if context.is_main_process:
            return code, ""
        log.seek(0)
        return code, (log.read().splitlines() or [""])[-1]


def _lost_rank(context: DistributedContext) -> str:
    ranks = f"another of the {context.world_size} ranks"
    return f"main.py: {ranks} failed or does not answer; the same command continues from the last save"


def _fail(context: DistributedContext, code: int, reason: str) -> NoReturn:
    """Exits. Prints `reason` unless another rank has failed first. Rank 0 has priority."""
    for number in STOP_SIGNALS:  # torchrun sends SIGTERM to the other ranks when one has failed
        signal.signal(number, signal.SIG_IGN)
    is_first = True
    with contextlib.suppress(RuntimeError):  # torchrun, which holds the store, is gone
        deadline = time.monotonic() + (0 if context.is_main_process else Constants.FAILURE_SECONDS)
        while time.monotonic() < deadline and not context.store.check([_FAILED]):
            time.sleep(0.05)
        is_first = context.store.add(_FAILED, 1) == 1
    if is_first and reason:
        print(reason, file=sys.__stderr__)
    cli.exit_now(code)  # clean-up could wait for a rank that is gone


# --- Batches and models ----------------------------------------------------------------------------


def shard_batches(specs: Iterable[BatchSpec], context: DistributedContext, training: bool) -> Iterable[BatchSpec]:
    """Returns this rank's slice of every batch. The sizes of the slices differ by at most one.

    In training, if the batch is smaller than world_size, every rank processes the whole batch, because every rank must
    take every step. In evaluation a slice can be empty.
    """
    for spec in specs:
        if context.world_size == 1 or (training and len(spec.rows) < context.world_size):
            yield spec
        else:
            yield BatchSpec(*(None if t is None else t.tensor_split(context.world_size)[context.rank] for t in spec))


def loss_weight(images: int, batch: int, context: DistributedContext) -> tuple[float, float]:
    """Returns how many of the `batch` images count as this rank's, and the weight of this rank's mean loss.

    With that weight, the mean of the ranks' gradients is the gradient of the mean loss over the global batch, even if
    the slices differ in size. `images` is the size of this rank's slice.
    """
    if context.world_size == 1:
        return images, 1.0
    counted = images if batch >= context.world_size else batch / context.world_size
    return counted, counted * context.world_size / batch


def check_batch_size(batch_size: int, context: DistributedContext) -> None:
    """Raises UserError if a batch has fewer images than there are ranks."""
    if batch_size < context.world_size:
        raise UserError(
            f"--batch-size {batch_size} is the batch of all ranks together: "
            f"{context.world_size} ranks need at least --batch-size {context.world_size}"
        )


def convert_sync_batchnorm(model: nn.Module, device: torch.device, context: DistributedContext) -> nn.Module:
    """Returns the model with BatchNorm over the global batch. Only on GPUs: PyTorch has no SyncBatchNorm for CPUs."""
    on_gpus = context.world_size > 1 and device.type == "cuda"
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if on_gpus else model


def wrap_ddp(model: nn.Module, device: torch.device, context: DistributedContext) -> nn.Module:
    """Returns the module to call in training. Its backward pass averages the gradients over all ranks."""
    if context.world_size == 1:
        return model
    device_ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions deprecate `broadcast_buffers`
        return DistributedDataParallel(model, device_ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def broadcast_buffers(model: nn.Module, context: DistributedContext) -> None:
    """Copies rank 0's BatchNorm statistics to all ranks. Without SyncBatchNorm, the ranks' statistics differ."""
    if context.world_size == 1:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    values = torch.cat([buffer.flatten() for buffer in buffers]).cpu()
    dist.broadcast(values, src=0)
    for buffer, part in zip(buffers, values.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(part.view_as(buffer))
