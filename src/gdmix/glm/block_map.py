"""An entity block as one linear map: products, and a preconditioner that knows its blocks.

For the joint problem over several coordinates a random effect is the matrix Z of all its
entities' rows: block-diagonal, with one small block per entity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm import cholesky
from gdmix.glm.compiled import kernel
from gdmix.glm.entities import EntityBlock
from gdmix.glm.objective import add_hessian, add_hessian_diagonal, add_transposed
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.row_order import RowOrder
from gdmix.glm.scoring import entity_parts, score_block
from gdmix.glm.threads import map_threads

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MAX_FACTOR_SIDE = 64  # larger entities are preconditioned by their diagonal
MAX_FACTOR_ENTRIES = 100_000_000  # and so are all, if their factors would not fit


class BlockMap:
    """A random effect's design over the rows of the data, (n, all its coefficients).

    Parameters
    ----------
    rows
        Which rows of the data those of the block are; rows that are not in it score 0.
    """

    def __init__(self, block: EntityBlock, rows: RowOrder, intercept: bool, threads: int) -> None:
        self._block, self._rows = block, rows
        self._intercept, self._threads = 1.0 if intercept else 0.0, threads
        self._parts = entity_parts(block, threads)
        self.size = int(block.coefficient_ptr[-1])

    def scores(self, theta: F64) -> F64:
        """Return each row's score, (n,)."""
        return self._rows.scatter(score_block(self._block, theta, self._threads))

    def transposed(self, d1: F64) -> F64:
        """Return ``X' d1``: ragged, laid out by the block's `coefficient_ptr`."""
        product = memory.zeros(self.size)
        self._map(_transposed_range, self._intercept, self._rows.gather(d1), product)
        return product

    def preconditioner(self, d2: F64, penalty: QuadraticPenalty) -> BlockFactors:
        """Factorise every entity's Hessian; of a large one its diagonal."""
        sides = np.diff(self._block.coefficient_ptr)
        entries = np.where(sides <= MAX_FACTOR_SIDE, sides * sides, sides)
        if int(entries.sum()) > MAX_FACTOR_ENTRIES:
            entries = sides
        factor_ptr = np.concatenate(([0], np.cumsum(entries)))
        factors = memory.empty(int(factor_ptr[-1]))
        own_d2 = self._rows.gather(d2)
        self._map(_factorize_range, self._intercept, own_d2, penalty.weights, factor_ptr, factors)
        pointers = self._block.coefficient_ptr
        return BlockFactors(pointers, factor_ptr, factors, self._parts, self._threads)

    def _map(self, operation: Callable[..., None], *arguments: Any) -> None:
        x = self._block
        arrays = x.row_ptr, x.coefficient_ptr, x.indptr, x.indices, x.values
        map_threads(lambda part: operation(*part, *arrays, *arguments), self._parts, self._threads)


class BlockFactors:
    """The Cholesky factors of a matrix of one block per entity; of some blocks the diagonal."""

    def __init__(
        self,
        coefficient_ptr: I64,
        factor_ptr: I64,
        factors: F64,
        parts: list[tuple[int, int]],
        threads: int,
    ) -> None:
        self._arrays: tuple[Any, ...] = coefficient_ptr, factor_ptr, factors
        self._parts, self._threads = parts, threads

    def solve(self, residual: F64) -> F64:
        """Return the inverse times a vector."""
        return self._each(_solve_range, memory.copy(residual))

    def multiply_root(self, vector: F64) -> F64:
        """Return L times a vector, the matrix being L L'."""
        return self._each(_multiply_root_range, memory.copy(vector))

    def inverse_diagonal(self) -> F64:
        """Return the diagonal of the inverse."""
        return self._each(_inverse_diagonal_range, memory.empty(int(self._arrays[0][-1])))

    def log_determinant(self) -> float:
        """Return the logarithm of the determinant."""
        parts = map_threads(
            lambda part: _log_determinant_range(*part, *self._arrays), self._parts, self._threads
        )
        return float(sum(parts))

    def _each(self, operation: Callable[..., None], result: F64) -> F64:
        map_threads(
            lambda part: operation(*part, *self._arrays, result), self._parts, self._threads
        )
        return result


