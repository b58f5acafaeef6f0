"""`l2: auto`: L2 weights by empirical Bayes, and what they say as variance components.

A coordinate's coefficients are seen as draws from N(0, s / l2), s the dispersion (1, or the
residual variance of the linear task). The weight that makes the data most likely, coefficients
integrated out by Laplace's method, satisfies

    l2 (sum theta^2 / s - sum theta pull) = q - l2 sum var(theta)         per group of q columns

(MacKay, Neural Computation 1992; for the linear task these are the equations of REML; `pull` is
the part of log|H| that moves with the optimum, without which binary data are biased to large
weights, as Breslow & Clayton's PQL is). Each pass solves them once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix.coordinates.joint import LinearCoordinate
from gdmix.glm.joint import JointMap
from gdmix.glm.laplace import Laplace, laplace
from gdmix.glm.losses import POISSON, SQUARED
from gdmix.glm.newton import Labels
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.model.base import CoordinateModel
from gdmix.model.linear import LinearModel, linear_models

F64 = NDArray[np.float64]

LEAST_WEIGHT, LARGEST_WEIGHT = 1e-6, 1e8
_LARGEST_STEP = math.log(100.0)  # of a weight in one update
_SHORTEST, _LONGEST = 0.5, 6.0  # of a step, beside what the equations propose
_PROBES_TIMES_MODELS, _LEAST_PROBES, _MOST_PROBES = 8000, 4, 16


@dataclass(frozen=True)
class VarianceComponent:
    """One group of coefficients that share a variance.

    Attributes
    ----------
    coordinate, group
        What it is of: the intercept, or a bag.
    l2
        The weight.
    variance
        Of the coefficients: dispersion / l2.
    coefficients
        How many there are.
    effective
        How many of them the data determine: between 0 and `coefficients`.
    """

    coordinate: str
    group: str
    l2: float
    variance: float
    coefficients: int
    effective: float


@dataclass(frozen=True)
class Weights:
    """The L2 weights of a coordinate's groups, and how they came about.

    Attributes
    ----------
    weight
        (groups,).
    step
        (groups,) by which their logarithms moved last.
    pull
        (groups,) by which the equations would have moved them.
    """

    weight: list[float]
    step: list[float]
    pull: list[float]


@dataclass(frozen=True)
class Estimate:
    """What an update found.

    Attributes
    ----------
    weights
        The next weights, of each coordinate that has estimated ones.
    components
        At the weights that the models were fitted with.
    dispersion
        The residual variance of the linear task, else 1.
    log_marginal_likelihood
        Of the responses, coefficients integrated out; of the linear task restricted (REML).
    change
        By how much the equations would move the logarithm of a weight that matters, at most.
    gain
        By how much all these moves would raise the log marginal likelihood, about.
    """

    weights: Mapping[str, Weights]
    components: tuple[VarianceComponent, ...]
    dispersion: float
    log_marginal_likelihood: float
    change: float
    gain: float


class WeightSource(Protocol):
    """Estimates L2 weights, and sets them, wherever the rows are."""

    def estimate(self, models: Mapping[str, CoordinateModel], accuracy: float) -> Estimate:
        """Estimate the weights around models that were fitted with those of now."""

    def apply(self, weights: Mapping[str, Weights]) -> None:
        """Set the weights of groups, by coordinate."""


class WeightEstimator:
    """Estimates the weights of the coordinates that ask for it, and sets them.

    Parameters
    ----------
    coordinates
        All linear ones that are fitted.
    estimated
        Names of those with weights to estimate.
    labels
        Returns the training rows' labels, their offset being all that is not linear.
    joint
        Whether coefficients of different coordinates count as correlated.
    """

    def __init__(
        self,
        coordinates: Mapping[str, LinearCoordinate],
        estimated: frozenset[str],
        labels: Callable[[], Labels],
        joint: bool = True,
    ) -> None:
        self._coordinates, self._estimated = coordinates, estimated
        self._labels, self._joint = labels, joint
        self._weights: Mapping[str, Weights] = {}

    def estimate(self, models: Mapping[str, CoordinateModel], accuracy: float) -> Estimate:
        """Estimate the weights around models that were fitted with those of now."""
        return estimate(
            self._coordinates,
            linear_models(models),
            self._labels(),
            self._estimated,
            self._weights,
            self._joint,
            accuracy,
        )

    def apply(self, weights: Mapping[str, Weights]) -> None:
        """Set the weights of groups, by coordinate."""
        self._weights = weights
        for name, own in weights.items():
            coordinate = self._coordinates[name]
            regularization = coordinate.regularization.reweighted(np.array(own.weight))
            coordinate.regularization = regularization


def estimate(
    coordinates: Mapping[str, LinearCoordinate],
    models: Mapping[str, LinearModel],
    labels: Labels,
    estimated: frozenset[str],
    before: Mapping[str, Weights],
    joint: bool = True,
    accuracy: float = 0.01,
) -> Estimate:
    """Estimate the weights anew, around the models fitted with the weights of now.

    Parameters
    ----------
    labels
        The training rows; their offset is all that is not among the coordinates.
    estimated
        Names of the coordinates whose weights are estimated.
    before
        The weights of now, if an earlier estimate has set them.
    joint
        Whether coefficients of different coordinates count as correlated.
    accuracy
        Of the solves of `gdmix.glm.laplace`.
    """
    design = JointMap([c.linear_map() for c in coordinates.values()], labels.response.size)
    theta = np.concatenate([models[name].coefficients.values for name in coordinates])
    penalty = np.concatenate([c.penalty_vector() for c in coordinates.values()])
    # What a random vector tells of q coefficients is off by sqrt(2 / q).
    sizes = [len(models[name].coefficients) for name in estimated]
    smallest = min((size for size in sizes if size > 1), default=1)
    probes = min(max(_PROBES_TIMES_MODELS // smallest, _LEAST_PROBES), _MOST_PROBES) * joint
    around = laplace(design, labels, QuadraticPenalty(penalty), theta, probes, accuracy)
    dispersion, likelihood = _dispersion_and_likelihood(labels, around, penalty, theta)
    weights: dict[str, Weights] = {}
    components: list[VarianceComponent] = []
    change, gain = 0.0, 0.0
    parts = zip(
        coordinates.items(),
        design.split(theta),
        design.split(around.variance),
        design.split(around.pull),
        design.split(around.present),
        strict=True,
    )
    for (name, coordinate), own, variance, pull, present in parts:
        if name not in estimated:
            continue
        regularization = coordinate.regularization
        now = regularization.group_weight
        columns = _columns(models[name])
        group, factor = regularization.group[columns], regularization.factor[columns]
        present = present & (factor > 0.0)
        count = np.bincount(group, present, now.size)
        lost = now * np.bincount(group, present * factor * variance, now.size)
        effective = np.maximum(count - lost, 1e-9)
        size = np.bincount(group, factor * (own * own / dispersion - own * pull), now.size)
        is_open = (now > 0.0) & (count > 0.0)
        proposed = np.divide(effective, size, out=np.full(now.size, np.inf), where=size > 0.0)
        proposed = np.where(is_open, np.clip(proposed, LEAST_WEIGHT, LARGEST_WEIGHT), now)
        weights[name] = _next(now, proposed, before.get(name))
        # A weight that leaves a group nothing to say may go on growing: nobody will notice.
        matters = is_open & (effective > 1e-3 * count)
        pulls = np.array(weights[name].pull)[matters]
        change = max(change, float(np.abs(pulls).max(initial=0.0)))
        # The slope in the logarithm is half of `effective` times the pull; half of that on the way.
        gain += 0.25 * float(effective[matters] @ pulls**2)
        for g in np.flatnonzero(is_open).tolist():
            amounts = float(now[g]), float(dispersion / now[g]), int(count[g]), float(effective[g])
            components.append(VarianceComponent(name, regularization.labels[g], *amounts))
    return Estimate(weights, tuple(components), dispersion, likelihood, change, gain)


def _next(now: F64, proposed: F64, before: Weights | None) -> Weights:
    """Go to the proposed weights, and beyond or not as far: the secant step of each logarithm."""
    log = np.log(np.where(now > 0.0, now, 1.0))
    pull = np.log(np.where(proposed > 0.0, proposed, 1.0)) - log
    factor = np.ones(now.size)
    if before is not None:
        moved, lost = np.array(before.step), np.array(before.pull) - pull
        np.divide(moved, lost, out=factor, where=moved * lost > 0.0)
        factor = np.clip(factor, _SHORTEST, _LONGEST)
    step = np.clip(factor * pull, -_LARGEST_STEP, _LARGEST_STEP)
    step = np.clip(log + step, math.log(LEAST_WEIGHT), math.log(LARGEST_WEIGHT)) - log
    weight = np.where(now > 0.0, np.exp(log + step), 0.0)
    return Weights(weight.tolist(), np.where(now > 0.0, step, 0.0).tolist(), pull.tolist())


def _columns(model: LinearModel) -> NDArray[np.uint32]:
    coefficients = model.coefficients
    size = coefficients.values.size
    own = getattr(coefficients, "columns", None)
    return np.arange(size, dtype=np.uint32) if own is None else own


def _dispersion_and_likelihood(
    labels: Labels, around: Laplace, penalty: F64, theta: F64
) -> tuple[float, float]:
    """Return the dispersion and the log marginal likelihood."""
    penalised = penalty > 0.0
    there = around.present
    free = int(np.count_nonzero(there & ~penalised))
    log_prior = float(np.log(penalty[penalised & there]).sum())
    size = 0.5 * float(penalty @ (theta * theta))
    weight = labels.weight[labels.weight > 0.0]
    if labels.loss == SQUARED:
        freedom = max(weight.size - free, 1)
        dispersion = 2.0 * (around.loss + size) / freedom
        total = freedom * (math.log(2.0 * math.pi * dispersion) + 1.0)
        total += around.log_determinant - log_prior - float(np.log(weight).sum())
        return dispersion, -0.5 * total
    total = -around.loss - size + 0.5 * (log_prior - around.log_determinant)
    total += 0.5 * free * math.log(2.0 * math.pi)
    if labels.loss == POISSON:
        counts, place = np.unique(labels.response, return_inverse=True)
        factorials = np.array([math.lgamma(c + 1.0) for c in counts])
        total -= float(labels.weight @ factorials[place])
    return 1.0, total
