"""The penalty of a linear coordinate, column by column and in raw units.

A normalised feature is x / s, and its coefficient s times the raw one. So the penalty of the
normalised coefficient is that of the raw one with the L2 weight times s^2, the L1 weight times s:
the data stay as they are. Centring features changes nothing but what the intercept means, which
only a penalty on the intercept can see: it is then a penalty on ``b + mean' beta``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import FixedEffect, LinearSpec
from gdmix.data.feature_index import INTERCEPT_NAME, FeatureIndex
from gdmix.data.feature_summary import FeatureSummary
from gdmix.errors import ConfigError, did_you_mean
from gdmix.glm.columns import weighted_squares
from gdmix.glm.objective import dot
from gdmix.glm.penalty import EntityPenalty, QuadraticPenalty
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MAX_CENTRED_COLUMNS = 2048


@dataclass(frozen=True)
class Regularization:
    """Weights of the penalty by column, the intercept first.

    Attributes
    ----------
    labels
        Names of the groups of columns that share an L2 weight.
    group
        (columns,) each column's group.
    group_weight
        (groups,) their L2 weights.
    factor
        (columns,) by which a column's L2 weight is multiplied.
    l1
        (columns,) L1 weights; empty: none.
    means
        (columns,) means of features at which the intercept is penalised, 1 of the intercept
        itself; empty: at 0.
    lower, upper
        (columns,) bounds of coefficients; empty: none.
    """

    labels: tuple[str, ...]
    group: NDArray[np.uint32]
    group_weight: F64
    factor: F64
    l1: F64
    means: F64
    lower: F64
    upper: F64

    @property
    def weight(self) -> F64:
        """(columns,) L2 weight of each column."""
        return self.group_weight[self.group] * self.factor

    @property
    def is_linear(self) -> bool:
        """Whether the penalty is a weight per column and nothing else."""
        return not (self.l1.size or self.means.size or self.lower.size)

    @property
    def uniform(self) -> tuple[float, float] | None:
        """The L2 weights of the intercept and of all slopes, if that is all there is."""
        weight = self.weight
        slopes = weight[1:]
        if not self.is_linear or (slopes.size and slopes.min() < slopes.max()):
            return None
        return float(weight[0]), float(slopes[0]) if slopes.size else 1.0

    def reweighted(self, group_weight: F64) -> Regularization:
        """Return the same with other weights of the groups."""
        return replace(self, group_weight=group_weight)

    @property
    def proximal(self) -> dict[str, Any] | None:
        """(columns,) L1 weights and bounds, if there are any."""
        if not (self.l1.size or self.lower.size):
            return None
        columns = self.group.size
        return {
            "l1": self.l1 if self.l1.size else np.zeros(columns),
            "lower": self.lower if self.lower.size else np.full(columns, -np.inf),
            "upper": self.upper if self.upper.size else np.full(columns, np.inf),
        }

    def quadratic(self) -> QuadraticPenalty:
        """Return the quadratic part, of a fixed effect."""
        weight = self.weight
        if not self.means.size:
            return QuadraticPenalty(weight)
        matrix = weight[0] * np.outer(self.means, self.means)
        weight[0] = 0.0
        return QuadraticPenalty(weight, matrix)

    def of_entities(self, columns: NDArray[np.uint32]) -> EntityPenalty:
        """Return the penalties of a random effect's coefficients, of the given columns."""
        weight, l1, means = self.weight, self.l1, self.means
        intercept_weight = 0.0
        if means.size:
            intercept_weight, weight[0] = float(weight[0]), 0.0
        nothing = np.empty(0)
        return EntityPenalty(
            np.take(weight, columns),
            np.take(l1, columns) if l1.size else nothing,
            np.take(means, columns) if means.size else nothing,
            intercept_weight,
        )

    def term(self, coefficients: FixedCoefficients | RandomCoefficients) -> float:
        """Return the penalty of coefficients."""
        values = coefficients.values
        if isinstance(coefficients, FixedCoefficients):
            total = 0.5 * self.quadratic().between(values, values)
            return total + (dot(values.size, self.l1, np.abs(values)) if self.l1.size else 0.0)
        if not self.means.size and not self.l1.size:
            return 0.5 * float(weighted_squares(coefficients.columns, values, self.weight))
        penalty = self.of_entities(coefficients.columns)
        total = 0.5 * dot(values.size, values, penalty.products(coefficients.indptr, values))
        return total + (dot(values.size, penalty.l1, np.abs(values)) if penalty.is_l1 else 0.0)


