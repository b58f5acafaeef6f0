"""Damped Newton for one small problem, in its coefficients.

The step solves ``H step = -gradient``: by Cholesky where the features are few, else by
conjugate gradients with a Jacobi preconditioner, stopped early while far from the optimum
(Nocedal & Wright, Numerical Optimization, 2006, algorithm 7.1). The line search is Armijo's
on the margins: a trial step costs no pass over the features. Passes are what conjugate gradients
cost, so they gather the move of the margins on their way, and keep a preconditioner while it will
do.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gdmix.glm import cholesky
from gdmix.glm.compiled import kernel
from gdmix.glm.line_search import search
from gdmix.glm.losses import SQUARED, classifies_all, evaluate_rows, labels_of_one_class
from gdmix.glm.objective import (
    add_hessian,
    add_hessian_diagonal,
    add_hessian_product,
    add_margins,
    add_scaled,
    add_transposed,
    curvature_change,
    dot,
    margins,
    rounding_floor,
)
from gdmix.glm.penalty import penalty_product
from gdmix.glm.status import CONVERGED, MAX_ITERATIONS, SEPARATED, STALLED

F64 = NDArray[np.float64]

ROW_BUFFERS = 9
COEFFICIENT_BUFFERS = 9
# Where conjugate gradients give up, Cholesky takes over up to this size.
MAX_FALLBACK_COEFFICIENTS = 1024
# A preconditioner is kept until the rows' curvatures have changed by this share of their sum.
MAX_DRIFT = 0.25
# An intercept without a finite optimum moves at most this far in one step, so that it stops
# soon after its gradient has met the tolerance.
MAX_INTERCEPT_STEP = 5.0


@kernel
def solve_primal(
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
    tolerance: float,
    max_iterations: int,
    direct: bool,
    theta: F64,
    rows: NDArray[np.float64],
    coefficients: NDArray[np.float64],
    hessian: NDArray[np.float64],
    report: F64,
) -> int:
    """Minimise the objective from the start in `theta`; overwrite `theta`.

    Parameters
    ----------
    n
        Number of rows; `indptr`, `y`, `w` and `offset` are this problem's slices.
    penalty, matrix
        (d,) L2 weight per coefficient, d = features + 1; (d, d) or (0, 0) the penalty's matrix.
    tolerance
        Relative to the gradient's norm at zero coefficients.
    direct
        Cholesky rather than conjugate gradients.
    rows, coefficients, hessian
        Scratch: (ROW_BUFFERS, >= n), (COEFFICIENT_BUFFERS, >= d), and (>= d, >= d) if direct.
    report
        (2,): filled with the number of iterations and the final gradient norm.

    Returns
    -------
    int
        A `FitStatus`.
    """
    d = theta.size
    z, d1, d2 = rows[0], rows[1], rows[2]
    new_z, new_d1, new_d2, move = rows[3], rows[4], rows[5], rows[6]
    margin, known_d2 = rows[7], rows[8]
    gradient, step = coefficients[0][:d], coefficients[1][:d]
    pull, pull_step = coefficients[7][:d], coefficients[8][:d]

    # The reference of the stopping rule: the gradient at zero coefficients.
    value = evaluate_rows(loss, n, offset, y, w, d1, d2)
    gradient[:] = 0.0
    add_transposed(n, indptr, indices, values, intercept, d1, gradient)
    reference = math.sqrt(dot(d, gradient, gradient))
    theta[0] *= intercept
    warm = False
    for j in range(d):
        warm = warm or theta[j] != 0.0
    if warm:
        add_margins(n, indptr, indices, values, intercept, theta, offset, z)
        value = evaluate_rows(loss, n, z, y, w, d1, d2)
        gradient[:] = 0.0
        add_transposed(n, indptr, indices, values, intercept, d1, gradient)
    else:
        for i in range(n):
            z[i] = offset[i]
    for i in range(n):
        known_d2[i] = 0.0

    free = intercept != 0.0 and penalty[0] == 0.0 and matrix.size == 0
    endless = free and labels_of_one_class(loss, n, y, w)
    status = MAX_ITERATIONS
    previous_norm = 0.0
    below_noise = False
    iteration = 0
    while True:
        norm_squared = 0.0
        size_squared = 0.0
        penalty_product(penalty, matrix, theta, pull)
        for j in range(d):
            gradient[j] += pull[j]
            norm_squared += gradient[j] * gradient[j]
            size_squared += pull[j] * theta[j]
        norm = math.sqrt(norm_squared)
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

        if not direct:
            # A quadratic objective needs one step, so that one is made accurate.
            accuracy = 0.0 if loss == SQUARED else min(0.3, math.sqrt(norm / max(reference, norm)))
            _update_preconditioner(
                n, indptr, indices, values, intercept, d2, penalty, matrix, known_d2,
                coefficients[6][:d],
            )  # fmt: skip
            solved = _conjugate_gradient_step(
                n, indptr, indices, values, intercept, d2, penalty, matrix, gradient,
                max(accuracy * norm, 0.3 * tolerance * reference), step, move, margin, coefficients,
            )  # fmt: skip
            if not solved and d <= MAX_FALLBACK_COEFFICIENTS:
                direct = True
                hessian = np.empty((d, d))
        if direct:
            _cholesky_step(
                n, indptr, indices, values, intercept, d2, penalty, matrix, gradient, hessian, step
            )
            margins(n, indptr, indices, values, intercept, step, move)
        if endless and abs(step[0]) > MAX_INTERCEPT_STEP:
            shrink = MAX_INTERCEPT_STEP / abs(step[0])
            for j in range(d):
                step[j] *= shrink
            for i in range(n):
                move[i] *= shrink

        slope = 0.0
        cross = 0.0
        curvature = 0.0
        penalty_product(penalty, matrix, step, pull_step)
        for j in range(d):
            slope += gradient[j] * step[j]
            cross += pull_step[j] * theta[j]
            curvature += pull_step[j] * step[j]
        objective = value + 0.5 * size_squared
        noise = 1e-13 * abs(objective)
        below_noise = -slope <= noise
        t, new_value = search(
            loss, n, z, move, y, w, value, slope, cross, curvature, noise, new_z, new_d1, new_d2
        )
        if t == 0.0:
            status = STALLED
            break
        for j in range(d):
            theta[j] += t * step[j]
        z, new_z = new_z, z
        d1, new_d1 = new_d1, d1
        d2, new_d2 = new_d2, d2
        value = new_value
        gradient[:] = 0.0
        add_transposed(n, indptr, indices, values, intercept, d1, gradient)

    if status != CONVERGED and norm <= rounding_floor(
        n, indptr, indices, values, intercept, theta, offset, d1, d2, penalty
    ):
        status = CONVERGED
    unpenalised = matrix.size == 0 and (intercept == 0.0 or penalty[0] == 0.0)
    for j in range(1, d):
        unpenalised = unpenalised and penalty[j] == 0.0
    if endless or (unpenalised and classifies_all(loss, n, z, offset, y, w)):
        status = SEPARATED
    report[0] = iteration
    report[1] = norm
    return status


@kernel
def _cholesky_step(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    d2: F64,
    penalty: F64,
    matrix: NDArray[np.float64],
    gradient: F64,
    hessian: NDArray[np.float64],
    step: F64,
) -> None:
    d = step.size
    for i in range(d):
        row = hessian[i]
        for j in range(i):
            row[j] = matrix[i, j] if matrix.size > 0 else 0.0
        row[i] = penalty[i] + (matrix[i, i] if matrix.size > 0 else 0.0)
    add_hessian(n, indptr, indices, values, intercept, d2, d - 1, hessian)
    cholesky.factorize(d, hessian, penalty)
    for j in range(d):
        step[j] = -gradient[j]
    cholesky.solve(d, hessian, step)


@kernel
def _update_preconditioner(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    d2: F64,
    penalty: F64,
    matrix: NDArray[np.float64],
    known_d2: F64,
    inverse: F64,
) -> None:
    """Make `inverse` that of the Hessian's diagonal, unless it still is, nearly.

    Parameters
    ----------
    known_d2
        The d2 that `inverse` was made from; zeros before the first time.
    """
    change, total = curvature_change(n, d2, known_d2)
    if change < MAX_DRIFT * total:
        return
    for i in range(n):
        known_d2[i] = d2[i]
    for j in range(inverse.size):  # not inverse[:] = penalty: that takes three seconds to compile
        inverse[j] = penalty[j] + (matrix[j, j] if matrix.size > 0 else 0.0)
    add_hessian_diagonal(n, indptr, indices, values, intercept, d2, inverse)
    for j in range(inverse.size):
        inverse[j] = 1.0 / inverse[j] if inverse[j] > 0.0 else 0.0


@kernel
def _conjugate_gradient_step(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    d2: F64,
    penalty: F64,
    matrix: NDArray[np.float64],
    gradient: F64,
    target: float,
    step: F64,
    move: F64,
    margin: F64,
    coefficients: NDArray[np.float64],
) -> bool:
    """Solve ``H step = -gradient`` until the residual's norm is at most `target`.

    Parameters
    ----------
    move
        Filled with ``X step``.
    margin, coefficients
        Scratch; but ``coefficients[6]`` is the preconditioner.

    Returns
    -------
    bool
        False if rounding keeps it above.
    """
    d = step.size
    residual, direction, product = coefficients[2], coefficients[3][:d], coefficients[4][:d]
    scaled, inverse = coefficients[5], coefficients[6][:d]
    for i in range(n):
        move[i] = 0.0
    fit = 0.0
    for j in range(d):
        step[j] = 0.0
        residual[j] = -gradient[j]
        direction[j] = inverse[j] * residual[j]
        fit += residual[j] * direction[j]
    for _ in range(2 * d + 10):
        penalty_product(penalty, matrix, direction, product)
        add_hessian_product(n, indptr, indices, values, intercept, d2, direction, margin, product)
        curvature = dot(d, direction, product)
        if curvature <= 0.0:
            return False
        length = fit / curvature
        add_scaled(n, length, margin, move)
        norm_squared = 0.0
        next_fit = 0.0
        for j in range(d):
            step[j] += length * direction[j]
            residual[j] -= length * product[j]
            norm_squared += residual[j] * residual[j]
            scaled[j] = inverse[j] * residual[j]
            next_fit += residual[j] * scaled[j]
        if norm_squared <= target * target:
            return True
        for j in range(d):
            direction[j] = scaled[j] + next_fit / fit * direction[j]
        fit = next_fit
    return False
