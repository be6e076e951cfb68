"""What the networks get: randomly cropped and flipped images in training, unchanged images in evaluation."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import SIDE, manager
from torch import Tensor, nn

import Constants
from ColorizerManager import ColorizerManager
from deepcolor.data.augment import resized_crop
from deepcolor.data.batches import BatchSpec, EvaluationBatches, TrainingBatches, loader
from deepcolor.data.dataset import LabDataModule

COUNT = 30


def specs(epoch: int, count: int = COUNT, batch_size: int = 7, augment_repeats: int = 1, seed: int = 0) -> BatchSpec:
    """Returns all batches of an epoch, concatenated."""
    batches = TrainingBatches(count, batch_size, augment_repeats, seed, Constants.CROP_AREA)
    batches.set_epoch(epoch)
    found = list(batches)
    assert [len(spec.rows) for spec in found] == [batches.size(number) for number in range(len(batches))]
    return BatchSpec(*map(torch.cat, zip(*found)))


class Recorder(ColorizerManager):
    """Keeps the L, the ab and the output of every image of the training steps."""

    def build(self) -> nn.Module:
        self.inputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.outputs: list[Tensor] = []
        model = super().build()
        model.register_forward_hook(self._on_forward)
        return model

    def _on_forward(self, model: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if model.training:
            self.inputs.append(inputs[0].clone())
            self.outputs.append(output.detach().clone())

    def target(self, ab: Tensor) -> Tensor:
        if self.model.training:
            self.targets.append(ab.clone())
        return super().target(ab)


def record(data: LabDataModule, output: Path, epochs: int = 1, activation: str = "sigmoid", **config) -> Recorder:
    trainer = manager(("colorizer", activation), data, output, (epochs,), kind=Recorder, **config)
    trainer.train()
    return trainer


# --- Batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "augment_repeats"), [(1, 1), (7, 1), (64, 1), (16, 3)])
def test_every_image_comes_once_per_repeat_in_a_new_order(batch_size: int, augment_repeats: int) -> None:
    rows = [specs(epoch, COUNT, batch_size, augment_repeats).rows.tolist() for epoch in (1, 2)]
    passes = [each[start : start + COUNT] for each in rows for start in range(0, len(each), COUNT)]
    assert len(passes) == 2 * augment_repeats
    assert all(Counter(each) == Counter(range(COUNT)) for each in passes)  # a repeat is a pass over all images
    assert len({tuple(each) for each in passes}) == len(passes)


def test_boxes_are_those_of_random_resized_crop() -> None:
    top, left, height, width = specs(1, count=5000).boxes.T
    flipped = width < 0
    width = width.abs()
    assert abs(flipped.float().mean() - 0.5) < 4 * 0.5 / np.sqrt(5000)  # four standard deviations
    assert (height > 0).all()  # never upside down
    area, inside = width * height / SIDE**2, (width < SIDE) & (height < SIDE)
    assert area.max() <= 1 + 1e-5
    assert area[inside].min() == pytest.approx(Constants.CROP_AREA, abs=0.02)
    assert (width / height).log().abs().max() <= np.log(Constants.CROP_ASPECT) + 1e-5
    for start, length in ((top, height), (left, width)):
        assert start.min() >= 0
        assert (start + length).max() <= SIDE + 1e-4
        assert ((start + length / 2) / SIDE).std() > 0.02


@pytest.mark.parametrize("config", [{}, {"lr": 0.1, "weight_decay": 0.01, "feature_maps": 5}], ids=str)
def test_training_images_depend_on_seed_and_epoch_alone(data: LabDataModule, tmp_path: Path, config: dict) -> None:
    torch.manual_seed(len(config))
    trainer = record(data, tmp_path, epochs=2, seed=5, **config)
    expected = [data.train.__getitems__(specs(epoch, len(data.train), seed=5)) for epoch in (1, 2)]
    assert torch.equal(torch.cat(trainer.inputs), torch.cat([lightness for lightness, _ in expected]))
    assert torch.equal(torch.cat(trainer.targets), torch.cat([ab for _, ab in expected]))
    assert not torch.equal(specs(1, seed=5).boxes, specs(2, seed=5).boxes)
    assert not torch.equal(specs(1, seed=5).boxes, specs(1, seed=6).boxes)


def test_evaluation_sees_every_image_unchanged(data: LabDataModule, tmp_path: Path) -> None:
    inputs: list[Tensor] = []
    trainer = manager(("colorizer", "sigmoid"), data, tmp_path)
    trainer.model.register_forward_pre_hook(lambda model, given: inputs.extend(given[0].clone()))
    trainer.evaluate(data.test)
    assert torch.equal(torch.stack(inputs), torch.stack([data.test[index][0] for index in range(len(data.test))]))
    assert not trainer.model.training


@pytest.mark.parametrize(("activation", "offset", "scale"), [("sigmoid", 128, 255), ("tanh", 0, 128)])
def test_the_training_loss_is_a_mean_over_images(
    data: LabDataModule, tmp_path: Path, activation: str, offset: int, scale: int
) -> None:
    """In units of (ab + 128) / 255. The last of four batches has only two images and must not count as much."""
    trainer = record(data, tmp_path, activation=activation, batch_size=5)
    predicted = torch.cat(trainer.outputs).double().numpy() * scale - offset
    errors = (predicted - torch.cat(trainer.targets).double().numpy()) ** 2
    assert len(errors) == len(data.train)
    assert trainer.history["train_mse"] == pytest.approx([errors.mean() / 255**2], rel=1e-5)


# --- Pixels --------------------------------------------------------------------------------------------


def test_crops_are_those_of_grid_sample() -> None:
    random = torch.Generator().manual_seed(0)
    records = torch.randint(-30_000, 30_000, (3, 3, SIDE, SIDE), generator=random).short()
    rows = torch.tensor([2, 0, 1, 2, 0])
    boxes = torch.tensor(
        [[0, 0, SIDE, SIDE], [0, 0, SIDE, -SIDE], [3.3, 40.2, 80.7, 71], [20.5, 1, 100, -90.25], [127, 0, 1, 0.5]]
    )
    top, left, height, width = boxes.T
    theta = torch.zeros(len(rows), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width / SIDE, (2 * left + width.abs()) / SIDE - 1
    theta[:, 1, 1], theta[:, 1, 2] = height / SIDE, (2 * top + height) / SIDE - 1
    grid = F.affine_grid(theta, [len(rows), 3, SIDE, SIDE], align_corners=False)
    expected = F.grid_sample(records[rows].float(), grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(resized_crop(records, rows, boxes), expected, rtol=0, atol=1)  # 1/256 in Lab units


def test_mean_ab_is_the_mean_over_the_pixels(data: LabDataModule) -> None:
    batches = [*TrainingBatches(len(data.train), 5, 2, 0, 0.6), *EvaluationBatches(len(data.train))]
    for (lightness, ab), (same, mean) in zip(loader(data.train, batches), loader(data.with_mean_ab().train, batches)):
        assert torch.equal(lightness, same)
        assert torch.allclose(mean, ab.double().mean(dim=(2, 3), keepdim=True).float(), rtol=0, atol=1e-3)
