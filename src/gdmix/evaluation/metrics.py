"""Metrics over all rows: exact, weighted, from the link rather than the probability.

Every function takes rows of positive weight only and returns NaN where the metric is
undefined, an empty input included. In the docstrings w is the row weight, y the response
and z the score, a linear predictor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.config import Task


def changes(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the first value of every run of equal values; (n,) in, (n,) out."""
    changed = np.ones(values.size, dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


def class_weights(
    score: NDArray[np.float64], response: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum the weight of either class at every distinct score, highest score first.

    The running sums of the two arrays are the true and false positives at each threshold:
    the ROC curve and the precision-recall curve before they are scaled (Fawcett 2006,
    "An introduction to ROC analysis", algorithm 1).

    Parameters
    ----------
    score, response, weight
        (n,) each; the response is 0 or 1.

    Returns
    -------
    positive, negative
        One weight per distinct score each.
    """
    order = np.argsort(score)[::-1]
    weight = weight[order]
    positive = weight * response[order]
    starts = np.flatnonzero(changes(score[order]))
    return np.add.reduceat(positive, starts), np.add.reduceat(weight - positive, starts)


@dataclass
class ThresholdSums:
    """What the ROC and the precision-recall curve need of the thresholds passed so far.

    Rows may come in parts, each of lower scores than all before it: memory for one part is
    enough, and the result is that of all rows at once.

    Attributes
    ----------
    positives, negatives
        Weight of either class at or above the last threshold.
    concordant
        Weight of the pairs of a positive row scored above a negative one, a tie as one half.
    precision
        Sum of the precision at each threshold times the weight of its positives.
    """

    positives: float = 0.0
    negatives: float = 0.0
    concordant: float = 0.0
    precision: float = 0.0

    def add(self, positive: NDArray[np.float64], negative: NDArray[np.float64]) -> None:
        """Pass the next thresholds, as `class_weights` returns them."""
        true_positives = self.positives + np.cumsum(positive)
        self.concordant += float(np.sum(negative * (true_positives - 0.5 * positive)))
        passed = true_positives + self.negatives + np.cumsum(negative)
        # Rows of no positive weight have no part in it, but may make the divisor zero.
        precision = np.divide(true_positives, passed, out=np.zeros_like(passed), where=passed > 0)
        self.precision += float(np.sum(positive * precision))
        self.positives += float(positive.sum())
        self.negatives += float(negative.sum())

    @property
    def roc_auc(self) -> float:
        """Area under the ROC curve; a pair of equal scores counts one half.

        The probability that a positive row is scored above a negative one, both drawn by
        weight (Fawcett 2006, section 7). NaN when a class is missing.
        """
        if not (self.positives > 0 and self.negatives > 0):
            return math.nan
        return self.concordant / self.positives / self.negatives

    @property
    def average_precision(self) -> float:
        """Average precision: the precision at each threshold, weighted by the rise in recall.

        A step-wise area under the precision-recall curve, without interpolation (Manning,
        Raghavan & Schütze 2008, "Introduction to Information Retrieval", section 8.4). NaN
        without positives.
        """
        return self.precision / self.positives if self.positives > 0 else math.nan


def log_loss(
    score: NDArray[np.float64], response: NDArray[np.float64], weight: NDArray[np.float64]
) -> float:
    """Weighted mean of log(1 + exp(z)) - y z in nats, for (n,) responses of 0 or 1."""
    # The margin form of the same loss: the difference cancels for large scores.
    margin = np.where(response > 0, score, -score)
    return _weighted_mean(np.logaddexp(0.0, -margin), weight)


def poisson_loss(
    score: NDArray[np.float64], response: NDArray[np.float64], weight: NDArray[np.float64]
) -> float:
    """Weighted mean of exp(z) - y z over (n,) rows.

    The negative log-likelihood of a Poisson with mean exp(z), less the term log(y!) that no
    model can change (McCullagh & Nelder 1989, "Generalized Linear Models", chapter 6).
    """
    return _weighted_mean(np.exp(score) - response * score, weight)


def mean_squared_error(
    mean: NDArray[np.float64], response: NDArray[np.float64], weight: NDArray[np.float64]
) -> float:
    """Weighted mean of squared errors, in squared units of the response; (n,) each."""
    return _weighted_mean((response - mean) ** 2, weight)


def mean_absolute_error(
    mean: NDArray[np.float64], response: NDArray[np.float64], weight: NDArray[np.float64]
) -> float:
    """Weighted mean of absolute errors, in units of the response; (n,) each."""
    return _weighted_mean(np.abs(response - mean), weight)


def predicted_mean(score: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    """Apply the inverse link of the task to (n,) scores: sigmoid, identity or exp."""
    match task:
        case "logistic_regression":
            return np.exp(-np.logaddexp(0.0, -score))
        case "linear_regression":
            return score
        case "poisson_regression":
            return np.exp(score)


def _weighted_mean(values: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    return float(np.sum(weight * values) / np.sum(weight)) if values.size else math.nan
