"""Texts to numbers: a vocabulary of words, and what every tokenizer has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config.encoders import SPECIAL_TOKENS
from gdmix.data.write import atomic_file
from gdmix.errors import DataError, ModelError

PAD, UNK = range(len(SPECIAL_TOKENS))

Texts: TypeAlias = Sequence[str | None] | pa.Array | pa.ChunkedArray
"""Arrow's or Python's; None is an empty text."""

_FILE = "vocabulary.txt"
_TEXTS_AT_ONCE = 1 << 14
_NO_WORD = r"[^\pL\pM\pN]+"


class Tokenizer(Protocol):
    """What a text encoder reads texts with."""

    @property
    def size(self) -> int:
        """Number of distinct tokens; of a frozen encoder's embeddings, their length."""

    def encode(self, texts: Texts, max_length: int) -> NDArray[Any]:
        """Return what the encoder takes, a row for each text.

        Parameters
        ----------
        texts
            n texts; None is an empty one.
        max_length
            Of a text that has more tokens, as many are taken.

        Returns
        -------
        NDArray
            Tokens (n, L), int32, filled up with 0; L is the longest text's length and at least 1.
            Of a frozen encoder: embeddings (n, size), float32.
        """

    def save(self, folder: Path) -> None:
        """Write all that is needed to read it again, without any hub, to a folder."""


class Vocabulary:
    """Words and their numbers: 0 is padding, 1 any unknown word, the words follow.

    Parameters
    ----------
    words
        Distinct, in the order of their numbers.
    tokenizer
        How a text falls into words: `words` or `whitespace`.
    lowercase
        Whether capitals are regarded as small letters.

    Raises
    ------
    ModelError
        If there is no word, or one twice.
    """

    def __init__(
        self, words: Sequence[str], *, tokenizer: str = "words", lowercase: bool = True
    ) -> None:
        self.words = pa.array(words, pa.large_string())
        self._tokenizer, self._lowercase = tokenizer, lowercase
        if not words:
            raise ModelError(f"vocabulary: holds no word beside {' and '.join(SPECIAL_TOKENS)}")
        if len(pc.unique(self.words)) < len(words):
            counts = pc.value_counts(self.words)
            twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
            raise ModelError(f"vocabulary: holds '{twice}' twice")

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str | None],
        *,
        min_count: int = 1,
        max_size: int | None = None,
        tokenizer: str = "words",
        lowercase: bool = True,
    ) -> Vocabulary:
        """Return the vocabulary of texts: the most frequent word first, equals by the alphabet.

        Parameters
        ----------
        texts
            Read once, a part at a time.
        min_count
            Words that occur less often are left out.
        max_size
            Of the vocabulary, the two special tokens included.

        Raises
        ------
        DataError
            If no word is left.
        """
        counts = count_words(texts, tokenizer=tokenizer, lowercase=lowercase)
        return cls.from_counts(
            counts, min_count=min_count, max_size=max_size, tokenizer=tokenizer, lowercase=lowercase
        )

    @classmethod
    def from_counts(
        cls,
        counts: pa.Table,
        *,
        min_count: int = 1,
        max_size: int | None = None,
        tokenizer: str = "words",
        lowercase: bool = True,
    ) -> Vocabulary:
        """Return the vocabulary of texts whose words are counted by `count_words`.

        Raises
        ------
        DataError
            If no word is left.
        """
        if not counts.num_rows:
            raise DataError("text: the training rows' texts hold no word")
        counts = counts.filter(pc.greater_equal(counts["n"], min_count))
        if not counts.num_rows:
            raise DataError(f"text: no word occurs {min_count:,} times; set a smaller min_count")
        counts = counts.sort_by([("n", "descending"), ("word", "ascending")])
        kept = counts["word"][: None if max_size is None else max_size - len(SPECIAL_TOKENS)]
        return cls(kept.to_pylist(), tokenizer=tokenizer, lowercase=lowercase)

    @classmethod
    def from_file(
        cls, path: Path, *, tokenizer: str = "words", lowercase: bool = True
    ) -> Vocabulary:
        """Read a vocabulary: a word a line; lines of special tokens are passed over.

        Raises
        ------
        ModelError
            If the file is missing, no text, or holds no word or one twice.
        """
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise ModelError(f"{path}: can't be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ModelError(f"{path}: is no vocabulary: not UTF-8 text") from None
        words = [line.strip() for line in lines]
        words = [word for word in words if word and word not in SPECIAL_TOKENS]
        try:
            return cls(words, tokenizer=tokenizer, lowercase=lowercase)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None

    @property
    def size(self) -> int:
        """Number of words and special tokens."""
        return len(SPECIAL_TOKENS) + len(self.words)

    def encode(self, texts: Texts, max_length: int) -> NDArray[np.int32]:
        """Return the words' numbers, (n, L), filled up with 0; see `Tokenizer.encode`."""
        numbers, lengths = memory.Stack(np.int32), memory.Stack(np.int32)
        for part in parts(texts):
            words = pc.list_slice(_split(part, self._tokenizer, self._lowercase), 0, max_length)
            known = pc.index_in(pc.list_flatten(words), value_set=self.words)
            shifted = pc.fill_null(pc.add(known, len(SPECIAL_TOKENS)), UNK)
            numbers.append(shifted.to_numpy(zero_copy_only=False))
            lengths.append(pc.list_value_length(words).to_numpy(zero_copy_only=False))
        return padded(numbers.finish(), lengths.finish())

    def save(self, folder: Path) -> None:
        """Write a word a line, in the order of their numbers.

        Raises
        ------
        OutputError
            If the system refuses to write there.
        """
        with atomic_file(folder / _FILE) as temporary:
            lines = [*SPECIAL_TOKENS, *self.words.to_pylist()]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, tokenizer: str, lowercase: bool) -> Vocabulary:
        """Read what `save` wrote; raises as `from_file` does."""
        return cls.from_file(folder / _FILE, tokenizer=tokenizer, lowercase=lowercase)


