"""What the ranks of a context share when they train one model: the images of a batch, and the gradients.

The batch is that of all ranks together. Each draws the same batches, in the same order and with the same crops, as one
process alone would, and takes its slice of each: an image is looked at once per epoch, and the mean of the ranks'
gradients is the gradient of the whole batch. On GPUs BatchNorm normalizes over the whole batch as well; PyTorch has no
such thing for CPUs, where each rank normalizes over its slice.
"""

import warnings
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deepcolor.data.batches import BatchSpec
from deepcolor.training.distributed import DistributedContext
from utils import UserError


def shard_evaluation_batches(draws: Iterable[BatchSpec], context: DistributedContext) -> Iterable[BatchSpec]:
    """Of each draw what is this rank's: every image is exactly one rank's, and some rank may have none."""
    return _shard_batches(draws, context, _part)


def shard_training_batches(draws: Iterable[BatchSpec], context: DistributedContext) -> Iterable[BatchSpec]:
    """The same for training steps, to which every rank has to come: fewer images than ranks are everybody's.

    `loss_weight` gives all of them together the weight that they have on one rank.
    """
    return _shard_batches(
        draws, context, lambda count, context: _part(count, context) if count >= context.world_size else slice(count)
    )


def _shard_batches(
    draws: Iterable[BatchSpec], context: DistributedContext, part: Callable[[int, DistributedContext], slice]
) -> Iterable[BatchSpec]:
    if context.world_size == 1:
        return draws
    parts = ((draw, part(len(draw.rows), context)) for draw in draws)
    return (BatchSpec(*(each if each is None else each[mine] for each in draw)) for draw, mine in parts)


def _part(count: int, context: DistributedContext) -> slice:
    """Which of `count` images in a row are this rank's; the first ranks may have one more."""
    begin, end = (-(-count * rank // context.world_size) for rank in (context.rank, context.rank + 1))
    return slice(begin, end)


def loss_weight(mine: int, batch: int, context: DistributedContext) -> tuple[float, float]:
    """For how many images of a batch this rank's count, and the weight of their mean loss.

    With that weight the mean of the ranks' gradients is the gradient of the mean over the batch, however unevenly the
    images are shared out.
    """
    if context.world_size == 1:
        return mine, 1.0
    images = mine if batch >= context.world_size else batch / context.world_size
    return images, images * context.world_size / batch


def check_batch_size(batch_size: int, context: DistributedContext) -> None:
    """Raises UserError if a batch has fewer images than there are ranks."""
    if batch_size < context.world_size:
        raise UserError(
            f"--batch-size is the batch of all ranks together: {batch_size} images are too few for {context.world_size} ranks; "
            f"give at least --batch-size {context.world_size}"
        )


def convert_sync_batchnorm(model: nn.Module, device: torch.device, context: DistributedContext) -> nn.Module:
    """The network, on GPUs with a BatchNorm that normalizes over the images of all ranks."""
    on_gpus = context.world_size > 1 and device.type == "cuda"
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if on_gpus else model


def wrap_ddp(model: nn.Module, device: torch.device, context: DistributedContext) -> nn.Module:
    """What to call in training in place of `model`, for its gradients to become the mean over all ranks."""
    if context.world_size == 1:
        return model
    with context.together(), warnings.catch_warnings():
        # No broadcast of buffers before every step: none is read before `broadcast_buffers`. Newer versions of PyTorch
        # warn that they call this otherwise.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def guarded_step(step: Callable[..., None], context: DistributedContext) -> Callable[..., None]:
    """The same training step, which ends this process if another rank does not come to it."""

    def taken_together(*inputs: torch.Tensor) -> None:
        with context.together():
            step(*inputs)

    return step if context.world_size == 1 else taken_together


def broadcast_buffers(model: nn.Module, context: DistributedContext) -> None:
    """Gives all ranks rank 0's running statistics, of which each has its own where BatchNorm is its own."""
    if context.world_size == 1:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    joined = torch.cat([buffer.flatten() for buffer in buffers]).cpu()
    with context.together():
        dist.broadcast(joined, src=0)
    for buffer, part in zip(buffers, joined.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(part.view_as(buffer))
