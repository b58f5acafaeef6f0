"""The quadratic model of an objective with an L1 penalty and bounds, and ways to its minimum.

Where the features are few, the Hessian is one matrix (`ModelByMatrix`). Where they are many, steps
that choose which coefficients are zero or at a bound take turns with Newton's step, by conjugate
gradients, in those that are free. Who has all rows chooses by coordinate descent over the columns
of the design, which keeps the scores' move up to date (newGLMNET: Yuan, Ho & Lin, JMLR 13, 2012;
`ModelByColumns`). Where rows are divided among processes, all coefficients take a proximal gradient
step at once (SpaRSA: Wright, Nowak & Figueiredo, IEEE Trans. Signal Process. 57, 2009), scaled by
the Hessian's diagonal and no longer than it makes the model fall (`ModelByGradients`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.compiled import kernel
from gdmix.glm.group import ALONE, Group, any_rank, inner_products, largest, total
from gdmix.glm.large import SparseMap
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import conjugate_gradients
from gdmix.glm.objective import dot
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.proximal_newton import (
    COEFFICIENT_BUFFERS,
    least_subgradient,
    minimize_model,
    minimum_along,
)

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# A dense design of up to so many columns has its Hessian as a matrix, however many rows.
MAX_DENSE_COEFFICIENTS = 1024
MAX_ROUNDS = 6
# Sweeps go on while each lowers the violation by a fifth at least, which the first few may not.
MIN_SWEEPS, MAX_SWEEPS = 6, 50
SLOW = 0.8
# Gradient steps, until so many in a row leave the same coefficients free.
MAX_STEPS, SETTLED = 40, 2
LEAST_SCALE = 1e-3
# Of conjugate gradients, at first: a face that is yet to change need not be minimised.
FIRST_LIMIT = 20
MAX_FACES = 8
# A step of which so small a share pays runs along a direction without curvature.
FLAT = 0.01


@dataclass(frozen=True)
class Terms:
    """What the objective has besides the loss, and the bounds, all arrays (d,).

    In a group, d is the number of coefficients of the rank; numbers are those of all ranks.
    """

    penalty: QuadraticPenalty
    l1: F64
    lower: F64
    upper: F64
    group: Group = ALONE

    def with_ridge(self, weight: float) -> Terms:
        """Return the same with a larger L2 weight of every coefficient."""
        penalty = replace(self.penalty, weights=self.penalty.weights + weight)
        return replace(self, penalty=penalty)

    def value(self, theta: F64) -> float:
        """Return the penalty."""
        squares, magnitudes = self.inner(
            (theta, self.penalty.product(theta)), (self.l1, np.abs(theta))
        )
        return 0.5 * squares + magnitudes

    def l1_change(self, theta: F64, point: F64) -> float:
        """Return by how much the L1 penalty is higher at `point`."""
        return self.inner((self.l1, np.abs(point) - np.abs(theta)))[0]

    def clipped(self, theta: F64) -> F64:
        """Return the nearest feasible coefficients."""
        return np.minimum(np.maximum(theta, self.lower), self.upper)

    def least_subgradients(self, theta: F64, slope: F64) -> F64:
        """Return the least subgradient where the smooth part has the gradient `slope`."""
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

    def inner(self, *pairs: tuple[F64, F64]) -> list[float]:
        """Return inner products of vectors."""
        return inner_products(self.group, *pairs)

    def norm(self, vector: F64) -> float:
        """Return the norm of a vector."""
        return math.sqrt(self.inner((vector, vector))[0])

    def largest(self, vector: F64) -> float:
        """Return the largest entry, or zero."""
        return largest(self.group, float(vector.max(initial=0.0)))


class QuadraticModel(Protocol):
    """Minimises ``gradient' s + s' H s / 2 + l1 |theta + s|``, s within the bounds."""

    def minimum(self, theta: F64, gradient: F64, d2: F64, terms: Terms, enough: float) -> F64:
        """Return the point to which the step s leads, (d,).

        Parameters
        ----------
        gradient
            Of the smooth part of the objective at `theta`.
        d2
            (n,) second derivatives of the loss there.
        enough
            Norm of the model's least subgradient that is small enough.
        """


def model_of(design: SparseMap, rows: CsrMatrix | None) -> QuadraticModel:
    """Return the way that suits a design.

    Parameters
    ----------
    rows
        Of the design, if they are all here.
    """
    if design.is_direct or design.is_dense and design.total <= MAX_DENSE_COEFFICIENTS:
        return ModelByMatrix(design)
    return ModelByGradients(design) if rows is None else ModelByColumns(design, rows)


@dataclass(frozen=True)
class ModelByMatrix:
    """Has the Hessian as a matrix; the first rank minimises."""

    design: SparseMap

    def minimum(self, theta: F64, gradient: F64, d2: F64, terms: Terms, enough: float) -> F64:
        """Do as `QuadraticModel.minimum`."""
        hessian, matrix = self.design.hessian(d2), terms.penalty.whole_matrix()

        def solve(theta: F64, gradient: F64, weights: F64, l1: F64, lower: F64, upper: F64) -> F64:
            d = theta.size
            hessian[np.diag_indices_from(hessian)] += weights
            if matrix is not None:
                hessian[:] += matrix
            target = np.empty(d)
            buffers = np.empty((COEFFICIENT_BUFFERS, d)), np.empty(d, np.int64), np.empty((d, d))
            minimize_model(
                d, hessian, gradient, weights, l1, lower, upper, theta, enough, target, *buffers
            )
            return target

        own = theta, gradient, terms.penalty.weights, terms.l1, terms.lower, terms.upper
        return self.design.on_first(solve, *own)


class ModelByColumns:
    """Coordinate descent over the columns of a design, and Newton's step on faces."""

    def __init__(self, design: SparseMap, rows: CsrMatrix) -> None:
        self._design, self._columns = design, _Columns.of(rows)

    def minimum(self, theta: F64, gradient: F64, d2: F64, terms: Terms, enough: float) -> F64:
        """Do as `QuadraticModel.minimum`."""
        search = _ByColumns(self._design, theta, gradient, d2, terms, self._columns)
        return search.minimize(enough)


