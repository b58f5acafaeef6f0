"""The checks of bad input: all findings gathered, one readable line each.

`strict` makes findings an error, `drop` leaves the rows out and says so, `off` skips the checks.
What can't be worked around (a missing column, a wrong type, no rows) is an error in any mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import Task, ValidateMode
from gdmix.data.schema import RowSchema
from gdmix.errors import DataError
from gdmix.glm.compiled import kernel


@dataclass
class _Finding:
    """The rows that have one fault, in pieces, and what the first of them is."""

    rows: list[NDArray[np.int64]]
    first: str

    @property
    def count(self) -> int:
        return sum(rows.size for rows in self.rows)


class Findings:
    """What the checks of one source found.

    Parameters
    ----------
    source
        What messages call the source.
    uid
        Ids of the rows that are checked, for the examples; None where the data have none.
    first_row
        Number of the first of them within the source.
    """

    def __init__(self, source: str, uid: pa.Array | None = None, first_row: int = 0) -> None:
        self.source = source
        self._uid, self._first_row = uid, first_row
        self._found: dict[tuple[str, str], _Finding] = {}
        self._fatal: list[str] = []

    @property
    def columns(self) -> set[str]:
        """The columns that hold a finding."""
        return {column for column, _ in self._found}

    def add(self, column: str, what: str, rows: NDArray[np.int64], example: str = "") -> None:
        """Note a problem of the rows at the given positions, if there are any.

        Parameters
        ----------
        what
            Ends "n rows with ...".
        example
            What the first of the rows holds.
        """
        if rows.size:
            first = ", ".join(text for text in (self._name_of(int(rows[0])), example) if text)
            self._found[column, what] = _Finding([rows + self._first_row], first)

    def add_fatal(self, line: str) -> None:
        """Note what leaving rows out would not mend."""
        self._fatal.append(line)

    def merge(self, later: Findings) -> None:
        """Add what was found in later rows of the same source."""
        for key, finding in later._found.items():
            if key in self._found:
                self._found[key].rows += finding.rows
            else:
                self._found[key] = finding

    def rows_with(self, column: str, what: str) -> NDArray[np.int64]:
        """Return the rows that have a fault."""
        finding = self._found.get((column, what))
        return np.concatenate(finding.rows) if finding else np.empty(0, np.int64)

    def _name_of(self, row: int) -> str:
        uid = None if self._uid is None else self._uid[row].as_py()
        return f"row {self._first_row + row}" if uid is None else f"uid {uid}"

    def lines(self, columns: Sequence[str] = ()) -> list[str]:
        """Return one readable line per finding, in the order of the columns."""
        place = {column: position for position, column in enumerate(columns)}
        ordered = sorted(self._found, key=lambda key: place.get(key[0], len(place)))
        return [
            f"{self.source}: column '{column}': {counted(self._found[column, what].count)} "
            f"with {what} (first: {self._found[column, what].first})"
            for column, what in ordered
        ]

    def settle(
        self, mode: ValidateMode, n_rows: int, columns: Sequence[str] = ()
    ) -> NDArray[np.bool_] | None:
        """Decide what becomes of the rows; return (n,) whether a row is kept, None if all are.

        Raises
        ------
        DataError
            If there is a fatal finding or, in mode `strict`, any.
        """
        if self._found and mode == "strict":
            mend = "mend these rows, or leave them out with `validate: drop`"
            raise DataError([*self.lines(columns), *self._fatal, mend])
        if self._fatal:
            raise DataError(self._fatal)
        if not self._found:
            return None
        keep = np.ones(n_rows, np.bool_)
        for finding in self._found.values():
            for rows in finding.rows:
                keep[rows] = False
        return keep


NO_VALUE = "no value"
REPEATED = "the uid of an earlier row"
_ROWS_PER_CHECK = 1_000_000


def check_roles(batch: pa.RecordBatch, schema: RowSchema, task: Task, findings: Findings) -> None:
    """Check uid, response, weight, offset, entity and grouping columns, row by row."""
    columns = role_columns(schema, batch.schema.names)
    needed = schema.needed_key_columns
    keys = [column for column in schema.key_columns if column in needed]
    for column in dict.fromkeys([*columns.values(), *keys]):
        findings.add(column, NO_VALUE, _nulls(batch.column(column)))
    for column in (c for c in schema.binned_columns if c in needed):
        numbers = as_floats(batch.column(column), fill=0.0)
        findings.add(column, "NaN", np.flatnonzero(np.isnan(numbers)))
    columns.pop("uid", None)
    values = {role: as_floats(batch.column(c), fill=0.0) for role, c in columns.items()}
    for role, column in columns.items():
        findings.add(column, "NaN or infinity", np.flatnonzero(~np.isfinite(values[role])))
    if "weight" in columns:
        bad = np.flatnonzero(values["weight"] < 0)
        findings.add(columns["weight"], "a negative weight", bad, _first(values["weight"], bad))
    if "response" in columns:
        _check_labels(columns["response"], values["response"], task, findings)


def role_columns(schema: RowSchema, available: Sequence[str]) -> dict[str, str]:
    """Return the column of each role that is read."""
    roles = ("uid", "response", "weight", "offset")
    columns = {r: c for r in roles if (c := schema.role_column(r, available))}
    if not schema.needs_response:
        columns.pop("response", None)
    return columns


def check_unique(column: str, uid: NDArray[np.int64], findings: Findings) -> None:
    """Check that no two rows have the same id; rows without one don't count."""
    if not uid.size or _ascends(uid):
        return
    without = findings.rows_with(column, NO_VALUE)
    present = np.delete(np.arange(uid.size), without) if without.size else None
    again = repeated(uid if present is None else uid[present])
    if not again.size:
        return
    rows = again if present is None else present[again]
    found = Findings(findings.source, pa.array(uid[rows[:1]]), int(rows[0]))
    found.add(column, REPEATED, rows - rows[0])
    findings.merge(found)


