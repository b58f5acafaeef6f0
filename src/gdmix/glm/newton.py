"""Damped Newton for one large problem, whatever its design is made of.

The design is a `LinearMap`: it multiplies, and it solves for Newton's step in the way that suits
it. The loop here is the same for a fixed effect, an entity with millions of rows, and all
coordinates at once. Only the derivatives of the loss look at single rows; they run over one slice
of rows per thread.

The rows may be divided among the processes of a `group.Group`, and then the coefficients are too:
each rank has its rows' scores and its own part of every vector of coefficients, a contiguous slice.
All ranks go through the loop in step, as all that it decides upon is a sum over the group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.group import ALONE, Group, any_rank, inner_products, largest, total
from gdmix.glm.line_search import ARMIJO, MAX_TRIALS, evaluate_along, judge, longest
from gdmix.glm.losses import (
    SQUARED,
    classes_present,
    evaluate_rows,
    is_one_class,
    lost_and_moved,
)
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.primal_newton import MAX_INTERCEPT_STEP
from gdmix.glm.status import FitStatus
from gdmix.glm.threads import map_threads, split_evenly

F64 = NDArray[np.float64]


class LinearMap(Protocol):
    """The design X of a problem with n rows and d coefficients, the first an intercept.

    In a group, n and d are those of one rank; rank 0 has the intercept.
    """

    size: int
    passes: float
    roughest: float
    """Residual of a Newton step, relative, that will do far from the optimum."""

    def scores(self, theta: F64) -> F64:
        """Return ``X theta``, (n,)."""

    def transposed(self, d1: F64) -> F64:
        """Return ``X' d1``, (d,)."""

    def newton_step(
        self, d2: F64, gradient: F64, penalty: QuadraticPenalty, target: float
    ) -> tuple[F64, F64]:
        """Solve ``(X' diag(d2) X + penalty) step = -gradient``; also return ``X step``.

        Parameters
        ----------
        target
            Norm of the residual that is small enough.
        """

    def rounding_floor(self, theta: F64, offset: F64, d1: F64, d2: F64, penalty: F64) -> float:
        """Return the norm below which a computed gradient is rounding error."""


@dataclass(frozen=True)
class Labels:
    """What the loss compares scores with, all arrays (n,).

    In a group, these are the rows of one rank, and results those of all ranks' rows.
    """

    response: F64
    weight: F64
    offset: F64
    loss: int
    threads: int = 1
    group: Group = ALONE

    def evaluate(self, z: F64, d1: F64, d2: F64) -> float:
        """Fill d1 and d2 at scores z; return the weighted loss."""

        def work(rows: slice) -> float:
            y, w = self.response[rows], self.weight[rows]
            return evaluate_rows(self.loss, y.size, z[rows], y, w, d1[rows], d2[rows])

        return total(self.group, sum(map_threads(work, self._slices(), self.threads)))

    def evaluate_along(
        self, z: F64, move: F64, t: float, new_z: F64, d1: F64, d2: F64
    ) -> tuple[float, float, float]:
        """Fill ``new_z = z + t * move``, d1 and d2; return the loss and its derivatives in t."""

        def work(rows: slice) -> tuple[float, float, float]:
            y, w = self.response[rows], self.weight[rows]
            at = z[rows], move[rows], t, y, w, new_z[rows], d1[rows], d2[rows]
            return evaluate_along(self.loss, y.size, *at)

        parts = map_threads(work, self._slices(), self.threads)
        value, first, second = self.group.sum(np.sum(parts, axis=0)).tolist()
        return value, first, second

    def are_one_class(self) -> bool:
        """Do as `losses.labels_of_one_class`."""
        present = classes_present(self.response.size, self.response, self.weight)
        return bool(is_one_class(self.loss, *any_rank(self.group, *present)))

    def are_classified(self, z: F64) -> bool:
        """Do as `losses.classifies_all`."""
        rows = self.response.size, z, self.offset, self.response, self.weight
        any_lost, any_moved = any_rank(self.group, *lost_and_moved(self.loss, *rows))
        return any_moved and not any_lost

    def _slices(self) -> list[slice]:
        return [slice(a, b) for a, b in split_evenly(self.response.size, self.threads)]


@dataclass(frozen=True)
class Minimum:
    """Where `minimize` ended.

    Attributes
    ----------
    coefficients
        (d,), intercept first; in a group, the rank's own.
    status
        How it ended.
    iterations
        Newton iterations.
    passes
        Passes over the design, a product with X or with X' counted as one half.
    gradient_norm
        Norm of the gradient at the returned coefficients.
    value
        The objective there.
    """

    coefficients: F64
    status: FitStatus
    iterations: int
    passes: float
    gradient_norm: float
    value: float


