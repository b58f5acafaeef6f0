"""The sparse design matrix that every solver and scorer sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
        return CsrMatrix(
            np.zeros(n_rows + 1, np.int64), np.empty(0, np.uint32), np.empty(0, np.float32), 0
        )

    @staticmethod
    def hstack(matrices: list[CsrMatrix]) -> CsrMatrix:
        """Put matrices of the same number of rows side by side."""
        if len(matrices) == 1:
            return matrices[0]
        counts = [np.diff(m.indptr) for m in matrices]
        indptr = np.concatenate(([0], np.cumsum(np.sum(counts, axis=0))))
        indices = np.empty(indptr[-1], np.uint32)
        values = np.empty(indptr[-1], np.float32)
        row_start = indptr[:-1].copy()
        first_column = 0
        for matrix, count in zip(matrices, counts, strict=True):
            target = np.repeat(row_start - matrix.indptr[:-1], count) + np.arange(matrix.nnz)
            indices[target] = matrix.indices + np.uint32(first_column)
            values[target] = matrix.values
            row_start += count
            first_column += matrix.n_columns
        return CsrMatrix(indptr, indices, values, first_column)

    @staticmethod
    def vstack(matrices: list[CsrMatrix]) -> CsrMatrix:
        """Put matrices of the same number of columns on top of each other."""
        if len(matrices) == 1:
            return matrices[0]
        starts = np.cumsum([0] + [m.nnz for m in matrices])
        indptr = [np.zeros(1, np.int64)]
        indptr += [m.indptr[1:] + start for m, start in zip(matrices, starts[:-1], strict=True)]
        return CsrMatrix(
            np.concatenate(indptr),
            np.concatenate([m.indices for m in matrices]),
            np.concatenate([m.values for m in matrices]),
            matrices[0].n_columns,
        )
