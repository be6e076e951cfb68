"""The optimizer of a training run: its choice, its learning rate, and restoring its state."""

import math

import torch
from torch import Tensor, nn

import Constants
from deepcolor.training.config import TrainConfig


def build_optimizer(config: TrainConfig, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """Returns the optimizer that `config.optimizer` names, in PyTorch's fused implementation.

    It updates all parameters that require a gradient. Those of a pretrained encoder form a group of their own, whose
    learning rate is multiplied by `config.encoder_lr`.
    """
    trainable = {name: each for name, each in model.named_parameters() if each.requires_grad}
    encoder = [each for name, each in trainable.items() if name.startswith("mobilenet.")]
    others = [each for name, each in trainable.items() if not name.startswith("mobilenet.")]
    groups = [{"params": others, "lr_factor": 1.0}]
    if encoder:
        groups.append({"params": encoder, "lr_factor": config.encoder_lr})
    on_gpu = device.type == "cuda"
    for group in groups:  # a captured CUDA graph reads the learning rate from the device
        group["lr"] = torch.tensor(float(config.lr), device=device) if on_gpu else config.lr
    common = {"weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=Constants.SGD_MOMENTUM, **common)
    adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return adam(groups, capturable=on_gpu, **common)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Returns the learning rate of a step: linear warm-up, then constant or half a cosine down to zero."""
    rate = config.lr * min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * step / total_steps)) / 2
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group to `rate`, times the factor of the group."""
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(rate * group["lr_factor"])  # in place, because a CUDA graph holds its address
        else:
            group["lr"] = rate * group["lr_factor"]


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
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
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
    model = nn.Linear(1, 1, bias=False)
    parameter = model.weight
    parameter.grad = torch.zeros(1, 1)
    optimizer = build_optimizer(config, model, torch.device("cpu"))
    optimizer.step()
    return {name: value.shape == parameter.shape for name, value in optimizer.state[parameter].items()}
