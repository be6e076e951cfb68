"""CUDA graphs: a small network spends its time launching kernels, and a graph launches all of them at once."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

_EAGER_CALLS = 3  # before the capture, so that every library has chosen its algorithms and allocated its memory


class CudaGraphStep:
    """Calls `step(*inputs)` by replaying a CUDA graph, one for each combination of input shapes.

    The first calls with the same shapes run eagerly, the next one is captured, and all later ones are replayed.

    Args:
        step: writes its results in place and does not synchronize with the GPU.
    """

    CALLS_BEFORE_REPLAY = _EAGER_CALLS + 1

    def __init__(self, step: Callable[..., None]) -> None:
        self.step = step
        self.stream = torch.cuda.Stream()
        self.eager_calls: Counter[tuple[torch.Size, ...]] = Counter()
        self.graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor) -> None:
        shapes = tuple(tensor.shape for tensor in inputs)
        if self.eager_calls[shapes] < _EAGER_CALLS:
            self.eager_calls[shapes] += 1
            self._run_eagerly(inputs)
            return
        if shapes not in self.graphs:
            self.graphs[shapes] = self._capture(inputs)
        graph, static_inputs = self.graphs[shapes]
        for static, tensor in zip(static_inputs, inputs):
            static.copy_(tensor)
        graph.replay()

    def _run_eagerly(self, inputs: tuple[Tensor, ...]) -> None:
        """Runs the step on a side stream, which PyTorch requires before a capture."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.step(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)

    def _capture(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        """Returns the graph of the step and the tensors from which it reads its inputs. Does not run the step."""
        static_inputs = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(*static_inputs)
        return graph, static_inputs
