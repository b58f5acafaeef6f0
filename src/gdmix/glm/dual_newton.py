"""Damped Newton for one small problem, in its rows: for entities with few rows.

With an L2 weight on every slope the optimum lies in the span of the rows,
``theta = P^-1 X' a`` (the representer theorem), so Newton's method needs only the n x n
kernel matrix ``K = X P^-1 X'``, formed once:

    z = offset + K a + c          c: an unpenalised intercept, else 0
    step = u - sqrt(W) B^-1 sqrt(W) K u,   u = -d1 - a,   B = I + sqrt(W) K sqrt(W)

(Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, algorithm 3.1.) An
unpenalised intercept borders the system with one more unknown.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gdmix.glm import cholesky
from gdmix.glm.compiled import kernel
from gdmix.glm.line_search import search
from gdmix.glm.losses import evaluate_rows, labels_of_one_class
from gdmix.glm.objective import add_dense_row, dot, is_dense
from gdmix.glm.primal_newton import MAX_INTERCEPT_STEP
from gdmix.glm.status import CONVERGED, MAX_ITERATIONS, SEPARATED, STALLED

F64 = NDArray[np.float64]

ROW_BUFFERS = 14
# A score is K a and carries K's rounding error: beyond this, times the tolerance, the gradient
# would lack digits that the tolerance asks for, and the primal method is the one to use.
MAX_KERNEL = 1e13


@kernel
def solve_dual(
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
    uniform: bool,
    inverse: F64,
    tolerance: float,
    max_iterations: int,
    theta: F64,
    rows: NDArray[np.float64],
    dense: NDArray[np.float64],
    kernel_matrix: NDArray[np.float64],
    factor: NDArray[np.float64],
    report: F64,
) -> int:
    """Minimise the objective from zero; overwrite `theta`.

    Parameters
    ----------
    n
        Number of rows; `indptr`, `y`, `w` and `offset` are this problem's slices.
    penalty
        (d,) L2 weight of every coefficient: positive, but that of the intercept may be 0.
    uniform
        Whether all slopes have the same.
    inverse
        Scratch: (>= slopes,), filled with the reciprocals of the slopes' weights.
    tolerance
        Relative to the gradient's norm at zero coefficients.
    rows, dense, kernel_matrix, factor
        Scratch: (ROW_BUFFERS, >= n), (n, >= slopes) rows of zeros (left as zeros; not used
        where every row holds every column), (>= n, >= n) twice.
    report
        (2,): filled with the number of iterations and the final gradient norm.

    Returns
    -------
    int
        A `FitStatus`; `STALLED` asks for the primal method, from the `theta` reached.
    """
    z, d1, d2, a = rows[0], rows[1], rows[2], rows[3]
    u, k_u, step, move = rows[4], rows[5], rows[6], rows[7]
    root, h, ones = rows[8], rows[9], rows[10]
    new_z, new_d1, new_d2 = rows[11], rows[12], rows[13]

    intercept_l2 = penalty[0]
    free = intercept != 0.0 and intercept_l2 == 0.0
    endless = free and labels_of_one_class(loss, n, y, w)
    shared = intercept * intercept / intercept_l2 if intercept_l2 > 0.0 else 0.0
    n_slopes = theta.size - 1
    slopes = theta[1:]
    l2 = penalty[1] if n_slopes > 0 else 1.0
    for j in range(n_slopes):
        inverse[j] = 1.0 / (l2 if uniform else penalty[1 + j])
    all_columns = is_dense(indices, values)
    if all_columns:
        _form_dense_kernel(n, indptr, values, n_slopes, inverse, shared, kernel_matrix)
    else:
        _form_kernel(n, indptr, indices, values, n_slopes, inverse, shared, dense, kernel_matrix)

    c = 0.0
    for i in range(n):
        z[i] = offset[i]
        a[i] = 0.0
        ones[i] = 1.0
    value = evaluate_rows(loss, n, z, y, w, d1, d2)
    status = MAX_ITERATIONS
    reference = -1.0
    previous_norm = 0.0
    below_noise = False
    iteration = 0
    while True:
        u_k_u = 0.0
        sum_u = 0.0
        sum_d1 = 0.0
        for i in range(n):
            u[i] = -d1[i] - a[i]
        for i in range(n):
            row = kernel_matrix[i]
            total = 0.0
            for j in range(n):
                total += row[j] * u[j]
            k_u[i] = total
            u_k_u += u[i] * total
            sum_u += u[i]
            sum_d1 += d1[i]
        # The gradient in theta is -X'u on the slopes, and its own on the intercept.
        intercept_gradient = intercept * (sum_d1 if free else -sum_u)
        if uniform:
            slopes_squared = max(u_k_u - shared * sum_u * sum_u, 0.0) * l2
        else:
            slopes[:] = 0.0
            _add_rows(n, indptr, indices, values, u, slopes)
            slopes_squared = dot(n_slopes, slopes, slopes)
        norm = math.sqrt(slopes_squared + intercept_gradient * intercept_gradient)
        if iteration == 0:
            reference = norm
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

        for i in range(n):
            root[i] = math.sqrt(d2[i])
        largest = 0.0
        for i in range(n):
            row = kernel_matrix[i]
            target = factor[i]
            scale = root[i]
            for j in range(i + 1):
                target[j] = scale * row[j] * root[j]
            largest = max(largest, target[i])
            target[i] += 1.0
        if largest > MAX_KERNEL * tolerance:
            iteration -= 1
            status = STALLED
            break
        cholesky.factorize(n, factor, ones)
        for i in range(n):
            h[i] = root[i] * k_u[i]
        cholesky.solve(n, factor, h)
        for i in range(n):
            step[i] = u[i] - root[i] * h[i]
        c_step = 0.0
        if free:
            for i in range(n):
                h[i] = root[i]
            cholesky.solve(n, factor, h)
            pull = 0.0
            stiffness = 0.0
            for i in range(n):
                h[i] *= root[i]
                stiffness += h[i]
                pull += step[i] + a[i]
            c_step = pull / max(stiffness, 1e-300)
            if endless:
                c_step = min(max(c_step, -MAX_INTERCEPT_STEP), MAX_INTERCEPT_STEP)
            for i in range(n):
                step[i] -= c_step * h[i]

        slope = 0.0
        cross = 0.0
        curvature = 0.0
        a_k_a = 0.0
        for i in range(n):
            row = kernel_matrix[i]
            total = 0.0
            for j in range(n):
                total += row[j] * step[j]
            move[i] = total + c_step
            slope += d1[i] * (total + c_step) + a[i] * total
            cross += a[i] * total
            curvature += step[i] * total
            a_k_a += a[i] * (z[i] - offset[i] - c)
        objective = value + 0.5 * a_k_a
        noise = 1e-13 * abs(objective)
        below_noise = -slope <= noise
        t, new_value = search(
            loss, n, z, move, y, w, value, slope, cross, curvature, noise, new_z, new_d1, new_d2
        )
        if t == 0.0:
            status = STALLED
            break
        for i in range(n):
            a[i] += t * step[i]
        c += t * c_step
        z, new_z = new_z, z
        d1, new_d1 = new_d1, d1
        d2, new_d2 = new_d2, d2
        value = new_value

    theta[:] = 0.0
    total = 0.0
    for i in range(n):
        total += a[i]
    _add_rows(n, indptr, indices, values, a, slopes)
    for j in range(n_slopes):
        slopes[j] *= inverse[j]
    if free:
        theta[0] = c
    elif intercept_l2 > 0.0:
        theta[0] = intercept * total / intercept_l2
    if endless and status != STALLED:
        status = SEPARATED
    report[0] = iteration
    report[1] = norm
    return status


@kernel
def _add_rows(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    a: F64,
    slopes: F64,
) -> None:
    """Add the rows, each times its entry of `a`."""
    if is_dense(indices, values):
        for i in range(n):
            add_dense_row(a[i], indptr[i], values, slopes)
        return
    for i in range(n):
        scale = a[i]
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            slopes[indices[q]] += scale * values[q]


@kernel
def _form_kernel(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    n_slopes: int,
    inverse: F64,
    shared: float,
    dense: NDArray[np.float64],
    kernel_matrix: NDArray[np.float64],
) -> None:
    """Fill ``K = X P^-1 X' + shared``, through a dense copy of the few rows."""
    width = (n_slopes + 3) // 4 * 4
    for i in range(n):
        row = dense[i]
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            row[indices[q]] = values[q] * math.sqrt(inverse[indices[q]])
    for i in range(n):
        row = dense[i]
        target = kernel_matrix[i]
        j = 0
        while j + 4 <= i + 1:
            r0, r1, r2, r3 = dense[j], dense[j + 1], dense[j + 2], dense[j + 3]
            t0 = t1 = t2 = t3 = 0.0
            for k in range(width):
                v = row[k]
                t0 += v * r0[k]
                t1 += v * r1[k]
                t2 += v * r2[k]
                t3 += v * r3[k]
            target[j] = t0 + shared
            target[j + 1] = t1 + shared
            target[j + 2] = t2 + shared
            target[j + 3] = t3 + shared
            j += 4
        while j <= i:
            other = dense[j]
            t0 = 0.0
            for k in range(width):
                t0 += row[k] * other[k]
            target[j] = t0 + shared
            j += 1
    for i in range(n):
        row = dense[i]
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            row[indices[q]] = 0.0
        for j in range(i):
            kernel_matrix[j, i] = kernel_matrix[i, j]


