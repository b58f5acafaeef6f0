"""The model of a deep fixed effect: a network, and what turns rows into its inputs.

config.json                the spec, sizes of inputs, the level
model.safetensors          weights of the network; means and scales of dense bags
tokenizer/                 what texts are read with
categories-<k>.parquet     the values of the k-th key that have numbers, from 1
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gdmix import memory
from gdmix.config import CoordinateSpec, DeepFixedEffect
from gdmix.data.dataset import Dataset
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.keys import Keys
from gdmix.data.write import atomic_file, write_json, write_table
from gdmix.deep.encoders import load_tokenizer
from gdmix.deep.inputs import (
    EncodedRows,
    InputEncoding,
    Numbering,
    Standardizer,
    TextColumn,
    where_to_compute,
)
from gdmix.deep.network import DeepNetwork, build_network
from gdmix.deep.text import Tokenizer
from gdmix.errors import ConfigError, ModelError, did_you_mean
from gdmix.model.base import summary_of
from gdmix.model.coefficient_files import read_entities

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_CONFIG, _WEIGHTS, _TOKENIZER = "config.json", "model.safetensors", "tokenizer"
# Of rows that are scored: distinct texts are encoded once in a window, layers see a batch.
_WINDOW, _BATCH, _TEXTS = 1 << 17, 1 << 13, 256

# What decides of the network, as opposed to how it is trained.
_SHAPE = (
    "text", "categorical", "crosses", "dense", "wide", "sides", "encoder", "dim", "interaction",
    "hidden", "activation", "wide_dim", "shallow", "skip", "model", "params",
)  # fmt: skip
_NO_SHAPE = {"dropout", "cache", "batch_size", "vocabulary", "min_count", "max_vocabulary"}


class Scaled(nn.Module):
    """A network's scores in the units of the response: ``level + scale * network(batch)``.

    Weights of the usual size then suit whatever units there are.
    """

    def __init__(self, network: nn.Module, level: float, scale: float) -> None:
        super().__init__()
        self.network, self.level, self.scale = network, level, scale

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the score of each row, (n,)."""
        score: Tensor = self.level + self.scale * self.network(batch)
        return score

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """Yield those that began with the weights of a pretrained model."""
        own = getattr(self.network, "pretrained_parameters", None)
        yield from () if own is None else own()


