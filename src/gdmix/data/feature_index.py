"""The frozen map between features and column numbers of one bag.

A feature is a pair (name, term): a numeric column ``age`` is ("age", ""), the value F of a
string column ``gender`` is ("gender", "F"), entry 3 of a dense column ``embedding`` is
("embedding", "3"). The index is built from training rows, frozen, and saved with the model;
a feature that is not in it is ignored when scoring, and counted. A bag of more features than
an index can hold has columns numbered by a hash of the feature instead (`HashedIndex`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import FeatureBag
from gdmix.data.keys import KeyTable, hash_texts
from gdmix.data.schema import BagSource, bag_sources
from gdmix.errors import DataError, ModelError, did_you_mean

INTERCEPT_NAME = "(INTERCEPT)"
HASH_NAME = "(HASH)"  # of a column that a hash has chosen; its number is the term
_SEPARATOR = "\x01"  # between name and term in a key: never part of a feature's name


class FeatureIndex:
    """Features of one bag in column order.

    Parameters
    ----------
    names, terms
        One string each per column.
    """

    def __init__(self, names: Iterable[str] | pa.Array, terms: Iterable[str] | pa.Array) -> None:
        self._names = _text_array(names)
        self._terms = _text_array(terms)
        self._by_name: dict[str, tuple[KeyTable, NDArray[np.int64]]] = {}
        self._pairs: KeyTable | None = None

    @property
    def names(self) -> pa.Array:
        """Name of each column's feature."""
        return self._names

    @property
    def terms(self) -> pa.Array:
        """Term of each column's feature."""
        return self._terms

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FeatureIndex)
            and not isinstance(other, HashedIndex)
            and self.names.equals(other.names)
            and self.terms.equals(other.terms)
        )

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str, term: str = "") -> int:
        """Return the column number of one feature, -1 if it is not in the index."""
        return int(self.lookup(name, pa.array([term], pa.large_string()))[0])

    def count(self, name: str) -> int | None:
        """Return the number of features of one name; None where that is not known."""
        return self._of_name(name)[1].size

    def lookup(self, name: str, terms: pa.Array) -> NDArray[np.int64]:
        """Return the column numbers of features of one name; -1 where unknown or null."""
        known, columns = self._of_name(name)
        return np.asarray(np.append(columns, -1)[known.find(terms.cast(pa.large_string()))])

    def _of_name(self, name: str) -> tuple[KeyTable, NDArray[np.int64]]:
        if name not in self._by_name:
            columns = np.flatnonzero(pc.equal(self.names, name).to_numpy(zero_copy_only=False))
            self._by_name[name] = (_table_of(self.terms.take(pa.array(columns))), columns)
        return self._by_name[name]

    def lookup_pairs(self, names: pa.Array, terms: pa.Array) -> NDArray[np.int64]:
        """Return the column numbers of (name, term) pairs; -1 where unknown or null."""
        if self._pairs is None:
            self._pairs = _table_of(join_keys(self.names, self.terms))
        return self._pairs.find(join_keys(names, terms)).astype(np.int64)

    def find(self, names: pa.Array, terms: pa.Array) -> NDArray[np.int64]:
        """Return the column numbers of features as a model names them; -1 where unknown."""
        return self.lookup_pairs(names, terms)

    def columns_in(self, other: FeatureIndex) -> NDArray[np.int64]:
        """Return the column number in another index of each of these features; -1 of none.

        Raises
        ------
        ModelError
            If one of them numbers features by a hash, and the other does not, or otherwise.
        """
        if isinstance(other, HashedIndex):
            raise ModelError("features are hashed on one side only, so that none can be matched")
        return other.find(self.names, self.terms)

    def features(self, columns: NDArray[np.integer[Any]]) -> tuple[pa.Array, pa.Array]:
        """Return names and terms of some columns, in the given order."""
        chosen = pa.array(columns)
        return self.names.take(chosen), self.terms.take(chosen)

    def take(self, columns: NDArray[np.integer[Any]]) -> FeatureIndex:
        """Return the index of some of the features, in the given order."""
        return FeatureIndex(*self.features(columns))

    def extended(self, other: FeatureIndex) -> FeatureIndex:
        """Return this index, at its end the features that only another one has.

        Raises
        ------
        ModelError
            As `columns_in` does.
        """
        unknown = pa.array(np.flatnonzero(other.columns_in(self) < 0))
        return FeatureIndex(
            pa.concat_arrays([self.names, other.names.take(unknown)]),
            pa.concat_arrays([self.terms, other.terms.take(unknown)]),
        )

    @staticmethod
    def from_feature_list(path: Path) -> FeatureIndex:
        """Read a feature list: CSV lines ``name,term``, the first of which is column 0.

        Raises
        ------
        DataError
            If the file is missing, a line is not a pair, or a feature stands twice.
        """
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file, strict=True)
                lines = [(reader.line_num, row) for row in reader]
        except FileNotFoundError:
            siblings = [p.name for p in path.parent.glob("*")]
            hint = did_you_mean(path.name, siblings)
            raise DataError(f"{path}: no such feature list{hint}") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: can't be read as a feature list: {error}") from None
        while lines and not lines[-1][1]:
            lines.pop()
        if not lines:
            raise DataError(f"{path}: the feature list is empty; write a line 'name,term' each")
        seen: dict[tuple[str, str], int] = {}
        for number, row in lines:
            # An empty line isn't skipped: it would shift the columns of all after it.
            if len(row) not in (1, 2):
                found = f"{len(row)} fields" if row else "nothing"
                raise DataError(f"{path}: line {number}: expected 'name,term', found {found}")
            feature = (row[0], row[1] if len(row) == 2 else "")
            if feature in seen:
                text = ",".join(feature)
                raise DataError(
                    f"{path}: line {number}: '{text}' stands in line {seen[feature]} too"
                )
            seen[feature] = number
        return FeatureIndex([name for name, _ in seen], [term for _, term in seen])


