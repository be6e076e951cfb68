"""The two convolutions of the package, kernel 4, stride 2, padding 1, in the form that is the fastest on the CPU.

With few feature maps, oneDNN's transposed convolution, which is also the gradient of a convolution with respect to its
input, costs three times as much as the same sums written as one ordinary 2x2 convolution: each of the four pixels
into which a pixel is enlarged hears of 2x2 pixels only. With many maps of 2x2 pixels, oneDNN spends its time on
rearranging weights that few pixels use: one matrix product is twice as fast in bf16. The parameters, their names and
the results are those of `torch.nn.Conv2d` and `torch.nn.ConvTranspose2d`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import Constants

_STEPS = {"stride": 2, "padding": 1}
# Of the smaller picture. Between these, oneDNN is no slower: measured on AVX-512.
_FEW_MAPS, _LARGE_SIDE = 8, 16
_MANY_MAPS, _SMALL_SIDE = 128, 2


def conv_transpose_as_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv_transpose2d(x, weight, bias, stride=2, padding=1)`: (B,I,H,W), (I,O,4,4) -> (B,O,2H,2W).

    Line 2i + r of the result hears of the lines i + r - 1 and i + r of x, by the lines 3 - r and 1 - r of the kernel.
    """
    (batch, inputs, height, width), outputs = x.shape, weight.shape[1]
    # From (I,O,4,4), turned by 180 degrees, to a kernel of 2x2 for each output and each of the four positions.
    kernels = weight.flip(2, 3).view(inputs, outputs, 2, 2, 2, 2).permute(1, 3, 5, 0, 2, 4)
    parts = F.conv2d(x, kernels.reshape(-1, inputs, 2, 2), _repeated(bias, 4), padding=1)
    parts = parts.view(batch, outputs, 2, 2, height + 1, width + 1)
    large = x.new_empty(batch, outputs, height, 2, width, 2)
    for r in (0, 1):
        for c in (0, 1):
            large[:, :, :, r, :, c] = parts[:, :, r, c, r : r + height, c : c + width]
    return large.view(batch, outputs, 2 * height, 2 * width)


def _repeated(bias: Tensor | None, times: int) -> Tensor | None:
    return None if bias is None else bias.repeat_interleave(times)


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, transposed: bool, wanted: list[bool]) -> tuple:
    """With respect to the input, the weight and the bias."""
    # The bias apart: oneDNN takes thirty times as long for this sum.
    bias = grad.sum(dim=(0, 2, 3)) if wanted[2] else None
    return *torch.ops.aten.convolution_backward(
        grad, x, weight, None, [2, 2], [1, 1], [1, 1], transposed, [0, 0], 1, [*wanted[:2], False]
    )[:2], bias


class _DownConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, **_STEPS)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        _, grad_weight, _ = _gradients(grad, x, weight, False, [False, ctx.needs_input_grad[1], False])
        return conv_transpose_as_conv(grad, weight) if ctx.needs_input_grad[0] else None, grad_weight


class _UpConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return conv_transpose_as_conv(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(grad, *ctx.saved_tensors, True, list(ctx.needs_input_grad))


def _use_conv(weight: Tensor, small_side: int) -> bool:
    """Whether `conv_transpose_as_conv` with this weight, from pictures of this side, is the fastest way."""
    few = weight.shape[1] <= _FEW_MAPS and weight.shape[0] < Constants.WIDE
    return few and small_side >= _LARGE_SIDE and weight.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _deep(weight: Tensor, small_side: int) -> bool:
    """Whether a matrix product with this weight, from or to pictures of this side, is the fastest way."""
    many = min(weight.shape[:2]) >= _MANY_MAPS and weight.device.type == "cpu"
    return many and small_side <= _SMALL_SIDE and torch.is_autocast_enabled("cpu")


def _matrix(weight: Tensor) -> Tensor:
    """(A,B,4,4) -> (A,16B), the pixel before the map: how channels-last weights lie, so that nothing is copied."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _conv_as_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`F.conv2d(x, weight, stride=2, padding=1)` as a matrix product."""
    (batch, _, height, width), outputs = x.shape, weight.shape[0]
    patches = F.unfold(x, 4, **_STEPS).view(batch, -1, 16, height * width // 4)
    product = patches.permute(0, 3, 2, 1).reshape(batch * height * width // 4, -1) @ _matrix(weight).t()
    return product.view(batch, height // 2, width // 2, outputs).permute(0, 3, 1, 2)


def _conv_transpose_as_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`F.conv_transpose2d(x, weight, stride=2, padding=1)` as a matrix product."""
    batch, inputs, height, width = x.shape
    product = x.permute(0, 2, 3, 1).reshape(-1, inputs) @ _matrix(weight)
    patches = product.view(batch, height * width, 16, -1).permute(0, 3, 2, 1).reshape(batch, -1, height * width)
    return F.fold(patches, (2 * height, 2 * width), 4, **_STEPS)


class DownConv(nn.Conv2d):
    """(B,inputs,H,W) -> (B,outputs,H/2,W/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel_size=4, bias=False, **_STEPS)

    def forward(self, x: Tensor) -> Tensor:
        if _use_conv(self.weight, x.shape[-1] // 2):
            return _DownConvFunction.apply(x, self.weight)
        return _conv_as_matmul(x, self.weight) if _deep(self.weight, x.shape[-1] // 2) else super().forward(x)


class UpConv(nn.ConvTranspose2d):
    """(B,inputs,H,W) -> (B,outputs,2H,2W)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel_size=4, bias=bias, **_STEPS)

    def forward(self, x: Tensor) -> Tensor:
        if _use_conv(self.weight, x.shape[-1]):
            return _UpConvFunction.apply(x, self.weight, self.bias)
        # The last layer, which alone has a bias, is never deep: it has two outputs.
        return _conv_transpose_as_matmul(x, self.weight) if _deep(self.weight, x.shape[-1]) else super().forward(x)
