"""The training loop: owns the order of events, knows nothing of the method (`Method`).

For every batch, whole or in parts: loss and, when there is one, backward; then check it, clip,
optimizer, schedule; then what follows the step. After every epoch: the check on held-out images,
the log, and only then a checkpoint, as asked, so that a run that goes on from it has the epoch's
line. Ctrl-C or SIGTERM is honored after the step in progress, with a checkpoint. Several ranks take
every step together, and one rank's stop request counts for all.
"""

from __future__ import annotations

import hashlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distill import distributed
from distill.data.loader import Batch
from distill.distributed import row_counts
from distill.errors import NonFiniteLossError
from distill.losses.base import ShardState
from distill.terminal import progress_bar
from distill.training.callbacks import Callback
from distill.training.checkpoints import Progress
from distill.training.diagnostics import CollapseWatch, DataWatch, EmbeddingSpread

logger = logging.getLogger(__name__)


class Method(Protocol):
    """What the loop trains (`distillation`, `pretraining`), called in this order.

    It owns networks and what its method remembers between steps.
    """

    def train_mode(self) -> None:
        """Put the trained networks into train mode."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the optimizer moves."""
        ...

    def accepts(self, row_counts: Sequence[int]) -> bool:
        """Return whether a batch can be learned from, given its number of images on every rank."""
        ...

    def loss(self, batch: Batch) -> Tensor | None:
        """Return the loss of a batch, or None when there is nothing to learn from it yet.

        `batch` is this rank's part of one that `accepts`; the mean over the ranks is the loss of
        the whole.
        """
        ...

    def after_step(self, *, stepped: bool) -> None:
        """Update what follows the networks; `stepped` is False when the batch gave no loss."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return further numbers for the log of the last batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint must restore and that is the same on all ranks."""
        ...

    def shard(self) -> ShardState | None:
        """Return what a checkpoint must restore and each rank holds a part of; None for nothing."""
        ...

    def load_state_dict(self, state: dict[str, Any], shards: Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` and every rank's `shard` returned, on any number of ranks."""
        ...


_COUNTED = ("loss_sum", "num_losses", "num_images", "waited", "seconds")


class Meter:
    """Loss, speed and share of time spent waiting for data since it was last read."""

    def __init__(self) -> None:
        self.restart()

    def state_dict(self) -> dict[str, float]:
        """Return what was counted since it was last read."""
        counted = (self.loss_sum, self.num_losses, self.num_images, self.waited)
        return dict(zip(_COUNTED, (*counted, time.perf_counter() - self.started), strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where `state_dict` was called."""
        self.loss_sum, self.num_losses, self.num_images, self.waited, seconds = (
            state[name] for name in _COUNTED
        )
        self.started = time.perf_counter() - seconds

    def restart(self) -> None:
        """Forget what was counted."""
        self.loss_sum, self.num_losses, self.num_images = 0.0, 0, 0
        self.waited, self.started = 0.0, time.perf_counter()

    def add(self, loss: float | None, *, num_images: int, waited: float) -> None:
        """Count a batch of all ranks; `loss` is None when it gave none, `waited` in seconds."""
        self.loss_sum += loss or 0.0
        self.num_losses += loss is not None
        self.num_images += num_images
        self.waited += waited

    def read(self) -> dict[str, float]:
        """Return the averages and start anew."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        values = {
            "images_per_second": round(self.num_images / seconds, 1),
            "data_wait": round(self.waited / seconds, 4),
        }
        if self.num_losses:
            values["loss"] = self.loss_sum / self.num_losses
        self.restart()
        return values


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets `received`; a SIGINT then interrupts.

    A second SIGTERM does not: a launcher passes on what a cluster has sent to all processes anyway.
    Outside the main thread signals cannot be caught; `received` stays None there.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class LoopSettings:
    """Length and rhythm of a run, in images, batches and epochs.

    With `accumulate` above 1 a batch is cut into that many parts, which add up to one step.
    """

    num_epochs: int
    num_images: int
    batches_per_epoch: int
    log_every: int
    clip_grad_norm: float | None = None
    accumulate: int = 1
    checkpoint_every: int = 1
    seed: int = 0
    num_workers: int = 0


@dataclass
class TrainState:
    """What the loop advances together: the objective, its optimizer and its schedule.

    `spread`, where there is one, looks at the embeddings of what is trained. Meters and watch are
    here because a run that goes on writes the log that it would have written.
    """

    objective: Method
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    spread: EmbeddingSpread | None = None
    meter: Meter = field(default_factory=Meter)
    epoch_meter: Meter = field(default_factory=Meter)
    collapse_watch: CollapseWatch = field(default_factory=CollapseWatch)
    data_watch: DataWatch = field(default_factory=DataWatch)

    def metrics(self) -> dict[str, float]:
        """Return what the log tells of the last batch; all ranks call it together."""
        spread = {} if self.spread is None else self.spread.read()
        return {**self.objective.metrics(), **spread}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must restore and all ranks share; all call it together.

        What each rank holds a part of is the objective's `shard`. Nothing random is kept: every
        step draws from a seed of its own.
        """
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "spread": {} if self.spread is None else self.spread.state_dict(),
            "meter": self.meter.state_dict(),
            "epoch_meter": self.epoch_meter.state_dict(),
            "has_warned": self.collapse_watch.has_warned,
        }

    def load_state_dict(self, state: dict[str, Any], shards: Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` and the objective's `shard` on every rank returned."""
        self.objective.load_state_dict(state["objective"], shards)
        self.optimizer.load_state_dict(_laid_out(state["optimizer"], self.optimizer))
        self.schedule.load_state_dict(state["schedule"])
        if self.spread is not None:
            self.spread.load_state_dict(state["spread"])
        self.meter.load_state_dict(state["meter"])
        self.epoch_meter.load_state_dict(state["epoch_meter"])
        self.collapse_watch.has_warned = state["has_warned"]


def _laid_out(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state with what it knows of a parameter in that one's memory order.

    Files hold rows in the order of their dimensions, networks may not (`channels_last`), and fused
    kernels go through both as they lie.
    """
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    of_parameters = {
        number: {
            name: torch.empty_like(parameters[number], dtype=value.dtype).copy_(value)
            if isinstance(value, torch.Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": of_parameters}


def fit(
    state: TrainState,
    batches: Iterable[Batch],
    settings: LoopSettings,
    progress: Progress,
    *,
    callbacks: Callback,
    on_bad_images: Callable[[Sequence[str]], None],
    evaluate: Callable[[int], dict[str, float]],
    save: Callable[[float | None], None],
) -> str | None:
    """Train until the last epoch is done or a stop is asked for.

    Args:
        state: What is trained; changed in place.
        batches: From where `progress` stands to the end of the last epoch.
        settings: Length and rhythm.
        progress: Where the run stands; advanced in place.
        callbacks: Told of every `log_every`-th step and of every epoch.
        on_bad_images: Told of images that could not be read; raises to end the run.
        evaluate: Called with the number of finished epochs; returns numbers for the log.
        save: Writes a checkpoint; called where a run may have to go on from, with the accuracy on
            held-out images where it was just measured.

    Returns:
        None when the run is complete, else the name of the signal that stopped it.

    Raises:
        NonFiniteLossError: Naming the step; nothing was updated by it.
    """
    state.objective.train_mode()
    done = round(
        (progress.epoch + progress.batch / settings.batches_per_epoch) * settings.num_images
    )
    bar = progress_bar(settings.num_epochs * settings.num_images, initial=done, description="train")
    with StopRequest() as stop, bar:
        clock = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - clock
            on_bad_images(batch.bad)
            counts = row_counts(len(batch.index))
            rate = float(state.schedule.get_last_lr()[0])  # of this step, not of the next
            is_accepted = state.objective.accepts(counts)
            loss = train_step(state, batch, settings, progress) if is_accepted else None
            for meter in (state.meter, state.epoch_meter):
                meter.add(loss, num_images=sum(counts), waited=waited)
            progress.batch += 1
            progress.seconds += time.perf_counter() - clock
            bar.update(sum(counts))
            if loss is not None:
                _report_step(state, settings, progress, callbacks, bar, rate=rate)
            else:
                event = "filling" if is_accepted else "skipped"
                metrics = {"epoch": progress.epoch, "event": event, **state.objective.metrics()}
                callbacks.on_skip(progress.step, metrics)
                bar.set_postfix_str("filling the queue" if is_accepted else "too few images")
            score, is_saved = None, False
            if progress.batch == settings.batches_per_epoch:
                progress.epoch, progress.batch = progress.epoch + 1, 0
                score = _end_epoch(state, settings, progress, callbacks, evaluate)
                is_last = progress.epoch == settings.num_epochs
                if is_last or progress.epoch % settings.checkpoint_every == 0:
                    save(score)
                    is_saved = True
            if distributed.any_rank(stop.received is not None):
                if not is_saved:
                    save(score)
                return stop.received or "a signal to another process"
            clock = time.perf_counter()
    return stop.received  # a signal may have come while the loader ended its workers


def train_step(
    state: TrainState, batch: Batch, settings: LoopSettings, progress: Progress
) -> float | None:
    """Learn from one batch; return its loss, or None when there is nothing to learn from it yet."""
    _seed_step(settings.seed, progress)
    state.optimizer.zero_grad(set_to_none=True)
    value = _backward(state.objective, batch, settings.accumulate)
    if value is None:
        state.objective.after_step(stepped=False)
        return None
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"the loss is {value} at step {progress.step + 1} (epoch {progress.epoch + 1}); "
            "nothing was updated by it. Lower --learning-rate, set --clip-grad-norm or use "
            "--precision fp32"
        )
    if settings.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(list(state.objective.parameters()), settings.clip_grad_norm)
    state.optimizer.step()
    state.schedule.step()
    progress.step += 1
    state.objective.after_step(stepped=True)
    return value


def _seed_step(seed: int, progress: Progress) -> None:
    """Seed torch's global generators for one step, such as for dropout, on each rank apart.

    A run that goes on then draws what it would have drawn, with nothing to be restored.
    """
    key = f"{seed}/{progress.epoch}/{progress.batch}/{distributed.rank()}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little"))


def _backward(objective: Method, batch: Batch, num_parts: int) -> float | None:
    """Add up the gradients of a batch's parts; return its loss, or None when it gave none."""
    value, parts = 0.0, batch.split(num_parts)
    for part in parts:
        # A rank without images has one empty part, and as much of the loss as the others.
        share = 1.0 if len(parts) == 1 else len(part.index) / len(batch.index)
        loss = objective.loss(part)
        if loss is None:
            return None
        (loss if share == 1 else share * loss).backward()
        value += share * loss.item()
    return distributed.mean_over_ranks(value)


def _report_step(
    state: TrainState,
    settings: LoopSettings,
    progress: Progress,
    callbacks: Callback,
    bar: Any,
    *,
    rate: float,
) -> None:
    """Tell of a step where it is due."""
    if progress.step % settings.log_every and progress.step != 1:
        return
    metrics = {**state.meter.read(), "learning_rate": rate, **state.metrics()}
    callbacks.on_step(progress.step, {"epoch": progress.epoch, **metrics})
    bar.set_postfix_str(f"loss {metrics['loss']:.3f}, waiting for data {metrics['data_wait']:.0%}")
    _warn(state.collapse_watch.look(progress.step, metrics))


def _end_epoch(
    state: TrainState,
    settings: LoopSettings,
    progress: Progress,
    callbacks: Callback,
    evaluate: Callable[[int], dict[str, float]],
) -> float | None:
    """Measure and report an epoch; return the accuracy on held-out images, where there is one."""
    waited = state.epoch_meter.waited
    metrics = {**state.epoch_meter.read(), **state.metrics(), **evaluate(progress.epoch)}
    callbacks.on_epoch(progress.epoch, {"step": progress.step, **metrics})
    words = [
        f"epoch {progress.epoch}/{settings.num_epochs}",
        f"loss {metrics['loss']:.4f}" if "loss" in metrics else "filling the queue",
        f"{metrics['images_per_second']:.0f} img/s",
        f"{metrics['data_wait']:.0%} waiting for data",
    ]
    score = metrics.get("holdout_nn_accuracy")
    if score is not None:
        words.append(f"nearest neighbor {score:.3f} (held out)")
    logger.info("  ".join(words))
    _warn(state.data_watch.look(metrics["data_wait"], waited, num_workers=settings.num_workers))
    _warn(state.collapse_watch.look(progress.step, metrics, num_epochs=progress.epoch))
    state.objective.train_mode()
    state.epoch_meter.restart()
    state.meter.restart()  # measuring is not training
    return score


def _warn(message: str | None) -> None:
    if message is not None:
        logger.warning(message)
