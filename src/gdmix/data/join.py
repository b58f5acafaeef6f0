"""Rows whose columns are spread over several sources, put together by uid.

Sources that have the same rows in the same order are read side by side, a piece at a time. Of
one that has another order, the columns that are asked for are held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import DataConfig
from gdmix.data.read import RowSource, open_rows
from gdmix.data.validate import counted
from gdmix.errors import DataError, did_you_mean


def open_data(
    data: DataConfig, split: Literal["train", "validation"], uid: str
) -> RowSource | None:
    """Open a configuration's rows of a split, those of joined sources put together.

    Raises
    ------
    DataError
        If they can't be read.
    """
    paths = getattr(data, split)
    if paths is None:
        return None
    joined = [(open_rows(getattr(more, split)), more.prefix) for more in data.joined]
    rows = open_rows(paths)
    return join_rows(rows, joined, uid) if joined else rows


def join_rows(base: RowSource, others: Sequence[tuple[RowSource, str]], uid: str) -> RowSource:
    """Return the rows of `base` with the columns of all sources.

    Parameters
    ----------
    others
        Sources of the same rows, and the prefix that the names of their columns get. A column
        that an earlier source has, too, is taken from there.
    uid
        The column of row ids, which every source has.

    Raises
    ------
    DataError
        If a source has no such column; when read, if the sources' rows are not the same.
    """
    for source in (base, *(other for other, _ in others)):
        if uid not in source.schema.names:
            hint = did_you_mean(uid, source.schema.names)
            raise DataError(
                f"{source.label}: column '{uid}' is missing{hint}: rows are joined by it"
            )
    schema = base.schema
    places: dict[str, tuple[int, str]] = {}
    for number, (other, prefix) in enumerate(others):
        for field in other.schema:
            name = prefix + field.name
            if name not in schema.names and field.name != uid:
                schema = schema.append(field.with_name(name))
                places[name] = number, field.name

    def stream(columns: Sequence[str]) -> Iterator[pa.Table]:
        own = [c for c in columns if c not in places]
        wanted: dict[int, list[str]] = {}
        for column in columns:
            if column in places:
                wanted.setdefault(places[column][0], []).append(column)
        if not wanted:
            yield from base.stream(columns)
            return
        followers = {
            number: _Follower(others[number][0], base.label, uid, [places[c][1] for c in names])
            for number, names in wanted.items()
        }
        for piece in base.stream(list(dict.fromkeys([*own, uid]))):
            ids = _ids(piece[uid], base.label)
            arrays = {name: piece[name] for name in own}
            for number, names in wanted.items():
                arrays |= zip(names, followers[number].take(ids).columns, strict=True)
            yield pa.table([arrays[c] for c in columns], names=list(columns))
        for follower in followers.values():
            follower.finish()

    return RowSource(base.label, schema, stream)


class _Follower:
    """A source whose rows are wanted in the order of another one."""

    def __init__(self, source: RowSource, leader: str, uid: str, columns: Sequence[str]) -> None:
        self._source, self._leader, self._uid = source, leader, uid
        self._columns = list(columns)
        self._pieces = source.stream(list(dict.fromkeys([uid, *columns])))
        self._rest: pa.Table | None = None  # read, and not asked for yet
        self._sorted: NDArray[np.int64] | None = None  # its uids, where the order is another
        self._order = np.empty(0, np.int64)
        self._used = np.empty(0, np.bool_)

    def take(self, ids: NDArray[np.int64]) -> pa.Table:
        """Return the columns of the rows of these uids."""
        if self._sorted is None:
            while (self._rest is None or self._rest.num_rows < ids.size) and self._read():
                pass
            head = self._rest.slice(0, ids.size) if self._rest is not None else None
            if head is not None and np.array_equal(_ids(head[self._uid], self._source.label), ids):
                self._rest = self._rest.slice(ids.size) if self._rest is not None else None
                return head.select(self._columns)
            self._hold()
        return self._look_up(ids)

    def _read(self) -> bool:
        piece = next(self._pieces, None)
        if piece is not None:
            self._rest = piece if self._rest is None else pa.concat_tables([self._rest, piece])
        return piece is not None

    def _hold(self) -> None:
        """Read all that is left: from here on its order is another one."""
        while self._read():
            pass
        self._rest = self._rest if self._rest is not None else self._source.read([self._uid])
        ids = _ids(self._rest[self._uid], self._source.label)
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]
        twice = self._sorted[1:][self._sorted[1:] == self._sorted[:-1]]
        if twice.size:
            raise DataError(
                f"{self._source.label}: column '{self._uid}': {counted(twice.size)} with the uid "
                f"of another row (first: uid {twice[0]})"
            )
        self._used = np.zeros(ids.size, np.bool_)

    def _look_up(self, ids: NDArray[np.int64]) -> pa.Table:
        assert self._sorted is not None and self._rest is not None
        at = np.minimum(np.searchsorted(self._sorted, ids), max(self._sorted.size - 1, 0))
        found = self._sorted[at] == ids if self._sorted.size else np.zeros(ids.size, np.bool_)
        if not found.all():
            self._refuse(self._source.label, self._leader, ids[~found])
        rows = self._order[at]
        self._used[rows] = True
        return self._rest.select(self._columns).take(pa.array(rows))

    def finish(self) -> None:
        """Refuse rows that nobody asked for."""
        if self._sorted is None:
            self._read()
            self._used = np.zeros(0 if self._rest is None else self._rest.num_rows, np.bool_)
        if self._rest is not None and not self._used.all():
            ids = _ids(self._rest[self._uid], self._source.label)
            self._refuse(self._leader, self._source.label, ids[~self._used])

    @staticmethod
    def _refuse(lacks: str, has: str, ids: NDArray[np.int64]) -> None:
        raise DataError(
            f"{lacks}: lacks rows that {has} has: {counted(ids.size)} or more (first: uid "
            f"{ids[0]}); sources that are joined must have the same rows"
        )


def _ids(column: pa.ChunkedArray, label: str) -> NDArray[np.int64]:
    if not pa.types.is_integer(column.type):
        raise DataError(f"{label}: the uid is {column.type}, expected an integer to join rows by")
    if column.null_count:
        raise DataError(f"{label}: the uid: {counted(column.null_count)} with no value")
    return np.asarray(pc.cast(column, pa.int64()).to_numpy())
