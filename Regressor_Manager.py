"""What is particular to training and testing the Regressor."""

import torch
from torch import Tensor, nn

import Constants
from deepcolor.common.files import write_csv
from deepcolor.data.dataset import LabDataModule, LabDataset
from deepcolor.training.config import TrainingRun
from deepcolor.training.distributed import SINGLE_PROCESS
from deepcolor.training.trainer import Trainer
from Regressor import Regressor

_MEANS_COLUMNS = ("image", "predicted_a", "predicted_b", "true_a", "true_b")


class RegressorManager(Trainer):
    """Learns the mean a and the mean b of an image from its L channel."""

    output_scale = Constants.OUTPUT_SCALES["sigmoid"]

    def __init__(self, training_run: TrainingRun, data: LabDataModule, *args, **kwargs) -> None:
        super().__init__(training_run, data.with_mean_ab(), *args, **kwargs)

    def build(self) -> nn.Module:
        return Regressor(self.config.feature_maps, dropout=self.config.dropout)

    def target(self, ab: Tensor) -> Tensor:
        """(B,2,1,1) -> (B,2): the data module already provides the mean over the pixels."""
        return ab.flatten(1)

    def second_moment(self, images: LabDataset) -> Tensor:
        return torch.from_numpy(images.statistics[:, :2] ** 2).mean(dim=0)

    def test(self, run: str, test_mse: float) -> dict[str, object]:
        """Writes and returns the predicted and the true mean a and b of each test image, in Lab units."""
        images = self.data.test
        predicted = torch.cat([means for *_, means in self.predictions(images, SINGLE_PROCESS)]).tolist()
        true = images.statistics[:, :2].tolist()
        means = [[name, *guess, *target] for name, guess, target in zip(images.names, predicted, true)]
        cells = ([name, *(f"{value:.3f}" for value in values)] for name, *values in means)
        path = self.paths.plot("regressor", "", run, "means.csv")
        write_csv(path, _MEANS_COLUMNS, (dict(zip(_MEANS_COLUMNS, row)) for row in cells))
        return {"test_means": means}
