"""Sentence embeddings of a network that is not trained: made once, and kept on disk.

The cache is a folder with an SQLite file for each network and way of embedding; in it a text is
known by its hash. Whatever fails or is killed, a file holds whole embeddings only. Several
processes may use it: while one makes embeddings, others wait for them, and then find them there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gdmix import memory
from gdmix.config.encoders import FrozenEncoder
from gdmix.deep.pooling import TextEncoder
from gdmix.deep.pretrained import HfTokenizer, embed, encoder_of, read_model, save_model
from gdmix.deep.text import Texts, parts
from gdmix.errors import OutputError

F32 = NDArray[np.float32]

_BLOCK = 1024  # texts that are looked up, made and written together
_SECONDS_TO_WAIT = 600.0
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


class FrozenEmbeddings:
    """The tokenizer of a frozen encoder: its tokens are embeddings.

    Parameters
    ----------
    tokenizer
        Of the network, which is read with it.
    spec
        How texts are embedded and where embeddings are kept.
    device
        Where the network computes.

    Attributes
    ----------
    size
        Length of the embeddings.
    n_made
        Embeddings made so far, rather than found in the cache.

    Raises
    ------
    ModelError
        If the network can't be read, or reads fewer tokens than `max_length`.
    """

    def __init__(self, tokenizer: HfTokenizer, spec: FrozenEncoder, device: str = "cpu") -> None:
        tokenizer.check_length(spec.max_length)
        self._tokenizer, self._spec, self._device = tokenizer, spec, device
        self._model = read_model(tokenizer).eval().to(device)
        self._network = encoder_of(self._model)
        self.size = int(self._network.config.hidden_size)
        self.n_made = 0

    @classmethod
    def from_pretrained(cls, spec: FrozenEncoder, device: str = "cpu") -> FrozenEmbeddings:
        """Read the network from a folder or the hub; raises as `HfTokenizer.from_pretrained`."""
        return cls(HfTokenizer.from_pretrained(spec.model, spec.revision), spec, device)

    @classmethod
    def load(cls, spec: FrozenEncoder, folder: Path, device: str = "cpu") -> FrozenEmbeddings:
        """Read what `save` wrote; raises as `HfTokenizer.load` does."""
        return cls(HfTokenizer.load(folder), spec, device)

    def save(self, folder: Path) -> None:
        """Write the whole network and its tokenizer to a folder, as transformers does."""
        self._tokenizer.save(folder)
        save_model(self._model, folder)

    def encode(self, texts: Texts, max_length: int) -> F32:
        """Return each text's embedding, (n, size); those not in the cache are made.

        Parameters
        ----------
        max_length
            That of the spec: it is part of what embeddings are known by.

        Raises
        ------
        OutputError
            If the cache can't be written, or is damaged.
        """
        result: F32 = memory.empty(len(texts) * self.size, np.float32).reshape(-1, self.size)
        with _Cache(self._cache_file(max_length), self.size) as cache:
            start = 0
            for part in parts(texts, _BLOCK):
                self._fill(result[start : start + len(part)], part.to_pylist(), max_length, cache)
                start += len(part)
        return result

    def _fill(self, rows: F32, texts: list[str], max_length: int, cache: _Cache) -> None:
        keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        found = cache.look_up(keys)
        if any(key not in found for key in keys):
            with cache.alone():
                found |= cache.look_up(keys)  # what another process has made meanwhile
                missing = {k: t for k, t in zip(keys, texts, strict=True) if k not in found}
                made = self._embed(list(missing.values()), max_length)
                cache.put(dict(zip(missing, made, strict=True)))
            found |= dict(zip(missing, made, strict=True))
        for row, key in zip(rows, keys, strict=True):
            row[:] = found[key]

    @torch.no_grad()
    def _embed(self, texts: list[str], max_length: int) -> F32:
        """Return embeddings, (n, size); texts of like length are embedded together."""
        made = np.empty((len(texts), self.size), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), self._spec.batch_size):
            some = order[start : start + self._spec.batch_size]
            tokens = self._tokenizer.encode([texts[i] for i in some], max_length)
            vectors = embed(
                self._network,
                torch.from_numpy(tokens).to(self._device),
                self._tokenizer.pad,
                self._spec.pooling,
                self._spec.normalize,
            )
            made[some] = vectors.cpu().numpy()
        self.n_made += len(texts)
        return made

    def _cache_file(self, max_length: int) -> Path:
        """Return the file for embeddings that are made just so, by a network of these weights."""
        folder = self._spec.cache or default_cache()
        way = f"{self._spec.pooling} {self._spec.normalize} {max_length}"
        identity = hashlib.sha256(f"{self._network_hash} {way}".encode()).hexdigest()
        return folder.expanduser() / f"{identity[:32]}.sqlite"

    @cached_property
    def _network_hash(self) -> str:
        """Hash of weights, tokenizer and configuration, wherever they were read from."""
        total = hashlib.sha256()
        config = self._network.config.to_diff_dict()
        plain = {key: value for key, value in config.items() if key not in _VOLATILE}
        total.update(json.dumps(plain, sort_keys=True, default=str).encode())
        total.update(_tokenizer_text(self._tokenizer.tokenizer).encode())
        for name, tensor in sorted(self._network.state_dict().items()):
            total.update(f"{name} {tuple(tensor.shape)}".encode())
            total.update(tensor.cpu().contiguous().numpy().data)
        return total.hexdigest()


class Projection(TextEncoder):
    """Embeddings as they are, or under a linear layer of another size.

    Parameters
    ----------
    size
        Length of the embeddings.
    dim
        Of what comes out; None: the embeddings' own.
    """

    def __init__(self, size: int, dim: int | None) -> None:
        super().__init__()
        self.dim = dim or size
        self.projection = nn.Identity() if dim is None else nn.Linear(size, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return vectors (n, dim) of embeddings (n, size)."""
        return self.projection(tokens)  # type: ignore[no-any-return]


