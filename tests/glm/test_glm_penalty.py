"""Quadratic penalties that differ by coefficient, or couple coefficients, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from glm_oracle import (
    F64,
    KINDS,
    LOSSES,
    Problem,
    block_of,
    csr,
    derivatives,
    problem,
    solve,
    with_intercept,
)
from scipy import optimize

from gdmix.glm import entities
from gdmix.glm.entities import EntitiesFit, fit_entities
from gdmix.glm.large import fit_large
from gdmix.glm.penalty import EntityPenalty, QuadraticPenalty, fill_matrix
from gdmix.glm.status import FitStatus
from gdmix.glm.variance import packed_lower

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
SIZES = (3, 1, 5, 2, 30)


def random_spd(rng: np.random.Generator, d: int) -> F64:
    a = rng.normal(size=(d + 3, d))
    return a.T @ a / (d + 3)


def random_penalty(
    rng: np.random.Generator, sizes: tuple[int, ...], *, means: bool, hessians: bool
) -> tuple[EntityPenalty, list[F64]]:
    """A penalty, and each entity's matrix; every third entity has no Hessian."""
    weights = rng.uniform(0.2, 3.0, sum(sizes))
    ends = np.cumsum([0, *sizes])
    whole = [np.diag(own) for own in np.split(weights, ends[1:-1])]
    options = {}
    if means:
        m = rng.normal(size=weights.size)
        m[ends[:-1]] = 1.0
        weights[ends[:-1]] = 0.0
        options |= {"means": m, "intercept_weight": 0.7}
        for e, own in enumerate(np.split(m, ends[1:-1])):
            whole[e] = np.diag(weights[ends[e] : ends[e + 1]]) + 0.7 * np.outer(own, own)
    if hessians:
        own_hessians = [random_spd(rng, d) * (e % 3 > 0) for e, d in enumerate(sizes)]
        lowers = [packed_lower(h) if h.any() else np.empty(0) for h in own_hessians]
        options["hessian_ptr"] = np.cumsum([0, *(lower.size for lower in lowers)])
        options["hessians"] = np.concatenate(lowers)
        whole = [w + h for w, h in zip(whole, own_hessians, strict=True)]
    return EntityPenalty(weights, **options), whole


KINDS_OF_PENALTY = pytest.mark.parametrize(
    "kind", [{"means": m, "hessians": h} for m in (False, True) for h in (False, True)], ids=str
)


class TestArithmetic:
    @KINDS_OF_PENALTY
    def test_products_and_matrices_are_numpys(self, kind: dict[str, bool]) -> None:
        rng = np.random.default_rng(0)
        penalty, whole = random_penalty(rng, SIZES, **kind)
        ends = np.cumsum([0, *SIZES])
        theta = rng.normal(size=int(ends[-1]))
        parts = np.split(theta, ends[1:-1])
        expected = np.concatenate([m @ t for m, t in zip(whole, parts, strict=True)])
        np.testing.assert_allclose(penalty.products(ends, theta), expected, rtol=1e-12, atol=1e-12)
        assert penalty.has_matrices == any(kind.values())
        for e, d in enumerate(SIZES):
            one = penalty.of_entity(ends, e)
            matrix = np.zeros((d, d)) if one.matrix is None else one.matrix
            np.testing.assert_allclose(np.diag(one.weights) + matrix, whole[e], atol=1e-14)
            np.testing.assert_allclose(one.product(parts[e]), whole[e] @ parts[e], atol=1e-12)
            np.testing.assert_allclose(one.diagonal, np.diag(whole[e]), atol=1e-14)
            other = rng.normal(size=d)
            assert one.between(parts[e], other) == pytest.approx(parts[e] @ whole[e] @ other)

    def test_an_entity_without_a_matrix_leaves_zeros(self) -> None:
        penalty, _ = random_penalty(np.random.default_rng(0), SIZES, means=False, hessians=True)
        matrix = np.ones((3, 3))
        assert not fill_matrix(
            0, 0, penalty.means, 0.0, penalty.hessian_ptr, penalty.hessians, matrix
        )
        np.testing.assert_array_equal(matrix, 0.0)

    def test_means_between_two_priors(self) -> None:
        rng = np.random.default_rng(1)
        penalty, whole = random_penalty(rng, SIZES, means=False, hessians=True)
        ends = np.cumsum([0, *SIZES])
        means = rng.normal(size=int(ends[-1]))
        found = penalty.means_between(ends, means)
        for e in range(len(SIZES)):
            own = slice(ends[e], ends[e + 1])
            matrix = whole[e] - np.diag(penalty.weights[own])
            expected = np.linalg.solve(whole[e], matrix @ means[own])
            np.testing.assert_allclose(found[own], expected, rtol=1e-9, atol=1e-12)

    def test_without_a_prior_around_zero_the_mean_stays(self) -> None:
        """Also where the Hessian is singular: of a column that it does not know, the mean is 0."""
        matrix = np.zeros((3, 3))
        matrix[:2, :2] = [[2.0, 1.0], [1.0, 2.0]]
        lower = packed_lower(matrix)
        penalty = EntityPenalty(np.zeros(3), hessian_ptr=np.array([0, 6]), hessians=lower)
        found = penalty.means_between(np.array([0, 3]), np.array([1.0, -2.0, 0.0]))
        np.testing.assert_array_equal(found, [1.0, -2.0, 0.0])


