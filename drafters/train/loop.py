"""One training loop for everything: AdamW, a cosine schedule, a budget, a state that survives.

What is trained says how (`Trainee`); this runs it, on the CPU, on one GPU, or, started by
accelerate's or torch's launcher, on several. A run that was interrupted and started again takes the
same steps as one that was not: batches and random numbers depend on the number of the step alone.
With a budget in steps it therefore ends with the same weights, bit for bit on a CPU with as many
threads; with one in minutes, as many steps are taken as there is time for.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn

from quickdraft.drafters.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from quickdraft.drafters.train.history import History, Point
from quickdraft.errors import Cancelled, OptionError, QuickdraftError

Batch = dict[str, Tensor]
T = TypeVar("T")


class Trainee(Protocol):
    """What is trained."""

    @property
    def module(self) -> nn.Module:
        """Called with a batch it gives the loss, a scalar, and figures by name, scalars that need
        no gradient; once per batch. Its parameters that require gradients are trained; they are
        float32. The type it computes in is its own affair."""

    def batch(self, number: int) -> Batch:
        """The batch of that number, on the CPU: the same in every run."""

    def evaluate(self) -> Mapping[str, float]:
        """Figures on data that are not trained on. Called without gradients, in the mode of
        evaluation, by one process."""


@dataclass(frozen=True)
class LoopOptions:
    """How to train.

    steps or minutes: the budget, exactly one. rate: the highest learning rate; it is reached after
    a share of `warm_up` of the run and falls to a share of `final` of itself. decay: weight decay
    of matrices. clip: the largest norm of all gradients. accumulate: batches per step and process.
    evaluations: of held-out data, besides one before the first step. save_seconds: between writing
    the state. device: `auto`, `cpu` or `cuda`.
    """

    steps: int | None = None
    minutes: float | None = None
    rate: float = 1e-3
    final: float = 0.05
    warm_up: float = 0.03
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    accumulate: int = 1
    seed: int = 0
    evaluations: int = 10
    save_seconds: float = 120.0
    device: str = "auto"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise OptionError("give training one limit: either a budget in minutes or steps")
        for name, least in (("steps", 1), ("accumulate", 1), ("evaluations", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name} of training is {value}; it must be at least {least}")
        for name in ("minutes", "rate", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError(f"{name} of training is {value}; it must be above 0")

    def rate_at(self, share: float) -> float:
        """The learning rate after a share of the run."""
        if share < self.warm_up:
            return self.rate * share / self.warm_up
        along = min((share - self.warm_up) / max(1 - self.warm_up, 1e-9), 1.0)
        return self.rate * (self.final + (1 - self.final) * (1 + math.cos(math.pi * along)) / 2)


@dataclass(frozen=True)
class Status:
    """Where a run is. share: of its budget; figures: the newest of training."""

    steps: int
    seconds: float
    share: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. finished: whether the budget is spent; else it was stopped."""

    steps: int
    seconds: float
    history: History
    finished: bool


def pick_device(name: str = "auto") -> torch.device:
    """The device of this process: the GPU that a launcher gave it, the only one, or the CPU.

    Raises:
        OptionError: another name than auto, cpu or cuda, or there is no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise OptionError(f"device is {name!r}; available: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device is 'cuda' and torch sees no such GPU here; use cpu or auto")
    # The first process may do for hours what the others wait for; see `first_alone`.
    device: torch.device = PartialState(cpu=_is_cpu(name), timeout=timedelta(days=7)).device
    return device


def pick_dtype(device: torch.device, name: str = "auto") -> torch.dtype:
    """What frozen weights and streams are computed in. name: that of a type, or `auto`: bfloat16
    where the device multiplies it fast."""
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    fast = device.type == "cuda" or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    return torch.bfloat16 if fast else torch.float32


def is_first_process() -> bool:
    """Whether this is the process that writes files, of those that a launcher started."""
    return bool(PartialState().is_main_process)


def first_alone(work: Callable[[], T]) -> T:
    """What `work` returns, done by the first process; the others do it afterwards, when what it
    writes is there for them to find.

    Raises:
        Cancelled: the first process failed, and says why itself. What `work` raises.
    """
    if not is_first_process():
        if _agree(False):
            raise Cancelled("the first process stopped, and says why")
        return work()
    try:
        done = work()
    except BaseException:
        _agree(True)
        raise
    _agree(False)
    return done


def _agree(has_failed: bool) -> bool:
    """What the first process says of itself, to all of them."""
    state = PartialState()
    if state.num_processes == 1:
        return has_failed
    return bool(broadcast(torch.tensor([float(has_failed)], device=state.device))[0])


def train(
    trainee: Trainee,
    options: LoopOptions,
    *,
    file: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Callable[[Status], None] = lambda status: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train until the budget is spent or `stop` says so, which is asked before every step.

    file: holds the state; one that is there is gone on from. It is left there at the end. identity:
    what makes this run another one, plain JSON values; the options are added.

    Raises:
        OptionError: the file is the state of another run. CheckpointError: it is damaged.
        StorageError: it cannot be written. QuickdraftError: the loss is not a number.
    """
    return _Loop(trainee, options, file, identity or {}, progress).run(stop)