def default_cache() -> Path:
    """Return the user's folder for embeddings."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "gdmix" / "embeddings"


class _Cache:
    """The file of one kind of embeddings, open."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size

    def __enter__(self) -> _Cache:
        with self._errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self._path, timeout=_SECONDS_TO_WAIT)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS embedding (text BLOB PRIMARY KEY, vector BLOB)"
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def look_up(self, keys: list[bytes]) -> dict[bytes, F32]:
        """Return the embeddings that are there, of at most `_BLOCK` texts."""
        marks = ",".join("?" * len(keys))
        query = f"SELECT text, vector FROM embedding WHERE text IN ({marks})"
        with self._errors():
            rows = self._file.execute(query, keys).fetchall()
        found = {key: np.frombuffer(vector, "<f4") for key, vector in rows}
        if any(vector.size != self._size for vector in found.values()):
            raise OutputError(f"{self._path}: is a damaged cache of embeddings; remove it")
        return found

    def put(self, vectors: dict[bytes, F32]) -> None:
        """Write embeddings, all or none of them."""
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        with self._errors(), self._file:
            self._file.executemany("INSERT OR REPLACE INTO embedding VALUES (?, ?)", rows)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out that would make the same embeddings."""
        with self._errors():
            descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._path}: can't be written: {error.strerror}") from None
        except sqlite3.OperationalError as error:
            raise OutputError(f"{self._path}: can't be written: {error}") from None
        except sqlite3.DatabaseError:
            raise OutputError(
                f"{self._path}: is a damaged cache of embeddings; remove it"
            ) from None


def _tokenizer_text(tokenizer: Any) -> str:
    """Return what a tokenizer does to a text, less how texts were last cut and filled up."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(sorted(tokenizer.get_vocab().items()))
    state = json.loads(backend.to_str())
    return json.dumps({k: v for k, v in state.items() if k not in ("truncation", "padding")})
