"""Which rows train a network in which step.

A step's rows follow from the seed and the step's number alone, so that a training can go on at
any step. Rows are shuffled as units that stay together: single rows, or for a ranking loss whole
groups. Beyond memory they are shuffled in blocks, that follow each other in a drawn order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.deep.distributed import Team
from gdmix.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class BatchSource(Protocol):
    """Rows as a network takes them."""

    @property
    def n_rows(self) -> int:
        """Number of rows, n."""

    @property
    def uid(self) -> I64:
        """(n,) unique among all processes' rows: they order rows that are divided."""

    @property
    def weight(self) -> F64:
        """(n,)."""

    @property
    def offset(self) -> F64:
        """(n,)."""

    @property
    def group(self) -> I64 | None:
        """(n,) number of each row's group, for a ranking loss; else None."""

    @property
    def block_rows(self) -> int | None:
        """Of rows in mapped files: how many that follow each other are read together."""

    def batch(self, rows: I64) -> dict[str, Tensor]:
        """Return the network's inputs for m rows, in memory of the CPU.

        With them ``response``, ``weight`` and ``offset``, (m,) float32, and with a ranking loss
        ``group``, (m,) int64. May be called from several threads.
        """


@dataclass(frozen=True)
class Units:
    """What is shuffled as a whole, in the order of the data.

    Attributes
    ----------
    rows
        (m,) rows in which each unit's are adjacent.
    ptr
        (units + 1,) where each begins among `rows`; None: each row is one.
    """

    rows: I64
    ptr: I64 | None = None

    @property
    def size(self) -> int:
        """Number of units."""
        return self.rows.size if self.ptr is None else self.ptr.size - 1

    @property
    def rows_per_unit(self) -> float:
        """The mean."""
        return self.rows.size / max(self.size, 1)

    def rows_of(self, units: I64) -> I64:
        """Return the rows of some units, unit after unit."""
        if self.ptr is None:
            return self.rows[units]
        first, counts = self.ptr[units], self.ptr[units + 1] - self.ptr[units]
        skipped = np.cumsum(counts) - counts
        places: I64 = np.arange(counts.sum()) + np.repeat(first - skipped, counts)
        return self.rows[places]

    def taken(self, units: I64) -> Units:
        """Return some of the units; their numbers ascend."""
        if self.ptr is None:
            return Units(self.rows[units])
        return Units(self.rows_of(units), memory.pointers(np.diff(self.ptr)[units]))


class Holding(Protocol):
    """What a process does of what is to be done with units of rows."""

    def own(self, units: Units, chosen: I64) -> I64:
        """Return which rows of its source a process computes of some units."""


@dataclass(frozen=True)
class Copies:
    """Every process holds all rows, and computes an even part of the units."""

    rank: int = 0
    size: int = 1

    def own(self, units: Units, chosen: I64) -> I64:
        """Return the rows of a part of the units."""
        return units.rows_of(np.array_split(chosen, self.size)[self.rank])


@dataclass(frozen=True)
class Shard:
    """A process holds some of the rows, and computes these.

    Attributes
    ----------
    numbers
        (m,) its rows' numbers among all rows, ascending.
    places
        (m,) where in its source they are.
    """

    numbers: I64
    places: I64

    def own(self, units: Units, chosen: I64) -> I64:
        """Return those of the units' rows that it holds, in their order."""
        rows = units.rows_of(chosen)
        found = np.searchsorted(self.numbers, rows)
        is_own = found < np.searchsorted(self.numbers, rows, side="right")
        return self.places[found[is_own]]


@dataclass(frozen=True)
class TrainingRows:
    """What every process knows of all rows that train, whoever holds them.

    Attributes
    ----------
    weight, group, block_rows
        As of a `BatchSource` of all of them.
    holding
        Which of them this process computes.
    """

    weight: F64
    group: I64 | None
    block_rows: int | None
    holding: Holding

    @staticmethod
    def of(source: BatchSource, own: Team) -> TrainingRows:
        """Return what all processes' sources are together.

        Rows that are divided are in the order of their uids: it is the same among however many
        processes they are. Of each row a process holds its weight, for some time 24 bytes more, and
        with a ranking loss the number of its group.
        """
        if not own.has_shards:
            holding = Copies(own.rank, own.size)
            return TrainingRows(source.weight, source.group, source.block_rows, holding)
        sizes = own.gathered(np.array([source.n_rows]))
        first = int(sizes[: own.rank].sum())
        order = np.argsort(own.gathered(source.uid), kind="stable")
        numbers = np.flatnonzero((order >= first) & (order < first + source.n_rows))
        group = None
        if source.group is not None:
            # Groups are not divided: those of each process are other ones. A row of none has -1.
            counts = own.gathered(np.array([source.group.max(initial=-1) + 1]))
            before = counts[: own.rank].sum()
            numbered = np.where(source.group < 0, source.group, source.group + before)
            group = own.gathered(numbered)[order]
        weight = own.gathered(source.weight)[order]
        return TrainingRows(weight, group, None, Shard(numbers, order[numbers] - first))


class _Weighted(Protocol):
    @property
    def weight(self) -> F64: ...

    @property
    def group(self) -> I64 | None: ...


