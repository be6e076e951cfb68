"""The two networks: shapes, widths, ranges, and that they can learn."""

import numpy as np
import oracles
import pytest
import torch
from helpers import TASK_NAMES, TASKS, picture
from torch import Tensor, nn

from Colorizer import Colorizer
from deepcolor.training.layers import DownConv, UpConv
from Regressor import Regressor

DEEP = (32, 64, 128, 256, 256, 512)
WIDTHS = [(3, (3,) * 6), (9, (9,) * 6), ((2, 3, 4, 5, 6, 7), (2, 3, 4, 5, 6, 7)), (DEEP, DEEP)]
IMPOSSIBLE = [0, -1, (), (3,), (3, 4), (3,) * 5, (3,) * 7, (3, 3, 3, 3, 3, 0), (3.0,) * 6, "3", 2.5]


def build(network: str, activation: str, feature_maps: int | tuple[int, ...] = 3) -> nn.Module:
    torch.manual_seed(0)
    return Regressor(feature_maps) if network == "regressor" else Colorizer(feature_maps, activation)


def outputs(model: nn.Module, kind: type[nn.Module], lightness: Tensor) -> list[tuple[int, ...]]:
    """The shapes that the layers of one kind put out, in the order in which they run."""
    shapes: list[tuple[int, ...]] = []
    layers = [layer for layer in model.modules() if isinstance(layer, kind)]
    hooks = [layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:]))) for layer in layers]
    model(lightness)
    for hook in hooks:
        hook.remove()
    return shapes


@pytest.mark.parametrize(("feature_maps", "widths"), WIDTHS)
def test_every_convolution_down_halves_the_image(feature_maps: object, widths: tuple[int, ...]) -> None:
    shapes = outputs(Regressor(feature_maps), nn.Conv2d, torch.rand(2, 1, 128, 128))
    assert shapes == [(w, side, side) for w, side in zip(widths, (64, 32, 16, 8, 4, 2))]


@pytest.mark.parametrize(("feature_maps", "widths"), WIDTHS)
def test_the_way_up_doubles_the_image_and_mirrors_the_widths(feature_maps: object, widths: tuple[int, ...]) -> None:
    shapes = outputs(Colorizer(feature_maps), nn.ConvTranspose2d, torch.rand(2, 1, 128, 128))
    assert shapes == [(w, side, side) for w, side in zip((*widths[-2::-1], 2), (4, 8, 16, 32, 64, 128))]


@pytest.mark.parametrize("feature_maps", [3, DEEP])
def test_outputs_have_the_promised_shapes(feature_maps: object) -> None:
    lightness = torch.rand(3, 1, 128, 128)
    regressor = Regressor(feature_maps)
    assert regressor(lightness).shape == (3, 2)
    assert regressor.features(lightness).shape == (3, 3 if feature_maps == 3 else 512, 2, 2)
    assert Colorizer(feature_maps, "tanh")(lightness).shape == (3, 2, 128, 128)


