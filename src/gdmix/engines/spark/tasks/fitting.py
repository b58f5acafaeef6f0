"""What a partition does with its coordinate: it is bound to rows, fitted, scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.config import FixedEffect, ModelConfig
from gdmix.coordinates.base import Coordinate
from gdmix.coordinates.fixed_effect import FixedEffectRows
from gdmix.coordinates.random_effect import RandomEffectCoordinate
from gdmix.coordinates.regularization import Regularization
from gdmix.coordinates.uncertainty import CurvatureKind
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.partition import concatenated
from gdmix.engines.binding import BoundRows
from gdmix.engines.spark.exchange import (
    Addressed,
    addressed,
    in_order,
    opened,
)
from gdmix.engines.spark.giants import Giants, elsewhere
from gdmix.engines.spark.tasks.kinds import (
    FACTS,
    GIANTS,
    LEFT,
    OFFSET,
    PREPARED,
    SCORE,
    START,
    TRAIN,
    VALIDATION,
)
from gdmix.engines.spark.tasks.layout import Layout
from gdmix.engines.spark.tasks.model_parts import read_part, write_part
from gdmix.model.linear import LinearModel
from gdmix.model.stored import StoredModel

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Prepared:
    """A coordinate bound to the rows of a partition.

    Attributes
    ----------
    coordinate
        As on one machine.
    sizes
        By role, where the rows came from: home partition and number, in order.
    """

    coordinate: Any
    sizes: Mapping[str, list[tuple[int, int]]]


def prepare(
    layout: Layout,
    config: ModelConfig,
    indices: Mapping[str, FeatureIndex],
    penalty: Regularization | None,
    folder: Path,
    homes: int,
    partition: int,
    pieces: Iterable[Addressed],
) -> Iterator[Addressed]:
    """Bind a coordinate to the rows of a partition, once.

    Yields
    ------
    tuple
        The coordinate; which columns some row has that no coefficient covers; scores of the
        entities of an earlier model that are not fitted here.
    """
    found = opened(pieces)
    empty = found["empty"][0]
    datasets, sizes = {}, {}
    for role in empty:
        parts = found.get(role, {})
        sizes[role] = [(home, part.n_rows) for home, part in parts.items()]
        datasets[role] = concatenated([empty[role], *parts.values()])
    rows = BoundRows(config, datasets[TRAIN], datasets.get(VALIDATION), indices, 1)
    if layout.giants is not None and layout.entity is not None:
        left = list(found.get(LEFT, {}).values())
        rows = replace(rows, elsewhere=elsewhere(left, datasets[TRAIN].keys[layout.entity]))
    earlier = found[START][0] if START in found else None
    coordinate: Any
    if isinstance(config.coordinates[layout.name], FixedEffect):
        coordinate = rows.shard(layout.name)
    else:
        coordinate = rows.coordinate(layout.name, penalty, earlier)
    facts: dict[str, Any] = {"held": 0.0}
    if earlier is not None:
        own, rest = coordinate.start(earlier)
        write_part(own, folder / f"{layout.name}.start", partition)
        if rest is not None:
            write_part(rest, folder / f"{layout.name}.held", partition)
            if isinstance(rest, LinearModel) and penalty is not None:
                facts["held"] = penalty.term(rest.coefficients)
            scores = {role: rest.score(own_rows) for role, own_rows in datasets.items()}
            yield from homewards(sizes, scores, partition)
            yield from giants_homewards(layout.giants, rest, homes, partition)
        facts["start"] = own.describe()
    if isinstance(coordinate, RandomEffectCoordinate):
        facts["uncovered"] = coordinate.uncovered
    yield from addressed(partition, PREPARED, partition, Prepared(coordinate, sizes))
    yield from addressed(partition, FACTS, partition, facts)


@dataclass(frozen=True)
class FitTask:
    """What a partition is to do with its coordinate.

    Attributes
    ----------
    name, layout
        Of the coordinate; what tells its layout from others.
    model
        Where to start, or what to score; None: at zero.
    folder
        Where the new model goes.
    group_weight
        L2 weights of the groups of columns, where they are estimated.
    homes
        Number of home partitions.
    giants
        Entities whose models some homes need.
    """

    name: str
    layout: str
    model: StoredModel | None
    folder: Path
    group_weight: F64 | None
    homes: int
    giants: Giants | None = None

    def open(self, pieces: Iterable[Addressed], partition: int) -> tuple[Prepared, F64, Any]:
        """Return the coordinate, its offsets if any came, and the model."""
        # What `prepare` has addressed to homes lies here, too.
        found = opened(pieces, PREPARED, OFFSET)
        prepared: Prepared = found[PREPARED][partition]
        coordinate: Coordinate[Any] = prepared.coordinate
        if self.group_weight is not None:
            linear: Any = coordinate
            linear.regularization = linear.regularization.reweighted(self.group_weight)
        offset = np.empty(0)
        if OFFSET in found:
            offset = in_order(prepared.sizes[TRAIN], found[OFFSET], f"coordinate '{self.name}'")
        model = None
        if self.model is not None:
            model = read_part(self.model, self.layout, partition, coordinate)
        return prepared, offset, model


def fit(task: FitTask, partition: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Fit a coordinate to the rows of a partition, and score them.

    Yields
    ------
    tuple
        Scores, addressed to the rows' homes; facts.
    """
    prepared, offset, start = task.open(pieces, partition)
    model, report = prepared.coordinate.fit(offset, start)
    write_part(model, task.folder, partition)
    facts = {"report": report, "penalty": prepared.coordinate.penalty(model)}
    yield from _scored(task, prepared, model, partition, facts)


