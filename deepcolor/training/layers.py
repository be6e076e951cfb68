"""Convolutions with kernel 4, stride 2 and padding 1 that are faster on the CPU than those of oneDNN.

`optimize_for_cpu` makes a built network use them. They help in two cases:

- Few channels and large images: the transposed convolution, which is also the gradient of a convolution with respect
  to its input, is two to four times as fast when it is computed as an ordinary 2x2 convolution.
- Many channels and 2x2 images in bf16: oneDNN spends most of its time reordering the weights. A matrix product is
  twice as fast.

Below, "small" and "large" are the two images of such a layer: the output and the input of a convolution, the input
and the output of a transposed one. The weight of both has the shape (small channels, large channels, 4, 4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import Constants

_GEOMETRY = {"stride": 2, "padding": 1}
# Limits on the number of channels and on the side of the small image, measured on a CPU with AVX-512.
_FEW_CHANNELS, _LARGE_SIDE = 8, 16
_MANY_CHANNELS, _SMALL_SIDE = 128, 2


def optimize_for_cpu(model: nn.Module) -> nn.Module:
    """Replaces each convolution with kernel 4, stride 2 and padding 1 by a DownConv or UpConv. Returns `model`.

    The parameters, their names and the hooks stay the same; the results differ by rounding only. A convolution with a
    bias is not replaced, a transposed one is. The images of a DownConv must have an even height and width.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and module.bias is None and _matches(module):
            module.__class__ = DownConv
        elif type(module) is nn.ConvTranspose2d and module.output_padding == (0, 0) and _matches(module):
            module.__class__ = UpConv
    return model


