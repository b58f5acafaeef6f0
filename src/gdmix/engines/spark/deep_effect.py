"""A network whose rows are divided among the tasks of a barrier stage.

All tasks run at once, and form a process group of PyTorch's. Each computes its rows' part of every
step's gradient, and they add these up (`deep.distributed`). One stage is one fit: a lost executor
ends it, and Spark runs it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from gdmix.config import DeepFixedEffect
from gdmix.coordinates.base import FitReport
from gdmix.data.keys import Keys
from gdmix.data.partition import concatenated_keys
from gdmix.engines.spark.cluster import united
from gdmix.engines.spark.collective import PeerLost
from gdmix.engines.spark.coordinates import SparkCoordinate
from gdmix.engines.spark.exchange import Addressed, Pieces, Placement, addressed
from gdmix.engines.spark.scores import Offsets
from gdmix.engines.spark.tasks.fitting import FitTask, homewards
from gdmix.engines.spark.tasks.kinds import FACTS, TRAIN, VALIDATION
from gdmix.engines.spark.tasks.layout import Layout
from gdmix.engines.spark.tasks.model_parts import write_part
from gdmix.errors import GdmixError
from gdmix.model.base import CoordinateModel
from gdmix.model.stored import StoredModel, in_memory

T = TypeVar("T")

_DONE, _LOST, _MISTAKE = "done", "lost", "mistake"


def deep_layout(spec: DeepFixedEffect, shards: int, n_rows: int) -> Layout:
    """Return where the rows of a network go: those that a loss compares go together."""
    placement = None if spec.group is None else Placement.balanced(shards, n_rows, {})
    return Layout(spec.name, shards, spec.group, placement, spec.bags, spec.key_columns)


@dataclass
class SparkDeepEffect(SparkCoordinate):
    """A deep fixed effect on as many shards as tasks run at once."""

    def _fitted(self, task: FitTask, offset: Offsets) -> Pieces:
        """Return scores and facts of a fit, at home."""
        pieces = united(self.prepared, offset.at(self.layout))
        shard = self.cluster.errors.guard(partial(fit_shard, task))
        # What follows is a shuffle: Spark does not run a barrier stage again if it is the last.
        return self.cluster.send(pieces.barrier().mapPartitions(shard), self.homes)

    def extended(self, model: CoordinateModel) -> StoredModel:
        """Return an earlier model with vectors of the ids that only the training rows have."""
        from gdmix.deep.model import DeepModel

        stored = self.own(model)
        task = self._task(stored, stored.folder)
        found = self.cluster.collect(self.cluster.map(self.prepared, partial(unknown_ids, task)))
        ids: dict[str, Keys] = {
            key: concatenated_keys([own[key] for own in found]) for key in found[0]
        }
        loaded = in_memory(model)
        assert isinstance(loaded, DeepModel)
        return self.own(loaded.extended(ids, self.layout.name))


def unknown_ids(task: FitTask, partition: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Yield the ids of a shard's training rows that a model does not know."""
    prepared, _, model = task.open(pieces, partition)
    yield from addressed(partition, FACTS, partition, prepared.coordinate.unknown_ids(model))


def fit_shard(task: FitTask, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Train together with the other tasks of the stage; the first one writes the model.

    Yields
    ------
    tuple
        Scores of the shard's rows, addressed to their homes; facts.
    """
    from pyspark import BarrierTaskContext

    from gdmix.deep.distributed import joined

    context = BarrierTaskContext.get()
    rank, tasks = context.partitionId(), context.getTaskInfos()
    host = tasks[rank].address.rsplit(":", 1)[0]

    def work() -> list[Addressed]:
        prepared, offset, start = task.open(pieces, rank)
        model, report = prepared.coordinate.fit(offset, start)
        if rank == 0:
            write_part(model, task.folder, rank)
        scores = prepared.coordinate.score(model)
        by_role = {TRAIN: scores.train}
        if scores.validation is not None:
            by_role[VALIDATION] = scores.validation
        facts = {
            # One network, one report.
            "report": report if rank == 0 else FitReport(0, {}, 0.0, 0.0),
            "penalty": prepared.coordinate.penalty(model),
            "entry": model.describe(),
        }
        return [
            *homewards(prepared.sizes, by_role, rank),
            *addressed(rank % task.homes, FACTS, rank, facts),
        ]

    team = joined(rank, len(tasks), context.allGather, host, _gpu(context))
    yield from in_agreement(context.allGather, team, work) or ()


def in_agreement(
    all_gather: Callable[[str], Iterable[str]],
    team: AbstractContextManager[object],
    work: Callable[[], T],
) -> T | None:
    """Return what a task's work in a team returns, once all tasks of the stage have done theirs.

    Where a task tells of what a user can mend the others, which miss it, end without a word: a
    task that fails would let Spark run the stage again.

    Parameters
    ----------
    all_gather
        Returns the texts that all tasks give it.
    team
        Left at once by a task that fails, else when all tasks are done.

    Returns
    -------
    object
        None where another task tells of a mistake.

    Raises
    ------
    GdmixError
        The one of this task's work.
    PeerLost
        If a task is gone of which none knows why: Spark is to run the stage again.
    """
    from gdmix.deep.distributed import PeerEnded

    outcome, result = _DONE, None
    failure: GdmixError | None = None
    with ExitStack() as stack:
        try:
            stack.enter_context(team)
            result = work()
        except GdmixError as error:
            stack.close()  # others may be waiting for this task
            outcome = _LOST if isinstance(error, PeerEnded) else _MISTAKE
            failure = error
        outcomes = list(all_gather(outcome))
    if outcome == _MISTAKE and failure is not None:
        raise failure
    if _MISTAKE in outcomes:
        return None
    if _LOST in outcomes:
        raise PeerLost(str(failure or "another task of the stage lost its connection"))
    return result


def _gpu(context: Any) -> int | None:
    """Return the number of the GPU that Spark gave a task."""
    given = context.resources().get("gpu")
    numbers = [] if given is None else [own for own in given.addresses if own.isdigit()]
    return int(numbers[0]) if numbers else None
