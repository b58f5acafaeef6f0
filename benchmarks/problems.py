"""The problems, drawn from a seed, and their optima by plain numpy and SciPy.

Nothing here calls a solver of gdmix: the optima are what its results are judged by. Both are
computed by Newton's method in double precision until the gradient is rounding error. As the
objective is strongly convex (L2 weight 1), the norm of the gradient bounds their distance from
the exact optimum: ``F - F* <= |gradient|^2 / 2``, where every coefficient is penalised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from gdmix.glm.entities import EntityBlock
from gdmix.glm.matrix import CsrMatrix
from harness import Accuracy

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

L2 = 1.0
GLOBAL_FEATURES = 10_000


def logistic(z: F64, y: F64) -> tuple[float, F64, F64]:
    """Return the summed logistic loss and its first and second derivatives in the scores."""
    t = np.exp(-np.abs(z))
    mean = np.where(z > 0, 1.0, t) / (1.0 + t)
    loss = float(np.sum(np.maximum(z, 0.0) - y * z + np.log1p(t)))
    return loss, mean - y, mean * (1.0 - mean)


# --- random effects ----------------------------------------------------------------------


@dataclass(frozen=True)
class EntityProblem:
    """Many small problems: every coefficient has L2 weight 1, the intercept's too.

    Attributes
    ----------
    name
        As printed.
    block
        The rows, grouped by entity, with local columns.
    offset
        (n,) scores added before the entity's own.
    sample
        Entities, ascending, which stand for all: slow programs fit only these, and every
        program is judged by these.
    """

    name: str
    block: EntityBlock
    offset: F64
    sample: I64

    @property
    def l2(self) -> float:
        """L2 weight of every coefficient."""
        return L2

    def rows(self, e: int) -> slice:
        """Return entity `e`'s rows."""
        return slice(int(self.block.row_ptr[e]), int(self.block.row_ptr[e + 1]))

    def coefficients(self, e: int) -> slice:
        """Return entity `e`'s part of a ragged coefficient array."""
        pointers = self.block.coefficient_ptr
        return slice(int(pointers[e]), int(pointers[e + 1]))

    def dense(self, e: int) -> tuple[F64, F64, F64]:
        """Return entity `e`'s design with a leading constant column, labels and offsets."""
        block, rows, columns = self.block, self.rows(e), self.coefficients(e)
        counts = np.diff(block.indptr[rows.start : rows.stop + 1])
        stored = slice(block.indptr[rows.start], block.indptr[rows.stop])
        x = np.zeros((counts.size, columns.stop - columns.start))
        x[:, 0] = 1.0
        x[np.repeat(np.arange(counts.size), counts), 1 + block.indices[stored]] = block.values[
            stored
        ]
        return x, block.response[rows], self.offset[rows]

    def block_diagonal(self) -> scipy.sparse.csr_matrix:
        """Return all entities' designs, constant columns included, as one (n, sum d) matrix."""
        block = self.block
        counts = np.diff(block.indptr)
        first = np.repeat(block.coefficient_ptr[:-1], np.diff(block.row_ptr))
        indptr = block.indptr + np.arange(block.n_rows + 1)
        indices = np.empty(indptr[-1], np.int32)
        values = np.ones(indptr[-1])
        own = np.arange(block.indptr[-1]) + np.repeat(np.arange(block.n_rows), counts) + 1
        indices[indptr[:-1]] = first
        indices[own] = np.repeat(first, counts) + 1 + block.indices
        values[own] = block.values
        shape = (block.n_rows, int(block.coefficient_ptr[-1]))
        return scipy.sparse.csr_matrix((values, indices, indptr.astype(np.int32)), shape)

    def of_sample(self, coefficients: F64) -> F64:
        """Return the sample's part of the ragged coefficients of all entities."""
        return np.concatenate([coefficients[self.coefficients(int(e))] for e in self.sample])

    @cached_property
    def reference(self) -> tuple[F64, float, float]:
        """The sample's optimum: coefficients, objective, largest relative gradient norm."""
        thetas, total, worst = [], 0.0, 0.0
        for e in self.sample:
            x, y, offset = self.dense(int(e))
            theta, value, relative_norm = dense_newton(x, y, offset, self.l2, 1e-14)
            thetas.append(theta)
            total += value
            worst = max(worst, relative_norm)
        return np.concatenate(thetas), total, worst

    def judge(self, coefficients: F64) -> Accuracy:
        """Compare the sample's coefficients with the reference."""
        best, best_value, _ = self.reference
        value, first = 0.0, 0
        for e in self.sample:
            x, y, offset = self.dense(int(e))
            theta = coefficients[first : first + x.shape[1]]
            value += logistic(offset + x @ theta, y)[0] + 0.5 * self.l2 * float(theta @ theta)
            first += theta.size
        return _accuracy(value, best_value, coefficients - best)

    def describe(self) -> str:
        """Say what it is, in one sentence."""
        block = self.block
        rows, features = np.diff(block.row_ptr), np.diff(block.coefficient_ptr) - 1
        of_sample = rows[self.sample]
        one_class = 1.0 - _two_classes(block).mean()
        offsets = "offsets of sd 0.5" if self.offset.any() else "no offsets"
        return (
            f"{block.n_entities:,} entities, {block.n_rows:,} rows (mean {rows.mean():.1f}, "
            f"largest {rows.max():,}), {block.indices.size / block.n_rows:.0f} features a row, "
            f"{features.mean():.1f} distinct per entity, {100 * one_class:.0f} % of entities with "
            f"labels of one class, {offsets}. Sample: {self.sample.size:,} entities, "
            f"mean {of_sample.mean():.1f} rows."
        )