class _Loop:
    """One run."""

    def __init__(
        self,
        trainee: Trainee,
        options: LoopOptions,
        file: Path | None,
        identity: Mapping[str, Any],
        progress: Callable[[Status], None],
    ) -> None:
        self._trainee, self._options, self._file = trainee, options, file
        self._tell = progress
        pick_device(options.device)
        self._accelerator = Accelerator(cpu=_is_cpu(options.device), mixed_precision="no")
        self._count = self._accelerator.num_processes
        self._is_main = self._accelerator.is_main_process
        named = trainee.module.named_parameters()
        self._parameters = {name: p for name, p in named if p.requires_grad}
        prepared = self._accelerator.prepare(trainee.module, self._optimizer(options))
        self._module, self._optimizer_of_all = prepared
        self._identity = {**identity, **_identity(options), "processes": self._count}
        self._at = Progress(0, 0.0, History())
        if file is not None and file.exists():
            inner = self._optimizer_of_all.optimizer
            self._at = load_checkpoint(file, self._identity, self._parameters, inner)
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._before = self._at.seconds
        self._started = self._saved = time.monotonic()

    def _optimizer(self, options: LoopOptions) -> torch.optim.AdamW:
        """Norms and biases do not decay."""
        every = list(self._parameters.values())
        groups = [
            {"params": [p for p in every if p.dim() > 1], "weight_decay": options.decay},
            {"params": [p for p in every if p.dim() <= 1], "weight_decay": 0.0},
        ]
        filled = [group for group in groups if group["params"]]
        return torch.optim.AdamW(filled, lr=options.rate, betas=options.betas)

    def run(self, stop: Callable[[], bool]) -> Outcome:
        """Take steps until the end."""
        at, options = self._at, self._options
        while True:
            share, stopped = self._agreed(stop)
            if share * options.evaluations >= len(at.history.held_out):
                self._evaluate()
            if stopped or share >= 1:
                break
            loss = self._step(share)
            at.steps += 1
            self._summed += 1
            if at.steps % at.history.every == 0:
                self._summarise()
                self._tell(Status(at.steps, self._seconds(), share, at.history.last))
            if self._is_main and time.monotonic() - self._saved >= options.save_seconds:
                self._check(loss)
                self._save()
        self._summarise()
        at.seconds = self._seconds()
        if self._is_main:
            self._save()
        self._accelerator.wait_for_everyone()
        return Outcome(at.steps, at.seconds, at.history, share >= 1)

    def _agreed(self, stop: Callable[[], bool]) -> tuple[float, bool]:
        """The share of the budget that is spent, and whether to stop, as the first process sees it:
        all must take the same steps."""
        if self._options.steps is not None:
            share = self._at.steps / self._options.steps
        else:
            share = self._seconds() / (60 * (self._options.minutes or 1.0))
        told = torch.tensor([share, float(stop())], dtype=torch.float64)
        if self._count > 1:
            told = broadcast(told.to(self._accelerator.device))
        return float(told[0]), bool(told[1])

    def _step(self, share: float) -> Tensor:
        """One step of the optimizer; the loss of the last batch."""
        options, accelerator, at = self._options, self._accelerator, self._at
        self._module.train()
        process = accelerator.process_index
        torch.manual_seed(_seed(options.seed, at.steps, process))
        if options.steps is not None:
            share += 0.5 / options.steps  # the middle of the step: the first rate is not 0
        for group in self._optimizer_of_all.param_groups:
            group["lr"] = options.rate_at(share)
        self._optimizer_of_all.zero_grad()
        for turn in range(options.accumulate):
            number = (at.steps * options.accumulate + turn) * self._count + process
            batch = self._trainee.batch(number)
            moved = {name: v.to(accelerator.device) for name, v in batch.items()}
            if turn + 1 < options.accumulate:
                with accelerator.no_sync(self._module):
                    loss = self._backward(moved)
            else:
                loss = self._backward(moved)
        accelerator.clip_grad_norm_(self._parameters.values(), options.clip)
        self._optimizer_of_all.step()
        return loss

    def _backward(self, batch: Batch) -> Tensor:
        loss, figures = self._module(batch)
        self._accelerator.backward(loss / self._options.accumulate)
        loss = loss.detach()
        for name, value in {"loss": loss, **figures}.items():
            part = value.detach().float() / self._options.accumulate
            self._sums[name] = self._sums[name] + part if name in self._sums else part
        return loss

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def _summarise(self) -> None:
        """Add the means of the steps since the last point to the history."""
        if not self._summed:
            return
        figures = {name: float(total) / self._summed for name, total in self._sums.items()}
        if not math.isfinite(figures["loss"]):
            raise QuickdraftError(
                f"the loss is {figures['loss']} at step {self._at.steps}; train with a lower rate"
            )
        self._at.history.add(Point(self._at.steps, self._seconds(), figures))
        self._sums, self._summed = {}, 0

    def _evaluate(self) -> None:
        figures: dict[str, float] = {}
        if self._is_main:
            self._trainee.module.eval()
            with torch.no_grad():
                figures = dict(self._trainee.evaluate())
        self._accelerator.wait_for_everyone()
        self._at.history.held_out.append(Point(self._at.steps, self._seconds(), figures))

    def _check(self, loss: Tensor) -> None:
        """A state that cannot be gone on from must not replace one that can."""
        if not bool(torch.isfinite(loss)):
            raise QuickdraftError(
                f"the loss is {float(loss)} at step {self._at.steps}; train with a lower rate"
            )

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._file is None:
            return
        self._at.seconds = self._seconds()
        inner = self._optimizer_of_all.optimizer
        save_checkpoint(self._file, self._identity, self._at, self._parameters, inner)


def _is_cpu(name: str) -> bool:
    return name == "cpu" or not torch.cuda.is_available()


def _identity(options: LoopOptions) -> dict[str, Any]:
    """Options that change what is computed."""
    values = asdict(options)
    for name in ("evaluations", "save_seconds", "device"):
        del values[name]
    return values


def _seed(*numbers: int) -> int:
    told = " ".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest()) >> 1
