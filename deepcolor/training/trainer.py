"""The only training loop: steps, epochs, evaluation, saving and resuming. Subclasses supply what a network needs."""

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import Constants
from deepcolor.common.signals import Interrupted
from deepcolor.data.batches import EvaluationBatches, TrainingBatches, loader
from deepcolor.data.dataset import LabDataModule, LabDataset
from deepcolor.data.sample_photos import are_tiles
from deepcolor.training import checkpoint, distributed
from deepcolor.training.callbacks import Callbacks
from deepcolor.training.checkpoint_manager import CheckpointManager
from deepcolor.training.config import TrainingRun
from deepcolor.training.cuda_graph import CudaGraphStep
from deepcolor.training.distributed import SINGLE_PROCESS, DistributedContext
from deepcolor.training.layers import optimize_for_cpu
from deepcolor.training.optimizer import build_optimizer, learning_rate, restore_optimizer, set_learning_rate
from deepcolor.training.paths import RunPaths
from utils import is_finite, seed_for


@contextlib.contextmanager
def _ieee_convolutions() -> Iterator[None]:
    """Computes convolutions in float32. The default of cuDNN is TF32, which has 10 bits of mantissa."""
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def sum_dtype(device: torch.device) -> torch.dtype:
    """Returns the type of sums over many images: float64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


class Trainer(ABC):
    """Trains one training run and scores the model at each of its snapshots.

    Errors are in units of (ab + 128) / 255. Everything random depends on the seed, the epoch and the step alone.

    Args:
        training_run: what is trained.
        data: the images.
        paths: the output folder.
        device: of the network.
        callbacks: progress, logging and stop requests.
        ignore_before: checkpoints older than this time do not count (seconds since the epoch).
        context: the processes that train together.
    """

    output_scale: tuple[float, float]  # (offset, scale) of Constants.OUTPUT_SCALES

    def __init__(
        self,
        training_run: TrainingRun,
        data: LabDataModule,
        paths: RunPaths,
        device: torch.device,
        callbacks: Callbacks,
        ignore_before: float = 0.0,
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self.training_run = training_run
        self.config = config = training_run.config
        self.data = data
        self.paths = paths
        self.device = device
        self.memory_format = torch.channels_last if config.is_wide else torch.contiguous_format
        self.callbacks = callbacks
        self.context = context
        self.batches = TrainingBatches(
            len(data.train), config.batch_size, config.augment_repeats, config.seed, config.crop_area
        )
        self.batches.device = data.train.records.device
        self.offset = torch.tensor(self.output_scale[0] / self.output_scale[1], dtype=torch.float32, device=device)
        self.fingerprint = training_run.fingerprint(data.fingerprint)
        self.manager = CheckpointManager(paths, training_run, self.fingerprint, callbacks.log, ignore_before)
        self.initialize()

    # --- What a subclass supplies ------------------------------------------------------------------

    @abstractmethod
    def build(self) -> nn.Module:
        """Returns the network. Its initial weights come from PyTorch's global generator."""

    @abstractmethod
    def target(self, ab: Tensor) -> Tensor:
        """Returns what the network has to predict for images with this ab (B,2,128,128), in Lab units."""

    @abstractmethod
    def second_moment(self, images: LabDataset) -> Tensor:
        """Returns the mean squares of a and b of the targets: (2,) float64, in Lab units."""

    @abstractmethod
    def test(self, run: str, test_mse: float) -> dict[str, object]:
        """Returns further metrics on the test images, and writes the pictures that show the result."""

    # --- Training ----------------------------------------------------------------------------------

    def initialize(self) -> None:
        """Sets the training run to its beginning."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.config.seed, "weights"))
            model = self.build().to(self.device, memory_format=self.memory_format)
        if self.device.type == "cpu":
            model = optimize_for_cpu(model)
        self.model = distributed.convert_sync_batchnorm(model, self.device, self.context)
        self.parallel_model = distributed.wrap_ddp(self.model, self.device, self.context)
        self.optimizer = build_optimizer(self.config, self.model, self.device)
        # A graph would have to capture NCCL's operations, and would repeat the same dropout mask.
        capture = self.device.type == "cuda" and self.context.world_size == 1 and not self.config.dropout
        self.run_step = CudaGraphStep(self.step) if capture else self.step
        self.epoch = 0  # finished epochs
        self.batch = 0  # finished batches of the next epoch
        # The loss of these batches, summed over their images.
        self.loss_sum = torch.zeros((), dtype=sum_dtype(self.device), device=self.device)
        self.history: dict[str, list[float]] = {"train_mse": [], "val_mse": []}
        self.seconds = 0.0
        self.diverged = 0  # the epoch in which a loss was not finite
        self.saved_at = time.monotonic()

    def train(self) -> None:
        """Trains to the last snapshot, from wherever an earlier process stopped, and finishes a model at each.

        Raises Interrupted after saving if a stop is requested, and OSError if a file cannot be written.
        """
        finished = self.resume()
        for snapshot in self.training_run.snapshot_epochs[:finished]:
            self.callbacks.model_found(snapshot)
        for snapshot in self.training_run.snapshot_epochs[finished:]:
            while self.epoch < snapshot and not self.diverged:
                self.train_epoch()
            self.finish(snapshot)

    def train_epoch(self) -> None:
        """Trains on what is left of the next epoch, and evaluates on the validation images."""
        start = time.monotonic()
        number = self.epoch + 1
        self.model.train()
        self.batches.set_epoch(number, self.batch)
        for lightness, ab in self.training_batches():
            set_learning_rate(self.optimizer, self.learning_rate(self.epoch * len(self.batches) + self.batch))
            if self.config.dropout:
                torch.manual_seed(seed_for(self.config.seed, "step", number, self.batch, self.context.rank))
            self.run_step(lightness.to(self.device), ab.to(self.device))
            self.batch += 1
            status = f"{self.training_run.task} {self.training_run.run_name(number)}"
            self.callbacks.advance(1 / len(self.batches), status)
            save_due = time.monotonic() - self.saved_at > Constants.SAVE_SECONDS
            stop, save_due = self.context.sync_stop(self.callbacks.stop_signal(), save_due, self.batch)
            if stop or save_due:
                self.seconds, start = self.seconds + time.monotonic() - start, time.monotonic()
                self.context.sum_on_main(self.loss_sum)
                self.save(stop, self.context)
        images = len(self.data.train) * self.config.augment_repeats
        train_mse = self.context.sum_on_main(self.loss_sum).item() / images
        distributed.broadcast_buffers(self.model, self.context)
        self.seconds += time.monotonic() - start
        val_mse = sum(self.evaluate(self.data.val)) / 2
        # Nothing below can be interrupted: an epoch is finished as a whole or not at all.
        self.history["train_mse"].append(train_mse)
        self.history["val_mse"].append(val_mse)
        if not is_finite(train_mse, val_mse):
            self.diverged = number
        self.epoch, self.batch = number, 0
        self.loss_sum.zero_()
        self.callbacks.epoch_end(self.history)

    def training_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Returns (L, ab) of every batch that is left of this epoch, or this rank's part of each."""
        return loader(self.data.train, distributed.shard_batches(self.batches, self.context, training=True))

    def step(self, lightness: Tensor, ab: Tensor) -> None:
        """Takes one optimizer step on the mean squared error of a batch. Does not synchronize with the device."""
        _, scale = self.output_scale
        bf16 = self.config.precision == "bf16"
        # Without the cache of cast weights, which a CUDA graph must not reuse in the next step.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            output = self.parallel_model(lightness.contiguous(memory_format=self.memory_format))
        # (target + offset) / scale in one pass over the pixels.
        target = torch.add(self.offset, self.target(ab), alpha=1 / scale)
        loss = F.mse_loss(output.float(), target)
        images, weight = distributed.loss_weight(len(lightness), self.batches.size(self.batch), self.context)
        self.optimizer.zero_grad(set_to_none=True)
        (loss if weight == 1 else loss * weight).backward()
        self.optimizer.step()
        self.loss_sum += loss.detach() * (images * (scale / Constants.MSE_UNIT) ** 2)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from the first one of the first epoch."""
        return learning_rate(self.config, step, len(self.batches) * self.training_run.snapshot_epochs[-1])

    def measure_seconds_per_epoch(self) -> float:
        """Returns the expected time of an epoch, measured on three steps after the slower first ones."""
        times = []
        lightness, ab = (tensor.to(self.device) for tensor in next(iter(self.training_batches())))
        first_steps = CudaGraphStep.CALLS_BEFORE_REPLAY if isinstance(self.run_step, CudaGraphStep) else 1
        for _ in range(first_steps + 3):
            start = time.monotonic()
            self.run_step(lightness, ab)
            self.loss_sum.item()  # waits for the device
            times.append(time.monotonic() - start)
        self.initialize()
        return min(times) * len(self.batches)

    # --- Evaluation --------------------------------------------------------------------------------

    @torch.inference_mode()
    def predict(self, lightness: Tensor) -> Tensor:
        """L (B,1,128,128) in 0..1 -> the network's output in Lab units. In eval mode and float32."""
        self.model.eval()
        offset, scale = self.output_scale
        with _ieee_convolutions():
            return self.model(lightness.to(self.device)) * scale - offset

    def predictions(self, images: LabDataset, context: DistributedContext) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields (L, ab, `predict(L)`) of all images in order, batch by batch, or this rank's part of each batch.

        Raises Interrupted after saving if a stop is requested.
        """
        batches = EvaluationBatches(len(images), context.world_size)
        for lightness, ab in loader(images, distributed.shard_batches(batches, context, training=False)):
            stop, _ = context.sync_stop(self.callbacks.stop_signal())
            if stop:
                self.save(stop, context)
            if len(lightness):  # the last batch can have fewer images than there are ranks
                yield lightness, ab, self.predict(lightness)

    def evaluate(self, images: LabDataset) -> tuple[float, float]:
        """Returns the mse of a and that of b over all images. Does not depend on batch size or number of ranks."""
        total = torch.zeros(2, dtype=sum_dtype(self.device), device=self.device)
        for _, ab, predicted in self.predictions(images, self.context):
            error = predicted - self.target(ab.to(self.device))
            total += error.square().reshape(len(error), 2, -1).mean(dim=2).to(total.dtype).sum(dim=0)
        a, b = (self.context.sum(total) / len(images) / Constants.MSE_UNIT**2).tolist()
        return a, b

    def baselines(self, images: LabDataset) -> dict[str, float]:
        """Returns the mse on these images of predicting gray, and of predicting the training set's mean color."""
        mean = torch.from_numpy(images.statistics[:, :2]).mean(dim=0)
        guess = torch.tensor(self.data.mean_ab, dtype=torch.float64)
        square = self.second_moment(images)
        unit = Constants.MSE_UNIT**2
        return {
            "gray_mse": square.mean().item() / unit,
            "mean_color_mse": (square - 2 * guess * mean + guess**2).mean().item() / unit,
        }

    # --- Checkpoints -------------------------------------------------------------------------------

    def finish(self, epoch: int) -> None:
        """Scores the model as it is, and writes its checkpoint."""
        metrics: dict[str, object] = {
            "status": "diverged" if self.diverged else "done",
            **self.baselines(self.data.test),
            **dict(zip(("train_mean_a", "train_mean_b"), self.data.mean_ab)),
            "own_photographs": not are_tiles(self.data.train.names),
        }
        if self.diverged:
            metrics["diverged_epoch"] = self.diverged
        else:
            a, b = self.evaluate(self.data.test)
            metrics |= {
                "train_mse": sum(self.evaluate(self.data.train)) / 2,
                "val_mse": self.history["val_mse"][-1],
                "test_mse": (a + b) / 2,
                "test_mse_a": a,
                "test_mse_b": b,
                "rmse_lab": Constants.MSE_UNIT * math.sqrt((a + b) / 2),
            }
        self.context.run_on_main(lambda: self._write(epoch, metrics))

    def _write(self, epoch: int, metrics: dict[str, object]) -> None:
        """Writes the pictures of a scored model and then its checkpoint. Called on the main process only."""
        if not self.diverged:
            metrics |= self.test(self.training_run.run_name(epoch), metrics["test_mse"])
        metrics["seconds"] = self.seconds
        path = self.paths.checkpoint(self.training_run, epoch)
        metrics["checkpoint"] = path.relative_to(self.paths.root).as_posix()
        weights = self.model.state_dict()
        model = checkpoint.describe(self.training_run, epoch, self.fingerprint, weights, metrics, self.history)
        self.callbacks.model_scored(model)
        self.save(self.callbacks.stop_signal(), SINGLE_PROCESS)
        self.manager.save_model(model, epoch)
        self.callbacks.model_saved(model)

    def save(self, stop: int, context: DistributedContext) -> None:
        """Saves the state of the training run. Raises Interrupted if the signal `stop` asked to stop."""
        context.run_on_main(lambda: self.manager.save_state(self._state()))
        self.saved_at = time.monotonic()
        if stop:
            raise Interrupted(stop)

    def _state(self) -> dict[str, object]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "loss_sum": self.loss_sum.item(),
            "history": self.history,
            "seconds": self.seconds,
            "diverged": self.diverged,
        }

    def resume(self) -> int:
        """Restores the newest usable state, and returns how many snapshots are finished."""
        snapshots = self.training_run.snapshot_epochs
        finished = self.context.run_on_main(self.manager.count_finished)
        if finished == len(snapshots):
            self.callbacks.advance(snapshots[-1], "")
            return finished
        for state in self.context.run_on_main(self.manager.load_states):
            try:
                # A state past the next snapshot is of no use: the model of that snapshot is lost.
                if (state["diverged"] or state["epoch"] + (state["batch"] > 0)) <= snapshots[finished]:
                    self._restore(state)
                    self.callbacks.advance(self.epoch + self.batch / len(self.batches), "")
                    break
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise  # RuntimeErrors that say nothing about the state
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
                self.callbacks.log(f"a saved state of {self.training_run} is damaged: not used")
                self.initialize()
        return finished

    def _restore(self, state: dict) -> None:
        """Restores what `_state` returned. A state with the right keys can hold anything: raises what that causes."""
        epoch, batch = state["epoch"], state["batch"]
        lengths = {name: len(state["history"][name]) for name in self.history}
        if epoch < 0 or not 0 <= batch <= len(self.batches) or set(lengths.values()) != {epoch}:
            raise ValueError(f"epoch {epoch}, batch {batch}, {lengths}")
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"]["state"], self.config, stepped=bool(epoch or batch))
        self.epoch, self.batch = epoch, batch
        self.loss_sum.fill_(state["loss_sum"] if self.context.is_main_process else 0)
        self.history = {name: [float(value) for value in state["history"][name]] for name in self.history}
        self.seconds = state["seconds"]
        self.diverged = state["diverged"]
