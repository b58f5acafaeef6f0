"""The trained model: coordinates in order, whose scores add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import ColumnRoles, EntityPart, FeatureBag, Task
from gdmix.data.dataset import Dataset
from gdmix.data.derived_keys import key_of
from gdmix.data.external_scores import read_external_scores
from gdmix.data.feature_index import INTERCEPT_NAME, FeatureIndex
from gdmix.data.read import Source
from gdmix.data.schema import RowSchema
from gdmix.errors import ModelError, did_you_mean
from gdmix.glm import losses
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients, entity_numbers

F64 = NDArray[np.float64]

LOSSES: Mapping[Task, int] = {
    "logistic_regression": losses.LOGISTIC,
    "linear_regression": losses.SQUARED,
    "poisson_regression": losses.POISSON,
}


@dataclass(frozen=True)
class LinearModel:
    """One coordinate's coefficients and what they apply to.

    Attributes
    ----------
    features
        Names of its feature bags.
    intercept
        Whether it has an intercept.
    coefficients
        `FixedCoefficients`, or `RandomCoefficients` where `entity` is given.
    entity
        Entity of a random effect: a column, or a name among the model's `derived` ones.
    """

    features: tuple[str, ...]
    intercept: bool
    coefficients: FixedCoefficients | RandomCoefficients
    entity: str | None = None

    @property
    def type(self) -> str:
        """The coordinate's type, as in a configuration."""
        fixed = isinstance(self.coefficients, FixedCoefficients)
        return "fixed_effect" if fixed else "random_effect"


