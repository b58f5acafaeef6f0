"""Dense rows, of which many are often the same: an item's embedding in every row of the item.

Each distinct row is stored once, as long as rows do repeat.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.keys import KeyTable
from gdmix.glm.matrix import CsrMatrix

# Where rows hardly repeat, to look for repetitions is only work.
_ROWS_TO_JUDGE_BY = 50_000
_MOST_DISTINCT = 0.7
_TABLE_SHARE = 0.1  # of the memory limit: distinct rows that later ones are compared with


class DenseStack:
    """A dense matrix that grows by rows.

    Parameters
    ----------
    n_columns
        Of the matrix.
    """

    def __init__(self, n_columns: int) -> None:
        self._n_columns = n_columns
        self._known: KeyTable | None = KeyTable(pa.large_binary())
        self._table, self._rows = memory.Stack(np.float32), memory.Stack(np.int64)

    def append(self, rows: CsrMatrix) -> None:
        """Add rows at the end."""
        if not rows.n_rows:
            return
        table = rows.values.reshape(-1, self._n_columns)[rows.indptr[:-1] // self._n_columns]
        stored = self._table.size // self._n_columns
        if self._known is None:
            self._table.append(table.reshape(-1))
            self._rows.append(np.arange(stored, stored + len(table)))
            return
        keys = _as_keys(table)
        limit = memory.limit_bytes()
        if limit is None or self._table.size * 4 < _TABLE_SHARE * limit:
            codes = self._known.insert(keys).astype(np.int64)
        else:
            codes = self._known.find(keys).astype(np.int64)
            new = np.flatnonzero(codes < 0)
            codes[new] = stored + np.arange(new.size)
        fresh = codes >= stored
        first = np.unique(codes[fresh], return_index=True)[1]
        self._table.append(table[np.flatnonzero(fresh)[first]].reshape(-1))
        self._rows.append(codes)
        distinct = self._table.size // self._n_columns
        if self._rows.size >= _ROWS_TO_JUDGE_BY and distinct > _MOST_DISTINCT * self._rows.size:
            self._known = None

    def finish(self) -> CsrMatrix:
        """Return the matrix."""
        table = self._table.finish().reshape(-1, self._n_columns)
        return CsrMatrix.dense(table, self._rows.finish())


def _as_keys(table: NDArray[np.float32]) -> pa.Array:
    """Return the bytes of each row."""
    ends = np.arange(len(table) + 1, dtype=np.int64) * table.shape[1] * 4
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(table))]
    return pa.Array.from_buffers(pa.large_binary(), len(table), buffers)
