"""Rows and coefficients divided among ranks: the optimum of one process, alike on all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from glm_oracle import (
    KINDS,
    LOSSES,
    Problem,
    csr,
    derivatives,
    draw_response,
    objective,
    one_class,
    penalties,
    problem,
    stress_problem,
    with_intercept,
)
from thread_group import ThreadGroup, run_in_group

from gdmix.glm import distributed, large
from gdmix.glm.distributed import (
    DistributedMap,
    DividedPenalty,
    fit_large_distributed,
    held_slice,
)
from gdmix.glm.group import ALONE
from gdmix.glm.large import fit_large
from gdmix.glm.losses import LOGISTIC, POISSON, SQUARED
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Minimum
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.status import FitStatus

F64 = np.ndarray[Any, np.dtype[np.float64]]
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@pytest.fixture(params=["direct", "conjugate gradients", "renumbered"])
def method(request: Any, monkeypatch: Any) -> str:
    if request.param != "direct":
        monkeypatch.setattr(large, "MAX_DIRECT_COEFFICIENTS", 0)
    if request.param == "renumbered":
        monkeypatch.setattr(large, "MAX_FALLBACK_COEFFICIENTS", 0)
        monkeypatch.setattr(distributed, "MAX_FALLBACK_COEFFICIENTS", 0)
    return str(request.param)


@dataclass
class Rows:
    """A sparse problem."""

    design: CsrMatrix
    response: F64
    weight: F64
    offset: F64

    def shard(self, rank: int, size: int) -> Rows:
        """Contiguous, and the more rows the higher the rank: of few rows, some have none."""
        n = self.response.size
        own = np.arange(n * rank**2 // size**2, n * (rank + 1) ** 2 // size**2)
        return Rows(
            self.design.take(own), *(a[own] for a in (self.response, self.weight, self.offset))
        )


def rows_of(p: Problem) -> Rows:
    return Rows(csr(p.features), p.response, p.weight, p.offset)


def sparse_rows(rng: Any, loss: int, n: int, d: int, per_row: int = 8) -> Rows:
    """Columns whose frequencies follow a power law, as ids have."""
    drawn = (d * rng.random((n, per_row)) ** 3).astype(np.int64)
    lists = [np.unique(row) for row in drawn]
    indptr = np.cumsum([0, *(row.size for row in lists)])
    indices = np.concatenate(lists).astype(np.uint32)
    values = rng.normal(size=indices.size).astype(np.float32)
    offset = 0.3 * rng.normal(size=n)
    z = offset + np.add.reduceat(values * rng.normal(size=d)[indices], indptr[:-1]) / per_row
    return Rows(
        CsrMatrix(indptr, indices, values, d),
        draw_response(rng, loss, z),
        rng.gamma(4.0, 0.25, n),
        offset,
    )


def fit_in_group(
    rows: Rows,
    loss: int,
    weights: F64,
    size: int,
    *,
    start: F64 | None = None,
    intercept: bool = True,
    threads: int = 1,
    **options: Any,
) -> Minimum:
    """Fit with `size` ranks, and put the slices together; all else must be alike."""

    def work(group: ThreadGroup) -> Minimum:
        own = rows.shard(group.rank, size)
        design = DistributedMap(own.design, intercept, threads, group)
        assert design.held == held_slice(weights.size, group.rank, size)
        return fit_large_distributed(
            design,
            own.response,
            own.weight,
            own.offset,
            loss=loss,
            penalty=QuadraticPenalty(weights[design.held]),
            start=None if start is None else start[design.held],
            **options,
        )

    fits = run_in_group(size, work)
    facts = {(f.status, f.iterations, f.passes, f.gradient_norm, f.value) for f in fits}
    assert len(facts) == 1, facts
    status, iterations, passes, norm, value = facts.pop()
    coefficients = np.concatenate([f.coefficients for f in fits])
    return Minimum(coefficients, status, iterations, passes, norm, value)


def fit_alone(rows: Rows, loss: int, weights: F64, **options: Any) -> Minimum:
    labels = rows.response, rows.weight, rows.offset
    return fit_large(rows.design, *labels, loss=loss, penalty=QuadraticPenalty(weights), **options)


def test_every_coefficient_is_held_once() -> None:
    for d in (1, 2, 5, 17):
        for size in (1, 2, 3, 7):
            slices = [held_slice(d, rank, size) for rank in range(size)]
            assert slices[0].start == 0 < slices[0].stop
            assert slices[-1].stop == d
            assert all(a.stop == b.start for a, b in zip(slices, slices[1:], strict=False))
            assert max(s.stop - s.start for s in slices) == -(-d // size)


@each_loss
@pytest.mark.parametrize("intercept_l2", [0.0, 2.0])
@pytest.mark.usefixtures("method")
def test_the_optimum_of_one_process(loss: int, intercept_l2: float) -> None:
    rng = np.random.default_rng(1)
    for k, name in enumerate(KINDS):
        p = KINDS[name](rng, loss)
        weights = penalties(p.features.shape[1] + 1, 0.5, intercept_l2)
        alone = fit_alone(rows_of(p), loss, weights, tolerance=1e-10)
        result = fit_in_group(rows_of(p), loss, weights, (2, 3, 5)[k % 3], tolerance=1e-10)
        assert result.status == alone.status, name
        if alone.status == FitStatus.SEPARATED:
            assert intercept_l2 == 0.0 and one_class(p, loss)
        np.testing.assert_allclose(
            result.coefficients, alone.coefficients, atol=1e-9, rtol=1e-9, err_msg=name
        )
        value = objective(p, result.coefficients, loss, weights, True)
        assert result.value == pytest.approx(value, rel=1e-10, abs=1e-9)


@each_loss
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.usefixtures("method")
def test_warm_start_weights_by_column_and_threads(loss: int, intercept: bool) -> None:
    rng = np.random.default_rng(2)
    rows = rows_of(problem(rng, loss, 900, 40))
    weights = rng.gamma(0.5, 1.0, 41)
    options = {"intercept": intercept, "tolerance": 1e-11}
    alone = fit_alone(rows, loss, weights, **options)
    cold = fit_in_group(rows, loss, weights, 3, **options)
    start = alone.coefficients + 0.1 * rng.normal(size=41)
    warm = fit_in_group(rows, loss, weights, 3, start=start, **options)
    threaded = fit_in_group(rows, loss, weights, 3, threads=2, **options)
    for result in (cold, warm, threaded):
        assert result.status == alone.status == FitStatus.CONVERGED
        np.testing.assert_allclose(result.coefficients, alone.coefficients, atol=1e-9)
    assert (cold.coefficients[0] != 0.0) == intercept
    there = fit_in_group(rows, loss, weights, 3, start=cold.coefficients, **options)
    assert there.iterations == 0


@each_loss
def test_more_columns_than_any_rank_meets(loss: int) -> None:
    rng = np.random.default_rng(3)
    rows = sparse_rows(rng, loss, 3000, 30_000)
    weights = rng.gamma(2.0, 0.5, 30_001)
    weights[0] = 0.0
    alone = fit_alone(rows, loss, weights, tolerance=1e-11)
    for size in (2, 5):
        result = fit_in_group(rows, loss, weights, size, tolerance=1e-11)
        assert result.status == alone.status == FitStatus.CONVERGED
        assert abs(result.passes - alone.passes) <= 2.0
        np.testing.assert_allclose(result.coefficients, alone.coefficients, atol=1e-9)


def test_no_rank_has_a_vector_of_all_columns() -> None:
    rng = np.random.default_rng(4)
    d = 10_000_000
    rows = sparse_rows(rng, LOGISTIC, 200, d)

    def work(group: ThreadGroup) -> int:
        own = rows.shard(group.rank, group.size)
        design = DistributedMap(own.design, True, 1, group)
        met = design._owners.gather(np.zeros(design.size))
        assert met.size == 1 + np.unique(own.design.indices).size
        assert design._buffers.size == design._pairs.size // 2 == met.size
        return design.size

    sizes = run_in_group(4, work)
    assert sum(sizes) == d + 1
    assert max(sizes) == d // 4 + 1


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.usefixtures("method")
def test_fewer_rows_than_ranks(n: int) -> None:
    p = problem(np.random.default_rng(4), LOGISTIC, n, 4)
    weights = penalties(5, 1.0, 1.0)
    result = fit_in_group(rows_of(p), LOGISTIC, weights, 4)
    assert result.status == FitStatus.CONVERGED
    alone = fit_alone(rows_of(p), LOGISTIC, weights)
    np.testing.assert_allclose(result.coefficients, alone.coefficients, atol=1e-12)


@pytest.mark.parametrize(("loss", "label"), [(LOGISTIC, 0.0), (LOGISTIC, 1.0), (POISSON, 0.0)])
@pytest.mark.usefixtures("method")
def test_labels_of_one_class(loss: int, label: float) -> None:
    p = problem(np.random.default_rng(5), loss, 60, 3)
    p.response[:] = label
    rows, weights = rows_of(p), penalties(4, 1.0, 0.0)
    alone, result = fit_alone(rows, loss, weights), fit_in_group(rows, loss, weights, 3)
    assert result.status == alone.status == FitStatus.SEPARATED
    assert result.iterations == alone.iterations
    np.testing.assert_allclose(result.coefficients, alone.coefficients, rtol=1e-9, atol=1e-9)
    # Each rank sees one class, all ranks see both.
    p.response[30:] = 1.0 - label
    assert fit_in_group(rows_of(p), loss, weights, 2).status == FitStatus.CONVERGED
    # A row of no weight is none.
    p.weight[30:] = 0.0
    assert fit_in_group(rows_of(p), loss, weights, 3).status == FitStatus.SEPARATED


@pytest.mark.usefixtures("method")
def test_separable_without_penalty() -> None:
    rng = np.random.default_rng(7)
    p = problem(rng, LOGISTIC, 200, 3, density=1.0)
    p.response = (p.features[:, 0] - p.features[:, 1] > 0.1).astype(float)
    for wrong, status in ((False, FitStatus.SEPARATED), (True, FitStatus.CONVERGED)):
        if wrong:
            p.response[::7] = 1.0 - p.response[::7]
        assert fit_alone(rows_of(p), LOGISTIC, np.zeros(4)).status == status
        assert fit_in_group(rows_of(p), LOGISTIC, np.zeros(4), 3).status == status


@each_loss
@pytest.mark.usefixtures("method")
def test_collinear_features_without_penalty(loss: int) -> None:
    rng = np.random.default_rng(8)
    p = problem(rng, loss, 600, 3)
    dummies = np.eye(5)[rng.integers(0, 5, 600)]
    p.features = np.hstack([p.features, dummies, p.features[:, :1]])
    alone = fit_alone(rows_of(p), loss, np.zeros(10))
    result = fit_in_group(rows_of(p), loss, np.zeros(10), 3)
    assert result.status == FitStatus.CONVERGED
    assert result.value == pytest.approx(alone.value, rel=1e-9)


def test_cholesky_where_conjugate_gradients_give_up(monkeypatch: Any) -> None:
    rng = np.random.default_rng(9)
    monkeypatch.setattr(large, "MAX_DIRECT_COEFFICIENTS", 0)
    p = problem(rng, POISSON, 45, 36, density=1.0, offset_sd=3.0)
    p.features *= 100.0
    calls = []
    hessian = large.SparseMap.hessian
    monkeypatch.setattr(
        large.SparseMap, "hessian", lambda own, d2: (calls.append(1), hessian(own, d2))[1]
    )
    weights = np.full(37, 1e-5)
    alone = fit_alone(rows_of(p), POISSON, weights)
    assert calls, "the problem is not hard enough"
    result = fit_in_group(rows_of(p), POISSON, weights, 3)
    assert result.status == alone.status
    assert result.value == pytest.approx(alone.value, rel=1e-8)


@each_loss
def test_stress(loss: int) -> None:
    """Saturated starts: the line search shortens steps, alike on all ranks."""
    rng = np.random.default_rng(10)
    for _ in range(25):
        p = stress_problem(rng, loss)
        weights = penalties(p.features.shape[1] + 1, rng.choice([0.01, 1.0]), 1.0)
        alone = fit_alone(rows_of(p), loss, weights)
        result = fit_in_group(rows_of(p), loss, weights, 3)
        assert result.value == pytest.approx(alone.value, rel=1e-7, abs=1e-7)
        assert result.status in (FitStatus.CONVERGED, alone.status)


def test_overflow_is_not_finite_on_all_ranks() -> None:
    p = problem(np.random.default_rng(11), SQUARED, 40, 3)
    p.response[-1] = 1e308
    result = fit_in_group(rows_of(p), SQUARED, np.ones(4), 3)
    assert result.status == FitStatus.NOT_FINITE
    assert not result.coefficients.any()


def test_dense_rows_and_none() -> None:
    rng = np.random.default_rng(12)
    table = rng.normal(size=(80, 6)).astype(np.float32)
    design = CsrMatrix.dense(table, np.arange(80))
    p = problem(rng, LOGISTIC, 80, 6)
    rows = Rows(design, p.response, p.weight, p.offset)
    weights = np.ones(7)
    alone = fit_alone(rows, LOGISTIC, weights)

    def work(group: ThreadGroup) -> Minimum:
        nothing = np.empty(0)
        own = Rows(CsrMatrix.empty(0).widened(6), nothing, nothing, nothing)
        if group.rank < 2:
            own = rows.shard(group.rank, 2)
        design = DistributedMap(own.design, True, 1, group)
        labels = own.response, own.weight, own.offset
        penalty = QuadraticPenalty(weights[design.held])
        return fit_large_distributed(design, *labels, loss=LOGISTIC, penalty=penalty)

    result = np.concatenate([fit.coefficients for fit in run_in_group(3, work)])
    np.testing.assert_allclose(result, alone.coefficients, atol=1e-9)


@pytest.mark.parametrize("d", [12, 2100])
@pytest.mark.usefixtures("method")
def test_scores_and_curvature_of_slices(d: int) -> None:
    """What variances and scores are made of, against the dense matrix."""
    rng = np.random.default_rng(13)
    p = problem(rng, POISSON, 90, d, density=20 / d if d > 20 else 0.5)
    x = with_intercept(p.features, True)
    theta = rng.normal(size=d + 1) / d
    z = x @ theta
    _, d1, d2 = derivatives(POISSON, z, p.response)
    rows = rows_of(p)

    def work(group: ThreadGroup) -> tuple[F64, F64, F64, F64]:
        own = Rows(rows.design, d1, d2, z).shard(group.rank, group.size)
        design = DistributedMap(own.design, True, 1, group)
        scores = design.scores(theta[design.held])
        np.testing.assert_allclose(scores, own.offset, rtol=1e-11, atol=1e-12)
        transposed = design.transposed(own.response)
        return transposed, design.hessian_diagonal(own.weight), design.hessian(own.weight), scores

    parts = run_in_group(3, work)
    hessian = x.T @ (d2[:, None] * x)
    np.testing.assert_allclose(np.concatenate([part[0] for part in parts]), x.T @ d1, atol=1e-10)
    np.testing.assert_allclose(
        np.concatenate([part[1] for part in parts]), np.diag(hessian), rtol=1e-11
    )
    for part in parts:
        assert part[2].tobytes() == parts[0][2].tobytes()
        np.testing.assert_allclose(np.tril(part[2]), np.tril(hessian), atol=1e-10)


def test_one_rank_is_one_process() -> None:
    rng = np.random.default_rng(14)
    rows = sparse_rows(rng, LOGISTIC, 500, 4000)
    weights = np.ones(4001)
    design = DistributedMap(rows.design, True, 1, ALONE)
    labels = rows.response, rows.weight, rows.offset
    result = fit_large_distributed(
        design, *labels, loss=LOGISTIC, penalty=QuadraticPenalty(weights)
    )
    alone = fit_alone(rows, LOGISTIC, weights)
    assert result.iterations == alone.iterations
    np.testing.assert_allclose(result.coefficients, alone.coefficients, atol=1e-12)


def test_what_cannot_be_distributed() -> None:
    def with_matrix(group: ThreadGroup) -> None:
        design = DistributedMap(csr(np.ones((2, 1))), True, 1, group)
        labels = np.ones(2), np.ones(2), np.zeros(2)
        penalty = QuadraticPenalty(np.ones(1), np.ones((1, 1)))
        fit_large_distributed(design, *labels, loss=SQUARED, penalty=penalty)

    with pytest.raises(ValueError, match="has to be a DividedPenalty"):
        run_in_group(2, with_matrix)

    def work(group: ThreadGroup) -> None:
        DistributedMap(csr(np.ones((2, 1 + group.rank))), True, 1, group)

    with pytest.raises(ValueError, match="different numbers of columns"):
        run_in_group(2, work)


@each_loss
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.usefixtures("method")
def test_a_penalty_that_couples_coefficients(loss: int, rank: int) -> None:
    """An intercept that is penalised at the means of features, and a prior's Hessian."""
    rng = np.random.default_rng(12)
    rows = rows_of(problem(rng, loss, 700, 12))
    root = rng.normal(size=(13, rank))
    whole = QuadraticPenalty(penalties(13, 0.5, 0.0), root @ root.T)
    options: dict[str, Any] = {"loss": loss, "tolerance": 1e-11}
    labels = rows.response, rows.weight, rows.offset
    alone = fit_large(rows.design, *labels, penalty=whole, **options)
    assert whole.matrix is not None
    matrix, theta = whole.matrix, np.arange(13.0)

    def work(group: ThreadGroup) -> Minimum:
        own = rows.shard(group.rank, group.size)
        design = DistributedMap(own.design, True, 1, group)
        held = design.held
        penalty = DividedPenalty(whole.weights[held], matrix[held], held=held, group=group)
        np.testing.assert_allclose(penalty.diagonal, whole.diagonal[held])
        np.testing.assert_allclose(penalty.product(theta[held]), whole.product(theta)[held])
        np.testing.assert_array_equal(penalty.whole_matrix(), matrix)
        labels = own.response, own.weight, own.offset
        return fit_large_distributed(design, *labels, penalty=penalty, **options)

    fits = run_in_group(3, work)
    assert {f.status for f in fits} == {alone.status} == {FitStatus.CONVERGED}
    assert fits[0].value == pytest.approx(alone.value, rel=1e-10)
    found = np.concatenate([f.coefficients for f in fits])
    np.testing.assert_allclose(found, alone.coefficients, atol=1e-8)