def units_of(rows: _Weighted) -> Units:
    """Return all units that have a weight.

    Raises
    ------
    DataError
        If there is none.
    """
    heavy = rows.weight > 0.0
    if not heavy.any():
        raise DataError("training data: no row has a weight above 0")
    if rows.group is None:
        return Units(np.flatnonzero(heavy))
    order = np.argsort(rows.group, kind="stable")
    first = np.flatnonzero(np.diff(rows.group[order], prepend=-1))
    groups = Units(order, np.append(first, order.size))
    has_weight = np.logical_or.reduceat(heavy[order], first)
    by_first_row = np.argsort(order[first], kind="stable")
    return groups.taken(by_first_row[has_weight[by_first_row]])


def split(units: Units, share: float, seed: int) -> tuple[Units, Units]:
    """Divide units at random: those that train, and a share that judges.

    Raises
    ------
    DataError
        If there are too few for both.
    """
    if units.size < 2:
        raise DataError("inner_split: the training data have only one row, or group, of weight")
    judging = min(max(round(share * units.size), 1), units.size - 1)
    drawn = Shuffle(units.size, None, seed).part(_OF_SPLIT, 0, judging)
    chosen = np.zeros(units.size, np.bool_)
    chosen[drawn] = True
    return units.taken(np.flatnonzero(~chosen)), units.taken(np.flatnonzero(chosen))


_OF_SPLIT = 2**32  # no epoch has this number


class Shuffle:
    """The numbers below n, for each epoch in another order.

    Parameters
    ----------
    n
        How many.
    block
        Numbers that follow each other and are shuffled among themselves; None: all.
    seed
        The order of an epoch depends on it and on the epoch's number alone.
    """

    def __init__(self, n: int, block: int | None, seed: int) -> None:
        self._n, self._seed = n, seed
        self._block = min(block or n, n)
        self._blocks = -(-n // self._block)
        self._known: tuple[int, I64, I64] | None = None
        self._order: tuple[tuple[int, int], NDArray[np.uint32]] | None = None

    def part(self, epoch: int, first: int, last: int) -> I64:
        """Return what an epoch has at places `first` to `last`, the end excluded."""
        if self._known is None or self._known[0] != epoch:
            blocks = np.random.default_rng([self._seed, epoch]).permutation(self._blocks)
            sizes = np.minimum(self._block, self._n - blocks * self._block)
            self._known = epoch, blocks, np.cumsum(sizes)
        _, blocks, ends = self._known
        parts = []
        place = int(np.searchsorted(ends, first, side="right"))
        while first < last:
            order, end = self._order_of(epoch, int(blocks[place])), int(ends[place])
            begin = end - order.size
            within = order[first - begin : last - begin]
            parts.append(within.astype(np.int64) + blocks[place] * self._block)
            first, place = end, place + 1
        return np.concatenate(parts)

    def _order_of(self, epoch: int, block: int) -> NDArray[np.uint32]:
        """Return the numbers within a block as an epoch has them."""
        if self._order is None or self._order[0] != (epoch, block):
            self._order = None  # before there is another: it may be as long as the rows
            size = min(self._block, self._n - block * self._block)
            order = memory.full(size, 1, np.uint32)
            np.cumsum(order, out=order)
            order -= 1
            np.random.default_rng([self._seed, epoch, block]).shuffle(order)
            self._order = (epoch, block), order
        return self._order[1]


@dataclass(frozen=True)
class Share:
    """What one process computes of a step.

    Attributes
    ----------
    parts
        Of each batch that is accumulated, the rows of the process's source; some may be empty.
    weight
        Total weight of the step, of all processes together.
    expected_weight
        That of as many units on average. The step's loss is divided by it: divided by its own
        weight the gradient would be biased towards the rows of light batches.
    n_rows
        Number of the step's rows.
    """

    parts: list[I64]
    weight: float
    expected_weight: float
    n_rows: int


class BatchPlan:
    """The rows of each step.

    Parameters
    ----------
    units
        Those that train.
    weight
        (n,) of all rows.
    batch_size
        Rows of a batch: at most, or with groups on average.
    accumulate
        Batches of a step.
    block_rows
        See `BatchSource`.
    seed
        Of the order.
    """

    def __init__(
        self,
        units: Units,
        weight: F64,
        *,
        batch_size: int,
        accumulate: int = 1,
        block_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        self._units, self._weight, self._accumulate = units, weight, accumulate
        self._mean_weight = float(weight[units.rows].sum()) / units.size
        per_unit = units.rows_per_unit
        per_step = accumulate * max(round(batch_size / per_unit), 1)
        self.steps_per_epoch = -(-units.size // per_step)
        block = None if block_rows is None else max(round(block_rows / per_unit), 1)
        self._shuffle = Shuffle(units.size, block, seed)

    def share(self, step: int, holding: Holding) -> Share:
        """Return what a process computes of a step, the first being 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first, last = (self._units.size * p // self.steps_per_epoch for p in (place, place + 1))
        units = self._shuffle.part(epoch, first, last)
        rows = self._units.rows_of(units)
        own = [holding.own(self._units, part) for part in np.array_split(units, self._accumulate)]
        weight = float(self._weight[rows].sum())
        return Share(own, weight, units.size * self._mean_weight, rows.size)
