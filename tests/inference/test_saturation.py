"""--saturation, the network that is taken without --checkpoint, its speed-up, the margin, export in half precision."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from helpers import picture, write
from PIL import Image

import colorize
import Constants
from Colorizer import Colorizer
from deepcolor.common.color import srgb_to_lightness
from deepcolor.data.dataset import LabDataModule
from deepcolor.data.image_io import Photo
from deepcolor.inference.full_resolution import model_input, predict_ab
from deepcolor.inference.predictor import Predictor
from deepcolor.training import checkpoint
from deepcolor.training.trained_colorizer import load_colorizer

Run = Callable[..., object]


def save(network: Colorizer, path: Path, **metrics: object) -> Path:
    """Writes a checkpoint that can be used for coloring."""
    encoder = "mobilenet_v2" if hasattr(network, "mobilenet") else "regressor"
    content = {"format_version": 2, "model": network.state_dict(), "network": "colorizer", "activation": "tanh"}
    content |= {"feature_maps": 4, "epoch": 1, "image_size": 128, "metrics": metrics}
    content |= {"hyperparameters": {"encoder": encoder, "skip": encoder != "regressor"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(content, path)
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network with the encoder of the pretrained one, whose saturation is 1.5."""
    torch.manual_seed(0)
    network = Colorizer(4, "tanh", skip=True, encoder="mobilenet_v2")
    return save(network, tmp_path_factory.mktemp("pretrained") / "photos.pt", saturation=1.5)


def ab_of(path: Path) -> np.ndarray:
    return oracles.lab(np.asarray(Image.open(path)))[..., 1:]


def test_saturation_scales_the_color_and_keeps_the_lightness(
    run_colorize: Run, pretrained: Path, tmp_path: Path
) -> None:
    gray = np.clip(picture(3, 64, 96).mean(axis=2), 80, 170).astype(np.uint8)  # where no color leaves sRGB
    photo = write(tmp_path / "it.png", gray)
    found = {}
    for value in ("0", "0.5", "1", "1.5", "auto", None):
        flags = [] if value is None else ["--saturation", value]
        assert run_colorize(photo, "--checkpoint", pretrained, "--overwrite", *flags).code == 0
        found[value] = ab_of(tmp_path / "it_color.png")
        lab = oracles.lab(np.asarray(Image.open(tmp_path / "it_color.png")))
        assert np.abs(lab[..., 0] / 100 - srgb_to_lightness(gray)).max() < 0.01
    assert np.array_equal(found["auto"], found["1.5"]) and np.array_equal(found[None], found["1.5"])
    assert np.abs(found["0"]).max() < 0.1
    assert np.abs(found["1"]).mean() > 2
    assert np.abs(found["0.5"] - found["1"] / 2).mean() < 0.5
    model = colorize.load(pretrained)
    for factor, key in ((None, "auto"), (0.5, "0.5")):
        assert np.abs(oracles.lab(colorize.colorize(model, gray, factor))[..., 1:] - found[key]).max() < 0.1


@pytest.mark.parametrize("value", ["-1", "-0.1", "4.1", "nan", "inf", "much", ""])
def test_an_impossible_saturation(run_colorize: Run, tmp_path: Path, value: str) -> None:
    photo = write(tmp_path / "it.png", picture(0))
    result = run_colorize(photo, f"--saturation={value}")
    assert result.code == 2
    assert "--saturation" in result.lines[-1] and "from 0 to 4" in result.lines[-1]
    assert not (tmp_path / "it_color.png").exists()


def test_auto_gives_the_validation_images_their_mean_chroma(sweep: Path, data: LabDataModule) -> None:
    paths = sorted((sweep / "checkpoints").glob("colorizer_*/*.pt"))
    for path in paths:
        network = colorize.load(path)
        chroma = np.zeros(2)
        for index in range(len(data.val)):
            lightness, ab = (tensor.numpy() for tensor in data.val[index])
            chroma += np.hypot(*ab).mean(), np.hypot(*network.predict(lightness[0])).mean()
        assert network.saturation == pytest.approx(min(chroma[0] / chroma[1], 2), rel=1e-3)
    assert paths


