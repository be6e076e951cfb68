"""What is particular to training and testing the Regressor."""

import csv

import torch
from torch import Tensor, nn

import Constants
from deepcolor.common.files import write_atomically
from deepcolor.data.dataset import LabDataModule, LabDataset
from deepcolor.training.config import TrainingRun
from deepcolor.training.distributed import SINGLE_PROCESS
from deepcolor.training.trainer import Trainer
from Regressor import Regressor


class RegressorManager(Trainer):
    """Learns the mean a and the mean b of an image from its L channel."""

    output_scale = Constants.OUTPUT_SCALES["sigmoid"]

    def __init__(self, training_run: TrainingRun, data: LabDataModule, *others, **options) -> None:
        super().__init__(training_run, data.with_mean_ab(), *others, **options)

    def build(self) -> nn.Module:
        return Regressor(self.config.feature_maps)

    def target(self, ab: Tensor) -> Tensor:
        """(B,2,1,1) -> (B,2): the images give the mean over the pixels."""
        return ab.flatten(1)

    def second_moment(self, images: LabDataset) -> Tensor:
        return torch.from_numpy(images.statistics[:, :2] ** 2).mean(dim=0)

    def test(self, run: str, test_mse: float) -> dict[str, object]:
        """Keeps the two numbers of each test image, predicted and true, in Lab units."""
        images = self.data.test
        predicted = [means for *_, means in self.predictions(images, SINGLE_PROCESS)]
        means = [
            [name, *guess, *truth]
            for name, guess, truth in zip(
                images.names, torch.cat(predicted).tolist(), images.statistics[:, :2].tolist()
            )
        ]
        path = self.plot(run, "means.csv")
        write_atomically(path, lambda temporary: _write_means(temporary, means))
        return {"test_means": means}


def _write_means(path, means: list[list]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "predicted_a", "predicted_b", "true_a", "true_b"])
        writer.writerows([name, *(f"{value:.3f}" for value in values)] for name, *values in means)
