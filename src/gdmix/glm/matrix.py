"""The sparse design matrix that every solver and scorer sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.compiled import kernel


@dataclass(frozen=True)
class CsrMatrix:
    """Compressed sparse rows, without the intercept's column.

    No row holds a column twice. Values are single precision (features are measured, not
    computed); all arithmetic on them is in double precision. Indices are unsigned because
    a compiled gather is then free of the check for negative indices.

    Attributes
    ----------
    indptr
        (n + 1,) int64; row i is the slice ``indptr[i]:indptr[i + 1]`` of the next two.
    indices
        (nnz,) uint32 column numbers.
    values
        (nnz,) float32.
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
    def nnz(self) -> int:
        """Number of stored values."""
        return self.indices.size

    def take(self, rows: NDArray[np.int64]) -> CsrMatrix:
        """Return the given rows, in the given order."""
        counts = np.diff(self.indptr)[rows]
        indptr = np.concatenate(([0], np.cumsum(counts)))
        starts = np.repeat(self.indptr[rows] - indptr[:-1], counts)
        source = starts + np.arange(indptr[-1])
        return CsrMatrix(indptr, self.indices[source], self.values[source], self.n_columns)

    @staticmethod
    def empty(n_rows: int) -> CsrMatrix:
        """Return a matrix without columns: the design of an intercept-only model."""
        nothing = np.empty(0, np.uint32), np.empty(0, np.float32)
        return CsrMatrix(memory.zeros(n_rows + 1, np.int64), *nothing, 0)

    @staticmethod
    def hstack(matrices: list[CsrMatrix]) -> CsrMatrix:
        """Put matrices of the same number of rows side by side."""
        if len(matrices) == 1:
            return matrices[0]
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
