"""What is particular to training and testing the Colorizer."""

import numpy as np
import torch
from torch import Tensor, nn

import Constants
from Colorizer import Colorizer
from deepcolor.common.color import lab_to_srgb, lightness_to_gray
from deepcolor.data.dataset import LabDataset
from deepcolor.reporting.metrics import chroma, color_use, mean_scores, scores
from deepcolor.reporting.plots import Triplet, triplet_picture, write_png
from deepcolor.training.distributed import SINGLE_PROCESS
from deepcolor.training.trainer import Trainer


class ColorizerManager(Trainer):
    """Learns the a and b of every pixel from the L channel."""

    @property
    def output_scale(self) -> tuple[float, float]:
        return Constants.OUTPUT_SCALES[self.training_run.activation]

    def build(self) -> nn.Module:
        return Colorizer(self.config.feature_maps, self.training_run.activation)

    def target(self, ab: Tensor) -> Tensor:
        return ab

    def second_moment(self, images: LabDataset) -> Tensor:
        return torch.from_numpy(images.statistics[:, 2:]).mean(dim=0)

    def test(self, run: str, test_mse: float) -> dict[str, object]:
        """Colors the test images: how close, how colorful; gray and colored pictures, triplets."""
        images = self.data.test
        collected: list[dict[str, float]] = []
        colors: list[dict[str, float]] = []
        triplets: list[Triplet] = []
        for lightness, ab, predicted in self.predictions(images, SINGLE_PROCESS):
            for light, true, guess in zip(*(t.cpu().double().numpy() for t in (lightness * 100, ab, predicted))):
                name = images.names[len(collected)]
                gray = lightness_to_gray(light[0])
                original, colored = (lab_to_srgb(np.concatenate([light, color])) for color in (true, guess))
                collected.append(scores(original, colored))
                colors.append(chroma(true, guess))
                if len(triplets) < Constants.TRIPLETS:
                    triplets.append(Triplet(gray, original, colored))
                if len(collected) <= Constants.MAX_PICTURES:
                    write_png(self.output.pictures(self.training_run.activation, "gray", run) / f"{name}.png", gray)
                    write_png(self.output.pictures(self.training_run.activation, "color", run) / f"{name}.png", colored)
        self._remove_others(run, set(images.names[: Constants.MAX_PICTURES]))
        title = f"Colorizer, {self.training_run.activation}: {run}\ntest mse {test_mse:.6f}"
        triplet_picture(self.plot(run, "triplets.png"), triplets, title)
        return {**mean_scores(collected), **color_use(mean_scores(colors))}

    def _remove_others(self, run: str, names: set[str]) -> None:
        """Removes pictures that an earlier run wrote of images which are no longer tested."""
        for kind in ("gray", "color"):
            for path in self.output.pictures(self.training_run.activation, kind, run).glob("*.png"):
                if path.stem not in names:
                    path.unlink()
