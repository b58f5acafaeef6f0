"""The solver of one large problem: same optimum as the small ones, and few iterations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from glm_oracle import (
    F64,
    KINDS,
    LOSSES,
    Problem,
    block_of,
    csr,
    gradient,
    objective,
    one_class,
    penalties,
    problem,
    solve,
    stress_problem,
)

from gdmix.glm import large
from gdmix.glm.entities import fit_entities
from gdmix.glm.large import fit_large
from gdmix.glm.losses import LOGISTIC, POISSON, SQUARED
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Minimum
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.status import FitStatus

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@pytest.fixture(params=["direct", "conjugate gradients"])
def method(request: Any, monkeypatch: Any) -> str:
    if request.param != "direct":
        monkeypatch.setattr(large, "MAX_DIRECT_COEFFICIENTS", 0)
    return str(request.param)


def fit(
    p: Problem, loss: int, l2: float = 1.0, intercept_l2: float = 0.0, **options: Any
) -> Minimum:
    penalty = penalties(p.features.shape[1] + 1, l2, intercept_l2)
    design = csr(p.features)
    return fit_large(
        design,
        p.response,
        p.weight,
        p.offset,
        loss=loss,
        penalty=QuadraticPenalty(penalty),
        **options,
    )


@each_loss
@pytest.mark.parametrize("intercept_l2", [0.0, 2.0])
@pytest.mark.usefixtures("method")
def test_the_oracles_optimum(loss: int, intercept_l2: float) -> None:
    rng = np.random.default_rng(1)
    for name in KINDS:
        p = KINDS[name](rng, loss)
        result = fit(p, loss, 0.5, intercept_l2, tolerance=1e-10)
        if intercept_l2 == 0.0 and one_class(p, loss):
            assert result.status == FitStatus.SEPARATED, name
            continue
        assert result.status == FitStatus.CONVERGED, name
        penalty = penalties(p.features.shape[1] + 1, 0.5, intercept_l2)
        expected = solve(p, loss, penalty)
        np.testing.assert_allclose(result.coefficients, expected, atol=1e-6, err_msg=name)
        assert result.value == pytest.approx(objective(p, expected, loss, penalty, True), abs=1e-8)
        slope = gradient(p, result.coefficients, loss, penalty, True)
        assert result.gradient_norm == pytest.approx(np.linalg.norm(slope), abs=1e-9)


@each_loss
@pytest.mark.usefixtures("method")
def test_equals_fit_entities(loss: int) -> None:
    rng = np.random.default_rng(2)
    for intercept in (True, False):
        p = problem(rng, loss, 400, 30)
        block, offset = block_of([p])
        options: dict[str, Any] = {"loss": loss, "tolerance": 1e-11, "intercept": intercept}
        small = fit_entities(block, offset, l2=0.7, intercept_l2=0.3, **options)
        result = fit(p, l2=0.7, intercept_l2=0.3, **options)
        np.testing.assert_allclose(result.coefficients, small.coefficients, atol=1e-9)


@each_loss
@pytest.mark.usefixtures("method")
def test_threads_change_only_the_order_of_sums(loss: int) -> None:
    p = problem(np.random.default_rng(3), loss, 3000, 25)
    one, two, five = (fit(p, loss, tolerance=1e-11, threads=t) for t in (1, 2, 5))
    for other in (two, five):
        np.testing.assert_allclose(other.coefficients, one.coefficients, rtol=1e-10, atol=1e-12)
        assert other.status == one.status == FitStatus.CONVERGED
        assert other.value == pytest.approx(one.value, rel=1e-12)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_rows_than_threads(n: int) -> None:
    p = problem(np.random.default_rng(4), LOGISTIC, n, 4)
    one, four = (fit(p, LOGISTIC, intercept_l2=1.0, threads=t) for t in (1, 4))
    np.testing.assert_allclose(four.coefficients, one.coefficients, atol=1e-12)
    assert four.status == FitStatus.CONVERGED


@each_loss
@pytest.mark.usefixtures("method")
def test_collinear_features_without_penalty(loss: int) -> None:
    """One-hot columns beside an intercept, and a copy: many optima, all with the same scores."""
    rng = np.random.default_rng(5)
    p = problem(rng, loss, 600, 3)
    dummies = np.eye(5)[rng.integers(0, 5, 600)]
    p.features = np.hstack([p.features, dummies, p.features[:, :1]])
    result = fit(p, loss, l2=0.0)
    assert result.status == FitStatus.CONVERGED
    assert result.iterations < 15
    assert np.abs(result.coefficients).max() < 100.0
    reduced = Problem(p.features[:, :7], p.response, p.weight, p.offset)
    expected = fit(reduced, loss, l2=0.0)
    assert result.value == pytest.approx(expected.value, rel=1e-10)


@each_loss
@pytest.mark.usefixtures("method")
def test_a_nearly_constant_column_costs_few_iterations(loss: int) -> None:
    """As MovieLens' release year / 2000: 0.998 with a deviation of 0.007, beside the intercept."""
    rng = np.random.default_rng(6)
    p = problem(rng, loss, 5000, 20, density=0.2)
    year = 0.998 + 0.007 * rng.normal(size=(5000, 1)).astype(np.float32)
    p.features = np.hstack([p.features, year.astype(np.float32).astype(float)])
    for l2 in (0.0, 1e-3, 1.0):
        result = fit(p, loss, l2=l2)
        assert result.status == FitStatus.CONVERGED
        assert result.iterations < 15
        assert result.passes < 100
    expected = solve(p, loss, penalties(22, 1.0, 0.0))
    np.testing.assert_allclose(result.coefficients, expected, atol=2e-5)


