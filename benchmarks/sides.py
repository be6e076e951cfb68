"""The two sides that throughput.py compares: processes that measure the same things in turn."""

import contextlib
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection

from common import clock, per_call

from utils import UserError

_STEP_BATCHES = 32  # held in memory to measure the step alone


class SideProcess:
    """What a process of one side can be asked.

    Subclasses define:
        device: of the network.
        steps: in an epoch.
        warm_up(network, seconds): starts the training of a network; returns the approximate seconds of an epoch.
        train_epoch(): trains on the training images, and computes the mse on the validation images.
        batches(augment): returns the training batches (L, ab) of an epoch.
        step(lightness, ab): trains on a batch.
        validate(): computes the mse on the validation images.
    """

    def train_epochs(self, epochs: int) -> tuple[float, float]:
        """Returns the start and the end of the training."""
        start = clock(self.device)
        for _ in range(epochs):
            self.train_epoch()
        return start, clock(self.device)

    def parts(self, seconds: float) -> dict[str, float]:
        """Returns the seconds per epoch of each part of an epoch, measured alone for at least `seconds`."""
        measure = partial(per_call, device=self.device, seconds=seconds)
        unaugmented = measure(lambda: [None for _ in self.batches(augment=False)])
        augmented = measure(lambda: [None for _ in self.batches(augment=True)])
        held = [[tensor.to(self.device) for tensor in each] for each in islice(self.batches(True), _STEP_BATCHES)]
        return {
            "loader": unaugmented,
            "augmentation": augmented - unaugmented,
            "step": measure(lambda: [self.step(*batch) for batch in held]) * self.steps / len(held),
            "validation": measure(self.validate),
        }


class Side:
    """The processes of one side, as seen from the process that compares. A context manager.

    Args:
        name: of the side.
        precision: of its training step, "fp32" or "bf16".
        factories: each is called in a process of its own, and returns a SideProcess.
    """

    def __init__(self, name: str, precision: str, factories: Sequence[Callable[[], SideProcess]]) -> None:
        self.name = name
        self.precision = precision
        context = get_context("spawn")
        pipes = [context.Pipe() for _ in factories]
        self.connections = [ours for ours, _ in pipes]
        # Not daemons: a daemon cannot have child processes, which a DataLoader starts.
        self.processes = [context.Process(target=_serve, args=(p[1], make)) for p, make in zip(pipes, factories)]
        for process, (_, theirs) in zip(self.processes, pipes):
            process.start()
            theirs.close()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(10)
            process.terminate()
            process.join()

    def ask(self, method: str, *arguments: object) -> list:
        """Calls a method in all processes at the same time and returns what each returns. Raises UserError."""
        for connection in self.connections:
            connection.send((method, *arguments))
        try:
            return [connection.recv() for connection in self.connections]
        except (EOFError, ConnectionResetError):
            raise UserError(f"a process of the {self.name} side died") from None

    def epoch_seconds(self, epochs: int) -> float:
        """Returns the seconds per epoch, from the start of the first process to the end of the last one."""
        starts, ends = zip(*self.ask("train_epochs", epochs))
        return (max(ends) - min(starts)) / epochs

    def parts(self, seconds: float) -> dict[str, float]:
        """Returns `SideProcess.parts`, the mean over the processes."""
        answers = self.ask("parts", seconds)
        return {part: statistics.fmean(answer[part] for answer in answers) for part in answers[0]}


def _serve(connection: Connection, factory: Callable[[], SideProcess]) -> None:
    """Calls the methods that the other end of the connection asks for, until it is closed."""
    served = factory()
    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError, KeyboardInterrupt):
        while True:
            method, *arguments = connection.recv()
            connection.send(getattr(served, method)(*arguments))
