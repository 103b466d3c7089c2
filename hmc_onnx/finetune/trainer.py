"""The training loop: optimizer steps, averaged weights, evaluation on held-out images, and checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from calib.runtime.processor import instructions
from hmc_onnx.execution.checkpoint import Checkpoint
from hmc_onnx.finetune.images import Batch, TrainingImages
from hmc_onnx.finetune.loss import Loss
from hmc_onnx.finetune.module import GraphModule
from hmc_onnx.finetune.options import Epoch, FineTuning, best_epoch
from hmc_onnx.finetune.processes import TrainingProcesses
from passes.core.errors import HmcError, ModelError
from passes.core.progress import Progress, silent

__all__ = ["Trainer", "TrainingError"]

WARM_UP = 0.05  # share of the training during which the learning rate rises to its maximum
LARGEST_GRADIENT = 5.0  # gradients are clipped to this norm, taken over all parameters
MOMENTUM = 0.9
EPOCHS = 10  # if neither epochs nor minutes are given
HELD_AT_ONCE = 256  # batch size on held-out images
LOOKED_AT = 20  # steps between checks that the loss is finite; each check waits for the device
CHECKPOINT = "checkpoint/last"


class TrainingError(HmcError):
    """The loss became NaN or infinite; the best weights until then were kept."""


@dataclass
class Trainer:
    """Trains a network, the student, against the original, the teacher.

    Args:
        student: the network to train; after `run` it has the weights of the best epoch.
        teacher: the original, whose outputs are the targets.
        images: images to train on.
        held: held-out images, by which the best epoch is chosen.
        loss: see `Loss`.
        options: the settings, after `FineTuning.settled`.
        processes: see `TrainingProcesses`.
        checkpoint: stores the state after each epoch.
        progress: is told how many steps are done.
        history: the results of the epochs so far.
    """

    student: GraphModule
    teacher: GraphModule
    images: TrainingImages
    held: TrainingImages
    loss: Loss
    options: FineTuning
    processes: TrainingProcesses
    checkpoint: Checkpoint
    progress: Progress = silent
    history: list[Epoch] = field(default_factory=list)

    def __post_init__(self) -> None:
        device = self.processes.device
        for module in (self.student, self.teacher):
            module.to(device).eval()
            if all(p.dim() <= 4 for p in module.parameters()):  # 5-D weights of volumes have no such layout
                module.to(memory_format=torch.channels_last)
        self.teacher.requires_grad_(False)
        self.bfloat16 = _bfloat16(self.options, device)
        self.training: nn.Module = self.student
        if self.processes.count > 1:
            self.student.mode.shared = True
            self.training = DistributedDataParallel(self.student, broadcast_buffers=False)
        self.mean = _Mean(self.student, self.options.average)
        self.optimizer = _optimizer(self.student, self.options)
        self.best = copy.deepcopy(self.student.state_dict())
        self.epoch, self.steps, self.spent, self._began = 0, 0, 0.0, 0.0
        self._answers: dict[tuple[str, int], list[Tensor]] = {}

    def run(self) -> None:
        """Train for the epochs or the minutes that the options give.

        Raises:
            ModelError: the loss is NaN or infinite before any training.
            TrainingError: the loss became NaN or infinite; the student has the best weights until then.
        """
        size = min(self.options.batch_size, len(self.images)) // self.processes.count * self.processes.count
        a_pass = len(self.images) // size
        epochs = EPOCHS if self.options.minutes is None and self.options.epochs is None else self.options.epochs
        total = None if epochs is None else max(1, round(epochs * a_pass))
        if CHECKPOINT in self.checkpoint:
            self._restore(self.checkpoint.load(CHECKPOINT))
        else:
            self._judge(math.nan)
        if not math.isfinite(self.history[0].held):
            raise ModelError(
                "the loss is not a number before any training: look for NaN and infinity in both models' weights, and "
                "check that the images are preprocessed as for training"
            )
        self._began = time.perf_counter() - self.spent
        try:
            while not self._over(total):
                loss, seen = torch.zeros((), device=self.processes.device), 0
                batches = self.images.batches(size, self.epoch, self.processes.rank, self.processes.count)
                for batch in batches:
                    if self._over(total):
                        break
                    loss, seen = loss + self._step(batch, self._done(total)), seen + 1
                    if self.steps % LOOKED_AT == 0:
                        self._look(loss)
                    self._clock()
                    self._say(total)
                self._look(loss)
                self.epoch += 1
                self._judge(float(self.processes.summed(loss)) / max(seen, 1) / self.processes.count)
                if not math.isfinite(self.history[-1].held):
                    raise self._astray("the loss on the images held back", f"after epoch {self.epoch}")
                self._save()
        finally:
            self.training = self.student  # DistributedDataParallel must be freed before the process group
            self.student.load_state_dict(self.best)

    @property
    def improved(self) -> bool:
        """Whether some epoch has a lower held-out loss than the network before training."""
        return best_epoch(self.history).epoch > 0

    def _clock(self) -> None:
        """Update `spent`, the seconds of training so far, including those before a checkpoint."""
        self.spent = self.processes.agreed(time.perf_counter() - self._began)

    def _done(self, total: int | None) -> float:
        """Share of the training that is done; 1 or more at the end."""
        if total is not None:
            return self.steps / total
        assert self.options.minutes is not None
        return self.spent / (60 * self.options.minutes)

    def _over(self, total: int | None) -> bool:
        return self._done(total) >= 1

    def _step(self, batch: Batch, done: float) -> Tensor:
        assert self.options.rate is not None
        rate = _rate(done) * self.options.rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = batch.images.contiguous(memory_format=torch.channels_last) if batch.images.dim() == 4 else batch.images
        with self._precision():
            with torch.no_grad():
                answers = self.teacher(images)
            self.student.mode.batch_statistics = self.options.batchnorm == "reinsert"
            outputs = self.training(images)
            self.student.mode.batch_statistics = False
            loss = self.loss(outputs, answers, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self.steps += 1
        self.mean.update(self.steps)
        return loss.detach()

    def _precision(self) -> Any:
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _look(self, loss: Tensor) -> None:
        if not math.isfinite(float(self.processes.summed(loss.clone()))):
            raise self._astray("the loss", f"in epoch {self.epoch + 1}, before step {self.steps}")

    @staticmethod
    def _astray(what: str, where: str) -> TrainingError:
        return TrainingError(
            f"{what} is no longer a number {where}: train with a lower `rate`; the best weights until then are kept"
        )

    @torch.no_grad()
    def _judge(self, loss: float) -> None:
        """Evaluate the averaged weights on the held-out images, and keep them if they are the best so far.

        The images are augmented and mixed as in training, in the same way each time. Without augmentation the
        comparison would favour the compressed network before training: the original may have memorised these images,
        and the compressed network inherits that.

        Args:
            loss: the mean training loss of the epoch, to record.
        """
        rank, count = self.processes.rank, self.processes.count
        sums = torch.zeros(4, dtype=torch.float64, device=self.processes.device)
        with self.mean.in_place():
            for i, batch in enumerate(self.held.batches(HELD_AT_ONCE, 0, rank, count)):
                outputs = self.student(batch.images)[: self.loss.judged]
                lost = self.loss(outputs, self._answer(("changed", i), batch), batch)
                sums[0] += lost.double() * len(batch.images)
                sums[1] += len(batch.images)
            for i, batch in enumerate(self.held.plain(HELD_AT_ONCE)):
                if i % count == rank:
                    answers = self._answer(("plain", i), batch)
                    labels = self.loss.scores(answers[0]).argmax(1) if batch.labels is None else batch.labels
                    sums[2] += (self.loss.scores(self.student(batch.images)[0]).argmax(1) == labels).sum()
                    sums[3] += len(batch.images)
            held, images, right, plain = self.processes.summed(sums).tolist()
            if self.epoch:
                self._clock()
            found = Epoch(epoch=self.epoch, loss=loss, held=held / images, top1=right / plain, seconds=self.spent)
            if self.epoch and found.held < best_epoch(self.history).held:
                self.best = copy.deepcopy(self.student.state_dict())
            self.history.append(found)

    def _answer(self, which: tuple[str, int], batch: Batch) -> list[Tensor]:
        """The original's outputs, without hints, for a batch of held-out images; they are computed once and cached."""
        if which not in self._answers:
            self._answers[which] = list(self.teacher(batch.images)[: self.loss.judged])
        return self._answers[which]

    def _say(self, total: int | None) -> None:
        last = self.history[-1]
        what = f"fine-tuning: epoch {self.epoch + 1}, held back {last.held:.4f}, {last.top1:.2%}"
        # with a time limit, the total number of steps is extrapolated from the pace so far
        self.progress(what, self.steps, max(total or round(self.steps / max(self._done(total), 1e-9)), self.steps))

    def _save(self) -> None:
        if self.processes.rank:
            return
        state = {
            "student": self.student.state_dict(),
            "mean": self.mean.values,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "at": (self.epoch, self.steps, self.spent),
        }
        self.checkpoint.save(CHECKPOINT, _moved(state, torch.device("cpu")))

    def _restore(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        state = _moved(state, self.processes.device)
        self.mean.values, self.best, self.history = state["mean"], state["best"], state["history"]
        self.epoch, self.steps, self.spent = state["at"]


def _rate(done: float) -> float:
    """The learning rate as a share of its maximum: linear warm-up, then cosine annealing (arXiv:1608.03983)."""
    if done < WARM_UP:
        return max(done / WARM_UP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * min((done - WARM_UP) / (1 - WARM_UP), 1)))


