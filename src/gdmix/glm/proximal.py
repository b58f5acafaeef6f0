"""Proximal Newton for one large problem: an L1 penalty, and bounds on the coefficients.

The loop is that of `proximal_newton`, and so is the way in which the quadratic model is minimised.
Where the features are few, the Hessian is one matrix. Where they are many, coordinate descent runs
over the columns of the design and keeps the scores' move up to date (newGLMNET: Yuan, Ho & Lin,
JMLR 13, 2012), on the coefficients alone that are not at rest at zero or a bound; and Newton's step
for the free coefficients is by conjugate gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.compiled import kernel
from gdmix.glm.large import MAX_DIRECT_COEFFICIENTS, MAX_DIRECT_NNZ_PER_ROW, SparseMap
from gdmix.glm.losses import SQUARED, classifies_all
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Labels, Minimum, conjugate_gradients, search_rows
from gdmix.glm.objective import dot
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.primal_newton import MAX_INTERCEPT_STEP
from gdmix.glm.proximal_newton import (
    COEFFICIENT_BUFFERS,
    LEAST_DAMPING,
    MAX_DAMPING,
    ROUGHEST,
    ROUNDING,
    UNBOUNDED,
    least_subgradient,
    minimize_model,
    minimum_along,
    recedes,
    runs_away,
)
from gdmix.glm.status import FitStatus

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# A dense design of up to so many columns has its Hessian as a matrix, however many rows.
MAX_DENSE_COEFFICIENTS = 1024
MAX_ROUNDS = 6
# Sweeps go on while each lowers the violation by a fifth at least, which the first few may not.
MIN_SWEEPS, MAX_SWEEPS = 6, 50
SLOW = 0.8
# Of conjugate gradients, at first: a face that is yet to change need not be minimised.
FIRST_LIMIT = 20
MAX_FACES = 8
# A step of which so small a share pays runs along a direction without curvature.
FLAT = 0.01


def fit_large_proximal(
    design: CsrMatrix,
    response: F64,
    weight: F64,
    offset: F64,
    *,
    loss: int,
    penalty: QuadraticPenalty,
    l1: F64,
    lower: F64,
    upper: F64,
    intercept: bool = True,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
    start: F64 | None = None,
    threads: int = 1,
) -> Minimum:
    """Minimise the objective of `gdmix.glm.proximal_newton`.

    Parameters
    ----------
    design
        (n, d - 1) features.
    response, weight, offset
        (n,).
    loss
        A loss of `gdmix.glm.losses`.
    penalty
        Of d coefficients, the intercept's first.
    l1
        (d,) L1 weight per coefficient, or empty: none.
    lower, upper
        (d,) bounds, infinite where there is none, or empty; a missing intercept's do not matter.
    tolerance
        Stop at this norm of the least subgradient (`proximal_newton.least_subgradient`) relative
        to the one at the feasible point nearest zero.
    start
        (d,) start coefficients; not used if they are worse than zero.
    threads
        The result depends on it only through the order of sums.

    Returns
    -------
    Minimum
        Its `gradient_norm` is the norm of the least subgradient, its `value` has the L1 term.
    """
    n = response.size
    l1 = l1 if l1.size else np.zeros(design.n_columns + 1)
    terms = _Terms(penalty, l1, *_finite_bounds(lower, upper, l1.size, intercept))
    labels = Labels(response, weight, offset, loss, threads)
    whole = SparseMap(design, intercept, threads)
    model = _Model(whole, design)
    d1, d2, new_z, new_d1, new_d2 = (memory.empty(n) for _ in range(5))

    theta = zero = terms.clipped(np.zeros(whole.size))
    z = memory.copy(offset)
    if zero.any():
        z += whole.scores(zero)
    value = labels.evaluate(z, d1, d2)
    gradient = whole.transposed(d1)
    reference = _norm(terms.least_subgradients(zero, gradient + penalty.product(zero)))
    start = zero if start is None else terms.clipped(start)
    if (start != zero).any():
        np.add(offset, whole.scores(start), out=new_z)
        new_value = labels.evaluate(new_z, new_d1, new_d2)
        if new_value + terms.value(start) < value + terms.value(zero):
            theta, value = start, new_value
            z, new_z, d1, new_d1, d2, new_d2 = new_z, z, new_d1, d1, new_d2, d2
            gradient = whole.transposed(d1)

    endless = intercept and penalty.matrix is None
    endless = endless and runs_away(
        loss, n, response, weight, penalty.weights, l1, terms.lower, terms.upper
    )
    status = FitStatus.MAX_ITERATIONS
    previous_norm = 0.0
    below_noise = False
    iteration = 0
    while True:
        pull = penalty.product(theta)
        gradient += pull
        norm = _norm(terms.least_subgradients(theta, gradient))
        if norm <= tolerance * reference:
            status = FitStatus.CONVERGED
            break
        if below_noise and norm > 0.5 * previous_norm:
            status = FitStatus.STALLED
            break
        if iteration == max_iterations:
            break
        previous_norm = norm
        iteration += 1

        noise = 1e-13 * abs(value + terms.value(theta))
        rough = min(ROUGHEST, math.sqrt(norm / max(reference, norm)))
        accuracy = 0.0 if loss == SQUARED else rough
        enough = max(accuracy * norm, 0.3 * tolerance * reference)
        t, damping = 0.0, 0.0
        while True:
            point = model.minimum(theta, gradient, d2, terms, damping, enough)
            step = point - theta
            if endless and abs(step[0]) > MAX_INTERCEPT_STEP:
                step *= MAX_INTERCEPT_STEP / abs(step[0])
                point = theta + step
            move = whole.scores(step)
            chord = terms.l1_change(theta, point)
            slope = _inner(gradient, step) + chord
            cross, curvature = _inner(pull, step) + chord, penalty.between(step, step)
            below_noise = -slope <= noise
            t, new_value = search_rows(
                labels, z, move, value, slope, cross, curvature, noise, new_z, new_d1, new_d2
            )
            if t > 0.0 or abs(slope) <= noise or damping > MAX_DAMPING:
                break
            damping = max(LEAST_DAMPING, 100.0 * damping)
        if t == 0.0:
            status = FitStatus.STALLED
            break
        theta, value = point if t == 1.0 else theta + t * step, new_value
        z, new_z = new_z, z
        d1, new_d1 = new_d1, d1
        d2, new_d2 = new_d2, d2
        gradient = whole.transposed(d1)

    if status != FitStatus.CONVERGED:
        floor = whole.rounding_floor(theta, offset, d1, d2, penalty.diagonal)
        status = FitStatus.CONVERGED if norm <= floor + ROUNDING * float(l1.sum()) else status
    if endless or (
        penalty.matrix is None
        and recedes(theta, penalty.weights, l1, terms.lower, terms.upper)
        and classifies_all(loss, n, z, offset, response, weight)
    ):
        status = FitStatus.SEPARATED
    if not (np.isfinite(theta).all() and np.isfinite(norm)):
        status, theta = FitStatus.NOT_FINITE, zero
    return Minimum(theta, status, iteration, whole.passes, norm, value + terms.value(theta))


def _finite_bounds(lower: F64, upper: F64, d: int, intercept: bool) -> tuple[F64, F64]:
    lower = np.maximum(lower, -UNBOUNDED) if lower.size else np.full(d, -UNBOUNDED)
    upper = np.minimum(upper, UNBOUNDED) if upper.size else np.full(d, UNBOUNDED)
    if not intercept:
        lower[0] = upper[0] = 0.0
    return lower, upper


@dataclass(frozen=True)
class _Terms:
    """What the objective has besides the loss, and the bounds, all arrays (d,)."""

    penalty: QuadraticPenalty
    l1: F64
    lower: F64
    upper: F64

    def value(self, theta: F64) -> float:
        return 0.5 * self.penalty.between(theta, theta) + _inner(self.l1, np.abs(theta))

    def l1_change(self, theta: F64, point: F64) -> float:
        return _inner(self.l1, np.abs(point) - np.abs(theta))

    def clipped(self, theta: F64) -> F64:
        return np.minimum(np.maximum(theta, self.lower), self.upper)

    def least_subgradients(self, theta: F64, slope: F64) -> F64:
        result = np.empty(theta.size)
        _fill_subgradients(theta, slope, self.l1, self.lower, self.upper, result)
        return result

    def free(self, theta: F64) -> NDArray[np.bool_]:
        """Which coefficients the objective is smooth about."""
        inside = (self.lower < theta) & (theta < self.upper)
        return np.asarray(inside & ((theta != 0.0) | (self.l1 == 0.0)))

    def stopped(self, theta: F64, step: F64) -> F64:
        """Return ``theta + step``, where what would cross zero or a bound stops there."""
        point = theta + step
        point[(self.l1 > 0.0) & (point * theta < 0.0)] = 0.0
        return self.clipped(point)


class _Model:
    """Minimises the quadratic model of the objective about a point."""

    def __init__(self, whole: SparseMap, design: CsrMatrix) -> None:
        self._whole = whole
        few_values = design.nnz <= MAX_DIRECT_NNZ_PER_ROW * design.n_rows
        self._direct = whole.size <= MAX_DIRECT_COEFFICIENTS and few_values
        self._direct = self._direct or (design.is_dense and whole.size <= MAX_DENSE_COEFFICIENTS)
        self._columns = None if self._direct else _Columns.of(design)

    def minimum(
        self, theta: F64, gradient: F64, d2: F64, terms: _Terms, damping: float, enough: float
    ) -> F64:
        """Return the point to which the step leads, (d,).

        Parameters
        ----------
        damping
            A ridge, relative to the largest curvature.
        enough
            Norm of the model's least subgradient that is small enough.
        """
        weights = terms.penalty.weights
        if damping > 0.0:
            weights = weights + damping * float(self._whole.hessian_diagonal(d2).max(initial=0.0))
        curvature = QuadraticPenalty(weights, terms.penalty.matrix)
        if self._columns is not None:
            by_columns = _ModelByColumns(
                self._whole, self._columns, theta, gradient, d2, curvature, terms
            )
            return by_columns.minimize(enough)
        d = theta.size
        hessian = self._whole.hessian(d2)
        hessian[np.diag_indices_from(hessian)] += weights
        if curvature.matrix is not None:
            hessian += curvature.matrix
        target = np.empty(d)
        buffers = np.empty((COEFFICIENT_BUFFERS, d)), np.empty(d, np.int64), np.empty((d, d))
        minimize_model(
            d, hessian, gradient, weights, terms.l1, terms.lower, terms.upper, theta, enough,
            target, *buffers,
        )  # fmt: skip
        return target


@dataclass(frozen=True)
class _Columns:
    """A sparse design by columns: column j is the slice ``starts[j]:starts[j + 1]``."""

    starts: I64
    rows: NDArray[np.uint32]
    values: NDArray[np.float32]

    @staticmethod
    def of(design: CsrMatrix) -> _Columns:
        design = design.sparse()
        starts = memory.zeros(design.n_columns + 1, np.int64)
        first, last = int(design.indptr[0]), int(design.indptr[-1])
        _count_columns(design.indices[first:last], starts)
        np.cumsum(starts, out=starts)
        rows = memory.empty(last - first, np.uint32)
        values = memory.empty(last - first, np.float32)
        cursor = memory.copy(starts[:-1])
        _fill_columns(design.indptr, design.indices, design.values, cursor, rows, values)
        return _Columns(starts, rows, values)


class _ModelByColumns:
    """The quadratic model about `theta`: ``gradient' s + s' H s / 2`` and the L1 term."""

    def __init__(
        self,
        whole: SparseMap,
        columns: _Columns,
        theta: F64,
        gradient: F64,
        d2: F64,
        curvature: QuadraticPenalty,
        terms: _Terms,
    ) -> None:
        self._whole, self._columns, self._terms = whole, columns, terms
        self._theta, self._gradient, self._d2, self._curvature = theta, gradient, d2, curvature
        self._diagonal = whole.hessian_diagonal(d2) + curvature.diagonal
        self._matrix = np.empty((0, 0)) if curvature.matrix is None else curvature.matrix
        self._point = theta.copy()
        # d2 and X s side by side: an entry of a column then costs one cache line.
        self._pairs = memory.zeros(2 * d2.size).reshape(-1, 2)
        self._pairs[:, 0] = d2
        self._product = np.zeros(theta.size if self._matrix.size else 0)  # of the matrix and s
        self._limit = FIRST_LIMIT

    def minimize(self, enough: float) -> F64:
        """Return the point where the norm of the least subgradient is `enough`, about."""
        slope = self._gradient
        subgradient = self._terms.least_subgradients(self._theta, slope)
        places = np.flatnonzero((subgradient != 0.0) | self._terms.free(self._theta))
        for _ in range(MAX_ROUNDS):
            if self._sweep(places, enough):
                break
            slope = self._slope(self._point, self._pairs[:, 1])
            if _norm(self._terms.least_subgradients(self._point, slope)) <= enough:
                break
            self._step_on_faces(slope, enough)
        return self._point

    def _sweep(self, places: I64, enough: float) -> bool:
        """Minimise in one coefficient after the other; return whether that was enough."""
        terms, columns = self._terms, self._columns
        left = places.copy()
        count, previous = left.size, math.inf
        for k in range(MAX_SWEEPS):
            count, violation = _sweep_columns(
                left[:count], columns.starts, columns.rows, columns.values, self._pairs,
                self._gradient, self._diagonal, self._curvature.weights, self._matrix,
                self._product, self._theta, terms.l1, terms.lower, terms.upper, self._point,
            )  # fmt: skip
            if violation <= enough:
                return True
            if k + 1 >= MIN_SWEEPS and violation > SLOW * previous:
                break
            previous = violation
        return False

    def _step_on_faces(self, slope: F64, enough: float) -> None:
        """Take Newton's step in the free coefficients, whichever way lowers the model more.

        Either as far along the step as pays, through zeros; or what would cross zero or a bound
        stops there, and the rest is minimised again. Where the face is flat in some direction the
        step runs far along it, and only the first will do.

        Parameters
        ----------
        slope
            Gradient of the model's smooth part here.
        """
        step, crossing, solved = self._face_step(self._point, slope, enough)
        along = self._whole.scores(step)
        t, straight = self._furthest(slope, step, along)
        move = self._pairs[:, 1] + t * along
        if not crossing:
            self._limit *= 1 if solved else 2
        elif t >= FLAT:
            repaired, repaired_move = self._repaired(step, enough)
            if self._rise(slope, repaired, repaired_move) < self._rise(slope, straight, move):
                straight, move = repaired, repaired_move
        self._point, self._pairs[:, 1] = straight, move
        if self._matrix.size:
            self._product = self._matrix @ (straight - self._theta)

    def _face_step(self, point: F64, slope: F64, enough: float) -> tuple[F64, bool, bool]:
        """Return the step, whether some cross zero or a bound, and whether it is accurate."""
        free = self._terms.free(point)
        subgradient = np.where(free, self._terms.least_subgradients(point, slope), 0.0)
        if _norm(subgradient) <= 0.3 * enough:
            return np.zeros(free.size), False, True
        has_curvature = free & (self._diagonal > 0.0)
        inverse = np.divide(1.0, self._diagonal, out=np.zeros(free.size), where=has_curvature)

        def product(direction: F64) -> F64:
            z = self._whole.scores(direction)
            z *= self._d2
            return free * (self._whole.transposed(z) + self._curvature.product(direction))

        step, solved = conjugate_gradients(
            product, lambda residual: inverse * residual, subgradient, 0.3 * enough, self._limit
        )
        crossing = bool((self._terms.stopped(point, step) != point + step).any())
        return step, crossing, solved

    def _furthest(self, slope: F64, step: F64, along: F64) -> tuple[float, F64]:
        """Return how far along the step the model is least, and the point there."""
        terms = self._terms
        bend = _inner(self._d2 * along, along) + self._curvature.between(step, step)
        t, place = best_length(self._point, step, slope, bend, terms.l1, terms.lower, terms.upper)
        point = terms.clipped(self._point + t * step)
        if place >= 0:
            point[place] = 0.0
        return t, point

    def _repaired(self, step: F64, enough: float) -> tuple[F64, F64]:
        """Return the point after the step and those that mend what was stopped on the way."""
        point, move = self._point, memory.copy(self._pairs[:, 1])
        for _ in range(MAX_FACES):
            stopped = self._terms.stopped(point, step)
            move += self._whole.scores(stopped - point)
            point = stopped
            step, crossing, _ = self._face_step(point, self._slope(point, move), enough)
            if not crossing:
                move += self._whole.scores(step)
                point = point + step
                break
        return point, move

    def _rise(self, slope: F64, point: F64, move: F64) -> float:
        """Return by how much the model is higher at `point` than here."""
        change, along = point - self._point, move - self._pairs[:, 1]
        bend = _inner(self._d2 * along, along) + self._curvature.between(change, change)
        return _inner(slope, change) + self._terms.l1_change(self._point, point) + 0.5 * bend

    def _slope(self, point: F64, move: F64) -> F64:
        """Return the gradient of the model's smooth part at `point`."""
        slope = self._whole.transposed(self._d2 * move)
        slope += self._gradient
        slope += self._curvature.product(point - self._theta)
        return slope


