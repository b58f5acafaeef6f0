"""Dual Newton for four small problems at a time, one in each lane of a vector register.

The iteration of `dual_newton` with full steps only: a lane whose full step does not lower its
objective enough is given up, and solved by the damped solver afterwards. The four problems are
padded with rows of weight zero to the longest; their kernel matrices, factors and vectors are
interleaved (`simd`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.compiled import kernel
from gdmix.glm.dual_newton import MAX_KERNEL
from gdmix.glm.line_search import ARMIJO
from gdmix.glm.losses import evaluate_each
from gdmix.glm.objective import add_dense_row, is_dense
from gdmix.glm.simd import (
    LANES,
    add,
    divide,
    fill,
    load,
    multiply,
    multiply_add,
    square_root,
    store,
    subtract,
)
from gdmix.glm.status import CONVERGED, UNSOLVED

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ROW_BUFFERS = 15
SCALAR_BUFFERS = 9
MAX_ROWS = 48
MAX_COEFFICIENTS = 128
# The four problems of a register should be of one length: entities are sorted by it, within
# windows small enough to stay in the cache.
WINDOW = 512


@kernel
def solve_by_fours(
    entities: I64,
    loss: int,
    row_ptr: I64,
    coefficient_ptr: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    response: F64,
    weight: F64,
    offset: F64,
    intercept: float,
    intercept_l2: float,
    l2: float,
    tolerance: float,
    max_iterations: int,
    coefficients: F64,
    status: NDArray[np.int8],
    iterations: NDArray[np.int32],
    gradient_norm: F64,
) -> None:
    """Solve the problems of the listed entities, each of at most MAX_ROWS rows, from zero.

    Parameters
    ----------
    status
        Set to CONVERGED, or to UNSOLVED for a problem that needs the damped solver.
    """
    most_rows, most_coefficients = 1, 1
    for e in entities:
        most_rows = max(most_rows, row_ptr[e + 1] - row_ptr[e])
        most_coefficients = max(most_coefficients, coefficient_ptr[e + 1] - coefficient_ptr[e])
    rows = np.empty((ROW_BUFFERS, LANES * most_rows))
    scalars = np.empty((SCALAR_BUFFERS, LANES))
    dense = np.zeros(LANES * most_rows * most_coefficients)
    kernel_matrix = np.empty(LANES * most_rows * most_rows)
    factor = np.empty(LANES * most_rows * most_rows)
    four = np.empty(LANES, np.int64)
    in_order = np.empty(WINDOW, np.int64)
    starts = np.empty(MAX_ROWS + 2, np.int64)
    for first in range(0, entities.size, WINDOW):
        window = entities[first : first + WINDOW]
        starts[:] = 0
        for e in window:
            starts[row_ptr[e + 1] - row_ptr[e] + 1] += 1
        for n in range(MAX_ROWS + 1):
            starts[n + 1] += starts[n]
        for e in window:
            n = row_ptr[e + 1] - row_ptr[e]
            in_order[starts[n]] = e
            starts[n] += 1
        for k in range(0, window.size, LANES):
            for lane in range(LANES):
                four[lane] = in_order[min(k + lane, window.size - 1)]
            _solve_four(
                four, loss, row_ptr, coefficient_ptr, indptr, indices, values, response, weight,
                offset, intercept, intercept_l2, l2, tolerance, max_iterations, rows, scalars,
                dense, kernel_matrix, factor, coefficients, status, iterations, gradient_norm,
            )  # fmt: skip


@kernel
def _solve_four(
    entities: I64,
    loss: int,
    row_ptr: I64,
    coefficient_ptr: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    response: F64,
    weight: F64,
    offset: F64,
    intercept: float,
    intercept_l2: float,
    l2: float,
    tolerance: float,
    max_iterations: int,
    rows: NDArray[np.float64],
    scalars: NDArray[np.float64],
    dense: F64,
    kernel_matrix: F64,
    factor: F64,
    coefficients: F64,
    status: NDArray[np.int8],
    iterations: NDArray[np.int32],
    gradient_norm: F64,
) -> None:
    """Solve the problems of four entities from zero; an entity may stand there twice.

    Parameters
    ----------
    entities
        (4,) entity numbers.
    rows, scalars
        Scratch: (ROW_BUFFERS, >= 4 n) and (SCALAR_BUFFERS, 4), n rows in the longest.
    dense, kernel_matrix, factor
        Scratch: zeros of >= 4 n d (left as zeros), >= 4 n^2 twice.
    status
        Set to CONVERGED, or to UNSOLVED for a problem that needs the damped solver.
    """
    y, w, o = rows[0], rows[1], rows[2]
    z, d1, d2, a = rows[3], rows[4], rows[5], rows[6]
    u, k_u, step, k_step = rows[7], rows[8], rows[9], rows[10]
    root, h, new_z, each = rows[11], rows[12], rows[13], rows[14]
    value, new_value, norm, reference = scalars[0], scalars[1], scalars[2], scalars[3]
    move, slope, a_k_step, step_k_step = scalars[4], scalars[5], scalars[6], scalars[7]
    a_k_a = scalars[8]

    all_columns = is_dense(indices, values)
    n, slopes = 0, 0
    for lane in range(LANES):
        e = entities[lane]
        n = max(n, row_ptr[e + 1] - row_ptr[e])
        slopes = max(slopes, coefficient_ptr[e + 1] - coefficient_ptr[e] - 1)
    m = LANES * n
    for i in range(m):
        y[i] = 0.0
        w[i] = 0.0
        o[i] = 0.0
        a[i] = 0.0
    for lane in range(LANES):
        first = row_ptr[entities[lane]]
        for i in range(row_ptr[entities[lane] + 1] - first):
            y[LANES * i + lane] = response[first + i]
            w[LANES * i + lane] = weight[first + i]
            o[LANES * i + lane] = offset[first + i]
            own = dense[LANES * i * slopes + lane :]
            if all_columns:
                row = values[indptr[first + i] : indptr[first + i] + slopes]
                for j in range(slopes):
                    own[LANES * j] = row[j]
                continue
            for q in range(np.uint64(indptr[first + i]), np.uint64(indptr[first + i + 1])):
                own[np.uint64(indices[q]) * np.uint64(LANES)] = values[q]
    shared = intercept * intercept / intercept_l2 if intercept_l2 > 0.0 else 0.0
    _form_kernel(n, slopes, dense, 1.0 / l2, shared, kernel_matrix)
    for i in range(m * slopes):
        dense[i] = 0.0

    for i in range(m):
        z[i] = o[i]
    evaluate_each(loss, m, z, y, w, d1, d2, each)
    _sums(n, each, value)
    for lane in range(LANES):
        status[entities[lane]] = UNSOLVED
        move[lane] = 1.0
    iteration = 0
    while True:
        for i in range(m):
            u[i] = -d1[i] - a[i]
        _product(n, kernel_matrix, u, k_u)
        _dots(n, u, k_u, norm)
        _sums(n, u, slope)
        busy = False
        for lane in range(LANES):
            from_slopes = max(norm[lane] - shared * slope[lane] * slope[lane], 0.0) * l2
            from_intercept = intercept * slope[lane]
            norm[lane] = math.sqrt(from_slopes + from_intercept * from_intercept)
            if iteration == 0:
                reference[lane] = norm[lane]
            if move[lane] > 0.0:
                if norm[lane] <= tolerance * reference[lane]:
                    move[lane] = 0.0
                    status[entities[lane]] = CONVERGED
                    iterations[entities[lane]] = iteration
                    gradient_norm[entities[lane]] = norm[lane]
                else:
                    busy = True
        if not busy or iteration == max_iterations:
            break
        iteration += 1

        for i in range(n):
            for lane in range(LANES):
                here = d2[LANES * i + lane] * kernel_matrix[LANES * (i * n + i) + lane]
                if here > MAX_KERNEL * tolerance:
                    move[lane] = 0.0
            store(root, LANES * i, square_root(load(d2, LANES * i)))
        _form_system(n, kernel_matrix, root, factor)
        _factorize(n, factor)
        for i in range(m):
            h[i] = root[i] * k_u[i]
        _solve(n, factor, h)
        for i in range(m):
            step[i] = u[i] - root[i] * h[i]
        _product(n, kernel_matrix, step, k_step)
        _dots(n, a, k_step, a_k_step)
        _dots(n, step, k_step, step_k_step)
        _dots(n, d1, k_step, slope)
        for i in range(m):
            new_z[i] = z[i] - o[i]
        _dots(n, a, new_z, a_k_a)
        for i in range(m):
            new_z[i] = z[i] + k_step[i]
        # u is free here: it holds the new first derivatives, h the second ones.
        evaluate_each(loss, m, new_z, y, w, u, h, each)
        _sums(n, each, new_value)
        for lane in range(LANES):
            if move[lane] > 0.0:
                before = value[lane] + 0.5 * a_k_a[lane]
                after = new_value[lane] + 0.5 * a_k_a[lane] + a_k_step[lane]
                after += 0.5 * step_k_step[lane]
                descent = slope[lane] + a_k_step[lane]
                if after > before + ARMIJO * descent + 1e-13 * abs(before):
                    move[lane] = 0.0
        # A lane at rest keeps its point: its step is multiplied by zero.
        length = load(move, 0)
        for i in range(n):
            at = LANES * i
            store(a, at, multiply_add(length, load(step, at), load(a, at)))
            store(z, at, multiply_add(length, load(k_step, at), load(z, at)))
            moved = subtract(load(u, at), load(d1, at))
            store(d1, at, multiply_add(length, moved, load(d1, at)))
            moved = subtract(load(h, at), load(d2, at))
            store(d2, at, multiply_add(length, moved, load(d2, at)))
        for lane in range(LANES):
            if move[lane] > 0.0:
                value[lane] = new_value[lane]

    for lane in range(LANES):
        e = entities[lane]
        first = row_ptr[e]
        theta = coefficients[coefficient_ptr[e] : coefficient_ptr[e + 1]]
        theta[:] = 0.0
        own = theta[1:]
        total = 0.0
        for i in range(row_ptr[e + 1] - first):
            dual = a[LANES * i + lane]
            total += dual
            scaled = dual / l2
            if all_columns:
                add_dense_row(scaled, indptr[first + i], values, own)
                continue
            for q in range(np.uint64(indptr[first + i]), np.uint64(indptr[first + i + 1])):
                own[indices[q]] += scaled * values[q]
        if intercept_l2 > 0.0:
            theta[0] = intercept * total / intercept_l2


@kernel
def _sums(n: int, x: F64, out: F64) -> None:
    total = fill(0.0)
    for i in range(n):
        total = add(total, load(x, LANES * i))
    store(out, 0, total)


@kernel
def _dots(n: int, x: F64, y: F64, out: F64) -> None:
    total = fill(0.0)
    for i in range(n):
        total = multiply_add(load(x, LANES * i), load(y, LANES * i), total)
    store(out, 0, total)


@kernel
def _product(n: int, matrix: F64, x: F64, out: F64) -> None:
    """Fill ``out = matrix @ x``; two running sums hide the latency of the additions."""
    for i in range(n):
        even, odd = fill(0.0), fill(0.0)
        row = LANES * i * n
        j = 0
        while j + 2 <= n:
            even = multiply_add(load(matrix, row + LANES * j), load(x, LANES * j), even)
            odd = multiply_add(
                load(matrix, row + LANES * j + LANES), load(x, LANES * j + LANES), odd
            )
            j += 2
        if j < n:
            even = multiply_add(load(matrix, row + LANES * j), load(x, LANES * j), even)
        store(out, LANES * i, add(even, odd))


@kernel
def _form_kernel(n: int, d: int, x: F64, inverse_l2: float, shared: float, out: F64) -> None:
    """Fill ``K = X X' / l2 + shared``; four rows share the loads of a fifth."""
    scale, constant = fill(inverse_l2), fill(shared)
    for i in range(n):
        row = LANES * i * d
        j = 0
        while j + 4 <= i + 1:
            r0 = LANES * j * d
            r1, r2, r3 = r0 + LANES * d, r0 + 2 * LANES * d, r0 + 3 * LANES * d
            t0, t1, t2, t3 = fill(0.0), fill(0.0), fill(0.0), fill(0.0)
            for c in range(d):
                v = load(x, row + LANES * c)
                t0 = multiply_add(v, load(x, r0 + LANES * c), t0)
                t1 = multiply_add(v, load(x, r1 + LANES * c), t1)
                t2 = multiply_add(v, load(x, r2 + LANES * c), t2)
                t3 = multiply_add(v, load(x, r3 + LANES * c), t3)
            at = LANES * (i * n + j)
            store(out, at, multiply_add(t0, scale, constant))
            store(out, at + LANES, multiply_add(t1, scale, constant))
            store(out, at + 2 * LANES, multiply_add(t2, scale, constant))
            store(out, at + 3 * LANES, multiply_add(t3, scale, constant))
            j += 4
        while j <= i:
            r0 = LANES * j * d
            t0 = fill(0.0)
            for c in range(d):
                t0 = multiply_add(load(x, row + LANES * c), load(x, r0 + LANES * c), t0)
            store(out, LANES * (i * n + j), multiply_add(t0, scale, constant))
            j += 1
        for j in range(i):
            store(out, LANES * (j * n + i), load(out, LANES * (i * n + j)))


