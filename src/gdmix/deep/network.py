"""The network of a deep fixed effect: inputs to vectors of sides, their interaction, the score.

Each side's inputs, side by side, go through layers to one vector. What these vectors have in
common, the inputs that belong to no side, and the wide features' vector are what the deep part
sees; a tower of its own may see the wide features too, and they add to the score directly::

    text, ids, dense, wide ─► side ─┐
                                    ├─ interaction ─┐
    text, ids, dense, wide ─► side ─┘               │
    text, ids, dense ───────────────────────────────┼─ hidden ─┐
    wide ─┬─ vector ────────────────────────────────┘          ├─ linear ─┐
          ├─ shallow tower ────────────────────────────────────┘          ├─► score
          └─ skip ────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gdmix.config import DeepFixedEffect
from gdmix.deep.encoders import build_encoder
from gdmix.deep.inputs import InputSizes
from gdmix.deep.interaction import Interaction
from gdmix.deep.pooling import TextEncoder
from gdmix.deep.text import Tokenizer
from gdmix.errors import ConfigError

Batch = Mapping[str, Tensor]
I64 = NDArray[np.int64]

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
_SPREAD = 0.05  # standard deviation of the entries of new vectors


class DeepNetwork(nn.Module):
    """The network that a spec describes.

    Parameters
    ----------
    spec
        The coordinate's.
    sizes
        Of the inputs.
    encoder
        Of texts; None without any.
    """

    def __init__(
        self, spec: DeepFixedEffect, sizes: InputSizes, encoder: TextEncoder | None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self._spec, self._sizes = spec, sizes
        self._keys = list(spec.keyed_inputs)
        # The vector of the wide features of each side, and of those of the deep part itself.
        dims = {bag: spec.dim if name else spec.wide_dim for name, bag in _wide_of(spec)}
        self._seen = [bag for bag, dim in dims.items() if dim]
        self._skipped = list(dims) if spec.skip else []
        self._shallow = list(dims) if spec.shallow else []
        self.ids = nn.ModuleList(
            nn.Embedding(sizes.ids[key], own.dim) for key, own in spec.keyed_inputs.items()
        )
        self.wide = nn.ModuleList(_table(sizes, bag, dims[bag]) for bag in self._seen)
        self.skip = nn.ModuleList(_table(sizes, bag, 1) for bag in self._skipped)
        self.shallow_wide = nn.ModuleList(
            _table(sizes, bag, spec.shallow[0]) for bag in self._shallow
        )
        self._draw_tables()

        self.sides = nn.ModuleList(
            _layers(self._width_of(name), (*side.hidden, spec.dim), spec, ends=False)
            for name, side in spec.sides.items()
        )
        self._order = [spec.document, *(name for name in spec.sides if name != spec.document)]
        others = len(spec.sides) - 1
        meeting = Interaction(spec.dim, spec.interaction, 1, others) if spec.sides else None
        self.interaction = meeting
        seen = self._width_of("") + (0 if meeting is None else meeting.width)
        hidden = spec.hidden if seen else ()
        self.hidden = _layers(seen, hidden, spec)
        tower = _layers(spec.shallow[0], spec.shallow[1:], spec) if spec.shallow else None
        self.shallow = tower
        self.output = nn.Linear((hidden or (seen,))[-1] + (spec.shallow or (0,))[-1], 1)

    def _draw_tables(self) -> None:
        """Let new vectors be small, that of an unknown value and the direct way zero."""
        with torch.no_grad():
            for table in (*self.ids, *self.wide, *self.shallow_wide):
                assert isinstance(table, nn.Embedding | nn.EmbeddingBag)
                table.weight.normal_(0.0, _SPREAD)
            for table in self.ids:
                assert isinstance(table, nn.Embedding)
                table.weight[0] = 0.0
            for table in self.skip:
                assert isinstance(table, nn.EmbeddingBag)
                table.weight.zero_()

    def _width_of(self, name: str) -> int:
        """Return how many numbers the inputs of a side are; of "", those of no side."""
        part, spec, sizes = self._spec.parts[name], self._spec, self._sizes
        text = 0 if self.encoder is None else self.encoder.dim * len(part.text)
        wide = (spec.dim if name else spec.wide_dim) if part.wide else 0
        dims = [own.dim for own in part.keyed.values()]
        return text + sum(dims) + sum(sizes.dense[bag] for bag in part.dense) + wide

    def forward(self, batch: Batch) -> Tensor:
        """Return the score of each row, (n,)."""
        seen = self._inputs_of("", batch)
        if self.interaction is not None:
            sides = [self.side_vector(str(name), batch) for name in self._order]
            seen.insert(0, self.interaction(sides[:1], sides[1:]))
        last = [self.hidden(torch.cat(seen, 1))] if seen else []
        if self.shallow is not None:
            vector = _sum_of(self._bags(self.shallow_wide, self._shallow, batch))
            last.append(self.shallow(_activated(vector, self._spec)))
        score: Tensor = self.output(torch.cat(last, 1))
        for direct in self._bags(self.skip, self._skipped, batch):
            score = score + direct
        return score.squeeze(1)

    def side_vector(self, name: str, batch: Batch) -> Tensor:
        """Return the vector of a side of each row, (n, dim)."""
        layers = self.sides[list(self._spec.sides).index(name)]
        vector: Tensor = layers(torch.cat(self._inputs_of(name, batch), 1))
        return vector

    def _inputs_of(self, name: str, batch: Batch) -> list[Tensor]:
        part = self._spec.parts[name]
        inputs = [self._text_vector(column, batch) for column in part.text]
        for key in part.keyed:
            inputs.append(self.ids[self._keys.index(key)](batch[f"id/{key}"]))
        inputs += [batch[f"dense/{bag}"] for bag in part.dense]
        wide = [bag for bag in part.wide if bag in self._seen]
        if wide:
            tables = [self.wide[self._seen.index(bag)] for bag in wide]
            inputs.append(_sum_of(self._bags(tables, wide, batch)))
        return inputs

    def _text_vector(self, column: str, batch: Batch) -> Tensor:
        """Return the vector of each row's text; a scorer may have those of distinct texts."""
        vectors = batch.get(f"vector/{column}")
        if vectors is None:
            assert self.encoder is not None
            vectors = self.encoder(batch[f"text/{column}"])
        return vectors[batch[f"text_of/{column}"]]

    @staticmethod
    def _bags(tables: Iterable[nn.Module], bags: Sequence[str], batch: Batch) -> Iterator[Tensor]:
        for table, bag in zip(tables, bags, strict=True):
            assert isinstance(table, nn.EmbeddingBag)
            index, start, value = (batch[f"wide_{k}/{bag}"] for k in ("index", "start", "value"))
            yield table(index, start, per_sample_weights=value.to(table.weight.dtype))

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """Yield those that began with the weights of a pretrained model."""
        if self.encoder is not None:
            yield from self.encoder.pretrained_parameters()

    def regrown(self, sizes: InputSizes, wide: Mapping[str, I64], seed: int) -> DeepNetwork:
        """Return the network for inputs of other sizes.

        Parameters
        ----------
        sizes
            Of ids at least as large as these; new ones' vectors are drawn.
        wide
            Of each bag the new column of each old one, -1 where there is none.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            grown = DeepNetwork(self._spec, sizes, self.encoder)
        before = self.state_dict()
        after = grown.state_dict()
        moved: dict[str, I64 | None] = {f"ids.{k}.weight": None for k in range(len(self._keys))}
        tables = {"wide": self._seen, "skip": self._skipped, "shallow_wide": self._shallow}
        for table, bags in tables.items():
            moved |= {f"{table}.{k}.weight": wide[bag] for k, bag in enumerate(bags)}
        for name, old in before.items():
            if name not in moved:
                after[name] = old
                continue
            numbers = moved[name]
            rows = np.arange(len(old)) if numbers is None else numbers
            kept = np.flatnonzero(rows >= 0)
            after[name][torch.from_numpy(rows[kept])] = old[torch.from_numpy(kept)]
        grown.load_state_dict(after)
        return grown.eval()


def build_network(
    spec: DeepFixedEffect,
    sizes: InputSizes,
    tokenizer: Tokenizer | None,
    seed: int,
    *,
    pretrained: bool = True,
) -> nn.Module:
    """Return a network with weights to begin with.

    Parameters
    ----------
    tokenizer
        Of the texts.
    seed
        Of the weights.
    pretrained
        Whether a pretrained encoder's weights are read; else they are loaded afterwards.

    Raises
    ------
    ConfigError
        If a user's own network can't be made, or a package is missing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.model is not None:
            return own_network(spec, sizes)
        encoder = None
        if tokenizer is not None:
            encoder = build_encoder(spec.encoder, tokenizer, pretrained=pretrained)
        return DeepNetwork(spec, sizes, encoder)