@dataclass(frozen=True)
class ModelByGradients:
    """Proximal gradient steps, and Newton's step on faces."""

    design: SparseMap

    def minimum(self, theta: F64, gradient: F64, d2: F64, terms: Terms, enough: float) -> F64:
        """Do as `QuadraticModel.minimum`."""
        move = memory.zeros(d2.size)
        search = _ByGradients(self.design, theta, gradient, d2, terms, move)
        return search.minimize(enough)


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


class _OnFaces(ABC):
    """One minimisation: choosing which coefficients are free, and Newton's step in these."""

    def __init__(
        self,
        design: SparseMap,
        theta: F64,
        gradient: F64,
        d2: F64,
        terms: Terms,
        move: F64,
    ) -> None:
        self._design, self._terms = design, terms
        self._theta, self._gradient, self._d2 = theta, gradient, d2
        self._diagonal = design.hessian_diagonal(d2) + terms.penalty.diagonal
        self._point = theta.copy()
        self._move = move  # of the scores: zeros, at first
        self._limit = FIRST_LIMIT

    @abstractmethod
    def _choose(self, enough: float) -> bool:
        """Lower the model until it is clear which coefficients are free, or it is `enough`."""

    def minimize(self, enough: float) -> F64:
        """Return the point where the norm of the least subgradient is `enough`, about."""
        for _ in range(MAX_ROUNDS):
            if self._choose(enough):
                break
            slope = self._slope(self._point, self._move)
            if self._terms.norm(self._terms.least_subgradients(self._point, slope)) <= enough:
                break
            self._step_on_faces(slope, enough)
        return self._point

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
        along = self._design.scores(step)
        t, straight = self._furthest(slope, step, along)
        move = self._move + t * along
        if not crossing:
            self._limit *= 1 if solved else 2
        elif t >= FLAT:
            repaired, repaired_move = self._repaired(step, enough)
            if self._rise(slope, repaired, repaired_move) < self._rise(slope, straight, move):
                straight, move = repaired, repaired_move
        self._point, self._move[:] = straight, move

    def _face_step(self, point: F64, slope: F64, enough: float) -> tuple[F64, bool, bool]:
        """Return the step, whether some cross zero or a bound, and whether it is accurate."""
        free = self._terms.free(point)
        subgradient = np.where(free, self._terms.least_subgradients(point, slope), 0.0)
        if self._terms.norm(subgradient) <= 0.3 * enough:
            return np.zeros(free.size), False, True
        has_curvature = free & (self._diagonal > 0.0)
        inverse = np.divide(1.0, self._diagonal, out=np.zeros(free.size), where=has_curvature)

        def product(direction: F64) -> F64:
            z = self._design.scores(direction)
            z *= self._d2
            return free * (self._design.transposed(z) + self._terms.penalty.product(direction))

        step, solved = conjugate_gradients(
            product,
            lambda residual: inverse * residual,
            subgradient,
            0.3 * enough,
            self._limit,
            group=self._terms.group,
        )
        crossing = (self._terms.stopped(point, step) != point + step).any()
        return step, any_rank(self._terms.group, crossing)[0], solved

    def _furthest(self, slope: F64, step: F64, along: F64) -> tuple[float, F64]:
        """Return how far along the step the model is least, and the point there."""
        t, place = best_length(self._point, step, slope, self._bend(step, along), self._terms)
        point = self._terms.clipped(self._point + t * step)
        if place >= 0:
            point[place] = 0.0
        return t, point

    def _repaired(self, step: F64, enough: float) -> tuple[F64, F64]:
        """Return the point after the step and those that mend what was stopped on the way."""
        point, move = self._point, memory.copy(self._move)
        for _ in range(MAX_FACES):
            stopped = self._terms.stopped(point, step)
            move += self._design.scores(stopped - point)
            point = stopped
            step, crossing, _ = self._face_step(point, self._slope(point, move), enough)
            if not crossing:
                move += self._design.scores(step)
                point = point + step
                break
        return point, move

    def _rise(self, slope: F64, point: F64, move: F64) -> float:
        """Return by how much the model is higher at `point` than here."""
        change, along = point - self._point, move - self._move
        rise = self._terms.inner((slope, change))[0] + self._terms.l1_change(self._point, point)
        return rise + 0.5 * self._bend(change, along)

    def _bend(self, step: F64, along: F64) -> float:
        """Return the model's second derivative along a step, given the scores' move."""
        of_rows = total(self._terms.group, dot(along.size, self._d2 * along, along))
        return of_rows + self._terms.inner((step, self._terms.penalty.product(step)))[0]

    def _slope(self, point: F64, move: F64) -> F64:
        """Return the gradient of the model's smooth part at `point`."""
        slope = self._design.transposed(self._d2 * move)
        slope += self._gradient
        slope += self._terms.penalty.product(point - self._theta)
        return slope