def _matches(module: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
    return sizes == ((4, 4), (2, 2), (1, 1), (1, 1)) and module.groups == 1 and module.padding_mode == "zeros"


class DownConv(nn.Conv2d):
    """A convolution with kernel 4, stride 2, padding 1 and no bias: (B,I,H,W) -> (B,O,H/2,W/2)."""

    def forward(self, x: Tensor) -> Tensor:
        small_side = x.shape[-1] // 2
        if _conv_is_fastest(self.weight, small_side):
            return _DownConvFunction.apply(x, self.weight)
        if _matmul_is_fastest(self.weight, small_side):
            return conv_as_matmul(x, self.weight)
        return super().forward(x)


class UpConv(nn.ConvTranspose2d):
    """A transposed convolution with kernel 4, stride 2 and padding 1: (B,I,H,W) -> (B,O,2H,2W)."""

    def forward(self, x: Tensor) -> Tensor:
        small_side = x.shape[-1]
        if _conv_is_fastest(self.weight, small_side):
            return _UpConvFunction.apply(x, self.weight, self.bias)
        if self.bias is None and _matmul_is_fastest(self.weight, small_side):
            return conv_transpose_as_matmul(x, self.weight)
        return super().forward(x)


def _conv_is_fastest(weight: Tensor, small_side: int) -> bool:
    """Whether a transposed convolution with this weight is fastest as an ordinary convolution."""
    few = weight.shape[1] <= _FEW_CHANNELS and weight.shape[0] < Constants.WIDE
    return few and small_side >= _LARGE_SIDE and not torch.is_autocast_enabled("cpu")


def _matmul_is_fastest(weight: Tensor, small_side: int) -> bool:
    """Whether a convolution with this weight, transposed or not, is fastest as a matrix product."""
    many = min(weight.shape[:2]) >= _MANY_CHANNELS
    return many and small_side <= _SMALL_SIDE and torch.is_autocast_enabled("cpu")


# --- Few channels: a transposed convolution as an ordinary convolution -----------------------------


def conv_transpose_as_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv_transpose2d(x, weight, bias, stride=2, padding=1)`: (B,I,H,W), (I,O,4,4) -> (B,O,2H,2W).

    Each output pixel depends on a 2x2 neighborhood of the input. Along one axis, with input x, output y and kernel k:

        y[2i]     = k[3] x[i-1] + k[1] x[i]
        y[2i + 1] = k[2] x[i]   + k[0] x[i+1]

    So the even outputs are a convolution of x with the kernel (k[3], k[1]), and the odd outputs one with (k[2], k[0]),
    one pixel further on. With two axes there are four 2x2 kernels. One convolution with four times as many outputs
    computes all of them, and the four results are interleaved.
    """
    (batch, inputs, height, width), outputs = x.shape, weight.shape[1]
    # (I,O,4,4) -> (O,2,2,I,2,2): for each output channel and each parity of row and column, a 2x2 kernel.
    kernels = weight.flip(2, 3).view(inputs, outputs, 2, 2, 2, 2).permute(1, 3, 5, 0, 2, 4)
    bias = None if bias is None else bias.repeat_interleave(4)
    parts = F.conv2d(x, kernels.reshape(-1, inputs, 2, 2), bias, padding=1)
    parts = parts.view(batch, outputs, 2, 2, height + 1, width + 1)
    large = x.new_empty(batch, outputs, height, 2, width, 2)
    for row in (0, 1):
        for column in (0, 1):
            part = parts[:, :, row, column, row : row + height, column : column + width]
            large[:, :, :, row, :, column] = part
    return large.view(batch, outputs, 2 * height, 2 * width)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, transposed: bool, needs_grad: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Returns PyTorch's gradients of a convolution with respect to x and to the weight, None where not needed."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [2, 2], [1, 1], [1, 1], transposed, [0, 0], 1, [*needs_grad, False]
    )
    return grad_x, grad_weight


class _DownConvFunction(torch.autograd.Function):
    """A convolution whose gradient with respect to the input is computed by `conv_transpose_as_conv`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, **_GEOMETRY)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        _, grad_weight = _backward(grad, x, weight, False, (False, ctx.needs_input_grad[1]))
        return conv_transpose_as_conv(grad, weight) if ctx.needs_input_grad[0] else None, grad_weight


class _UpConvFunction(torch.autograd.Function):
    """A transposed convolution computed by `conv_transpose_as_conv`, with the gradients of PyTorch's own."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return conv_transpose_as_conv(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = _backward(grad, *ctx.saved_tensors, True, ctx.needs_input_grad[:2])
        # oneDNN takes more than ten times as long for the gradient of the bias.
        return *grads, grad.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[2] else None


# --- Many channels: a convolution as a matrix product ----------------------------------------------


def conv_as_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`F.conv2d(x, weight, stride=2, padding=1)`: (B,I,H,W), (O,I,4,4) -> (B,O,H/2,W/2).

    Each output pixel is the product of a 4x4 patch of the input, as a vector of 16 I numbers, and a (16 I,O) matrix.
    """
    (batch, _, height, width), outputs = x.shape, weight.shape[0]
    patches = F.unfold(x, 4, **_GEOMETRY).view(batch, -1, 16, height * width // 4)
    product = patches.permute(0, 3, 2, 1).reshape(batch * height * width // 4, -1) @ _as_matrix(weight).t()
    return product.view(batch, height // 2, width // 2, outputs).permute(0, 3, 1, 2)


def conv_transpose_as_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`F.conv_transpose2d(x, weight, stride=2, padding=1)`: (B,I,H,W), (I,O,4,4) -> (B,O,2H,2W).

    The product of each input pixel and an (I,16 O) matrix is a 4x4 patch of the output. Overlapping patches add up.
    """
    batch, inputs, height, width = x.shape
    product = x.permute(0, 2, 3, 1).reshape(-1, inputs) @ _as_matrix(weight)
    patches = product.view(batch, height * width, 16, -1).permute(0, 3, 2, 1).reshape(batch, -1, height * width)
    return F.fold(patches, (2 * height, 2 * width), 4, **_GEOMETRY)


def _as_matrix(weight: Tensor) -> Tensor:
    """(A,B,4,4) -> (A,16 B), kernel position before channel: a view of channels-last weights, without a copy."""
    return weight.permute(0, 2, 3, 1).flatten(1)
