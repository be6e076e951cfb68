"""The network that predicts the mean color of an image from its lightness, and extracts features from it."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

import Constants
from deepcolor.training.layers import DownConv


def layer_widths(feature_maps: int | Sequence[int]) -> tuple[int, ...]:
    """The feature maps of the six layers on the way down, in order.

    One number stands for all six layers. Raises ValueError for anything but one or six positive integers.
    """
    widths = tuple(feature_maps) if isinstance(feature_maps, Sequence) else (feature_maps,) * Constants.LAYERS
    if len(widths) != Constants.LAYERS or not all(isinstance(w, int) and w > 0 for w in widths):
        raise ValueError(f"feature maps are one or {Constants.LAYERS} positive whole numbers, not {feature_maps}")
    return widths


class Regressor(nn.Module):
    """L (B,1,128,128) -> mean ab (B,2), in units of (ab + 128) / 255.

    Six convolutions halve the image, 128 -> 64 -> 32 -> 16 -> 8 -> 4 -> 2; a linear layer reads the 2x2 maps.

    Raises:
        ValueError: `feature_maps` is not one or six positive numbers.
    """

    def __init__(self, feature_maps: int | Sequence[int] = Constants.FEATURE_MAPS) -> None:
        super().__init__()
        widths = layer_widths(feature_maps)
        self.down = nn.Sequential(*(down_block(*pair) for pair in pairwise((1, *widths))))
        bottleneck = Constants.IMAGE_SIZE >> Constants.LAYERS
        self.head = nn.Linear(widths[-1] * bottleneck**2, 2)
        # It begins as the prediction of gray; a random head would first have to unlearn its noise.
        offset, scale = Constants.OUTPUT_SCALES["sigmoid"]
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, offset / scale)

    def features(self, lightness: Tensor) -> Tensor:
        """L (B,1,128,128) -> the last feature maps (B,C,2,2), which the Colorizer builds upon."""
        return self.down(lightness)

    def forward(self, lightness: Tensor) -> Tensor:
        return self.head(self.features(lightness).flatten(1))


def down_block(inputs: int, outputs: int) -> nn.Sequential:
    """Halves height and width: (B,inputs,H,W) -> (B,outputs,H/2,W/2)."""
    return nn.Sequential(
        # The norm's own shift makes a bias of the convolution superfluous.
        DownConv(inputs, outputs),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(inplace=True),
    )
