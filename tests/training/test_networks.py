"""The networks: layers, shapes, dropout, learning; `optimize_for_cpu` against PyTorch's own convolutions."""

import copy
from collections.abc import Sequence

import numpy as np
import oracles
import pytest
import torch
from helpers import TASK_NAMES, TASKS, picture
from torch import Tensor, nn

import Constants
from Colorizer import Colorizer
from deepcolor.training.layers import DownConv, UpConv, optimize_for_cpu
from Regressor import Regressor

DEEP = Constants.NAMED_FEATURE_MAPS["deep"]
ASCENDING = (2, 3, 4, 5, 6, 7)
INVALID_FEATURE_MAPS = [0, -1, (), (3,), (3, 4), (3,) * 5, (3,) * 7, (3, 3, 3, 3, 3, 0), (3.0,) * 6, "3", 2.5]

each_task = pytest.mark.parametrize(("network", "activation"), TASKS, ids=TASK_NAMES)


def build(network: str, activation: str, feature_maps: int | Sequence[int] = 3, **options: float) -> nn.Module:
    torch.manual_seed(0)
    return (
        Regressor(feature_maps, **options) if network == "regressor" else Colorizer(feature_maps, activation, **options)
    )


def layers(model: nn.Module, *kinds: type[nn.Module]) -> list[nn.Module]:
    """Returns the layers of these kinds, or all layers, in the order of construction."""
    return [module for module in model.modules() if not list(module.children()) and isinstance(module, kinds or object)]


def output_shapes(model: nn.Module, lightness: Tensor) -> list[tuple[int, ...]]:
    """Returns the shapes (C,H,W) of the outputs of all convolutions, in the order of their calls."""
    shapes: list[tuple[int, ...]] = []
    for layer in layers(model, nn.Conv2d, nn.ConvTranspose2d):
        layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    model(lightness)
    return shapes