def entity_problem(
    name: str,
    entities: int,
    *,
    mean_rows: float,
    features_per_row: int,
    features_per_entity: int,
    sample: int,
    seed: int,
) -> EntityProblem:
    """Draw entities whose number of rows is geometric.

    Each entity has a pool of `features_per_entity` features out of a global space, popular
    ones more often; each of its rows has `features_per_row` different ones of the pool.
    """
    rng = np.random.default_rng(seed)
    rows = rng.geometric(1.0 / mean_rows, entities)
    shared = 0.3 * rng.standard_normal(GLOBAL_FEATURES)
    row_ptr = np.concatenate(([0], np.cumsum(rows)))
    n = int(row_ptr[-1])
    indices = np.empty((n, features_per_row), np.uint32)
    values = (0.5 * rng.standard_normal((n, features_per_row))).astype(np.float32)
    offset = (0.5 * rng.standard_normal(n)).astype(np.float32).astype(np.float64)
    scores = offset.copy()
    sizes = np.empty(entities, np.int64)
    for e in range(entities):
        own = slice(row_ptr[e], row_ptr[e + 1])
        drawn = GLOBAL_FEATURES * rng.random(4 * features_per_entity) ** 2
        pool = rng.permutation(np.unique(drawn.astype(np.int64)))[:features_per_entity]
        slopes = shared[pool] + 0.5 * rng.standard_normal(pool.size)
        draw = rng.random((rows[e], pool.size))
        chosen = np.argpartition(draw, features_per_row, axis=1)[:, :features_per_row]
        used, local = np.unique(chosen, return_inverse=True)
        indices[own] = local.reshape(chosen.shape)
        scores[own] += 0.7 * rng.standard_normal() + np.sum(values[own] * slopes[chosen], axis=1)
        sizes[e] = used.size
    response = (rng.random(n) < 1.0 / (1.0 + np.exp(-scores))).astype(np.float64)
    block = EntityBlock(
        row_ptr=row_ptr,
        coefficient_ptr=np.concatenate(([0], np.cumsum(sizes + 1))),
        indptr=np.arange(n + 1, dtype=np.int64) * features_per_row,
        indices=indices.ravel(),
        values=values.ravel(),
        response=response,
        weight=np.ones(n),
    )
    return EntityProblem(name, block, offset, _sample(block, sample, rng))


def without_offsets(problem: EntityProblem) -> EntityProblem:
    """Return the same rows for programs that take no offset and no entity of one class."""
    block = problem.block
    kept = np.flatnonzero(_two_classes(block))
    counts = np.diff(block.row_ptr)
    own_rows = np.flatnonzero(np.isin(np.repeat(np.arange(block.n_entities), counts), kept))
    width = int(block.coefficient_ptr[-1])
    design = CsrMatrix(block.indptr, block.indices, block.values, width).take(own_rows)
    sizes = np.diff(block.coefficient_ptr)[kept]
    block = EntityBlock(
        row_ptr=np.concatenate(([0], np.cumsum(counts[kept]))),
        coefficient_ptr=np.concatenate(([0], np.cumsum(sizes))),
        indptr=design.indptr,
        indices=design.indices,
        values=design.values,
        response=block.response[own_rows],
        weight=block.weight[own_rows],
    )
    sample = _sample(block, problem.sample.size, np.random.default_rng(0))
    name = f"{problem.name} without offsets"
    return EntityProblem(name, block, np.zeros(block.n_rows), sample)


def _two_classes(block: EntityBlock) -> NDArray[np.bool_]:
    positives = np.add.reduceat(block.response, block.row_ptr[:-1])
    return (positives > 0) & (positives < np.diff(block.row_ptr))


