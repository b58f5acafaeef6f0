"""The score table: all coordinates' scores at the homes of the rows, and metrics of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from gdmix.config import ModelConfig
from gdmix.engines.spark.cluster import Cluster, united
from gdmix.engines.spark.exchange import Addressed, Pieces, addressed, opened
from gdmix.engines.spark.tasks.home import AtHome, loss_of, send_offsets
from gdmix.engines.spark.tasks.layout import Layout
from gdmix.evaluation.checks import Rows
from gdmix.evaluation.partial import DistributedEvaluation, First, Plan


@dataclass(frozen=True)
class Offsets:
    """What all coordinates but some add to the training rows, not summed yet."""

    table: SparkScores
    without: tuple[str, ...]

    def at(self, layout: Layout) -> Pieces:
        """Return the sums where a coordinate is fitted."""
        cluster, table = self.table.cluster, self.table
        task = partial(send_offsets, layout, self.without)
        return cluster.send(cluster.map(table.at_home(), task), layout.partitions)


class SparkScores:
    """Scores of all coordinates, home by home.

    Parameters
    ----------
    cluster
        Where they are.
    heads
        The rows, without bags.
    homes
        Number of home partitions.
    config
        Of the run.
    judged
        The role of the rows that metrics are of.
    """

    def __init__(
        self, cluster: Cluster, heads: Pieces, homes: int, config: ModelConfig, judged: str
    ) -> None:
        self.cluster, self._heads, self._homes = cluster, heads, homes
        self._config, self._judged = config, judged
        self._scores: dict[str, Pieces] = {}
        self._held_penalty = 0.0
        self._evaluation = DistributedEvaluation(
            config.metrics, task=config.task, columns=config.group_columns, parts=homes
        )
        self._seen: tuple[float, int, list[First]] | None = None

    def put(self, name: str, scores: Pieces) -> None:
        """Set a coordinate's scores."""
        earlier, self._scores[name] = self._scores.get(name), scores
        if earlier is not None and earlier is not scores:
            earlier.unpersist()
        self._seen = None

    def hold(self, name: str, scores: Pieces, penalty: float) -> None:
        """Add scores under a name of their own, and their model's penalty: no step changes them."""
        self.put(name, scores)
        self._held_penalty += penalty

    def total_without(self, *names: str) -> Offsets:
        """Return base offset plus all other coordinates' training scores."""
        return Offsets(self, names)

    def at_home(self) -> Pieces:
        """Return rows and scores, home by home."""
        return united(self._heads, *self._scores.values())

    def loss(self) -> float:
        """Return the weighted loss of the training rows, and the penalties that are held."""
        return self._look()[0] + self._held_penalty

    def residual(self) -> tuple[float, int]:
        """Return the weighted loss of the training rows, and how many weigh anything."""
        loss, weighed, _ = self._look()
        return loss, weighed

    def evaluate(self) -> dict[str, float]:
        """Return the metrics of the validation rows, or of the training rows without any."""
        evaluation, cluster = self._evaluation, self.cluster
        plan = evaluation.plan(self._look()[2])
        shares = []
        if evaluation.targets:
            task = partial(_split, evaluation, self._judged, plan)
            parts = cluster.send(cluster.map(self.at_home(), task), evaluation.targets)
            shares = cluster.collect(cluster.map(parts, partial(_reduce, evaluation)))
        return evaluation.finish(plan, shares)

    def _look(self) -> tuple[float, int, list[First]]:
        if self._seen is None:
            task = partial(_look, self._config, self._evaluation, self._judged)
            found = self.cluster.collect(self.cluster.map(self.at_home(), task))
            loss = math.fsum(loss for loss, _, _ in found)
            weighed = sum(weighed for _, weighed, _ in found)
            self._seen = loss, weighed, [first for _, _, first in found]
        return self._seen


def _look(
    config: ModelConfig,
    evaluation: DistributedEvaluation,
    judged: str,
    home: int,
    pieces: Iterable[Addressed],
) -> Iterator[Addressed]:
    own = AtHome.of(home, pieces)
    yield from addressed(
        home, "seen", home, (*loss_of(config, own), evaluation.first(_rows(own, judged)))
    )


def _split(
    evaluation: DistributedEvaluation,
    judged: str,
    plan: Plan,
    home: int,
    pieces: Iterable[Addressed],
) -> Iterator[Addressed]:
    own = AtHome.of(home, pieces)
    for target, message in evaluation.split(_rows(own, judged), own.heads[judged].keys, plan):
        yield from addressed(target, "rows", home, message)


def _reduce(
    evaluation: DistributedEvaluation, target: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    messages = list(opened(pieces).get("rows", {}).values())
    if messages:
        yield from addressed(target, "share", target, evaluation.reduce(target, messages))


def _rows(own: AtHome, judged: str) -> Rows:
    rows = own.heads[judged]
    return Rows(own.total(judged), rows.response, rows.weight)
