"""Curvature, variances of scores and draws, against dense numpy."""

from __future__ import annotations

import numpy as np
import pytest
from glm_oracle import F64, KINDS, LOSSES, Problem, block_of, csr, derivatives, with_intercept

from gdmix.glm import cholesky
from gdmix.glm.entities import EntityBlock, fit_entities
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.penalty import EntityPenalty
from gdmix.glm.posterior import (
    covariance,
    draw,
    score_variances_fixed,
    score_variances_random,
)
from gdmix.glm.random_bits import standard_normal
from gdmix.glm.variance import entity_curvature, hessian_pointers, packed_lower, unpacked

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def problems(loss: int, kinds: tuple[str, ...] = tuple(KINDS)) -> list[Problem]:
    rng = np.random.default_rng(3)
    return [KINDS[kind](rng, loss) for kind in kinds for _ in range(3)]


def hessian_of(problem: Problem, theta: F64, loss: int, penalty: F64, intercept: bool) -> F64:
    x = with_intercept(problem.features, intercept)
    d2 = derivatives(loss, problem.offset + x @ theta, problem.response)[2]
    return (x.T * (problem.weight * d2)) @ x + penalty


def random_spd(rng: np.random.Generator, d: int) -> F64:
    a = rng.normal(size=(d + 3, d))
    return a.T @ a + 0.1 * np.eye(d)


class TestEntityCurvature:
    @each_loss
    @pytest.mark.parametrize("intercept", [True, False])
    @pytest.mark.parametrize("coupling", ["none", "means", "hessians"])
    def test_is_numpys_inverse(self, loss: int, intercept: bool, coupling: str) -> None:
        rng = np.random.default_rng(5)
        all_problems = problems(loss)
        block, offset = block_of(all_problems, rng)
        sizes = np.diff(block.coefficient_ptr)
        total = int(sizes.sum())
        weights = rng.uniform(0.3, 2.0, total)
        matrices = [np.zeros((d, d)) for d in sizes]
        penalty = EntityPenalty(weights)
        if coupling == "means":
            means = rng.normal(size=total)
            means[block.coefficient_ptr[:-1]] = 1.0
            penalty = EntityPenalty(weights, means=means, intercept_weight=0.7)
            parts = np.split(means, block.coefficient_ptr[1:-1])
            matrices = [0.7 * np.outer(m, m) for m in parts]
        if coupling == "hessians":  # every third entity has none
            matrices = [random_spd(rng, d) * (k % 3 > 0) for k, d in enumerate(sizes)]
            lowers = [packed_lower(m) if m.any() else np.empty(0) for m in matrices]
            pointers = np.cumsum([0, *(x.size for x in lowers)])
            penalty = EntityPenalty(weights, hessian_ptr=pointers, hessians=np.concatenate(lowers))
        theta = 0.2 * rng.normal(size=total)
        found = entity_curvature(
            block, offset, theta, loss=loss, penalty=penalty, intercept=intercept, full=True,
            hessians=True, threads=2,
        )  # fmt: skip
        ends = block.coefficient_ptr
        triangles = np.split(found.hessians, hessian_pointers(ends)[1:-1])
        freedom = 0.0
        for e, problem in enumerate(all_problems):
            own = slice(ends[e], ends[e + 1])
            prior = np.diag(weights[own]) + matrices[e]
            expected = hessian_of(problem, theta[own], loss, prior, intercept)
            np.testing.assert_allclose(unpacked(triangles[e]), expected, rtol=1e-10, atol=1e-10)
            inverse = np.linalg.inv(expected)
            np.testing.assert_allclose(found.simple[own], 1 / np.diag(expected), rtol=1e-10)
            np.testing.assert_allclose(found.full[own], np.diag(inverse), rtol=1e-8)
            freedom += sizes[e] - np.trace(inverse @ prior)
        assert found.freedom == pytest.approx(freedom, rel=1e-9)

    def test_only_diagonals(self) -> None:
        loss = LOSSES["logistic"]
        block, offset = block_of(problems(loss, ("usual", "few rows")))
        total = int(block.coefficient_ptr[-1])
        arguments = block, offset, np.zeros(total)
        options = {"loss": loss, "penalty": EntityPenalty(np.ones(total)), "intercept": True}
        both = entity_curvature(*arguments, **options, full=True, hessians=True)
        simple = entity_curvature(*arguments, **options, full=False, hessians=False)
        np.testing.assert_allclose(simple.simple, both.simple, rtol=1e-13)
        assert simple.full.size == simple.hessians.size == 0
        assert simple.freedom == pytest.approx(total - simple.simple.sum())

    def test_what_nothing_determines_has_variance_0(self) -> None:
        rng = np.random.default_rng(0)
        zero = Problem(np.zeros((4, 2)), np.zeros(4), np.ones(4), np.zeros(4))
        twice = rng.normal(size=(9, 1)).astype(np.float32).astype(float)
        same = Problem(np.hstack([twice, twice]), np.zeros(9), np.ones(9), np.zeros(9))
        block, offset = block_of([zero, same])
        # The second problem's columns are held by a block of explicit zeros for the first one.
        block = EntityBlock(
            block.row_ptr, np.array([0, 3, 6]), block.indptr, block.indices, block.values,
            block.response, block.weight,
        )  # fmt: skip
        found = entity_curvature(
            block, offset, np.zeros(6), loss=LOSSES["squared"], penalty=EntityPenalty(np.zeros(6)),
            intercept=True, full=True, hessians=False,
        )  # fmt: skip
        np.testing.assert_allclose(found.full[:3], [0.25, 0.0, 0.0])
        x = with_intercept(twice, True)
        np.testing.assert_allclose(found.full[3:5], np.diag(np.linalg.inv(x.T @ x)), rtol=1e-8)
        assert found.full[5] == 0.0
        assert found.freedom == pytest.approx(3)


