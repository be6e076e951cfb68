"""What is particular to training and testing the Colorizer."""

import numpy as np
import torch
from torch import Tensor, nn

import Constants
from Colorizer import Colorizer
from deepcolor.common.color import lab_to_srgb, lightness_to_gray
from deepcolor.data.dataset import LabDataset
from deepcolor.reporting.metrics import chroma_statistics, color_verdict, image_scores, mean_scores
from deepcolor.reporting.plots import Triplet, triplet_picture, write_png
from deepcolor.training import checkpoint, encoder_weights
from deepcolor.training.distributed import SINGLE_PROCESS
from deepcolor.training.trainer import Trainer


class ColorizerManager(Trainer):
    """Learns the a and b of every pixel from the L channel."""

    @property
    def output_scale(self) -> tuple[float, float]:
        return Constants.OUTPUT_SCALES[self.training_run.activation]

    def build(self) -> nn.Module:
        config = self.config
        activation = self.training_run.activation
        network = Colorizer(config.feature_maps, activation, config.dropout, config.skip, config.encoder)
        if config.init_from:
            network.load_state_dict(checkpoint.load_usable(self.paths.initial_weights(config.init_from))["model"])
        elif config.encoder == "mobilenet_v2":
            encoder_weights.load(network.mobilenet)
        if config.encoder == "mobilenet_v2":
            network.mobilenet.requires_grad_(config.encoder_lr > 0)
        return network

    def target(self, ab: Tensor) -> Tensor:
        return ab

    def second_moment(self, images: LabDataset) -> Tensor:
        return torch.from_numpy(images.statistics[:, 2:]).mean(dim=0)

    def test(self, run: str, test_mse: float) -> dict[str, object]:
        """Colorizes the test images, writes gray and colorized pictures and triplets, and returns the mean scores."""
        images, activation = self.data.test, self.training_run.activation
        gray_folder, color_folder = (self.paths.pictures(activation, kind, run) for kind in ("gray", "color"))
        scores: list[dict[str, float]] = []
        chroma_values: list[dict[str, float]] = []
        triplets: list[Triplet] = []
        for lightness, ab, predicted in self.predictions(images, SINGLE_PROCESS):
            arrays = (tensor.cpu().double().numpy() for tensor in (lightness * 100, ab, predicted))
            for light, true_ab, predicted_ab in zip(*arrays):
                name = images.names[len(scores)]
                gray = lightness_to_gray(light[0])
                original, colored = (lab_to_srgb(np.concatenate([light, each])) for each in (true_ab, predicted_ab))
                scores.append(image_scores(original, colored))
                chroma_values.append(chroma_statistics(true_ab, predicted_ab))
                if len(triplets) < Constants.TRIPLETS:
                    triplets.append(Triplet(gray, original, colored))
                if len(scores) <= Constants.MAX_PICTURES:
                    write_png(gray_folder / f"{name}.png", gray)
                    write_png(color_folder / f"{name}.png", colored)
        written = set(images.names[: Constants.MAX_PICTURES])
        for path in [*gray_folder.glob("*.png"), *color_folder.glob("*.png")]:
            if path.stem not in written:  # an earlier run tested other images
                path.unlink()
        title = f"Colorizer, {activation}: {run}\ntest mse {test_mse:.6f}"
        triplet_picture(self.paths.plot("colorizer", activation, run, "triplets.png"), triplets, title)
        return {
            **mean_scores(scores),
            **color_verdict(mean_scores(chroma_values)),
            "saturation": self.saturation(),
        }

    def saturation(self) -> float:
        """Returns the factor of ab that gives the validation images their true mean chroma, at most 2."""
        true = predicted = 0.0
        for _, ab, guess in self.predictions(self.data.val, SINGLE_PROCESS):
            true += ab.norm(dim=1).mean(dim=(1, 2)).sum().item()
            predicted += guess.norm(dim=1).mean(dim=(1, 2)).sum().item()
        return min(true / max(predicted, 1e-9), Constants.MAX_AUTO_SATURATION)