@dataclass(frozen=True)
class DeepModel:
    """A trained network. It is never changed: to train on is to train a copy.

    Attributes
    ----------
    spec
        What it was trained by.
    encoding
        What turns rows into its inputs.
    network
        On the CPU, in evaluation mode.
    level, scale
        See `Scaled`.
    fits
        How many fits it has behind it.
    """

    spec: DeepFixedEffect
    encoding: InputEncoding
    network: nn.Module
    level: float = 0.0
    scale: float = 1.0
    fits: int = 1
    type: ClassVar[str] = "deep"

    @property
    def features(self) -> tuple[str, ...]:
        """Its feature bags."""
        return self.spec.bags

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns of text and ids, and combinations of these."""
        return tuple(dict.fromkeys((*self.spec.texts, *self.encoding.ids)))

    @property
    def optional_keys(self) -> frozenset[str]:
        """All of them."""
        return frozenset(self.keys)

    @property
    def text_keys(self) -> frozenset[str]:
        """Those of them that are nothing but texts."""
        return frozenset(self.keys) - self.encoding.ids.keys()

    @cached_property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.network.parameters())

    def score(self, rows: Dataset, threads: int = 1) -> F64:
        """Return each row's score, (n,), without the row's offset.

        Raises
        ------
        DataError
            If a column is of another type than in training.
        ModelError
            If scores are not one finite number per row.
        """
        return self.score_encoded(self.encoding.encode(rows), threads)

    def score_encoded(self, rows: EncodedRows, threads: int = 1) -> F64:
        """Return the scores of rows that are encoded already."""
        scaled = Scaled(self.network, self.level, self.scale)
        return score_rows(scaled, rows, threads, self.spec.training.device)

    def encode(self, rows: Dataset, side: str, threads: int = 1) -> F32:
        """Return the vector of a side of each row, (n, dim).

        Raises
        ------
        ModelError
            If there is no such side.
        """
        self.check_side(side)
        assert isinstance(self.network, DeepNetwork)
        vectors: F32 = memory.empty(rows.n_rows * self.spec.dim, np.float32)
        vectors = vectors.reshape(-1, self.spec.dim)
        network, columns = self.network, self.spec.sides[side].text
        encoded = self.encoding.encode(rows)
        with _scoring(network, threads, self.spec.training.device) as own:
            for part, batch in _batches(own, encoded, columns):
                vectors[part] = own.side_vector(side, batch).float().cpu().numpy()
        return vectors

    def check_side(self, side: str) -> None:
        """Refuse a side that it does not have.

        Raises
        ------
        ModelError
            If it is so.
        """
        if not isinstance(self.network, DeepNetwork):
            raise ModelError(f"{self.spec.model} is a network of your own: it has no sides")
        known = tuple(self.spec.sides)
        if side not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none: name some under `sides`"
            raise ModelError(f"no side '{side}'{did_you_mean(side, known)}; {has}")

    def differences(self, spec: CoordinateSpec) -> Iterator[tuple[str, str, str]]:
        """Yield what a spec has otherwise: the setting, there and here."""
        yield from _differences(_shape(spec), _shape(self.spec))

    def aligned(
        self, name: str, before: Mapping[str, FeatureIndex], after: Mapping[str, FeatureIndex]
    ) -> DeepModel:
        """Return the model under another feature index; wide features that are new begin anew."""
        moved = {
            bag: before[bag].columns_in(after[bag])
            for bag in (*self.encoding.wide, *self.encoding.dense)
        }
        dense = {}
        for bag, own in self.encoding.dense.items():
            columns = np.where(own.columns >= 0, moved[bag][own.columns], -1)
            dense[bag] = replace(own, columns=columns)
        wide = {bag: len(after[bag]) for bag in self.encoding.wide}
        encoding = replace(self.encoding, dense=dense, wide=wide)
        same = all(
            size == wide[bag] and (moved[bag] == np.arange(size)).all()
            for bag, size in self.encoding.wide.items()
        )
        return self._regrown(encoding, {} if same else moved, name)

    def extended(self, keys: Mapping[str, Keys], name: str) -> DeepModel:
        """Return the model with vectors, to be trained, of ids that it does not know yet."""
        return self._regrown(self.encoding.extended(keys), {}, name)

    def _regrown(self, encoding: InputEncoding, moved: Mapping[str, I64], name: str) -> DeepModel:
        if encoding.sizes == self.encoding.sizes and not moved:
            return replace(self, encoding=encoding)
        if not isinstance(self.network, DeepNetwork):
            raise ConfigError(
                f"coordinates.{name}: {self.spec.model} can't go on from the earlier model: these "
                "rows have other features or ids, for which it has no weights"
            )
        wide = {bag: moved.get(bag, np.arange(size)) for bag, size in self.encoding.wide.items()}
        network = self.network.regrown(encoding.sizes, wide, self.fits)
        return replace(self, encoding=encoding, network=network)

    def summary(self) -> dict[str, object]:
        """Return what it is."""
        spec = self.spec
        return {
            **summary_of(self, models=1, coefficients=self.parameters),
            "text": list(spec.texts),
            "categorical": list(self.encoding.ids),
            "sides": list(spec.sides),
            "encoder": spec.encoder.type if spec.texts else None,
            "network": spec.model,
        }

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {
            "type": self.type,
            "features": list(self.features),
            "text": list(self.spec.texts),
            "categorical": list(self.encoding.ids),
            "sides": list(self.spec.sides),
            "parameters": self.parameters,
        }

    def write(self, folder: Path) -> None:
        """Write the files that this module lists.

        Raises
        ------
        OutputError
            If the system refuses to write there.
        """
        encoding = self.encoding
        tensors = {f"network.{k}": v.contiguous() for k, v in self.network.state_dict().items()}
        dense = {}
        for k, (bag, own) in enumerate(encoding.dense.items()):
            dense[bag] = {"keeps_missing": own.keeps_missing, "columns": own.columns.tolist()}
            tensors[f"dense.{k}.mean"] = torch.from_numpy(own.mean)
            tensors[f"dense.{k}.scale"] = torch.from_numpy(own.scale)
        ids: dict[str, int | None] = {}
        for k, (key, numbering) in enumerate(encoding.ids.items()):
            ids[key] = numbering.buckets
            if numbering.values is not None:
                write_table(pa.table({"value": numbering.values}), folder / _categories(k))
        if encoding.tokenizer is not None:
            (folder / _TOKENIZER).mkdir(parents=True, exist_ok=True)
            encoding.tokenizer.save(folder / _TOKENIZER)
        with atomic_file(folder / _WEIGHTS) as temporary:
            temporary.write_bytes(save(_unshared(tensors)))
        tree = {
            "spec": self.spec.model_dump(mode="json"),
            "level": self.level,
            "scale": self.scale,
            "fits": self.fits,
            "dense": dense,
            "buckets": ids,
            "wide": dict(encoding.wide),
        }
        write_json(tree, folder / _CONFIG)


def read_deep(
    folder: Path, entry: Mapping[str, Any], indices: Mapping[str, FeatureIndex]
) -> DeepModel:
    """Read what `DeepModel.write` wrote; nothing is fetched from anywhere.

    Raises
    ------
    ConfigError
        If a network of the user's own can't be imported.
    ModelError
        If a file is missing or damaged.
    """
    path, weights = folder / _CONFIG, folder / _WEIGHTS
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        spec = DeepFixedEffect.model_validate(tree["spec"])
        tensors = load_file(weights)
    except OSError as error:
        raise ModelError(f"{folder}: damaged or missing: {error.strerror or error}") from None
    except SafetensorError as error:
        raise ModelError(f"{weights}: damaged: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    try:
        encoding = InputEncoding(
            spec.texts,
            _read_tokenizer(spec, folder / _TOKENIZER) if spec.texts else None,
            spec.encoder.max_length,
            {
                key: Numbering(None, buckets)
                if buckets is not None
                else Numbering(read_entities(folder / _categories(k), "value"))
                for k, (key, buckets) in enumerate(tree["buckets"].items())
            },
            {
                bag: Standardizer(
                    np.array(own["columns"], np.int64),
                    tensors.pop(f"dense.{k}.mean").numpy(),
                    tensors.pop(f"dense.{k}.scale").numpy(),
                    bool(own["keeps_missing"]),
                )
                for k, (bag, own) in enumerate(tree["dense"].items())
            },
            {bag: int(size) for bag, size in tree["wide"].items()},
        )
        network = build_network(spec, encoding.sizes, encoding.tokenizer, 0, pretrained=False)
        state = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{weights}: does not fit {_CONFIG}: {reason[:200]}") from None
    return DeepModel(
        spec, encoding, network.eval(), float(tree["level"]), float(tree["scale"]), tree["fits"]
    )


def _read_tokenizer(spec: DeepFixedEffect, folder: Path) -> Tokenizer:
    return load_tokenizer(spec.encoder, folder, device=where_to_compute(spec.training.device))


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors none of which shares another one's memory, as the format has it."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result


def _categories(number: int) -> str:
    return f"categories-{number}.parquet"


def _shape(spec: CoordinateSpec) -> dict[str, Any]:
    """Return what decides of the network, in JSON's types."""
    tree = spec.model_dump(mode="json", include=set(_SHAPE))
    tree["encoder"] = {k: v for k, v in tree["encoder"].items() if k not in _NO_SHAPE}
    return tree


