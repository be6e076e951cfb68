"""What the networks get: randomly cropped and flipped images in training, unchanged images in evaluation."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import SIDE, flat, manager, picture, write
from skimage.color import lab2rgb
from torch import Tensor, nn

import Constants
from ColorizerManager import ColorizerManager
from deepcolor.data.augment import resized_crop
from deepcolor.data.batches import EvaluationBatches, TrainingBatches, loader
from deepcolor.data.dataset import LabDataModule

COUNT = 30
TASK = ("colorizer", "sigmoid")


def epochs(
    data: LabDataModule, count: int, batch_size: int = Constants.BATCH_SIZE, augment_repeats: int = 1, seed: int = 0
) -> np.ndarray:
    """Returns the Lab images (N,3,128,128) of the first epochs, in order."""
    batches = TrainingBatches(len(data.train), batch_size, augment_repeats, seed, Constants.CROP_AREA)
    images = []
    for epoch in range(1, count + 1):
        batches.set_epoch(epoch)
        images += [torch.cat([lightness * 100, ab], dim=1) for lightness, ab in loader(data.train, batches)]
    return torch.cat(images).double().numpy()


def load(folder: Path, pictures: list[np.ndarray]) -> LabDataModule:
    """Returns a data module that trains on these pictures."""
    for number, rgb in enumerate(pictures):
        write(folder / f"images/train/{number}.png", rgb)
    write(folder / "images/val/v.png", picture(98))
    write(folder / "images/test/t.png", picture(99))
    return LabDataModule.load(folder / "images", folder / "output")


@pytest.fixture(scope="module")
def flats(tmp_path_factory: pytest.TempPathFactory) -> LabDataModule:
    """Images of one gray level each, which identifies them however they are cropped."""
    return load(tmp_path_factory.mktemp("flats"), [flat((8 * n, 8 * n, 8 * n)) for n in range(COUNT)])


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> LabDataModule:
    """Images that get lighter to the right and downward, with a = L - 50 and b = 40 - L/2."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    pictures = []
    for number in range(COUNT):
        lightness = 30 + number / 10 + 35 * x + 8 * y
        lab = np.stack([lightness, lightness - 50, 40 - lightness / 2], axis=-1)
        pictures.append((lab2rgb(lab) * 255).round().astype(np.uint8))
    return load(tmp_path_factory.mktemp("ramps"), pictures)


# --- Batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "augment_repeats"), [(1, 1), (7, 1), (64, 1), (16, 3)])
def test_every_image_is_seen_once_per_repeat_in_a_new_order_each_epoch(
    flats: LabDataModule, batch_size: int, augment_repeats: int
) -> None:
    lightness = epochs(flats, 2, batch_size, augment_repeats)[:, 0]
    assert np.ptp(lightness, axis=(1, 2)).max() < 1e-3
    images = [round(value, 1) for value in lightness.mean(axis=(1, 2))]
    all_images = {round(float(flats.train[index][0].mean()) * 100, 1) for index in range(COUNT)}
    assert len(all_images) == COUNT
    passes = [images[start : start + COUNT] for start in range(0, len(images), COUNT)]
    assert len(passes) == 2 * augment_repeats
    assert all(Counter(each) == Counter(all_images) for each in passes)  # repeats are passes, not repetitions in a row
    assert len({tuple(each) for each in passes}) == len(passes)


@pytest.mark.parametrize("config", [{}, {"lr": 0.1, "weight_decay": 0.01, "feature_maps": 5}], ids=str)
def test_training_images_depend_on_seed_and_epoch_alone(ramps: LabDataModule, tmp_path: Path, config: dict) -> None:
    expected = epochs(ramps, 2, seed=5)
    assert not np.array_equal(expected[:COUNT], expected[COUNT:])
    assert not np.array_equal(expected, epochs(ramps, 2, seed=6))
    torch.manual_seed(len(config))
    trainer = manager(TASK, ramps, tmp_path, (2,), kind=Recorder, seed=5, **config)
    trainer.train()
    assert np.array_equal(trainer.images(), expected)


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

    def images(self) -> np.ndarray:
        """Returns the Lab images (N,3,128,128) of the training steps."""
        return torch.cat([torch.cat(self.inputs) * 100, torch.cat(self.targets)], dim=1).double().numpy()


