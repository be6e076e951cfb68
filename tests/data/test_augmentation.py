"""What the networks are given: each image afresh every epoch in training, as it is in evaluation."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIDE, flat, manager, picture, write
from skimage.color import lab2rgb
from torch import Tensor, nn

from ColorizerManager import ColorizerManager
from deepcolor.data.batches import EvaluationBatches, TrainingBatches
from deepcolor.data.dataset import LabDataModule

COUNT = 30
TASK = ("colorizer", "sigmoid")


class Watched(ColorizerManager):
    """Keeps the L and the ab of every image that takes part in a training step."""

    def build(self) -> nn.Module:
        self.given: list[Tensor] = []
        self.wanted: list[Tensor] = []
        model = super().build()
        model.register_forward_pre_hook(self._on_forward)
        return model

    def _on_forward(self, model: nn.Module, inputs: tuple[Tensor]) -> None:
        if model.training:
            self.given.extend(inputs[0].clone())

    def target(self, ab: Tensor) -> Tensor:
        if self.model.training:
            self.wanted.extend(ab.clone())
        return super().target(ab)


def seen(data: LabDataModule, output: Path, epochs: int, **settings: object) -> np.ndarray:
    """(N,3,128,128): the Lab images of all training steps, in order."""
    watched = manager(TASK, data, output, (epochs,), kind=Watched, **settings)
    watched.train()
    assert len(watched.given) == len(watched.wanted)
    given, wanted = torch.stack(watched.given), torch.stack(watched.wanted)
    return torch.cat([given * 100, wanted], dim=1).double().numpy()


def load(folder: Path, pictures: list[np.ndarray]) -> LabDataModule:
    """These pictures to train on, and one each to validate and to test."""
    for number, rgb in enumerate(pictures):
        write(folder / f"train/{number}.png", rgb)
    write(folder / "val/v.png", picture(98))
    write(folder / "test/t.png", picture(99))
    return LabDataModule.load(folder, folder.parent / "output")


@pytest.fixture(scope="module")
def flats(tmp_path_factory: pytest.TempPathFactory) -> LabDataModule:
    """Images of one lightness each, by which they are known again however they are cropped."""
    pictures = [flat((8 * number, 8 * number, 8 * number)) for number in range(COUNT)]
    return load(tmp_path_factory.mktemp("flats") / "images", pictures)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> LabDataModule:
    """Images that grow lighter to the right and downwards, a and b in step with L: a = L - 50, b = 40 - L/2."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    pictures = []
    for number in range(COUNT):
        lightness = 30 + number / 10 + 35 * x + 8 * y
        lab = np.stack([lightness, lightness - 50, 40 - lightness / 2], axis=-1)
        pictures.append((lab2rgb(lab) * 255).round().astype(np.uint8))
    return load(tmp_path_factory.mktemp("ramps") / "images", pictures)


@pytest.mark.parametrize(("batch_size", "augment_repeats"), [(1, 1), (7, 1), (64, 1), (16, 3)])
def test_every_image_is_seen_once_per_epoch_and_copy(
    flats: LabDataModule, tmp_path: Path, augment_repeats: int, batch_size: int
) -> None:
    lightness = seen(flats, tmp_path, 2, augment_repeats=augment_repeats, batch_size=batch_size)[:, 0]
    assert np.ptp(lightness, axis=(1, 2)).max() < 1e-3
    images = [round(value, 1) for value in lightness.mean(axis=(1, 2))]
    expected = {round(float(flats.train[index][0].mean()) * 100, 1): augment_repeats for index in range(COUNT)}
    assert len(expected) == COUNT
    for epoch in (images[: COUNT * augment_repeats], images[COUNT * augment_repeats :]):
        assert Counter(epoch) == expected
    assert images[: COUNT * augment_repeats] != images[COUNT * augment_repeats :]


def test_copies_are_passes_and_not_repetitions_in_a_row(flats: LabDataModule, tmp_path: Path) -> None:
    images = seen(flats, tmp_path, 1, augment_repeats=2)[:, 0, 0, 0].round(1).tolist()
    assert sorted(images[:COUNT]) == sorted(images[COUNT:])
    assert images[:COUNT] != images[COUNT:]


