"""Proximal Newton for one large problem: an L1 penalty, and bounds on the coefficients.

The loop is that of `proximal_newton`; `quadratic_model` has the ways in which the quadratic model
of the objective is minimised. As in `newton`, rows and coefficients may be divided among the
processes of a `group.Group`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.group import any_rank, total
from gdmix.glm.large import SparseMap
from gdmix.glm.losses import SQUARED
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Labels, Minimum, search_rows
from gdmix.glm.objective import dot
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.primal_newton import MAX_INTERCEPT_STEP
from gdmix.glm.proximal_newton import (
    LEAST_DAMPING,
    MAX_DAMPING,
    ROUGHEST,
    ROUNDING,
    UNBOUNDED,
    recedes,
)
from gdmix.glm.quadratic_model import QuadraticModel, Terms, model_of
from gdmix.glm.status import FitStatus

F64 = NDArray[np.float64]


def fit_large_proximal(
    design: CsrMatrix,
    response: F64,
    weight: F64,
    offset: F64,
    *,
    loss: int,
    penalty: QuadraticPenalty,
    l1: F64,
    lower: F64,
    upper: F64,
    intercept: bool = True,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
    start: F64 | None = None,
    threads: int = 1,
) -> Minimum:
    """Minimise the objective of `gdmix.glm.proximal_newton`.

    Parameters
    ----------
    design
        (n, d - 1) features.
    response, weight, offset
        (n,).
    loss
        A loss of `gdmix.glm.losses`.
    penalty
        Of d coefficients, the intercept's first.
    l1
        (d,) L1 weight per coefficient, or empty: none.
    lower, upper
        (d,) bounds, infinite where there is none, or empty; a missing intercept's do not matter.
    tolerance
        Stop at this norm of the least subgradient (`proximal_newton.least_subgradient`) relative
        to the one at the feasible point nearest zero.
    start
        (d,) start coefficients; not used if they are worse than zero.
    threads
        The result depends on it only through the order of sums.

    Returns
    -------
    Minimum
        Its `gradient_norm` is the norm of the least subgradient, its `value` has the L1 term.
    """
    l1 = l1 if l1.size else np.zeros(design.n_columns + 1)
    whole = SparseMap(design, intercept, threads)
    return minimize_proximal(
        whole,
        Labels(response, weight, offset, loss, threads),
        Terms(penalty, l1, *finite_bounds(lower, upper, l1.size, not intercept)),
        model_of(whole, design),
        intercept=intercept,
        tolerance=tolerance,
        max_iterations=max_iterations,
        start=start,
    )


def minimize_proximal(
    design: SparseMap,
    labels: Labels,
    terms: Terms,
    model: QuadraticModel,
    *,
    intercept: bool,
    tolerance: float,
    max_iterations: int,
    start: F64 | None,
) -> Minimum:
    """Do as `fit_large_proximal`; in a group, vectors of coefficients are those of the rank.

    Parameters
    ----------
    model
        Of the same design.
    intercept
        Whether the first column of the design is ones, and not zeros.
    """
    n, group = labels.response.size, labels.group
    penalty = terms.penalty
    d1, d2, new_z, new_d1, new_d2 = (memory.empty(n) for _ in range(5))

    theta = zero = terms.clipped(np.zeros(design.size))
    z = memory.copy(labels.offset)
    if any_rank(group, zero.any())[0]:
        z += design.scores(zero)
    value = labels.evaluate(z, d1, d2)
    gradient = design.transposed(d1)
    reference = terms.norm(terms.least_subgradients(zero, gradient + penalty.product(zero)))
    start = zero if start is None else terms.clipped(start)
    if any_rank(group, (start != zero).any())[0]:
        np.add(labels.offset, design.scores(start), out=new_z)
        new_value = labels.evaluate(new_z, new_d1, new_d2)
        if new_value + terms.value(start) < value + terms.value(zero):
            theta, value = start, new_value
            z, new_z, d1, new_d1, d2, new_d2 = new_z, z, new_d1, d1, new_d2, d2
            gradient = design.transposed(d1)

    endless = intercept and penalty.matrix is None and _runs_away(labels, terms)
    status = FitStatus.MAX_ITERATIONS
    previous_norm = 0.0
    below_noise = False
    iteration = 0
    while True:
        pull = penalty.product(theta)
        gradient += pull
        norm = terms.norm(terms.least_subgradients(theta, gradient))
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

        noise = 1e-13 * abs(value + terms.value(theta))
        rough = min(ROUGHEST, math.sqrt(norm / max(reference, norm)))
        accuracy = 0.0 if labels.loss == SQUARED else rough
        enough = max(accuracy * norm, 0.3 * tolerance * reference)
        t, damping = 0.0, 0.0
        while True:
            damped = terms
            if damping > 0.0:  # relative to the largest curvature
                damped = terms.with_ridge(damping * terms.largest(design.hessian_diagonal(d2)))
            point = model.minimum(theta, gradient, d2, damped, enough)
            step = point - theta
            if endless:
                length = terms.largest(np.abs(step[:1]) if group.rank == 0 else step[:0])
                if length > MAX_INTERCEPT_STEP:
                    step *= MAX_INTERCEPT_STEP / length
                    point = theta + step
            move = design.scores(step)
            chord = terms.l1_change(theta, point)
            slope, cross, curvature = terms.inner(
                (gradient, step), (pull, step), (step, penalty.product(step))
            )
            slope, cross = slope + chord, cross + chord
            below_noise = -slope <= noise
            t, new_value = search_rows(
                labels, z, move, value, slope, cross, curvature, noise, new_z, new_d1, new_d2
            )
            if t > 0.0 or abs(slope) <= noise or damping > MAX_DAMPING:
                break
            damping = max(LEAST_DAMPING, 100.0 * damping)
        if t == 0.0:
            status = FitStatus.STALLED
            break
        theta, value = point if t == 1.0 else theta + t * step, new_value
        z, new_z = new_z, z
        d1, new_d1 = new_d1, d1
        d2, new_d2 = new_d2, d2
        gradient = design.transposed(d1)

    if status != FitStatus.CONVERGED:
        floor = design.rounding_floor(theta, labels.offset, d1, d2, penalty.diagonal)
        floor += ROUNDING * total(group, float(terms.l1.sum()))
        status = FitStatus.CONVERGED if norm <= floor else status
    if endless or (_recedes(theta, terms) and labels.are_classified(z)):
        status = FitStatus.SEPARATED
    if any_rank(group, not (np.isfinite(theta).all() and np.isfinite(norm)))[0]:
        status, theta = FitStatus.NOT_FINITE, zero
    objective = value + terms.value(theta)
    return Minimum(theta, status, iteration, design.passes, norm, objective)


def finite_bounds(lower: F64, upper: F64, d: int, holds_first: bool) -> tuple[F64, F64]:
    """Return bounds of d coefficients at most `UNBOUNDED` in size.

    Parameters
    ----------
    lower, upper
        (d,), or empty: none.
    holds_first
        Whether the first coefficient is held at zero: that of an intercept which is missing.
    """
    lower = np.maximum(lower, -UNBOUNDED) if lower.size else np.full(d, -UNBOUNDED)
    upper = np.minimum(upper, UNBOUNDED) if upper.size else np.full(d, UNBOUNDED)
    if holds_first:
        lower[0] = upper[0] = 0.0
    return lower, upper


def _runs_away(labels: Labels, terms: Terms) -> bool:
    """Do as `proximal_newton.runs_away`, with the rows of all ranks."""
    group = labels.group
    if not labels.are_one_class():
        return False
    up = total(group, dot(labels.response.size, labels.weight, labels.response)) > 0.0
    is_free = False
    if group.rank == 0:
        unbounded = terms.upper[0] >= UNBOUNDED if up else terms.lower[0] <= -UNBOUNDED
        is_free = unbounded and terms.penalty.weights[0] == 0.0 and terms.l1[0] == 0.0
    return any_rank(group, is_free)[0]


def _recedes(theta: F64, terms: Terms) -> bool:
    """Do as `proximal_newton.recedes`, with the coefficients of all ranks."""
    if terms.penalty.matrix is not None:
        return False
    own = recedes(theta, terms.penalty.weights, terms.l1, terms.lower, terms.upper)
    return not any_rank(terms.group, not own)[0]
