"""Jobs: pieces of partitions through tasks, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gdmix.engines.spark.exchange import (
    Addressed,
    Piece,
    Pieces,
    addressed,
    contents,
    itself,
    opened,
)
from gdmix.engines.spark.session import TaskErrors, slots
from gdmix.engines.spark.tasks.kinds import SUMS

if TYPE_CHECKING:
    from pyspark import RDD, SparkContext
    from pyspark.sql import SparkSession

PartitionTask = Callable[[int, Iterable[Addressed]], Iterable[Addressed]]


@dataclass(frozen=True)
class Cluster:
    """A Spark session, and how work is put to it."""

    session: SparkSession

    @property
    def context(self) -> SparkContext:
        """Where RDDs are made."""
        return self.session.sparkContext

    @cached_property
    def errors(self) -> TaskErrors:
        """Brings what users can mend from the tasks."""
        return TaskErrors(self.session)

    @cached_property
    def slots(self) -> int:
        """How many tasks run at once."""
        return slots(self.session)

    def map(self, pieces: Pieces, task: PartitionTask) -> Pieces:
        """Return what a task makes of each partition's pieces, where they are."""
        return pieces.mapPartitionsWithIndex(self.errors.guard(task), preservesPartitioning=True)

    def send(self, pieces: Pieces, partitions: int) -> Pieces:
        """Return the pieces where they are addressed to."""
        # Pieces that are held to be at their places already would be left where they are.
        return pieces.mapPartitions(_anywhere).partitionBy(partitions, itself)

    def received(self, messages: RDD[tuple[int, bytes]], partitions: int) -> Pieces:
        """Return pieces that were packed as bytes where they are addressed to."""
        return self.send(messages.mapPartitions(_unpacked), partitions)

    def on_each(self, partitions: int, task: Callable[[int], Iterator[Addressed]]) -> Pieces:
        """Return what a task makes of each partition's number."""
        numbers = self.context.parallelize(range(partitions), partitions)
        return numbers.mapPartitions(self.errors.guard(partial(_by_number, task)))

    def scattered(self, pieces: list[Addressed], partitions: int) -> Pieces:
        """Return pieces of the driver where they are addressed to."""
        return self.send(self.context.parallelize(pieces, max(1, len(pieces))), partitions)

    def collect(self, pieces: Pieces) -> list[Any]:
        """Return what is in pieces, which are few and small, in the order of their sources."""
        return contents(self.errors.run(pieces.collect))

    def added_up(self, pieces: Pieces) -> dict[str, Any]:
        """Return the sums, by name, of pieces of kind `SUMS` that are addressed to one task.

        What is to be added are arrays, or has a method `plus`.
        """
        found = self.collect(self.map(self.send(pieces, 1), _add_up))
        total: dict[str, Any] = found[0]
        return total

    def settled(self, pieces: Pieces) -> Pieces:
        """Return pieces that, once computed, no lost executor can take away."""
        from pyspark import StorageLevel

        pieces.persist(StorageLevel.MEMORY_AND_DISK)
        pieces.checkpoint()
        return pieces

    def kept(self, pieces: Pieces) -> Pieces:
        """Return pieces that are kept once they are computed: on disk, which the system caches."""
        from pyspark import StorageLevel

        return pieces.persist(StorageLevel.DISK_ONLY)


def _anywhere(pieces: Iterable[Addressed]) -> Iterable[Addressed]:
    return pieces


def _unpacked(messages: Iterable[tuple[int, bytes]]) -> Iterator[Addressed]:
    for target, message in messages:
        yield target, Piece.from_bytes(message)


def _add_up(partition: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    first, *others = opened(pieces)[SUMS].values()
    total = dict(first)
    for own in others:
        for name, value in own.items():
            is_array = isinstance(value, np.ndarray)
            total[name] = total[name] + value if is_array else total[name].plus(value)
    yield from addressed(partition, SUMS, partition, total)


def _by_number(
    task: Callable[[int], Iterator[Addressed]], numbers: Iterable[int]
) -> Iterator[Addressed]:
    for number in numbers:
        yield from task(number)


def united(*pieces: Pieces) -> Pieces:
    """Return pieces that have the same partitions together, nothing moved."""
    first, *others = pieces
    for other in others:
        first = first.union(other)
    return first