def _sample(block: EntityBlock, size: int, rng: np.random.Generator) -> I64:
    """Draw every k-th entity in order of rows: the sample has the mix of sizes of the whole."""
    by_rows = np.argsort(np.diff(block.row_ptr), kind="stable")
    size = min(size, block.n_entities)
    steps = (np.arange(size) + rng.random()) * block.n_entities / size
    return np.sort(by_rows[steps.astype(np.int64)])


def dense_newton(
    x: F64, y: F64, offset: F64, l2: float, tolerance: float
) -> tuple[F64, float, float]:
    """Minimise by damped Newton until the gradient has fallen by `tolerance` or stalls.

    Returns
    -------
    tuple
        Coefficients, objective, and the gradient's norm relative to the one at zero.
    """
    theta = np.zeros(x.shape[1])
    z = offset
    loss, d1, d2 = logistic(z, y)
    value = loss
    norms: list[float] = []
    while True:
        gradient = x.T @ d1 + l2 * theta
        norms.append(float(np.linalg.norm(gradient)))
        stalled = len(norms) > 1 and norms[-1] <= 1e-9 * norms[0] and norms[-1] > 0.5 * norms[-2]
        if norms[-1] <= tolerance * norms[0] or stalled or len(norms) > 100:
            return theta, value, norms[-1] / norms[0]
        hessian = (x.T * d2) @ x
        hessian[np.diag_indices_from(hessian)] += l2
        step = -np.linalg.solve(hessian, gradient)
        move, slope, t = x @ step, float(gradient @ step), 1.0
        while True:
            new_theta, new_z = theta + t * step, z + t * move
            loss, d1, d2 = logistic(new_z, y)
            new_value = loss + 0.5 * l2 * float(new_theta @ new_theta)
            if new_value <= value + 1e-4 * t * slope + 1e-12 * abs(value) or t < 1e-9:
                break
            t *= 0.5
        theta, z, value = new_theta, new_z, new_value


# --- fixed effect ------------------------------------------------------------------------


@dataclass(frozen=True)
class FixedProblem:
    """One large sparse problem: slopes have L2 weight 1; no offsets.

    Attributes
    ----------
    name
        As printed.
    matrix
        (n, d) double precision with 32-bit indices: what SciPy and scikit-learn like best.
    response
        (n,) labels.
    intercept_l2
        L2 weight of the intercept: 0, or 1 for programs that cannot leave it out.
    """

    name: str
    matrix: scipy.sparse.csr_matrix
    response: F64
    intercept_l2: float

    @property
    def l2(self) -> float:
        """L2 weight of every slope."""
        return L2

    @cached_property
    def penalty(self) -> F64:
        """L2 weight per coefficient, the intercept's first."""
        penalty = np.full(self.matrix.shape[1] + 1, self.l2)
        penalty[0] = self.intercept_l2
        return penalty

    @property
    def design(self) -> CsrMatrix:
        """The matrix as gdmix takes it: 32-bit unsigned indices, single precision."""
        matrix = self.matrix
        return CsrMatrix(
            matrix.indptr.astype(np.int64),
            matrix.indices.astype(np.uint32),
            matrix.data.astype(np.float32),
            matrix.shape[1],
        )

    def objective(self, theta: F64) -> tuple[float, F64]:
        """Return value and gradient."""
        loss, d1, _ = logistic(self.matrix @ theta[1:] + theta[0], self.response)
        weighted = self.penalty * theta
        return loss + 0.5 * float(theta @ weighted), self.transposed(d1) + weighted

    def transposed(self, d1: F64) -> F64:
        """Return the gradient of the loss, given its derivatives in the scores."""
        return np.concatenate(([d1.sum()], self.matrix.T @ d1))

    @cached_property
    def reference(self) -> tuple[F64, float, float]:
        """The optimum: coefficients, objective, relative gradient norm."""
        return _sparse_newton(self, 1e-12)

    def judge(self, coefficients: F64) -> Accuracy:
        """Compare coefficients, the intercept first, with the reference."""
        best, best_value, _ = self.reference
        return _accuracy(self.objective(coefficients)[0], best_value, coefficients - best)

    def describe(self) -> str:
        """Say what it is, in one sentence."""
        counts = np.bincount(self.matrix.indices, minlength=self.matrix.shape[1])
        intercept = "unpenalised" if self.intercept_l2 == 0.0 else "penalised like the slopes"
        return (
            f"{self.matrix.shape[0]:,} rows, {self.matrix.nnz // self.matrix.shape[0]} features a "
            f"row out of {self.matrix.shape[1]:,} in random order, frequencies by a power law (the "
            f"most frequent in {counts.max():,} rows, the median one in "
            f"{int(np.median(counts)):,}), "
            f"{100 * self.response.mean():.0f} % positive labels, intercept {intercept}."
        )