def best_length(
    x: F64, step: F64, slope: F64, bend: float, l1: F64, lower: F64, upper: F64
) -> tuple[float, int]:
    """Return the t >= 0 where a quadratic and the L1 term are least on ``x + t step``.

    The derivative in t grows linearly, and jumps where a coefficient crosses zero.

    Parameters
    ----------
    slope, bend
        Gradient of the quadratic at `x`; its second derivative in t.

    Returns
    -------
    tuple[float, int]
        t, no further than the bounds allow, and which coefficient is zero there; or -1.
    """
    moving = np.flatnonzero(step)
    x, step, l1 = x[moving], step[moving], l1[moving]
    signs = np.where(x != 0.0, np.sign(x), np.sign(step))
    derivative = _inner(slope[moving], step) + _inner(l1 * signs, step)
    if derivative >= 0.0:
        return 0.0, -1
    limit = float((np.where(step > 0.0, upper[moving] - x, lower[moving] - x) / step).min())
    crossing = np.flatnonzero((x * step < 0.0) & (l1 > 0.0))
    zeros = -x[crossing] / step[crossing]
    order = np.argsort(zeros, kind="stable")
    crossing, zeros = crossing[order], zeros[order]
    jumps = 2.0 * l1[crossing] * np.abs(step[crossing])
    after = derivative + bend * zeros + np.cumsum(jumps)
    k = int(np.argmax(after >= 0.0)) if (after >= 0.0).any() else zeros.size
    if k < zeros.size and after[k] - jumps[k] < 0.0:
        t, place = float(zeros[k]), int(moving[crossing[k]])
    else:
        t, place = -(derivative + float(jumps[:k].sum())) / max(bend, 1e-300), -1
    return (t, place) if t <= limit else (limit, -1)


