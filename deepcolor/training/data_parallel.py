"""What the ranks of a world share when they train one model: the images of a batch, and the gradients.

The batch is that of all ranks together. Each draws the same batches, in the same order and with the same crops, as one
process alone would, and takes its slice of each: an image is looked at once per epoch, and the mean of the ranks'
gradients is the gradient of the whole batch. On GPUs BatchNorm normalises over the whole batch as well; PyTorch has no
such thing for CPUs, where each rank normalises over its slice.
"""

import warnings
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deepcolor.data.batches import Draw
from deepcolor.training.distributed import World
from utils import UserError


def evaluation_shares(draws: Iterable[Draw], world: World) -> Iterable[Draw]:
    """Of each draw what is this rank's: every image is exactly one rank's, and some rank may have none."""
    return _shares(draws, world, _part)


def training_shares(draws: Iterable[Draw], world: World) -> Iterable[Draw]:
    """The same for training steps, to which every rank has to come: fewer images than ranks are everybody's.

    `counted` gives all of them together the weight that they have on one rank.
    """
    return _shares(draws, world, lambda count, world: _part(count, world) if count >= world.size else slice(count))


def _shares(draws: Iterable[Draw], world: World, part: Callable[[int, World], slice]) -> Iterable[Draw]:
    if world.size == 1:
        return draws
    parts = ((draw, part(len(draw.rows), world)) for draw in draws)
    return (Draw(*(each if each is None else each[mine] for each in draw)) for draw, mine in parts)


def _part(count: int, world: World) -> slice:
    """Which of `count` images in a row are this rank's; the first ranks may have one more."""
    begin, end = (-(-count * rank // world.size) for rank in (world.rank, world.rank + 1))
    return slice(begin, end)


def counted(mine: int, batch: int, world: World) -> tuple[float, float]:
    """For how many images of a batch this rank's count, and the weight of their mean loss.

    With that weight the mean of the ranks' gradients is the gradient of the mean over the batch, however unevenly the
    images are shared out.
    """
    if world.size == 1:
        return mine, 1.0
    images = mine if batch >= world.size else batch / world.size
    return images, images * world.size / batch


def check_batch_size(batch_size: int, world: World) -> None:
    """Raises UserError if a batch has fewer images than there are ranks."""
    if batch_size < world.size:
        raise UserError(
            f"--batch-size is the batch of all ranks together: {batch_size} images are too few for {world.size} ranks; "
            f"give at least --batch-size {world.size}"
        )


def synchronised(model: nn.Module, device: torch.device, world: World) -> nn.Module:
    """The network, on GPUs with a BatchNorm that normalises over the images of all ranks."""
    on_gpus = world.size > 1 and device.type == "cuda"
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if on_gpus else model


def parallel(model: nn.Module, device: torch.device, world: World) -> nn.Module:
    """What to call in training in place of `model`, for its gradients to become the mean over all ranks."""
    if world.size == 1:
        return model
    with world.together(), warnings.catch_warnings():
        # No broadcast of buffers before every step: none is read before `share_buffers`. Newer versions of PyTorch
        # warn that they call this otherwise.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def stepping(step: Callable[..., None], world: World) -> Callable[..., None]:
    """The same training step, which ends this process if another rank does not come to it."""

    def taken_together(*inputs: torch.Tensor) -> None:
        with world.together():
            step(*inputs)

    return step if world.size == 1 else taken_together


def share_buffers(model: nn.Module, world: World) -> None:
    """Gives all ranks rank 0's running statistics, of which each has its own where BatchNorm is its own."""
    if world.size == 1:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    joined = torch.cat([buffer.flatten() for buffer in buffers]).cpu()
    with world.together():
        dist.broadcast(joined, src=0)
    for buffer, part in zip(buffers, joined.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(part.view_as(buffer))
