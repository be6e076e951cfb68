"""The Colorizer: predicts the color of every pixel from the lightness of the image."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

import Constants
from Regressor import Regressor, layer_widths

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Colorizer(nn.Module):
    """L (B,1,128,128) -> ab (B,2,128,128): (ab + 128) / 255 with sigmoid, ab / 128 with tanh.

    The encoder is a `Regressor`, 128 -> 2. The decoder is six transposed convolutions with the encoder's numbers of
    feature maps in reverse, 2 -> 4 -> 8 -> 16 -> 32 -> 64 -> 128.

    Args:
        feature_maps: the number of feature maps of all six layers of the encoder, or six numbers, one for each layer.
        activation: the last layer, "sigmoid" or "tanh".
        dropout: the probability that a feature map of the encoder's last layer is zeroed in training.

    Raises:
        ValueError: `feature_maps` is not one or six positive integers, `activation` is unknown, or `dropout` is not
            between 0 and 1.
    """

    def __init__(
        self,
        feature_maps: int | Sequence[int] = Constants.FEATURE_MAPS,
        activation: str = Constants.ACTIVATIONS[0],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation}")
        self.regressor = Regressor(feature_maps, dropout)
        # The Colorizer does not use the head. Frozen, it is not given to the optimizer.
        self.regressor.head.requires_grad_(False)
        widths = layer_widths(feature_maps)[::-1]
        self.up = nn.Sequential(
            *(up_block(*pair) for pair in pairwise(widths)),
            nn.ConvTranspose2d(widths[-1], 2, kernel_size=4, stride=2, padding=1),
            ACTIVATIONS[activation](),
        )

    def forward(self, lightness: Tensor) -> Tensor:
        return self.up(self.regressor.features(lightness))


def up_block(inputs: int, outputs: int) -> nn.Sequential:
    """Doubles height and width: (B,inputs,H,W) -> (B,outputs,2H,2W)."""
    return nn.Sequential(
        # BatchNorm2d subtracts the mean, so a bias would have no effect.
        nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(inplace=True),
    )