class _ByColumns(_OnFaces):
    """Chooses by coordinate descent; all rows, and all coefficients, are here."""

    def __init__(
        self,
        design: SparseMap,
        theta: F64,
        gradient: F64,
        d2: F64,
        terms: Terms,
        columns: _Columns,
    ) -> None:
        # d2 and the move side by side: an entry of a column then costs one cache line.
        self._pairs = memory.zeros(2 * d2.size).reshape(-1, 2)
        self._pairs[:, 0] = d2
        super().__init__(design, theta, gradient, d2, terms, self._pairs[:, 1])
        self._columns = columns
        matrix = terms.penalty.matrix
        self._matrix = np.empty((0, 0)) if matrix is None else matrix
        subgradient = terms.least_subgradients(theta, gradient)
        self._places = np.flatnonzero((subgradient != 0.0) | terms.free(theta))

    def _choose(self, enough: float) -> bool:
        """Minimise in one coefficient after the other; return whether that was enough."""
        terms, columns = self._terms, self._columns
        product = np.empty(0)  # of the matrix and what has changed
        if self._matrix.size:
            product = self._matrix @ (self._point - self._theta)
        left = self._places.copy()
        count, previous = left.size, math.inf
        for k in range(MAX_SWEEPS):
            count, violation = _sweep_columns(
                left[:count], columns.starts, columns.rows, columns.values, self._pairs,
                self._gradient, self._diagonal, terms.penalty.weights, self._matrix,
                product, self._theta, terms.l1, terms.lower, terms.upper, self._point,
            )  # fmt: skip
            if violation <= enough:
                return True
            if k + 1 >= MIN_SWEEPS and violation > SLOW * previous:
                break
            previous = violation
        return False


