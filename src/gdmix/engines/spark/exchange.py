"""How rows and numbers travel: a few large pieces between partitions, never a row at a time.

Every RDD here holds pairs (partition, piece) and is divided by that partition. So the union of
two that have as many partitions moves nothing: partition p of the union is partition p of the
one, then of the other. A shuffle happens where pieces are addressed to other partitions, only.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.keys import Keys
from gdmix.data.partition import key_hashes
from gdmix.errors import EngineError

if TYPE_CHECKING:
    from pyspark import RDD

    Pieces = RDD["Addressed"]
else:
    Pieces = Any

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

_BYTES_PER_PIECE = 1 << 23
_ALIGNED = 64  # bytes: kernels are compiled for arrays that begin at such places


@dataclass(frozen=True)
class Piece:
    """Something on its way.

    Attributes
    ----------
    kind
        What it is.
    source
        The partition that it comes from.
    part
        Number of this part of it: the JVM copies pieces, which must not be too large for it.
    payload
        It, or a part, packed: of the first part a plan, of each a stretch of its arrays.
    """

    kind: str
    source: int
    part: int
    payload: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """Return it as one string of bytes."""
        return pickle.dumps(self, protocol=5)

    @staticmethod
    def from_bytes(data: bytes | bytearray) -> Piece:
        """Return what `to_bytes` has packed."""
        piece = pickle.loads(data)
        assert isinstance(piece, Piece)
        return piece


Addressed = tuple[int, Piece]
Task = Callable[..., Iterator[Addressed]]


def addressed(target: int, kind: str, source: int, content: Any) -> Iterator[Addressed]:
    """Pack something, in as many pieces as it takes, addressed to a partition."""
    buffers: list[pickle.PickleBuffer] = []
    plan = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    part, room = 0, _BYTES_PER_PIECE
    payload = [pickle.dumps((plan, [view.nbytes for view in views]))]
    for view in views:
        while view.nbytes > room:
            payload.append(bytes(view[:room]))
            yield target, Piece(kind, source, part, tuple(payload))
            view, part, room, payload = view[room:], part + 1, _BYTES_PER_PIECE, []
        if view.nbytes:
            payload.append(bytes(view))
            room -= view.nbytes
    yield target, Piece(kind, source, part, tuple(payload))


def messages(pieces: Iterable[Addressed]) -> Iterator[tuple[int, bytes]]:
    """Return addressed pieces as bytes."""
    for target, own in pieces:
        yield target, own.to_bytes()


def itself(partition: int) -> int:
    """Return the partition that a piece is addressed to; one function, so that unions are local."""
    return partition


def opened(pieces: Iterable[Addressed], *kinds: str) -> dict[str, dict[int, Any]]:
    """Return the contents of pieces by kind and, ascending, by source.

    Parameters
    ----------
    kinds
        Those to be opened; default: all.

    Raises
    ------
    EngineError
        If some are missing, or a source has sent two contents of a kind.
    """
    found: dict[str, dict[int, list[Piece]]] = {}
    for _, own in pieces:
        if kinds and own.kind not in kinds:
            continue
        found.setdefault(own.kind, {}).setdefault(own.source, []).append(own)
    return {
        kind: {source: _put_together(kind, of.pop(source)) for source in sorted(of)}
        for kind, of in found.items()
    }


def _put_together(kind: str, parts: list[Piece]) -> Any:
    parts.sort(key=lambda own: own.part)
    if [own.part for own in parts] != list(range(len(parts))):
        raise EngineError(f"'{kind}': pieces were lost or doubled between partitions")
    first, *stretches = (stretch for own in parts for stretch in own.payload)
    plan, sizes = pickle.loads(first)
    # One block for all arrays: they can be written to, unlike what they came in.
    begins = memory.pointers(
        np.array([-(-size // _ALIGNED) * _ALIGNED for size in sizes], np.int64)
    )
    block = memory.empty(int(begins[-1]), np.uint8)
    arrays = [block[begin : begin + size] for begin, size in zip(begins, sizes, strict=False)]
    waiting = iter(stretches)
    for array in arrays:
        filled = 0
        while filled < array.size:
            stretch = np.frombuffer(next(waiting), np.uint8)
            array[filled : filled + stretch.size] = stretch
            filled += stretch.size
    return pickle.loads(plan, buffers=arrays)


def of_kind(pieces: Pieces, *kinds: str) -> Pieces:
    """Return the pieces of some kinds, where they are."""
    return pieces.filter(partial(_is_of, kinds))


def _is_of(kinds: tuple[str, ...], own: Addressed) -> bool:
    return own[1].kind in kinds


def contents(pieces: Iterable[Addressed]) -> list[Any]:
    """Return what is in pieces of one kind, in the order of their sources."""
    return [content for of in opened(pieces).values() for content in of.values()]


def positions_of(hashes: U64, known: U64) -> I64:
    """Return the place of each hash among ascending ones, -1 where it is none of them."""
    if not known.size:
        return np.full(hashes.size, -1)
    place = np.minimum(np.searchsorted(known, hashes), known.size - 1)
    return np.where(known[place] == hashes, place, -1)


@dataclass(frozen=True)
class Placement:
    """Which partition an entity's rows go to: by a hash, but for heavy ones, which are balanced.

    Attributes
    ----------
    partitions
        Number of partitions.
    heavy
        Hashes of the heavy entities, ascending.
    targets
        Their partitions.
    """

    partitions: int
    heavy: U64
    targets: NDArray[np.int32]

    def of_values(self, values: pa.Array) -> NDArray[np.int32]:
        """Return the partition of each entity."""
        return self.of_hashes(key_hashes(values))

    def of_hashes(self, hashes: U64) -> NDArray[np.int32]:
        """Return the partition of each entity, by its hash."""
        result = (hashes % np.uint64(self.partitions)).astype(np.int32)
        place = positions_of(hashes, self.heavy)
        result[place >= 0] = self.targets[place[place >= 0]]
        return result

    def of_rows(self, keys: Keys, home: int) -> NDArray[np.int32]:
        """Return the partition of each row; one without an entity goes anywhere."""
        nowhere = np.int32(home % self.partitions)
        return np.append(self.of_values(keys.values), nowhere)[keys.codes]

    @staticmethod
    def balanced(partitions: int, n_rows: int, heavy: dict[int, int]) -> Placement:
        """Place heavy entities, the heaviest first, where the least rows are (Graham 1969).

        Parameters
        ----------
        heavy
            Hash of an entity to its number of rows.
        """
        rest = n_rows - sum(heavy.values())
        load = np.full(partitions, rest / partitions)
        targets: dict[int, int] = {}
        for key, count in sorted(heavy.items(), key=lambda entry: (-entry[1], entry[0])):
            targets[key] = int(load.argmin())
            load[targets[key]] += count
        hashes = np.array(sorted(heavy), np.uint64)
        places = np.array([targets[int(h)] for h in hashes], np.int32)
        return Placement(partitions, hashes, places)


@dataclass(frozen=True)
class Route:
    """The rows of a home partition by where they go.

    Attributes
    ----------
    order
        (n,) rows by target, in their order within each; at the end those that stay.
    ends
        (targets + 1,) the slice of `order` of each target.
    """

    order: I64
    ends: I64

    @staticmethod
    def to(targets: NDArray[np.int32], partitions: int) -> Route:
        """Return the route of rows by their targets; those stay whose target is `partitions`."""
        # Numbers of 16 bits are sorted by their digits, in linear time.
        small = targets.astype(np.uint16) if partitions < 2**16 else targets
        counts = np.bincount(targets, minlength=partitions)[:partitions]
        return Route(np.argsort(small, kind="stable"), np.concatenate([[0], np.cumsum(counts)]))

    def rows(self, target: int) -> I64:
        """Return the rows that go to a target."""
        return self.order[self.ends[target] : self.ends[target + 1]]

    @property
    def targets(self) -> I64:
        """The targets that get rows."""
        return np.flatnonzero(np.diff(self.ends))

    @property
    def staying(self) -> I64:
        """The rows that go nowhere."""
        return self.order[self.ends[-1] :]

    def back(self, parts: dict[int, F64], what: str) -> F64:
        """Return each row's number, (n,), from what the targets sent; 0 of those that stayed.

        Raises
        ------
        EngineError
            If one of them sent none, or not as many as rows went there.
        """
        result = np.zeros(self.order.size)
        for target in self.targets:
            own, rows = parts.get(int(target)), self.rows(int(target))
            if own is None or own.size != rows.size:
                came = 0 if own is None else own.size
                raise EngineError(
                    f"{what}: {came:,} numbers came back for {rows.size:,} rows: "
                    "pieces were lost between partitions"
                )
            result[rows] = own
        return result


def in_order(sizes: Sequence[tuple[int, int]], parts: dict[int, F64], what: str) -> F64:
    """Return numbers of a partition's rows one after another, as their homes sent them.

    Parameters
    ----------
    sizes
        Home partition and number of rows that came from there, in order.

    Raises
    ------
    EngineError
        If the numbers are not those of these rows.
    """
    came = {home: parts[home].size for home in parts if parts[home].size}
    if came != {home: n for home, n in sizes if n}:
        raise EngineError(
            f"{what}: numbers of {sum(came.values()):,} rows came for "
            f"{sum(n for _, n in sizes):,}: pieces were lost between partitions"
        )
    return np.concatenate([np.empty(0), *(parts[home] for home, n in sizes if n)])
