"""Tokens of a text to its vector, by networks that learn their own word vectors; and all by type.

All take tokens (n, L) that are filled up with 0, on the right, and give vectors (n, dim) that do
not depend on how far they are filled up. A text without words has the zero vector, unless the
vector is that of a [CLS] token, which is learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias, TypeGuard

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gdmix.config.encoders import (
    CnnEncoder,
    EncoderSpec,
    FrozenEncoder,
    HfEncoder,
    LstmEncoder,
    TransformerEncoder,
)
from gdmix.deep.frozen import FrozenEmbeddings, Projection
from gdmix.deep.pooling import TextEncoder, pool, words_of
from gdmix.deep.pretrained import HfNetwork, HfTokenizer
from gdmix.deep.text import PAD, Tokenizer, Vocabulary

WordEncoder: TypeAlias = CnnEncoder | LstmEncoder | TransformerEncoder


def learns_words(spec: EncoderSpec) -> TypeGuard[WordEncoder]:
    """Whether the words of the training texts are an encoder's vocabulary."""
    return not isinstance(spec, HfEncoder | FrozenEncoder) and spec.vocabulary is None


def build_tokenizer(spec: EncoderSpec, words: pa.Table | None, device: str = "cpu") -> Tokenizer:
    """Return what an encoder will read texts with.

    Parameters
    ----------
    words
        Those of the distinct training texts, counted; None of an encoder that learns none.
    device
        Where a frozen encoder computes.

    Raises
    ------
    ConfigError
        If a package is missing.
    DataError
        If the texts hold no word.
    ModelError
        If a vocabulary or a pretrained model can't be read.
    """
    if isinstance(spec, HfEncoder):
        return HfTokenizer.from_pretrained(spec.model, spec.revision)
    if isinstance(spec, FrozenEncoder):
        return FrozenEmbeddings.from_pretrained(spec, device)
    if spec.vocabulary is not None:
        return Vocabulary.from_file(
            spec.vocabulary, tokenizer=spec.tokenizer, lowercase=spec.lowercase
        )
    assert words is not None
    return Vocabulary.from_counts(
        words,
        min_count=spec.min_count,
        max_size=spec.max_vocabulary,
        tokenizer=spec.tokenizer,
        lowercase=spec.lowercase,
    )


def load_tokenizer(spec: EncoderSpec, folder: Path, device: str = "cpu") -> Tokenizer:
    """Read what `Tokenizer.save` wrote, without any hub.

    Raises
    ------
    ConfigError
        If a package is missing.
    ModelError
        If a file is missing or damaged.
    """
    if isinstance(spec, HfEncoder):
        return HfTokenizer.load(folder)
    if isinstance(spec, FrozenEncoder):
        return FrozenEmbeddings.load(spec, folder, device)
    return Vocabulary.load(folder, tokenizer=spec.tokenizer, lowercase=spec.lowercase)


def build_encoder(
    spec: EncoderSpec, tokenizer: Tokenizer, *, pretrained: bool = True
) -> TextEncoder:
    """Return an encoder with weights to begin with, drawn by PyTorch's generator.

    Parameters
    ----------
    tokenizer
        Of `build_tokenizer` or `load_tokenizer` for the same spec.
    pretrained
        Whether a Hugging Face model's weights are read; else its state is loaded afterwards.

    Raises
    ------
    ConfigError
        If a package is missing.
    ModelError
        If a pretrained model can't be read.
    """
    if isinstance(tokenizer, HfTokenizer):
        assert isinstance(spec, HfEncoder)
        return HfNetwork(spec, tokenizer, pretrained)
    if isinstance(spec, CnnEncoder):
        return Cnn(spec, tokenizer.size)
    if isinstance(spec, LstmEncoder):
        return Lstm(spec, tokenizer.size)
    if isinstance(spec, TransformerEncoder):
        return Transformer(spec, tokenizer.size)
    return Projection(tokenizer.size, spec.dim)


