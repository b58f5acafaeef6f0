"""Proximal Newton for one small problem: an L1 penalty, and bounds on the coefficients.

    minimise  F(theta) + sum_j l1_j |theta_j|    where  lower_j <= theta_j <= upper_j

with F the objective of `objective`. Each iteration minimises F's quadratic model plus the L1 term
within the bounds (Lee, Sun & Saunders, SIAM J. Optimization 24, 2014; glmnet's outer loop) and
searches the segment that leads there. On that segment the L1 term lies below its chord, which is
linear, so that the line search is the one for smooth objectives.

The model is minimised by turns: a sweep of coordinate descent, which finds the coefficients that
are zero or at a bound, exactly; then Newton's step for the others, by Cholesky, which does not
mind the correlated features that coordinate descent alone takes thousands of sweeps for.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gdmix.glm import cholesky
from gdmix.glm.compiled import kernel
from gdmix.glm.line_search import search
from gdmix.glm.losses import SQUARED, classifies_all, evaluate_rows, labels_of_one_class
from gdmix.glm.objective import (
    add_hessian,
    add_margins,
    add_scaled,
    add_transposed,
    dot,
    margins,
    rounding_floor,
)
from gdmix.glm.penalty import penalty_product
from gdmix.glm.primal_newton import MAX_INTERCEPT_STEP
from gdmix.glm.status import CONVERGED, MAX_ITERATIONS, SEPARATED, STALLED

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# A bound that is none: kernels know no infinity.
UNBOUNDED: Final = 1e100
ROW_BUFFERS = 7
COEFFICIENT_BUFFERS = 9
# Of the model's minimisation, each a sweep and a step for the free coefficients.
MAX_ROUNDS = 200
# From this round on, steps go on until they end at the minimum of the face that they are on.
PATIENCE = 10
# Norm of the model's least subgradient, relative, that will do far from the optimum.
ROUGHEST = 0.1
# Ridges of a model whose minimum is no descent, relative to the largest curvature.
LEAST_DAMPING, MAX_DAMPING = 1e-10, 1.0
# Added to the Hessian of a face, relative to its diagonal. Where features depend on each other the
# model is flat but for the L1 term: the step then runs along it to the next zero, and must be free
# of rounding errors.
RIDGE = 1e-10
# A pivot below so many times the ridge is a direction without curvature.
FLAT = 100.0
ROUNDING = 8.0 * 2.220446049250313e-16  # of one l1 weight in a subgradient


@kernel
def solve_proximal(
    loss: int,
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    y: F64,
    w: F64,
    offset: F64,
    intercept: float,
    penalty: F64,
    matrix: NDArray[np.float64],
    l1: F64,
    lower: F64,
    upper: F64,
    tolerance: float,
    max_iterations: int,
    theta: F64,
    rows: NDArray[np.float64],
    coefficients: NDArray[np.float64],
    places: I64,
    hessian: NDArray[np.float64],
    factor: NDArray[np.float64],
    report: F64,
) -> int:
    """Minimise the objective from the start in `theta`; overwrite `theta`.

    A start that is worse than zero is not used.

    Parameters
    ----------
    n
        Number of rows; `indptr`, `y`, `w` and `offset` are this problem's slices.
    penalty, matrix
        (d,) L2 weight per coefficient, d = features + 1; (d, d) or (0, 0) the penalty's matrix.
    l1
        (d,) L1 weight per coefficient.
    lower, upper
        (d,) bounds; at most `UNBOUNDED` in size.
    tolerance
        Relative to the norm of the least subgradient (`least_subgradient`) at the feasible point
        nearest zero.
    rows, coefficients, places, hessian, factor
        Scratch: (ROW_BUFFERS, >= n), (COEFFICIENT_BUFFERS, >= d), (>= d,), and two (>= d, >= d).
    report
        (2,): filled with the number of iterations and the norm of the final least subgradient.

    Returns
    -------
    int
        A `FitStatus`.
    """
    d = theta.size
    z, d1, d2 = rows[0], rows[1], rows[2]
    new_z, new_d1, new_d2, move = rows[3], rows[4], rows[5], rows[6]
    gradient, target, step = coefficients[0][:d], coefficients[1][:d], coefficients[2][:d]
    pull, pull_step = coefficients[7][:d], coefficients[8][:d]

    # The reference of the stopping rule: the least subgradient at zero coefficients.
    warm = False
    zero = target
    for j in range(d):
        present = intercept if j == 0 else 1.0
        zero[j] = present * min(max(0.0, lower[j]), upper[j])
        theta[j] = present * min(max(theta[j], lower[j]), upper[j])
        warm = warm or theta[j] != zero[j]
    add_margins(n, indptr, indices, values, intercept, zero, offset, z)
    value = evaluate_rows(loss, n, z, y, w, d1, d2)
    gradient[:] = 0.0
    add_transposed(n, indptr, indices, values, intercept, d1, gradient)
    penalty_product(penalty, matrix, zero, pull)
    for j in range(d):
        step[j] = gradient[j] + pull[j]
    reference = math.sqrt(squared_norm(d, zero, step, l1, lower, upper))
    if warm:
        penalties = penalties_at(zero, pull, l1)
        penalty_product(penalty, matrix, theta, pull)
        add_margins(n, indptr, indices, values, intercept, theta, offset, new_z)
        new_value = evaluate_rows(loss, n, new_z, y, w, new_d1, new_d2)
        if new_value + penalties_at(theta, pull, l1) < value + penalties:
            value = new_value
            z, new_z = new_z, z
            d1, new_d1 = new_d1, d1
            d2, new_d2 = new_d2, d2
            gradient[:] = 0.0
            add_transposed(n, indptr, indices, values, intercept, d1, gradient)
        else:  # it may be far out, where the loss is flat or grows exponentially
            for j in range(d):
                theta[j] = zero[j]

    endless = (
        intercept != 0.0
        and matrix.size == 0
        and runs_away(loss, n, y, w, penalty, l1, lower, upper)
    )
    status = MAX_ITERATIONS
    previous_norm = 0.0
    below_noise = False
    iteration = 0
    while True:
        penalty_product(penalty, matrix, theta, pull)
        add_scaled(d, 1.0, pull, gradient)
        penalties = penalties_at(theta, pull, l1)
        norm = math.sqrt(squared_norm(d, theta, gradient, l1, lower, upper))
        if norm <= tolerance * reference:
            status = CONVERGED
            break
        if below_noise and norm > 0.5 * previous_norm:
            status = STALLED
            break
        if iteration == max_iterations:
            break
        previous_norm = norm
        iteration += 1

        for i in range(d):
            row = hessian[i]
            for j in range(i):
                row[j] = matrix[i, j] if matrix.size > 0 else 0.0
            row[i] = penalty[i] + (matrix[i, i] if matrix.size > 0 else 0.0)
        add_hessian(n, indptr, indices, values, intercept, d2, d - 1, hessian)
        # A rough minimum of the model will do far from that of the objective.
        accuracy = 0.0 if loss == SQUARED else min(ROUGHEST, math.sqrt(norm / max(reference, norm)))
        enough = max(accuracy * norm, 0.3 * tolerance * reference)
        damping = 0.0
        while True:
            minimize_model(
                d, hessian, gradient, penalty, l1, lower, upper, theta, enough, target,
                coefficients, places, factor,
            )  # fmt: skip
            shrink = 1.0
            if endless and abs(target[0] - theta[0]) > MAX_INTERCEPT_STEP:
                shrink = MAX_INTERCEPT_STEP / abs(target[0] - theta[0])
            for j in range(d):
                step[j] = shrink * (target[j] - theta[j])
                if shrink < 1.0:
                    target[j] = theta[j] + step[j]
            chord = 0.0
            slope = 0.0
            cross = 0.0
            curvature = 0.0
            penalty_product(penalty, matrix, step, pull_step)
            for j in range(d):
                chord += l1[j] * (abs(target[j]) - abs(theta[j]))
                slope += gradient[j] * step[j]
                cross += pull[j] * step[j]
                curvature += pull_step[j] * step[j]
            margins(n, indptr, indices, values, intercept, step, move)
            slope += chord
            cross += chord
            noise = 1e-13 * abs(value + penalties)
            below_noise = -slope <= noise
            t, new_value = search(
                loss, n, z, move, y, w, value, slope, cross, curvature, noise,
                new_z, new_d1, new_d2,
            )  # fmt: skip
            # Where rows are saturated the model may be flat to rounding in some direction, and its
            # minimum no descent: a ridge bends it (Levenberg).
            if t > 0.0 or abs(slope) <= noise or damping > MAX_DAMPING:
                break
            more = max(LEAST_DAMPING, 99.0 * damping)
            damping += more
            largest = 0.0
            for j in range(d):
                largest = max(largest, hessian[j, j])
            for j in range(d):
                hessian[j, j] += more * largest
        if t == 0.0:
            status = STALLED
            break
        for j in range(d):
            theta[j] = target[j] if t == 1.0 else theta[j] + t * step[j]
        z, new_z = new_z, z
        d1, new_d1 = new_d1, d1
        d2, new_d2 = new_d2, d2
        value = new_value
        gradient[:] = 0.0
        add_transposed(n, indptr, indices, values, intercept, d1, gradient)

    if status != CONVERGED:
        floor = rounding_floor(
            n, indptr, indices, values, intercept, theta, offset, d1, d2, penalty
        )
        for j in range(d):
            floor += ROUNDING * l1[j]
        if norm <= floor:
            status = CONVERGED
    if endless or (
        matrix.size == 0
        and recedes(theta, penalty, l1, lower, upper)
        and classifies_all(loss, n, z, offset, y, w)
    ):
        status = SEPARATED
    report[0] = iteration
    report[1] = norm
    return status


@kernel
def least_subgradient(theta: float, slope: float, l1: float, lower: float, upper: float) -> float:
    """Return a coefficient's entry of the least subgradient, projected on the feasible directions.

    It is the one-sided derivative of the objective in the direction in which it falls, zero if it
    falls in neither that the bounds allow: with `slope` the derivative of the smooth part, the
    right derivative ``slope + l1 sign(theta)``, sign(0) = 1, if it is negative and
    ``theta < upper``, or the left one, sign(0) = -1, if it is positive and ``theta > lower``. All
    zeros are the condition of a minimum (Andrew & Gao, ICML 2007, for its L1 part).
    """
    right = slope + l1 if theta >= 0.0 else slope - l1
    if right < 0.0:
        return right if theta < upper else 0.0
    left = slope + l1 if theta > 0.0 else slope - l1
    if left > 0.0:
        return left if theta > lower else 0.0
    return 0.0


@kernel
def penalties_at(theta: F64, pull: F64, l1: F64) -> float:
    """Return the penalties at `theta`, given its product with the quadratic one's matrix."""
    total = 0.0
    for j in range(theta.size):
        total += 0.5 * pull[j] * theta[j] + l1[j] * abs(theta[j])
    return total


