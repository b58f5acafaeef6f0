"""What training rows say of how a network is given them; what parts of them say is put together.

Words are counted in distinct texts. So that a text which several parts have is counted once, each
text goes to the process that its hash names before its words are counted; no process holds all
texts. The other findings, and the counts of words, add up: those of all processes pass through the
first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.config import DeepFixedEffect, FeatureBag
from gdmix.data.dataset import Dataset
from gdmix.data.keys import Keys, hash_texts
from gdmix.data.partition import concatenated_keys
from gdmix.deep.distributed import Team
from gdmix.deep.encoders import learns_words
from gdmix.deep.text import added_words, count_words
from gdmix.errors import DataError
from gdmix.glm.matrix import CsrMatrix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_ROWS_AT_ONCE = 1 << 16
_TEXT = pa.schema([("text", pa.large_string())])


@dataclass(frozen=True)
class ValueCounts:
    """The distinct values of a key, ascending, and how many rows have each."""

    values: pa.Array
    counts: I64

    @staticmethod
    def of(keys: Keys) -> ValueCounts:
        """Count the values of rows."""
        known = keys.codes[keys.codes >= 0]
        return ValueCounts(keys.values, np.bincount(known, minlength=len(keys.values)))

    def plus(self, other: ValueCounts) -> ValueCounts:
        """Return the counts of both parts' rows."""
        both = (self, other)
        values = concatenated_keys(
            [Keys(own.values, np.arange(len(own.values), dtype=np.int32)) for own in both]
        )
        counts = np.zeros(len(values.values), np.int64)
        np.add.at(counts, values.codes, np.concatenate([own.counts for own in both]))
        return ValueCounts(values.values, counts)


@dataclass(frozen=True)
class Moments:
    """Weighted moments of the numbers of each column, of those that are not missing.

    Attributes
    ----------
    weight
        (d,) total weight.
    mean
        (d,) float64.
    squares
        (d,) sum of weighted squared deviations from the mean.
    """

    weight: F64
    mean: F64
    squares: F64

    @staticmethod
    def of(matrix: CsrMatrix, weight: F64, keeps_missing: bool) -> Moments:
        """Take the moments of rows, some of them at a time."""
        total = Moments(*(np.zeros(matrix.n_columns) for _ in range(3)))
        for start in range(0, matrix.n_rows, _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, matrix.n_rows))
            table = numbers_of(matrix, rows, keeps_missing).astype(np.float64)
            known = ~np.isnan(table)
            w = weight[rows, None] * known
            table[~known] = 0.0
            mean = _ratio((w * table).sum(0), w.sum(0))
            part = Moments(w.sum(0), mean, (w * (table - mean) ** 2).sum(0))
            total = total.plus(part)
        return total

    def plus(self, other: Moments) -> Moments:
        """Return the moments of both parts' rows (Chan, Golub and LeVeque, 1979)."""
        weight, apart = self.weight + other.weight, other.mean - self.mean
        share = _ratio(other.weight, weight)
        squares = self.squares + other.squares + apart**2 * self.weight * share
        return Moments(weight, self.mean + share * apart, squares)

    @property
    def variance(self) -> F64:
        """(d,) weighted; 0 without weight."""
        return _ratio(self.squares, self.weight)


def _ratio(one: F64, other: F64) -> F64:
    """Return a ratio, 0 where the divisor is."""
    return np.divide(one, other, out=np.zeros(one.size), where=other > 0.0)


@dataclass(frozen=True)
class InputFindings:
    """What training rows, or a part of them, say of the encoding of inputs.

    Attributes
    ----------
    words
        Counts of the words of distinct texts; None where no encoder learns them.
    values
        Of each key whose values are numbered.
    moments
        Of each bag of numbers.
    wide
        Number of columns of each wide bag.
    """

    words: pa.Table | None
    values: Mapping[str, ValueCounts]
    moments: Mapping[str, Moments]
    wide: Mapping[str, int]

    @staticmethod
    def of(
        spec: DeepFixedEffect, rows: Dataset, bags: Mapping[str, FeatureBag], own: Team
    ) -> InputFindings:
        """Return what the rows of all processes say, given those that this one holds.

        Raises
        ------
        DataError
            If a column of text holds none.
        """
        columns = [texts_of(rows, column) for column in spec.texts]
        words = None
        if columns and learns_words(spec.encoder):
            texts = columns[0] if len(columns) == 1 else pa.chunked_array(columns).unique()
            if own.has_shards:
                texts = _dealt(texts, own)
            encoder = spec.encoder
            words = count_words(texts, tokenizer=encoder.tokenizer, lowercase=encoder.lowercase)
        found = InputFindings(
            words,
            {
                key: ValueCounts.of(rows.keys[key])
                for key, of in spec.keyed_inputs.items()
                if of.buckets is None
            },
            {
                bag: Moments.of(rows.bags[bag], rows.weight, keeps_missing(bags[bag]))
                for bag in spec.dense_bags
            },
            {bag: rows.bags[bag].n_columns for bag in spec.wide_bags},
        )
        return own.put_together(found, InputFindings.plus) if own.has_shards else found

    def plus(self, other: InputFindings) -> InputFindings:
        """Return what both parts of rows say, no text being in both."""
        words = self.words
        if words is not None:
            words = added_words(words, other.words)
        return InputFindings(
            words,
            {key: own.plus(other.values[key]) for key, own in self.values.items()},
            {bag: own.plus(other.moments[bag]) for bag, own in self.moments.items()},
            self.wide,
        )


def _dealt(texts: pa.Array, own: Team) -> pa.Array:
    """Return the distinct texts of all processes that hash to this one."""
    texts = texts.cast(pa.large_string())
    targets = hash_texts(texts) % np.uint64(own.size)
    sent = []
    for rank in range(own.size):
        part = pa.record_batch([texts.filter(pa.array(targets == rank))], schema=_TEXT)
        sent.append(np.frombuffer(part.serialize(), np.uint8))
    came = [pa.ipc.read_record_batch(pa.py_buffer(part), _TEXT) for part in own.exchange(sent)]
    return pa.chunked_array([part["text"] for part in came]).unique()


def texts_of(rows: Dataset, column: str) -> pa.Array:
    """Return the distinct texts of a column.

    Raises
    ------
    DataError
        If they are numbers.
    """
    values = rows.keys[column].values
    if pa.types.is_integer(values.type):
        raise DataError(
            f"{rows.label}: column '{column}' holds integers, where the deep coordinate expects "
            "text; cast it, or make it `categorical`"
        )
    return values


def keeps_missing(bag: FeatureBag) -> bool:
    """Whether what a row lacks of a bag is missing, rather than 0."""
    return bag.missing == "keep"


def numbers_of(matrix: CsrMatrix, rows: I64, keeps_missing: bool) -> F32:
    """Return rows of a matrix as an array."""
    if matrix.is_dense:
        table = matrix.values.reshape(-1, matrix.n_columns)
        return table[matrix.indptr[rows] // max(matrix.n_columns, 1)]
    part = matrix.take(rows)
    table = np.full((rows.size, matrix.n_columns), np.nan if keeps_missing else 0.0, np.float32)
    table[np.repeat(np.arange(rows.size), np.diff(part.indptr)), part.indices] = part.values
    return table