@pytest.mark.parametrize(("network", "activation"), TASKS, ids=TASK_NAMES)
def test_the_layers_are_those_of_the_report(network: str, activation: str) -> None:
    last = {"": [nn.Linear], "sigmoid": [nn.Sigmoid], "tanh": [nn.Tanh]}[activation]
    leaves = [m for m in build(network, activation).modules() if not list(m.children())]
    body = [m for m in leaves if network == "regressor" or not isinstance(m, nn.Linear)]
    expected = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 6
    if network == "colorizer":
        expected += [nn.ConvTranspose2d, nn.BatchNorm2d, nn.LeakyReLU] * 5 + [nn.ConvTranspose2d]
    assert len(body) == len(expected + last)
    assert all(isinstance(layer, kind) for layer, kind in zip(body, expected + last)), body
    convolutions = [m for m in leaves if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert {(m.kernel_size, m.stride, m.padding) for m in convolutions} == {((4, 4), (2, 2), (1, 1))}


def test_the_head_of_the_regressor_reads_the_flattened_maps() -> None:
    heads = [m for m in Regressor((3, 4, 5, 6, 7, 8)).modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in heads] == [(8 * 2 * 2, 2)]


def test_the_regressor_is_linear_in_its_features() -> None:
    model = build("regressor", "")
    (head,) = (m for m in model.modules() if isinstance(m, nn.Linear))
    nn.init.normal_(head.weight, std=100)
    lightness = torch.rand(4, 1, 128, 128)
    expected = model.features(lightness).flatten(1) @ head.weight.T + head.bias
    torch.testing.assert_close(model(lightness), expected)
    assert expected.abs().max() > 1


def test_the_feature_extractor_of_the_colorizer_is_a_regressor() -> None:
    model = Colorizer(3, "sigmoid")
    extractors = [m for m in model.children() if isinstance(m, Regressor)]
    assert len(extractors) == 1
    seen: list[Tensor] = []
    bottleneck = next(m for m in model.modules() if isinstance(m, nn.ConvTranspose2d))
    bottleneck.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    lightness = torch.rand(2, 1, 128, 128)
    model.eval()(lightness)
    assert torch.equal(seen[0], extractors[0].features(lightness))


@pytest.mark.parametrize(("activation", "low"), [("sigmoid", 0.0), ("tanh", -1.0)])
def test_the_last_activation_bounds_the_output_and_fills_its_range(activation: str, low: float) -> None:
    model = build("colorizer", activation)
    last = [m for m in model.modules() if isinstance(m, nn.ConvTranspose2d)][-1]
    nn.init.normal_(last.weight, std=100)
    output = model(torch.rand(4, 1, 128, 128))
    assert low <= output.min() < low + 0.01
    assert 0.99 < output.max() <= 1


def test_an_image_in_eval_mode_does_not_see_the_others_of_its_batch() -> None:
    model = build("colorizer", "sigmoid").eval()
    lightness = torch.rand(5, 1, 128, 128)
    torch.testing.assert_close(model(lightness)[3:4], model(lightness[3:4]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("feature_maps", IMPOSSIBLE, ids=repr)
@pytest.mark.parametrize("network", [Regressor, Colorizer])
def test_impossible_feature_maps_are_a_value_error(network: type[nn.Module], feature_maps: object) -> None:
    with pytest.raises(ValueError, match="feature maps"):
        network(feature_maps)


@pytest.mark.parametrize("activation", ["relu6", "", "Sigmoid"])
def test_an_unknown_activation_is_a_value_error(activation: str) -> None:
    with pytest.raises(ValueError, match="sigmoid, tanh"):
        Colorizer(3, activation)


@pytest.mark.parametrize(("network", "activation"), TASKS, ids=TASK_NAMES)
def test_a_network_overfits_one_batch(network: str, activation: str) -> None:
    lab = np.stack([oracles.lab(picture(seed)) for seed in range(4)]).transpose(0, 3, 1, 2)
    lightness = torch.from_numpy(lab[:, :1] / 100).float()
    target = torch.from_numpy(lab[:, 1:] / 128 if activation == "tanh" else (lab[:, 1:] + 128) / 255).float()
    if network == "regressor":
        target = target.mean(dim=(2, 3))
    mean_color = (target - target.transpose(0, 1).flatten(1).mean(1).view(-1, *[1] * (target.ndim - 2))).square()
    model = build(network, activation, 12)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(500):
        loss = nn.functional.mse_loss(model(lightness), target)
        if loss.item() < 0.1 * mean_color.mean().item():
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    else:
        pytest.fail(f"after 500 steps the loss is still {loss.item()}, that of the mean color {mean_color.mean()}")


@pytest.mark.parametrize("maps", [3, 8, 9])
@pytest.mark.parametrize(("kind", "reference"), [(UpConv, nn.ConvTranspose2d), (DownConv, nn.Conv2d)])
def test_the_convolutions_are_pytorch_s_own(kind: type, reference: type, maps: int) -> None:
    """The result and every gradient, at sizes at which another form is used and at which it is not."""
    for side in (2, 16, 32, 64):
        torch.manual_seed(side)
        ours = kind(maps, maps)
        theirs = reference(maps, maps, 4, 2, 1, bias=ours.bias is not None)
        theirs.load_state_dict(ours.state_dict())
        image = torch.randn(2, maps, side, side, requires_grad=True)
        results = []
        for network in (ours, theirs):
            output = network(image)
            loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
            results.append([output, *torch.autograd.grad(loss, [image, *network.parameters()])])
        for mine, right in zip(*results):
            assert torch.allclose(mine, right, rtol=1e-4, atol=1e-4 * right.abs().max().item())


@pytest.mark.parametrize(("kind", "reference"), [(UpConv, nn.ConvTranspose2d), (DownConv, nn.Conv2d)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_deep_convolutions_are_pytorch_s_own_in_bf16(kind: type, reference: type, layout: torch.memory_format) -> None:
    """Not further from the float32 results than PyTorch's own bf16 ones, where another form is used and where not."""
    for side in (1, 2, 3, 4, 8) if kind is UpConv else (2, 4, 6, 8):
        torch.manual_seed(side)
        ours = kind(128, 160, bias=False) if kind is UpConv else kind(128, 160)
        ours.to(memory_format=layout)
        theirs = reference(128, 160, 4, 2, 1, bias=False)
        theirs.load_state_dict(ours.state_dict())
        image = torch.randn(2, 128, side, side).contiguous(memory_format=layout).requires_grad_()
        results = []
        for network, half in ((ours, True), (theirs, True), (theirs, False)):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                output = network(image)
            loss = (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
            results.append([output.float(), *torch.autograd.grad(loss, [image, *network.parameters()])])
        for mine, right, exact in zip(*results):
            size, error = exact.abs().max(), (right - exact).abs().max()
            assert (mine - exact).abs().max() <= 2 * error + 1e-3 * size
            assert error < 0.05 * size
