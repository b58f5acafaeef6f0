"""Scores that another program computed, matched to rows by uid."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.types as pat
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.dataset import Dataset
from gdmix.data.keys import as_int64
from gdmix.data.read import Source, open_rows
from gdmix.data.schema import is_scalar_number
from gdmix.data.validate import as_floats, counted
from gdmix.errors import DataError, did_you_mean

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

log = logging.getLogger("gdmix")

SCORE_COLUMNS = ("predictionScore", "score")
_EXAMPLES = 3
_OF_SCORES = _NO_UID, _NOT_FINITE, _REPEATED = (
    "no uid",
    "no finite score",
    "the uid of an earlier score",
)
_LACKING = "no score"

Missing = Literal["error", "zero"]


class HasColumns(Protocol):
    """Rows that lie somewhere."""

    @property
    def label(self) -> str:
        """What messages call them."""

    @property
    def schema(self) -> pa.Schema:
        """Their columns."""


def read_external_scores(
    source: Source,
    rows: Dataset,
    uid: str,
    score: str | None,
    missing: Missing,
) -> F64:
    """Return the score of each row, (n,).

    Parameters
    ----------
    uid, score
        Columns of the source; a score of None is the first of `SCORE_COLUMNS` that it has.
    missing
        What a row without a score is: an error, or scored 0. Scores of other rows are ignored.

    Raises
    ------
    DataError
        Where ids or scores are missing, not finite, or stand twice: how many, and the first.
    """
    opened = open_rows(source, "scores")
    columns = score_columns(opened, uid, score)
    scores, findings = match_scores(_numbered(opened.stream(columns)), rows)
    findings.settle(opened.label, rows.label, missing)
    return scores


def score_columns(source: HasColumns, uid: str, score: str | None) -> list[str]:
    """Return the columns of ids and of scores of a source.

    Raises
    ------
    DataError
        If it lacks one, or has one of another type.
    """
    columns = [uid, _score_column(source, score)]
    _check_columns(source, *columns)
    return columns


def match_scores(
    batches: Iterable[tuple[I64, pa.RecordBatch]], rows: Dataset
) -> tuple[F64, ScoreFindings]:
    """Find the score of each row, (n,); what is wrong with them is returned, not raised.

    Parameters
    ----------
    batches
        Ids and scores, and the number of each of them in its source.

    Raises
    ------
    DataError
        If the rows' ids are not unique.
    """
    ids, order = _sorted_ids(rows)
    result, found = memory.zeros(rows.n_rows), memory.zeros(rows.n_rows, np.bool_)
    findings = ScoreFindings()
    for numbers, batch in batches:
        given, scores = batch.columns
        own, place = _place(given, ids, order)
        values = as_floats(scores, np.nan)
        findings.add(_NO_UID, numbers[_nulls(given)])
        odd = (place >= 0) & ~np.isfinite(values)
        findings.add(_NOT_FINITE, numbers[odd], own[odd])
        known = np.flatnonzero(place >= 0)
        own, place, numbers = own[known], place[known], numbers[known]
        again = found[place] | _repeats(place)
        findings.add(_REPEATED, numbers[again], own[again])
        result[place], found[place] = values[known], True
    lacking = np.sort(rows.uid[~found])
    findings.add(_LACKING, lacking, lacking)
    return result, findings


def _numbered(tables: Iterable[pa.Table]) -> Iterator[tuple[I64, pa.RecordBatch]]:
    first = 0
    for table in tables:
        for batch in table.to_batches():
            yield np.arange(first, first + batch.num_rows), batch
            first += batch.num_rows


class ScoreFindings:
    """What is wrong with scores and rows: how many there are of each fault, and the first."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys((*_OF_SCORES, _LACKING), 0)
        self._first: dict[str, list[tuple[int, int]]] = {what: [] for what in self._counts}

    def add(self, what: str, order: I64, ids: I64 | None = None) -> None:
        """Note faults, with what they are ordered by and the ids of those that have one."""
        self._counts[what] += order.size
        if ids is not None:
            head = slice(_EXAMPLES)
            self._note(what, zip(order[head].tolist(), ids[head].tolist(), strict=True))

    def merge(self, other: ScoreFindings) -> None:
        """Add what was found elsewhere, with other rows of the same source."""
        for what, count in other._counts.items():
            self._counts[what] += count
            self._note(what, other._first[what])

    def _note(self, what: str, examples: Iterable[tuple[int, int]]) -> None:
        self._first[what] = sorted([*self._first[what], *examples])[:_EXAMPLES]

    def settle(self, scores: str, rows: str, missing: Missing) -> None:
        """Raise what was found.

        Parameters
        ----------
        scores, rows
            What messages call them.

        Raises
        ------
        DataError
            With a line for each fault.
        """
        lines = [self._line(what, scores, "score") for what in _OF_SCORES if self._counts[what]]
        if lines:
            raise DataError(lines)
        lacking = self._counts[_LACKING]
        if lacking and missing == "zero":
            log.info("%s: %s without a score in %s", rows, counted(lacking), scores)
        elif lacking:
            line = self._line(_LACKING, rows, "row", f" in {scores}")
            raise DataError(f"{line}; `missing: zero` scores them 0")

    def _line(self, what: str, label: str, noun: str, where: str = "") -> str:
        count, examples = self._counts[what], ", ".join(str(uid) for _, uid in self._first[what])
        first = f" (first: uid {examples})" if examples else ""
        return f"{label}: {count:,} {noun}{'' if count == 1 else 's'} with {what}{where}{first}"