@kernel
def _transposed_range(
    first: int,
    last: int,
    row_ptr: I64,
    coefficient_ptr: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    d1: F64,
    product: F64,
) -> None:
    for e in range(first, last):
        a, b = row_ptr[e], row_ptr[e + 1]
        own = product[coefficient_ptr[e] : coefficient_ptr[e + 1]]
        add_transposed(b - a, indptr[a : b + 1], indices, values, intercept, d1[a:b], own)


@kernel
def _factorize_range(
    first: int,
    last: int,
    row_ptr: I64,
    coefficient_ptr: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    d2: F64,
    penalty: F64,
    factor_ptr: I64,
    factors: F64,
) -> None:
    for e in range(first, last):
        a, b = row_ptr[e], row_ptr[e + 1]
        own = slice(coefficient_ptr[e], coefficient_ptr[e + 1])
        side = own.stop - own.start
        flat = factors[factor_ptr[e] : factor_ptr[e + 1]]
        rows = indptr[a : b + 1]
        if flat.size == side:
            flat[:] = penalty[own]
            add_hessian_diagonal(b - a, rows, indices, values, intercept, d2[a:b], flat)
            for j in range(side):
                flat[j] = 1.0 / flat[j] if flat[j] > 0.0 else 0.0
        else:
            flat[:] = 0.0
            hessian = flat.reshape((side, side))
            for j in range(side):
                hessian[j, j] = penalty[own.start + j]
            add_hessian(b - a, rows, indices, values, intercept, d2[a:b], side - 1, hessian)
            cholesky.factorize(side, hessian, penalty[own])


@kernel
def _solve_range(
    first: int, last: int, coefficient_ptr: I64, factor_ptr: I64, factors: F64, result: F64
) -> None:
    for e in range(first, last):
        own = result[coefficient_ptr[e] : coefficient_ptr[e + 1]]
        flat = factors[factor_ptr[e] : factor_ptr[e + 1]]
        if flat.size == own.size:
            for j in range(own.size):
                own[j] *= flat[j]
        else:
            cholesky.solve(own.size, flat.reshape((own.size, own.size)), own)


@kernel
def _multiply_root_range(
    first: int, last: int, coefficient_ptr: I64, factor_ptr: I64, factors: F64, result: F64
) -> None:
    for e in range(first, last):
        own = result[coefficient_ptr[e] : coefficient_ptr[e + 1]]
        flat = factors[factor_ptr[e] : factor_ptr[e + 1]]
        if flat.size == own.size:
            for j in range(own.size):
                own[j] = own[j] / math.sqrt(flat[j]) if flat[j] > 0.0 else 0.0
        else:
            cholesky.multiply_root(own.size, flat.reshape((own.size, own.size)), own)


@kernel
def _inverse_diagonal_range(
    first: int, last: int, coefficient_ptr: I64, factor_ptr: I64, factors: F64, result: F64
) -> None:
    column = np.empty(MAX_FACTOR_SIDE)
    for e in range(first, last):
        own = result[coefficient_ptr[e] : coefficient_ptr[e + 1]]
        flat = factors[factor_ptr[e] : factor_ptr[e + 1]]
        if flat.size == own.size:
            for j in range(own.size):
                own[j] = flat[j]
        else:
            factor = flat.reshape((own.size, own.size))
            cholesky.inverse_diagonal(own.size, factor, column, own)


@kernel
def _log_determinant_range(
    first: int, last: int, coefficient_ptr: I64, factor_ptr: I64, factors: F64
) -> float:
    total = 0.0
    for e in range(first, last):
        side = coefficient_ptr[e + 1] - coefficient_ptr[e]
        flat = factors[factor_ptr[e] : factor_ptr[e + 1]]
        if flat.size == side:
            for j in range(side):
                if flat[j] > 0.0:
                    total -= math.log(flat[j])
        else:
            total += cholesky.log_determinant(side, flat.reshape((side, side)))
    return total