def score(task: FitTask, partition: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Score the rows of a partition with a model that there is; yields as `fit` does."""
    prepared, _, model = task.open(pieces, partition)
    coordinate = prepared.coordinate
    is_shard = isinstance(coordinate, FixedEffectRows)  # which does not know the penalty
    facts = {} if is_shard else {"penalty": coordinate.penalty(model)}
    yield from _scored(task, prepared, model, partition, facts)


def _scored(
    task: FitTask, prepared: Prepared, model: Any, partition: int, facts: dict[str, Any]
) -> Iterator[Addressed]:
    """Yield the scores of a partition's rows, and facts."""
    scores = prepared.coordinate.score(model)
    by_role = {TRAIN: scores.train}
    if scores.validation is not None:
        by_role[VALIDATION] = scores.validation
    yield from homewards(prepared.sizes, by_role, partition)
    yield from giants_homewards(task.giants, model, task.homes, partition)
    facts = {**facts, "entry": model.describe()}
    yield from addressed(partition % task.homes, FACTS, partition, facts)


def homewards(
    sizes: Mapping[str, list[tuple[int, int]]], scores: Mapping[str, F64], partition: int
) -> Iterator[Addressed]:
    """Yield a partition's scores, addressed to the homes of its rows."""
    parts: dict[int, dict[str, F64]] = {}
    for role, own in scores.items():
        first = 0
        for home, n in sizes[role]:
            if n:
                parts.setdefault(home, {})[role] = own[first : first + n]
            first += n
    for home, own_parts in parts.items():
        yield from addressed(home, SCORE, partition, own_parts)


def giants_homewards(
    giants: Giants | None, model: Any, homes: int, partition: int
) -> Iterator[Addressed]:
    """Yield the models of giant entities, addressed to all homes."""
    own = None if giants is None else giants.models(model)
    if own is not None:
        for home in range(homes):
            yield from addressed(home, GIANTS, partition, own)


def curvature(
    task: FitTask, kinds: set[CurvatureKind], partition: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Write a model with variances; yields the degrees of freedom."""
    prepared, offset, model = task.open(pieces, partition)
    certain, freedom = prepared.coordinate.curvature(model, offset, kinds)
    write_part(certain, task.folder, partition)
    yield from addressed(
        partition, FACTS, partition, {"freedom": freedom, "entry": certain.describe()}
    )


def lay_out(task: FitTask, partition: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Write a partition's part of a model that lies in other parts."""
    _, _, model = task.open(pieces, partition)
    write_part(model, task.folder, partition)
    yield from addressed(partition, FACTS, partition, {"entry": model.describe()})