def test_evaluation_sees_every_image_unchanged(data: LabDataModule, tmp_path: Path) -> None:
    inputs: list[Tensor] = []
    trainer = manager(TASK, data, tmp_path, (1,))
    trainer.model.register_forward_pre_hook(lambda model, given: inputs.extend(given[0].clone()))
    trainer.evaluate(data.test)
    assert torch.equal(torch.stack(inputs), torch.stack([data.test[index][0] for index in range(len(data.test))]))
    assert not trainer.model.training


@pytest.mark.parametrize(("activation", "offset", "scale"), [("sigmoid", 128, 255), ("tanh", 0, 128)])
def test_the_training_loss_is_a_mean_over_images(
    data: LabDataModule, tmp_path: Path, activation: str, offset: int, scale: int
) -> None:
    """In units of (ab + 128) / 255. The last of four batches has only two images and must not count as much."""
    trainer = manager(("colorizer", activation), data, tmp_path, (1,), kind=Recorder, batch_size=5)
    trainer.train()
    predicted = torch.cat(trainer.outputs).double().numpy() * scale - offset
    errors = (predicted - torch.cat(trainer.targets).double().numpy()) ** 2
    assert len(errors) == len(data.train)
    assert trainer.history["train_mse"] == pytest.approx([errors.mean() / 255**2], rel=1e-5)


# --- Crops and flips -----------------------------------------------------------------------------------


def test_crops_are_those_of_grid_sample() -> None:
    random = torch.Generator().manual_seed(0)
    records = torch.randint(-30_000, 30_000, (3, 3, SIDE, SIDE), generator=random).short()
    rows = torch.tensor([2, 0, 1, 2, 0])
    boxes = torch.tensor(
        [[0, 0, SIDE, SIDE], [0, 0, SIDE, -SIDE], [3.3, 40.2, 80.7, 71], [20.5, 1, 100, -90.25], [127, 0, 1, 0.5]]
    )
    theta = torch.zeros(len(rows), 2, 3)
    top, left, height, width = boxes.T
    theta[:, 0, 0], theta[:, 0, 2] = width / SIDE, (2 * left + width.abs()) / SIDE - 1
    theta[:, 1, 1], theta[:, 1, 2] = height / SIDE, (2 * top + height) / SIDE - 1
    grid = F.affine_grid(theta, [len(rows), 3, SIDE, SIDE], align_corners=False)
    expected = F.grid_sample(records[rows].float(), grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(resized_crop(records, rows, boxes), expected, rtol=0, atol=1)  # 1/256 in Lab units


def test_l_and_ab_are_cropped_and_flipped_together(ramps: LabDataModule) -> None:
    lightness, a, b = epochs(ramps, 3).transpose(1, 0, 2, 3)
    # 8-bit sRGB rounds colors by up to one unit of Lab.
    assert np.abs(a - (lightness - 50)).max() < 1.5
    assert np.abs(b - (40 - lightness / 2)).max() < 1.5


def test_half_of_the_images_are_flipped_horizontally_and_none_vertically(ramps: LabDataModule) -> None:
    lightness = epochs(ramps, 10)[:, 0]
    flipped = lightness[..., :16].mean(axis=(1, 2)) > lightness[..., -16:].mean(axis=(1, 2))
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(flipped))  # four standard deviations
    assert (lightness[:, :16].mean(axis=(1, 2)) < lightness[:, -16:].mean(axis=(1, 2))).all()


def test_crops_vary_and_keep_most_of_the_image(ramps: LabDataModule) -> None:
    lightness = epochs(ramps, 10)[:, 0]
    widths = np.ptp(lightness.mean(axis=1), axis=1) / 35  # as a fraction of the image
    heights = np.ptp(lightness.mean(axis=2), axis=1) / 8
    assert np.std(widths) > 0.03
    assert np.std(heights) > 0.03
    assert 0.5 < (widths * heights).min() < 0.75
    assert max(widths.max(), heights.max()) < 1.03


def test_mean_ab_is_the_mean_over_the_pixels(data: LabDataModule) -> None:
    means = data.train.with_mean_ab()
    for spec in [*TrainingBatches(len(data.train), 5, 2, 0, 0.6), *EvaluationBatches(len(data.train))]:
        lightness, ab = data.train.__getitems__(spec)
        same_lightness, mean = means.__getitems__(spec)
        assert torch.equal(lightness, same_lightness)
        assert torch.allclose(mean, ab.double().mean(dim=(2, 3), keepdim=True).float(), rtol=0, atol=1e-3)
