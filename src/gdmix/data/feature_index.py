"""The frozen map between features and column numbers of one bag.

A feature is a pair (name, term): a numeric column ``age`` is ("age", ""), the value F of a
string column ``gender`` is ("gender", "F"), entry 3 of a dense column ``embedding`` is
("embedding", "3"). The index is built from training rows, frozen, and saved with the model;
a feature that is not in it is ignored when scoring, and counted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import FeatureBag
from gdmix.data.schema import BagSource, bag_sources
from gdmix.errors import DataError

INTERCEPT_NAME = "(INTERCEPT)"
_SEPARATOR = "\x01"  # between name and term in a key: never part of a feature's name
MAX_COLUMNS = 2**31 - 2


class FeatureIndex:
    """Features of one bag in column order.

    Parameters
    ----------
    names, terms
        One string each per column.
    """

    def __init__(self, names: Iterable[str] | pa.Array, terms: Iterable[str] | pa.Array) -> None:
        self.names = _text_array(names)
        self.terms = _text_array(terms)
        self._by_name: dict[str, tuple[pa.Array, NDArray[np.int64]]] = {}
        self._keys: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FeatureIndex)
            and self.names.equals(other.names)
            and self.terms.equals(other.terms)
        )

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str, term: str = "") -> int:
        """Return the column number of one feature, -1 if it is not in the index."""
        return int(self.lookup(name, pa.array([term], pa.large_string()))[0])

    def lookup(self, name: str, terms: pa.Array) -> NDArray[np.int64]:
        """Return the column numbers of features of one name; -1 where unknown or null."""
        if name not in self._by_name:
            columns = np.flatnonzero(pc.equal(self.names, name).to_numpy(zero_copy_only=False))
            self._by_name[name] = (self.terms.take(pa.array(columns)), columns)
        known, columns = self._by_name[name]
        return _positions(terms, known, columns)

    def lookup_pairs(self, names: pa.Array, terms: pa.Array) -> NDArray[np.int64]:
        """Return the column numbers of (name, term) pairs; -1 where unknown or null."""
        if self._keys is None:
            self._keys = join_keys(self.names, self.terms)
        return _positions(join_keys(names, terms), self._keys, np.arange(len(self)))

    @staticmethod
    def from_feature_list(path: Path) -> FeatureIndex:
        """Read a feature list: CSV lines ``name,term``; the line's number is the column.

        Raises
        ------
        DataError
            If the file is missing, or a line is not a pair, or a feature stands twice.
        """
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.reader(file) if row]
        except FileNotFoundError:
            raise DataError(f"{path}: no such feature list") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: can't be read as a feature list: {error}") from None
        seen: dict[tuple[str, str], int] = {}
        for number, row in enumerate(rows, 1):
            if len(row) > 2:
                raise DataError(f"{path}: line {number}: expected 'name,term', found {row}")
            feature = (row[0], row[1] if len(row) == 2 else "")
            if feature in seen:
                raise DataError(
                    f"{path}: line {number}: feature {feature} stands in line {seen[feature]} too"
                )
            seen[feature] = number
        return FeatureIndex([name for name, _ in seen], [term for _, term in seen])


class FeatureIndexBuilder:
    """Collects the features of a bag from record batches.

    Columns are numbered in the order in which the bag lists them; terms of a column, and the
    features of a name-term-value column, in sorted order: the index does not depend on the
    order of rows.
    """

    def __init__(self, bag: FeatureBag, types: Mapping[str, pa.DataType]) -> None:
        self._bag = bag
        self._types = types
        self._sources = bag_sources(bag, types)
        self._found: dict[str, pa.Array] = {}
        self._largest: dict[str, int] = {}

    def update(self, batch: pa.RecordBatch) -> None:
        """Add the features that occur in a batch."""
        for source in self._sources:
            column = batch.column(source.column)
            if source.kind in ("categorical", "multi_hot"):
                self._add(source, as_terms(column))
            elif source.kind == "ntv":
                items = column.flatten()
                self._add(
                    source,
                    join_keys(pc.struct_field(items, "name"), pc.struct_field(items, "term")),
                )
            elif source.kind == "indexed" and self._bag.feature_list is None:
                largest = pc.max(column.flatten()).as_py()
                self._largest[source.column] = max(
                    self._largest.get(source.column, -1), -1 if largest is None else largest
                )

    def _add(self, source: BagSource, values: pa.Array) -> None:
        known = self._found.get(source.column)
        distinct = pc.unique(values).drop_null().cast(pa.large_string())
        if known is not None:
            distinct = pc.unique(pa.concat_arrays([known, distinct]))
        self._found[source.column] = distinct

    def freeze(self) -> FeatureIndex:
        """Return the index of all features seen."""
        if self._bag.feature_list is not None:
            return FeatureIndex.from_feature_list(self._bag.feature_list)
        names: list[pa.Array] = []
        terms: list[pa.Array] = []
        for source in self._sources:
            name, term = self._features(source)
            names.append(_text_array(name))
            terms.append(_text_array(term))
        return FeatureIndex(pa.concat_arrays(names), pa.concat_arrays(terms))

    def _features(self, source: BagSource) -> tuple[pa.Array, pa.Array]:
        column = source.column
        if source.kind == "numeric":
            return [column], [""]
        if source.kind == "dense":
            size = self._types[column].list_size
            return [column] * size, [str(i) for i in range(size)]
        if source.kind == "indexed":
            size = self._largest.get(column, -1) + 1
            if size > MAX_COLUMNS:
                raise DataError(f"column '{column}': index {size - 1} is beyond {MAX_COLUMNS}")
            return pa.repeat(column[: -len("_indices")], size), pa.array(range(size)).cast("string")
        found = self._found.get(column, pa.array([], pa.large_string()))
        found = found.take(pc.sort_indices(found))
        if source.kind == "ntv":
            parts = pc.split_pattern(found, _SEPARATOR, max_splits=1)
            return pc.list_element(parts, 0), pc.list_element(parts, 1)
        return pa.repeat(column, len(found)), found


def as_terms(column: pa.Array) -> pa.Array:
    """Return the terms of a categorical or multi-hot column, flat, as strings."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    elif not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = column.flatten()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
    return column.cast(pa.large_string())


def join_keys(names: pa.Array, terms: pa.Array) -> pa.Array:
    """Join name and term to one string; a null term counts as the empty one."""
    return pc.binary_join_element_wise(
        names.cast(pa.large_string()),
        pc.fill_null(terms.cast(pa.large_string()), ""),
        pa.scalar(_SEPARATOR, pa.large_string()),
    )


def _positions(wanted: pa.Array, known: pa.Array, columns: NDArray[np.int64]) -> NDArray[np.int64]:
    found = pc.fill_null(pc.index_in(wanted.cast(pa.large_string()), value_set=known), -1)
    positions = found.to_numpy(zero_copy_only=False).astype(np.int64)
    if not columns.size:
        return positions
    return np.asarray(np.where(positions >= 0, columns[positions], -1))


def _text_array(values: Iterable[str] | pa.Array) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values.cast(pa.large_string())
    return pa.array(list(values), pa.large_string())