def _optimizer(module: nn.Module, options: FineTuning) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; weight decay does not apply to vectors (biases, scales)."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    assert options.rate is not None
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.rate)
    return torch.optim.SGD(groups, lr=options.rate, momentum=MOMENTUM, nesterov=True)


def _bfloat16(options: FineTuning, device: torch.device) -> bool:
    """Whether to compute in bfloat16; by default, on devices that compute it natively."""
    if options.train_in != "auto":
        return options.train_in == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return "avx512_bf16" in instructions()  # measured: 1.4 times as fast as float32


class _Mean:
    """Exponential moving average of a module's parameters and buffers, whose decay is lower in the first steps."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._own: Sequence[Tensor] = [*module.parameters(), *module.buffers()]
        self._decay = decay
        self.values = [t.detach().clone() for t in self._own]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self.values, [t.detach() for t in self._own], step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages into the module within the context, and its own values back afterwards."""
        kept = [t.detach().clone() for t in self._own]
        self._put(self.values)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for own, value in zip(self._own, values, strict=True):
            own.copy_(value)


def _moved(state: Any, device: torch.device) -> Any:
    """A copy of nested dicts and lists with all tensors copied to a device."""
    if isinstance(state, Tensor):
        return state.detach().to(device, copy=True)
    if isinstance(state, dict):
        return {k: _moved(v, device) for k, v in state.items()}
    if isinstance(state, list):
        return [_moved(v, device) for v in state]
    return state