@pytest.mark.parametrize("metrics", ["none", {"saturation": "much"}, {"saturation": float("nan"), "train_mean_a": []}])
def test_metrics_that_are_not_numbers_count_as_missing(tmp_path: Path, metrics: object) -> None:
    path = save(Colorizer(4, "tanh"), tmp_path / "odd.pt")
    checkpoint.save(torch.load(path, weights_only=True) | {"metrics": metrics}, path)
    model = colorize.load(path)
    assert (model.saturation, model.mean_ab) == (1, None)
    assert colorize.colorize(model, picture(0, 20, 20)).shape == (20, 20, 3)


def test_the_network_that_is_taken_without_a_checkpoint(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "it.png", picture(0, 40, 40))
    torch.manual_seed(0)
    network = Colorizer(4, "tanh")
    best = tmp_path / "checkpoints/best_colorizer.pt"

    def taken() -> str:
        assert colorize.main(["it.png", "--overwrite"]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("with "))

    monkeypatch.setattr(Constants, "PRETRAINED", pretrained)
    assert "photos.pt (" in taken()
    for own, expected in ((True, "best_colorizer.pt ("), (False, "photos.pt (")):
        save(network, best, own_photographs=own)
        line = taken()
        assert expected in line and "--checkpoint" in line
    monkeypatch.setattr(Constants, "PRETRAINED", tmp_path / "missing.pt")
    assert "best_colorizer.pt (" in taken()  # it learned from the built-in photographs
    best.unlink()
    assert colorize.main(["it.png", "--overwrite"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "missing.pt" in line and "pretrained.md" in line and "main.py" in line


@pytest.mark.parametrize(("width", "height"), [(100, 100), (300, 100), (10, 400)])
def test_the_margin_mirrors_the_photograph_on_all_sides(width: int, height: int) -> None:
    photo = Photo(Image.fromarray(picture(1, height, width)), None)
    plain, seen = model_input(photo), model_input(photo, 16)
    rows, columns = seen.valid_region
    inside = seen.lightness[rows, columns]
    whole = seen.lightness.shape
    assert whole == tuple(32 * -(-(length + 32) // 32) for length in inside.shape)
    assert np.array_equal(inside, plain.lightness[plain.valid_region])
    assert min(rows.start, columns.start, whole[0] - rows.stop, whole[1] - columns.stop) >= 16
    padding = [(place.start, length - place.stop) for place, length in zip((rows, columns), whole)]
    assert np.array_equal(seen.lightness, np.pad(inside, padding, mode="symmetric"))


def test_a_mirrored_photograph_has_mirrored_colors(pretrained: Path) -> None:
    model = colorize.load(pretrained)
    assert (model.margin, model.side, model.average_flipped) == (16, 256, True)
    seen = model_input(Photo(Image.fromarray(picture(2, 90, 128)), None), model.margin, model.side).lightness
    ab = model.predict(seen)
    assert np.abs(ab).max() > 1
    np.testing.assert_allclose(model.predict(np.ascontiguousarray(seen[:, ::-1]))[..., ::-1], ab, atol=1e-3)
    np.testing.assert_allclose(predict_ab(model, np.stack([seen, seen]), 2.0)[1], 2 * ab, atol=1e-3)
    clips = model.for_clips()
    assert (clips.margin, clips.side) == (8, 128)
    one_sided = [clips.predict(image) for image in (seen, np.ascontiguousarray(seen[:, ::-1]))]
    np.testing.assert_allclose((one_sided[0] + one_sided[1][..., ::-1]) / 2, ab, atol=1e-3)


@torch.inference_mode()
def test_folded_batch_norms_do_not_change_the_prediction() -> None:
    predictor = Predictor.load(Constants.PRETRAINED, torch.device("cpu"))
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in predictor.network.modules())
    network, _ = load_colorizer(Constants.PRETRAINED)
    lightness = torch.from_numpy(np.stack([srgb_to_lightness(picture(n, 96, 160)) for n in range(2)])[:, None])
    torch.testing.assert_close(predictor.forward(lightness), network.eval()(lightness) * 128, rtol=0, atol=1e-3)


def test_export_in_half_precision(run_colorize: Run, pretrained: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.pt"
    assert run_colorize("--export", target, "--checkpoint", pretrained).code == 0
    assert target.stat().st_size < 0.55 * pretrained.stat().st_size
    seen = np.random.default_rng(0).random((160, 160), np.float32)
    before, after = (Predictor.load(path, torch.device("cpu")) for path in (pretrained, target))
    np.testing.assert_allclose(after.predict(seen), before.predict(seen), atol=0.1)
    assert (after.saturation, after.margin) == (1.5, 16)
