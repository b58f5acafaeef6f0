"""Training a network: batches, gradients, steps, and which of its states is kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gdmix.config.training import Training
from gdmix.deep.batches import (
    BatchPlan,
    BatchSource,
    Holding,
    Share,
    TrainingRows,
    Units,
    split,
    units_of,
)
from gdmix.deep.checkpoints import TrainingCheckpoint, interruption, signature
from gdmix.deep.distributed import Team, team
from gdmix.deep.optimizer import Optimizer
from gdmix.errors import ConfigError

log = logging.getLogger("gdmix.training")


class Loss(Protocol):
    """What is minimised."""

    def __call__(
        self, score: Tensor, response: Tensor, weight: Tensor, group: Tensor | None, /
    ) -> Tensor:
        """Return the sum of weighted losses of (m,) rows, a scalar."""


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes
    ----------
    step, steps
        Done, and at most to be done.
    loss
        Mean weighted loss of the training rows since the last report.
    rate
        Rows per second.
    seconds_left
        Until all steps are done.
    judgement
        The last one; None before there is any.
    """

    step: int
    steps: int
    loss: float
    rate: float
    seconds_left: float
    judgement: float | None

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds_left), 60)
        judged = "" if self.judgement is None else f", judged {self.judgement:.6f}"
        return (
            f"step {self.step:,}/{self.steps:,}, loss {self.loss:.6f}{judged}, "
            f"{self.rate:,.0f} rows/s, {minutes}:{seconds:02d} left"
        )


@dataclass
class TrainingReport:
    """How a training went.

    Attributes
    ----------
    steps
        Steps that were done.
    curve
        Mean weighted loss of the training rows by step: up to it, from the one before it on.
    judgements
        Values of what networks are judged by, by step.
    kept
        The step after which the weights that are kept were taken.
    stopped_early
        Whether judgements that were no better ended it.
    gradient_norm
        Of the last step's mean gradient, before clipping.
    rate
        Rows per second of this process's run.
    """

    steps: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    judgements: list[tuple[int, float]] = field(default_factory=list)
    kept: int = 0
    stopped_early: bool = False
    gradient_norm: float = math.nan
    rate: float = math.nan

    @property
    def loss(self) -> float:
        """The last point of the curve."""
        return self.curve[-1][1] if self.curve else math.nan


