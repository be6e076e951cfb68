"""Random resized crops and horizontal flips of whole batches, computed directly from 16-bit Lab records.

Arguments of the functions below:

- records: (N,3,S,S) int16, the channels L, a and b of all images.
- rows: (B,) int64, the index in `records` of each image of the batch.
- boxes: (B,4) float32, the top, left, height and width of the crop of each image, or None to take whole images.

Boxes are in pixels and need not be whole numbers. The top-left corner of the image is (0, 0), so that the box of the
whole image is (0, 0, S, S). A negative width flips the crop horizontally; `left` is its left edge in both cases.
"""

import torch
from torch import Tensor

_CHUNK = 4  # images resized at a time on the CPU, so that intermediate results stay in the processor's cache


def resized_crop(records: Tensor, rows: Tensor, boxes: Tensor | None, channels: int = 3) -> Tensor:
    """Crops each image to its box and resizes the crop to S x S with bilinear interpolation.

    Returns (B,channels,S,S) float32, the first channels in units of the records.
    """
    batch, side = len(rows), records.shape[-1]
    if boxes is None:
        return records[:, :channels].index_select(0, rows).float()
    # Bilinear interpolation is separable: first between two lines of pixels, then between two columns. Lines are
    # gathered directly from the records, so that only the pixels of the crops are read.
    y0, y1, y_weight, x0, x1, x_weight = _sampling_grid(boxes, side)
    first_lines = _planes(records, rows, range(channels))[:, :, None] * side
    lines = records.view(-1, side)
    crops = torch.empty(batch, channels, side, side, device=rows.device)
    chunk = batch if records.is_cuda else _CHUNK
    for part in (slice(start, start + chunk) for start in range(0, batch, chunk)):
        shape = crops[part].shape
        upper, lower = (
            lines.index_select(0, (first_lines[part] + y[part, None]).flatten()).float().view(shape) for y in (y0, y1)
        )
        between_lines = upper.lerp_(lower, y_weight[part, None, :, None])
        left, right = (between_lines.gather(3, x[part, None, None, :].expand(shape)) for x in (x0, x1))
        torch.lerp(left, right, x_weight[part, None, None, :], out=crops[part])
    return crops


def crop_means(records: Tensor, rows: Tensor, boxes: Tensor | None) -> Tensor:
    """Returns the means of a and b over the pixels of `resized_crop`, without computing them: (B,2,1,1) float32.

    Bilinear interpolation is linear in the pixels, so the mean is a weighted sum of the original pixels. The weight of
    a pixel is the total weight of its line times the total weight of its column.
    """
    batch, side = len(rows), records.shape[-1]
    ab = records.view(-1, side, side).index_select(0, _planes(records, rows, range(1, 3)).flatten()).float()
    if boxes is None:
        return ab.mean(dim=(1, 2)).view(batch, 2, 1, 1)
    y0, y1, y_weight, x0, x1, x_weight = _sampling_grid(boxes, side)
    line_weights, column_weights = (
        torch.zeros(batch, side, device=rows.device).scatter_add_(1, first, 1 - weight).scatter_add_(1, second, weight)
        for first, second, weight in ((y0, y1, y_weight), (x0, x1, x_weight))
    )
    # Several times faster than the small matrix products of an einsum.
    line_means = (ab.view(batch, 2, side, side) * (column_weights / side).view(batch, 1, 1, side)).sum(dim=3)
    return (line_means * (line_weights / side).view(batch, 1, side)).sum(dim=2).view(batch, 2, 1, 1)


def _planes(records: Tensor, rows: Tensor, channels: range) -> Tensor:
    """Returns the indices of the channels of each image in `records.view(-1, S, S)`: (B,len(channels)) int64."""
    return rows[:, None] * records.shape[1] + torch.arange(channels.start, channels.stop, device=rows.device)


def _sampling_grid(boxes: Tensor, side: int) -> tuple[Tensor, ...]:
    """Returns (y0, y1, y_weight, x0, x1, x_weight), each (B,S): see `_neighbors`."""
    top, left, height, width = boxes[:, :, None].unbind(1)
    steps = (torch.arange(side, device=boxes.device) + 0.5) / side
    start = torch.where(width < 0, left - width, left)  # a flipped crop runs from its right edge to its left edge
    return *_neighbors(top + height * steps, side), *_neighbors(start + width * steps, side)


def _neighbors(positions: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the two pixels on either side of each position, and the weight of the second.

    Positions are measured from the edge of the image, so that pixel i has its center at i + 0.5. Positions closer to
    the edge than the center of the first or last pixel take the value of that pixel.
    """
    offsets = (positions - 0.5).clamp(0, side - 1)
    first = offsets.long()
    return first, (first + 1).clamp(max=side - 1), offsets - first