def fixed_problem(rows: int, *, features_per_row: int, dimension: int, seed: int) -> FixedProblem:
    """Draw rows of distinct ids, the j-th most frequent in about 1 / j; half are indicators.

    Columns are numbered at random: an order by frequency, which real ids do not have, would help
    the cache.
    """
    rng = np.random.default_rng(seed)
    columns = _power_law(rng, (rows, features_per_row), dimension)
    columns.sort(axis=1)
    while (again := np.flatnonzero((columns[:, 1:] == columns[:, :-1]).any(axis=1))).size:
        some = columns[again]
        repeated = np.zeros(some.shape, bool)
        repeated[:, 1:] = some[:, 1:] == some[:, :-1]
        some[repeated] = _power_law(rng, int(repeated.sum()), dimension)
        some.sort(axis=1)
        columns[again] = some
    columns = np.sort(rng.permutation(dimension).astype(np.int32)[columns], axis=1)
    sizes = np.abs(0.8 * rng.standard_normal(columns.shape)).astype(np.float32)
    values = np.where(rng.random(columns.shape) < 0.5, np.float32(1.0), sizes)
    matrix = scipy.sparse.csr_matrix(
        (
            values.ravel().astype(np.float64),
            columns.ravel(),
            np.arange(rows + 1, dtype=np.int32) * np.int32(features_per_row),
        ),
        shape=(rows, dimension),
    )
    scores = matrix @ (0.4 * rng.standard_normal(dimension)) - 1.0
    response = (rng.random(rows) < 1.0 / (1.0 + np.exp(-scores))).astype(np.float64)
    return FixedProblem("fixed effect", matrix, response, 0.0)


def with_penalised_intercept(problem: FixedProblem) -> FixedProblem:
    """Return the problem for programs that treat the intercept as one more slope."""
    return replace(problem, name=f"{problem.name}, penalised intercept", intercept_l2=L2)


def _power_law(
    rng: np.random.Generator, shape: int | tuple[int, int], dimension: int
) -> NDArray[np.int32]:
    return np.minimum(dimension ** rng.random(shape), dimension).astype(np.int32) - 1


def _sparse_newton(problem: FixedProblem, tolerance: float) -> tuple[F64, float, float]:
    """Minimise by Newton's method, its steps by conjugate gradients scaled by the diagonal."""
    x, y, penalty = problem.matrix, problem.response, problem.penalty
    squared = x.multiply(x).T.tocsr()
    theta = np.zeros(penalty.size)
    z = np.zeros(y.size)
    loss, d1, d2 = logistic(z, y)
    value = loss
    norms: list[float] = []
    while True:
        gradient = problem.transposed(d1) + penalty * theta
        norms.append(float(np.linalg.norm(gradient)))
        stalled = len(norms) > 1 and norms[-1] <= 1e-9 * norms[0] and norms[-1] > 0.5 * norms[-2]
        if norms[-1] <= tolerance * norms[0] or stalled or len(norms) > 100:
            return theta, value, norms[-1] / norms[0]
        inverse = 1.0 / (np.concatenate(([d2.sum()], squared @ d2)) + penalty)
        step, residual = np.zeros_like(theta), -gradient
        direction = inverse * residual
        fit = float(residual @ direction)
        while np.linalg.norm(residual) > 1e-4 * norms[-1]:
            image = d2 * (x @ direction[1:] + direction[0])
            product = problem.transposed(image) + penalty * direction
            length = fit / float(direction @ product)
            step += length * direction
            residual -= length * product
            new_fit = float(residual @ (inverse * residual))
            direction = inverse * residual + new_fit / fit * direction
            fit = new_fit
        move, slope, t = x @ step[1:] + step[0], float(gradient @ step), 1.0
        while True:
            new_theta, new_z = theta + t * step, z + t * move
            loss, d1, d2 = logistic(new_z, y)
            new_value = loss + 0.5 * float(new_theta @ (penalty * new_theta))
            if new_value <= value + 1e-4 * t * slope + 1e-12 * abs(value) or t < 1e-9:
                break
            t *= 0.5
        theta, z, value = new_theta, new_z, new_value


def _accuracy(value: float, best_value: float, difference: F64) -> Accuracy:
    size = np.abs(difference)
    if not np.isfinite(size).all():
        return Accuracy(np.inf, np.inf, np.inf)
    suboptimality = max(0.0, (value - best_value) / abs(best_value))
    return Accuracy(suboptimality, float(size.max()), float(np.median(size)))
