"""A training step as one CUDA graph: a small network is all launch overhead, and a replay launches once."""

from collections.abc import Callable

import torch
from torch import Tensor

_EAGER_STEPS = 3  # before the capture, so that every library has chosen its algorithm and has its memory


class CudaGraphStep:
    """Calls `step(*inputs)` through a CUDA graph for every call whose inputs have the shapes of the first.

    The first few calls run as they are, on a stream of their own as a capture needs it; then one is captured
    and from there on replayed. Inputs of another shape (the last batch of an epoch) always run as they are.
    `step` must write its results in place and must not synchronize.
    """

    def __init__(self, step: Callable[..., None]) -> None:
        self.step = step
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.stream = torch.cuda.Stream()

    def __call__(self, *inputs: Tensor) -> None:
        if not self.inputs:
            self.inputs = tuple(tensor.clone() for tensor in inputs)
        if [tensor.shape for tensor in inputs] != [tensor.shape for tensor in self.inputs]:
            self.step(*inputs)
        elif self.calls < _EAGER_STEPS:
            self.calls += 1
            self._beside(inputs)
        else:
            for static, tensor in zip(self.inputs, inputs):
                static.copy_(tensor)
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):  # records, and runs nothing
                    self.step(*self.inputs)
            self.graph.replay()

    def _beside(self, inputs: tuple[Tensor, ...]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.step(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
