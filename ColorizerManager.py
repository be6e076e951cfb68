"""What is particular to training and testing the Colorizer."""

import numpy as np
import torch
from torch import Tensor, nn

import Constants
from Colorizer import Colorizer
from deepcolor.data.dataset import LabImages
from deepcolor.reporting.metrics import chroma, colour_use, mean_scores, scores
from deepcolor.reporting.plots import Triplet, to_grey, to_srgb, triplet_picture, write_png
from deepcolor.training.distributed import ALONE
from deepcolor.training.trainer import Trainer


class ColorizerManager(Trainer):
    """Learns the a and b of every pixel from the L channel."""

    @property
    def target(self) -> tuple[float, float]:
        return Constants.TARGETS[self.trajectory.activation]

    def build(self) -> nn.Module:
        return Colorizer(self.settings.feature_maps, self.trajectory.activation)

    def truth(self, ab: Tensor) -> Tensor:
        return ab

    def second_moment(self, images: LabImages) -> Tensor:
        return torch.from_numpy(images.statistics[:, 2:]).mean(dim=0)

    def test(self, run: str, test_mse: float) -> dict[str, object]:
        """Colours the test images: how close, how colourful; grey and coloured pictures, triplets."""
        images = self.data.test
        collected: list[dict[str, float]] = []
        colours: list[dict[str, float]] = []
        triplets: list[Triplet] = []
        for lightness, ab, predicted in self.predictions(images, ALONE):
            for light, true, guess in zip(*(t.cpu().double().numpy() for t in (lightness * 100, ab, predicted))):
                name = images.names[len(collected)]
                grey = to_grey(light[0])
                original, coloured = (to_srgb(np.concatenate([light, colour])) for colour in (true, guess))
                collected.append(scores(original, coloured))
                colours.append(chroma(true, guess))
                if len(triplets) < Constants.TRIPLETS:
                    triplets.append(Triplet(grey, original, coloured))
                if len(collected) <= Constants.MAX_PICTURES:
                    write_png(self.output.pictures(self.trajectory.activation, "gray", run) / f"{name}.png", grey)
                    write_png(self.output.pictures(self.trajectory.activation, "color", run) / f"{name}.png", coloured)
        self._remove_others(run, set(images.names[: Constants.MAX_PICTURES]))
        title = f"Colorizer, {self.trajectory.activation}: {run}\ntest mse {test_mse:.6f}"
        triplet_picture(self.plot(run, "triplets.png"), triplets, title)
        return {**mean_scores(collected), **colour_use(mean_scores(colours))}

    def _remove_others(self, run: str, names: set[str]) -> None:
        """Removes pictures that an earlier run wrote of images which are no longer tested."""
        for kind in ("gray", "color"):
            for path in self.output.pictures(self.trajectory.activation, kind, run).glob("*.png"):
                if path.stem not in names:
                    path.unlink()