@kernel
def _form_dense_kernel(
    n: int,
    indptr: NDArray[np.int64],
    values: NDArray[np.float32],
    n_slopes: int,
    inverse: F64,
    shared: float,
    kernel_matrix: NDArray[np.float64],
) -> None:
    """Do as `_form_kernel`, of rows that hold every column."""
    for i in range(n):
        row = values[indptr[i] : indptr[i] + n_slopes]
        target = kernel_matrix[i]
        j = 0
        while j + 4 <= i + 1:
            r0 = values[indptr[j] : indptr[j] + n_slopes]
            r1 = values[indptr[j + 1] : indptr[j + 1] + n_slopes]
            r2 = values[indptr[j + 2] : indptr[j + 2] + n_slopes]
            r3 = values[indptr[j + 3] : indptr[j + 3] + n_slopes]
            t0 = t1 = t2 = t3 = 0.0
            for k in range(n_slopes):
                v = row[k] * inverse[k]
                t0 += v * r0[k]
                t1 += v * r1[k]
                t2 += v * r2[k]
                t3 += v * r3[k]
            target[j] = t0 + shared
            target[j + 1] = t1 + shared
            target[j + 2] = t2 + shared
            target[j + 3] = t3 + shared
            j += 4
        while j <= i:
            other = values[indptr[j] : indptr[j] + n_slopes]
            t0 = 0.0
            for k in range(n_slopes):
                t0 += row[k] * inverse[k] * other[k]
            target[j] = t0 + shared
            j += 1
    for i in range(n):
        for j in range(i):
            kernel_matrix[j, i] = kernel_matrix[i, j]