class TestTriangles:
    @pytest.mark.parametrize("d", [0, 1, 2, 3, 4, 5, 9, 37])
    def test_packed_and_back(self, d: int) -> None:
        matrix = random_spd(np.random.default_rng(d), d)
        np.testing.assert_array_equal(unpacked(packed_lower(matrix)), matrix)

    @pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 9, 37])
    def test_cholesky_solves_and_inverts(self, d: int) -> None:
        rng = np.random.default_rng(d)
        matrix, b = random_spd(rng, d), rng.normal(size=d)
        factor = matrix.copy()
        cholesky.factorize(d, factor, np.zeros(d))
        root = np.linalg.cholesky(matrix)
        lower, upper = b.copy(), b.copy()
        cholesky.solve_lower(d, factor, lower)
        cholesky.solve_upper(d, factor, upper)
        np.testing.assert_allclose(lower, np.linalg.solve(root, b), rtol=1e-9)
        np.testing.assert_allclose(upper, np.linalg.solve(root.T, b), rtol=1e-9)
        cholesky.invert(d, factor, np.empty(d))
        inverse = np.linalg.inv(matrix)
        np.testing.assert_allclose(np.tril(factor), np.tril(inverse), rtol=1e-8, atol=1e-12)

    def test_of_an_aliased_column_the_inverse_is_0(self) -> None:
        matrix = np.array([[4.0, 2.0, 4.0], [2.0, 5.0, 2.0], [4.0, 2.0, 4.0]])
        found = covariance(packed_lower(matrix), 3, 2.0)
        np.testing.assert_allclose(
            np.tril(found)[:2, :2], np.tril(np.linalg.inv(matrix[:2, :2])) * 2
        )
        np.testing.assert_array_equal(found[2], 0.0)