def fit_network(
    network: nn.Module,
    source: BatchSource,
    loss: Loss,
    training: Training,
    *,
    seed: int = 0,
    validation: Callable[[nn.Module], float] | None = None,
    higher_is_better: bool = False,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    threads: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingReport:
    """Train a network, in place; it comes back on the CPU, ready to score.

    Minimises the mean of `loss` over the weights of rows, at scores ``network(batch) + offset``.
    All processes of a team call it with the same arguments, but for rows that are divided among
    them, and leave it with the same network; the first one's weights are those it begins with.

    Parameters
    ----------
    network
        From a batch to (m,) scores. What its method `pretrained_parameters` gives, if it has
        one, is trained at the encoder's learning rate.
    source
        The training rows that this process holds.
    seed
        Of the order of rows, of the inner split and of dropout; `training.seed` is the caller's
        to heed.
    validation
        Judges a network in evaluation mode, where ``training.judge_on_validation`` asks for it.
    higher_is_better
        Of `validation`; an inner split is judged by its loss.
    checkpoint
        File of the state, which is gone on with if it began from the same weights and offsets.
    identity
        What else must be the same to go on; JSON.
    threads
        Of the CPU, for all processes of this machine; default: as PyTorch is set.
    on_progress
        Called by the first process at every point of the curve.

    Raises
    ------
    ConfigError
        If the loss becomes infinite or NaN, or the device is missing.
    ModelError
        If the checkpoint is damaged, or of another training.
    KeyboardInterrupt
        If it is interrupted: after the step, with the state written.
    """
    own = team()
    device = device_of(training.device, own)
    with ExitStack() as stack:
        stack.enter_context(_threads(threads and max(threads // own.local_size, 1)))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        interrupted = stack.enter_context(interruption())
        stack.callback(_hand_back, network)

        own.copy_from_first(network)
        begun = _signature_of(network, source)
        network.to(device)
        rows = TrainingRows.of(source, own)
        units, inner = units_of(rows), None
        if training.inner_split is not None:
            units, inner = split(units, training.inner_split, seed)
        plan = BatchPlan(
            units,
            rows.weight,
            batch_size=training.batch_size,
            accumulate=training.accumulate,
            block_rows=rows.block_rows,
            seed=seed,
        )
        steps = training.steps or (training.epochs or 1) * plan.steps_per_epoch
        optimizer = Optimizer(network, training, steps)
        loader = stack.enter_context(_Loader(source, plan, rows.holding, device, steps))
        compute = _compute(network, loss, training, device)
        judge = _judge(
            network, source, rows.holding, inner, compute, training, validation, own, device
        )
        store = TrainingCheckpoint(
            checkpoint if own.is_first else None,
            {
                "rows": source.n_rows,
                "parameters": {n: list(p.shape) for n, p in network.named_parameters()},
                **(identity or {}),
            },
            begun,
            {"seed": seed, **training.model_dump(mode="json", exclude=_WITHOUT_EFFECT)},
        )
        run = _Run(network, optimizer, training, higher_is_better and inner is None)
        run.load(own.shared(store.load()))
        clock = _Clock(run.step)
        every = training.judge_every or plan.steps_per_epoch

        while not run.is_over(steps):
            _seed_noise(device, seed, run.step, own.rank)
            share, batches = loader.step(run.step)
            network.train()
            optimizer.gradients.clear()
            for batch in batches:
                optimizer.backward(compute(batch) / share.expected_weight)
            for vector in optimizer.gradients.vectors:
                own.add_up(vector)
            run.norm = optimizer.step(run.step)
            run.count(share)
            clock.rows += share.n_rows

            is_last = run.step == steps
            if judge is not None and (run.step % every == 0 or is_last):
                run.judged(judge())
            if run.step % training.log_every == 0 or run.is_over(steps):
                _report(run, clock, steps, own, on_progress)
            if interrupted.requested or run.is_over(steps) or store.is_due():
                run.check_finite()
                store.save(run.state())
            if interrupted.requested:
                raise KeyboardInterrupt
        run.restore_best()
        own.copy_from_first(network)  # what norms gathered is each process's own
    run.report.rate = clock.rate
    return run.report


_WITHOUT_EFFECT = {"device", "compile", "log_every", "seed"}  # on what comes of it


class _Run:
    """A training's state: all that changes from step to step."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        training: Training,
        higher_is_better: bool,
    ) -> None:
        self._network, self._optimizer = network, optimizer
        self._patience = training.patience
        self._sign = 1.0 if higher_is_better else -1.0
        self.report = TrainingReport()
        self.norm = torch.tensor(math.nan)
        self._best: dict[str, Tensor] = {}
        loss = optimizer.gradients.loss
        # Of the losses since the last point of the curve, and of their weights.
        self._sum, self._weight = torch.zeros((), dtype=torch.float64, device=loss.device), 0.0

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.report.steps

    def is_over(self, steps: int) -> bool:
        """Whether there is no further step."""
        return self.step >= steps or self.report.stopped_early

    def count(self, share: Share) -> None:
        """Note that a step was done."""
        self._sum += self._optimizer.gradients.loss * share.expected_weight
        self._weight += share.weight
        self.report.steps += 1

    def judged(self, value: float) -> None:
        """Note what the network is worth now."""
        report = self.report
        best = max((self._sign * v for _, v in report.judgements if v == v), default=-math.inf)
        report.judgements.append((self.step, value))
        if self._sign * value > best or not self._best:
            report.kept = self.step
            self._best = {k: v.detach().clone() for k, v in self._network.state_dict().items()}
        no_better = sum(step > report.kept for step, _ in report.judgements)
        report.stopped_early = self._patience is not None and no_better >= self._patience

    def mean_loss(self) -> float:
        """Return the mean loss since the last point of the curve."""
        return float(self._sum) / self._weight

    def add_point(self) -> None:
        """Let the curve have a point here."""
        self.check_finite()
        self.report.curve.append((self.step, self.mean_loss()))
        self._sum.zero_()
        self._weight = 0.0

    def check_finite(self) -> None:
        """Refuse to go on with weights that are lost."""
        norm = self.report.gradient_norm = float(self.norm)
        lost = math.isnan(norm) and self.step > 0 and not self._optimizer.skips_overflow
        if lost or not math.isfinite(float(self._sum)):
            raise ConfigError(
                f"training: the loss is not finite any more by step {self.step}; "
                "lower learning_rate, set clip, or warm up for longer"
            )

    def restore_best(self) -> None:
        """Bring the weights back that were judged best."""
        if self._best:
            self._network.load_state_dict(self._best)
        else:
            self.report.kept = self.step

    def state(self) -> dict[str, Any]:
        """Return what `load` takes: tensors and plain values."""
        report = self.report
        return {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "sum": float(self._sum),
            "weight": self._weight,
            "steps": report.steps,
            "curve": report.curve,
            "judgements": report.judgements,
            "kept": report.kept,
            "stopped_early": report.stopped_early,
            "gradient_norm": report.gradient_norm,
        }

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from a state, if there is one."""
        if state is None:
            return
        report = self.report
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        device = self._sum.device
        self._best = {k: v.to(device) for k, v in state["best"].items()}
        self._sum.fill_(state["sum"])
        self._weight = state["weight"]
        report.steps = state["steps"]
        report.curve = [tuple(point) for point in state["curve"]]
        report.judgements = [tuple(point) for point in state["judgements"]]
        report.kept = state["kept"]
        report.stopped_early = state["stopped_early"]
        report.gradient_norm = state["gradient_norm"]
        self.norm.fill_(report.gradient_norm)
        log.info("goes on from step %d", report.steps)


def _hand_back(network: nn.Module) -> None:
    """Leave a network as it is to be scored with."""
    network.zero_grad(set_to_none=True)
    network.to("cpu").eval()


class _Clock:
    """How fast steps are done, from now on."""

    def __init__(self, step: int) -> None:
        self._first, self._started = step, time.monotonic()
        self.rows = 0

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / max(time.monotonic() - self._started, 1e-9)

    def seconds_left(self, step: int, steps: int) -> float:
        """Return the time that the steps which are left take at this rate."""
        done = max(step - self._first, 1)
        return (time.monotonic() - self._started) / done * (steps - step)


def _report(
    run: _Run,
    clock: _Clock,
    steps: int,
    own: Team,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Add a point to the curve and tell of it."""
    run.add_point()
    report = run.report
    judgement = report.judgements[-1][1] if report.judgements else None
    left = clock.seconds_left(run.step, steps)
    progress = Progress(run.step, steps, report.loss, clock.rate, left, judgement)
    if own.is_first:
        log.info("%s", progress)
        if on_progress is not None:
            on_progress(progress)


class _Loader:
    """Batches on their device; for a GPU they are made while it works on the ones before."""

    def __init__(
        self,
        source: BatchSource,
        plan: BatchPlan,
        holding: Holding,
        device: torch.device,
        steps: int,
    ) -> None:
        self._source, self._plan, self._holding = source, plan, holding
        self._device, self._steps = device, steps
        self._pool = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self._next: tuple[int, Future[tuple[Share, list[dict[str, Tensor]]]]] | None = None

    def __enter__(self) -> _Loader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def step(self, number: int) -> tuple[Share, Iterator[dict[str, Tensor]]]:
        """Return this process's share of a step, and its batches."""
        if self._pool is None:
            share = self._share(number)
            return share, (self._source.batch(rows) for rows in share.parts if rows.size)
        if self._next is None or self._next[0] != number:
            self._next = number, self._pool.submit(self._made, number)
        share, batches = self._next[1].result()
        if number + 1 < self._steps:
            self._next = number + 1, self._pool.submit(self._made, number + 1)
        return share, (to_device(batch, self._device) for batch in batches)

    def _share(self, number: int) -> Share:
        return self._plan.share(number, self._holding)

    def _made(self, number: int) -> tuple[Share, list[dict[str, Tensor]]]:
        share = self._share(number)
        batches = [self._source.batch(rows) for rows in share.parts if rows.size]
        return share, [{k: v.pin_memory() for k, v in batch.items()} for batch in batches]


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return a batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _compute(
    network: nn.Module, loss: Loss, training: Training, device: torch.device
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return what gives the sum of weighted losses of a batch."""
    on_gpu = device.type == "cuda"
    forward: Callable[[Any], Tensor] = network
    if training.compile and on_gpu:
        forward = torch.compile(network)
    reduced = on_gpu and training.precision != "float32"
    if not on_gpu and (training.compile or training.precision != "float32"):
        log.info("precision and compile are for a GPU: they change nothing on the CPU")
    dtype = torch.float16 if training.precision == "float16" else torch.bfloat16

    def compute(batch: Mapping[str, Tensor]) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=reduced):
            score = forward(batch)
        response = batch["response"]
        if score.shape != response.shape:
            raise ConfigError(
                f"model: gives scores of shape {tuple(score.shape)} for {response.numel()} rows; "
                f"should be ({response.numel()},)"
            )
        score = score.float() if reduced else score
        return loss(score + batch["offset"], response, batch["weight"], batch.get("group"))

    return compute


def _judge(
    network: nn.Module,
    source: BatchSource,
    holding: Holding,
    inner: Units | None,
    compute: Callable[[Mapping[str, Tensor]], Tensor],
    training: Training,
    validation: Callable[[nn.Module], float] | None,
    own: Team,
    device: torch.device,
) -> Callable[[], float] | None:
    """Return what tells the worth of the network as it is, to all processes alike."""
    if training.judge_on_validation and validation is None and own.is_first:
        raise ConfigError("training.judge_on_validation: there are no validation rows")

    def inner_loss() -> float:
        assert inner is not None
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        parts = -(-inner.rows.size // training.batch_size)
        for units in np.array_split(np.arange(inner.size), parts):
            rows = holding.own(inner, units)
            if rows.size:
                sums[0] += compute(to_device(source.batch(rows), device))
                sums[1] += float(source.weight[rows].sum())
        own.add_up(sums)
        return float(sums[0] / sums[1])

    def worth() -> float:
        ours = math.nan if validation is None or not own.is_first else validation(network)
        return own.shared(float(ours))

    judge = inner_loss if inner is not None else worth if training.judge_on_validation else None
    if judge is None:
        return None

    def judged() -> float:
        network.eval()
        with torch.no_grad():
            return judge()

    return judged


def device_of(name: str, own: Team) -> torch.device:
    """Return the device that a setting means to this process.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    _, _, number = name.partition(":")
    index = int(number) if number else own.local_rank % max(count, 1)
    if index >= count:
        raise ConfigError(f"training.device: there is no '{name}' here; GPUs: {count}")
    return torch.device("cuda", index)


def _signature_of(network: nn.Module, source: BatchSource) -> list[float]:
    """Return what tells the beginning of a training from that of another."""
    tensors = [p.detach().cpu().flatten() for p in network.parameters()]
    arrays = [t.numpy() if t.dtype != torch.bfloat16 else t.float().numpy() for t in tensors]
    return signature(source.weight, source.offset, *arrays)


def _seed_noise(device: torch.device, *numbers: int) -> None:
    """Let dropout depend on these numbers alone, so that a training can go on at any step."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