@kernel
def squared_norm(d: int, theta: F64, slope: F64, l1: F64, lower: F64, upper: F64) -> float:
    """Return the squared norm of the least subgradient, all arrays (>= d,)."""
    total = 0.0
    for j in range(d):
        own = least_subgradient(theta[j], slope[j], l1[j], lower[j], upper[j])
        total += own * own
    return total


@kernel
def minimum_along(
    theta: float, slope: float, curvature: float, l1: float, lower: float, upper: float
) -> float:
    """Return where ``slope s + curvature s^2 / 2 + l1 |theta + s|`` is least, within the bounds.

    Soft thresholding (Tibshirani 1996). What has neither curvature nor slope stays where it is,
    or at zero if it has an L1 weight.
    """
    if curvature > 0.0:
        centre = theta - slope / curvature
        threshold = l1 / curvature
        if centre > threshold:
            new = centre - threshold
        elif centre < -threshold:
            new = centre + threshold
        else:
            new = 0.0
    elif l1 > 0.0:
        new = 0.0
    else:
        return theta
    return min(max(new, lower), upper)


@kernel
def minimize_model(
    d: int,
    hessian: NDArray[np.float64],
    gradient: F64,
    penalty: F64,
    l1: F64,
    lower: F64,
    upper: F64,
    theta: F64,
    enough: float,
    target: F64,
    coefficients: NDArray[np.float64],
    places: I64,
    factor: NDArray[np.float64],
) -> None:
    """Minimise ``gradient' s + s' hessian s / 2 + sum_j l1_j |theta_j + s_j|`` within the bounds.

    Parameters
    ----------
    hessian
        (>= d, >= d); its lower triangle is read, and copied to the upper.
    enough
        Norm of the model's least subgradient that is small enough.
    target
        (d,) filled with ``theta + s``.
    coefficients, places, factor
        Scratch; ``coefficients`` from its fourth row on.
    """
    slope, step, image, kink = coefficients[3], coefficients[4], coefficients[5], coefficients[6]
    for j in range(d):
        target[j] = theta[j]
        slope[j] = gradient[j]
        for k in range(j):
            hessian[k, j] = hessian[j, k]
    for attempt in range(MAX_ROUNDS):
        _sweep(d, hessian, l1, lower, upper, target, slope)
        if squared_norm(d, target, slope, l1, lower, upper) <= enough * enough:
            return
        # A step that is not whole makes the face smaller. Where the next sweep might only undo it,
        # steps go on until they end at the face's minimum.
        free, whole = 0, False
        for _ in range(d + 1):
            free = _free_places(d, l1, lower, upper, target, places)
            whole, flat = _step_on_face(
                d, hessian, penalty, l1, lower, upper, target, slope, free, places, factor,
                step, image, kink,
            )  # fmt: skip
            if whole or not (flat or attempt >= PATIENCE):
                break
        total = squared_norm(d, target, slope, l1, lower, upper)
        if total <= enough * enough:
            return
        rounding = 0.0
        for k in range(free):
            j = places[k]
            own = least_subgradient(target[j], slope[j], l1[j], lower[j], upper[j])
            rounding += own * own
        if whole and rounding >= 0.99 * total:
            return


