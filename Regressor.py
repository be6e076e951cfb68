"""The Regressor: predicts the mean color of an image from its lightness. Also the encoder of the Colorizer."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

import Constants


class Regressor(nn.Module):
    """L (B,1,128,128) -> mean ab (B,2), in units of (ab + 128) / 255.

    Six convolutions halve the image, 128 -> 64 -> 32 -> 16 -> 8 -> 4 -> 2. A linear layer maps the 2x2 feature maps
    to the mean a and the mean b.

    Args:
        feature_maps: the number of feature maps of all six layers, or six numbers, one for each layer.
        dropout: the probability that a feature map of the last layer is zeroed in training.

    Raises:
        ValueError: `feature_maps` is not one or six positive integers, or `dropout` is not between 0 and 1.
    """

    def __init__(self, feature_maps: int | Sequence[int] = Constants.FEATURE_MAPS, dropout: float = 0.0) -> None:
        super().__init__()
        widths = layer_widths(feature_maps)
        self.down = nn.Sequential(*(down_block(*pair) for pair in pairwise((1, *widths))))
        if dropout:
            self.down.append(nn.Dropout2d(dropout))
        bottleneck = Constants.IMAGE_SIZE >> Constants.LAYERS
        self.head = nn.Linear(widths[-1] * bottleneck**2, 2)
        # The initial prediction is gray. A random head would first have to unlearn its noise.
        offset, scale = Constants.OUTPUT_SCALES["sigmoid"]
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, offset / scale)

    def features(self, lightness: Tensor) -> Tensor:
        """L (B,1,128,128) -> the last feature maps (B,C,2,2), after dropout."""
        return self.down(lightness)

    def feature_pyramid(self, lightness: Tensor) -> list[Tensor]:
        """L (B,1,128,128) -> the feature maps at 64, 32, 16, 8, 4 and 2 pixels, the last ones after dropout."""
        found = []
        x = lightness
        for block in self.down[: Constants.LAYERS]:
            x = block(x)
            found.append(x)
        found[-1] = self.down[Constants.LAYERS :](x)
        return found

    def forward(self, lightness: Tensor) -> Tensor:
        return self.head(self.features(lightness).flatten(1))


def layer_widths(feature_maps: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the number of feature maps of each of the six layers. One number stands for all six.

    Raises ValueError for anything but one or six positive integers.
    """
    widths = tuple(feature_maps) if isinstance(feature_maps, Sequence) else (feature_maps,) * Constants.LAYERS
    if len(widths) != Constants.LAYERS or not all(isinstance(w, int) and w > 0 for w in widths):
        raise ValueError(f"feature_maps must be one or {Constants.LAYERS} positive integers, not {feature_maps}")
    return widths


def down_block(inputs: int, outputs: int) -> nn.Sequential:
    """Halves height and width: (B,inputs,H,W) -> (B,outputs,H/2,W/2)."""
    return nn.Sequential(
        # BatchNorm2d subtracts the mean, so a bias would have no effect.
        nn.Conv2d(inputs, outputs, kernel_size=4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(inplace=True),
    )
