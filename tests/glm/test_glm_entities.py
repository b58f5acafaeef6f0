"""Every entity's solution against an independent one, its gradient, and its status."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from glm_oracle import (
    F64,
    KINDS,
    LOSSES,
    Problem,
    block_gradients,
    block_of,
    gradient,
    objective,
    one_class,
    penalties,
    problem,
    solve,
    stress_problem,
)
from scipy import optimize

from gdmix.glm import entities
from gdmix.glm.entities import EntitiesFit, EntityBlock, fit_entities
from gdmix.glm.losses import LOGISTIC, POISSON, SQUARED
from gdmix.glm.status import FitStatus

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
PENALTIES = [
    {"l2": 1.0, "intercept_l2": 1.0, "intercept": True},
    {"l2": 1.0, "intercept_l2": 0.0, "intercept": True},
    {"l2": 0.05, "intercept_l2": 2.0, "intercept": True},
    {"l2": 30.0, "intercept_l2": 0.5, "intercept": True},
    {"l2": 1.0, "intercept_l2": 1.0, "intercept": False},
]


def per_entity(block: EntityBlock, fit: EntitiesFit) -> list[F64]:
    return np.split(fit.coefficients, block.coefficient_ptr[1:-1])


def fit(problems: list[Problem], loss: int, **options: Any) -> tuple[EntitiesFit, list[F64]]:
    block, offset = block_of(problems)
    options = {"l2": 1.0, "intercept_l2": 1.0} | options
    result = fit_entities(block, offset, loss=loss, **options)
    return result, per_entity(block, result)


@each_loss
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: "-".join(map(str, p.values())))
def test_every_solution_is_the_oracles(loss: int, penalty: dict[str, Any]) -> None:
    rng = np.random.default_rng(7)
    problems = [kind(rng, loss) for kind in KINDS.values() for _ in range(9)]
    block, offset = block_of(problems, rng)
    result = fit_entities(block, offset, loss=loss, tolerance=1e-10, **penalty)
    vectors = [
        penalties(p.features.shape[1] + 1, penalty["l2"], penalty["intercept_l2"]) for p in problems
    ]
    checked = 0
    for k, theta in enumerate(per_entity(block, result)):
        if penalty["intercept_l2"] == 0.0 and one_class(problems[k], loss):
            assert result.status[k] == FitStatus.SEPARATED
            continue
        assert result.status[k] == FitStatus.CONVERGED
        expected = solve(problems[k], loss, vectors[k], penalty["intercept"])
        np.testing.assert_allclose(theta, expected, atol=1e-6, rtol=0, err_msg=str(k))
        checked += 1
    assert checked >= 0.7 * len(problems)


@each_loss
def test_the_oracle_agrees_with_scipy(loss: int) -> None:
    rng = np.random.default_rng(8)
    for kind in ("usual", "separable", "one class", "duplicated", "large offsets", "between"):
        p = KINDS[kind](rng, loss)
        d = p.features.shape[1] + 1
        penalty = penalties(d, 0.5, 2.0)
        eps = 1e-5

        def value(theta: F64, p: Problem = p, penalty: F64 = penalty) -> float:
            return objective(p, theta, loss, penalty, True)

        def slope(theta: F64, p: Problem = p, penalty: F64 = penalty) -> F64:
            return gradient(p, theta, loss, penalty, True)

        answer = optimize.minimize(
            value, np.zeros(d), jac=slope, method="BFGS", options={"gtol": 1e-9}
        )
        oracle = solve(p, loss, penalty)
        np.testing.assert_allclose(answer.x, oracle, atol=1e-6)
        # and the oracle's gradient is the derivative of its objective
        direction = rng.normal(size=d)
        difference = (value(direction * eps) - value(-direction * eps)) / (2 * eps)
        assert slope(np.zeros(d)) @ direction == pytest.approx(difference, rel=1e-5, abs=1e-6)


@each_loss
@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_converged_means_that_the_gradient_is_small(loss: int, tolerance: float) -> None:
    rng = np.random.default_rng(9)
    for k in range(8):
        options = {"l2": 10.0 ** rng.uniform(-5, 4), "intercept_l2": 10.0 ** rng.uniform(-5, 4)}
        if k == 0:
            options["intercept_l2"] = 0.0
        problems = [kind(rng, loss) for kind in KINDS.values() for _ in range(5)]
        block, offset = block_of(problems, rng)
        result = fit_entities(block, offset, loss=loss, tolerance=tolerance, **options)
        norm, noise = block_gradients(block, offset, result.coefficients, loss=loss, **options)
        start, _ = block_gradients(block, offset, 0 * result.coefficients, loss=loss, **options)
        assert np.isin(result.status, [FitStatus.CONVERGED, FitStatus.SEPARATED]).all()
        assert (norm <= np.maximum(1.001 * tolerance * start, noise)).all()
        np.testing.assert_allclose(
            result.gradient_norm, norm, rtol=1e-3, atol=1e-2 * tolerance * start.max()
        )


@each_loss
def test_saturated_starts_converge(loss: int) -> None:
    """Offsets far out on the wrong side, and L2 weights over twelve orders of magnitude."""
    rng = np.random.default_rng(10)
    for k in range(14):
        l2 = 10.0 ** rng.uniform(-6, 6)
        options = {
            "l2": l2,
            "intercept_l2": [l2, 0.0, 10.0 ** rng.uniform(-6, 6)][k % 3],
            "intercept": k % 5 != 4,
        }
        block, offset = block_of([stress_problem(rng, loss) for _ in range(240)])
        result = fit_entities(block, offset, loss=loss, **options)
        norm, noise = block_gradients(block, offset, result.coefficients, loss=loss, **options)
        start, _ = block_gradients(block, offset, 0 * result.coefficients, loss=loss, **options)
        assert np.isin(result.status, [FitStatus.CONVERGED, FitStatus.SEPARATED]).all()
        assert (norm <= np.maximum(1.001e-8 * start, noise)).all()
        assert np.isfinite(result.coefficients).all()


def test_conjugate_gradients_that_give_up_are_followed_by_cholesky() -> None:
    """Rates over many orders of magnitude and next to no penalty: too badly conditioned for CG."""
    rng = np.random.default_rng(14)
    problems = [problem(rng, POISSON, 45, 36, density=1.0, offset_sd=3.0) for _ in range(100)]
    for p in problems:
        p.features = 100 * p.features
    result, thetas = fit(problems, POISSON, l2=1e-5, intercept_l2=1e-5)
    assert (result.status == FitStatus.CONVERGED).all()


# --- statuses -------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 10, 60])
@pytest.mark.parametrize("d", [0, 3, 40])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_one_class_without_intercept_penalty_is_separated(rows: int, d: int, y: float) -> None:
    p = problem(np.random.default_rng(1), LOGISTIC, rows, d)
    p.response[:] = y
    result, (theta,) = fit([p], LOGISTIC, intercept_l2=0.0)
    assert result.status[0] == FitStatus.SEPARATED
    assert 10 < theta[0] * (2 * y - 1) < 40
    assert np.abs(theta[1:]).max(initial=0.0) < 1e-6
    assert result.gradient_norm[0] <= 1e-6


def test_counts_that_are_all_zero_are_separated() -> None:
    p = problem(np.random.default_rng(1), POISSON, 10, 3)
    p.response[:] = 0.0
    result, (theta,) = fit([p], POISSON, intercept_l2=0.0)
    assert result.status[0] == FitStatus.SEPARATED
    assert -40 < theta[0] < -10


def test_slopes_without_penalty_that_classify_every_row_are_separated() -> None:
    p = problem(np.random.default_rng(1), LOGISTIC, 40, 3, density=1.0)
    p.response = (p.features[:, 0] > p.features[:, 1]).astype(float)
    result, (theta,) = fit([p], LOGISTIC, l2=0.0, intercept_l2=0.0)
    assert result.status[0] == FitStatus.SEPARATED
    assert np.isfinite(theta).all()
    result, _ = fit([p], LOGISTIC, l2=0.0, intercept_l2=0.0, intercept=False)
    assert result.status[0] == FitStatus.SEPARATED
    p.response[:4] = 1 - p.response[:4]
    result, _ = fit([p], LOGISTIC, l2=0.0, intercept_l2=0.0)
    assert result.status[0] == FitStatus.CONVERGED


def test_no_information_converges_to_zero() -> None:
    """No rows, or only rows of weight zero: nothing to learn, and nothing is separated."""
    rng = np.random.default_rng(2)
    problems = [KINDS["no rows"](rng, LOGISTIC), KINDS["all zero weights"](rng, LOGISTIC)]
    for intercept_l2 in (0.0, 1.0):
        result, thetas = fit(problems, LOGISTIC, intercept_l2=intercept_l2)
        assert (result.status == FitStatus.CONVERGED).all()
        assert all((theta == 0.0).all() for theta in thetas)


@each_loss
def test_iterations_run_out(loss: int) -> None:
    rng = np.random.default_rng(3)
    problems = [problem(rng, loss, n, d, offset_sd=1.0) for n, d in [(8, 20), (100, 8), (100, 60)]]
    for limit in (0, 1):
        result, thetas = fit(problems, loss, max_iterations=limit)
        assert (result.iterations == limit).all()
        if loss != SQUARED or limit == 0:
            assert (result.status == FitStatus.MAX_ITERATIONS).all()
        else:
            assert (result.status == FitStatus.CONVERGED).all()
        assert all(np.isfinite(theta).all() for theta in thetas)


@pytest.mark.parametrize(("n", "d"), [(5, 3), (60, 3), (60, 40)])
def test_overflow_is_reported_and_returns_zeros(n: int, d: int) -> None:
    rng = np.random.default_rng(4)
    bad, good = problem(rng, SQUARED, n, d), problem(rng, SQUARED, n, d)
    bad.response[:] = 1e300
    result, thetas = fit([good, bad, good], SQUARED)
    assert result.status.tolist() == [
        FitStatus.CONVERGED,
        FitStatus.NOT_FINITE,
        FitStatus.CONVERGED,
    ]
    assert (thetas[1] == 0.0).all()
    np.testing.assert_array_equal(thetas[0], thetas[2])


def test_a_large_mean_takes_one_step_without_intercept_penalty() -> None:
    """The intercept of a squared loss is not held back as that of a separated entity is."""
    rng = np.random.default_rng(5)
    for n, d in [(8, 20), (100, 8), (100, 60)]:
        p = problem(rng, SQUARED, n, d)
        p.response += 1990.0
        result, (theta,) = fit([p], SQUARED, intercept_l2=0.0)
        assert result.status[0] == FitStatus.CONVERGED
        assert result.iterations[0] <= 2
        assert theta[0] == pytest.approx(1990.0, abs=20.0)


# --- invariance -----------------------------------------------------------------------------


def many_problems(loss: int = LOGISTIC) -> list[Problem]:
    rng = np.random.default_rng(11)
    problems = [kind(rng, loss) for kind in KINDS.values() for _ in range(12)]
    problems += [problem(rng, loss, n, 5) for n in (1100, 2000, 5000)]
    return [problems[k] for k in rng.permutation(len(problems))]


@each_loss
@pytest.mark.parametrize("intercept_l2", [0.0, 1.0])
def test_neither_threads_nor_order_matter(loss: int, intercept_l2: float) -> None:
    problems = many_problems(loss)
    one, thetas = fit(problems, loss, intercept_l2=intercept_l2)
    for threads in (2, 3):
        other, _ = fit(problems, loss, intercept_l2=intercept_l2, threads=threads)
        np.testing.assert_array_equal(one.coefficients, other.coefficients)
        np.testing.assert_array_equal(one.status, other.status)
        np.testing.assert_array_equal(one.iterations, other.iterations)
        np.testing.assert_array_equal(one.gradient_norm, other.gradient_norm)
    order = np.random.default_rng(12).permutation(len(problems))
    _, shuffled = fit([problems[k] for k in order], loss, intercept_l2=intercept_l2)
    for k, theta in zip(order, shuffled, strict=True):
        np.testing.assert_array_equal(theta, thetas[k])


def test_an_entity_solved_alone_is_solved_the_same() -> None:
    problems = many_problems()[:40]
    _, thetas = fit(problems, LOGISTIC, l2=1e-3)
    for p, theta in zip(problems, thetas, strict=True):
        np.testing.assert_array_equal(fit([p], LOGISTIC, l2=1e-3)[1][0], theta)


def test_a_large_entity_is_solved_in_parallel_to_the_same_optimum(monkeypatch: Any) -> None:
    problems = many_problems()
    small, _ = fit(problems, LOGISTIC, tolerance=1e-10)
    monkeypatch.setattr(entities, "LARGE_ROWS", 1500)
    for threads in (1, 2):
        mixed, _ = fit(problems, LOGISTIC, tolerance=1e-10, threads=threads)
        np.testing.assert_allclose(mixed.coefficients, small.coefficients, atol=1e-9)
        assert (mixed.status == small.status).all()


def test_no_entities() -> None:
    zeros = np.zeros(1, np.int64)
    empty = np.empty(0)
    block = EntityBlock(
        zeros, zeros, zeros, np.empty(0, np.uint32), np.empty(0, np.float32), empty, empty
    )
    for threads in (1, 2):
        result = fit_entities(block, empty, loss=0, l2=1.0, intercept_l2=1.0, threads=threads)
        assert result.coefficients.size == result.status.size == 0


@each_loss
def test_warm_start_at_the_optimum_stays_there(loss: int) -> None:
    problems = many_problems(loss)
    block, offset = block_of(problems)
    options: dict[str, Any] = {"loss": loss, "l2": 1.0, "intercept_l2": 1.0}
    cold = fit_entities(block, offset, **options)
    start = cold.coefficients.copy()
    warm = fit_entities(block, offset, start=start, **options)
    np.testing.assert_array_equal(start, cold.coefficients)  # the caller's array is not written to
    np.testing.assert_allclose(warm.coefficients, cold.coefficients, atol=1e-6)
    primal = np.diff(block.row_ptr) > 64
    assert (warm.iterations[primal] == 0).all()
    far = fit_entities(block, offset, start=start + 1.0, **options)
    np.testing.assert_allclose(far.coefficients, cold.coefficients, atol=1e-5)


def test_warm_start_of_an_absent_intercept_is_ignored() -> None:
    for n, d in [(8, 20), (100, 8), (100, 60)]:
        p = problem(np.random.default_rng(5), LOGISTIC, n, d)
        _, (theta,) = fit([p], LOGISTIC, intercept=False, intercept_l2=0.0, start=np.ones(d + 1))
        assert theta[0] == 0.0


def test_whole_numbers_as_options_compile_nothing_new() -> None:
    p = problem(np.random.default_rng(6), LOGISTIC, 20, 3)
    fit([p], LOGISTIC)
    before = len(entities._solve_range.signatures)
    fit([p], np.int64(LOGISTIC), l2=1, intercept_l2=0, max_iterations=np.int32(50), tolerance=0)
    assert len(entities._solve_range.signatures) == before
