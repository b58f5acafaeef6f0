"""The one entry point: metrics by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gdmix.config import MetricSpec, Task, parse_metric
from gdmix.errors import ConfigError, DataError
from gdmix.evaluation import grouped, metrics


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
    score, response, weight = score[counted], response[counted], weight[counted]
    _reject(np.isnan(score), "a score of NaN")
    _reject(np.isnan(response), "a response of NaN")
    _check_response(specs, response, task)

    values: dict[str, float] = {}
    # Column by column, so that no more than one ordering of the rows is held at a time.
    for column in dict.fromkeys(spec.column for spec in specs.values()):
        chosen = {name: spec for name, spec in specs.items() if spec.column == column}
        if column is None:
            values |= _plain(chosen, score, response, weight, task)
        else:
            values |= _grouped(chosen, score, response, weight, groups[column][counted])
    return {name: values[name] for name in specs}


def _plain(
    specs: Mapping[str, MetricSpec],
    score: NDArray[np.float64],
    response: NDArray[np.float64],
    weight: NDArray[np.float64],
    task: Task,
) -> dict[str, float]:
    @cache
    def classes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return metrics.class_weights(score, response, weight)

    @cache
    def mean() -> NDArray[np.float64]:
        return metrics.predicted_mean(score, task)

    compute: dict[str, Callable[[], float]] = {
        "auc": lambda: metrics.roc_auc(*classes()),
        "aupr": lambda: metrics.average_precision(*classes()),
        "logloss": lambda: metrics.log_loss(score, response, weight),
        "rmse": lambda: metrics.root_mean_squared_error(mean(), response, weight),
        "mae": lambda: metrics.mean_absolute_error(mean(), response, weight),
        "poisson_loss": lambda: metrics.poisson_loss(score, response, weight),
    }
    # A mean that overflows is an infinite loss: a figure to report, not a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        return {name: compute[spec.kind]() for name, spec in specs.items()}


def _grouped(
    specs: Mapping[str, MetricSpec],
    score: NDArray[np.float64],
    response: NDArray[np.float64],
    weight: NDArray[np.float64],
    code: NDArray[np.int32],
) -> dict[str, float]:
    member = code >= 0
    if not member.any():
        return dict.fromkeys(specs, math.nan)
    score, response, weight = score[member], response[member], weight[member]
    code = code[member]
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

    return {name: grouped.mean_over_groups(values(spec)) for name, spec in specs.items()}


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
