"""All entities of a block: each solved by the method that suits its size, in parallel.

========================  ====================================  ===========================
method                    where                                 work per Newton step
========================  ====================================  ===========================
dual Newton, by fours     few rows, all coefficients penalised  n^3 / 6, four at once
dual Newton               few rows, otherwise                   n^3 / 6
primal Newton, Cholesky   few features                          nnz d + d^3 / 6
primal Newton, CG         otherwise                             a few passes over nnz
large problem             one entity with a large share of all  parallel over its rows
proximal Newton           an L1 penalty                         nnz d + d^3 / 6, a few times
========================  ====================================  ===========================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm import dual_newton, primal_newton, proximal_newton
from gdmix.glm.compiled import kernel
from gdmix.glm.dual_newton import solve_dual
from gdmix.glm.dual_newton_simd import MAX_COEFFICIENTS, MAX_ROWS, solve_by_fours
from gdmix.glm.large import fit_large
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Minimum
from gdmix.glm.objective import is_dense
from gdmix.glm.penalty import EntityPenalty, QuadraticPenalty, fill_matrix
from gdmix.glm.primal_newton import solve_primal
from gdmix.glm.proximal import fit_large_proximal
from gdmix.glm.proximal_newton import UNBOUNDED, solve_proximal
from gdmix.glm.status import NOT_FINITE, STALLED, UNSOLVED
from gdmix.glm.threads import map_threads, split_evenly

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MAX_DUAL_ROWS = 24
MAX_DUAL_FEATURES = 1024
# Below this the full steps that the solver by fours takes are seldom accepted.
MIN_SIMD_L2 = 1e-4
MAX_CHOLESKY_COEFFICIENTS = 28
# The proximal method holds two matrices of this side.
MAX_PROXIMAL_COEFFICIENTS = 1024
# An entity is a large problem if one thread would be busy with it while others idle.
LARGE_ROWS = 200_000
_ENTITIES_PER_CHECK = 100_000
_DUAL, _CHOLESKY, _CONJUGATE_GRADIENT = 0, 1, 2


@dataclass(frozen=True)
class EntityBlock:
    """The rows of many entities, grouped by entity, each with its own local columns.

    Entity e owns rows ``row_ptr[e]:row_ptr[e + 1]`` and coefficients
    ``coefficient_ptr[e]:coefficient_ptr[e + 1]``, the intercept first. Column j of its rows
    belongs to its coefficient 1 + j.

    Attributes
    ----------
    row_ptr
        (E + 1,) int64.
    coefficient_ptr
        (E + 1,) int64.
    indptr, indices, values
        Compressed rows over all n rows, as in `matrix.CsrMatrix`; uint32 local columns; float32.
    response, weight
        (n,) float64, in the block's row order.
    """

    row_ptr: I64
    coefficient_ptr: I64
    indptr: I64
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]
    response: F64
    weight: F64

    @property
    def n_entities(self) -> int:
        """Number of entities."""
        return self.row_ptr.size - 1

    @property
    def n_rows(self) -> int:
        """Number of rows of all entities."""
        return self.indptr.size - 1

    @property
    def is_dense(self) -> bool:
        """Whether every row holds every column."""
        return self.indices.size == 0 and self.values.size > 0


@dataclass(frozen=True)
class EntitiesFit:
    """What `fit_entities` returns, all arrays over the block's E entities.

    Attributes
    ----------
    coefficients
        Ragged, laid out by the block's `coefficient_ptr`.
    status
        (E,) int8 `FitStatus`.
    iterations
        (E,) int32 Newton iterations.
    gradient_norm
        (E,) norm of the gradient at the returned coefficients.
    """

    coefficients: F64
    status: NDArray[np.int8]
    iterations: NDArray[np.int32]
    gradient_norm: F64


def fit_entities(
    block: EntityBlock,
    offset: F64,
    *,
    loss: int,
    l2: float = 0.0,
    intercept_l2: float = 0.0,
    penalty: EntityPenalty | None = None,
    intercept: bool = True,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
    start: F64 | None = None,
    threads: int = 1,
) -> EntitiesFit:
    """Fit every entity's model to its own rows.

    Parameters
    ----------
    offset
        (n,) scores added before the entity's own, in the block's row order.
    loss
        A loss of `gdmix.glm.losses`.
    l2, intercept_l2
        L2 weight of the slopes and of the intercept.
    penalty
        Instead of these two, what differs by coefficient.
    tolerance
        Stop at this gradient norm relative to the one at zero coefficients.
    start
        Ragged start coefficients, laid out as the result.
    threads
        Entities are independent: the result does not depend on it.
    """
    total = int(block.coefficient_ptr[-1])
    coefficients = memory.zeros(total) if start is None else memory.copy(start)
    status = np.full(block.n_entities, UNSOLVED, np.int8)
    iterations = np.zeros(block.n_entities, np.int32)
    gradient_norm = np.zeros(block.n_entities)
    counts = np.diff(block.row_ptr)
    is_large = counts >= LARGE_ROWS
    if penalty is not None and penalty.is_l1:
        is_large |= np.diff(block.coefficient_ptr) > MAX_PROXIMAL_COEFFICIENTS
    large = np.flatnonzero(is_large)
    for e in large:
        first, last = block.coefficient_ptr[e], block.coefficient_ptr[e + 1]
        design, own = _entity_problem(block, int(e))
        rows = design, block.response[own], block.weight[own], offset[own]
        options: dict[str, Any] = {
            "loss": loss,
            "penalty": _large_penalty(block, int(e), l2, intercept_l2, penalty),
            "intercept": intercept,
            "tolerance": tolerance,
            "max_iterations": max_iterations,
            "start": coefficients[first:last],
            "threads": threads,
        }
        solve_one: Callable[..., Minimum] = fit_large
        if penalty is not None and penalty.is_l1:
            none = np.full(int(last - first), np.inf)
            options |= {"l1": penalty.l1[first:last], "lower": -none, "upper": none}
            solve_one = fit_large_proximal
        fit = solve_one(*rows, **options)
        coefficients[first:last] = fit.coefficients
        status[e] = fit.status
        iterations[e] = fit.iterations
        gradient_norm[e] = fit.gradient_norm

    suited = np.zeros(block.n_entities, bool)
    simple = penalty is None and l2 >= MIN_SIMD_L2
    if simple and (intercept_l2 >= MIN_SIMD_L2 or not intercept):
        sizes = np.diff(block.coefficient_ptr)
        suited = (counts <= np.minimum(MAX_ROWS, 2 * sizes)) & (sizes <= MAX_COEFFICIENTS)

    # Plain numbers: a kernel called with an integer l2 would be compiled anew.
    problem: tuple[Any, ...] = (
        int(loss),
        block.row_ptr,
        block.coefficient_ptr,
        block.indptr,
        block.indices,
        block.values,
        block.response,
        block.weight,
        offset,
        1.0 if intercept else 0.0,
    )
    weights: tuple[Any, ...] = float(intercept_l2), float(l2)
    of_coefficients = EntityPenalty(np.empty(0)) if penalty is None else penalty
    matrices: tuple[Any, ...] = (
        of_coefficients.weights,
        of_coefficients.means,
        float(of_coefficients.intercept_weight),
        of_coefficients.hessian_ptr,
        of_coefficients.hessians,
    )
    limits: tuple[Any, ...] = float(tolerance), int(max_iterations)
    result: tuple[Any, ...] = coefficients, status, iterations, gradient_norm

    def solve(entities: I64) -> None:
        if of_coefficients.is_l1:
            own: tuple[Any, ...] = *matrices, of_coefficients.l1
            _solve_range_proximal(entities, *problem, *own, *limits, *result)
            return
        # Two kernels rather than one that calls both: LLVM compiles a callee within each caller.
        if suited[entities].any():
            solve_by_fours(entities[suited[entities]], *problem, *weights, *limits, *result)
        _solve_range(entities, *problem, *weights, *matrices, *limits, *result)

    map_threads(solve, _tasks(counts, threads), threads)
    _discard_overflow(block.coefficient_ptr, coefficients, gradient_norm, status)
    return EntitiesFit(coefficients, status, iterations, gradient_norm)


def _large_penalty(
    block: EntityBlock, e: int, l2: float, intercept_l2: float, penalty: EntityPenalty | None
) -> QuadraticPenalty:
    if penalty is not None:
        return penalty.of_entity(block.coefficient_ptr, e)
    weights = np.full(int(block.coefficient_ptr[e + 1] - block.coefficient_ptr[e]), l2)
    weights[0] = intercept_l2
    return QuadraticPenalty(weights)


def _entity_problem(block: EntityBlock, e: int) -> tuple[CsrMatrix, slice]:
    own = slice(int(block.row_ptr[e]), int(block.row_ptr[e + 1]))
    if block.is_dense:
        starts = block.indptr[own.start : own.stop + 1]
        width = int(block.coefficient_ptr[1]) - 1
        return CsrMatrix(starts, block.indices, block.values, width), own
    first, last = block.indptr[own.start], block.indptr[own.stop]
    return (
        CsrMatrix(
            block.indptr[own.start : own.stop + 1] - first,
            block.indices[first:last],
            block.values[first:last],
            int(block.coefficient_ptr[e + 1] - block.coefficient_ptr[e]) - 1,
        ),
        own,
    )


def _tasks(rows: I64, threads: int) -> list[I64]:
    """Heavy entities first, one task each; the rest in runs that keep memory order."""
    heavy_rows = max(1000, int(rows.sum()) // (64 * threads))
    heavy = np.flatnonzero((rows >= heavy_rows) & (rows < LARGE_ROWS))
    heavy = heavy[np.argsort(-rows[heavy], kind="stable")]
    light = np.flatnonzero(rows < heavy_rows)
    parts = min(64 * threads, light.size // 64 + 1) if threads > 1 else 1
    return [heavy[k : k + 1] for k in range(heavy.size)] + [
        light[a:b] for a, b in split_evenly(light.size, parts)
    ]


def _discard_overflow(
    coefficient_ptr: I64, coefficients: F64, gradient_norm: F64, status: NDArray[np.int8]
) -> None:
    """Put zeros in place of a model that is not finite; kernels know no NaN to look for."""
    bad = ~np.isfinite(gradient_norm)
    for first, last in split_evenly(status.size, status.size // _ENTITIES_PER_CHECK + 1):
        start = coefficient_ptr[first]
        own = coefficients[start : coefficient_ptr[last]]
        places = np.flatnonzero(~np.isfinite(own)) + start
        bad[np.searchsorted(coefficient_ptr, places, side="right") - 1] = True
    status[bad] = NOT_FINITE
    for e in np.flatnonzero(bad):
        coefficients[coefficient_ptr[e] : coefficient_ptr[e + 1]] = 0.0


@kernel
def _method(n: int, d: int, least: float) -> int:
    """Choose a solver for `n` rows and `d` coefficients, intercept included.

    Parameters
    ----------
    least
        Smallest L2 weight of a slope; 0 where the penalty has a matrix.
    """
    if n <= MAX_DUAL_ROWS and n <= 2 * d and d <= MAX_DUAL_FEATURES and least > 0.0:
        return _DUAL
    if d <= MAX_CHOLESKY_COEFFICIENTS:
        return _CHOLESKY
    return _CONJUGATE_GRADIENT


@kernel
def _solve_range(
    entities: I64,
    loss: int,
    row_ptr: I64,
    coefficient_ptr: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    response: F64,
    weight: F64,
    offset: F64,
    intercept: float,
    intercept_l2: float,
    l2: float,
    weights: F64,
    means: F64,
    intercept_weight: float,
    hessian_ptr: I64,
    hessians: F64,
    tolerance: float,
    max_iterations: int,
    coefficients: F64,
    status: NDArray[np.int8],
    iterations: NDArray[np.int32],
    gradient_norm: F64,
) -> None:
    """Solve those of the listed entities that are `UNSOLVED`, one after another.

    The scratch is sized for the largest. Without `weights` all entities have `l2` and
    `intercept_l2`.
    """
    dense = is_dense(indices, values)
    uniform = weights.size == 0
    with_matrix = means.size > 0 or hessian_ptr.size > 0
    most_rows, most_coefficients, side, dual_width = 1, 1, 1, 1
    for k in range(entities.size):
        e = entities[k]
        if status[e] != UNSOLVED:
            continue
        n = row_ptr[e + 1] - row_ptr[e]
        d = coefficient_ptr[e + 1] - coefficient_ptr[e]
        most_rows = max(most_rows, n)
        most_coefficients = max(most_coefficients, d)
        # With too small a weight it is not this method after all: the scratch is large enough.
        method = _method(n, d, l2 if uniform else 1.0)
        if method == _DUAL:
            side = max(side, n)
            dual_width = max(dual_width, 0 if dense else d)
        if method == _CHOLESKY or d <= MAX_CHOLESKY_COEFFICIENTS:
            side = max(side, d)
    # Rows a multiple of four long keep the vector loops free of remainders.
    side = (side + 7) // 4 * 4
    rows = np.empty((dual_newton.ROW_BUFFERS, most_rows + 4))
    buffers = np.empty((primal_newton.COEFFICIENT_BUFFERS, most_coefficients))
    dual_rows = np.zeros((MAX_DUAL_ROWS, (dual_width + 7) // 4 * 4))
    kernel_matrix = np.empty((side, side))
    factor = np.empty((side, side))
    # Each entity's matrix is cut from this: its rows must lie side by side.
    room = np.empty(most_coefficients * most_coefficients if with_matrix else 0)
    none = np.empty((0, 0))
    same = np.full(most_coefficients, l2)
    same[0] = intercept_l2
    inverse = np.empty(most_coefficients)
    report = np.zeros(2)
    for k in range(entities.size):
        e = entities[k]
        if status[e] != UNSOLVED:
            continue
        first, last = row_ptr[e], row_ptr[e + 1]
        n = last - first
        start = coefficient_ptr[e]
        theta = coefficients[start : coefficient_ptr[e + 1]]
        d = theta.size
        pointers = indptr[first : last + 1]
        y, w, o = response[first:last], weight[first:last], offset[first:last]
        penalty, matrix, least = same[:d], none, l2
        if not uniform:
            penalty = weights[start : start + d]
            least = penalty[1] if d > 1 else 1.0
            for j in range(2, d):
                least = min(least, penalty[j])
        if with_matrix:
            own = room[: d * d].reshape((d, d))
            if fill_matrix(e, start, means, intercept_weight, hessian_ptr, hessians, own):
                matrix, least = own, 0.0
        method = _method(n, d, least)
        iterations[e] = 0
        solved = False
        if method == _DUAL:
            status[e] = solve_dual(
                loss, n, pointers, indices, values, y, w, o, intercept, penalty, uniform, inverse,
                tolerance, max_iterations, theta, rows, dual_rows, kernel_matrix, factor, report,
            )  # fmt: skip
            solved = status[e] != STALLED
            iterations[e] = np.int32(report[0])
            if d > MAX_CHOLESKY_COEFFICIENTS:
                method = _CONJUGATE_GRADIENT
        if not solved:
            status[e] = solve_primal(
                loss, n, pointers, indices, values, y, w, o, intercept,
                penalty, matrix, tolerance, max_iterations, method != _CONJUGATE_GRADIENT, theta,
                rows, buffers, factor, report,
            )  # fmt: skip
            iterations[e] += np.int32(report[0])
        gradient_norm[e] = report[1]


@kernel
def _solve_range_proximal(
    entities: I64,
    loss: int,
    row_ptr: I64,
    coefficient_ptr: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    response: F64,
    weight: F64,
    offset: F64,
    intercept: float,
    weights: F64,
    means: F64,
    intercept_weight: float,
    hessian_ptr: I64,
    hessians: F64,
    l1: F64,
    tolerance: float,
    max_iterations: int,
    coefficients: F64,
    status: NDArray[np.int8],
    iterations: NDArray[np.int32],
    gradient_norm: F64,
) -> None:
    """Do as `_solve_range`, of problems with an L1 penalty."""
    most_rows, d = 1, 1
    for k in range(entities.size):
        e = entities[k]
        if status[e] == UNSOLVED:
            most_rows = max(most_rows, row_ptr[e + 1] - row_ptr[e])
            d = max(d, coefficient_ptr[e + 1] - coefficient_ptr[e])
    rows = np.empty((proximal_newton.ROW_BUFFERS, most_rows))
    buffers = np.empty((proximal_newton.COEFFICIENT_BUFFERS, d))
    places = np.empty(d, np.int64)
    hessian, factor = np.empty((d, d)), np.empty((d, d))
    lower, upper = np.full(d, -UNBOUNDED), np.full(d, UNBOUNDED)
    with_matrix = means.size > 0 or hessian_ptr.size > 0
    room = np.empty(d * d if with_matrix else 0)
    none = np.empty((0, 0))
    report = np.zeros(2)
    for k in range(entities.size):
        e = entities[k]
        if status[e] != UNSOLVED:
            continue
        first, last = row_ptr[e], row_ptr[e + 1]
        start = coefficient_ptr[e]
        theta = coefficients[start : coefficient_ptr[e + 1]]
        d = theta.size
        matrix = none
        if with_matrix:
            own = room[: d * d].reshape((d, d))
            if fill_matrix(e, start, means, intercept_weight, hessian_ptr, hessians, own):
                matrix = own
        status[e] = solve_proximal(
            loss, last - first, indptr[first : last + 1], indices, values, response[first:last],
            weight[first:last], offset[first:last], intercept, weights[start : start + d], matrix,
            l1[start : start + d], lower[:d], upper[:d], tolerance, max_iterations, theta, rows,
            buffers, places, hessian, factor, report,
        )  # fmt: skip
        iterations[e] = np.int32(report[0])
        gradient_norm[e] = report[1]
