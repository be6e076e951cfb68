"""The scores of a picture against their definitions, and the mse of the networks against plain sums."""

from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from helpers import TASK_NAMES, TASKS, flat, picture, train
from torch import Tensor

from Colorizer import Colorizer
from deepcolor.data.dataset import LabDataModule, LabDataset
from deepcolor.reporting.metrics import chroma, color_use, colorfulness, mean_scores, scores
from Regressor import Regressor

# Sharma, Wu and Dalal 2005, Table 1: L, a, b twice, and their difference.
SHARMA = """
50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425
50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412
50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195
50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065
50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977
50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""
PAIRS = [(picture(1), picture(2)), (picture(3), picture(3) // 2 + 40), (picture(4), picture(4)[:, ::-1])]


def test_the_oracle_of_ciede2000_agrees_with_the_published_pairs() -> None:
    table = np.array([line.split() for line in SHARMA.split("\n") if line], dtype=float)
    assert oracles.ciede2000(table[:, :3], table[:, 3:6]) == pytest.approx(table[:, 6], abs=6e-5)


@pytest.mark.parametrize(("original", "colored"), PAIRS)
def test_scores_follow_their_definitions(original: np.ndarray, colored: np.ndarray) -> None:
    found = scores(original, np.ascontiguousarray(colored))
    difference = oracles.ciede2000(oracles.lab(original), oracles.lab(colored)).mean()
    assert found["psnr"] == pytest.approx(oracles.psnr(original, colored), rel=1e-9)
    assert found["ssim"] == pytest.approx(oracles.ssim(original, colored), abs=1e-7)
    assert found["delta_e"] == pytest.approx(difference, abs=1e-3)
    assert found["colorfulness"] == pytest.approx(oracles.colorfulness(colored), rel=1e-9)
    assert found["colorfulness_true"] == pytest.approx(oracles.colorfulness(original), rel=1e-9)


def test_scores_of_equal_pictures_are_perfect() -> None:
    found = scores(picture(5), picture(5))
    assert found["psnr"] == np.inf
    assert found["ssim"] == pytest.approx(1)
    assert found["delta_e"] == pytest.approx(0, abs=1e-9)


def test_colorfulness_of_gray_is_zero_and_its_opponents_are_signed() -> None:
    assert colorfulness(flat((90, 90, 90))) == 0
    # Half red, half green: rg is +255 and -255, so that its mean vanishes and its deviation is 255.
    halves = np.concatenate([flat((255, 0, 0)), flat((0, 255, 0))])
    assert colorfulness(halves) == pytest.approx(255 + 0.3 * 127.5)


TRUE = np.random.default_rng(3).normal(20, 15, (4, 2, 16, 16))  # ab of four images


@pytest.mark.parametrize(
    ("predicted", "ratio", "verdict"),
    [
        (TRUE, 1, "colored"),
        (TRUE / 2, 0.5, "colored"),
        (TRUE / 10, 0.1, "collapsed to gray"),
        (np.zeros_like(TRUE), 0, "collapsed to gray"),
        (np.full_like(TRUE, 20), None, "collapsed to brown"),
        (TRUE * 0 + np.array([5.0, -30.0])[:, None, None], None, "collapsed to blue"),
        (TRUE * 0.05 + np.array([40.0, 2.0])[:, None, None], None, "collapsed to red"),
        # Of one color within each image, but not over the images.
        (TRUE.mean(axis=(2, 3), keepdims=True) * np.array([1, -1, 2, -2])[:, None, None, None], None, "colored"),
    ],
)
def test_a_collapse_is_named(predicted: np.ndarray, ratio: float | None, verdict: str) -> None:
    found = color_use(mean_scores([chroma(*pair) for pair in zip(TRUE, predicted)]))
    assert found["verdict"] == verdict
    if ratio is not None:
        assert found["chroma_ratio"] == pytest.approx(ratio)
        deviations = [np.sqrt(values.var(axis=(0, 2, 3)).sum()) for values in (predicted, TRUE)]
        assert found["variety_ratio"] == pytest.approx(deviations[0] / deviations[1], abs=1e-6)


def errors(model: torch.nn.Module, images: LabDataset, target: tuple[float, float]) -> np.ndarray:
    """The squared error of a and b, (2,) float64, one image at a time, in units of (ab + 128) / 255."""
    total = np.zeros(2)
    for index in range(len(images)):
        predicted, true = predict(model, *images[index], target)
        total += ((predicted - true) ** 2).reshape(2, -1).mean(axis=1) / 255**2
    return total / len(images)


def predict(
    model: torch.nn.Module, lightness: Tensor, ab: Tensor, target: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """What the network says of one image, in Lab units, and the truth."""
    offset, scale = target
    with torch.no_grad():
        predicted = model.eval()(lightness[None])[0].double().numpy() * scale - offset
    true = ab.double().numpy()
    return predicted, true if predicted.ndim == 3 else true.mean(axis=(1, 2))


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_mse_is_the_mean_over_all_pixels_of_all_images(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("Constants.EVALUATION_BATCH", 3)  # 17 and 4 images: a mean of batch means would show
    content = train(task, data, tmp_path, 2, lr=0.01)[0]
    model = Regressor(3) if task[0] == "regressor" else Colorizer(3, task[1])
    model.load_state_dict(content["model"])
    target = (0, 128) if task[1] == "tanh" else (128, 255)
    test_a, test_b = errors(model, data.test, target)
    metrics = content["metrics"]
    assert metrics["test_mse_a"] == pytest.approx(test_a, rel=1e-5)
    assert metrics["test_mse_b"] == pytest.approx(test_b, rel=1e-5)
    assert metrics["test_mse"] == pytest.approx((test_a + test_b) / 2, rel=1e-5)
    assert metrics["rmse_lab"] == pytest.approx(255 * np.sqrt((test_a + test_b) / 2), rel=1e-5)
    assert metrics["val_mse"] == pytest.approx(errors(model, data.val, target).mean(), rel=1e-5)
    assert metrics["train_mse"] == pytest.approx(errors(model, data.train, target).mean(), rel=1e-5)


@pytest.mark.parametrize("network", ["regressor", "colorizer"])
def test_baselines_are_gray_and_the_mean_color_of_the_training_images(
    network: str, data: LabDataModule, tmp_path: Path
) -> None:
    task = next(task for task in TASKS if task[0] == network)
    metrics = train(task, data, tmp_path, 1)[0]["metrics"]
    trained = np.stack([data.train[index][1].double().numpy() for index in range(len(data.train))])
    truth = np.stack([data.test[index][1].double().numpy() for index in range(len(data.test))])
    mean_color = trained.mean(axis=(0, 2, 3), keepdims=True)
    if network == "regressor":
        truth = truth.mean(axis=(2, 3), keepdims=True)
    assert metrics["gray_mse"] == pytest.approx((truth**2).mean() / 255**2, rel=1e-6)
    assert metrics["mean_color_mse"] == pytest.approx(((truth - mean_color) ** 2).mean() / 255**2, rel=1e-6)
