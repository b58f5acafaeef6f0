"""`l2: auto` on a cluster: weights are estimated by one task, which holds all training rows.

The Laplace approximation takes all coordinates' coefficients together (`variance_components`), so
that it can't be divided as a fit can. Only the estimate is made in one place; fits are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.config import ModelConfig
from gdmix.coordinates.regularization import Regularization
from gdmix.coordinates.variance_components import Estimate, Weights, estimate
from gdmix.data.partition import concatenated, take_rows
from gdmix.engines.binding import BoundRows
from gdmix.engines.spark.cluster import Cluster, united
from gdmix.engines.spark.coordinates import SparkCoordinate
from gdmix.engines.spark.exchange import Addressed, Pieces, addressed, in_order, opened
from gdmix.engines.spark.scores import SparkScores
from gdmix.engines.spark.tasks.kinds import BAGS, HEAD, OFFSET, PREPARED, TRAIN
from gdmix.engines.spark.tasks.layout import Layout
from gdmix.glm.newton import Labels
from gdmix.model.base import CoordinateModel
from gdmix.model.mixed_model import LOSSES
from gdmix.model.stored import StoredModel

F64 = NDArray[np.float64]

_LAYOUT = Layout("l2: auto", 1, None, None, (), ())


class GatheredWeights:
    """Estimates the weights of the coordinates that ask for it, and sets them.

    Parameters
    ----------
    cluster
        Where the rows are.
    config
        Of the run.
    home
        The rows and their bags at home; they are looked at when the first estimate is made.
    coordinates
        Those that are fitted.
    scores
        All scores.
    """

    def __init__(
        self,
        cluster: Cluster,
        config: ModelConfig,
        home: Pieces,
        coordinates: Mapping[str, SparkCoordinate],
        scores: SparkScores,
    ) -> None:
        self._cluster, self._config, self._scores = cluster, config, scores
        self._coordinates = {n: coordinates[n] for n in config.fitted_linear}
        self._weights: Mapping[str, Weights] = {}
        penalties = {n: c.regularization for n, c in self._coordinates.items()}
        gathered = cluster.send(cluster.map(home, gather), 1)
        self._rows = cluster.kept(cluster.map(gathered, partial(prepare_all, config, penalties)))
        cluster.errors.run(self._rows.count)

    def estimate(self, models: Mapping[str, CoordinateModel], accuracy: float) -> Estimate:
        """Estimate the weights around models that were fitted with those of now."""
        own = {name: c.own(models[name]) for name, c in self._coordinates.items()}
        task = partial(
            estimate_all, self._config, own, frozenset(self._config.auto), self._weights, accuracy
        )
        offsets = self._scores.total_without(*self._coordinates).at(_LAYOUT)
        found = self._cluster.collect(self._cluster.map(united(self._rows, offsets), task))
        result: Estimate = found[0]
        return result

    def apply(self, weights: Mapping[str, Weights]) -> None:
        """Set the weights of groups, by coordinate."""
        self._weights = weights
        for name, own in weights.items():
            self._coordinates[name].reweigh(np.array(own.weight))


@dataclass(frozen=True)
class _Gathered:
    """All linear coordinates on all training rows, which ascend by uid."""

    coordinates: Mapping[str, Any]
    response: F64
    weight: F64
    order: NDArray[np.int64]
    sizes: list[tuple[int, int]]


def gather(home: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Send the training rows of a home to the one task."""
    found = opened(pieces)
    rows = replace(found[HEAD][home][TRAIN], bags=found[BAGS][home][TRAIN])
    yield from addressed(0, TRAIN, home, rows)


def prepare_all(
    config: ModelConfig,
    penalties: Mapping[str, Regularization | None],
    partition: int,
    pieces: Iterable[Addressed],
) -> Iterator[Addressed]:
    """Bind all linear coordinates to all rows."""
    parts = opened(pieces)[TRAIN]
    rows = concatenated(list(parts.values()))
    order = np.argsort(rows.uid, kind="stable")
    bound = BoundRows(config, take_rows(rows, order), None, {}, 1)
    coordinates = {name: bound.coordinate(name, own) for name, own in penalties.items()}
    sizes = [(home, part.n_rows) for home, part in parts.items()]
    train = bound.train
    content = _Gathered(coordinates, train.response, train.weight, order, sizes)
    yield from addressed(partition, PREPARED, partition, content)


def estimate_all(
    config: ModelConfig,
    stored: Mapping[str, StoredModel],
    estimated: frozenset[str],
    before: Mapping[str, Weights],
    accuracy: float,
    partition: int,
    pieces: Iterable[Addressed],
) -> Iterator[Addressed]:
    """Estimate the weights."""
    found = opened(pieces)
    rows: _Gathered = found[PREPARED][partition]
    offset = in_order(rows.sizes, found[OFFSET], "l2: auto")[rows.order]
    for name, own in before.items():
        coordinate = rows.coordinates[name]
        coordinate.regularization = coordinate.regularization.reweighted(np.array(own.weight))
    models = {
        name: coordinate.start(stored[name].loaded)[0]
        for name, coordinate in rows.coordinates.items()
    }
    labels = Labels(rows.response, rows.weight, offset, LOSSES[config.task])
    result = estimate(rows.coordinates, models, labels, estimated, before, True, accuracy)
    yield from addressed(partition, "estimate", partition, result)
