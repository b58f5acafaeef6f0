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


@dataclass
class Findings:
    """What the checks of one source found.

    Attributes
    ----------
    source
        What messages call the source.
    n_rows
        Number of rows.
    uid
        Row ids, for the examples; None where the data have none.
    lines
        One readable line per finding that leaving rows out would mend.
    fatal
        One for each other finding.
    columns
        The columns that hold a finding.
    rows
        (n,) whether a row has any finding.
    """

    source: str
    n_rows: int
    uid: pa.ChunkedArray | None = None
    lines: list[str] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    rows: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = np.zeros(self.n_rows, np.bool_)

    def add(self, column: str, what: str, rows: NDArray[np.int64], example: str = "") -> None:
        """Note a problem of the rows at the given positions, if there are any.

        Parameters
        ----------
        what
            Ends "n rows with ...".
        example
            What the first of the rows holds.
        """
        if not rows.size:
            return
        self.rows[rows] = True
        self.columns.add(column)
        first = ", ".join(text for text in (self._name_of(int(rows[0])), example) if text)
        self.lines.append(
            f"{self.source}: column '{column}': {counted(rows.size)} with {what} (first: {first})"
        )

    def _name_of(self, row: int) -> str:
        uid = None if self.uid is None else self.uid[row].as_py()
        return f"row {row}" if uid is None else f"uid {uid}"

    def settle(self, mode: ValidateMode) -> NDArray[np.bool_]:
        """Decide what becomes of the rows; return (n,) whether a row is kept.

        Raises
        ------
        DataError
            If there is a fatal finding or, in mode `strict`, any.
        """
        if self.lines and mode == "strict":
            mend = "mend these rows, or leave them out with `validate: drop`"
            raise DataError([*self.lines, *self.fatal, mend])
        if self.fatal:
            raise DataError(self.fatal)
        return ~self.rows


def check_roles(
    table: pa.Table, schema: RowSchema, task: Task, training: bool, findings: Findings
) -> None:
    """Check uid, response, weight, offset, entity and grouping columns.

    Parameters
    ----------
    training
        Whether something is to be learnt from the labels.
    """
    roles = ("uid", "response", "weight", "offset")
    columns = {r: c for r in roles if (c := schema.role_column(r, table.schema.names))}
    if not schema.needs_response:
        columns.pop("response", None)
    for column in dict.fromkeys([*columns.values(), *schema.keys]):
        findings.add(column, "no value", _nulls(table[column]))
    if uid := columns.pop("uid", None):
        findings.add(uid, "the uid of an earlier row", _repeated(table[uid]))
    values = {role: as_floats(table[column], fill=0.0) for role, column in columns.items()}
    for role, column in columns.items():
        findings.add(column, "NaN or infinity", np.flatnonzero(~np.isfinite(values[role])))
    if "weight" in columns:
        bad = np.flatnonzero(values["weight"] < 0)
        findings.add(columns["weight"], "a negative weight", bad, _first(values["weight"], bad))
    if "response" in columns:
        _check_labels(columns["response"], values["response"], task, findings)
    if training and not findings.columns & {columns["response"], columns.get("weight")}:
        used = values["response"]
        used = used[values["weight"] > 0] if "weight" in columns else used
        _check_classes(columns["response"], used, task, findings)


def _check_labels(column: str, values: NDArray[np.float64], task: Task, findings: Findings) -> None:
    if task == "logistic_regression":
        outside, what = (values != 0) & (values != 1), "a label that is neither 0 nor 1"
    elif task == "poisson_regression":
        outside, what = values < 0, "a negative label, where a count is expected"
    else:
        return
    rows = np.flatnonzero(outside & np.isfinite(values))
    findings.add(column, what, rows, _first(values, rows))


def _check_classes(column: str, used: NDArray[np.float64], task: Task, findings: Findings) -> None:
    """Refuse labels, of rows of positive weight, from which nothing can be learnt."""
    where = f"{findings.source}: column '{column}'"
    if not used.size:
        findings.fatal.append(f"{findings.source}: no row has a positive weight")
    elif task != "linear_regression" and not (used > 0).any():
        findings.fatal.append(f"{where}: no positive label: all are 0")
    elif task == "logistic_regression" and (used > 0).all():
        findings.fatal.append(f"{where}: no negative label: all are 1")


def counted(rows: int) -> str:
    """Return ``1 row``, ``1,234 rows``."""
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def as_floats(column: pa.ChunkedArray, fill: float) -> NDArray[np.float64]:
    """Return a numeric column as float64, nulls filled."""
    filled = pc.fill_null(column.cast(pa.float64(), safe=False), fill)
    # A copy: a kernel that is given Arrow's own, read-only memory would be compiled once more.
    return np.array(filled.to_numpy())


def _nulls(column: pa.ChunkedArray) -> NDArray[np.int64]:
    # Not only is_null: of a dictionary, the value that an index points to may be null.
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count == 0:
        return np.empty(0, np.int64)
    return np.flatnonzero(column.is_null().to_numpy())


def _repeated(uid: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return positions of values that occurred earlier; nulls are no values."""
    values = uid.drop_null().to_numpy()
    in_order = np.sort(values)
    if not (in_order[1:] == in_order[:-1]).any():
        return np.empty(0, np.int64)
    present = np.flatnonzero(uid.is_valid().to_numpy())
    return np.asarray(np.delete(present, np.unique(values, return_index=True)[1]))


def _first(values: NDArray[np.float64], rows: NDArray[np.int64]) -> str:
    return f"value {values[rows[0]]:g}" if rows.size else ""
