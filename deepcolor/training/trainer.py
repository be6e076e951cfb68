"""The only training loop: epochs, evaluation, checkpoints, resuming. A subclass supplies what its network needs."""

import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import Constants
from deepcolor.common.signals import Interrupted
from deepcolor.data.batches import EvaluationBatches, TrainingBatches, loader
from deepcolor.data.dataset import LabDataModule, LabDataset
from deepcolor.reporting.plots import loss_plot
from deepcolor.reporting.progress import Progress, summary_line
from deepcolor.training import checkpoint, data_parallel
from deepcolor.training.checkpoint import RunPaths
from deepcolor.training.checkpoint_manager import CheckpointManager, restore_optimizer
from deepcolor.training.config import TrainingRun
from deepcolor.training.cuda_graph import CudaGraphStep
from deepcolor.training.distributed import SINGLE_PROCESS, DistributedContext
from utils import Utils, is_finite, seed_for

if TYPE_CHECKING:
    from deepcolor.reporting.tensorboard import TensorBoardLogger


class Trainer(ABC):
    """Trains one training run and scores the model at each of its snapshots.

    All figures named mse are in units of (ab + 128) / 255. Between two epochs nothing random is carried
    over: what happens in an epoch depends on the seed and its number alone.
    """

    output_scale: tuple[float, float]  # (offset, scale) of Constants.OUTPUT_SCALES: what the network's output means

    def __init__(
        self,
        training_run: TrainingRun,
        data: LabDataModule,
        output: RunPaths,
        device: torch.device,
        progress: Progress,
        restart: bool = False,
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self.training_run = training_run
        self.config = config = training_run.config
        self.data = data
        self.output = output
        self.device = device
        wide = Utils.is_wide(config.feature_maps)
        self.memory_format = torch.channels_last if wide else torch.contiguous_format
        self.progress = progress
        self.context = context
        self.batches = TrainingBatches(
            len(data.train), config.batch_size, config.augment_repeats, config.seed, config.crop_area
        )
        self.batches.device = data.train.records.device
        self.offset = torch.tensor(self.output_scale[0] / self.output_scale[1], dtype=torch.float32, device=device)
        self.fingerprint = training_run.fingerprint(data.fingerprint)
        self.store = CheckpointManager(output, training_run, self.fingerprint, progress.log, restart)
        self.board: TensorBoardLogger | None = None  # whoever wants a log for TensorBoard, puts one here
        self.start()

    # --- What a subclass supplies ------------------------------------------------------------------

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with its first weights drawn from PyTorch's generator."""

    @abstractmethod
    def target(self, ab: Tensor) -> Tensor:
        """What the network is to predict, in Lab units, from the ab of the images (B,2,128,128)."""

    @abstractmethod
    def second_moment(self, images: LabDataset) -> Tensor:
        """The mean square of what is to be predicted, for a and b: (2,) float64, in Lab units."""

    @abstractmethod
    def test(self, run: str, test_mse: float) -> dict[str, object]:
        """Further figures of the model on the test images; writes the pictures that show it."""

    # --- Training ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Puts the training run at its beginning."""
        context = self.context
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.config.seed, "weights"))
            model = self.build().to(self.device, memory_format=self.memory_format)
        self.model = data_parallel.convert_sync_batchnorm(model, self.device, context)
        self.network = data_parallel.wrap_ddp(self.model, self.device, context)  # what a training step calls
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=torch.tensor(self.config.lr, device=self.device) if on_gpu else self.config.lr,
            weight_decay=self.config.weight_decay,
            fused=True,
            capturable=on_gpu,
        )
        # A graph would have to capture NCCL's part as well: among several ranks the steps are taken as they are.
        graphed = on_gpu and context.world_size == 1
        self.take_step = CudaGraphStep(self.step) if graphed else data_parallel.guarded_step(self.step, context)
        self.epoch = 0  # finished ones
        self.batch = 0  # finished ones within the epoch that follows
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)  # loss, summed over its images
        self.history: dict[str, list[float]] = {"train_mse": [], "val_mse": []}
        self.seconds = 0.0
        self.diverged = 0  # the epoch at which a loss was no longer finite
        self.saved_at = time.monotonic()

    def train(self) -> None:
        """Trains to the last snapshot, from wherever an earlier run left off, and finishes a model at each.

        Raises Interrupted when told to stop, OSError if a file cannot be written.
        """
        finished = self.resume()
        if self.board:
            for snapshot in self.training_run.snapshot_epochs[:finished]:
                self.board.model(self.output.checkpoint(self.training_run, snapshot))
        for snapshot in self.training_run.snapshot_epochs[finished:]:
            while self.epoch < snapshot and not self.diverged:
                self.train_epoch()
            self.finish(snapshot)

    def train_epoch(self) -> None:
        """One pass over the training images, in the order and with the crops that belong to this epoch."""
        began = time.monotonic()
        number = self.epoch + 1
        self.model.train()
        self.batches.set_epoch(number, self.batch)
        for lightness, ab in self.training_batches():
            self.set_learning_rate(self.epoch * len(self.batches) + self.batch)
            self.take_step(lightness.to(self.device), ab.to(self.device))
            self.batch += 1
            self.progress.advance(
                1 / len(self.batches), f"{self.training_run.task} {self.training_run.run_name(number)}"
            )
            due = time.monotonic() - self.saved_at > Constants.SAVE_SECONDS
            stop, due = self.context.sync_stop(self.progress.stop_signal(), due, self.batch)
            if stop or due:
                self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                self.context.sum_on_main(self.loss_sum)
                self.save(stop, self.context)
        train_mse = self.context.sum_on_main(self.loss_sum).item() / (
            len(self.data.train) * self.config.augment_repeats
        )
        data_parallel.broadcast_buffers(self.model, self.context)
        self.seconds += time.monotonic() - began
        val_mse = sum(self.evaluate(self.data.val)) / 2
        # From here to the end nothing can interrupt: the epoch is finished as a whole or not at all.
        self.history["train_mse"].append(train_mse)
        self.history["val_mse"].append(val_mse)
        if not is_finite(train_mse, val_mse):
            self.diverged = number
        self.epoch, self.batch = number, 0
        self.loss_sum.zero_()
        if self.board:
            self.board.epochs(self.history)

    def training_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """What is left of this epoch: (L, ab) of each batch, or of this rank's share of it."""
        return loader(self.data.train, data_parallel.shard_training_batches(self.batches, self.context))

    def step(self, lightness: Tensor, ab: Tensor) -> None:
        """One step of Adam on the mean squared error of a batch. The loss stays on the device."""
        _, scale = self.output_scale
        half = self.config.precision == "bf16"
        # Without the cache of cast weights, which a CUDA graph must not keep from one step to the next.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            output = self.network(lightness.contiguous(memory_format=self.memory_format))
        # (truth + offset) / scale, in one pass over the pixels
        target = torch.add(self.offset, self.target(ab), alpha=1 / scale)
        loss = F.mse_loss(output.float(), target)
        images, weight = data_parallel.loss_weight(len(lightness), self.batches.size(self.batch), self.context)
        self.optimizer.zero_grad(set_to_none=True)
        (loss if weight == 1 else loss * weight).backward()
        self.optimizer.step()
        self.loss_sum += loss.detach() * (images * (scale / Constants.MSE_UNIT) ** 2)

    def set_learning_rate(self, step: int) -> None:
        """The learning rate of a step: constant, or half a cosine down to zero over all epochs; after the warm-up."""
        config = self.config
        rate = config.lr * min(1.0, (step + 1) / (config.warmup_steps + 1))
        if config.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * step / (len(self.batches) * self.training_run.snapshot_epochs[-1]))) / 2
        for group in self.optimizer.param_groups:
            if torch.is_tensor(group["lr"]):
                group["lr"].fill_(rate)  # in place: where a captured step looks for it
            else:
                group["lr"] = rate

    def measure_seconds_per_epoch(self) -> float:
        """How long an epoch will take, from a few steps after a first one; the training run is at its beginning again."""
        times = []
        for lightness, ab in itertools.islice(self.training_batches(), 4):
            began = time.monotonic()
            self.take_step(lightness.to(self.device), ab.to(self.device))
            self.loss_sum.item()  # waits for the device
            times.append(time.monotonic() - began)
        self.start()
        return min(times) * len(self.batches)

    # --- Evaluation --------------------------------------------------------------------------------

    @torch.inference_mode()
    def predict(self, lightness: Tensor) -> Tensor:
        """L (B,1,128,128) in 0..1 -> what the network says, in Lab units. In eval mode and float32."""
        self.model.eval()
        offset, scale = self.output_scale
        return self.model(lightness.to(self.device)) * scale - offset

    def predictions(self, images: LabDataset, context: DistributedContext) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(L, ab, `predict(L)`) of all the images in order, batch by batch, or of this rank's share of each batch.

        Raises Interrupted, after saving, if a stop was asked for.
        """
        batches = EvaluationBatches(len(images), context.world_size)
        for lightness, ab in loader(images, data_parallel.shard_evaluation_batches(batches, context)):
            stop, _ = context.sync_stop(self.progress.stop_signal())
            if stop:
                self.save(stop, context)
            if len(lightness):  # the last images may be fewer than the ranks
                yield lightness, ab, self.predict(lightness)

    def evaluate(self, images: LabDataset) -> tuple[float, float]:
        """The mse of a and that of b over all the images: exact sums, whatever the batches and the ranks."""
        loss_sum = torch.zeros(2, dtype=torch.float64, device=self.device)
        for _, ab, predicted in self.predictions(images, self.context):
            error = predicted - self.target(ab.to(self.device))
            loss_sum += error.square().reshape(len(error), 2, -1).mean(dim=2).double().sum(dim=0)
        a, b = (self.context.sum(loss_sum) / len(images) / Constants.MSE_UNIT**2).tolist()
        return a, b

    def baselines(self, images: LabDataset) -> dict[str, float]:
        """The mse, on the same images, of predicting gray, and of predicting the training set's mean color."""
        mean = torch.from_numpy(images.statistics[:, :2]).mean(dim=0)
        guess = torch.tensor(self.data.mean_ab, dtype=torch.float64)
        square = self.second_moment(images)
        unit = Constants.MSE_UNIT**2
        return {
            "gray_mse": square.mean().item() / unit,
            "mean_color_mse": (square - 2 * guess * mean + guess**2).mean().item() / unit,
        }

    # --- What is kept ------------------------------------------------------------------------------

    def finish(self, epoch: int) -> None:
        """Scores the model as it is, and keeps it."""
        run = self.training_run.run_name(epoch)
        metrics: dict[str, object] = {
            "status": "diverged" if self.diverged else "done",
            **self.baselines(self.data.test),
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
        self.context.run_on_main(lambda: self.write(run, epoch, metrics))

    def write(self, run: str, epoch: int, metrics: dict[str, object]) -> None:
        """Writes the pictures of a scored model and, last of all, its checkpoint. On rank 0 alone."""
        if not self.diverged:
            metrics |= self.test(run, metrics["test_mse"])
        metrics["seconds"] = self.seconds
        metrics["checkpoint"] = str(self.output.checkpoint(self.training_run, epoch).relative_to(self.output.root))
        model = self.model.state_dict()
        content = checkpoint.describe(self.training_run, epoch, self.fingerprint, model, metrics, self.history)
        loss_plot(self.plot(run, "loss.png"), content)
        self.save(self.progress.stop_signal(), SINGLE_PROCESS)
        self.store.save_model(content, epoch)
        if self.board:
            self.board.model(self.output.checkpoint(self.training_run, epoch))
        self.progress.log(summary_line(self.training_run, run, metrics))

    def plot(self, run: str, what: str) -> Path:
        return self.output.plot(self.training_run.network, self.training_run.activation, run, what)

    def save(self, stop: int, context: DistributedContext) -> None:
        """Saves the whole state of the training run. Raises Interrupted if a stop was asked for by the signal `stop`."""
        context.run_on_main(lambda: self.store.save_state(self._state()))
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
        """Goes on from what an earlier run saved, and returns how many of the snapshots it had finished."""
        snapshot_epochs = self.training_run.snapshot_epochs
        finished = self.context.run_on_main(self.store.finished)
        if finished == len(snapshot_epochs):
            self.progress.advance(snapshot_epochs[-1], "")
            return finished
        for state in self.context.run_on_main(lambda: list(self.store.states())):
            try:
                # Further than the next snapshot is too far: its model cannot be had from there any more.
                if (state["diverged"] or state["epoch"] + (state["batch"] > 0)) <= snapshot_epochs[finished]:
                    self._restore(state)
                    self.progress.advance(self.epoch + self.batch / len(self.batches), "")
                    break
            except Exception:  # whatever a state of the right form can hold in its depths
                self.progress.log(
                    f"a saved state of {self.training_run.task} {self.training_run.name} is damaged: not used"
                )
                self.start()
        return finished

    def _restore(self, state: dict) -> None:
        """Puts the training run where `save` left it. Raises various errors if the state is not what `save` wrote."""
        epoch, batch = state["epoch"], state["batch"]
        lengths = {name: len(state["history"][name]) for name in self.history}
        if epoch < 0 or not 0 <= batch <= len(self.batches) or set(lengths.values()) != {epoch}:
            raise ValueError(f"epoch {epoch}, batch {batch}, {lengths}")
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"]["state"], begun=bool(epoch or batch))
        self.epoch, self.batch = epoch, batch
        self.loss_sum.fill_(state["loss_sum"] if self.context.is_main_process else 0)
        self.history = {name: [float(value) for value in state["history"][name]] for name in self.history}
        self.seconds = state["seconds"]
        self.diverged = state["diverged"]
