"""The one entry point: metrics by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import Task
from gdmix.evaluation.checks import Checks, Rows, specs_of
from gdmix.evaluation.grouped import group_sums
from gdmix.evaluation.metrics import ThresholdSums, class_weights
from gdmix.evaluation.sums import (
    GroupSum,
    LossSums,
    ScoreSample,
    by_column,
    has_curves,
    metric_values,
    splitters,
)

# Of the memory limit: a part of the rows, its order and its running sums, a tenth in all.
_BYTES_PER_ROW = 800
_SAMPLE = 100_000


def evaluate(
    names: Sequence[str],
    score: NDArray[np.float64],
    response: NDArray[np.float64],
    weight: NDArray[np.float64],
    *,
    task: Task,
    groups: Mapping[str, NDArray[np.int32]],
) -> dict[str, float]:
    """Compute metrics of scored rows.

    A row of weight zero counts nowhere, whatever else it holds. A grouped metric is the
    unweighted mean over the groups where it is defined: a group needs a positive row, and
    for ``auc`` a negative one too. Within a group ``auc`` uses the row weights, the ranking
    metrics do not. ``precision@k`` of a group of fewer than k rows divides by their number.
    Equal scores never favour the positives: a pair of them counts one half in ``auc``, and
    the ranking metrics take their expectation under a random order (see `grouped`).

    Parameters
    ----------
    names
        Metrics as `parse_metric` reads them, such as ``auc`` or ``ndcg@10:user_id``.
    score
        (n,) linear predictor: the logit, the log-rate or the mean; never a probability.
        Infinite scores are ranked as such, but a loss of them may be infinite or NaN.
    response
        (n,) labels, 0 or 1 where the metric needs it.
    weight
        (n,) non-negative row weights.
    task
        Decides the inverse link of ``rmse`` and ``mae``.
    groups
        For each grouping column (n,) dense codes from 0; a row of negative code has no
        group and is left out of the metrics of that column.

    Returns
    -------
    dict
        The value of each name, NaN where the metric is undefined: without rows, ``auc``
        without both classes, ``aupr`` without positives, a grouped metric without a group
        where it is defined.

    Raises
    ------
    ConfigError
        If there is no such metric or no such grouping column.
    DataError
        If a weight is negative or not finite, or, in a row of positive weight, the score or
        the response is NaN, or the response is one that the metric has no meaning for.

    Examples
    --------
    >>> score, response = np.array([2.0, 1.0, 0.0]), np.array([1.0, 0.0, 1.0])
    >>> evaluate(["auc"], score, response, np.ones(3), task="logistic_regression", groups={})
    {'auc': 0.5}
    """
    specs = specs_of(names, groups)
    rows = Rows(score, response, weight)
    Checks.of(rows).require(specs, task)
    counted = rows.counted
    rows = rows[counted]
    limit = memory.limit_bytes()
    at_once = rows.score.size if limit is None else limit // _BYTES_PER_ROW + 1
    thresholds = ThresholdSums()
    if has_curves(specs.values()):
        for part in _by_falling_score(rows, at_once):
            thresholds.add(class_weights(part.score, part.response, part.weight))
    sums: dict[str, GroupSum] = {}
    # Column by column, so that no more than one ordering of the rows is held at a time.
    for column, chosen in by_column(specs).items():
        code = groups[column][counted]
        parts = [group_sums(chosen, rows[part], code[part]) for part in _by_group(code, at_once)]
        sums |= {name: GroupSum.total([part[name] for part in parts]) for name in chosen}
    return metric_values(specs, LossSums.of(rows, specs.values(), task), thresholds, sums)


def _by_falling_score(rows: Rows, at_once: int) -> Iterator[Rows]:
    """Yield the rows in parts of falling scores; rows of equal score are in one part."""
    n = rows.score.size
    if n <= at_once:
        yield rows
        return
    bounds = splitters([ScoreSample.of(rows.score, _SAMPLE)], n // at_once + 1)
    for k in range(bounds.size + 1):
        inside = rows.score > bounds[k] if k < bounds.size else np.ones(n, np.bool_)
        if k:
            inside &= rows.score <= bounds[k - 1]
        if inside.any():
            yield rows[np.flatnonzero(inside)]


def _by_group(code: NDArray[np.int32], at_once: int) -> Iterator[NDArray[Any]]:
    """Yield rows in parts that hold whole groups; rows without one are left out."""
    members = int(np.count_nonzero(code >= 0))
    if code.size <= at_once:
        if members:
            yield np.flatnonzero(code >= 0) if members < code.size else np.arange(members)
        return
    sizes = np.bincount(np.maximum(code, -1) + 1)[1:]
    part = np.cumsum(sizes) // at_once
    first = np.flatnonzero(np.diff(part, prepend=-1))
    for low, high in zip(first, [*first[1:], sizes.size], strict=True):
        yield np.flatnonzero((code >= low) & (code < high))