class _ByGradients(_OnFaces):
    """Chooses by proximal gradient steps in the metric of the Hessian's diagonal."""

    _scale = 1.0  # of the diagonal

    def _choose(self, enough: float) -> bool:
        """Take steps until the free coefficients stay the same; return whether that was enough."""
        terms = self._terms
        slope, settled = self._slope(self._point, self._move), 0
        for _ in range(MAX_STEPS):
            target, along, bend, size = self._step(slope)
            change = target - self._point
            if not any_rank(terms.group, change.any())[0]:
                break
            stays = ((target != 0.0) == (self._point != 0.0)) & (
                terms.free(target) == terms.free(self._point)
            )
            settled = 0 if any_rank(terms.group, not stays.all())[0] else settled + 1
            self._point = target
            self._move += along
            slope += self._design.transposed(self._d2 * along)
            slope += self._terms.penalty.product(change)
            if terms.norm(terms.least_subgradients(self._point, slope)) <= enough:
                return True
            if settled == SETTLED:
                break
            # What it was along this step (Barzilai & Borwein, IMA J. Numer. Anal. 8, 1988).
            self._scale = max(bend / size, LEAST_SCALE) if size > 0.0 else 1.0
        return False

    def _step(self, slope: F64) -> tuple[F64, F64, float, float]:
        """Return where a step leads that lowers the model as much as the scaled diagonal says.

        Returns
        -------
        tuple
            The point; the scores' move; the model's second derivative along the step, and the
            squared length of the step in the metric of the diagonal.
        """
        terms = self._terms
        while True:
            target = np.empty(slope.size)
            _take_steps(
                self._point, slope, self._scale * self._diagonal, terms.l1, terms.lower,
                terms.upper, target,
            )  # fmt: skip
            change = target - self._point
            along = self._design.scores(change)
            bend = self._bend(change, along)
            (size,) = terms.inner((change, self._diagonal * change))
            if bend <= (1.0 + 1e-10) * self._scale * size or not math.isfinite(bend):
                return target, along, bend, size
            self._scale = max(2.0 * self._scale, bend / size)


def best_length(x: F64, step: F64, slope: F64, bend: float, terms: Terms) -> tuple[float, int]:
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
    group, moving = terms.group, np.flatnonzero(step)
    x, step, l1 = x[moving], step[moving], terms.l1[moving]
    signs = np.where(x != 0.0, np.sign(x), np.sign(step))
    falling, rising = terms.inner((slope[moving], step), (l1 * signs, step))
    derivative = falling + rising
    if derivative >= 0.0:
        return 0.0, -1
    room = np.where(step > 0.0, terms.upper[moving] - x, terms.lower[moving] - x) / step
    limit = -largest(group, -float(room.min(initial=math.inf)))
    crossing = np.flatnonzero((x * step < 0.0) & (l1 > 0.0))
    zeros = -x[crossing] / step[crossing]
    jumps = 2.0 * l1[crossing] * np.abs(step[crossing])
    t, chosen = _least_between(derivative, bend, *_of_all(group, zeros, jumps))
    if group.size > 1:  # as the first rank has it: not all processors round alike
        t, chosen = group.sum(np.array([t, chosen]) * (group.rank == 0)).tolist()
    if t > limit:
        return limit, -1
    before = _count_before(group, zeros.size)
    own = int(chosen) - before
    return t, int(moving[crossing[own]]) if 0 <= own < zeros.size else -1


def _least_between(derivative: float, bend: float, zeros: F64, jumps: F64) -> tuple[float, int]:
    """Return where a derivative that jumps at `zeros` is zero, and at which of them; or -1."""
    order = np.argsort(zeros, kind="stable")
    zeros, jumps = zeros[order], jumps[order]
    after = derivative + bend * zeros + np.cumsum(jumps)
    k = int(np.argmax(after >= 0.0)) if (after >= 0.0).any() else zeros.size
    if k < zeros.size and after[k] - jumps[k] < 0.0:
        return float(zeros[k]), int(order[k])
    return -(derivative + float(jumps[:k].sum())) / max(bend, 1e-300), -1


def _of_all(group: Group, *arrays: F64) -> list[F64]:
    """Return, on the first rank, every rank's arrays one after another."""
    if group.size == 1:
        return list(arrays)
    nothing = [np.empty(0)] * (group.size - 1)
    return [np.concatenate(group.exchange([array, *nothing])) for array in arrays]


def _count_before(group: Group, n: int) -> int:
    """Return the sum of what the lower ranks give."""
    if group.size == 1:
        return 0
    counts = np.zeros(group.size)
    counts[group.rank] = n
    return int(group.sum(counts)[: group.rank].sum())


@kernel
def _fill_subgradients(
    theta: F64, slope: F64, l1: F64, lower: F64, upper: F64, result: F64
) -> None:
    for j in range(theta.size):
        result[j] = least_subgradient(theta[j], slope[j], l1[j], lower[j], upper[j])


@kernel
def _take_steps(
    point: F64, slope: F64, curvature: F64, l1: F64, lower: F64, upper: F64, target: F64
) -> None:
    for j in range(point.size):
        target[j] = minimum_along(point[j], slope[j], curvature[j], l1[j], lower[j], upper[j])


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