def _inner(a: F64, b: F64) -> float:
    return dot(a.size, a, b)


def _norm(a: F64) -> float:
    return math.sqrt(_inner(a, a))


@kernel
def _fill_subgradients(
    theta: F64, slope: F64, l1: F64, lower: F64, upper: F64, result: F64
) -> None:
    for j in range(theta.size):
        result[j] = least_subgradient(theta[j], slope[j], l1[j], lower[j], upper[j])


@kernel
def _count_columns(indices: NDArray[np.uint32], counts: I64) -> None:
    """Count the values of each column, after its own place."""
    for q in range(indices.size):
        counts[indices[q] + np.uint32(1)] += 1


@kernel
def _fill_columns(
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    cursor: I64,
    rows: NDArray[np.uint32],
    by_column: NDArray[np.float32],
) -> None:
    for i in range(indptr.size - 1):
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            target = cursor[indices[q]]
            rows[target] = i
            by_column[target] = values[q]
            cursor[indices[q]] = target + 1


@kernel
def _sweep_columns(
    places: I64,
    starts: I64,
    rows: NDArray[np.uint32],
    values: NDArray[np.float32],
    pairs: NDArray[np.float64],
    gradient: F64,
    diagonal: F64,
    weights: F64,
    matrix: NDArray[np.float64],
    product: F64,
    theta: F64,
    l1: F64,
    lower: F64,
    upper: F64,
    point: F64,
) -> tuple[int, float]:
    """Minimise the model in each of the listed coefficients in turn.

    Parameters
    ----------
    places
        Overwritten, from its start, with those that were not at rest at zero or a bound. The
        intercept's column is ones: without one it is at rest.
    pairs
        (n, 2): d2, and the scores' move, which is kept up to date as `product` and `point` are.

    Returns
    -------
    tuple[int, float]
        How many were not at rest; the norm of their least subgradients when they were visited.
    """
    kept = 0
    total = 0.0
    for k in range(places.size):
        j = places[k]
        slope = gradient[j] + weights[j] * (point[j] - theta[j])
        if matrix.size > 0:
            slope += product[j]
        curved = 0.0
        if j == 0:
            for i in range(pairs.shape[0]):
                curved += pairs[i, 0] * pairs[i, 1]
        else:
            for q in range(np.uint64(starts[j - 1]), np.uint64(starts[j])):
                pair = pairs[rows[q]]
                curved += values[q] * (pair[0] * pair[1])
        slope += curved
        own = least_subgradient(point[j], slope, l1[j], lower[j], upper[j])
        if own == 0.0 and (point[j] == 0.0 or point[j] == lower[j] or point[j] == upper[j]):
            continue
        places[kept] = j
        kept += 1
        total += own * own
        new = minimum_along(point[j], slope, diagonal[j], l1[j], lower[j], upper[j])
        change = new - point[j]
        if change == 0.0:
            continue
        point[j] = new
        if matrix.size > 0:
            row = matrix[j]
            for m in range(product.size):
                product[m] += change * row[m]
        if j == 0:
            for i in range(pairs.shape[0]):
                pairs[i, 1] += change
        else:
            for q in range(np.uint64(starts[j - 1]), np.uint64(starts[j])):
                pairs[rows[q], 1] += change * values[q]
    return kept, math.sqrt(total)