def _differences(
    here: Mapping[str, Any], there: Mapping[str, Any], place: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield the places at which trees differ, and their values; one level of names deep."""
    for key in dict.fromkeys((*here, *there)):
        own, other = here.get(key), there.get(key)
        if own == other:
            continue
        if isinstance(own, Mapping) and isinstance(other, Mapping) and not place:
            yield from _differences(own, other, f"{key}.")
        else:
            yield place + key, _short(own), _short(other)


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def score_rows(
    network: nn.Module, rows: EncodedRows, threads: int | None = None, device: str | None = None
) -> F64:
    """Return the score of each row, (n,), in the order of rows.

    Parameters
    ----------
    network
        From a batch to scores.
    threads
        Default: as PyTorch is set.
    device
        As of `Training`; where there is no GPU, the CPU. Default: where the network is.

    Raises
    ------
    ModelError
        If it does not give a finite number per row.
    """
    scores: F64 = memory.empty(rows.n_rows)
    what = type(getattr(network, "network", network)).__name__
    with _scoring(network, threads, device) as own:
        inner = getattr(own, "network", own)
        columns = tuple(rows.texts) if isinstance(inner, DeepNetwork) else ()
        for part, batch in _batches(own, rows, columns):
            given = own(batch)
            n = part.stop - part.start
            if given.shape != (n,):
                shape = tuple(given.shape)
                raise ModelError(
                    f"{what}: should score {n:,} rows with ({n},) numbers, not {shape}"
                )
            scores[part] = given.double().cpu().numpy()
    odd = sum(
        int(np.count_nonzero(~np.isfinite(scores[first : first + _WINDOW])))
        for first in range(0, rows.n_rows, _WINDOW)
    )
    if odd:
        raise ModelError(f"{what}: {odd:,} of {rows.n_rows:,} scores are infinite or NaN")
    return scores


def _batches(
    network: nn.Module, rows: EncodedRows, columns: tuple[str, ...]
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield the rows of each batch, and its tensors.

    Parameters
    ----------
    columns
        Of text, whose distinct texts' vectors are made once for many batches.
    """
    inner = getattr(network, "network", network)
    where = next((p.device for p in network.parameters()), torch.device("cpu"))
    for start in range(0, rows.n_rows, _WINDOW):
        stop = min(start + _WINDOW, rows.n_rows)
        vectors, which = {}, {}
        for column in columns:
            texts, of = np.unique(
                rows.texts_of(column, np.arange(start, stop)), return_inverse=True
            )
            assert isinstance(inner, DeepNetwork)
            vectors[column], which[column] = _vectors(inner, rows.texts[column], texts, where), of
        for first in range(start, stop, _BATCH):
            part = slice(first, min(first + _BATCH, stop))
            numbers = np.arange(part.start, part.stop)
            batch = rows.without_texts(numbers) if columns else rows.batch(numbers)
            for column in columns:
                batch[f"vector/{column}"] = vectors[column]
                of = which[column][part.start - start : part.stop - start]
                batch[f"text_of/{column}"] = torch.from_numpy(of)
            yield part, {name: tensor.to(where) for name, tensor in batch.items()}


def _vectors(network: DeepNetwork, column: TextColumn, texts: I64, where: torch.device) -> Tensor:
    """Return the vectors of distinct texts, (u, dim)."""
    encoder = network.encoder
    assert encoder is not None
    vectors = torch.empty((texts.size, encoder.dim), device=where)
    # Texts of a like length go together: less is filled up.
    order = np.argsort(column.lengths()[texts], kind="stable")
    for first in range(0, texts.size, _TEXTS):
        some = order[first : first + _TEXTS]
        tokens = column.take(texts[some]).to(where)
        vectors[torch.from_numpy(some).to(where)] = encoder(tokens).float()
    return vectors


@contextmanager
def _scoring(network: Any, threads: int | None, device: str | None) -> Iterator[Any]:
    """Yield the network where it shall compute, ready to score; afterwards it is as before."""
    before, is_training = torch.get_num_threads(), network.training
    home = next((p.device for p in network.parameters()), torch.device("cpu"))
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            if device is not None:
                network.to(where_to_compute(device))
            yield network.eval()
    finally:
        network.to(home).train(is_training)
        torch.set_num_threads(before)
