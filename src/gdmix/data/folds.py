"""Rows divided into folds, each of which is judged by a model of the others.

The fold of a row is a hash of its uid: it stays when other rows come or go, and whatever the
order of rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.dataset import Dataset
from gdmix.glm.random_bits import mixed
from gdmix.glm.row_order import kept_rows, part_matrix

_ROWS_PER_CHUNK = 1_000_000


def fold_numbers(uid: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.uint8]:
    """Return the fold of each row, (n,) from 0 to `folds` - 1."""
    numbers: NDArray[np.uint8] = memory.empty(uid.size, np.uint8)
    for first in range(0, uid.size, _ROWS_PER_CHUNK):
        part = slice(first, first + _ROWS_PER_CHUNK)
        hashes = mixed(uid[part].astype(np.uint64) + np.uint64(seed))
        numbers[part] = (mixed(hashes ^ np.uint64(folds)) >> np.uint64(11)) % np.uint64(folds)
    return numbers


def rows_where(rows: Dataset, kept: NDArray[np.bool_], label: str) -> Dataset:
    """Return some of the rows, in their order.

    Parameters
    ----------
    kept
        (n,) which.
    label
        What messages call them.
    """
    numbers = np.flatnonzero(kept)

    def taken(array: NDArray[Any]) -> NDArray[Any]:
        result = memory.empty(numbers.size, array.dtype)
        np.take(array, numbers, out=result, mode="clip")  # otherwise it makes a copy first
        return result

    one_part = kept_rows(kept)
    return Dataset(
        label,
        taken(rows.uid),
        taken(rows.response),
        taken(rows.weight),
        taken(rows.offset),
        bags={bag: part_matrix(design, one_part) for bag, design in rows.bags.items()},
        keys={name: replace(k, codes=taken(k.codes)) for name, k in rows.keys.items()},
    )
