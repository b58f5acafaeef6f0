"""Rows taken apart and put together again: what passes between the partitions of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.data.dataset import Dataset
from gdmix.data.keys import Keys, KeyTable, hash_texts
from gdmix.glm.matrix import CsrMatrix, CsrStack
from gdmix.glm.random_bits import mixed

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


def take_rows(
    rows: Dataset,
    numbers: I64,
    bags: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
) -> Dataset:
    """Return some of the rows, in the given order, holding nothing of the others.

    Parameters
    ----------
    numbers
        Positions of the rows.
    bags, keys
        Names of the bags and keys that are wanted; None: all.
    """
    wanted = rows.bags if bags is None else bags
    named = rows.keys if keys is None else keys
    return Dataset(
        rows.label,
        rows.uid[numbers],
        rows.response[numbers],
        rows.weight[numbers],
        rows.offset[numbers],
        bags={bag: _take_matrix(rows.bags[bag], numbers) for bag in wanted},
        keys={name: take_keys(rows.keys[name], numbers) for name in named},
    )


def take_keys(keys: Keys, numbers: I64) -> Keys:
    """Return the keys of some rows; those that none of them has are gone."""
    codes = keys.codes[numbers]
    present = np.unique(codes[codes >= 0])
    place = np.full(len(keys.values) + 1, -1, np.int32)  # its last entry: of no key
    place[present] = np.arange(present.size, dtype=np.int32)
    return replace(keys, values=keys.values.take(pa.array(present)), codes=place[codes])


def concatenated(parts: Sequence[Dataset]) -> Dataset:
    """Return the rows of all parts, at least one, one after another."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return Dataset(
        first.label,
        np.concatenate([p.uid for p in parts]),
        np.concatenate([p.response for p in parts]),
        np.concatenate([p.weight for p in parts]),
        np.concatenate([p.offset for p in parts]),
        bags={bag: _stacked([p.bags[bag] for p in parts]) for bag in first.bags},
        keys={name: concatenated_keys([p.keys[name] for p in parts]) for name in first.keys},
    )


def concatenated_keys(parts: Sequence[Keys]) -> Keys:
    """Return the keys of all parts, at least one, one after another."""
    kind = next((p.values.type for p in parts if len(p.values)), parts[0].values.type)
    table = KeyTable(kind)
    numbers = [table.insert(p.values.cast(kind)) for p in parts]
    values = table.keys()
    order = pc.sort_indices(values).to_numpy()
    rank = np.empty(order.size, np.int32)
    rank[order] = np.arange(order.size, dtype=np.int32)
    codes = [
        np.append(rank[own], np.int32(-1)).astype(np.int32)[p.codes]
        for own, p in zip(numbers, parts, strict=True)
    ]
    return replace(parts[0], values=values.take(pa.array(order)), codes=np.concatenate(codes))


def key_hashes(values: pa.Array) -> U64:
    """Return a hash of each key, the same in every process."""
    if pa.types.is_integer(values.type):
        return mixed(np.asarray(values.to_numpy(zero_copy_only=False)).astype(np.uint64))
    return mixed(hash_texts(values.cast(pa.large_string())))


def _take_matrix(matrix: CsrMatrix, numbers: I64) -> CsrMatrix:
    if not matrix.is_dense:
        return matrix.take(numbers)
    starts, rows = np.unique(matrix.indptr[:-1][numbers], return_inverse=True)
    table: NDArray[Any] = matrix.values[starts[:, None] + np.arange(matrix.n_columns)]
    return CsrMatrix.dense(table, rows.astype(np.int64))


def _stacked(parts: Sequence[CsrMatrix]) -> CsrMatrix:
    """Put matrices of the same columns one under another."""
    if not any(p.is_dense for p in parts):
        stack = CsrStack(parts[0].n_columns)
        for part in parts:
            stack.append(part)
        return stack.finish()
    parts = [p for p in parts if p.n_rows]
    first = np.cumsum([0, *(p.values.size for p in parts)])
    starts = [p.indptr[:-1] + f for p, f in zip(parts, first, strict=False)]
    return CsrMatrix(
        np.concatenate([*starts, [0]]).astype(np.int64),
        np.empty(0, np.uint32),
        np.concatenate([p.values for p in parts]),
        parts[0].n_columns,
    )