@kernel
def _free_places(d: int, l1: F64, lower: F64, upper: F64, target: F64, places: I64) -> int:
    """List the coefficients about which the model is smooth; return their number."""
    free = 0
    for j in range(d):
        inside = lower[j] < target[j] and target[j] < upper[j]
        if inside and (target[j] != 0.0 or l1[j] == 0.0):
            places[free] = j
            free += 1
    return free


@kernel
def _sweep(
    d: int,
    hessian: NDArray[np.float64],
    l1: F64,
    lower: F64,
    upper: F64,
    target: F64,
    slope: F64,
) -> None:
    """Minimise the model in one coefficient after the other."""
    for j in range(d):
        row = hessian[j]
        new = minimum_along(target[j], slope[j], row[j], l1[j], lower[j], upper[j])
        change = new - target[j]
        if change != 0.0:
            target[j] = new
            for k in range(d):
                slope[k] += change * row[k]


@kernel
def _step_on_face(
    d: int,
    hessian: NDArray[np.float64],
    penalty: F64,
    l1: F64,
    lower: F64,
    upper: F64,
    target: F64,
    slope: F64,
    free: int,
    places: I64,
    factor: NDArray[np.float64],
    step: F64,
    image: F64,
    kink: F64,
) -> tuple[bool, bool]:
    """Minimise the model in the free coefficients, their signs kept.

    Those that would cross zero or a bound stop there if the model is lower even so, else all
    stop where the first of them does; so they do where the face is flat in some direction, as the
    step then runs far along it.

    Returns
    -------
    tuple[bool, bool]
        Whether none crossed; whether the face is flat in some direction.
    """
    if free == 0:
        return True, False
    for a in range(free):
        source = hessian[places[a]]
        row = factor[a]
        for b in range(a + 1):
            row[b] = source[places[b]]
        image[a] = max(penalty[places[a]], RIDGE * row[a])
        row[a] += RIDGE * row[a]
    cholesky.factorize(free, factor, image)
    flat = False
    for a in range(free):
        j = places[a]
        flat = flat or factor[a, a] ** 2 * (FLAT * RIDGE * hessian[j, j]) >= 1.0
        side = l1[j] if target[j] > 0.0 else -l1[j]
        step[a] = -(slope[j] + (side if l1[j] > 0.0 else 0.0))
    cholesky.solve(free, factor, step)
    first, first_place = 1.0, -1
    for a in range(free):
        j = places[a]
        low, high = lower[j], upper[j]
        if l1[j] > 0.0:
            low = max(low, 0.0) if target[j] > 0.0 else low
            high = min(high, 0.0) if target[j] < 0.0 else high
        new = target[j] + step[a]
        kink[a] = min(max(new, low), high)
        if kink[a] != new:
            share = (kink[a] - target[j]) / step[a]
            if share < first or first_place < 0:
                first, first_place = share, a
    whole = first_place < 0
    rise = _image(d, hessian, l1, target, slope, free, places, kink, image)
    if not whole and (flat or rise > 0.0):
        for a in range(free):
            new = target[places[a]] + first * step[a]
            if a != first_place:  # that one arrives exactly
                kink[a] = min(new, kink[a]) if step[a] > 0.0 else max(new, kink[a])
        _image(d, hessian, l1, target, slope, free, places, kink, image)
    for k in range(d):
        slope[k] += image[k]
    for a in range(free):
        target[places[a]] = kink[a]
    return whole, flat