@dataclass(frozen=True)
class ExternalModel:
    """A coordinate whose scores come from files.

    Attributes
    ----------
    uid, score, missing
        As in `config.ExternalScores`.
    """

    uid: str
    score: str | None
    missing: Literal["error", "zero"]
    type: ClassVar[str] = "external_scores"

    def scores(self, source: Source, rows: Dataset) -> F64:
        """Return each row's score, (n,).

        Raises
        ------
        DataError
            Where scores are missing or stand twice.
        """
        return read_external_scores(source, rows, self.uid, self.score, self.missing)


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
    coordinates: Mapping[str, LinearModel | ExternalModel] = field(default_factory=dict)
    derived: Mapping[str, tuple[EntityPart, ...]] = field(default_factory=dict)

    @property
    def linear(self) -> dict[str, LinearModel]:
        """Those of the coordinates that have coefficients."""
        models = self.coordinates.items()
        return {name: m for name, m in models if isinstance(m, LinearModel)}

    @property
    def loss(self) -> int:
        """The loss of `gdmix.glm.losses` that belongs to the task."""
        return LOSSES[self.task]

    def row_schema(self, groups: Sequence[str] = ()) -> RowSchema:
        """Return which columns scoring reads."""
        entities = (m.entity for m in self.linear.values() if m.entity is not None)
        return RowSchema(
            self.columns,
            self.bags,
            tuple(dict.fromkeys(entities)),
            tuple(groups),
            needs_response=False,
            derived=self.derived,
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
        given = dict(external or {})
        scores = {}
        for name, model in self.coordinates.items():
            if isinstance(model, LinearModel):
                scores[name] = score_coordinate(model, rows, threads)
            elif name in given:
                scores[name] = model.scores(given.pop(name), rows)
            else:
                raise ModelError(
                    f"coordinate '{name}' has scores from files: give those of these rows "
                    f"(`gdmix score --external {name}=PATH`, `predict(external={{'{name}': ...}})`)"
                )
        for name in given:
            raise ModelError(f"no coordinate '{name}' has scores from files")
        return scores

    def coordinate(self, name: str) -> LinearModel:
        """Return the model of a coordinate that has coefficients.

        Raises
        ------
        ModelError
            If there is none of that name.
        """
        if name not in self.coordinates:
            known = ", ".join(self.coordinates)
            hint = did_you_mean(name, self.coordinates)
            raise ModelError(f"no coordinate '{name}'{hint}; the model has: {known}")
        model = self.coordinates[name]
        if isinstance(model, ExternalModel):
            raise ModelError(f"coordinate '{name}' has scores from files and no coefficients")
        return model

    def feature_names(self, coordinate: str) -> tuple[pa.Array, pa.Array]:
        """Return names and terms of a coordinate's columns, the intercept first."""
        bags = [self.indices[b] for b in self.coordinate(coordinate).features]
        first = pa.array([INTERCEPT_NAME], pa.large_string())
        empty = pa.array([""], pa.large_string())
        return (
            pa.concat_arrays([first, *(index.names for index in bags)]),
            pa.concat_arrays([empty, *(index.terms for index in bags)]),
        )

    def coefficient_table(self, coordinate: str, entity: object = None) -> pa.Table:
        """Return coefficients in long form.

        Parameters
        ----------
        entity
            Of a random effect, only this entity's; None: all of them.

        Returns
        -------
        pyarrow.Table
            Columns ``name``, ``term``, ``value``; before them ``entity`` if it is a random
            effect and no single entity was asked for.

        Raises
        ------
        ModelError
            If the coordinate or the entity has no model.
        """
        model = self.coordinate(coordinate)
        names, terms = self.feature_names(coordinate)
        coefficients = model.coefficients
        if isinstance(coefficients, FixedCoefficients):
            if entity is not None:
                raise ModelError(f"coordinate '{coordinate}' is a fixed effect: it has no entities")
            columns = np.arange(coefficients.values.size, dtype=np.uint32)
            values, owner = coefficients.values, None
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
            sizes = np.diff(coefficients.indptr[first : last + 1])
            numbers = pa.array(np.repeat(np.arange(first, last), sizes))
            owner = None if entity is not None else coefficients.entities.take(numbers)
        table = pa.table(
            {
                "name": names.take(pa.array(columns)),
                "term": terms.take(pa.array(columns)),
                "value": values,
            }
        )
        if owner is not None:
            table = table.add_column(0, "entity", owner)
        return table if model.intercept else table.filter(pc.not_equal(pa.array(columns), 0))

    def largest_coefficients(self, coordinate: str, entity: object, top: int) -> pa.Table:
        """Return the `top` rows of `coefficient_table` by magnitude, largest first.

        Raises
        ------
        ModelError
            If the coordinate or the entity has no model.
        """
        table = self.coefficient_table(coordinate, entity)
        sizes = np.abs(table["value"].to_numpy())
        return table.take(pa.array(np.argsort(-sizes, kind="stable")[:top]))

    def summary(self, coordinate: str) -> dict[str, object]:
        """Return what a coordinate is and how large."""
        known = self.coordinates.get(coordinate)
        if isinstance(known, ExternalModel):
            nothing: dict[str, object] = {"features": [], "models": 0, "coefficients": 0}
            return {"type": known.type, "entity": None, **nothing}
        model = self.coordinate(coordinate)
        models = len(model.coefficients)
        placeholders = 0 if model.intercept else models  # of the intercept each would have
        return {
            "type": model.type,
            "entity": model.entity,
            "features": list(model.features),
            "models": models,
            "coefficients": model.coefficients.values.size - placeholders,
        }


def united(one: LinearModel, other: LinearModel) -> LinearModel:
    """Return the models of both, which are of other entities."""
    own, theirs = one.coefficients, other.coefficients
    assert isinstance(own, RandomCoefficients)
    assert isinstance(theirs, RandomCoefficients)
    return replace(one, coefficients=own.united(theirs))


def score_coordinate(model: LinearModel, rows: Dataset, threads: int = 1) -> F64:
    """Return one coordinate's score of each row, (n,)."""
    design = rows.design(model.features)
    if isinstance(model.coefficients, FixedCoefficients):
        return model.coefficients.score(design, threads)
    assert model.entity is not None
    numbers = entity_numbers(rows.keys[model.entity], model.coefficients.entities, model.entity)
    return model.coefficients.score(design, numbers, threads)