def minimize(
    design: LinearMap,
    labels: Labels,
    penalty: QuadraticPenalty,
    *,
    intercept: bool,
    tolerance: float,
    max_iterations: int,
    start: F64,
) -> Minimum:
    """Minimise ``sum_i w_i loss(y_i, offset_i + (X theta)_i) + penalty(theta)``.

    Parameters
    ----------
    intercept
        Whether the first column of X is ones, and not zeros.
    tolerance
        Stop at this gradient norm relative to the one at zero coefficients.
    start
        (d,) start coefficients.
    """
    n, group = labels.response.size, labels.group
    theta = start
    d1, d2, new_z, new_d1, new_d2 = (memory.empty(n) for _ in range(5))

    z = memory.copy(labels.offset)
    value = labels.evaluate(z, d1, d2)
    gradient = design.transposed(d1)
    reference = _norm(group, gradient)
    if any_rank(group, theta.any())[0]:
        z += design.scores(theta)
        value = labels.evaluate(z, d1, d2)
        gradient = design.transposed(d1)

    slopes_from = 1 if group.rank == 0 else 0
    penalised, intercept_penalised = any_rank(
        group,
        penalty.weights[slopes_from:].any(),
        penalty.weights[:slopes_from].any() and intercept,
    )
    plain = penalty.matrix is None
    endless = intercept and not intercept_penalised and plain and labels.are_one_class()
    status = FitStatus.MAX_ITERATIONS
    previous_norm = 0.0
    below_noise = False
    iteration = 0
    while True:
        pull = penalty.product(theta)
        gradient += pull
        norm = _norm(group, gradient)
        if norm <= tolerance * reference:
            status = FitStatus.CONVERGED
            break
        if below_noise and norm > 0.5 * previous_norm:
            status = FitStatus.STALLED
            break
        if iteration == max_iterations:
            break
        previous_norm = norm
        iteration += 1

        # Far from the optimum a rough step will do (Nocedal & Wright 2006, section 7.1); a
        # quadratic objective needs one step, so that one is made accurate.
        rough = min(design.roughest, (norm / max(reference, norm)) ** 0.5)
        accuracy = 0.0 if labels.loss == SQUARED else rough
        target = max(accuracy * norm, 0.3 * tolerance * reference)
        step, move = design.newton_step(d2, gradient, penalty, target)
        if endless:
            length = largest(group, abs(step[0]) if group.rank == 0 else 0.0)
            if length > MAX_INTERCEPT_STEP:
                shrink = MAX_INTERCEPT_STEP / length
                step *= shrink
                move *= shrink
        slope, twice_penalty, cross, curvature = inner_products(
            group, (gradient, step), (theta, pull), (pull, step), (step, penalty.product(step))
        )
        noise = 1e-13 * abs(value + 0.5 * twice_penalty)
        below_noise = -slope <= noise
        t, value = search_rows(
            labels, z, move, value, slope, cross, curvature, noise, new_z, new_d1, new_d2
        )
        if t == 0.0:
            status = FitStatus.STALLED
            break
        theta = theta + t * step
        z, new_z = new_z, z
        d1, new_d1 = new_d1, d1
        d2, new_d2 = new_d2, d2
        gradient = design.transposed(d1)

    if status != FitStatus.CONVERGED:
        floor = design.rounding_floor(theta, labels.offset, d1, d2, penalty.diagonal)
        status = FitStatus.CONVERGED if norm <= floor else status
    unpenalised = plain and not (penalised or intercept_penalised)
    if endless or (unpenalised and labels.are_classified(z)):
        status = FitStatus.SEPARATED
    if any_rank(group, not (np.isfinite(theta).all() and np.isfinite(norm)))[0]:
        status, theta = FitStatus.NOT_FINITE, np.zeros(design.size)
    (twice_penalty,) = inner_products(group, (theta, penalty.product(theta)))
    objective = value + 0.5 * twice_penalty
    return Minimum(theta, status, iteration, design.passes, norm, objective)


def search_rows(
    labels: Labels,
    z: F64,
    move: F64,
    value: float,
    slope: float,
    cross: float,
    curvature: float,
    noise: float,
    new_z: F64,
    new_d1: F64,
    new_d2: F64,
) -> tuple[float, float]:
    """Do as `line_search.search`, with the rows in parallel."""
    new_value, _, _ = labels.evaluate_along(z, move, 1.0, new_z, new_d1, new_d2)
    if new_value - value + cross + 0.5 * curvature <= ARMIJO * slope + noise:
        return 1.0, new_value
    reach = max(move.max(initial=0.0), -move.min(initial=0.0))
    t = longest(largest(labels.group, reach))
    low, high = 0.0, t
    for _ in range(MAX_TRIALS):
        new_value, first, second = labels.evaluate_along(z, move, t, new_z, new_d1, new_d2)
        rise = new_value - value + t * cross + 0.5 * t * t * curvature
        accepted, t, low, high = judge(
            t, low, high, rise, first + cross + t * curvature, second + curvature, slope, noise
        )
        if accepted:
            return t, new_value
    new_value, _, _ = labels.evaluate_along(z, move, low, new_z, new_d1, new_d2)
    return low, new_value


def _norm(group: Group, a: F64) -> float:
    return math.sqrt(inner_products(group, (a, a))[0])


def conjugate_gradients(
    product: Callable[[F64], F64],
    precondition: Callable[[F64], F64],
    gradient: F64,
    target: float,
    max_iterations: int,
    advance: Callable[[float, float], object] = lambda length, fit: None,
    group: Group = ALONE,
) -> tuple[F64, bool]:
    """Solve ``H step = -gradient``; also return whether the residual's norm fell to `target`.

    Parameters
    ----------
    product
        Multiplies by H.
    precondition
        Multiplies by an approximate inverse of H.
    advance
        Called when the step has moved by so many times the direction of the last `product`, so
        that a caller can gather ``X step``; with it the residual's squared norm before, in the
        metric of the preconditioner.
    group
        Among whose ranks the vectors are divided.
    """
    step = np.zeros_like(gradient)
    residual = -gradient
    direction = precondition(residual)
    (fit,) = inner_products(group, (residual, direction))
    for _ in range(max_iterations):
        image = product(direction)
        (curvature,) = inner_products(group, (direction, image))
        if curvature <= 0.0:
            break
        length = fit / curvature
        step += length * direction
        advance(length, fit)
        residual -= length * image
        if _norm(group, residual) <= target:
            return step, True
        scaled = precondition(residual)
        (next_fit,) = inner_products(group, (residual, scaled))
        direction = scaled + next_fit / fit * direction
        fit = next_fit
    return step, False
