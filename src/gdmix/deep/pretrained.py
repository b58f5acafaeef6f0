"""Encoders of the Hugging Face kind, from a folder or the hub, to be trained further.

A model folder keeps their configuration and tokenizer; their weights are with those of the whole
network. So a saved model is read without the hub.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gdmix import memory
from gdmix.config.encoders import HfEncoder
from gdmix.deep.pooling import TextEncoder, pool, words_of
from gdmix.deep.text import PAD, Texts, padded, parts
from gdmix.errors import ConfigError, ModelError

_MISSING = "encoders 'hf' and 'frozen' need transformers: pip install 'gdmix[deep]'"


class HfTokenizer:
    """A Hugging Face tokenizer, and the configuration of the model it belongs to.

    Its numbers are the model's, but for padding: that is 0, and what the model has at 0 takes
    padding's number.

    Parameters
    ----------
    tokenizer, config
        Of transformers.
    source, revision
        Where the weights are to be had.

    Raises
    ------
    ModelError
        If no token can be padding.
    """

    def __init__(self, tokenizer: Any, config: Any, source: str, revision: str | None) -> None:
        if tokenizer.pad_token is None:  # of a model that was not trained in batches
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            raise ModelError(f"{source}: its tokenizer has no token that can be padding")
        tokenizer.truncation_side = "right"
        self.tokenizer, self.config = tokenizer, config
        self.source, self.revision = source, revision

    @classmethod
    def from_pretrained(cls, source: str, revision: str | None = None) -> HfTokenizer:
        """Read a tokenizer and a configuration from a folder or the hub.

        Raises
        ------
        ConfigError
            If transformers is missing.
        ModelError
            If there is no such model, or it is damaged.
        """
        config = _read("AutoConfig", source, revision)
        return cls(_read("AutoTokenizer", source, revision), config, source, revision)

    @classmethod
    def load(cls, folder: Path) -> HfTokenizer:
        """Read what `save` wrote; raises as `from_pretrained` does."""
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder / 'config.json'}: damaged or missing")
        return cls.from_pretrained(str(folder))

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.tokenizer)

    @property
    def longest(self) -> int:
        """The most tokens of a text that the model can read."""
        positions = getattr(self.config, "max_position_embeddings", None) or sys.maxsize
        return min(int(self.tokenizer.model_max_length), positions)

    @property
    def pad(self) -> int:
        """The model's own number of padding."""
        return int(self.tokenizer.pad_token_id)

    def encode(self, texts: Texts, max_length: int) -> NDArray[np.int32]:
        """Return tokens, (n, L), filled up with 0; see `gdmix.deep.text.Tokenizer.encode`.

        Raises
        ------
        ModelError
            If the model can't read that many tokens, or they leave no room for any of the text.
        """
        self.check_length(max_length)
        values, lengths = memory.Stack(np.int32), memory.Stack(np.int32)
        for part in parts(texts):
            tokens = self.tokenizer(
                part.to_pylist(),
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            numbers = np.fromiter(chain.from_iterable(tokens), np.int32)
            values.append(_with_swapped(numbers, self.pad))
            lengths.append(np.fromiter(map(len, tokens), np.int32, len(tokens)))
        return padded(values.finish(), lengths.finish())

    def check_length(self, max_length: int) -> None:
        """Refuse more tokens than the model can read, or too few; raises as `encode` does."""
        own = int(self.tokenizer.num_special_tokens_to_add())
        if max_length <= own:
            raise ModelError(
                f"{self.source}: adds {own} tokens to each text; "
                f"set max_length to more than that (got {max_length})"
            )
        if max_length > self.longest:
            raise ModelError(
                f"{self.source}: reads {self.longest} tokens of a text at most; "
                f"set max_length to that or less (got {max_length})"
            )

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the configuration to a folder."""
        with _quiet():
            self.config.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


class HfNetwork(TextEncoder):
    """A Hugging Face encoder, pooled; above it a linear layer if another size is asked for.

    Parameters
    ----------
    pretrained
        Whether its weights are read.
    """

    def __init__(self, spec: HfEncoder, tokenizer: HfTokenizer, pretrained: bool) -> None:
        super().__init__()
        self.network = encoder_of(read_model(tokenizer) if pretrained else new_model(tokenizer))
        self.pad, self.pooling, self.normalize = tokenizer.pad, spec.pooling, spec.normalize
        hidden = int(self.network.config.hidden_size)
        self.dim = spec.dim or hidden
        self.projection = nn.Identity() if spec.dim is None else nn.Linear(hidden, spec.dim)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the Hugging Face model's."""
        return list(self.network.parameters())

    def forward(self, tokens: Tensor) -> Tensor:
        """Return vectors (n, dim)."""
        vectors = embed(self.network, tokens, self.pad, self.pooling, self.normalize)
        return self.projection(vectors)  # type: ignore[no-any-return]


def embed(network: nn.Module, tokens: Tensor, pad: int, pooling: str, normalize: bool) -> Tensor:
    """Return the pooled states of a Hugging Face network, (n, hidden size).

    Parameters
    ----------
    tokens
        (n, L), of `HfTokenizer`.
    pad
        The network's own number of padding.
    """
    tokens, is_word = words_of(tokens)
    if not len(tokens):
        return next(network.parameters()).new_zeros(0, int(network.config.hidden_size))  # type: ignore[union-attr, arg-type]
    seen = is_word.clone()
    seen[:, 0] = True  # to attend to nothing gives NaN
    own = _with_swapped(tokens, pad)
    states = network(input_ids=own, attention_mask=seen.to(tokens.dtype)).last_hidden_state
    vectors = pool(states, is_word, pooling)
    return F.normalize(vectors, dim=-1) if normalize else vectors


def read_model(tokenizer: HfTokenizer) -> Any:
    """Return the model that a tokenizer belongs to, with its weights, in float32.

    Raises
    ------
    ConfigError
        If transformers is missing.
    ModelError
        If the weights are missing, or not of this model.
    """
    source, config = tokenizer.source, tokenizer.config
    model, found = _read(
        "AutoModel", source, tokenizer.revision, config=config, output_loading_info=True
    )
    unused = ("pooler.", "decoder.") if config.is_encoder_decoder else ("pooler.",)
    lacking = sorted(key for key in found["missing_keys"] if not key.startswith(unused))
    if lacking:
        raise ModelError(f"{source}: its weights lack {len(lacking)} tensors, as {lacking[0]}")
    rows = model.get_input_embeddings().num_embeddings
    if rows < tokenizer.size:
        raise ModelError(
            f"{source}: its tokenizer has {tokenizer.size:,} tokens, its weights {rows:,}"
        )
    return model.float()


def save_model(model: Any, folder: Path) -> None:
    """Write a model's weights and configuration to a folder."""
    with _quiet():
        model.save_pretrained(folder)


def new_model(tokenizer: HfTokenizer) -> Any:
    """Return the model that a tokenizer belongs to, to read a state into."""
    model = _transformers().AutoModel
    with _model_errors(tokenizer.source):
        return model.from_config(tokenizer.config).float()


def encoder_of(model: Any) -> Any:
    """Return the part of a model that gives each token a state."""
    network = model.get_encoder() if model.config.is_encoder_decoder else model
    if isinstance(getattr(network, "pooler", None), nn.Module):
        network.pooler = None  # unused: distributed training waits for every gradient
    return network


def _read(kind: str, source: str, revision: str | None, **arguments: Any) -> Any:
    """Return what one of transformers' classes reads from a folder, the hub's cache or the hub."""
    reader = getattr(_transformers(), kind)
    with _model_errors(source):
        try:
            # What is here already stays what it is, and an unreachable hub is not waited for.
            return reader.from_pretrained(
                source, revision=revision, local_files_only=True, **arguments
            )
        except OSError:
            if Path(source).is_dir():
                raise
            return reader.from_pretrained(source, revision=revision, **arguments)


def _transformers() -> Any:
    """Return the package.

    Raises
    ------
    ConfigError
        If it is missing.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError(_MISSING) from None
    return transformers


@contextmanager
def _model_errors(source: str) -> Iterator[None]:
    """Turn what transformers raises, which is of many kinds, into one line."""
    try:
        with _quiet():
            yield
    except Exception as error:
        if Path(source).is_dir():
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{source}: no Hugging Face model, or damaged: {cause}") from None
        raise ModelError(
            f"{source}: no such folder, and the Hugging Face hub has no such model or can't be "
            "reached; give a folder, or the id of a model that is in the hub's cache"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the warnings and progress bars of transformers back."""
    bars: Any = importlib.import_module("transformers.utils.logging")  # its types are partial
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels, shows_bars = [logger.level for logger in loggers], bars.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shows_bars:
            bars.enable_progress_bar()


def _with_swapped(numbers: Any, pad: int) -> Any:
    """Return tokens, an array or a tensor, with the model's own padding and 0 swapped."""
    if pad == PAD:
        return numbers
    swapped = numbers.clone() if isinstance(numbers, Tensor) else numbers.copy()
    swapped[numbers == PAD], swapped[numbers == pad] = pad, PAD
    return swapped
