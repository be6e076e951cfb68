"""Scores against their definitions, and the MSE of the networks and baselines against plain sums."""

from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from helpers import TASK_NAMES, TASKS, flat, picture, train

import Constants
from Colorizer import Colorizer
from deepcolor.data.dataset import LabDataModule, LabDataset
from deepcolor.reporting.metrics import chroma_statistics, color_verdict, colorfulness, image_scores, mean_scores
from Regressor import Regressor

# Sharma, Wu and Dalal 2005, Table 1: L, a, b of two colors, and their difference.
SHARMA = """
50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425   50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412   50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669   50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195   50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065   50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977   50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535   60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630   61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645   22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146   90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381   6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def test_ciede2000_oracle_matches_published_pairs() -> None:
    table = np.array(SHARMA.split(), dtype=float).reshape(-1, 7)
    assert oracles.ciede2000(table[:, :3], table[:, 3:6]) == pytest.approx(table[:, 6], abs=6e-5)


@pytest.mark.parametrize(
    ("original", "colored"),
    [
        (picture(1), picture(2)),
        (picture(3), picture(3) // 2 + 40),
        (picture(4), np.ascontiguousarray(picture(4)[:, ::-1])),
        (picture(5), picture(5)),
    ],
    ids=["other", "darker", "mirrored", "equal"],
)
def test_image_scores_match_their_definitions(original: np.ndarray, colored: np.ndarray) -> None:
    difference = oracles.ciede2000(oracles.lab(original), oracles.lab(colored)).mean()
    with np.errstate(divide="ignore"):
        psnr = oracles.psnr(original, colored)  # infinite for equal images
    assert image_scores(original, colored) == {
        "psnr": pytest.approx(psnr, rel=1e-9),
        "ssim": pytest.approx(oracles.ssim(original, colored), abs=1e-7),
        "delta_e": pytest.approx(difference, abs=1e-3),
        "colorfulness": pytest.approx(oracles.colorfulness(colored), rel=1e-9),
        "colorfulness_true": pytest.approx(oracles.colorfulness(original), rel=1e-9),
        "colorfulness_abs": pytest.approx(oracles.colorfulness(colored, absolute=True), rel=1e-9),
        "colorfulness_abs_true": pytest.approx(oracles.colorfulness(original, absolute=True), rel=1e-9),
        "delta_colorfulness": pytest.approx(
            oracles.colorfulness(colored, absolute=True) - oracles.colorfulness(original, absolute=True), abs=1e-9
        ),
    }


def test_colorfulness_of_known_pictures() -> None:
    assert colorfulness(flat((90, 90, 90))) == 0
    # Half red, half green: rg is +255 and -255, so its mean is 0 and its standard deviation 255.
    halves = np.concatenate([flat((255, 0, 0)), flat((0, 255, 0))])
    assert colorfulness(halves) == pytest.approx(255 + 0.3 * 127.5)
    # |rg| is 255 everywhere.
    assert colorfulness(halves, absolute=True) == pytest.approx(0.3 * np.hypot(255, 127.5))


TRUE = np.random.default_rng(3).normal(20, 15, (4, 2, 16, 16))  # ab of four images


@pytest.mark.parametrize(
    ("predicted", "verdict"),
    [
        (TRUE, "colored"),
        (TRUE / 2, "colored"),
        (TRUE / 10, "collapsed to gray"),
        (np.zeros_like(TRUE), "collapsed to gray"),
        (np.full_like(TRUE, 20), "collapsed to brown"),
        (TRUE * 0 + np.array([5.0, -30.0])[:, None, None], "collapsed to blue"),
        (TRUE * 0.05 + np.array([40.0, 2.0])[:, None, None], "collapsed to red"),
        # One color within each image, but different colors across the images.
        (TRUE.mean(axis=(2, 3), keepdims=True) * np.array([1, -1, 2, -2])[:, None, None, None], "colored"),
    ],
)
def test_color_verdict_and_its_ratios(predicted: np.ndarray, verdict: str) -> None:
    predicted = np.broadcast_to(predicted, TRUE.shape)
    chroma, true_chroma = (np.hypot(ab[:, 0], ab[:, 1]).mean() for ab in (predicted, TRUE))
    deviation, true_deviation = (np.sqrt(ab.var(axis=(0, 2, 3)).sum()) for ab in (predicted, TRUE))
    assert color_verdict(mean_scores([chroma_statistics(*pair) for pair in zip(TRUE, predicted)])) == {
        "chroma_ratio": pytest.approx(chroma / true_chroma),
        "variety_ratio": pytest.approx(deviation / true_deviation, abs=1e-6),
        "verdict": verdict,
    }


def predict(network: torch.nn.Module, task: tuple[str, str], images: LabDataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns predicted and true ab of all images in Lab units, both (N,2,pixels); one "pixel" for the Regressor."""
    lightness, ab = (torch.stack(part) for part in zip(*(images[index] for index in range(len(images)))))
    offset, scale = Constants.OUTPUT_SCALES[task[1] or "sigmoid"]
    with torch.no_grad():
        predicted = network.eval()(lightness).double() * scale - offset
    ab = ab.double().flatten(2)
    return predicted.reshape(len(images), 2, -1).numpy(), (ab if task[1] else ab.mean(dim=2, keepdim=True)).numpy()


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_mse_and_baselines_are_means_over_all_pixels_of_all_images(
    task: tuple[str, str], data: LabDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("Constants.EVALUATION_BATCH", 3)  # divides neither 17 nor 4 images: not a mean of batch means
    content = train(task, data, tmp_path, 2, lr=0.01)[0]
    network = Colorizer(3, task[1]) if task[1] else Regressor(3)
    network.load_state_dict(content["model"])
    (trained, true_train), (validated, true_val), (tested, true_test) = (
        predict(network, task, images) for images in (data.train, data.val, data.test)
    )
    expected = {
        "train_mse": np.square(trained - true_train).mean(),
        "val_mse": np.square(validated - true_val).mean(),
        "test_mse": np.square(tested - true_test).mean(),
        "test_mse_a": np.square(tested - true_test)[:, 0].mean(),
        "test_mse_b": np.square(tested - true_test)[:, 1].mean(),
        "gray_mse": np.square(true_test).mean(),
        "mean_color_mse": np.square(true_test - true_train.mean(axis=(0, 2), keepdims=True)).mean(),
    }
    metrics = content["metrics"]
    assert {key: metrics[key] * 255**2 for key in expected} == pytest.approx(expected, rel=1e-5)
    assert metrics["rmse_lab"] == pytest.approx(np.sqrt(expected["test_mse"]), rel=1e-5)