@pytest.mark.usefixtures("method")
def test_separable_without_penalty() -> None:
    rng = np.random.default_rng(7)
    p = problem(rng, LOGISTIC, 200, 3, density=1.0)
    p.response = (p.features[:, 0] - p.features[:, 1] > 0.1).astype(float)
    for intercept in (True, False):
        p.response = (p.features[:, 0] - p.features[:, 1] > 0.1 * intercept).astype(float)
        result = fit(p, LOGISTIC, l2=0.0, intercept=intercept)
        assert result.status == FitStatus.SEPARATED
        assert np.isfinite(result.coefficients).all()
    assert fit(p, LOGISTIC, l2=1e-3).status == FitStatus.CONVERGED
    p.response[:] = 1.0
    one_class = fit(p, LOGISTIC, l2=1.0)
    assert one_class.status == FitStatus.SEPARATED
    assert 10 < one_class.coefficients[0] < 40
    assert fit(p, LOGISTIC, l2=1.0, intercept_l2=1.0).status == FitStatus.CONVERGED
    assert fit(p, LOGISTIC, l2=1.0, intercept=False).status == FitStatus.CONVERGED
    p.response[:] = 0.0
    assert fit(p, POISSON, l2=1.0).status == FitStatus.SEPARATED


@each_loss
@pytest.mark.usefixtures("method")
def test_warm_start_at_the_optimum(loss: int) -> None:
    p = problem(np.random.default_rng(8), loss, 500, 20)
    cold = fit(p, loss)
    start = cold.coefficients.copy()
    warm = fit(p, loss, start=start)
    assert warm.iterations <= 1
    np.testing.assert_array_equal(start, cold.coefficients)
    np.testing.assert_allclose(warm.coefficients, cold.coefficients, atol=1e-7)
    far = fit(p, loss, start=start + 1.0)
    assert far.status == FitStatus.CONVERGED
    np.testing.assert_allclose(far.coefficients, cold.coefficients, atol=1e-6)
    without = fit(p, loss, intercept=False, start=np.ones(21))
    assert without.coefficients[0] == 0.0


@each_loss
@pytest.mark.usefixtures("method")
def test_saturated_starts_converge(loss: int) -> None:
    rng = np.random.default_rng(9)
    for k in range(60):
        p = stress_problem(rng, loss)
        l2 = 10.0 ** rng.uniform(-4, 4)
        result = fit(p, loss, l2=l2, intercept_l2=l2 * (k % 2))
        assert result.status in (FitStatus.CONVERGED, FitStatus.SEPARATED)


@pytest.mark.usefixtures("method")
def test_a_large_mean_takes_one_step() -> None:
    p = problem(np.random.default_rng(10), SQUARED, 300, 5)
    p.response += 1990.0
    result = fit(p, SQUARED)
    assert result.status == FitStatus.CONVERGED
    assert result.iterations <= 2


@each_loss
@pytest.mark.usefixtures("method")
def test_iterations_run_out(loss: int) -> None:
    p = problem(np.random.default_rng(11), loss, 300, 5)
    result = fit(p, loss, max_iterations=0)
    assert result.status == FitStatus.MAX_ITERATIONS
    assert result.iterations == 0
    if loss != SQUARED:
        result = fit(p, loss, max_iterations=1)
        assert result.status == FitStatus.MAX_ITERATIONS
        assert result.iterations == 1


@pytest.mark.usefixtures("method")
@pytest.mark.filterwarnings("ignore:overflow")
def test_overflow_is_reported() -> None:
    p = problem(np.random.default_rng(12), SQUARED, 30, 5)
    p.response[:] = 1e300
    result = fit(p, SQUARED)
    assert result.status == FitStatus.NOT_FINITE
    assert (result.coefficients == 0.0).all()


def power_law(rng: np.random.Generator, n: int, d: int, per_row: int) -> tuple[CsrMatrix, F64]:
    """Ids whose frequency falls as 1 / rank, `per_row` different ones in each row."""
    probability = 1.0 / np.arange(1, d + 1)
    ids = rng.choice(d, size=(n, 4 * per_row), p=probability / probability.sum())
    rows = [np.unique(row)[:per_row] for row in ids]
    counts = [row.size for row in rows]
    indices = np.concatenate(rows).astype(np.uint32)
    indptr = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    design = CsrMatrix(indptr, indices, np.ones(indices.size, np.float32), d)
    theta = 0.5 * rng.normal(size=d)
    z = np.add.reduceat(theta[indices], indptr[:-1]) - 1.0
    return design, (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)


@pytest.mark.parametrize("l2", [1.0, 1e-2])
def test_power_law_ids(l2: float) -> None:
    rng = np.random.default_rng(13)
    n, d = 50_000, 20_000
    design, y = power_law(rng, n, d, 10)
    w, offset = np.ones(n), np.zeros(n)
    penalty = penalties(d + 1, l2, 0.0)
    result = fit_large(
        design, y, w, offset, loss=LOGISTIC, penalty=QuadraticPenalty(penalty), threads=2
    )
    assert result.status == FitStatus.CONVERGED
    assert result.iterations < 20
    assert result.passes < 300
    row = np.repeat(np.arange(n), np.diff(design.indptr))
    z = result.coefficients[0] + np.bincount(row, result.coefficients[1:][design.indices], n)
    d1 = 1 / (1 + np.exp(-z)) - y
    slope = np.concatenate(([d1.sum()], np.bincount(design.indices, d1[row], d)))
    slope += penalty * result.coefficients
    first = np.concatenate(([(0.5 - y).sum()], np.bincount(design.indices, (0.5 - y)[row], d)))
    assert np.linalg.norm(slope) <= 1.001e-8 * np.linalg.norm(first)
