"""Rows from a source to their homes: scanned, encoded, sent, put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.config import ModelConfig
from gdmix.data.dataset import Dataset, encode_rows, scan_features
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.partition import concatenated, take_rows
from gdmix.data.read import RowSource
from gdmix.data.schema import RowSchema
from gdmix.data.validate import NO_VALUE, Findings, repeated
from gdmix.engines.spark.exchange import (
    Addressed,
    Route,
    addressed,
    messages,
    opened,
)
from gdmix.engines.spark.tasks.kinds import BAGS, FACTS, HEAD, ROW
from gdmix.glm.random_bits import mixed

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """How rows become pieces.

    Attributes
    ----------
    label, schema
        Of the source; the schema has the columns that are read.
    rows
        Which of them play which role.
    config
        Of the run.
    homes
        Number of home partitions.
    dropped
        (m,) numbers of the rows of the source that are left out, ascending.
    """

    label: str
    schema: pa.Schema
    rows: RowSchema
    config: ModelConfig
    homes: int
    dropped: I64 = field(default_factory=lambda: np.empty(0, np.int64))

    def kept(self, tables: Iterator[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
        """Yield tables of the rows that are kept, each with its first one's number among these."""
        for table in tables:
            if not table.num_rows:
                continue
            numbers = table[ROW].to_numpy()
            table = table.drop_columns([ROW])
            if self.dropped.size:
                table = table.filter(pa.array(~np.isin(numbers, self.dropped)))
            yield int(numbers[0] - np.searchsorted(self.dropped, numbers[0])), table

    def source(self, table: pa.Table) -> RowSource:
        """Return a table as a source."""
        return RowSource(self.label, self.schema, lambda columns: iter([table.select(columns)]))


@dataclass
class Facts:
    """What a home partition says of the rows of one role.

    Attributes
    ----------
    n_rows
        Number of rows.
    findings
        What is wrong with them.
    unknown
        By bag, number of values of features that the index does not know.
    again
        Numbers and uids of the rows whose uid an earlier row has.
    classes
        Whether some row of positive weight has a response above 0, and one that has none.
    """

    n_rows: int
    findings: Findings
    unknown: Counter[str]
    again: tuple[I64, I64]
    classes: tuple[bool, bool]


def homes_of(uid: I64, homes: int) -> NDArray[np.int32]:
    """Return the home partition of each row."""
    return (mixed(uid.astype(np.uint64)) % np.uint64(homes)).astype(np.int32)


def scan(
    reading: Reading, partition: int, tables: Iterator[pa.Table]
) -> Iterator[tuple[int, bytes]]:
    """Yield what the rows of a source add to the feature index of every bag."""
    total = None
    for _, table in reading.kept(tables):
        found = scan_features(reading.source(table), reading.rows)
        if total is None:
            total = found
            continue
        for bag, builder in found.items():
            total[bag].merge(builder)
    if total is not None:
        yield from messages(addressed(0, "features", partition, total))


def encode(
    reading: Reading,
    role: str,
    indices: Mapping[str, FeatureIndex],
    partition: int,
    tables: Iterator[pa.Table],
) -> Iterator[tuple[int, bytes]]:
    """Yield rows as arrays, addressed to their homes, and what is wrong with them."""
    config = reading.config
    uid = config.columns.column("uid")
    findings, unknown = Findings(reading.label), Counter[str]()
    for number, (first, table) in enumerate(reading.kept(tables)):
        rows, own, left_out = encode_rows(
            reading.source(table), reading.rows, indices, config.task, config.validate_mode, first
        )
        findings.merge(own)
        unknown.update(left_out)
        numbers = np.arange(first, first + rows.n_rows)
        numbers[own.rows_with(uid, NO_VALUE) - first] = -1
        route = Route.to(homes_of(rows.uid, reading.homes), reading.homes)
        place = (partition << 32) + number
        for home in route.targets:
            chosen = route.rows(int(home))
            part = take_rows(rows, chosen), numbers[chosen]
            yield from messages(addressed(int(home), role, place, part))
    yield from messages(addressed(0, f"{role} findings", partition, (findings, unknown)))


def arrive(
    readings: Mapping[str, Reading], empty: Dataset, home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Put the rows of a home together.

    Yields
    ------
    tuple
        Its rows without bags, the bags, and facts.
    """
    found = opened(pieces)
    heads, bags, facts = {}, {}, {}
    for role, reading in readings.items():
        parts = list(found.get(role, {}).values()) or [(empty, np.empty(0, np.int64))]
        rows = concatenated([own for own, _ in parts])
        numbers = np.concatenate([own for _, own in parts])
        heads[role], bags[role] = replace(rows, bags={}), rows.bags
        findings, unknown = Findings(reading.label), Counter[str]()
        for own, left_out in found.get(f"{role} findings", {}).values():
            findings.merge(own)
            unknown.update(left_out)
        known = np.flatnonzero(numbers >= 0)
        again = known[repeated(rows.uid[known])]
        used = rows.response[rows.weight > 0.0]
        classes = bool((used > 0).any()), bool((used <= 0).any())
        facts[role] = Facts(
            rows.n_rows, findings, unknown, (numbers[again], rows.uid[again]), classes
        )
    yield from addressed(home, HEAD, home, heads)
    yield from addressed(home, BAGS, home, bags)
    yield from addressed(home, FACTS, home, facts)
