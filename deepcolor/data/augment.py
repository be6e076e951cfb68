"""Random resized crops and mirroring of whole batches, straight from the 16-bit Lab records.

`records` are (N,3,128,128) int16, `rows` (B,) int64 says which of them, `boxes` (B,4) float32 are top, left, height and
width in pixels of what is to fill the picture; a negative width mirrors. Where boxes are None, the picture is as it is.
"""

import torch
from torch import Tensor

_IMAGES_IN_CACHE = 4


def resized_crop(records: Tensor, rows: Tensor, boxes: Tensor | None, channels: int = 3) -> Tensor:
    """Fills each picture of a batch with a box of its own, bilinearly: (B,channels,128,128) float32.

    Bilinear interpolation is separable: two lines of the image make a line, two of its columns a column. The
    lines are gathered straight from the records (N,3,128,128) int16, so that nothing is read twice, and a
    box per image costs no more than one for the whole batch. Without boxes, the pictures as they are.
    """
    batch, side = len(rows), records.shape[-1]
    if boxes is None:
        return records[:, :channels].index_select(0, rows).float()
    above, below, down, before, after, right = _grid(boxes, side)
    planes = _planes(records, rows, range(channels))[:, :, None] * side
    lines = records.view(-1, side)
    filled = torch.empty(batch, channels, side, side, device=rows.device)
    # On the CPU a few images at a time: what lies between the steps then stays in the processor's cache.
    at_once = batch if records.is_cuda else _IMAGES_IN_CACHE
    for part in (slice(start, start + at_once) for start in range(0, batch, at_once)):
        whole = filled[part].shape
        upper, lower = (
            lines.index_select(0, (planes[part] + y[part, None]).flatten()).float().view(whole) for y in (above, below)
        )
        stretched = upper.lerp_(lower, down[part, None, :, None])
        columns = (stretched.gather(3, x[part, None, None, :].expand(whole)) for x in (before, after))
        torch.lerp(*columns, right[part, None, None, :], out=filled[part])
    return filled


def crop_means(records: Tensor, rows: Tensor, boxes: Tensor | None) -> Tensor:
    """The means of a and b over what `resized_crop` would make: (B,2,1,1) float32, in units of the records.

    What is linear in the pixels is so on average: each line and each column counts as often as it was used.
    """
    batch, side = len(rows), records.shape[-1]
    ab = records.view(-1, side, side).index_select(0, _planes(records, rows, range(1, 3)).flatten()).float()
    if boxes is None:
        return ab.mean(dim=(1, 2)).view(batch, 2, 1, 1)
    above, below, down, before, after, right = _grid(boxes, side)
    of_lines, of_columns = (
        torch.zeros(batch, side, device=rows.device).scatter_add_(1, first, 1 - weight).scatter_add_(1, second, weight)
        for first, second, weight in ((above, below, down), (before, after, right))
    )
    # Products and sums, which are several times as fast here as the many small matrix products of an einsum.
    line_means = (ab.view(batch, 2, side, side) * (of_columns / side).view(batch, 1, 1, side)).sum(dim=3)
    return (line_means * (of_lines / side).view(batch, 1, side)).sum(dim=2).view(batch, 2, 1, 1)


def _planes(records: Tensor, rows: Tensor, channels: range) -> Tensor:
    """Where the channels of the images lie among all planes of the records: (B,len(channels)) int64."""
    return rows[:, None] * records.shape[1] + torch.arange(channels.start, channels.stop, device=rows.device)


def _grid(boxes: Tensor, side: int) -> tuple[Tensor, ...]:
    """The two lines and the two columns that make a new pixel, and the weight of the second: six of (B,side)."""
    top, left, height, width = boxes[:, :, None].unbind(1)
    steps = (torch.arange(side, device=boxes.device) + 0.5) / side
    left = torch.where(width < 0, left - width, left)  # mirrored: from the right edge of the box
    return *_neighbors(top + height * steps, side), *_neighbors(left + width * steps, side)


def _neighbors(edges: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """For positions (B,side), measured from the image's edge: the pixels around, and the weight of the second."""
    centers = (edges - 0.5).clamp(0, side - 1)
    first = centers.long()
    return first, (first + 1).clamp(max=side - 1), centers - first
