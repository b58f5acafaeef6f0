"""The trained model: coordinates in order, whose scores add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.config import ColumnRoles, EntityPart, FeatureBag, Task
from gdmix.data.dataset import Dataset
from gdmix.data.derived_keys import key_of
from gdmix.data.feature_index import INTERCEPT_NAME, FeatureIndex, features_of
from gdmix.data.read import Source
from gdmix.data.schema import RowSchema
from gdmix.errors import ModelError, did_you_mean
from gdmix.glm import losses
from gdmix.model.base import CoordinateModel, optional_keys, text_keys
from gdmix.model.coefficients import FixedCoefficients
from gdmix.model.custom import with_pickles_trusted
from gdmix.model.external import ExternalModel, with_sources
from gdmix.model.factorization import FactorizationModel
from gdmix.model.linear import LinearModel, linear_models
from gdmix.model.stored import in_memory

F64 = NDArray[np.float64]

LOSSES: Mapping[Task, int] = {
    "logistic_regression": losses.LOGISTIC,
    "linear_regression": losses.SQUARED,
    "poisson_regression": losses.POISSON,
}


@dataclass(frozen=True)
class TrainedModel:
    """All that is needed to score rows.

    Attributes
    ----------
    task
        Decides the inverse link.
    columns
        Column roles of the rows it was trained on.
    bags
        Feature bags by name.
    indices
        The frozen feature index of each bag.
    coordinates
        Models by coordinate, in order.
    derived
        Parts of the entities that no column holds.
    """

    task: Task
    columns: ColumnRoles
    bags: Mapping[str, FeatureBag]
    indices: Mapping[str, FeatureIndex]
    coordinates: Mapping[str, CoordinateModel] = field(default_factory=dict)
    derived: Mapping[str, tuple[EntityPart, ...]] = field(default_factory=dict)

    @property
    def linear(self) -> dict[str, LinearModel]:
        """Those of the coordinates that have coefficients."""
        return linear_models(self.coordinates)

    def in_memory(self) -> TrainedModel:
        """Return the model with those of its coordinates read that lie in folders."""
        models = {name: in_memory(m) for name, m in self.coordinates.items()}
        return replace(self, coordinates=models)

    def with_pickles_trusted(self) -> TrainedModel:
        """Return the model whose pickles may be opened, which runs code of whoever wrote it."""
        models = {name: with_pickles_trusted(m) for name, m in self.coordinates.items()}
        return replace(self, coordinates=models)

    @property
    def text_keys(self) -> frozenset[str]:
        """Keys that are nothing but texts: no columns of score files."""
        models = self.coordinates.values()
        others = {key for model in models for key in model.keys if key not in text_keys(model)}
        return frozenset(key for model in models for key in model.keys) - others

    @property
    def loss(self) -> int:
        """The loss of `gdmix.glm.losses` that belongs to the task."""
        return LOSSES[self.task]

    def row_schema(self, groups: Sequence[str] = ()) -> RowSchema:
        """Return which columns scoring reads."""
        models = self.coordinates.values()
        keys = tuple(dict.fromkeys(key for model in models for key in model.keys))
        needed = {key for m in models for key in m.keys if key not in optional_keys(m)}
        return RowSchema(
            self.columns,
            self.bags,
            keys,
            tuple(groups),
            needs_response=False,
            derived=self.derived,
            optional=frozenset(keys) - needed,
        )

    def only(self, name: str) -> TrainedModel:
        """Return the model of one coordinate alone, which needs no more of rows than it does.

        Raises
        ------
        ModelError
            If there is none of that name.
        """
        own = self._named(name)
        return replace(
            self,
            bags={bag: self.bags[bag] for bag in own.features},
            indices={bag: self.indices[bag] for bag in own.features},
            coordinates={name: own},
            derived={key: parts for key, parts in self.derived.items() if key in own.keys},
        )

    def components(
        self, rows: Dataset, threads: int = 1, external: Mapping[str, Source] | None = None
    ) -> dict[str, F64]:
        """Return each coordinate's score of each row, (n,) each, without the rows' offset.

        Parameters
        ----------
        external
            Scores of these rows, of each coordinate that has them from files.

        Raises
        ------
        ModelError
            If those of a coordinate are not given, or are given to another.
        """
        models = with_sources(self.coordinates, external or {})
        return {name: model.score(rows, threads) for name, model in models.items()}

    def coordinate(self, name: str) -> LinearModel:
        """Return the model of a coordinate that has coefficients.

        Raises
        ------
        ModelError
            If there is none of that name.
        """
        model = self._named(name)
        if not isinstance(model, LinearModel):
            what = "scores from files" if isinstance(model, ExternalModel) else f"type {model.type}"
            raise ModelError(f"coordinate '{name}' has {what} and no coefficients")
        return model

    def feature_names(
        self, coordinate: str, columns: NDArray[np.uint32] | None = None
    ) -> tuple[pa.Array, pa.Array]:
        """Return names and terms of a coordinate's columns, the intercept first; or of some."""
        bags = [self.indices[b] for b in self._named(coordinate).features]
        if columns is not None:
            return features_of(bags, columns)
        first = pa.array([INTERCEPT_NAME], pa.large_string())
        empty = pa.array([""], pa.large_string())
        return (
            pa.concat_arrays([first, *(index.names for index in bags)]),
            pa.concat_arrays([empty, *(index.terms for index in bags)]),
        )

    def coefficient_table(
        self, coordinate: str, entity: object = None, top: int | None = None
    ) -> pa.Table:
        """Return coefficients in long form.

        Parameters
        ----------
        entity
            Of a random effect, only this entity's; None: all of them.
        top
            Only that many, the largest by magnitude first; None: all, in order.

        Returns
        -------
        pyarrow.Table
            Columns ``name``, ``term``, ``value``, and ``variance`` if the model has them; before
            them ``entity`` if it is a random effect and no single entity was asked for.

        Raises
        ------
        ModelError
            If the coordinate or the entity has no model.
        """
        named = self._named(coordinate)
        if isinstance(named, FactorizationModel):
            return named.factor_table(entity, top)
        model = self.coordinate(coordinate)
        coefficients = model.coefficients
        if isinstance(coefficients, FixedCoefficients):
            if entity is not None:
                raise ModelError(f"coordinate '{coordinate}' is a fixed effect: it has no entities")
            columns = np.arange(coefficients.values.size, dtype=np.uint32)
            values, variances, owner = coefficients.values, coefficients.variances, None
        else:
            first, last = 0, len(coefficients)
            if entity is not None:
                parts = self.derived.get(model.entity or "")
                first = coefficients.find(entity if parts is None else key_of(parts, entity))
                if first < 0:
                    raise ModelError(f"coordinate '{coordinate}' has no model of entity {entity!r}")
                last = first + 1
            part = slice(coefficients.indptr[first], coefficients.indptr[last])
            columns, values = coefficients.columns[part], coefficients.values[part]
            variances = coefficients.variances
            variances = None if variances is None else variances[part]
            sizes = np.diff(coefficients.indptr[first : last + 1])
            numbers = pa.array(np.repeat(np.arange(first, last), sizes))
            owner = None if entity is not None else coefficients.entities.take(numbers)
        if top is not None or not model.intercept:
            chosen = np.arange(columns.size) if model.intercept else np.flatnonzero(columns)
            if top is not None:
                chosen = chosen[np.argsort(-np.abs(values[chosen]), kind="stable")[:top]]
            columns, values = columns[chosen], values[chosen]
            variances = None if variances is None else variances[chosen]
            owner = None if owner is None else owner.take(pa.array(chosen))
        names, terms = self.feature_names(coordinate, columns)
        table = pa.table({"name": names, "term": terms, "value": values})
        if variances is not None:
            table = table.append_column("variance", pa.array(variances))
        return table if owner is None else table.add_column(0, "entity", owner)

    def largest_coefficients(self, coordinate: str, entity: object, top: int) -> pa.Table:
        """Return the `top` rows of `coefficient_table` by magnitude, largest first.

        Raises
        ------
        ModelError
            If the coordinate or the entity has no model.
        """
        return self.coefficient_table(coordinate, entity, top)

    def summary(self, coordinate: str) -> dict[str, object]:
        """Return what a coordinate is and how large."""
        return self._named(coordinate).summary()

    def _named(self, name: str) -> CoordinateModel:
        if name not in self.coordinates:
            known = ", ".join(self.coordinates)
            hint = did_you_mean(name, self.coordinates)
            raise ModelError(f"no coordinate '{name}'{hint}; the model has: {known}")
        return self.coordinates[name]
