"""The network that predicts the color of every pixel from the lightness of the image."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

import Constants
from deepcolor.training.layers import UpConv
from Regressor import Regressor, layer_widths

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Colorizer(nn.Module):
    """L (B,1,128,128) -> ab (B,2,128,128): (ab + 128) / 255 with sigmoid, ab / 128 with tanh.

    A `Regressor` extracts the features, 128 -> 2; six transposed convolutions with its widths in reverse
    go back up, 2 -> 4 -> 8 -> 16 -> 32 -> 64 -> 128.

    Raises:
        ValueError: `feature_maps` is not one or six positive numbers, or `activation` is not known.
    """

    def __init__(
        self, feature_maps: int | Sequence[int] = Constants.FEATURE_MAPS, activation: str = Constants.ACTIVATIONS[0]
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"the activation is one of {', '.join(ACTIVATIONS)}, not {activation}")
        self.regressor = Regressor(feature_maps)
        # The extractor's two numbers take no part here; frozen, they are no dead weight for the optimizer.
        self.regressor.head.requires_grad_(False)
        widths = layer_widths(feature_maps)[::-1]
        self.up = nn.Sequential(
            *(up_block(*pair) for pair in pairwise(widths)),
            UpConv(widths[-1], 2),
            ACTIVATIONS[activation](),
        )

    def forward(self, lightness: Tensor) -> Tensor:
        return self.up(self.regressor.features(lightness))


def up_block(inputs: int, outputs: int) -> nn.Sequential:
    """Doubles height and width: (B,inputs,H,W) -> (B,outputs,2H,2W)."""
    return nn.Sequential(
        # The norm's own shift makes a bias of the convolution superfluous.
        UpConv(inputs, outputs, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(inplace=True),
    )
