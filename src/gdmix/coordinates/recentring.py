"""Recentring: what the models of all entities share belongs to the fixed effect.

Block descent moves a shift that is common to a random effect's entities into the fixed effect
only slowly: each fit holds the other. The shift can be made at once. For a feature j that both
have, adding s to the fixed coefficient g and subtracting it from the C entities' coefficients
leaves every training score as it is, and the penalty

    l2_fixed / 2 (g + s)^2 + l2_random / 2 sum_e (t_e - s)^2

is least at  s = (l2_random sum_e t_e - l2_fixed g) / (l2_fixed + l2_random C).

A row that has the feature but no entity's coefficient of it, for want of an entity, of a model,
or because its model was trained on other rows, would keep the fixed effect's share alone: such a
feature stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.columns import column_totals, shift_columns
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class ManyModels(Protocol):
    """The models of a random effect's entities, wherever they lie."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the feature bags."""

    @property
    def intercept(self) -> bool:
        """Whether they have intercepts."""

    def column_totals(self, width: int) -> tuple[F64, I64]:
        """Return each column's sum and number of coefficients over all models, (width,)."""

    def shifted(self, by_column: F64) -> ManyModels:
        """Return the models less a shift of each column, (width,)."""


@dataclass(frozen=True)
class ModelsInMemory:
    """Those of a `LinearModel`."""

    model: LinearModel

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the feature bags."""
        return self.model.features

    @property
    def intercept(self) -> bool:
        """Whether they have intercepts."""
        return self.model.intercept

    def column_totals(self, width: int) -> tuple[F64, I64]:
        """Return each column's sum and number of coefficients over all models, (width,)."""
        coefficients = self._coefficients
        totals, counts = np.zeros(width), np.zeros(width, np.int64)
        column_totals(coefficients.columns, coefficients.values, totals, counts)
        return totals, counts

    def shifted(self, by_column: F64) -> ModelsInMemory:
        """Return the models less a shift of each column, (width,)."""
        coefficients = self._coefficients
        moved = memory.copy(coefficients.values)
        shift_columns(coefficients.columns, by_column, moved)
        coefficients = replace(coefficients, values=moved)
        return ModelsInMemory(replace(self.model, coefficients=coefficients))

    @property
    def _coefficients(self) -> RandomCoefficients:
        assert isinstance(self.model.coefficients, RandomCoefficients)
        return self.model.coefficients


def recentre(
    models: Mapping[str, LinearModel],
    weights: Mapping[str, F64],
    bag_sizes: Mapping[str, int],
    uncovered: Mapping[str, NDArray[np.bool_]] | None = None,
) -> dict[str, LinearModel]:
    """Move what random effects share into the fixed effects that have the same bags.

    Parameters
    ----------
    models
        The current model of each coordinate, in order.
    weights
        (columns,) L2 weight per column, of the coordinates that may be changed.
    bag_sizes
        Number of features of each bag.
    uncovered
        Of a random effect, (columns,) whether some training row has the column but no
        coefficient of it; without an entry: none.

    Returns
    -------
    dict
        The same models, those that changed replaced: training scores add up as before.
    """
    fixed, many = {}, {}
    for name, model in models.items():
        if isinstance(model.coefficients, FixedCoefficients):
            fixed[name] = model
        else:
            many[name] = ModelsInMemory(model)
    new_fixed, new_many = recentre_many(fixed, many, weights, bag_sizes, uncovered or {})
    result = dict(models) | new_fixed
    return result | {n: m.model for n, m in new_many.items() if isinstance(m, ModelsInMemory)}


def recentre_many(
    fixed: Mapping[str, LinearModel],
    many: Mapping[str, ManyModels],
    weights: Mapping[str, F64],
    bag_sizes: Mapping[str, int],
    uncovered: Mapping[str, NDArray[np.bool_]],
) -> tuple[dict[str, LinearModel], dict[str, ManyModels]]:
    """Do as `recentre`, with models that may lie elsewhere; return those that changed."""
    new_fixed: dict[str, LinearModel] = {}
    new_many: dict[str, ManyModels] = {}
    for name in many:
        if name not in weights:
            continue
        free = set(many[name].features) | ({""} if many[name].intercept else set())
        for target in fixed:
            if target not in weights:
                continue
            own_models = new_many.get(name, many[name])
            theirs_model = new_fixed.get(target, fixed[target])
            pairs = _shared_columns(own_models, theirs_model, bag_sizes, free)
            if pairs is not None:
                new_many[name], new_fixed[target] = _move(
                    own_models,
                    theirs_model,
                    *pairs,
                    weights[name],
                    weights[target],
                    uncovered.get(name),
                )
    return new_fixed, new_many


def _shared_columns(
    random: ManyModels,
    fixed: LinearModel,
    bag_sizes: Mapping[str, int],
    free: set[str],
) -> tuple[I64, I64] | None:
    """Return matching columns; bags found are taken from `free` (the intercept is bag "")."""
    own, theirs = _column_ranges(random, bag_sizes), _column_ranges(fixed, bag_sizes)
    shared = [bag for bag in own if bag in theirs and bag in free]
    free.difference_update(shared)
    if not shared:
        return None
    return (
        np.concatenate([np.arange(*own[bag]) for bag in shared]),
        np.concatenate([np.arange(*theirs[bag]) for bag in shared]),
    )


def _column_ranges(
    model: LinearModel | ManyModels, bag_sizes: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    ranges = {"": (0, 1)} if model.intercept else {}
    first = 1
    for bag in model.features:
        ranges[bag] = (first, first + bag_sizes[bag])
        first += bag_sizes[bag]
    return ranges


def _move(
    random: ManyModels,
    fixed: LinearModel,
    own: I64,
    theirs: I64,
    random_weight: F64,
    fixed_weight: F64,
    uncovered: NDArray[np.bool_] | None,
) -> tuple[ManyModels, LinearModel]:
    target = fixed.coefficients
    assert isinstance(target, FixedCoefficients)
    totals, counts = random.column_totals(random_weight.size)
    totals, counts = totals[own], counts[own]
    weight, fixed_weight = random_weight[own], fixed_weight[theirs]
    curvature = fixed_weight + weight * counts
    pull = weight * totals - fixed_weight * target.values[theirs]
    # Without a penalty on the entities' side the shift would empty the fixed effect.
    useful = (curvature > 0.0) & (weight > 0.0) & (counts > 0)
    if uncovered is not None:
        useful &= ~uncovered[own]
    shift = np.divide(pull, curvature, out=np.zeros_like(pull), where=useful)
    by_column = np.zeros(random_weight.size)
    by_column[own] = shift
    values = target.values.copy()
    values[theirs] += shift
    moved = replace(fixed, coefficients=replace(target, values=values))
    return random.shifted(by_column), moved