class HashedIndex(FeatureIndex):
    """Features whose column is a hash of name and term: there is no table, and none is unknown.

    Features that share a column share a coefficient. The columns' own names are (HASH) with
    their numbers as terms: what they stand for is not kept. Nothing as long as the columns is
    made until these names are asked for.

    Parameters
    ----------
    buckets
        Number of columns.
    """

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets

    @cached_property
    def names(self) -> pa.Array:
        """(HASH) for each column."""
        return self.features(np.arange(self._buckets))[0]

    @cached_property
    def terms(self) -> pa.Array:
        """The columns' numbers as text."""
        return self.features(np.arange(self._buckets))[1]

    def __len__(self) -> int:
        return self._buckets

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashedIndex) and self._buckets == other._buckets

    __hash__ = None

    def count(self, name: str) -> None:
        """Return None: any number of features may have the name."""
        return

    def lookup(self, name: str, terms: pa.Array) -> NDArray[np.int64]:
        """Return the column numbers of features of one name; -1 where the term is null."""
        terms = terms.cast(pa.large_string())
        separator = pa.scalar(_SEPARATOR, pa.large_string())
        name_ = pa.scalar(name, pa.large_string())
        return self._columns(pc.binary_join_element_wise(name_, terms, separator))

    def lookup_pairs(self, names: pa.Array, terms: pa.Array) -> NDArray[np.int64]:
        """Return the column numbers of (name, term) pairs; -1 where the name is null."""
        return self._columns(join_keys(names, terms))

    def _columns(self, keys: pa.Array) -> NDArray[np.int64]:
        columns = (hash_texts(keys) % np.uint64(self._buckets)).astype(np.int64)
        columns[keys.is_null().to_numpy(zero_copy_only=False)] = -1
        return columns

    def features(self, columns: NDArray[np.integer[Any]]) -> tuple[pa.Array, pa.Array]:
        """Return (HASH) and their numbers for some columns, without a table of all."""
        name = pa.scalar(HASH_NAME, pa.large_string())
        return pa.repeat(name, columns.size), pa.array(columns).cast(pa.large_string())

    def find(self, names: pa.Array, terms: pa.Array) -> NDArray[np.int64]:
        """Return the numbers of columns by their own names; -1 of any other feature."""
        columns = np.full(len(names), -1, np.int64)
        own = pc.and_(pc.equal(names, HASH_NAME), pc.match_substring_regex(terms, "^[0-9]{1,10}$"))
        own = pc.fill_null(own, False)
        numbers = terms.filter(own).cast(pa.int64()).to_numpy()
        columns[own.to_numpy(zero_copy_only=False)] = np.where(numbers < self._buckets, numbers, -1)
        return columns

    def columns_in(self, other: FeatureIndex) -> NDArray[np.int64]:
        """Return the columns' own numbers.

        Raises
        ------
        ModelError
            If the other index does not hash into as many columns.
        """
        if self != other:
            how = f"into {len(other):,}" if isinstance(other, HashedIndex) else "not"
            raise ModelError(
                f"features are hashed into {len(self):,} columns on one side, {how} on the other, "
                "so that none can be matched"
            )
        return np.arange(self._buckets)

    def extended(self, other: FeatureIndex) -> FeatureIndex:
        """Return this index, which knows all features."""
        other.columns_in(self)
        return self