def models_of(
    rng: np.random.Generator, n_entities: int, n_columns: int, without: int = 2
) -> tuple[tuple[F64, ...], list[F64], list[F64]]:
    """Ragged models, intercept first, each with a covariance; every `without`-th is diagonal."""
    parts = [
        np.append(0, 1 + np.sort(rng.choice(n_columns, rng.integers(0, n_columns), replace=False)))
        for _ in range(n_entities)
    ]
    hessians = [random_spd(rng, c.size) for c in parts]
    triangles = [packed_lower(h) if e % without else np.empty(0) for e, h in enumerate(hessians)]
    variances = rng.uniform(0.1, 2.0, sum(c.size for c in parts))
    ends = np.cumsum([0, *(c.size for c in parts)])
    whole = [
        np.linalg.inv(h) if e % without else np.diag(variances[ends[e] : ends[e + 1]])
        for e, h in enumerate(hessians)
    ]
    arrays = (
        ends,
        np.concatenate(parts).astype(np.uint32),
        variances,
        np.cumsum([0, *(t.size for t in triangles)]),
        np.concatenate(triangles),
    )
    return arrays, [c.astype(int) for c in parts], whole


class TestScoreVariances:
    @pytest.mark.parametrize("intercept", [True, False])
    @pytest.mark.parametrize("dense", [True, False])
    @pytest.mark.parametrize("whole", [True, False])
    def test_fixed(self, intercept: bool, dense: bool, whole: bool) -> None:
        rng = np.random.default_rng(1)
        features = rng.normal(size=(200, 7)) * (rng.random((200, 7)) < (2 if dense else 0.4))
        features = features.astype(np.float32)
        design = CsrMatrix.dense(features, np.arange(200)) if dense else csr(features, rng)
        hessian, variances = random_spd(rng, 8), rng.uniform(0.1, 2.0, 8)
        matrix = covariance(packed_lower(hessian), 8, 1.7) if whole else np.empty((0, 0))
        cov = 1.7 * np.linalg.inv(hessian) if whole else np.diag(variances)
        x = with_intercept(features.astype(float), intercept)
        for threads in (1, 3):
            found = score_variances_fixed(design, intercept, variances, matrix, threads)
            np.testing.assert_allclose(found, np.einsum("ij,jk,ik->i", x, cov, x), rtol=1e-9)

    @pytest.mark.parametrize("intercept", [True, False])
    @pytest.mark.parametrize("dense", [True, False])
    def test_random(self, intercept: bool, dense: bool) -> None:
        rng = np.random.default_rng(2)
        (ends, columns, variances, ptr, lower), parts, covs = models_of(rng, 15, 6)
        features = rng.normal(size=(300, 6)) * (rng.random((300, 6)) < (2 if dense else 0.5))
        features = features.astype(np.float32)
        design = CsrMatrix.dense(features, np.arange(300)) if dense else csr(features, rng)
        entity = rng.integers(-1, 15, 300).astype(np.int32)
        entity[entity == 4] = 5  # one entity has no rows
        x = with_intercept(features.astype(float), intercept)
        expected = np.zeros(300)
        for i, e in enumerate(entity):
            if e >= 0:
                own = x[i, parts[e]]
                expected[i] = (1.0 if e % 2 == 0 else 2.5) * own @ covs[e] @ own
        for threads in (1, 3):
            found = score_variances_random(
                design, entity, intercept, (ends, columns, variances), (ptr, lower), 2.5, threads
            )
            np.testing.assert_allclose(found, expected, rtol=1e-9)
        plain = score_variances_random(design, entity, intercept, (ends, columns, variances))
        diagonal = np.zeros(300)
        for i, e in enumerate(entity):
            if e >= 0:
                diagonal[i] = x[i, parts[e]] ** 2 @ variances[ends[e] : ends[e + 1]]
        np.testing.assert_allclose(plain, diagonal, rtol=1e-9)

    def test_no_entity_and_no_rows(self) -> None:
        none = np.zeros(1, np.int64), np.empty(0, np.uint32), np.empty(0)
        design = CsrMatrix.empty(3)
        unknown = np.full(3, -1, np.int32)
        np.testing.assert_array_equal(score_variances_random(design, unknown, True, none), 0.0)
        one = np.array([0, 1]), np.zeros(1, np.uint32), np.ones(1)
        assert score_variances_random(CsrMatrix.empty(0), unknown[:0], True, one).size == 0


