"""The checks of bad input: all findings gathered, one readable line each.

`strict` makes findings an error, `drop` leaves the rows out and says so, `off` skips the checks.
What can't be worked around (a missing column, a wrong type, no rows) is an error in any mode.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import Task, ValidateMode
from gdmix.data.schema import RowSchema
from gdmix.errors import DataError

_LABELS = {
    "logistic_regression": ("neither 0 nor 1", "map the labels to 0 and 1"),
    "poisson_regression": ("negative", "a count is 0 or more"),
}


@dataclass
class Findings:
    """What the checks of one source found.

    Attributes
    ----------
    source
        What messages call the source.
    uid
        (n,) row ids, for the examples.
    lines
        One readable line per finding.
    rows
        (n,) whether a row has any finding.
    """

    source: str
    uid: NDArray[np.int64]
    lines: list[str] = field(default_factory=list)
    rows: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = np.zeros(self.uid.size, np.bool_)

    def add(self, column: str, what: str, rows: NDArray[np.int64], example: str = "") -> None:
        """Note a problem of the rows at the given positions, if there are any."""
        if rows.size:
            self.rows[rows] = True
            count = f"{rows.size:,} row{'s' if rows.size > 1 else ''}"
            value = f", value {example}" if example else ""
            self.lines.append(
                f"{self.source}: column '{column}': {count} {what} "
                f"(first: uid {self.uid[rows[0]]}{value})"
            )

    def settle(self, mode: ValidateMode) -> tuple[NDArray[np.bool_], list[str]]:
        """Decide what becomes of the rows.

        Returns
        -------
        tuple
            (n,) whether a row is kept, and lines to log.

        Raises
        ------
        DataError
            In mode `strict`, if there is any finding.
        """
        if not self.lines or mode == "off":
            return np.ones(self.uid.size, np.bool_), []
        if mode == "strict":
            raise DataError(
                [*self.lines, "mend these rows, or leave them out with `validate: drop`"]
            )
        dropped = int(self.rows.sum())
        total = f"{self.source}: dropped {dropped:,} of {self.uid.size:,} rows"
        return ~self.rows, [*self.lines, total]


def check_roles(table: pa.Table, schema: RowSchema, task: Task, findings: Findings) -> None:
    """Check uid, response, weight, offset, entity and grouping columns."""
    uid = schema.role_column("uid", table.schema.names)
    if uid is not None:
        findings.add(uid, "have no value", _nulls(table[uid]))
        repeated = _repeated(findings.uid)
        example = str(findings.uid[repeated[0]]) if repeated.size else ""
        findings.add(uid, "repeat the uid of an earlier row", repeated, example)
    for role in ("response", "weight", "offset"):
        column = schema.role_column(role, table.schema.names)
        if column is None or (role == "response" and not schema.needs_response):
            continue
        findings.add(column, "have no value", _nulls(table[column]))
        values = as_floats(table[column], fill=0.0)
        findings.add(column, "are NaN or infinite", np.flatnonzero(~np.isfinite(values)))
        if role == "weight":
            negative = np.flatnonzero(values < 0)
            findings.add(column, "have a negative weight", negative, _example(values, negative))
        elif role == "response":
            _check_labels(column, values, task, findings)
    for column in schema.keys:
        findings.add(column, "have no value", _nulls(table[column]))


def _check_labels(column: str, values: NDArray[np.float64], task: Task, findings: Findings) -> None:
    if task == "linear_regression":
        return
    finite = np.isfinite(values)
    outside = (values < 0) if task == "poisson_regression" else ~np.isin(values, (0.0, 1.0))
    rows = np.flatnonzero(outside & finite)
    what, mend = _LABELS[task]
    findings.add(column, f"have a label that is {what}; {mend}", rows, _example(values, rows))


def check_training_labels(
    source: str,
    column: str,
    response: NDArray[np.float64],
    weight: NDArray[np.float64],
    task: Task,
) -> None:
    """Refuse labels from which nothing can be learnt.

    Raises
    ------
    DataError
        If no row has a positive weight, or (logistic, poisson) a class of labels is missing.
    """
    used = response[weight > 0]
    if not used.size:
        raise DataError(f"{source}: no row has a positive weight")
    if task == "linear_regression":
        return
    positive = bool((used > 0).any())
    if not positive:
        raise DataError(f"{source}: column '{column}': no positive label: all are 0")
    if task == "logistic_regression" and bool((used > 0).all()):
        raise DataError(f"{source}: column '{column}': no negative label: all are 1")


def as_floats(column: pa.ChunkedArray, fill: float) -> NDArray[np.float64]:
    """Return a numeric column as float64, nulls filled."""
    return np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), fill).to_numpy())


def _nulls(column: pa.ChunkedArray) -> NDArray[np.int64]:
    if column.null_count == 0:
        return np.empty(0, np.int64)
    return np.flatnonzero(column.is_null().to_numpy())


def _repeated(uid: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return positions of values that occurred earlier."""
    in_order = np.sort(uid)
    if not (in_order[1:] == in_order[:-1]).any():
        return np.empty(0, np.int64)
    first = np.zeros(uid.size, np.bool_)
    first[np.unique(uid, return_index=True)[1]] = True
    return np.flatnonzero(~first)


def _example(values: NDArray[np.float64], rows: NDArray[np.int64]) -> str:
    return f"{values[rows[0]]:g}" if rows.size else ""
