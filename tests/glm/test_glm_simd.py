"""Four problems in a register: what shares the register must not matter."""

from __future__ import annotations

import numpy as np
import pytest

from gdmix.glm.dual_newton_simd import MAX_ROWS, WINDOW, solve_by_fours
from gdmix.glm.entities import EntityBlock, fit_entities
from gdmix.glm.losses import LOGISTIC, POISSON, SQUARED
from gdmix.glm.status import CONVERGED, UNSOLVED, FitStatus

LOSSES = [LOGISTIC, SQUARED, POISSON]
WIDTH = 8


def random_block(rng: np.random.Generator, counts: list[int], loss: int) -> EntityBlock:
    """Entities of the given numbers of rows, three values in each row of eight local columns."""
    n = sum(counts)
    indices = np.sort(rng.permuted(np.tile(np.arange(WIDTH), (n, 1)), axis=1)[:, :3], axis=1)
    response = {
        LOGISTIC: rng.integers(0, 2, n),
        SQUARED: rng.standard_normal(n),
        POISSON: rng.poisson(1.0, n),
    }[loss]
    return EntityBlock(
        np.concatenate(([0], np.cumsum(counts))),
        np.arange(len(counts) + 1) * (WIDTH + 1),
        np.arange(n + 1) * 3,
        indices.ravel().astype(np.uint32),
        rng.standard_normal(3 * n).astype(np.float32),
        response.astype(float),
        rng.uniform(0.0, 2.0, n) * (rng.random(n) > 0.1),
    )


def single(block: EntityBlock, e: int) -> EntityBlock:
    first, last = block.row_ptr[e], block.row_ptr[e + 1]
    rows = slice(first, last)
    return EntityBlock(
        np.array([0, last - first]),
        np.array([0, WIDTH + 1]),
        block.indptr[first : last + 1] - block.indptr[first],
        block.indices[block.indptr[first] : block.indptr[last]],
        block.values[block.indptr[first] : block.indptr[last]],
        block.response[rows],
        block.weight[rows],
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_company_does_not_matter(loss: int) -> None:
    rng = np.random.default_rng(loss)
    counts = [1, 5, 5, 5, 2, 3, 4, 16, 1, 9, 0, 18, 7]
    block = random_block(rng, counts, loss)
    offset = rng.standard_normal(sum(counts))
    options = {"loss": loss, "l2": 0.7, "intercept_l2": 1.3, "tolerance": 1e-10}
    together = fit_entities(block, offset, **options)
    assert (together.status == FitStatus.CONVERGED).all()
    for e in range(block.n_entities):
        own = offset[block.row_ptr[e] : block.row_ptr[e + 1]]
        alone = fit_entities(single(block, e), own, **options)
        theta = together.coefficients[e * (WIDTH + 1) : (e + 1) * (WIDTH + 1)]
        np.testing.assert_allclose(theta, alone.coefficients, atol=1e-12)


def test_many_windows_and_every_length() -> None:
    rng = np.random.default_rng(3)
    counts = list(rng.integers(0, 19, 2 * WINDOW + 3))
    block = random_block(rng, counts, LOGISTIC)
    offset = np.zeros(sum(counts))
    fit = fit_entities(block, offset, loss=LOGISTIC, l2=1.0, intercept_l2=1.0)
    assert (fit.status == FitStatus.CONVERGED).all()
    reversed_rows = np.concatenate(
        [np.arange(block.row_ptr[e], block.row_ptr[e + 1]) for e in range(len(counts))][::-1]
    ).astype(np.int64)
    backwards = EntityBlock(
        np.concatenate(([0], np.cumsum(counts[::-1]))),
        block.coefficient_ptr,
        block.indptr,
        block.indices.reshape(-1, 3)[reversed_rows].ravel(),
        block.values.reshape(-1, 3)[reversed_rows].ravel(),
        block.response[reversed_rows],
        block.weight[reversed_rows],
    )
    other = fit_entities(backwards, offset, loss=LOGISTIC, l2=1.0, intercept_l2=1.0)
    shape = (len(counts), WIDTH + 1)
    np.testing.assert_allclose(
        other.coefficients.reshape(shape)[::-1], fit.coefficients.reshape(shape), atol=1e-7
    )


def test_a_lane_that_needs_damping_is_given_up_alone() -> None:
    rng = np.random.default_rng(5)
    counts = [6, 6, 6, 6]
    block = random_block(rng, counts, LOGISTIC)
    offset = np.zeros(24)
    # Saturated on the wrong side: the full Newton step of the third overshoots by far.
    offset[12:18] = np.where(block.response[12:18] > 0, -40.0, 40.0)
    status = np.full(4, UNSOLVED, np.int8)
    coefficients = np.zeros(4 * (WIDTH + 1))
    solve_by_fours(
        np.arange(4), LOGISTIC, block.row_ptr, block.coefficient_ptr, block.indptr, block.indices,
        block.values, block.response, block.weight, offset, 1.0, 1e-3, 1e-3, 1e-8, 100,
        coefficients, status, np.zeros(4, np.int32), np.zeros(4),
    )  # fmt: skip
    assert list(status) == [CONVERGED, CONVERGED, UNSOLVED, CONVERGED]
    fit = fit_entities(block, offset, loss=LOGISTIC, l2=1e-3, intercept_l2=1e-3)
    assert (fit.status == FitStatus.CONVERGED).all()
    assert max(counts) <= MAX_ROWS