def decoder_input(model: Colorizer, lightness: Tensor) -> Tensor:
    seen: list[Tensor] = []
    layers(model, nn.ConvTranspose2d)[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(lightness)
    return seen[0]


@pytest.mark.parametrize("feature_maps", [3, 9, ASCENDING, DEEP])
def test_shapes(feature_maps: int | tuple[int, ...]) -> None:
    widths = (feature_maps,) * 6 if isinstance(feature_maps, int) else feature_maps
    lightness = torch.rand(2, 1, 128, 128)
    regressor, colorizer = Regressor(feature_maps), Colorizer(feature_maps, "tanh")
    assert regressor(lightness).shape == (2, 2)
    assert regressor.features(lightness).shape == (2, widths[-1], 2, 2)
    assert colorizer(lightness).shape == (2, 2, 128, 128)
    down = [(width, side, side) for width, side in zip(widths, (64, 32, 16, 8, 4, 2))]
    up = [(width, side, side) for width, side in zip((*widths[-2::-1], 2), (4, 8, 16, 32, 64, 128))]
    assert output_shapes(regressor, lightness) == down
    assert output_shapes(colorizer, lightness) == down + up


@each_task
def test_layers_are_plain_pytorch(network: str, activation: str) -> None:
    """Also checks that the parameters have the names that are stored in checkpoints."""
    expected = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 6 + [nn.Linear]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = [f"down.{i}.{name}" for i in range(6) for name in ("0.weight", *(f"1.{n}" for n in norm))]
    names += ["head.weight", "head.bias"]
    if network == "colorizer":
        expected += [nn.ConvTranspose2d, nn.BatchNorm2d, nn.LeakyReLU] * 5 + [nn.ConvTranspose2d]
        expected += [{"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}[activation]]
        names = [f"regressor.{name}" for name in names]
        names += [f"up.{i}.{name}" for i in range(5) for name in ("0.weight", *(f"1.{n}" for n in norm))]
        names += ["up.5.weight", "up.5.bias"]
    model = build(network, activation)
    assert [type(layer) for layer in layers(model)] == expected
    assert list(model.state_dict()) == names
    for layer in layers(model, nn.Conv2d, nn.ConvTranspose2d):
        assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))


@pytest.mark.parametrize(
    ("feature_maps", "regressor", "colorizer"), [(3, 830, 1678), (ASCENDING, 1904, 3770), (DEEP, 3_840_962, 7_677_316)]
)
def test_parameter_counts(feature_maps: int | tuple[int, ...], regressor: int, colorizer: int) -> None:
    for model, count in ((Regressor(feature_maps), regressor), (Colorizer(feature_maps), colorizer)):
        assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_regressor_is_linear_in_its_features() -> None:
    model = build("regressor", "", (3, 4, 5, 6, 7, 8))
    lightness = torch.rand(4, 1, 128, 128)
    torch.testing.assert_close(model(lightness), torch.full((4, 2), 128 / 255))  # gray, before training
    (head,) = layers(model, nn.Linear)
    assert (head.in_features, head.out_features) == (8 * 2 * 2, 2)
    nn.init.normal_(head.weight, std=100)
    expected = model.features(lightness).flatten(1) @ head.weight.T + head.bias
    torch.testing.assert_close(model(lightness), expected)
    assert expected.abs().max() > 1


def test_encoder_of_the_colorizer_is_a_regressor() -> None:
    model = Colorizer(3, "sigmoid").eval()
    (encoder,) = (module for module in model.children() if isinstance(module, Regressor))
    lightness = torch.rand(2, 1, 128, 128)
    assert torch.equal(decoder_input(model, lightness), encoder.features(lightness))


@pytest.mark.parametrize(("activation", "low"), [("sigmoid", 0.0), ("tanh", -1.0)])
def test_activation_bounds_the_output_and_fills_its_range(activation: str, low: float) -> None:
    model = build("colorizer", activation)
    nn.init.normal_(layers(model, nn.ConvTranspose2d)[-1].weight, std=100)
    output = model(torch.rand(4, 1, 128, 128))
    assert low <= output.min() < low + 0.01
    assert 0.99 < output.max() <= 1


def test_output_in_eval_mode_does_not_depend_on_the_batch() -> None:
    model = build("colorizer", "sigmoid").eval()
    lightness = torch.rand(5, 1, 128, 128)
    torch.testing.assert_close(model(lightness)[3:4], model(lightness[3:4]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("network", [Regressor, Colorizer])
@pytest.mark.parametrize("feature_maps", INVALID_FEATURE_MAPS, ids=repr)
def test_invalid_feature_maps_raise(network: type[nn.Module], feature_maps: object) -> None:
    with pytest.raises(ValueError, match="feature_maps"):
        network(feature_maps)


@pytest.mark.parametrize("activation", ["relu6", "", "Sigmoid"])
def test_unknown_activations_raise(activation: str) -> None:
    with pytest.raises(ValueError, match="sigmoid, tanh"):
        Colorizer(3, activation)


@pytest.mark.parametrize("network", [Regressor, Colorizer])
@pytest.mark.parametrize("dropout", [-0.1, 1.1])
def test_invalid_dropout_raises(network: type[nn.Module], dropout: float) -> None:
    with pytest.raises(ValueError, match="dropout"):
        network(3, dropout=dropout)


@each_task
def test_dropout_changes_neither_weights_nor_evaluation(network: str, activation: str) -> None:
    default, zero, half = (build(network, activation, **options) for options in ({}, {"dropout": 0}, {"dropout": 0.5}))
    assert [type(layer) for layer in layers(zero)] == [type(layer) for layer in layers(default)]
    lightness = torch.rand(4, 1, 128, 128)
    for model in (zero, half):
        torch.testing.assert_close(model.state_dict(), default.state_dict(), rtol=0, atol=0)
        assert torch.equal(model.eval()(lightness), default.eval()(lightness))
    assert torch.equal(zero.train()(lightness), default.train()(lightness))


def test_dropout_zeroes_whole_feature_maps_of_the_bottleneck() -> None:
    lightness = torch.rand(4, 1, 128, 128)
    full = build("regressor", "", 16).features(lightness)
    regressor, colorizer = build("regressor", "", 16, dropout=0.5), build("colorizer", "tanh", 16, dropout=0.5)
    for dropped in (regressor.features(lightness), decoder_input(colorizer, lightness)):
        kept = (dropped != 0).any(dim=(2, 3), keepdim=True)
        assert 0.2 < kept.float().mean() < 0.8
        torch.testing.assert_close(dropped, full * 2 * kept)


@each_task
def test_a_network_overfits_one_batch(network: str, activation: str) -> None:
    lab = np.stack([oracles.lab(picture(seed)) for seed in range(2)]).transpose(0, 3, 1, 2)
    lightness = torch.from_numpy(lab[:, :1] / 100).float()
    target = torch.from_numpy(lab[:, 1:] / 128 if activation == "tanh" else (lab[:, 1:] + 128) / 255).float()
    if network == "regressor":
        target = target.mean(dim=(2, 3))
    variance = target.transpose(0, 1).flatten(1).var(dim=1, correction=0).mean().item()
    model = optimize_for_cpu(build(network, activation, 12))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(500):
        loss = nn.functional.mse_loss(model(lightness), target)
        if loss.item() < 0.1 * variance:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    else:
        pytest.fail(f"the loss after 500 steps is {loss.item()}; that of the mean color is {variance}")


@pytest.mark.parametrize("feature_maps", [3, 16, DEEP])
@each_task
def test_optimize_for_cpu_keeps_the_parameters(network: str, activation: str, feature_maps: object) -> None:
    plain = build(network, activation, feature_maps)
    model = copy.deepcopy(plain)
    parameters = dict(model.named_parameters())
    assert optimize_for_cpu(model) is model
    assert [type(layer) for layer in layers(model, nn.Conv2d, nn.ConvTranspose2d)] == (
        [DownConv] * 6 + [UpConv] * 6 * (network == "colorizer")
    )
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    lightness = torch.rand(2, 1, 128, 128)
    torch.testing.assert_close(model(lightness), plain(lightness), rtol=1e-4, atol=1e-5)


def test_optimize_for_cpu_leaves_other_convolutions_alone() -> None:
    others = [nn.Conv2d(4, 4, 4, 2, 1), nn.Conv2d(4, 4, 3, 2, 1, bias=False), nn.ConvTranspose2d(4, 4, 4, 4, 1)]
    others += [kind(4, 4, 4, 2, 1, groups=2, bias=False) for kind in (nn.Conv2d, nn.ConvTranspose2d)]
    others += [nn.Conv2d(4, 4, 4, 2, 1, bias=False, padding_mode="reflect")]
    others += [nn.ConvTranspose2d(4, 4, 4, 2, 1, output_padding=1)]
    types = [type(layer) for layer in others]
    assert [type(layer) for layer in optimize_for_cpu(nn.Sequential(*others))] == types


def output_and_gradients(layer: nn.Module, image: Tensor, bf16: bool = False) -> list[Tensor]:
    image = image.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = layer(image)
    loss = (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    return [output.float(), *torch.autograd.grad(loss, [image, *layer.parameters()])]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("maps", "bf16"), [(3, False), (8, False), (9, False), (3, True), (128, True)])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_optimized_layers_are_as_exact_as_pytorch(
    kind: type[nn.Module], maps: int, bf16: bool, layout: torch.memory_format
) -> None:
    """Outputs and gradients, at sizes on both sides of every limit, with different numbers of input and output maps."""
    for bias in (False, True):
        for side in (2, 4, 6) if maps == 128 else (2, 16, 32, 64):
            torch.manual_seed(side)
            plain = kind(maps, maps - 1 if maps < 128 else 130, 4, 2, 1, bias=bias).to(memory_format=layout)
            optimized = optimize_for_cpu(nn.Sequential(copy.deepcopy(plain)))
            image = torch.randn(2, maps, side, side).contiguous(memory_format=layout)
            exact = output_and_gradients(copy.deepcopy(plain).double(), image.double())
            ours = output_and_gradients(optimized, image, bf16)
            theirs = output_and_gradients(plain, image, bf16)
            for right, mine, usual in zip(exact, ours, theirs, strict=True):
                size, error = right.abs().max(), (usual - right).abs().max()
                assert error < (0.05 if bf16 else 1e-4) * size
                assert (mine - right).abs().max() <= 2 * error + (1e-3 if bf16 else 1e-6) * size
