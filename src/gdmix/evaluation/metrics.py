"""Metrics over all rows: exact, weighted, from the link rather than the probability.

Every function takes rows of positive weight only and returns NaN where the metric is
undefined, an empty input included. In the docstrings w is the row weight, y the response
and z the score, a linear predictor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gdmix.config import Task


def changes(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the first value of every run of equal values; (n,) in, (n,) out."""
    changed = np.ones(values.size, dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


class ClassWeights(NamedTuple):
    """Weight of the rows of either class at some scores.

    Attributes
    ----------
    score
        (m,) scores.
    positive, negative
        (m,) weights.
    """

    score: NDArray[np.float64]
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]


def class_weights(
    score: NDArray[np.float64], response: NDArray[np.float64], weight: NDArray[np.float64]
) -> ClassWeights:
    """Sum the weight of either class at every distinct score, highest score first.

    The running sums of the two weights are the true and false positives at each threshold:
    the ROC curve and the precision-recall curve before they are scaled (Fawcett 2006,
    "An introduction to ROC analysis", algorithm 1).

    Parameters
    ----------
    score, response, weight
        (n,) each; the response is 0 or 1.
    """
    positive = weight * response
    return at_distinct_scores(ClassWeights(score, positive, weight - positive))


def at_distinct_scores(rows: ClassWeights) -> ClassWeights:
    """Sum weights of equal score, highest score first; of rows, or of sums over rows."""
    order = np.argsort(rows.score)[::-1]
    score = rows.score[order]
    starts = np.flatnonzero(changes(score))
    positive, negative = (np.add.reduceat(w[order], starts) for w in rows[1:])
    return ClassWeights(score[starts], positive, negative)


@dataclass
class ThresholdSums:
    """What the ROC and the precision-recall curve need of the thresholds passed so far.

    Rows may come in parts, each of lower scores than all before it: memory for one part is
    enough, and the result is that of all rows at once. Or each part starts from the weights
    above it, with `concordant` and `precision` of zero, and `total` adds the parts up.

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

    def add(self, thresholds: ClassWeights) -> None:
        """Pass the next thresholds, highest first."""
        _, positive, negative = thresholds
        true_positives = self.positives + np.cumsum(positive)
        self.concordant += float(np.sum(negative * (true_positives - 0.5 * positive)))
        passed = true_positives + self.negatives + np.cumsum(negative)
        # Rows of no positive weight have no part in it, but may make the divisor zero.
        precision = np.divide(true_positives, passed, out=np.zeros_like(passed), where=passed > 0)
        self.precision += float(np.sum(positive * precision))
        self.positives += float(positive.sum())
        self.negatives += float(negative.sum())

    @classmethod
    def total(cls, parts: Sequence[ThresholdSums]) -> ThresholdSums:
        """Add up parts that each started from the weights above it."""
        return cls(
            # The lowest part ends with all rows.
            max((part.positives for part in parts), default=0.0),
            max((part.negatives for part in parts), default=0.0),
            float(np.sum([part.concordant for part in parts])),
            float(np.sum([part.precision for part in parts])),
        )

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


def row_losses(
    kind: str, score: NDArray[np.float64], response: NDArray[np.float64], task: Task
) -> NDArray[np.float64]:
    """Return what a metric is the weighted mean of; ``rmse`` is the root of that mean.

    Parameters
    ----------
    kind
        ``logloss``, ``poisson_loss``, ``rmse`` or ``mae``.
    score, response
        (n,) each.
    task
        Decides the inverse link of ``rmse`` and ``mae``.

    Returns
    -------
    ndarray
        (n,) losses.
    """
    match kind:
        case "logloss":
            return log_loss(score, response)
        case "poisson_loss":
            return poisson_loss(score, response)
    error = response - predicted_mean(score, task)
    return error**2 if kind == "rmse" else np.abs(error)


def log_loss(score: NDArray[np.float64], response: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(1 + exp(z)) - y z in nats, for (n,) responses of 0 or 1."""
    # The margin form of the same loss: the difference cancels for large scores.
    margin = np.where(response > 0, score, -score)
    return np.logaddexp(0.0, -margin)


def poisson_loss(score: NDArray[np.float64], response: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return exp(z) - y z of (n,) rows.

    The negative log-likelihood of a Poisson with mean exp(z), less the term log(y!) that no
    model can change (McCullagh & Nelder 1989, "Generalized Linear Models", chapter 6).
    """
    return np.exp(score) - response * score


def predicted_mean(score: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    """Apply the inverse link of the task to (n,) scores: sigmoid, identity or exp."""
    match task:
        case "logistic_regression":
            return np.exp(-np.logaddexp(0.0, -score))
        case "linear_regression":
            return score
        case "poisson_regression":
            return np.exp(score)
