"""A coordinate whose rows lie in the partitions of a cluster."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.coordinates.base import FitReport
from gdmix.coordinates.regularization import Regularization
from gdmix.coordinates.uncertainty import CurvatureKind
from gdmix.engines.spark.cluster import Cluster, united
from gdmix.engines.spark.exchange import Pieces, of_kind
from gdmix.engines.spark.scores import Offsets
from gdmix.engines.spark.tasks.fitting import FitTask, curvature, fit, lay_out, score
from gdmix.engines.spark.tasks.home import come_home, facts_of
from gdmix.engines.spark.tasks.kinds import FACTS
from gdmix.engines.spark.tasks.layout import Layout
from gdmix.engines.spark.tasks.model_parts import finish, rescale_variances, shift, total_columns
from gdmix.model.base import CoordinateModel
from gdmix.model.stored import StoredModel

F64 = NDArray[np.float64]


@dataclass
class Work:
    """The folder that driver and executors share, where models lie while a run goes on."""

    folder: Path
    _made: int = 0

    def new(self, name: str) -> Path:
        """Return a folder for the next model of a coordinate."""
        self._made += 1
        folder = self.folder / "models" / f"{name}.{self._made}"
        folder.mkdir(parents=True)
        return folder

    def model(self, folder: Path, entry: dict[str, Any]) -> StoredModel:
        """Return what lies in a folder, which is removed when nobody needs it any more."""
        model = StoredModel(folder, entry)
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
        return model


def layout_id(layout: Layout) -> str:
    """Return what tells whether the parts of a model are those of a layout."""
    placement = layout.placement
    heavy = [] if placement is None else [*placement.heavy.tolist(), *placement.targets.tolist()]
    text = json.dumps([layout.name, layout.partitions, layout.entity, heavy])
    return sha256(text.encode()).hexdigest()[:16]


@dataclass
class SparkCoordinate:
    """A coordinate bound to rows of a cluster: each partition does as one machine would.

    Attributes
    ----------
    layout
        Where its rows are.
    cluster, heads, homes
        The cluster; the rows at home, without bags; the number of home partitions.
    prepared
        The coordinate of each partition.
    work
        Where models go.
    regularization
        The penalty, of a linear one.
    uncovered
        Of a random effect, (columns,) whether some training row has the column but no coefficient.
    staying
        Rows of giant entities that stay at home.
    """

    layout: Layout
    cluster: Cluster
    heads: Pieces
    homes: int
    prepared: Pieces
    work: Work
    regularization: Regularization | None
    uncovered: NDArray[np.bool_] | None = None
    staying: Pieces | None = None
    _group_weight: F64 | None = None
    _penalties: dict[Path, float] = field(default_factory=dict)
    _scores: dict[Path, Pieces] = field(default_factory=dict)

    def reweigh(self, group_weight: F64) -> None:
        """Set the L2 weights of the groups of columns."""
        assert self.regularization is not None
        self.regularization = self.regularization.reweighted(group_weight)
        self._group_weight = group_weight
        self._penalties.clear()

    def fit(self, offset: Offsets, warm_start: CoordinateModel | None) -> tuple[Any, FitReport]:
        """Fit to the training rows."""
        folder = self.work.new(self.layout.name)
        task = self._task(self._stored(warm_start), folder)
        scores, facts = self._at_home(self._fitted(task, offset))
        model = self.in_parts(folder, facts[0]["entry"])
        self._remember(model, scores, facts)
        return model, FitReport.merged([f["report"] for f in facts])

    def _fitted(self, task: FitTask, offset: Offsets) -> Pieces:
        """Return scores and facts of a fit, at home."""
        pieces = united(self.prepared, offset.at(self.layout))
        return self.cluster.send(self.cluster.map(pieces, partial(fit, task)), self.homes)

    def score(self, model: CoordinateModel) -> Pieces:
        """Return all rows' scores, home by home."""
        stored = self._stored(model)
        assert stored is not None
        if stored.folder not in self._scores:
            self._remember(stored, *self._at_home(self._scored(stored)))
        return self._scores[stored.folder]

    def start(self, model: CoordinateModel) -> tuple[CoordinateModel, CoordinateModel | None]:
        """Take an earlier model as it is: `prepare` has divided it."""
        return model, None

    def penalty(self, model: CoordinateModel) -> float:
        """Return the penalty term of the objective."""
        stored = self._stored(model)
        assert stored is not None
        if stored.folder not in self._penalties:
            facts = self.cluster.collect(of_kind(self._scored(stored), FACTS))
            self._penalties[stored.folder] = self._penalty_of(stored, facts)
        return self._penalties[stored.folder]

    def curvature(
        self, model: CoordinateModel, offset: Offsets, kinds: Collection[CurvatureKind]
    ) -> tuple[Any, float]:
        """Return the model with what is asked for, not scaled; and its degrees of freedom."""
        folder = self.work.new(self.layout.name)
        task = self._task(self._stored(model), folder)
        pieces = united(self.prepared, offset.at(self.layout))
        done = self.cluster.map(pieces, partial(curvature, task, set(kinds)))
        facts = self.cluster.collect(of_kind(done, FACTS))
        return self.in_parts(folder, facts[0]["entry"]), sum(f["freedom"] for f in facts)

    def with_dispersion(self, model: CoordinateModel, dispersion: float) -> StoredModel:
        """Return a model with its variances times the residual variance."""
        stored = self._stored(model)
        assert stored is not None
        folder = self.work.new(self.layout.name)
        self._on_parts(partial(rescale_variances, stored, folder, dispersion))
        return self.work.model(folder, {**stored.entry, "dispersion": dispersion})

    def column_totals(self, model: StoredModel, width: int) -> tuple[F64, NDArray[np.int64]]:
        """Return each column's sum and number of coefficients over all models, (width,)."""
        parts = self._on_parts(partial(total_columns, model, width))
        totals, counts = (np.sum([part[k] for part in parts], axis=0) for k in (0, 1))
        return totals, counts

    def shifted(self, model: StoredModel, by_column: F64) -> StoredModel:
        """Return the models less a shift of each column, (width,)."""
        folder = self.work.new(self.layout.name)
        self._on_parts(partial(shift, model, folder, by_column))
        return self.work.model(folder, dict(model.entry))

    def in_parts(self, folder: Path, entry: dict[str, Any]) -> StoredModel:
        """Return the model whose parts of this layout lie in a folder."""
        if entry["type"] == "random_effect":
            entry = {**entry, "layout": layout_id(self.layout)}
        return self.work.model(folder, entry)

    def own(self, model: CoordinateModel) -> StoredModel:
        """Return a model in the parts of this layout, whatever parts it is in."""
        stored = self._stored(model)
        assert stored is not None
        entry = stored.entry
        if entry["type"] != "random_effect" or entry.get("layout") == layout_id(self.layout):
            return stored
        folder = self.work.new(self.layout.name)
        done = self.cluster.map(self.prepared, partial(lay_out, self._task(stored, folder)))
        return self.in_parts(folder, self.cluster.collect(of_kind(done, FACTS))[0]["entry"])

    def finished(self, fitted: CoordinateModel, held: StoredModel | None) -> CoordinateModel:
        """Return a model as it is to stay, with those of other entities, in the same parts."""
        own = self.own(fitted)
        if own.type != "random_effect":
            return fitted
        folder = self.work.new(self.layout.name)
        self._on_parts(partial(finish, own, held, folder))
        entry = {k: v for k, v in own.entry.items() if k != "layout"}
        return self.work.model(folder, entry)

    def _on_parts(self, task: Any) -> list[Any]:
        return self.cluster.collect(self.cluster.on_each(self.layout.partitions, task))

    def _scored(self, model: StoredModel) -> Pieces:
        """Return scores and facts of a model, at home."""
        task = self._task(model, model.folder)
        return self.cluster.send(self.cluster.map(self.prepared, partial(score, task)), self.homes)

    def _at_home(self, arrived: Pieces) -> tuple[Pieces, list[Any]]:
        """Put the scores that arrive at home in the order of the rows there; return facts, too."""
        task = partial(come_home, self.layout, False)
        rows = [self.heads] if self.staying is None else [self.heads, self.staying]
        scores = self.cluster.settled(self.cluster.map(united(*rows, arrived), task))
        return scores, self.cluster.collect(of_kind(scores, facts_of(self.layout.name)))

    def _remember(self, model: StoredModel, scores: Pieces, facts: list[Any]) -> None:
        self._scores = {model.folder: scores}
        self._penalties[model.folder] = self._penalty_of(model, facts)

    def _penalty_of(self, model: StoredModel, facts: list[Any]) -> float:
        return float(sum(f["penalty"] for f in facts))

    def _task(self, model: StoredModel | None, folder: Path) -> FitTask:
        layout, giants = layout_id(self.layout), self.layout.giants
        return FitTask(
            self.layout.name, layout, model, folder, self._group_weight, self.homes, giants
        )

    def _stored(self, model: CoordinateModel | None) -> StoredModel | None:
        """Return a model that tasks can read."""
        if model is None or isinstance(model, StoredModel):
            return model
        folder = self.work.new(self.layout.name)
        model.write(folder)
        return self.work.model(folder, model.describe())
