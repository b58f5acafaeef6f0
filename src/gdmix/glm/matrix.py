"""The sparse design matrix that every solver and scorer sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.compiled import kernel


@dataclass(frozen=True)
class CsrMatrix:
    """Compressed rows, sparse or dense, without the intercept's column.

    No row holds a column twice. Values are single precision (features are measured, not
    computed); all arithmetic on them is in double precision. Indices are unsigned because
    a compiled gather is then free of the check for negative indices.

    Attributes
    ----------
    indptr
        (n + 1,) int64; row i is the slice ``indptr[i]:indptr[i + 1]`` of the next two; of a
        dense matrix it is ``indptr[i]:indptr[i] + n_columns`` of the values, where rows may
        lie in any order and share values, and the last entry means nothing.
    indices
        (nnz,) uint32 column numbers; empty in a dense matrix, whose rows hold all columns.
    values
        float32.
    n_columns
        Number of columns.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]
    n_columns: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.indptr.size - 1

    @property
    def is_dense(self) -> bool:
        """Whether every row holds every column."""
        return self.indices.size == 0 and self.values.size > 0

    @property
    def nnz(self) -> int:
        """Number of values in all rows."""
        return self.n_rows * self.n_columns if self.is_dense else self.indices.size

    @staticmethod
    def dense(table: NDArray[np.float32], rows: NDArray[np.int64]) -> CsrMatrix:
        """Return the matrix whose row i is ``table[rows[i]]``, of a table (m, columns)."""
        starts = memory.zeros(rows.size + 1, np.int64)
        np.multiply(rows, table.shape[1], out=starts[:-1])
        return CsrMatrix(starts, np.empty(0, np.uint32), table.reshape(-1), table.shape[1])

    def sparse(self) -> CsrMatrix:
        """Return the matrix with its columns' numbers."""
        if not self.is_dense:
            return self
        n, d = self.n_rows, self.n_columns
        indptr = memory.empty(n + 1, np.int64)
        np.multiply(np.arange(n + 1), d, out=indptr)
        indices = memory.empty(n * d, np.uint32)
        values = memory.empty(n * d, np.float32)
        _spread_rows(self.indptr, self.values, d, indices, values)
        return CsrMatrix(indptr, indices, values, d)

    def widened(self, n_columns: int) -> CsrMatrix:
        """Return the matrix with columns added at its end that no row has."""
        if n_columns == self.n_columns:
            return self
        matrix = self.sparse()
        return CsrMatrix(matrix.indptr, matrix.indices, matrix.values, n_columns)

    def take(self, rows: NDArray[np.int64]) -> CsrMatrix:
        """Return the given rows, in the given order."""
        indptr = memory.zeros(rows.size + 1, np.int64)
        if self.is_dense:
            np.take(self.indptr, rows, out=indptr[:-1], mode="clip")
            return CsrMatrix(indptr, self.indices, self.values, self.n_columns)
        _lengths_of(rows, self.indptr, indptr)
        np.cumsum(indptr, out=indptr)
        indices = memory.empty(int(indptr[-1]), np.uint32)
        values = memory.empty(int(indptr[-1]), np.float32)
        _take_rows(rows, self.indptr, self.indices, self.values, indptr, indices, values)
        return CsrMatrix(indptr, indices, values, self.n_columns)

    @staticmethod
    def empty(n_rows: int) -> CsrMatrix:
        """Return a matrix without columns: the design of an intercept-only model."""
        nothing = np.empty(0, np.uint32), np.empty(0, np.float32)
        return CsrMatrix(memory.zeros(n_rows + 1, np.int64), *nothing, 0)

    @staticmethod
    def hstack(matrices: list[CsrMatrix]) -> CsrMatrix:
        """Put matrices of the same number of rows side by side: sparse, if there are several."""
        if len(matrices) == 1:
            return matrices[0]
        matrices = [matrix.sparse() for matrix in matrices]
        counts = np.diff(matrices[0].indptr)
        for matrix in matrices[1:]:
            counts += np.diff(matrix.indptr)
        indptr = memory.pointers(counts)
        indices = memory.empty(int(indptr[-1]), np.uint32)
        values = memory.empty(int(indptr[-1]), np.float32)
        cursor = memory.copy(indptr[:-1])
        first_column = 0
        for m in matrices:
            _append_rows(m.indptr, m.indices, m.values, first_column, cursor, indices, values)
            first_column += m.n_columns
        return CsrMatrix(indptr, indices, values, first_column)


class CsrStack:
    """A matrix that grows by rows.

    Parameters
    ----------
    n_columns
        Of the matrix.
    """

    def __init__(self, n_columns: int) -> None:
        self._n_columns = n_columns
        self._ends = memory.Stack(np.int64)
        self._ends.append(np.zeros(1, np.int64))
        self._indices, self._values = memory.Stack(np.uint32), memory.Stack(np.float32)

    def append(self, rows: CsrMatrix) -> None:
        """Add rows at the end."""
        self._ends.append(rows.indptr[1:] + self._values.size)
        self._indices.append(rows.indices)
        self._values.append(rows.values)

    def finish(self) -> CsrMatrix:
        """Return the matrix."""
        ends, indices, values = (s.finish() for s in (self._ends, self._indices, self._values))
        return CsrMatrix(ends, indices, values, self._n_columns)


@kernel
def _spread_rows(
    starts: NDArray[np.int64],
    values: NDArray[np.float32],
    d: int,
    new_indices: NDArray[np.uint32],
    new_values: NDArray[np.float32],
) -> None:
    for i in range(starts.size - 1):
        for j in range(d):
            new_indices[i * d + j] = j
            new_values[i * d + j] = values[starts[i] + j]


@kernel
def _lengths_of(
    rows: NDArray[np.int64], indptr: NDArray[np.int64], lengths: NDArray[np.int64]
) -> None:
    """Write the number of values of each row after its own place."""
    for k in range(rows.size):
        lengths[k + 1] = indptr[rows[k] + 1] - indptr[rows[k]]


@kernel
def _take_rows(
    rows: NDArray[np.int64],
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    new_indptr: NDArray[np.int64],
    new_indices: NDArray[np.uint32],
    new_values: NDArray[np.float32],
) -> None:
    for k in range(rows.size):
        target = np.uint64(new_indptr[k])
        for q in range(np.uint64(indptr[rows[k]]), np.uint64(indptr[rows[k] + 1])):
            new_indices[target] = indices[q]
            new_values[target] = values[q]
            target += np.uint64(1)


@kernel
def _append_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    first_column: int,
    cursor: NDArray[np.int64],
    new_indices: NDArray[np.uint32],
    new_values: NDArray[np.float32],
) -> None:
    for i in range(cursor.size):
        target = np.uint64(cursor[i])
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            new_indices[target] = indices[q] + np.uint32(first_column)
            new_values[target] = values[q]
            target += np.uint64(1)
        cursor[i] = target