class TestDraw:
    def test_numbers_are_standard_normal(self) -> None:
        from scipy import stats

        numbers = np.array([standard_normal(np.uint64(7), k) for k in range(20_000)])
        others = np.array([standard_normal(np.uint64(8), k) for k in range(20_000)])
        assert stats.kstest(numbers, "norm").pvalue > 0.01
        assert abs(stats.pearsonr(numbers, others).statistic) < 0.02
        assert abs(stats.pearsonr(numbers[1:], numbers[:-1]).statistic) < 0.02

    def test_moments_are_those_of_the_posterior(self) -> None:
        rng = np.random.default_rng(4)
        (ends, _, variances, ptr, lower), _, covs = models_of(rng, 4, 3)
        values = rng.normal(size=variances.size)
        n, everyone = 20_000, np.arange(4)
        draws = np.array([
            draw(np.uint64(k << 32), everyone, ends, values, variances, (ptr, lower), 2.5)
            for k in range(n)
        ])  # fmt: skip
        covs = [c * (2.5 if e % 2 else 1.0) for e, c in enumerate(covs)]
        for e in everyone:
            own = draws[:, ends[e] : ends[e + 1]]
            scale = np.sqrt(np.diag(covs[e]))
            error = (own.mean(0) - values[ends[e] : ends[e + 1]]) / scale
            assert np.abs(error).max() < 4 / n**0.5
            correlation = np.cov(own.T).reshape(covs[e].shape) / np.outer(scale, scale)
            expected = covs[e] / np.outer(scale, scale)
            assert np.abs(correlation - expected).max() < 6 / n**0.5

    def test_depends_on_the_model_alone(self) -> None:
        rng = np.random.default_rng(4)
        (ends, _, variances, ptr, lower), _, _ = models_of(rng, 9, 4)
        values = rng.normal(size=variances.size)
        known = ends, values, variances, (ptr, lower), 1.5
        everyone = draw(np.uint64(3), np.arange(9), *known)
        some = np.array([1, 2, 7])
        found = draw(np.uint64(3), some, *known)
        expected = np.concatenate([everyone[ends[e] : ends[e + 1]] for e in some])
        np.testing.assert_array_equal(found, expected)
        assert not np.isin(everyone, draw(np.uint64(4), np.arange(9), *known)).any()
        assert draw(np.uint64(3), some[:0], *known).size == 0

    def test_what_is_known_exactly_stays(self) -> None:
        ends, values = np.array([0, 3]), np.array([1.0, 2.0, 3.0])
        found = draw(np.uint64(1), np.zeros(1, np.int64), ends, values, np.array([0.0, 1.0, 0.0]))
        np.testing.assert_array_equal(found == values, [True, False, True])
        aliased = packed_lower(np.array([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0]]))
        found = draw(np.uint64(1), np.zeros(1, np.int64), ends, values, np.zeros(3),
                     (np.array([0, 6]), aliased))  # fmt: skip
        np.testing.assert_array_equal(found == values, [False, True, False])


@each_loss
def test_at_an_optimum_newton_has_nothing_to_do(loss: int) -> None:
    """The Hessian that is saved is the one by which the solver would step."""
    some = problems(loss, ("usual",))
    block, offset = block_of(some)
    total = int(block.coefficient_ptr[-1])
    fitted = fit_entities(block, offset, loss=loss, l2=1.0, intercept_l2=1.0, tolerance=1e-12)
    near = fitted.coefficients + 1e-5
    found = entity_curvature(
        block, offset, near, loss=loss, penalty=EntityPenalty(np.ones(total)), intercept=True,
        full=False, hessians=True,
    )  # fmt: skip
    ends = block.coefficient_ptr
    for e, lower in enumerate(np.split(found.hessians, hessian_pointers(ends)[1:-1])):
        own, p = slice(ends[e], ends[e + 1]), some[e]
        x = with_intercept(p.features, True)
        d1 = derivatives(loss, p.offset + x @ near[own], p.response)[1]
        step = np.linalg.solve(unpacked(lower), x.T @ (p.weight * d1) + near[own])
        np.testing.assert_allclose(near[own] - step, fitted.coefficients[own], atol=1e-8)
