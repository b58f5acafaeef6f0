"""The one entry point: metrics by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import MetricSpec, Task, parse_metric
from gdmix.errors import ConfigError, DataError
from gdmix.evaluation import grouped, metrics

# Of the memory limit: a part of the rows, its order and its running sums, a tenth in all.
_BYTES_PER_ROW = 800


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
    specs = {name: parse_metric(name) for name in names}
    for name, spec in specs.items():
        if spec.column is not None and spec.column not in groups:
            known = ", ".join(sorted(groups)) or "none"
            raise ConfigError(
                f"metric '{name}': no grouping column '{spec.column}'; there are: {known}"
            )
    _reject(~(np.isfinite(weight) & (weight >= 0)), "a weight that is negative or not finite")
    counted = weight > 0
    all_count = bool(counted.all())
    rows = _Rows(score, response, weight) if all_count else _Rows(score, response, weight)[counted]
    _reject(np.isnan(rows.score), "a score of NaN")
    _reject(np.isnan(rows.response), "a response of NaN")
    _check_response(specs, rows.response, task)

    limit = memory.limit_bytes()
    at_once = rows.score.size if limit is None else limit // _BYTES_PER_ROW + 1
    values: dict[str, float] = {}
    # Column by column, so that no more than one ordering of the rows is held at a time.
    for column in dict.fromkeys(spec.column for spec in specs.values()):
        chosen = {name: spec for name, spec in specs.items() if spec.column == column}
        if column is None:
            values |= _plain(chosen, rows, task, at_once)
        else:
            code = groups[column] if all_count else groups[column][counted]
            values |= _grouped(chosen, rows, code, at_once)
    return {name: values[name] for name in specs}


@dataclass(frozen=True)
class _Rows:
    """What a metric is made of, (n,) each."""

    score: NDArray[np.float64]
    response: NDArray[np.float64]
    weight: NDArray[np.float64]

    def __getitem__(self, rows: NDArray[Any]) -> _Rows:
        return _Rows(self.score[rows], self.response[rows], self.weight[rows])


def _plain(
    specs: Mapping[str, MetricSpec], rows: _Rows, task: Task, at_once: int
) -> dict[str, float]:
    kinds = {spec.kind for spec in specs.values()}
    thresholds = metrics.ThresholdSums()
    losses = dict.fromkeys(kinds - {"auc", "aupr"}, 0.0)
    # A mean that overflows is an infinite loss: a figure to report, not a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        for part in _by_falling_score(rows, at_once):
            if kinds & {"auc", "aupr"}:
                thresholds.add(*metrics.class_weights(part.score, part.response, part.weight))
            share = float(part.weight.sum())
            for kind in losses:
                losses[kind] += share * _mean_loss(kind, part, task)
        total = float(rows.weight.sum())
        values = {kind: loss / total if total else math.nan for kind, loss in losses.items()}
    if "rmse" in values:
        values["rmse"] = math.sqrt(values["rmse"])
    values |= {"auc": thresholds.roc_auc, "aupr": thresholds.average_precision}
    return {name: values[spec.kind] for name, spec in specs.items()}


def _mean_loss(kind: str, rows: _Rows, task: Task) -> float:
    """Return a metric that is a weighted mean over rows; of ``rmse`` its square."""
    if kind == "logloss":
        return metrics.log_loss(rows.score, rows.response, rows.weight)
    if kind == "poisson_loss":
        return metrics.poisson_loss(rows.score, rows.response, rows.weight)
    mean = metrics.predicted_mean(rows.score, task)
    error = metrics.mean_squared_error if kind == "rmse" else metrics.mean_absolute_error
    return error(mean, rows.response, rows.weight)


def _by_falling_score(rows: _Rows, at_once: int) -> Iterator[_Rows]:
    """Yield the rows in parts of falling scores; rows of equal score are in one part."""
    n = rows.score.size
    if n <= at_once:
        yield rows
        return
    sample = np.sort(rows.score[:: max(n // 100_000, 1)])
    bounds = np.unique(sample[np.linspace(0, sample.size - 1, n // at_once + 2).astype(np.int64)])
    for k in range(bounds.size, -1, -1):
        inside = np.ones(n, np.bool_) if k == 0 else rows.score > bounds[k - 1]
        if k < bounds.size:
            inside &= rows.score <= bounds[k]
        if inside.any():
            yield rows[np.flatnonzero(inside)]


def _grouped(
    specs: Mapping[str, MetricSpec], rows: _Rows, code: NDArray[np.int32], at_once: int
) -> dict[str, float]:
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in specs}
    for part in _by_group(code, at_once):
        for name, values in _of_groups(specs, rows[part], code[part]).items():
            found[name].append(values)
    return {
        name: grouped.mean_over_groups(np.concatenate(parts)) if parts else math.nan
        for name, parts in found.items()
    }


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


def _of_groups(
    specs: Mapping[str, MetricSpec], rows: _Rows, code: NDArray[np.int32]
) -> dict[str, NDArray[np.float64]]:
    score, response, weight = rows.score, rows.response, rows.weight
    ranking = grouped.rank_rows(score, code)

    @cache
    def ideal() -> grouped.Ranking:
        return grouped.rank_rows(response, code)

    def values(spec: MetricSpec) -> NDArray[np.float64]:
        match spec.kind, spec.k:
            case "auc", _:
                return grouped.group_auc(ranking, response, weight)
            case "precision", int(k):
                return grouped.precision_at(ranking, response, k)
            case "ndcg", int(k):
                return grouped.ndcg_at(ranking, ideal(), response, k)
            case _:
                return grouped.reciprocal_rank(ranking, response)

    return {name: values(spec) for name, spec in specs.items()}


def _reject(bad: NDArray[np.bool_], what: str) -> None:
    if count := np.count_nonzero(bad):
        raise DataError(
            f"{count} of {bad.size} rows to evaluate have {what}; drop or mend these rows"
        )


def _check_response(
    specs: Mapping[str, MetricSpec], response: NDArray[np.float64], task: Task
) -> None:
    not_binary = response[(response != 0) & (response != 1)]
    negative = not_binary[not_binary < 0]
    regression = "poisson_loss" if task == "poisson_regression" else "rmse"
    for name, spec in specs.items():
        if spec.needs_binary_labels and not_binary.size:
            graded = spec.column is not None and not negative.size
            instead = f"ndcg@{spec.k or 10}:{spec.column}" if graded else regression
            need, example = "a response of 0 and 1 only", not_binary[0]
        elif spec.kind == "ndcg" and negative.size:
            need, example, instead = "a non-negative response", negative[0], regression
        else:
            continue
        raise DataError(
            f"metric '{name}' needs {need}, but the response has other values, such as "
            f"{example:g}; use '{instead}' instead"
        )
