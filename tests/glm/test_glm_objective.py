"""The kernels of the objective against dense matrices, and the Cholesky factorisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from glm_oracle import LOSSES, csr, derivatives, with_intercept
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gdmix.glm import cholesky
from gdmix.glm.losses import evaluate_rows
from gdmix.glm.matrix import CsrMatrix, CsrStack
from gdmix.glm.objective import (
    add_hessian,
    add_hessian_diagonal,
    add_hessian_product,
    add_hessian_product_paired,
    add_margins,
    add_scaled,
    add_transposed,
    curvature_change,
    dot,
    margins,
    rounding_floor,
)

F64 = NDArray[np.float64]


@dataclass
class Case:
    """A random design, dense and sparse, its sparse rows somewhere inside larger arrays."""

    rng: np.random.Generator
    dense: F64
    intercept: float
    rows: tuple[int, NDArray[np.int64], NDArray[np.uint32], NDArray[np.float32], float]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, d = draw(st.integers(0, 12)), draw(st.integers(0, 9))
    intercept = draw(st.sampled_from([0.0, 1.0]))
    features = (rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.6)).astype(np.float32)
    before = (rng.random((3, max(d, 1))) < 0.5).astype(np.float32)[:, :d]
    matrix = csr(np.vstack([before, features]).astype(float), rng)
    dense = with_intercept(features.astype(float), bool(intercept))
    rows = (n, matrix.indptr[3:], matrix.indices, matrix.values, intercept)
    if n and d and draw(st.booleans()):
        # All columns in every row, the rows anywhere in the values, and some of them shared.
        own = rng.integers(0, n, n)
        table = np.concatenate([[7.0], features[rng.permutation(n)].ravel()]).astype(np.float32)
        starts = np.append(1 + own * d, 0)
        dense = with_intercept(table[1:].reshape(n, d)[own].astype(float), bool(intercept))
        rows = (n, starts, np.empty(0, np.uint32), table, intercept)
    return Case(rng, dense, intercept, rows)


matches = settings(derandomize=True, deadline=None, max_examples=60)


def close(a: F64, b: F64) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@matches
@given(case=cases())
def test_margins(case: Case) -> None:
    n, d = case.dense.shape
    theta, offset, z = case.rng.normal(size=d), case.rng.normal(size=n), np.full(n, np.nan)
    margins(*case.rows, theta, z)
    close(z, case.dense @ theta)
    add_margins(*case.rows, theta, offset, z)
    close(z, offset + case.dense @ theta)


@matches
@given(case=cases())
def test_transposed(case: Case) -> None:
    n, d = case.dense.shape
    d1, start = case.rng.normal(size=n), case.rng.normal(size=d)
    out = start.copy()
    add_transposed(*case.rows, d1, out)
    close(out, start + case.dense.T @ d1)


@matches
@given(case=cases())
def test_hessian(case: Case) -> None:
    n, d = case.dense.shape
    d2, start = case.rng.random(n), case.rng.normal(size=(d + 3, d + 3))
    expected = start.copy()
    expected[:d, :d] += np.tril(case.dense.T @ (d2[:, None] * case.dense))
    out = start.copy()
    add_hessian(*case.rows, d2, d - 1, out)
    close(out, expected)

    diagonal = start[0, :d].copy()
    add_hessian_diagonal(*case.rows, d2, diagonal)
    close(diagonal, start[0, :d] + np.diag(case.dense.T @ (d2[:, None] * case.dense)))

    direction, product, z = case.rng.normal(size=d), start[1, :d].copy(), np.full(n, np.nan)
    add_hessian_product(*case.rows, d2, direction, z, product)
    close(z, case.dense @ direction)
    close(product, start[1, :d] + case.dense.T @ (d2 * (case.dense @ direction)))

    z, pairs = np.full(n, np.nan), np.column_stack((direction, start[1, :d]))
    add_hessian_product_paired(*case.rows, d2, z, pairs)
    close(z, case.dense @ direction)
    close(pairs, np.column_stack((direction, product)))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_rounding_floor_bounds_the_error_of_the_gradient(loss: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, d = rng.integers(1, 30), rng.integers(1, 8)
        scale = 10.0 ** rng.uniform(-2, 2)
        features = (scale * rng.normal(size=(n, d))).astype(np.float32).astype(float)
        dense, matrix = with_intercept(features, True), csr(features)
        rows = (n, matrix.indptr, matrix.indices, matrix.values, 1.0)
        theta, offset = rng.normal(size=d + 1) / scale, rng.normal(size=n)
        penalty = rng.random(d + 1)
        y, w = rng.integers(0, 2, n).astype(float), rng.random(n)
        z, d1, d2, ours = np.empty(n), np.empty(n), np.empty(n), penalty * theta
        add_margins(*rows, theta, offset, z)
        evaluate_rows(loss, n, z, y, w, d1, d2)
        add_transposed(*rows, d1, ours)
        long = np.longdouble
        exact_d1 = derivatives(loss, offset + dense.astype(long) @ theta.astype(long), y)[1]
        exact = dense.T.astype(long) @ (w * exact_d1) + penalty.astype(long) * theta
        error = float(np.sqrt(np.sum((ours - exact) ** 2)))
        floor = rounding_floor(*rows, theta, offset, d1, d2, penalty)
        assert error <= floor
        assert floor <= 1e-12 * scale * (w @ (1 + np.abs(z) + d2 * (1 + z * z)) * d + 1)


def test_dot_uses_only_the_first_entries() -> None:
    a, b = np.arange(5.0), np.arange(5.0)
    assert dot(3, a, b) == 5.0
    assert dot(0, a, b) == 0.0


def test_add_scaled_changes_only_the_first_entries() -> None:
    y = np.ones(4)
    add_scaled(3, 2.0, np.arange(4.0), y)
    assert y.tolist() == [1.0, 3.0, 5.0, 1.0]


def test_curvature_change_is_the_sum_of_absolute_differences() -> None:
    change, total = curvature_change(2, np.array([1.0, 4.0, 9.0]), np.array([3.0, 3.0, 0.0]))
    assert (change, total) == (3.0, 5.0)


# --- Cholesky -------------------------------------------------------------------------------


def solve(matrix: F64, b: F64, least: F64 | None = None, spare: int = 2) -> F64:
    n = b.size
    lower = np.full((n + spare, n + spare), np.nan)
    lower[:n, :n] = np.where(np.tri(n, dtype=bool), matrix, np.nan)
    cholesky.factorize(n, lower, np.zeros(n) if least is None else least)
    x = b.copy()
    cholesky.solve(n, lower, x)
    return x


@matches
@given(seed=st.integers(0, 2**32), n=st.integers(0, 40))
def test_cholesky_solves(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n + 3))
    matrix, b = root @ root.T + 0.1 * np.eye(n), rng.normal(size=n)
    np.testing.assert_allclose(solve(matrix, b), np.linalg.solve(matrix, b), rtol=1e-9, atol=1e-9)


@matches
@given(seed=st.integers(0, 2**32), n=st.integers(1, 30))
def test_cholesky_factor_is_numpys_with_reciprocal_diagonal(seed: int, n: int) -> None:
    root = np.random.default_rng(seed).normal(size=(n, n + 3))
    matrix = root @ root.T + 0.1 * np.eye(n)
    lower = matrix.copy()
    cholesky.factorize(n, lower, np.zeros(n))
    expected = np.linalg.cholesky(matrix)
    np.testing.assert_allclose(np.tril(lower, -1), np.tril(expected, -1), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(np.diag(lower), 1 / np.diag(expected), rtol=1e-9)


@pytest.mark.parametrize("n", [2, 5, 12, 40, 150])
@pytest.mark.parametrize("seed", range(5))
def test_aliased_columns_are_left_at_zero(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * n, n)) * 10.0 ** rng.uniform(-3, 3, n)
    aliased = np.arange(n) >= (n + 1) // 2  # each a combination of the columns before
    x[:, aliased] = x[:, ~aliased] @ rng.normal(size=((~aliased).sum(), aliased.sum()))
    y = rng.normal(size=3 * n)
    theta = solve(x.T @ x, x.T @ y)
    assert (theta[aliased] == 0.0).all()
    expected = np.linalg.lstsq(x[:, ~aliased], y, rcond=None)[0]
    np.testing.assert_allclose(
        x[:, ~aliased] @ theta[~aliased], x[:, ~aliased] @ expected, atol=1e-6
    )


def test_zero_matrix_solves_to_zero() -> None:
    assert (solve(np.zeros((3, 3)), np.ones(3)) == 0.0).all()


def test_pivots_lost_to_rounding_are_raised_to_least() -> None:
    # Twice the column x, ridge 1e-9: the exact solution halves the weight between the two, but
    # 1 + 1e-20 rounds to 1, so the second pivot comes out as zero or noise.
    least = np.full(2, 1e-9)
    matrix = np.full((2, 2), 1e11) + np.diag(least)
    x = solve(matrix, np.array([1e11, 1e11]), least)
    assert np.isfinite(x).all()
    np.testing.assert_allclose(matrix @ x, [1e11, 1e11], rtol=1e-6)
    # A pivot above `least` is left alone.
    np.testing.assert_allclose(solve(np.eye(2), np.ones(2), np.full(2, 0.5)), [1.0, 1.0])
    np.testing.assert_allclose(solve(np.eye(2), np.ones(2), np.full(2, 4.0)), [0.25, 0.25])


# --- the matrix -----------------------------------------------------------------------------


def dense_of(matrix: CsrMatrix) -> F64:
    out = np.zeros((matrix.n_rows, matrix.n_columns))
    rows = np.repeat(np.arange(matrix.n_rows), np.diff(matrix.indptr))
    out[rows, matrix.indices] = matrix.values
    return out


def random_dense(rng: np.random.Generator, n: int, d: int) -> F64:
    return (rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.4)).astype(np.float32).astype(float)


def check(matrix: CsrMatrix, expected: F64) -> None:
    assert matrix.indptr.dtype == np.int64
    assert matrix.indices.dtype == np.uint32
    assert matrix.values.dtype == np.float32
    assert (matrix.n_rows, matrix.n_columns) == expected.shape
    assert matrix.nnz == matrix.indptr[-1] == np.count_nonzero(expected)
    np.testing.assert_array_equal(dense_of(matrix), expected)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_take_and_stack(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b, c = random_dense(rng, n, 4), random_dense(rng, n, 0), random_dense(rng, n, 3)
    check(CsrMatrix.hstack([csr(a, rng), csr(b), csr(c, rng)]), np.hstack([a, b, c]))
    check(CsrMatrix.hstack([csr(a)]), a)
    stack = CsrStack(a.shape[1])
    for part in (a, a[:0], a[::-1]):
        stack.append(csr(part, rng))
    check(stack.finish(), np.vstack([a, a[::-1]]))
    check(CsrMatrix.empty(n), np.zeros((n, 0)))
    rows = rng.integers(0, n, 11) if n else np.empty(0, np.int64)
    check(csr(a, rng).take(rows), a[rows])
    check(csr(a, rng).take(rows[:0]), a[:0])