@kernel
def _form_system(n: int, matrix: F64, root: F64, out: F64) -> None:
    """Fill the upper triangle of ``I + diag(root) K diag(root)``."""
    one = fill(1.0)
    for i in range(n):
        scale = load(root, LANES * i)
        row = LANES * i * n
        for j in range(i, n):
            scaled = multiply(scale, load(matrix, row + LANES * j))
            store(out, row + LANES * j, multiply(scaled, load(root, LANES * j)))
        store(out, row + LANES * i, add(load(out, row + LANES * i), one))


@kernel
def _factorize(n: int, a: F64) -> None:
    """Overwrite the upper triangle with U of ``A = U' D^-1 U``; the diagonal holds D's inverse."""
    one, zero = fill(1.0), fill(0.0)
    for k in range(n):
        pivot_row = LANES * k * n
        inverse = divide(one, load(a, pivot_row + LANES * k))
        for i in range(k + 1, n):
            row = LANES * i * n
            factor = subtract(zero, multiply(load(a, pivot_row + LANES * i), inverse))
            for j in range(i, n):
                at = row + LANES * j
                store(a, at, multiply_add(factor, load(a, pivot_row + LANES * j), load(a, at)))
        store(a, pivot_row + LANES * k, inverse)


@kernel
def _solve(n: int, a: F64, b: F64) -> None:
    """Overwrite `b` with the solution, given the factor of `_factorize`."""
    zero = fill(0.0)
    for k in range(n):
        row = LANES * k * n
        scaled = multiply(load(b, LANES * k), load(a, row + LANES * k))
        factor = subtract(zero, scaled)
        for i in range(k + 1, n):
            at = LANES * i
            store(b, at, multiply_add(factor, load(a, row + at), load(b, at)))
        store(b, LANES * k, scaled)
    for k in range(n - 1, -1, -1):
        row = LANES * k * n
        total = fill(0.0)
        for i in range(k + 1, n):
            total = multiply_add(load(a, row + LANES * i), load(b, LANES * i), total)
        inverse = load(a, row + LANES * k)
        store(b, LANES * k, subtract(load(b, LANES * k), multiply(total, inverse)))
