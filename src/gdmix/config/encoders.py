"""What turns a text into a vector, as a user writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gdmix.config.base import Strict, known_as

SPECIAL_TOKENS = ("[PAD]", "[UNK]")  # their numbers are their places: 0 and 1

Share = Annotated[float, Field(ge=0, lt=1)]


class _Encoder(Strict):
    max_length: int = Field(64, ge=1, description="tokens of a text that are read; the rest is cut")

    @property
    def is_pretrained(self) -> bool:
        """Whether it begins with the weights of a Hugging Face model."""
        return False


class _WordEncoder(_Encoder):
    """An encoder over word vectors that it learns itself."""

    tokenizer: Literal["words", "whitespace"] = Field(
        "words", description="words: runs of letters and digits; whitespace: what is between blanks"
    )
    lowercase: bool = Field(True, description="regard capitals as small letters")
    min_count: int = Field(
        1,
        ge=1,
        description="words that occur less often in the distinct training texts are unknown",
    )
    max_vocabulary: int | None = Field(
        None, description="the most frequent words, the two for padding and the unknown included"
    )
    vocabulary: Path | None = Field(
        None, description="file of words, one a line; default: those of the training texts"
    )
    word_dim: int = Field(64, ge=1, description="size of a word's vector")
    dropout: Share = Field(0.0, description="share of values that a training step leaves out")

    @field_validator("max_vocabulary")
    @classmethod
    def _room_for_words(cls, size: int | None) -> int | None:
        if size is not None and size <= len(SPECIAL_TOKENS):
            raise PydanticCustomError(
                "vocabulary", f"should be {len(SPECIAL_TOKENS) + 1} or more: {_TWO_ARE_SPECIAL}"
            )
        return size

    @model_validator(mode="after")
    def _one_vocabulary(self) -> Self:
        counted = {"min_count": self.min_count > 1, "max_vocabulary": self.max_vocabulary}
        for key, value in counted.items():
            if self.vocabulary is not None and value:
                raise PydanticCustomError(
                    "vocabulary", f"vocabulary says which words there are: remove it, or {key}"
                )
        return self


_TWO_ARE_SPECIAL = f"{' and '.join(SPECIAL_TOKENS)} are two of them"


@known_as("cnn", "CnnEncoder")
class CnnEncoder(_WordEncoder):
    """Convolutions over windows of words, the largest value of each filter (Kim, 2014).

    Examples
    --------
    >>> CnnEncoder(windows=[2, 3], filters=50).type
    'cnn'
    """

    type: Literal["cnn"] = "cnn"
    windows: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 3), min_length=1, description="sizes of the windows, in words"
    )
    filters: int = Field(64, ge=1, description="filters of each window size")
    activation: Literal["relu", "tanh"] = Field("relu", description="of the filters' values")

    @field_validator("windows", mode="before")
    @classmethod
    def _one_window(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("windows")
    @classmethod
    def _each_once(cls, windows: tuple[int, ...]) -> tuple[int, ...]:
        repeated = sorted({size for size in windows if windows.count(size) > 1})
        if repeated:
            raise PydanticCustomError("repeated", f"{repeated[0]} is listed twice")
        return windows


@known_as("lstm", "LstmEncoder")
class LstmEncoder(_WordEncoder):
    """A long short-term memory over the words (Hochreiter & Schmidhuber, 1997)."""

    type: Literal["lstm"] = "lstm"
    units: int = Field(64, ge=1, description="size of the state, of each direction")
    layers: int = Field(1, ge=1, description="one above the other")
    bidirectional: bool = Field(False, description="read backwards too")
    pooling: Literal["last", "mean", "max"] = Field(
        "last", description="what the vector is of the states: the last, their mean or largest"
    )


@known_as("transformer", "TransformerEncoder")
class TransformerEncoder(_WordEncoder):
    """A small transformer with learned positions, trained here (Vaswani et al., 2017)."""

    type: Literal["transformer"] = "transformer"
    layers: int = Field(2, ge=1, description="one above the other")
    heads: int = Field(4, ge=1, description="of attention; they share word_dim")
    feed_forward: int | None = Field(
        None, ge=1, description="hidden size within a layer; default: four times word_dim"
    )
    pooling: Literal["mean", "cls", "max"] = Field(
        "mean", description="what the vector is: of the words' mean or largest, or a [CLS] token's"
    )
    dropout: Share = Field(0.1, description="share of values that a training step leaves out")

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.word_dim % self.heads:
            raise PydanticCustomError(
                "heads", f"heads: {self.heads} heads can't share a word_dim of {self.word_dim}"
            )
        return self


class _PretrainedEncoder(_Encoder):
    """An encoder that begins with the weights of a Hugging Face model."""

    model: str = Field(min_length=1, description="folder of a Hugging Face model, or id on the hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    pooling: Literal["mean", "cls", "max"] = Field(
        "mean", description="what the vector is: of the tokens' mean or largest, or the first's"
    )
    dim: int | None = Field(
        None, ge=1, description="size of a linear layer above; default: none, the model's own size"
    )

    @property
    def is_pretrained(self) -> bool:
        """Whether it begins with the weights of a Hugging Face model."""
        return True


@known_as("hf", "HfEncoder")
class HfEncoder(_PretrainedEncoder):
    """Any Hugging Face encoder, fine-tuned with its own learning rate.

    Examples
    --------
    >>> HfEncoder(model="models/minilm", max_length=32).pooling
    'mean'
    """

    type: Literal["hf"] = "hf"
    normalize: bool = Field(False, description="scale the vector of a text to length 1")


@known_as("frozen", "FrozenEncoder")
class FrozenEncoder(_PretrainedEncoder):
    """Sentence embeddings of a Hugging Face encoder that is not trained.

    Each distinct text is embedded once and kept in a cache on disk.
    """

    type: Literal["frozen"] = "frozen"
    max_length: int = Field(
        256, ge=1, description="tokens of a text that are read; the rest is cut"
    )
    normalize: bool = Field(True, description="scale the embedding of a text to length 1")
    cache: Path | None = Field(
        None, description="folder of embeddings; default: ~/.cache/gdmix/embeddings"
    )
    batch_size: int = Field(64, ge=1, description="texts that are embedded at once")


def _by_its_type(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


EncoderSpec = Annotated[
    CnnEncoder | LstmEncoder | TransformerEncoder | HfEncoder | FrozenEncoder,
    Field(discriminator="type"),
]
Encoder = Annotated[EncoderSpec, BeforeValidator(_by_its_type)]
"""An encoder's configuration; its type alone will do."""