class FeatureIndexBuilder:
    """Collects the features of a bag from record batches.

    Columns are numbered in the order in which the bag lists them; the features of one column in
    sorted order: the index does not depend on the order of rows.
    """

    def __init__(self, bag: FeatureBag, types: Mapping[str, pa.DataType]) -> None:
        self._bag = bag
        self._types = types
        self._sources = bag_sources(bag, types)
        self._found: dict[str, KeyTable] = {}

    @property
    def needs_rows(self) -> bool:
        """Whether the features are not known from the columns' types alone."""
        known = self._bag.feature_list is not None or self._bag.hash_buckets is not None
        return not known and any(s.kind not in ("numeric", "dense") for s in self._sources)

    def update(self, batch: pa.RecordBatch) -> None:
        """Add the features that occur in a batch."""
        if not self.needs_rows:
            return
        for source in self._sources:
            column = batch.column(source.column)
            if source.kind in ("categorical", "multi_hot"):
                self._add(source, as_terms(column))
            elif source.kind == "indexed":
                self._add(source, column.flatten().cast(pa.int64(), safe=False))
            elif source.kind == "ntv":
                self._add(source, ntv_keys(column.flatten()))

    def merge(self, other: FeatureIndexBuilder) -> None:
        """Add the features that another builder of the same bag has seen."""
        for column, found in other._found.items():
            self._found.setdefault(column, KeyTable(found.kind)).insert(found.keys())

    def _add(self, source: BagSource, values: pa.Array) -> None:
        known = self._found.setdefault(source.column, KeyTable(values.type))
        known.insert(pc.unique(values).drop_null())

    def freeze(self) -> FeatureIndex:
        """Return the index of all features seen."""
        if self._bag.feature_list is not None:
            return FeatureIndex.from_feature_list(self._bag.feature_list)
        if self._bag.hash_buckets is not None:
            return HashedIndex(self._bag.hash_buckets)
        found = [self._features(source) for source in self._sources]
        names = pa.concat_arrays([_text_array(name) for name, _ in found])
        terms = pa.concat_arrays([_text_array(term) for _, term in found])
        # Two name-term-value columns may hold the same feature: it is one column, the first.
        codes = join_keys(names, terms).dictionary_encode().indices.to_numpy()
        first = pa.array(np.unique(codes, return_index=True)[1])
        return FeatureIndex(names.take(first), terms.take(first))

    def _features(self, source: BagSource) -> tuple[pa.Array, pa.Array]:
        if source.kind == "numeric":
            return [source.feature], [""]
        if source.kind == "dense":
            size = self._types[source.column].list_size
            return [source.feature] * size, [str(i) for i in range(size)]
        known = self._found.get(source.column)
        found = known.keys() if known is not None else pa.array([], pa.large_string())
        found = found.take(pc.sort_indices(found))
        if source.kind == "ntv":
            return split_keys(found)
        return pa.repeat(source.feature, len(found)), found


def features_of(
    indices: Sequence[FeatureIndex], columns: NDArray[np.uint32]
) -> tuple[pa.Array, pa.Array]:
    """Return names and terms of some columns of indices side by side, after the intercept's 0."""
    intercept = pa.array([INTERCEPT_NAME], pa.large_string()), pa.array([""], pa.large_string())
    ends = np.cumsum([1, *map(len, indices)])
    owner = np.searchsorted(ends, columns, side="right")  # 0: the intercept
    order = np.argsort(owner, kind="stable")
    parts = [FeatureIndex(*intercept).features(columns[owner == 0])]
    for k, index in enumerate(indices):
        parts.append(index.features(columns[owner == k + 1] - np.uint32(ends[k])))
    place = np.empty(order.size, np.int64)
    place[order] = np.arange(order.size)
    names, terms = (pa.concat_arrays(arrays) for arrays in zip(*parts, strict=True))
    return names.take(pa.array(place)), terms.take(pa.array(place))


def as_terms(column: pa.Array) -> pa.Array:
    """Return the terms of a categorical or multi-hot column, flat, as strings."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    elif not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = column.flatten()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
    return column.cast(pa.large_string())


def ntv_keys(items: pa.Array) -> pa.Array:
    """Return the keys of name-term-value structs; null where the struct or its name is."""
    return join_keys(pc.struct_field(items, "name"), pc.struct_field(items, "term"))


def join_keys(names: pa.Array, terms: pa.Array) -> pa.Array:
    """Join name and term to one string; a null term counts as the empty one."""
    return pc.binary_join_element_wise(
        names.cast(pa.large_string()),
        pc.fill_null(terms.cast(pa.large_string()), ""),
        pa.scalar(_SEPARATOR, pa.large_string()),
    )


def split_keys(keys: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Take keys apart into names and terms."""
    parts = pc.split_pattern(keys, _SEPARATOR, max_splits=1)
    return pc.list_element(parts, 0), pc.list_element(parts, 1)


def _table_of(keys: pa.Array) -> KeyTable:
    table = KeyTable(keys.type)
    table.insert(keys)
    return table


def _text_array(values: Iterable[str] | pa.Array) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values.cast(pa.large_string())
    return pa.array(list(values), pa.large_string())