def repeated(uid: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows whose id an earlier row has."""
    in_order = memory.copy(uid)
    in_order.sort()
    if _ascends(in_order):
        return np.empty(0, np.int64)
    return np.delete(np.arange(uid.size), np.unique(uid, return_index=True)[1])


def check_classes(
    column: str,
    response: NDArray[np.float64],
    weight: NDArray[np.float64],
    task: Task,
    findings: Findings,
) -> None:
    """Refuse labels, of rows of positive weight, from which nothing can be learnt."""
    weighs = positive = other = False
    for first in range(0, response.size, _ROWS_PER_CHECK):
        part = slice(first, first + _ROWS_PER_CHECK)
        used = response[part][weight[part] > 0]
        weighs = weighs or used.size > 0
        positive = positive or bool((used > 0).any())
        other = other or bool((used <= 0).any())
        if positive and other:
            return
    where = f"{findings.source}: column '{column}'"
    if not weighs:
        findings.add_fatal(f"{findings.source}: no row has a positive weight")
    elif task != "linear_regression" and not positive:
        findings.add_fatal(f"{where}: no positive label: all are 0")
    elif task == "logistic_regression" and not other:
        findings.add_fatal(f"{where}: no negative label: all are 1")


def _check_labels(column: str, values: NDArray[np.float64], task: Task, findings: Findings) -> None:
    if task == "logistic_regression":
        outside, what = (values != 0) & (values != 1), "a label that is neither 0 nor 1"
    elif task == "poisson_regression":
        outside, what = values < 0, "a negative label, where a count is expected"
    else:
        return
    rows = np.flatnonzero(outside & np.isfinite(values))
    findings.add(column, what, rows, _first(values, rows))


def counted(rows: int) -> str:
    """Return ``1 row``, ``1,234 rows``."""
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def as_floats(column: pa.Array | pa.ChunkedArray, fill: float) -> NDArray[np.float64]:
    """Return a numeric column as float64, nulls filled."""
    filled = pc.fill_null(column.cast(pa.float64(), safe=False), fill)
    # A copy: a kernel that is given Arrow's own, read-only memory would be compiled once more.
    return np.array(filled.to_numpy(zero_copy_only=False))


def _nulls(column: pa.Array) -> NDArray[np.int64]:
    # Not only is_null: of a dictionary, the value that an index points to may be null.
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count == 0:
        return np.empty(0, np.int64)
    return np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))


def _first(values: NDArray[np.float64], rows: NDArray[np.int64]) -> str:
    return f"value {values[rows[0]]:g}" if rows.size else ""


@kernel
def _ascends(values: NDArray[np.int64]) -> bool:
    """Whether each value is larger than the one before it."""
    ascends = True
    for i in range(1, values.size):
        ascends = ascends and values[i] > values[i - 1]
    return ascends