@kernel
def _image(
    d: int,
    hessian: NDArray[np.float64],
    l1: F64,
    target: F64,
    slope: F64,
    free: int,
    places: I64,
    point: F64,
    image: F64,
) -> float:
    """Fill `image` with the Hessian times the way to `point`; return the change of the model."""
    for k in range(d):
        image[k] = 0.0
    change = 0.0
    for a in range(free):
        j = places[a]
        way = point[a] - target[j]
        change += slope[j] * way + l1[j] * (abs(point[a]) - abs(target[j]))
        if way != 0.0:
            row = hessian[j]
            for k in range(d):
                image[k] += way * row[k]
    for a in range(free):
        j = places[a]
        change += 0.5 * (point[a] - target[j]) * image[j]
    return change


@kernel
def runs_away(
    loss: int, n: int, y: F64, w: F64, penalty: F64, l1: F64, lower: F64, upper: F64
) -> bool:
    """Whether the intercept has no finite optimum: free to follow labels of one class."""
    if penalty[0] > 0.0 or l1[0] > 0.0 or not labels_of_one_class(loss, n, y, w):
        return False
    return bool(upper[0] >= UNBOUNDED if dot(n, w, y) > 0.0 else lower[0] <= -UNBOUNDED)


@kernel
def recedes(theta: F64, penalty: F64, l1: F64, lower: F64, upper: F64) -> bool:
    """Whether any multiple of `theta` is feasible and costs no penalty."""
    for j in range(theta.size):
        if theta[j] != 0.0 and (penalty[j] > 0.0 or l1[j] > 0.0):
            return False
        if theta[j] > 0.0 and upper[j] < UNBOUNDED:
            return False
        if theta[j] < 0.0 and lower[j] > -UNBOUNDED:
            return False
    return True