def regularization(
    spec: LinearSpec,
    indices: Mapping[str, FeatureIndex],
    summary_of: Callable[[str], FeatureSummary],
) -> Regularization:
    """Return the penalty that a coordinate's spec asks for.

    Parameters
    ----------
    summary_of
        Returns what a bag's features are like in the training rows: the scales of a
        normalisation. It is not called without one.

    Raises
    ------
    ConfigError
        If a feature that the spec names is none of the coordinate's, or the penalty is too large
        a matrix.
    """
    own = {bag: indices[bag] for bag in spec.features}
    width = 1 + sum(len(index) for index in own.values())
    labels, group = _groups(spec, own, width)
    weights = [spec.bag_weight(label) for label in labels[1:]]
    group_weight = np.array([spec.intercept_weight, *weights])
    scale = np.ones(width)
    means = np.empty(0)
    if spec.normalization != "none":
        summaries = [summary_of(bag) for bag in spec.features]
        by_max = spec.normalization == "scale_by_max"
        scales = (s.max_magnitude if by_max else s.standard_deviation for s in summaries)
        scale[1:] = np.concatenate([np.empty(0), *scales])
        scale[scale == 0.0] = 1.0
        if spec.normalization == "standardize" and spec.regularizes_intercept:
            if isinstance(spec, FixedEffect) and width > MAX_CENTRED_COLUMNS:
                raise ConfigError(
                    f"coordinates.{spec.name}: standardize with a regularized intercept couples "
                    f"all {width:,} coefficients, at most {MAX_CENTRED_COLUMNS:,}; "
                    "use scale_by_std, or regularize_intercept: false"
                )
            means = np.concatenate([np.ones(1), *(s.mean for s in summaries)])
    factor = np.ones(width)
    for feature, value in spec.penalty_factors.items():
        factor[_columns_of(feature, own, f"coordinates.{spec.name}.penalty_factors")] = value
    l1 = np.empty(0)
    if spec.l1 > 0.0:
        l1 = spec.l1 * factor * scale
        l1[0] = 0.0
    lower, upper = _bounds(spec, own, width)
    return Regularization(labels, group, group_weight, factor * scale**2, l1, means, lower, upper)


def _groups(
    spec: LinearSpec, indices: Mapping[str, FeatureIndex], width: int
) -> tuple[tuple[str, ...], NDArray[np.uint32]]:
    """Return the groups of columns that have an L2 weight of their own: the intercept first."""
    if spec.l2 == "auto_per_feature":
        names = [
            f"{name}:{term}" if term else name
            for index in indices.values()
            for name, term in zip(index.names.to_pylist(), index.terms.to_pylist(), strict=True)
        ]
        return (INTERCEPT_NAME, *names), np.arange(width, dtype=np.uint32)
    if isinstance(spec.l2, float):
        return (INTERCEPT_NAME, "slopes"), np.minimum(np.arange(width), 1).astype(np.uint32)
    sizes = [len(index) for index in indices.values()]
    return (INTERCEPT_NAME, *indices), np.repeat(
        np.arange(1 + len(sizes), dtype=np.uint32), [1, *sizes]
    )


def _bounds(spec: LinearSpec, indices: Mapping[str, FeatureIndex], width: int) -> tuple[F64, F64]:
    if not isinstance(spec, FixedEffect) or not spec.bounds:
        return np.empty(0), np.empty(0)
    lower, upper = np.full(width, -np.inf), np.full(width, np.inf)
    for feature, (low, high) in spec.bounds.items():
        columns = _columns_of(feature, indices, f"coordinates.{spec.name}.bounds")
        lower[columns] = -np.inf if low is None else low
        upper[columns] = np.inf if high is None else high
    return lower, upper


def _columns_of(feature: str, indices: Mapping[str, FeatureIndex], where: str) -> I64:
    """Return the columns of ``name``, or of ``name:term``."""
    first = 1
    found: list[I64] = []
    for index in indices.values():
        own = np.flatnonzero(pc.equal(index.names, feature).to_numpy(zero_copy_only=False))
        if not own.size:
            parts = list(_splits(feature))
            pairs = (pa.array([part[k] for part in parts], pa.large_string()) for k in (0, 1))
            own = np.unique(index.find(*pairs)) if parts else own
        found.append(first + own[own >= 0])
        first += len(index)
    columns = np.concatenate([np.empty(0, np.int64), *found])
    if not columns.size:
        known = {name for index in indices.values() for name in pc.unique(index.names).to_pylist()}
        hint = did_you_mean(feature.partition(":")[0], known)
        raise ConfigError(f"{where}: no feature '{feature}' in its bags{hint}")
    return columns


def _splits(feature: str) -> Iterable[tuple[str, str]]:
    """Yield each way to read ``name:term``."""
    for k, letter in enumerate(feature):
        if letter == ":":
            yield feature[:k], feature[k + 1 :]
