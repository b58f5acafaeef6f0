"""What metrics are made of, in forms that add up: rows may come in parts.

`evaluate` goes over the parts of rows that are too many for its memory; `partial` has them from
the partitions of a distributed engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix.config import MetricSpec, Task
from gdmix.evaluation.checks import Rows
from gdmix.evaluation.metrics import ThresholdSums, row_losses

F64 = NDArray[np.float64]
_LOSSES = ("logloss", "rmse", "mae", "poisson_loss")
_CURVES = ("auc", "aupr")

# Rows whose losses are computed at once: enough to be fast, few enough to stay in a cache.
_ROWS_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class LossSums:
    """Metrics that are weighted means over rows, before they are divided.

    Attributes
    ----------
    weight
        Sum of the row weights.
    losses
        For each loss that is wanted the weighted sum of what `row_losses` gives.
    """

    weight: float
    losses: Mapping[str, float]

    @classmethod
    def of(cls, rows: Rows, specs: Iterable[MetricSpec], task: Task) -> LossSums:
        """Add up the losses of rows of positive weight, as far as metrics ask for them."""
        asked = {spec.kind for spec in specs}
        kinds = [kind for kind in _LOSSES if kind in asked]
        n = rows.weight.size if kinds else 0
        parts = [rows[i : i + _ROWS_AT_ONCE] for i in range(0, n, _ROWS_AT_ONCE)]
        # A mean that overflows is an infinite loss: a figure to report, not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            losses = {kind: _sum(_loss(kind, part, task) for part in parts) for kind in kinds}
        return cls(_sum(float(part.weight.sum()) for part in parts), losses)

    @classmethod
    def total(cls, parts: Sequence[LossSums]) -> LossSums:
        """Return the sums over the rows of all parts."""
        kinds = dict.fromkeys(kind for part in parts for kind in part.losses)
        return cls(
            _sum(part.weight for part in parts),
            {kind: _sum(part.losses[kind] for part in parts) for kind in kinds},
        )

    @property
    def values(self) -> dict[str, float]:
        """The metrics, NaN without rows."""
        losses = {k: x / self.weight if self.weight else math.nan for k, x in self.losses.items()}
        return {k: math.sqrt(x) if k == "rmse" else x for k, x in losses.items()}


def _loss(kind: str, rows: Rows, task: Task) -> float:
    losses = row_losses(kind, rows.score, rows.response, task)
    return float(np.sum(rows.weight * losses))


def _sum(values: Iterable[float]) -> float:
    """Sum in pairs, so that many parts are as exact as few; infinite parts are allowed."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sum(np.fromiter(values, np.float64)))


@dataclass(frozen=True)
class GroupSum:
    """A metric that is the unweighted mean over groups, before it is divided.

    Attributes
    ----------
    sum
        Of its defined values.
    groups
        Number of groups where it is defined.
    """

    sum: float
    groups: int

    @classmethod
    def of(cls, values: F64) -> GroupSum:
        """Add up (g,) values, NaN where undefined."""
        defined = values[~np.isnan(values)]
        return cls(float(np.sum(defined)), defined.size)

    @classmethod
    def total(cls, parts: Sequence[GroupSum]) -> GroupSum:
        """Return the sum over the groups of all parts; a group is in one part."""
        return cls(_sum(p.sum for p in parts), sum(p.groups for p in parts))

    @property
    def mean(self) -> float:
        """The metric, NaN if it is defined in no group."""
        return self.sum / self.groups if self.groups else math.nan


def has_curves(specs: Iterable[MetricSpec]) -> bool:
    """Whether a metric needs all rows in order of their scores."""
    return any(spec.column is None and spec.kind in _CURVES for spec in specs)


def by_column(specs: Mapping[str, MetricSpec]) -> dict[str, dict[str, MetricSpec]]:
    """Return the grouped metrics of each grouping column."""
    columns = dict.fromkeys(spec.column for spec in specs.values() if spec.column is not None)
    return {c: {name: spec for name, spec in specs.items() if spec.column == c} for c in columns}


def metric_values(
    specs: Mapping[str, MetricSpec],
    losses: LossSums,
    thresholds: ThresholdSums,
    groups: Mapping[str, GroupSum],
) -> dict[str, float]:
    """Return the metrics of all rows by name, from what they are made of."""
    plain = {
        **losses.values,
        "auc": thresholds.roc_auc,
        "aupr": thresholds.average_precision,
    }
    return {
        name: plain[spec.kind] if spec.column is None else groups[name].mean
        for name, spec in specs.items()
    }


@dataclass(frozen=True)
class ScoreSample:
    """Some of the scores of rows.

    Attributes
    ----------
    score
        (m,) scores of rows drawn at random, or of all rows.
    rows
        Number of rows that they stand for.
    """

    score: F64
    rows: int

    @classmethod
    def of(cls, score: F64, size: int) -> ScoreSample:
        """Draw about `size` of (n,) scores; the same rows each time."""
        n = score.size
        chosen = np.random.default_rng(0).integers(0, n, size) if n > size else slice(None)
        return cls(score[chosen].copy(), n)


def splitters(samples: Sequence[ScoreSample], parts: int) -> F64:
    """Return scores that cut rows into at most so many parts of nearly as many rows.

    Part k are the rows above splitter k that are not above splitter k - 1, where there are
    such: a score is never divided. Fewer parts come of scores that many rows have.

    Returns
    -------
    ndarray
        At most ``parts - 1`` different scores, falling.
    """
    samples = [sample for sample in samples if sample.score.size]
    if not samples:
        return np.empty(0)
    score = np.concatenate([s.score for s in samples])
    share = np.concatenate([np.full(s.score.size, s.rows / s.score.size) for s in samples])
    order = np.argsort(score)
    reached = np.cumsum(share[order])
    cuts = np.searchsorted(reached, reached[-1] * np.arange(1, parts) / parts)
    return np.unique(score[order][cuts])[::-1]
