"""Rows to what a network is given of them: numbers of words and values, standardized numbers.

An `InputEncoding` is made from what is found in the training rows, and saved with the model. It
turns a dataset into `EncodedRows`, which a trainer and a scorer take batches of. Distinct texts are
turned into tokens once, and a batch holds the tokens of its distinct texts once. The tensors of a
batch:

==================  ==============  ==============================================================
``text/<column>``   (u, L) int64    tokens of the batch's distinct texts, filled up with 0; of a
                                    frozen encoder their embeddings, (u, dim) float32
``text_of/<column>``  (n,) int64    which of these each row has
``id/<key>``        (n,) int64      number of a value; 0: none, or one that training did not see
``dense/<bag>``     (n, d) float32  standardized numbers; 0 where there is none
``wide_index/<bag>``  (m,) int64    columns of the features of all rows, row after row
``wide_start/<bag>``  (n,) int64    where each row begins among them
``wide_value/<bag>``  (m,) float32  their values
``response``, ``weight``, ``offset``  (n,) float32
``group``           (n,) int64      with a ranking loss
==================  ==============  ==============================================================
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from gdmix import memory
from gdmix.config import DeepFixedEffect, FeatureBag
from gdmix.data.dataset import Dataset
from gdmix.data.feature_index import FeatureIndex, HashedIndex
from gdmix.data.keys import Keys, hash_texts
from gdmix.deep.encoders import build_tokenizer
from gdmix.deep.findings import (
    InputFindings,
    Moments,
    ValueCounts,
    keeps_missing,
    numbers_of,
    texts_of,
)
from gdmix.deep.text import Tokenizer
from gdmix.glm.matrix import CsrMatrix
from gdmix.model.coefficients import positions

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

log = logging.getLogger("gdmix")

_TEXTS_AT_ONCE = 1 << 14
_MAPPED_SHARE = 0.3  # of the memory limit: rows that are larger are drawn in blocks
_BLOCK_SHARE = 0.05


@dataclass(frozen=True)
class Numbering:
    """Which number the value of a key has; 0 is that of none, and of an unknown one.

    Attributes
    ----------
    values
        Those that have numbers, from 1 on; None: numbers are hashes.
    buckets
        How many there are of these.
    """

    values: pa.Array | None
    buckets: int | None = None

    @staticmethod
    def of(found: ValueCounts, min_count: int) -> Numbering:
        """Give numbers to the values that enough training rows have."""
        return Numbering(found.values.filter(pa.array(found.counts >= min_count)))

    @property
    def size(self) -> int:
        """How many numbers there are, 0 included."""
        if self.values is not None:
            return 1 + len(self.values)
        assert self.buckets is not None
        return 1 + self.buckets

    def unknown(self, keys: Keys, key: str) -> Keys:
        """Return the values of a column that have no number, of no row."""
        values = keys.values
        if self.values is None:
            values = values[:0]
        elif len(self.values) and len(values):
            values = values.filter(pa.array(positions(keys, self.values, key) < 0))
        return replace(keys, values=values, codes=np.empty(0, np.int32))

    def extended(self, keys: Keys, key: str) -> Numbering:
        """Return the same, with further numbers at its end for the values it lacks."""
        new = self.unknown(keys, key).values
        if self.values is None or not len(new):
            return self
        return Numbering(pa.concat_arrays([self.values.cast(new.type), new]))

    def numbers(self, keys: Keys, key: str) -> I64:
        """Return the number of each distinct value of a column, and at its end that of none.

        Raises
        ------
        DataError
            If the column is of integers and these values are strings, or the reverse.
        """
        if self.values is None:
            assert self.buckets is not None
            hashes = hash_texts(keys.values.cast(pa.large_string()))
            numbers = (hashes % np.uint64(self.buckets)).astype(np.int64) + 1
        elif len(self.values) and len(keys.values):
            numbers = positions(keys, self.values, key) + 1
        else:
            numbers = np.zeros(len(keys.values), np.int64)
        return np.append(numbers, 0)


@dataclass(frozen=True)
class Standardizer:
    """Numbers of a bag, less their mean, over their standard deviation.

    Attributes
    ----------
    columns
        (d,) the bag's column of each number that the network sees; -1: there is none any more.
    mean, scale
        (d,) float32; what is to be multiplied with is 0 where training had but one number.
    keeps_missing
        Whether a column that a row does not have is missing, rather than 0.
    """

    columns: I64
    mean: F32
    scale: F32
    keeps_missing: bool

    @staticmethod
    def of(moments: Moments, keeps_missing: bool) -> Standardizer:
        """Return what gives numbers of these moments a mean of 0 and a variance of 1."""
        variance = moments.variance
        noise = 1e-12 * (variance + moments.mean**2)
        differ = variance > noise
        scale = np.where(differ, 1.0 / np.sqrt(np.where(differ, variance, 1.0)), 0.0)
        columns = np.arange(variance.size)
        return Standardizer(
            columns, moments.mean.astype(np.float32), scale.astype(np.float32), keeps_missing
        )

    def table(self, matrix: CsrMatrix, rows: I64) -> F32:
        """Return (rows, d) standardized numbers, 0 for the missing ones."""
        raw = numbers_of(matrix, rows, self.keeps_missing)
        if self.columns.size == raw.shape[1] and (self.columns == np.arange(raw.shape[1])).all():
            own = raw
        else:
            own = np.where(self.columns >= 0, raw[:, self.columns], np.float32(np.nan))
        standard: F32 = np.nan_to_num((own - self.mean) * self.scale, nan=0.0)
        return standard


@dataclass(frozen=True)
class InputSizes:
    """How large a network's inputs are.

    Attributes
    ----------
    tokens
        Number of distinct tokens of the texts; of a frozen encoder's, the length of an embedding.
    ids
        Numbers of each key.
    dense, wide
        Columns of each bag.
    """

    tokens: int
    ids: Mapping[str, int]
    dense: Mapping[str, int]
    wide: Mapping[str, int]


@dataclass(frozen=True)
class InputEncoding:
    """What turns rows into the inputs of a network.

    Attributes
    ----------
    texts
        Columns of text.
    tokenizer
        Of all of them; None without texts.
    max_length
        Tokens that are read of a text.
    ids
        Numbering of each key, by name.
    dense
        Of each bag of numbers.
    wide
        Number of columns of each wide bag.
    """

    texts: tuple[str, ...]
    tokenizer: Tokenizer | None
    max_length: int
    ids: Mapping[str, Numbering]
    dense: Mapping[str, Standardizer]
    wide: Mapping[str, int]

    @staticmethod
    def of(
        spec: DeepFixedEffect, found: InputFindings, bags: Mapping[str, FeatureBag]
    ) -> InputEncoding:
        """Make the encoding of the training rows in which so much was found.

        Raises
        ------
        DataError
            If texts hold no word.
        """
        tokenizer = None
        if spec.texts:
            device = where_to_compute(spec.training.device)
            tokenizer = build_tokenizer(spec.encoder, found.words, device=device)
        return InputEncoding(
            spec.texts,
            tokenizer,
            spec.encoder.max_length,
            {
                key: Numbering.of(found.values[key], own.min_count)
                if own.buckets is None
                else Numbering(None, own.buckets)
                for key, own in spec.keyed_inputs.items()
            },
            {
                bag: Standardizer.of(found.moments[bag], keeps_missing(bags[bag]))
                for bag in spec.dense_bags
            },
            found.wide,
        )

    @property
    def sizes(self) -> InputSizes:
        """How large the inputs are."""
        return InputSizes(
            0 if self.tokenizer is None else self.tokenizer.size,
            {key: own.size for key, own in self.ids.items()},
            {bag: own.columns.size for bag, own in self.dense.items()},
            dict(self.wide),
        )

    def unknown(self, keys: Mapping[str, Keys]) -> dict[str, Keys]:
        """Return the ids of columns that it does not know."""
        return {key: own.unknown(keys[key], key) for key, own in self.ids.items()}

    def extended(self, keys: Mapping[str, Keys]) -> InputEncoding:
        """Return the encoding that knows the ids of these columns too."""
        return replace(
            self, ids={key: own.extended(keys[key], key) for key, own in self.ids.items()}
        )

    def encode(self, rows: Dataset, group: str | None = None) -> EncodedRows:
        """Turn rows into what batches are made of.

        Parameters
        ----------
        group
            Key whose rows a ranking loss compares.

        Raises
        ------
        DataError
            If a column has another type than in training.
        """
        return EncodedRows(
            rows,
            rows.offset,
            {column: self._texts(rows, column) for column in self.texts},
            {key: own.numbers(rows.keys[key], key) for key, own in self.ids.items()},
            self.dense,
            tuple(self.wide),
            None if group is None else _groups(rows, group),
            _block_rows(rows, (*self.dense, *self.wide)),
        )

    def _texts(self, rows: Dataset, column: str) -> TextColumn:
        assert self.tokenizer is not None
        return TextColumn.of(texts_of(rows, column), self.tokenizer, self.max_length)


def where_to_compute(device: str) -> str:
    """Return where to compute what is not trained: a GPU, if there is one and none is refused."""
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def warn_of_constants(
    label: str, encoding: InputEncoding, indices: Mapping[str, FeatureIndex]
) -> None:
    """Tell of numbers that the network does not see, as they are all the same."""
    for bag, own in encoding.dense.items():
        constant, index = np.flatnonzero(own.scale == 0), indices[bag]
        if constant.size == 0 or isinstance(index, HashedIndex):
            continue
        names, terms = (column.to_pylist() for column in index.features(constant[:3]))
        some = [f"{n}:{t}" if t else n for n, t in zip(names, terms, strict=True)]
        more = f" and {constant.size - 3} more" if constant.size > 3 else ""
        text = "%s: bag '%s': %s%s: no two numbers differ in training; the network does not see it"
        log.warning(text, label, bag, ", ".join(some), more)


def _groups(rows: Dataset, column: str) -> I64:
    codes = rows.keys[column].codes
    groups: I64 = memory.empty(codes.size, np.int64)
    np.copyto(groups, codes)
    return groups


def _block_rows(rows: Dataset, bags: tuple[str, ...]) -> int | None:
    """Return how many rows to read together, if they are more than memory is for."""
    limit = memory.limit_bytes()
    if limit is None or not rows.n_rows:
        return None
    matrices = [rows.bags[bag] for bag in bags]
    size = sum(m.values.nbytes + m.indices.nbytes + m.indptr.nbytes for m in matrices)
    size += rows.n_rows * (4 * len(rows.keys) + 24)
    if size <= _MAPPED_SHARE * limit:
        return None
    return max(int(_BLOCK_SHARE * limit * rows.n_rows / size), 1)


@dataclass(frozen=True)
class TextColumn:
    """The distinct texts of a column as tokens, and at their end the empty one.

    Attributes
    ----------
    values
        Tokens of all texts, int32; or embeddings (u + 1, dim) float32.
    ptr
        (u + 2,) where each text begins; None of embeddings.
    """

    values: NDArray[Any]
    ptr: I64 | None

    @staticmethod
    def of(texts: pa.Array, tokenizer: Tokenizer, max_length: int) -> TextColumn:
        """Turn texts into tokens, a part at a time."""
        tokens: memory.Stack | None = None
        counts = memory.Stack(np.int64)
        width = 0
        last = pa.array([""], pa.large_string())
        parts = [
            texts.slice(first, _TEXTS_AT_ONCE) for first in range(0, len(texts), _TEXTS_AT_ONCE)
        ]
        for part in [*parts, last]:
            encoded = tokenizer.encode(part, max_length)
            tokens = tokens or memory.Stack(encoded.dtype)
            if np.issubdtype(encoded.dtype, np.floating):
                width = encoded.shape[1]
                tokens.append(encoded.reshape(-1))
            else:
                tokens.append(encoded[encoded != 0])
                counts.append(np.count_nonzero(encoded, axis=1))
        assert tokens is not None
        if width:
            return TextColumn(tokens.finish().reshape(-1, width), None)
        return TextColumn(tokens.finish(), memory.pointers(counts.finish()))

    @property
    def size(self) -> int:
        """Number of texts, the empty one included."""
        return len(self.values) if self.ptr is None else self.ptr.size - 1

    def lengths(self) -> I64:
        """Return the number of tokens of each text."""
        return np.zeros(self.size, np.int64) if self.ptr is None else np.diff(self.ptr)

    def take(self, texts: I64) -> Tensor:
        """Return tokens (u, L) int64 of some texts, filled up with 0; or embeddings."""
        if self.ptr is None:
            return torch.from_numpy(self.values[texts])
        first, count = self.ptr[texts], self.ptr[texts + 1] - self.ptr[texts]
        place = np.arange(max(int(count.max(initial=0)), 1))
        if not self.values.size:
            return torch.zeros((texts.size, 1), dtype=torch.int64)
        tokens = np.take(self.values, first[:, None] + place, mode="clip").astype(np.int64)
        return torch.from_numpy(tokens * (place < count[:, None]))


@dataclass(frozen=True)
class EncodedRows:
    """Rows as a network is given them; a `BatchSource`.

    Attributes
    ----------
    rows
        The dataset.
    offset
        (n,) score that all else adds.
    texts
        Distinct texts of each column.
    numbers
        Of each key, the number of each distinct value, at the end that of none.
    dense
        How numbers of each bag are standardized.
    wide
        Names of the wide bags.
    group
        (n,) number of each row's group, for a ranking loss.
    block_rows
        How many rows to read together, where they lie in mapped files.
    """

    rows: Dataset
    offset: F64
    texts: Mapping[str, TextColumn]
    numbers: Mapping[str, I64]
    dense: Mapping[str, Standardizer]
    wide: tuple[str, ...]
    group: I64 | None
    block_rows: int | None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.rows.n_rows

    @property
    def uid(self) -> I64:
        """(n,) unique ids."""
        return self.rows.uid

    @property
    def weight(self) -> F64:
        """(n,) weights."""
        return self.rows.weight

    def with_offset(self, offset: F64) -> EncodedRows:
        """Return the same rows with another offset."""
        return replace(self, offset=offset)

    def batch(self, rows: I64) -> dict[str, Tensor]:
        """Return the tensors of some rows, as this module says."""
        batch: dict[str, Tensor] = {}
        for column in self.texts:
            texts, which = np.unique(self.texts_of(column, rows), return_inverse=True)
            batch[f"text/{column}"] = self.texts[column].take(texts)
            batch[f"text_of/{column}"] = torch.from_numpy(which)
        return batch | self.without_texts(rows)

    def texts_of(self, column: str, rows: I64) -> I64:
        """Return which of a column's distinct texts each of some rows has."""
        codes = self.rows.keys[column].codes[rows].astype(np.int64)
        return np.where(codes < 0, self.texts[column].size - 1, codes)

    def without_texts(self, rows: I64) -> dict[str, Tensor]:
        """Return the tensors of some rows, but those of texts."""
        batch: dict[str, Tensor] = {}
        for key, numbers in self.numbers.items():  # a code of -1 is the last one's
            batch[f"id/{key}"] = torch.from_numpy(numbers[self.rows.keys[key].codes[rows]])
        for bag, standardizer in self.dense.items():
            batch[f"dense/{bag}"] = torch.from_numpy(standardizer.table(self.rows.bags[bag], rows))
        for bag in self.wide:
            part = self.rows.bags[bag].take(rows).sparse()
            batch[f"wide_index/{bag}"] = torch.from_numpy(part.indices.astype(np.int64))
            batch[f"wide_start/{bag}"] = torch.from_numpy(part.indptr[:-1])
            batch[f"wide_value/{bag}"] = torch.from_numpy(np.ascontiguousarray(part.values))
        for role, values in (
            ("response", self.rows.response),
            ("weight", self.weight),
            ("offset", self.offset),
        ):
            batch[role] = torch.from_numpy(values[rows].astype(np.float32))
        if self.group is not None:
            batch["group"] = torch.from_numpy(self.group[rows])
        return batch