def _score_column(source: HasColumns, score: str | None) -> str:
    names = source.schema.names
    found = score or next((c for c in SCORE_COLUMNS if c in names), None)
    if found is None:
        wanted = " nor ".join(f"'{c}'" for c in SCORE_COLUMNS)
        raise DataError(f"{source.label}: has neither a column {wanted}; name it: `score: COLUMN`")
    return found


def _check_columns(source: HasColumns, uid: str, score: str) -> None:
    findings = []
    for column, role in ((uid, "uid"), (score, "score")):
        if column not in source.schema.names:
            hint = did_you_mean(column, source.schema.names)
            findings.append(f"{source.label}: column '{column}' is missing{hint}: the {role}")
            continue
        kind = source.schema.field(column).type
        good = pat.is_integer(kind) if role == "uid" else is_scalar_number(kind)
        wanted = "an integer" if role == "uid" else "a number"
        if not good:
            findings.append(f"{source.label}: column '{column}' is {kind}, expected {wanted}")
    if findings:
        raise DataError(findings)


def _sorted_ids(rows: Dataset) -> tuple[I64, I64 | None]:
    """Return the rows' ids, ascending, and the row of each; None: the id's own position."""
    ids = rows.uid
    if not ids.size or bool((ids[1:] > ids[:-1]).all()):
        return ids, None
    order = memory.empty(ids.size, np.int64)
    order[:] = np.argsort(ids, kind="stable")
    in_order = memory.empty(ids.size, np.int64)
    np.take(ids, order, out=in_order, mode="clip")
    if not bool((in_order[1:] > in_order[:-1]).all()):
        raise DataError(f"{rows.label}: scores can't be matched to rows whose uids are not unique")
    return in_order, order


def _place(given: pa.Array, ids: I64, order: I64 | None) -> tuple[I64, I64]:
    """Return ids and the row of each; -1 where it is none of the rows."""
    own, beyond = as_int64(given)
    if not ids.size:
        return own, np.full(own.size, -1)
    place = np.minimum(np.searchsorted(ids, own), ids.size - 1)
    known = (ids[place] == own) & ~_nulls(given)
    known[beyond] = False
    if order is not None:
        place = order[place]
    return own, np.where(known, place, -1)


def _nulls(column: pa.Array) -> NDArray[np.bool_]:
    return column.is_null().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _repeats(place: I64) -> NDArray[np.bool_]:
    """Return whether each entry stands earlier, too."""
    repeats = np.ones(place.size, np.bool_)
    repeats[np.unique(place, return_index=True)[1]] = False
    return repeats
