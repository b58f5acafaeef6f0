"""Entities that no single column names: several columns together, or a number's bin.

The key of a bin is its interval, as text: ``[18,25)``. The key of several columns is a JSON array
of theirs, without spaces: ``["de",3]``, ``["de","[18,25)"]``. It is unambiguous, and anyone can
take it apart. A row that lacks a part, or whose number is NaN, has no entity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import BinnedColumn, EntityPart
from gdmix.data.keys import as_keys, not_a_key
from gdmix.data.validate import as_floats

I64 = NDArray[np.int64]
Parts = tuple[EntityPart, ...]

_TEXT = pa.large_string()
_JSON: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}


def derive_keys(batch: pa.RecordBatch, parts: Parts) -> tuple[pa.Array, list[tuple[str, str, I64]]]:
    """Return each row's key, and column, fault and rows of values that can't be part of one."""
    keys, problems = [], []
    for part in parts:
        if isinstance(part, BinnedColumn):
            keys.append(_bins(batch.column(part.column), part))
        else:
            own, rows = as_keys(batch.column(part))
            problems.append((part, not_a_key(own), rows))
            keys.append(own)
    if len(parts) == 1 and isinstance(parts[0], BinnedColumn):
        return keys[0], problems
    comma, nothing = pa.scalar(",", _TEXT), pa.scalar("", _TEXT)
    joined = pc.binary_join_element_wise(*map(_as_json, keys), comma)
    array = [pa.scalar("[", _TEXT), joined, pa.scalar("]", _TEXT)]
    return pc.binary_join_element_wise(*array, nothing), problems


def _bins(column: pa.Array, part: BinnedColumn) -> pa.Array:
    values = as_floats(column, np.nan)
    numbers = np.searchsorted(part.bins, values, side="right")
    labels = pa.array(bin_labels(part), _TEXT)
    return labels.take(pa.array(numbers, mask=np.isnan(values)))


def bin_labels(part: BinnedColumn) -> list[str]:
    """Return the key of each bin, ascending."""
    edges = part.edges
    bounds = zip(["(-inf", *(f"[{edge}" for edge in edges)], [*edges, "inf"], strict=True)
    return [f"{low},{high})" for low, high in bounds]


def _as_json(keys: pa.Array) -> pa.Array:
    if pa.types.is_integer(keys.type):
        return keys.cast(_TEXT)
    if not pc.any(pc.match_substring_regex(keys, r'["\\\x00-\x1f]')).as_py():
        quote = pa.scalar('"', _TEXT)
        return pc.binary_join_element_wise(quote, keys, quote, pa.scalar("", _TEXT))
    encoded = keys.dictionary_encode()
    quoted = [json.dumps(text, **_JSON) for text in encoded.dictionary.to_pylist()]
    return pa.array(quoted, _TEXT).take(encoded.indices)


def key_of(parts: Parts, entity: object) -> object:
    """Return the key of an entity as a user names it.

    Parameters
    ----------
    entity
        The key itself; or a list or tuple with a value for each part; or such a list as JSON. A
        number stands for its bin.
    """
    if isinstance(entity, str):
        try:
            given = json.loads(entity)
        except ValueError:
            return entity
        return key_of(parts, given) if not isinstance(given, str) else entity
    if not isinstance(entity, list | tuple):
        return _part_key(parts[0], entity) if len(parts) == 1 else entity
    if len(entity) != len(parts):
        return json.dumps(entity, default=str, **_JSON)
    keys = [_part_key(part, value) for part, value in zip(parts, entity, strict=True)]
    return json.dumps(keys, default=str, **_JSON)


def _part_key(part: EntityPart, value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(part, BinnedColumn) and isinstance(value, Real) and value == value:
        return bin_labels(part)[int(np.searchsorted(part.bins, float(value), side="right"))]
    return value


def part_kinds(keys: pa.Array) -> tuple[str, ...]:
    """Return the types of the parts of joined keys; nothing without any key."""
    return tuple(_kinds(json.loads(keys[0].as_py()))) if len(keys) else ()


def _kinds(values: list[Any]) -> Iterator[str]:
    for value in values:
        yield "an integer" if isinstance(value, int) else "text"
