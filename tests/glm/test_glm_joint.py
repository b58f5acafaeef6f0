"""Designs side by side: products and preconditioners against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from gdmix.data.entity_blocks import group_rows
from gdmix.glm import block_map
from gdmix.glm.block_map import BlockMap
from gdmix.glm.joint import JointMap
from gdmix.glm.large import SparseMap
from gdmix.glm.losses import LOGISTIC
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Labels, minimize
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.status import FitStatus

N = 60


def dense_of(part: SparseMap | BlockMap) -> np.ndarray:
    return np.column_stack([part.scores(column) for column in np.eye(part.size)])


@pytest.fixture
def parts() -> list[SparseMap | BlockMap]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 4)).astype(np.float32) * (rng.random((N, 4)) < 0.6)
    rows, columns = np.nonzero(x)
    indptr = np.searchsorted(rows, np.arange(N + 1))
    design = CsrMatrix(indptr, columns.astype(np.uint32), x[rows, columns], 4)
    entity = rng.integers(-1, 7, N, np.int32)
    grouped = group_rows(design, entity, 7, np.zeros(N), np.ones(N))
    return [
        SparseMap(design, True, 2),
        BlockMap(grouped.block, grouped.rows, True, 2),
        BlockMap(grouped.block, grouped.rows, False, 1),
    ]


def test_products_are_those_of_the_dense_matrix(parts: list[SparseMap | BlockMap]) -> None:
    rng = np.random.default_rng(1)
    d1 = rng.standard_normal(N)
    for part in parts[:2]:
        np.testing.assert_allclose(part.transposed(d1), dense_of(part).T @ d1, atol=1e-12)
    without = parts[2].transposed(d1)
    assert not without[parts[2]._block.coefficient_ptr[:-1]].any()


@pytest.mark.parametrize("side", [64, 1])
def test_preconditioners(
    parts: list[SparseMap | BlockMap], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_map, "MAX_FACTOR_SIDE", side)
    rng = np.random.default_rng(2)
    d2 = rng.uniform(0.1, 1.0, N)
    for part in parts[:2]:
        penalty = rng.uniform(0.5, 2.0, part.size)
        x = dense_of(part)
        hessian = x.T @ (d2[:, None] * x) + np.diag(penalty)
        if side == 1 and isinstance(part, BlockMap):
            hessian = np.diag(np.diag(hessian))
        residual = rng.standard_normal(part.size)
        solved = part.preconditioner(d2, QuadraticPenalty(penalty)).solve(residual)
        np.testing.assert_allclose(solved, np.linalg.solve(hessian, residual), atol=1e-10)


def test_joint_minimum_is_that_of_the_dense_problem(parts: list[SparseMap | BlockMap]) -> None:
    rng = np.random.default_rng(3)
    design = JointMap(parts[:2], N)
    x = np.column_stack([dense_of(part) for part in parts[:2]])
    y = rng.integers(0, 2, N).astype(float)
    w, offset = rng.uniform(0.5, 2.0, N), rng.standard_normal(N)
    penalty = np.full(design.size, 0.3)
    penalty[0] = 0.0
    minimum = minimize(
        design,
        Labels(y, w, offset, LOGISTIC),
        QuadraticPenalty(penalty),
        intercept=True,
        tolerance=1e-10,
        max_iterations=50,
        start=np.zeros(design.size),
    )
    assert minimum.status == FitStatus.CONVERGED
    theta = np.zeros(design.size)
    for _ in range(50):
        mean = 1.0 / (1.0 + np.exp(-(offset + x @ theta)))
        gradient = x.T @ (w * (mean - y)) + penalty * theta
        hessian = x.T @ ((w * mean * (1 - mean))[:, None] * x) + np.diag(penalty)
        theta -= np.linalg.lstsq(hessian, gradient, rcond=None)[0]
    np.testing.assert_allclose(minimum.coefficients, theta, atol=1e-7)
