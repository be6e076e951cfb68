"""The optimizer of a training run: its choice, its learning rate, and restoring its state."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import Constants
from deepcolor.training.config import TrainConfig


def build_optimizer(
    config: TrainConfig, parameters: Sequence[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """Returns the optimizer that `config.optimizer` names, in PyTorch's fused implementation."""
    on_gpu = device.type == "cuda"
    # A captured CUDA graph reads the learning rate from the device.
    rate = torch.tensor(float(config.lr), device=device) if on_gpu else config.lr
    common = {"lr": rate, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=Constants.SGD_MOMENTUM, **common)
    adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return adam(parameters, capturable=on_gpu, **common)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Returns the learning rate of a step: linear warm-up, then constant or half a cosine down to zero."""
    rate = config.lr * min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * step / total_steps)) / 2
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(rate)  # in place, because a CUDA graph holds its address
        else:
            group["lr"] = rate


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]], config: TrainConfig, stepped: bool
) -> None:
    """Restores the saved per-parameter state, and nothing else that a file may contain.

    Args:
        optimizer: what `build_optimizer(config, …)` returned.
        state: the "state" of a saved `state_dict()`.
        config: of the training run.
        stepped: whether a step was taken before saving; before the first step there is no state.

    Raises:
        ValueError: the state is not that of these parameters. PyTorch would not notice until it is used.
    """
    parameters = optimizer.param_groups[0]["params"]
    if state.keys() != (set(range(len(parameters))) if stepped else set()):
        raise ValueError("not the optimizer state of these parameters")
    expected = _state_shapes(config)
    for number, values in state.items():
        shapes = {name: value.shape for name, value in values.items()}
        wanted = {name: parameters[number].shape if full else torch.Size() for name, full in expected.items()}
        if shapes != wanted:
            raise ValueError(f"optimizer state of other shapes: {shapes}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _state_shapes(config: TrainConfig) -> dict[str, bool]:
    """Returns the names of an optimizer's state after a step, and whether each has the shape of its parameter."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimizer = build_optimizer(config, [parameter], torch.device("cpu"))
    optimizer.step()
    return {name: value.shape == parameter.shape for name, value in optimizer.state[parameter].items()}
