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
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.columns import column_totals, shift_columns
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel

F64 = NDArray[np.float64]


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
    result = dict(models)
    changeable = [name for name in models if name in weights]
    fixed = [n for n in changeable if isinstance(models[n].coefficients, FixedCoefficients)]
    for name in changeable:
        if name in fixed:
            continue
        free = set(models[name].features) | ({""} if models[name].intercept else set())
        for target in fixed:
            pairs = _shared_columns(result[name], result[target], bag_sizes, free)
            if pairs is not None:
                own, theirs = pairs
                result[name], result[target] = _move(
                    result[name],
                    result[target],
                    own,
                    theirs,
                    weights[name],
                    weights[target],
                    (uncovered or {}).get(name),
                )
    return result


def _shared_columns(
    random: LinearModel,
    fixed: LinearModel,
    bag_sizes: Mapping[str, int],
    free: set[str],
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
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


def _column_ranges(model: LinearModel, bag_sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    ranges = {"": (0, 1)} if model.intercept else {}
    first = 1
    for bag in model.features:
        ranges[bag] = (first, first + bag_sizes[bag])
        first += bag_sizes[bag]
    return ranges


def _move(
    random: LinearModel,
    fixed: LinearModel,
    own: NDArray[np.int64],
    theirs: NDArray[np.int64],
    random_weight: F64,
    fixed_weight: F64,
    uncovered: NDArray[np.bool_] | None,
) -> tuple[LinearModel, LinearModel]:
    coefficients, target = random.coefficients, fixed.coefficients
    assert isinstance(coefficients, RandomCoefficients)
    assert isinstance(target, FixedCoefficients)
    width = int(coefficients.columns.max(initial=0)) + 1
    own_seen = own < width
    own, theirs = own[own_seen], theirs[own_seen]
    totals, counts = np.zeros(width), np.zeros(width, np.int64)
    column_totals(coefficients.columns, coefficients.values, totals, counts)
    totals, counts = totals[own], counts[own]
    weight, fixed_weight = random_weight[own], fixed_weight[theirs]
    curvature = fixed_weight + weight * counts
    pull = weight * totals - fixed_weight * target.values[theirs]
    # Without a penalty on the entities' side the shift would empty the fixed effect.
    useful = (curvature > 0.0) & (weight > 0.0) & (counts > 0)
    if uncovered is not None:
        useful &= ~uncovered[own]
    shift = np.divide(pull, curvature, out=np.zeros_like(pull), where=useful)
    by_column = np.zeros(width)
    by_column[own] = shift
    values = target.values.copy()
    values[theirs] += shift
    moved = memory.copy(coefficients.values)
    shift_columns(coefficients.columns, by_column, moved)
    return (
        replace(random, coefficients=replace(coefficients, values=moved)),
        replace(fixed, coefficients=replace(target, values=values)),
    )
