"""Where the rows of a coordinate are fitted, and how they get there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from gdmix.data.dataset import Dataset
from gdmix.data.keys import Keys
from gdmix.data.partition import key_hashes, take_rows
from gdmix.engines.spark.exchange import (
    Addressed,
    Placement,
    Route,
    addressed,
    opened,
)
from gdmix.engines.spark.giants import Giants, Left
from gdmix.engines.spark.tasks.kinds import BAGS, HEAD, LEFT, STAYING, TRAIN


@dataclass(frozen=True)
class Layout:
    """Where the rows of a coordinate are fitted.

    Attributes
    ----------
    name
        Of the coordinate.
    partitions
        Number of its partitions.
    entity
        Name of the key that places rows; None: whole homes, one after the other.
    placement
        Of its entities.
    bags, keys
        What the coordinate needs of rows.
    giants
        Entities of which most rows stay at home.
    """

    name: str
    partitions: int
    entity: str | None
    placement: Placement | None
    bags: tuple[str, ...]
    keys: tuple[str, ...]
    giants: Giants | None = None

    def route(self, role: str, rows: Dataset, home: int) -> Route:
        """Return where the rows of a home go."""
        if self.entity is None or self.placement is None:
            targets = np.full(rows.n_rows, home % self.partitions, np.int32)
        else:
            targets = self.placement.of_rows(rows.keys[self.entity], home)
        if self.giants is not None:
            targets[self.giants.staying(rows, role == TRAIN)] = self.partitions
        return Route.to(targets, self.partitions)


def depart(layout: Layout, home: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Send the rows of a home to the partitions where a coordinate is fitted."""
    found = opened(pieces)
    heads, bags = found[HEAD][home], found[BAGS][home]
    for role, head in heads.items():
        rows = replace(head, bags=bags[role])
        route = layout.route(role, rows, home)
        for target in route.targets:
            part = take_rows(rows, route.rows(int(target)), layout.bags, layout.keys)
            yield from addressed(int(target), role, home, part)
        if layout.giants is not None and layout.placement is not None and role == TRAIN:
            left: dict[int, Left] = {}
            for entity, own in layout.giants.left(rows, route.staying).items():
                target = layout.placement.of_hashes(np.array([entity], np.uint64))[0]
                left.setdefault(int(target), {})[entity] = own
            for target, of_target in left.items():
                yield from addressed(target, LEFT, home, of_target)
    for target in range(layout.partitions) if home == 0 else ():
        # Every partition gets something, from which it learns the types of keys.
        none = np.empty(0, np.int64)
        parts = {
            r: take_rows(replace(h, bags=bags[r]), none, layout.bags, layout.keys)
            for r, h in heads.items()
        }
        yield from addressed(target, "empty", home, parts)


def stay(layout: Layout, home: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Take the rows of giant entities that do not leave a home."""
    found = opened(pieces)
    heads, bags = found[HEAD][home], found[BAGS][home]
    parts = {}
    for role, head in heads.items():
        rows = replace(head, bags=bags[role])
        own = layout.route(role, rows, home).staying
        parts[role] = take_rows(rows, own, layout.bags, layout.keys)
    yield from addressed(home, STAYING, home, parts)


def count_heavy(
    entities: Sequence[str], least: float, home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Yield hash and number of rows of the entities that have many here, by entity column."""
    heads = opened(pieces)[HEAD][home]
    result: dict[str, dict[int, int]] = {}
    for name in entities:
        keys: Keys = heads[TRAIN].keys[name]
        counts = np.bincount(keys.codes[keys.codes >= 0], minlength=len(keys.values))
        many = np.flatnonzero(counts >= least)
        hashes = key_hashes(keys.values.take(pa.array(many)))
        result[name] = {int(h): int(n) for h, n in zip(hashes, counts[many], strict=True)}
    yield from addressed(home, "heavy", home, result)


def count_giants(
    giants: Mapping[str, Giants], home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Yield how many rows of each giant entity may train, by coordinate."""
    rows = opened(pieces)[HEAD][home][TRAIN]
    yield from addressed(home, "counts", home, {n: own.counts(rows) for n, own in giants.items()})