def network_class(place: str, where: str) -> type[nn.Module]:
    """Import a user's own network.

    Parameters
    ----------
    place
        module:Class.
    where
        What messages begin with.

    Raises
    ------
    ConfigError
        If there is none, or it is no network.
    """
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ConfigError(
            f"{where}: {place} can't be imported: {error}; is its folder on PYTHONPATH?"
        ) from None
    if found is None:
        raise ConfigError(f"{where}: module {module} has no '{name}'")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"{where}: {place} is no class of networks: torch.nn.Module")
    return found


def own_network(spec: DeepFixedEffect, sizes: InputSizes) -> nn.Module:
    """Make a user's own network; its constructor may ask for the sizes of inputs.

    Raises
    ------
    ConfigError
        If it can't be made.
    """
    assert spec.model is not None
    where = f"coordinates.{spec.name}.model" if spec.name else "model"
    made = network_class(spec.model, where)
    given = dict(spec.params)
    if "inputs" in inspect.signature(made.__init__).parameters and "inputs" not in given:
        given["inputs"] = sizes
    try:
        return made(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {spec.model} can't be made: {error}") from None


def _wide_of(spec: DeepFixedEffect) -> Iterator[tuple[str, str]]:
    """Yield the name of each wide bag's side, and the bag."""
    for name, part in spec.parts.items():
        for bag in part.wide:
            yield name, bag


def _table(sizes: InputSizes, bag: str, dim: int) -> nn.EmbeddingBag:
    """Return the table of a bag's vectors, which are summed with features' values as weights."""
    return nn.EmbeddingBag(max(sizes.wide[bag], 1), dim, mode="sum")


def _layers(
    width: int, sizes: Sequence[int], spec: DeepFixedEffect, ends: bool = True
) -> nn.Sequential:
    """Return linear layers, each one followed by the activation; the last one if it `ends` so."""
    layers: list[nn.Module] = []
    for k, size in enumerate(sizes):
        layers.append(nn.Linear(width, size))
        if ends or k < len(sizes) - 1:
            layers += [_ACTIVATIONS[spec.activation](), nn.Dropout(spec.dropout)]
        width = size
    return nn.Sequential(*layers)


def _activated(vector: Tensor, spec: DeepFixedEffect) -> Tensor:
    result: Tensor = _ACTIVATIONS[spec.activation]()(vector)
    return result


def _sum_of(vectors: Iterator[Tensor]) -> Tensor:
    total = next(vectors)
    for vector in vectors:
        total = total + vector
    return total
