"""The package at work as a sweep has it at work, to be measured: as many training runs at once as it would choose."""

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import wait

import common
import torch

from deepcolor.data.batches import BatchSpec, TrainingBatches, loader
from deepcolor.sweep.sweep import Sweep
from deepcolor.sweep.workers import Worker
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.config import TrainingRun
from deepcolor.training.trainer import Progress, Trainer

_PREFETCHED = 32  # batches held to measure the step alone
_MATRIX = {"cpu": 2048, "cuda": 8192}  # rows of the square matrices whose product gives the peak


class Package:
    """The package's own workers, which train nothing but what they are asked to. A context manager."""

    name = "package"

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.at_once = sweep.jobs(None, math.inf)
        self.workers = [Worker(Measured(sweep)) for _ in range(self.at_once)]

    def __enter__(self) -> "Package":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            worker.hand(None)
            worker.process.join(5)
            worker.process.kill()
            worker.process.join()

    def _ask(self, *order: object, workers: int | None = None) -> list:
        """What each worker answers to the same order, which all of them carry out at the same time."""
        asked = self.workers[:workers]
        for worker in asked:
            worker.hand(order)
        return self._answers(asked)

    def _answers(self, asked: list[Worker]) -> list:
        answers: dict[int, object] = {}
        connections = {worker.connection: number for number, worker in enumerate(asked)}
        while connections:
            for connection in wait(list(connections)):
                try:
                    kind, *news = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise SystemExit("throughput.py: a worker of the package has died") from None
                if kind == "done":
                    answers[connections.pop(connection)] = news[0]
        return [answers[number] for number in range(len(asked))]

    def warm_up(self, network: str, seconds: float) -> float:
        """Gets ready, off the clock, and returns the seconds of an epoch, roughly."""
        members = [t for t in self.sweep.training_runs if t.network == network]
        for number, worker in enumerate(self.workers):
            worker.hand(("warm_up", members[number % len(members)], seconds))
        return max(self._answers(self.workers))

    def epoch_seconds(self, network: str, epochs: int) -> float:
        """Seconds per epoch, from the first worker's beginning to the last one's end: all of them trained that many."""
        times = self._ask("epochs", network, epochs)
        return (max(end for _, end in times) - min(begin for begin, _ in times)) / epochs

    def parts(self, network: str, seconds: float) -> dict[str, float]:
        """Seconds per epoch of what an epoch consists of, each measured alone, in all workers at once."""
        answers = self._ask("parts", network, seconds)
        return {part: sum(answer[part] for answer in answers) / len(answers) for part in answers[0]}

    def finish_seconds(self, network: str) -> float:
        """Seconds to score a model and write its files, all workers at once."""
        return max(self._ask("finish", network))

    def peak(self, precision: str) -> float:
        """FLOP/s of a large matrix product, with the processes and threads that train; on a GPU one process alone."""
        return sum(self._ask("peak", precision, workers=1 if self.sweep.device.type == "cuda" else None))

    def memory(self) -> list[dict[str, int]]:
        """The peak memory of each process, this one, which only waits for the workers, included, in bytes."""
        return [*common.peak_memory(torch.device("cpu")), *self._ask("memory")]


class Measured:
    """Takes the place of `Sweep.train` in a worker: does what it is asked, and answers with what it measured."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.trainers: dict[str, Trainer] = {}

    def __call__(self, order: tuple, progress: Progress) -> object:
        name, *arguments = order
        if name == "warm_up":
            return self.warm_up(*arguments, progress)
        return getattr(self, name)(*arguments)

    def warm_up(self, training_run: TrainingRun, seconds: float, progress: Progress) -> float:
        self.trainers.clear()
        # Of its own: a sweep never trains the same training run twice at once, but here it may happen.
        output = RunPaths(self.sweep.output.root / f"worker-{os.getpid()}")
        output.prepare()
        sweep = replace(self.sweep, output=output)
        trainer = self.trainers[training_run.network] = sweep.trainer(training_run, progress)
        return common.per_call(trainer.train_epoch, trainer.device, seconds)

    def epochs(self, network: str, epochs: int) -> tuple[float, float]:
        trainer = self.trainers[network]
        began = common.clock(trainer.device)
        for _ in range(epochs):
            trainer.train_epoch()
        return began, common.clock(trainer.device)

    def parts(self, network: str, seconds: float) -> dict[str, float]:
        trainer = self.trainers[network]
        device, images = trainer.device, trainer.data.train
        measure = functools.partial(common.per_call, device=device, seconds=seconds)

        def data(batches: TrainingBatches | _Unaugmented) -> Iterator[tuple[torch.Tensor, ...]]:
            trainer.batches.set_epoch(trainer.epoch + 1)
            return (tuple(tensor.to(device) for tensor in batch) for batch in loader(images, batches))

        def steps() -> None:
            for batch in held:
                trainer.take_step(*batch)

        unaugmented = measure(lambda: [None for _ in data(_Unaugmented(trainer.batches))])
        augmented = measure(lambda: [None for _ in data(trainer.batches)])
        held = list(islice(data(trainer.batches), _PREFETCHED))
        trainer.model.train()
        step = measure(steps) * len(trainer.batches) / len(held)
        trainer.squares.zero_()
        return {
            "loader": unaugmented,
            "augmentation": augmented - unaugmented,
            "step": step,
            "validation": measure(lambda: trainer.evaluate(trainer.data.val)),
        }

    def finish(self, network: str) -> float:
        trainer = self.trainers[network]
        trainer.finish(trainer.training_run.snapshot_epochs[0])  # the first picture of a process takes longer
        began = common.clock(trainer.device)
        trainer.finish(trainer.training_run.snapshot_epochs[0])
        return common.clock(trainer.device) - began

    def peak(self, precision: str) -> float:
        device = self.sweep.device
        rows = _MATRIX[device.type]
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        left, right = (torch.randn(rows, rows, device=device).to(kind) for _ in range(2))
        result = torch.empty_like(left)
        return 2 * rows**3 / common.per_call(lambda: torch.mm(left, right, out=result), device, seconds=1)

    def memory(self) -> dict[str, int]:
        return common.peak_memory(self.sweep.device)[0]


class _Unaugmented:
    """The same draws without their boxes: the images as they are."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[BatchSpec]:
        return (BatchSpec(draw.rows) for draw in self.batches)
