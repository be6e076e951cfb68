"""The Colorizer: predicts the color of every pixel from the lightness of the image."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import Constants
from Regressor import Regressor, layer_widths

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Colorizer(nn.Module):
    """L (B,1,128,128) -> ab (B,2,128,128): (ab + 128) / 255 with sigmoid, ab / 128 with tanh.

    By default, the encoder is a `Regressor`, 128 -> 2, and the decoder is six transposed convolutions with the
    encoder's numbers of feature maps in reverse, 2 -> 4 -> 8 -> 16 -> 32 -> 64 -> 128.

    With `skip` or a pretrained encoder, the decoder is a `SmoothDecoder`.

    Args:
        feature_maps: the number of feature maps of all six layers of the encoder, or six numbers, one for each layer.
            Those of the decoder are the same in reverse.
        activation: the last layer, "sigmoid" or "tanh".
        dropout: the probability that a feature map of the encoder's last layer is zeroed in training.
        skip: whether the decoder also sees the encoder's feature maps of each size, as in a U-Net.
        encoder: "regressor", or "mobilenet_v2" for a `MobileNetEncoder`.

    Raises:
        ValueError: `feature_maps` is not one or six positive integers, `activation` or `encoder` is unknown, or
            `dropout` is not between 0 and 1.
    """

    def __init__(
        self,
        feature_maps: int | Sequence[int] = Constants.FEATURE_MAPS,
        activation: str = Constants.ACTIVATIONS[0],
        dropout: float = 0.0,
        skip: bool = False,
        encoder: str = Constants.ENCODERS[0],
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation}")
        if encoder not in Constants.ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(Constants.ENCODERS)}, not {encoder}")
        widths = layer_widths(feature_maps)
        if encoder == "regressor":
            self.regressor = Regressor(feature_maps, dropout)
            # The Colorizer does not use the head. Frozen, it is not given to the optimizer.
            self.regressor.head.requires_grad_(False)
            encoder_widths = widths
        else:
            self.mobilenet = MobileNetEncoder(dropout)
            encoder_widths = MobileNetEncoder.WIDTHS
        if skip or encoder != "regressor":
            self.up = nn.Sequential(SmoothDecoder(encoder_widths, widths, skip), ACTIVATIONS[activation]())
        else:
            self.up = nn.Sequential(
                *(up_block(*pair) for pair in pairwise(widths[::-1])),
                nn.ConvTranspose2d(widths[0], 2, kernel_size=4, stride=2, padding=1),
                ACTIVATIONS[activation](),
            )

    def forward(self, lightness: Tensor) -> Tensor:
        if isinstance(self.up[0], SmoothDecoder):
            encoder = self.regressor.feature_pyramid if hasattr(self, "regressor") else self.mobilenet
            return self.up(encoder(lightness))
        return self.up(self.regressor.features(lightness))


def up_block(inputs: int, outputs: int) -> nn.Sequential:
    """Doubles height and width: (B,inputs,H,W) -> (B,outputs,2H,2W)."""
    return nn.Sequential(
        # BatchNorm2d subtracts the mean, so a bias would have no effect.
        nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(inplace=True),
    )


def conv_block(inputs: int, outputs: int, kernel_size: int) -> nn.Sequential:
    """Keeps height and width: (B,inputs,H,W) -> (B,outputs,H,W)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(inplace=True),
    )


class SmoothDecoder(nn.Module):
    """Feature maps of an encoder, from large to small -> (B,2,128,128), before the activation.

    Predicts color at 32x32 pixels and enlarges it: color is smooth, and a decoder that goes up to single pixels adds a
    pattern of single pixels, which more than doubles its error on unseen photographs.

    Args:
        encoder_widths: the numbers of feature maps of the encoder at 64, 32, 16, … pixels.
        widths: the numbers of feature maps of the decoder at the same sizes.
        skip: whether the feature maps of the encoder are joined to those of the decoder at each size.
    """

    COLOR_LEVEL = 1  # 64 pixels are level 0, 32 pixels are level 1

    def __init__(self, encoder_widths: Sequence[int], widths: Sequence[int], skip: bool) -> None:
        super().__init__()
        self.skip = skip
        last = len(encoder_widths) - 1
        self.bottom = conv_block(encoder_widths[last], widths[last], kernel_size=1)
        self.blocks = nn.ModuleList(
            conv_block(widths[level + 1] + (encoder_widths[level] if skip else 0), widths[level], kernel_size=3)
            for level in range(last - 1, self.COLOR_LEVEL - 1, -1)
        )
        self.color = nn.Conv2d(widths[self.COLOR_LEVEL], 2, kernel_size=3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.bottom(features[-1])
        for block, encoded in zip(self.blocks, features[-2::-1]):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = block(torch.cat([x, encoded], dim=1) if self.skip else x)
        return F.interpolate(self.color(x), scale_factor=2 << self.COLOR_LEVEL, mode="bilinear")


class MobileNetEncoder(nn.Module):
    """L (B,1,H,W) -> the feature maps of torchvision's MobileNetV2 at H/2, H/4, … H/32, a list from large to small.

    Its weights are those of ImageNet, see `deepcolor.training.encoder_weights`. It always normalizes with the means
    and variances that it was trained with, in training too.
    """

    LAYERS = (1, 3, 6, 13, 18)  # the last layer of each size in `mobilenet_v2().features`
    WIDTHS = (16, 24, 32, 96, 1280)
    # Of red, green and blue in ImageNet. L is passed as three equal channels.
    MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v2  # takes a second

        self.features = mobilenet_v2().features
        self.dropout = nn.Dropout2d(dropout)
        self.train()

    def train(self, mode: bool = True) -> "MobileNetEncoder":
        super().train(False)
        self.dropout.train(mode)
        return self

    def forward(self, lightness: Tensor) -> list[Tensor]:
        x = torch.cat([(lightness - mean) / deviation for mean, deviation in zip(self.MEAN, self.DEVIATION)], dim=1)
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.LAYERS:
                found.append(x)
        found[-1] = self.dropout(found[-1])
        return found