def scipys(p: Problem, loss: int, matrix: F64, intercept: bool = True) -> F64:
    """The minimum, by BFGS on the formula."""
    x = with_intercept(p.features, intercept)

    def value(theta: F64) -> tuple[float, F64]:
        z = p.offset + x @ theta
        loss_, d1, _ = derivatives(loss, z, p.response)
        pull = matrix @ theta
        return float(p.weight @ loss_ + 0.5 * theta @ pull), x.T @ (p.weight * d1) + pull

    start = np.zeros(x.shape[1])
    options = {"maxiter": 10_000, "ftol": 0, "gtol": 1e-9, "maxcor": 40}
    found = optimize.minimize(value, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x)


def converged(fit: EntitiesFit) -> bool:
    return set(fit.status) <= {FitStatus.CONVERGED}


class TestSolvers:
    @each_loss
    @KINDS_OF_PENALTY
    def test_entities_against_scipy(self, loss: int, kind: dict[str, bool]) -> None:
        rng = np.random.default_rng(11)
        kinds = ("usual", "few rows", "many features", "between", "no rows", "constant feature")
        some = [KINDS[k](rng, loss) for k in kinds for _ in range(3)]
        block, offset = block_of(some, rng)
        ends = block.coefficient_ptr
        penalty, whole = random_penalty(rng, tuple(np.diff(ends)), **kind)
        fit = fit_entities(block, offset, loss=loss, penalty=penalty, tolerance=1e-11)
        assert set(fit.status) <= {FitStatus.CONVERGED, FitStatus.STALLED}
        assert np.count_nonzero(fit.status != FitStatus.CONVERGED) <= 1
        for e, p in enumerate(some):
            own = fit.coefficients[ends[e] : ends[e + 1]]
            np.testing.assert_allclose(own, scipys(p, loss, whole[e]), atol=2e-6)

    @each_loss
    def test_without_an_intercept(self, loss: int) -> None:
        rng = np.random.default_rng(12)
        some = [KINDS[k](rng, loss) for k in ("usual", "few rows", "many features")]
        block, offset = block_of(some, rng)
        ends = block.coefficient_ptr
        penalty, whole = random_penalty(rng, tuple(np.diff(ends)), means=False, hessians=False)
        fit = fit_entities(
            block, offset, loss=loss, penalty=penalty, intercept=False, tolerance=1e-11
        )
        for e, p in enumerate(some):
            own = fit.coefficients[ends[e] : ends[e + 1]]
            np.testing.assert_allclose(own, scipys(p, loss, whole[e], False), atol=2e-6)

    @each_loss
    @pytest.mark.parametrize(("n", "d"), [(8, 20), (60, 6), (60, 50)], ids=["dual", "chol", "cg"])
    def test_weights_by_coefficient_in_each_solver(self, loss: int, n: int, d: int) -> None:
        """To the accuracy of a slow Newton's method, also where weights differ a millionfold."""
        rng = np.random.default_rng(5)
        some = [problem(rng, loss, n, d) for _ in range(6)]
        block, offset = block_of(some, rng)
        weights = 10.0 ** rng.uniform(-3, 3, block.coefficient_ptr[-1])
        fit = fit_entities(
            block, offset, loss=loss, penalty=EntityPenalty(weights), tolerance=1e-12
        )
        for p, own, w in zip(
            some, np.split(fit.coefficients, 6), np.split(weights, 6), strict=True
        ):
            np.testing.assert_allclose(own, solve(p, loss, w), rtol=1e-6, atol=1e-9)

    def test_uniform_weights_are_what_l2_is(self) -> None:
        rng = np.random.default_rng(5)
        block, offset = block_of([KINDS[k](rng, 0) for k in KINDS for _ in range(2)], rng)
        sizes = np.diff(block.coefficient_ptr)
        weights = np.full(int(sizes.sum()), 1.5)
        weights[block.coefficient_ptr[:-1]] = 0.7
        uniform = fit_entities(block, offset, loss=0, l2=1.5, intercept_l2=0.7, tolerance=1e-11)
        written = fit_entities(
            block, offset, loss=0, penalty=EntityPenalty(weights), tolerance=1e-11
        )
        np.testing.assert_allclose(written.coefficients, uniform.coefficients, atol=1e-8)

    @each_loss
    @pytest.mark.parametrize("d", [6, 40])
    def test_large_against_scipy(self, loss: int, d: int) -> None:
        rng = np.random.default_rng(d)
        p = problem(rng, loss, 400, d - 1)
        weights, matrix = rng.uniform(0.2, 3.0, d), random_spd(rng, d)
        fit = fit_large(
            csr(p.features, rng), p.response, p.weight, p.offset, loss=loss,
            penalty=QuadraticPenalty(weights, matrix), tolerance=1e-11, threads=2,
        )  # fmt: skip
        assert fit.status == FitStatus.CONVERGED
        expected = scipys(p, loss, np.diag(weights) + matrix)
        np.testing.assert_allclose(fit.coefficients, expected, atol=2e-6)

    def test_a_large_entity_among_small_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(entities, "LARGE_ROWS", 100)
        rng = np.random.default_rng(3)
        some = [problem(rng, 0, n, 5) for n in (20, 300, 30)]
        block, offset = block_of(some, rng)
        penalty, whole = random_penalty(rng, (6, 6, 6), means=False, hessians=True)
        fit = fit_entities(block, offset, loss=0, penalty=penalty, tolerance=1e-11)
        assert converged(fit)
        for e, p in enumerate(some):
            own = fit.coefficients[6 * e : 6 * e + 6]
            np.testing.assert_allclose(own, scipys(p, 0, whole[e]), atol=2e-6)
