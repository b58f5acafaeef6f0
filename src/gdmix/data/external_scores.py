"""Scores that another program computed, matched to rows by uid."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.types as pat
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.dataset import Dataset
from gdmix.data.keys import as_int64
from gdmix.data.read import RowSource, Source, open_rows
from gdmix.data.schema import is_scalar_number
from gdmix.data.validate import as_floats, counted
from gdmix.errors import DataError, did_you_mean

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

log = logging.getLogger("gdmix")

SCORE_COLUMNS = ("predictionScore", "score")
_EXAMPLES = 3


def read_external_scores(
    source: Source,
    rows: Dataset,
    uid: str,
    score: str | None,
    missing: Literal["error", "zero"],
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
    columns = [uid, _score_column(opened, score)]
    _check_columns(opened, *columns)
    ids, order = _sorted_ids(rows)
    result, found = memory.zeros(rows.n_rows), memory.zeros(rows.n_rows, np.bool_)
    findings = _Findings()
    for table in opened.stream(columns):
        for batch in table.to_batches():
            own, place = _place(batch, columns[0], ids, order, findings)
            values = as_floats(batch.column(columns[1]), np.nan)
            findings.add("no finite score", own[(place >= 0) & ~np.isfinite(values)])
            known = np.flatnonzero(place >= 0)
            own, place = own[known], place[known]
            findings.add("the uid of an earlier score", own[found[place] | _repeats(place)])
            result[place], found[place] = values[known], True
    findings.check(opened.label, "score")
    lacking = rows.uid[~found]
    if lacking.size and missing == "zero":
        log.info("%s: %s without a score in %s", rows.label, counted(lacking.size), opened.label)
    elif lacking.size:
        of_rows = _Findings()
        of_rows.add(f"no score in {opened.label}", lacking)
        of_rows.check(rows.label, "row", "; `missing: zero` scores them 0")
    return result


class _Findings:
    """Ids by what is wrong with them."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[int]] = {}

    def add(self, what: str, ids: I64) -> None:
        if ids.size:
            self.count(what, ids.size)
            known = self._examples.setdefault(what, [])
            known += ids[: _EXAMPLES - len(known)].tolist()

    def count(self, what: str, n: int) -> None:
        if n:
            self._counts[what] = self._counts.get(what, 0) + n

    def check(self, label: str, noun: str, mend: str = "") -> None:
        """Raise what was found."""
        lines = []
        for what, count in self._counts.items():
            examples = ", ".join(map(str, self._examples.get(what, ())))
            first = f" (first: uid {examples})" if examples else ""
            plural = "" if count == 1 else "s"
            lines.append(f"{label}: {count:,} {noun}{plural} with {what}{first}{mend}")
        if lines:
            raise DataError(lines)


def _score_column(source: RowSource, score: str | None) -> str:
    names = source.schema.names
    found = score or next((c for c in SCORE_COLUMNS if c in names), None)
    if found is None:
        wanted = " nor ".join(f"'{c}'" for c in SCORE_COLUMNS)
        raise DataError(f"{source.label}: has neither a column {wanted}; name it: `score: COLUMN`")
    return found


def _check_columns(source: RowSource, uid: str, score: str) -> None:
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


def _place(
    batch: pa.RecordBatch, column: str, ids: I64, order: I64 | None, findings: _Findings
) -> tuple[I64, I64]:
    """Return ids and the row of each; -1 where it is none of the rows."""
    given = batch.column(column)
    findings.count("no uid", given.null_count)
    own, beyond = as_int64(given)
    if not ids.size:
        return own, np.full(own.size, -1)
    place = np.minimum(np.searchsorted(ids, own), ids.size - 1)
    known = (ids[place] == own) & given.is_valid().to_numpy(zero_copy_only=False)
    known[beyond] = False
    if order is not None:
        place = order[place]
    return own, np.where(known, place, -1)


def _repeats(place: I64) -> NDArray[np.bool_]:
    """Return whether each entry stands earlier, too."""
    repeats = np.ones(place.size, np.bool_)
    repeats[np.unique(place, return_index=True)[1]] = False
    return repeats