def test_seed_and_epoch_alone_decide(ramps: LabDataModule, tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.default_rng(1)
    first = seen(ramps, tmp_path / "first", 2, seed=5)
    torch.manual_seed(2)
    torch.rand(100)
    second = seen(ramps, tmp_path / "second", 2, seed=5, lr=0.1, weight_decay=0.01, feature_maps=5)
    assert np.array_equal(first, second)
    assert not np.array_equal(first[:COUNT], first[COUNT:])
    assert not np.array_equal(first, seen(ramps, tmp_path / "third", 2, seed=6))


def test_l_and_ab_are_mirrored_and_cropped_together(ramps: LabDataModule, tmp_path: Path) -> None:
    lightness, a, b = seen(ramps, tmp_path, 3).transpose(1, 0, 2, 3)
    # sRGB of 8 bits keeps a color to about one unit of Lab.
    assert np.abs(a - (lightness - 50)).max() < 1.5
    assert np.abs(b - (40 - lightness / 2)).max() < 1.5


def test_about_half_of_the_images_are_mirrored_and_none_stands_on_its_head(
    ramps: LabDataModule, tmp_path: Path
) -> None:
    lightness = seen(ramps, tmp_path, 10)[:, 0]
    mirrored = lightness[..., :16].mean(axis=(1, 2)) > lightness[..., -16:].mean(axis=(1, 2))
    # Four standard deviations of a fair coin.
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(mirrored))
    assert (lightness[:, :16].mean(axis=(1, 2)) < lightness[:, -16:].mean(axis=(1, 2))).all()


def test_crops_differ_and_keep_most_of_the_picture(ramps: LabDataModule, tmp_path: Path) -> None:
    lightness = seen(ramps, tmp_path, 10)[:, 0]
    spans = np.ptp(lightness.mean(axis=1), axis=1) / 35  # the share of the width that is left
    heights = np.ptp(lightness.mean(axis=2), axis=1) / 8
    assert np.std(spans) > 0.03
    assert np.std(heights) > 0.03
    assert 0.5 < (spans * heights).min() < 0.75
    assert max(spans.max(), heights.max()) < 1.03


def test_evaluation_sees_every_test_image_as_it_is(data: LabDataModule, tmp_path: Path) -> None:
    given: list[Tensor] = []
    watched = manager(TASK, data, tmp_path, (1,))
    watched.model.register_forward_pre_hook(lambda model, inputs: given.extend(inputs[0].clone()))
    watched.evaluate(data.test)
    assert torch.equal(torch.stack(given), torch.stack([data.test[index][0] for index in range(len(data.test))]))
    assert not watched.model.training


def test_the_training_loss_is_a_mean_over_images_in_the_common_unit(data: LabDataModule, tmp_path: Path) -> None:
    """Of batches of 5, 5, 5 and 2 images: a mean of batch means would weigh the last two images more."""
    for activation, (offset, scale) in {"sigmoid": (128, 255), "tanh": (0, 128)}.items():
        watched = manager(("colorizer", activation), data, tmp_path, (1,), kind=Watched, batch_size=5)
        outputs: list[Tensor] = []
        watched.model.register_forward_hook(
            lambda model, _, output, kept=outputs: kept.extend(output.detach().clone()) if model.training else None
        )
        watched.train()
        predicted = torch.stack(outputs).double().numpy() * scale - offset
        loss_sum = (predicted - torch.stack(watched.wanted).double().numpy()) ** 2
        assert len(loss_sum) == len(data.train)
        assert watched.history["train_mse"] == pytest.approx([loss_sum.mean() / 255**2], rel=1e-5)


def test_the_means_are_those_of_every_pixel_that_would_be_made(data: LabDataModule) -> None:
    means = data.train.with_mean_ab()
    for draw in [*TrainingBatches(len(data.train), 5, 2, 0, 0.6), *EvaluationBatches(len(data.train))]:
        lightness, ab = data.train.__getitems__(draw)
        same, mean = means.__getitems__(draw)
        assert torch.equal(lightness, same)
        assert torch.allclose(mean, ab.double().mean(dim=(2, 3), keepdim=True).float(), rtol=0, atol=1e-3)