class Cnn(TextEncoder):
    """The largest value of each filter over all windows of words that begin with a word.

    Beyond its end a text goes on with zeros, so that it has as many windows of any size as words.

    Parameters
    ----------
    size
        Number of tokens.
    """

    def __init__(self, spec: CnnEncoder, size: int) -> None:
        super().__init__()
        self.dim = spec.filters * len(spec.windows)
        self.words = _word_vectors(size, spec.word_dim)
        self.windows = spec.windows
        self.filters = nn.ModuleList(
            nn.Linear(spec.word_dim * window, spec.filters) for window in spec.windows
        )
        self.activation = torch.relu if spec.activation == "relu" else torch.tanh
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return vectors (n, dim)."""
        tokens, is_word = words_of(tokens)
        vectors = self.dropout(self.words(tokens))
        parts = []
        for window, filters in zip(self.windows, self.filters, strict=True):
            # For texts of some words this takes two thirds of the time of Conv1d.
            windows = F.pad(vectors, (0, 0, 0, window - 1)).unfold(1, window, 1)
            parts.append(pool(filters(windows.flatten(2)), is_word, "max"))
        vector = self.activation(torch.cat(parts, 1))  # monotone: may follow the maximum
        return vector.masked_fill(~is_word[:, :1], 0.0)


class Lstm(TextEncoder):
    """States of a long short-term memory over the words, of both directions side by side.

    Parameters
    ----------
    size
        Number of tokens.
    """

    def __init__(self, spec: LstmEncoder, size: int) -> None:
        super().__init__()
        directions = 2 if spec.bidirectional else 1
        self.dim = spec.units * directions
        self.words = _word_vectors(size, spec.word_dim)
        self.lstm = nn.LSTM(
            spec.word_dim,
            spec.units,
            spec.layers,
            batch_first=True,
            dropout=spec.dropout if spec.layers > 1 else 0.0,
            bidirectional=spec.bidirectional,
        )
        self.dropout = nn.Dropout(spec.dropout)
        self.directions, self.pooling = directions, spec.pooling

    def forward(self, tokens: Tensor) -> Tensor:
        """Return vectors (n, dim)."""
        tokens, is_word = words_of(tokens)
        if not len(tokens):
            return self.words.weight.new_zeros(0, self.dim)
        vectors = self.dropout(self.words(tokens))
        # A text without words is read as one padding token, whose state does not count.
        lengths = is_word.sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
        states, (last, _) = self.lstm(packed)
        if self.pooling == "last":
            vector: Tensor = last[-self.directions :].transpose(0, 1).flatten(1)
            return vector.masked_fill(~is_word[:, :1], 0.0)
        states, _ = pad_packed_sequence(states, batch_first=True)
        return pool(states, is_word[:, : states.shape[1]], self.pooling)


class Transformer(TextEncoder):
    """Layers of attention over word vectors plus vectors of their positions, norms first.

    Parameters
    ----------
    size
        Number of tokens.
    """

    def __init__(self, spec: TransformerEncoder, size: int) -> None:
        super().__init__()
        self.dim = spec.word_dim
        self.words = _word_vectors(size, spec.word_dim)
        self.positions = _word_vectors(spec.max_length, spec.word_dim, padding=None)
        self.cls = nn.Parameter(torch.randn(spec.word_dim) * spec.word_dim**-0.5)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                spec.word_dim,
                spec.heads,
                spec.feed_forward or 4 * spec.word_dim,
                spec.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            ),
            spec.layers,
            norm=nn.LayerNorm(spec.word_dim),
            enable_nested_tensor=False,
        )
        self.dropout = nn.Dropout(spec.dropout)
        self.pooling = spec.pooling

    def forward(self, tokens: Tensor) -> Tensor:
        """Return vectors (n, dim)."""
        tokens, is_word = words_of(tokens)
        n, length = tokens.shape
        if not n:
            return self.cls.new_zeros(0, self.dim)
        vectors = self.words(tokens) + self.positions.weight[:length]
        # Every text has its [CLS], so that none is without anything to attend to.
        vectors = torch.cat([self.cls.expand(n, 1, -1), vectors], 1)
        seen = torch.cat([is_word.new_ones(n, 1), is_word], 1)
        states = self.layers(self.dropout(vectors), src_key_padding_mask=~seen)
        if self.pooling == "cls":
            return pool(states, seen, "cls")
        return pool(states[:, 1:], is_word, self.pooling)


def _word_vectors(size: int, dim: int, padding: int | None = PAD) -> nn.Embedding:
    """Return vectors of about length 1, that of padding 0."""
    vectors = nn.Embedding(size, dim, padding_idx=padding)
    with torch.no_grad():
        vectors.weight.mul_(dim**-0.5)
    return vectors