def padded(numbers: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return rows of unequal lengths as an array (n, L), filled up with 0; L is at least 1."""
    width = max(1, int(lengths.max(initial=0)))
    rows: NDArray[np.int32] = memory.zeros(lengths.size * width, np.int32).reshape(-1, width)
    rows[np.arange(width) < lengths[:, None]] = numbers
    return rows


def parts(texts: Iterable[str | None], size: int = _TEXTS_AT_ONCE) -> Iterator[pa.Array]:
    """Yield texts as Arrow arrays of some of them, None as an empty text."""
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        for start in range(0, len(texts), size):
            part = texts.slice(start, size).cast(pa.large_string())
            yield pc.fill_null(
                part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part, ""
            )
        return
    rest = iter(texts)
    while some := list(islice(rest, size)):
        yield pc.fill_null(pa.array(some, pa.large_string()), "")


def count_words(
    texts: Iterable[str | None], *, tokenizer: str = "words", lowercase: bool = True
) -> pa.Table:
    """Return the distinct words of texts, ``word``, and how often each occurs, ``n``."""
    counts = pa.table({"word": pa.array([], pa.large_string()), "n": pa.array([], pa.int64())})
    for part in parts(texts):
        words = pc.list_flatten(_split(part, tokenizer, lowercase))
        found = pa.table({"word": words, "n": np.ones(len(words), np.int64)})
        counts = added_words(counts, found)
    return counts


def added_words(one: pa.Table, other: pa.Table) -> pa.Table:
    """Return two counts of words as one."""
    grouped = pa.concat_tables([one, other]).group_by("word").aggregate([("n", "sum")])
    return grouped.rename_columns(["word", "n"])


def _split(texts: pa.Array, tokenizer: str, lowercase: bool) -> pa.Array:
    """Return the list of each text's words."""
    if lowercase:
        texts = pc.utf8_lower(texts)
    if tokenizer == "words":
        texts = pc.replace_substring_regex(texts, pattern=_NO_WORD, replacement=" ")
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
    # Of an empty text Arrow makes one empty word.
    blank = pc.equal(pc.list_element(words, 0), "")
    return pc.if_else(blank, pa.scalar([], words.type), words)
