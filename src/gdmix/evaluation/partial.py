"""Metrics of rows that are divided among partitions: exact, and never all rows in one place.

Three functions of a partition, with something small on the driver before, between and after::

    firsts = [evaluation.first(rows) for each partition]             # counts, sums, a sample
    plan = evaluation.plan(firsts)                                   # on the driver
    messages = [evaluation.split(rows, keys, plan) for each partition]
    shares = [evaluation.reduce(target, messages to it) for each target]  # after a shuffle
    values = evaluation.finish(plan, shares)                         # on the driver

A target of the shuffle is a range of scores, or those groups of one column that a hash puts
together: equal scores, and the rows of a group, are never divided. A range can be done alone,
because every partition says what weight of either class it has above that range.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.config import MetricSpec, Task
from gdmix.data.keys import Keys, KeyTable
from gdmix.data.partition import key_hashes
from gdmix.evaluation.checks import Checks, Rows, specs_of
from gdmix.evaluation.grouped import group_sums
from gdmix.evaluation.metrics import (
    ClassWeights,
    ThresholdSums,
    at_distinct_scores,
    class_weights,
)
from gdmix.evaluation.sums import (
    GroupSum,
    LossSums,
    ScoreSample,
    by_column,
    has_curves,
    metric_values,
    splitters,
)

# Scores that each partition tells the driver. Of as many ranges as partitions the largest is
# then seldom more than a tenth larger than the mean.
_SAMPLE = 1000

Message = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class First:
    """What the driver has to know of a partition before rows are divided anew.

    Attributes
    ----------
    checks
        What is wrong with the rows.
    losses
        Their part of the metrics that are means over rows.
    sample
        Some of their scores.
    """

    checks: Checks
    losses: LossSums
    sample: ScoreSample


@dataclass(frozen=True)
class Plan:
    """How the rows are divided anew, and what is known already.

    Attributes
    ----------
    losses
        Of the rows of all partitions.
    bounds
        Scores between the ranges, falling: see `splitters`.
    """

    losses: LossSums
    bounds: NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """What the metrics owe to the rows of one target.

    Attributes
    ----------
    thresholds
        Of a range of scores, from the weights above it to those at its end.
    groups
        Of groups, the sum over them of each metric of their column.
    """

    thresholds: ThresholdSums = field(default_factory=ThresholdSums)
    groups: Mapping[str, GroupSum] = field(default_factory=dict)


class DistributedEvaluation:
    """Computes what `evaluate` computes, of rows in partitions.

    Parameters
    ----------
    names
        Metrics, as in `evaluate`.
    task
        Decides the inverse link of ``rmse`` and ``mae``.
    columns
        The grouping columns that there are.
    parts
        Into how many ranges of scores, and sets of groups of each column, to divide the rows.

    Attributes
    ----------
    targets
        Number of targets of the shuffle; none if no metric needs rows of other partitions.

    Raises
    ------
    ConfigError
        If there is no such metric or no such grouping column.
    """

    def __init__(
        self, names: Sequence[str], *, task: Task, columns: Collection[str], parts: int
    ) -> None:
        self._specs = specs_of(names, columns)
        self._task: Task = task
        self._parts = parts
        self._columns = by_column(self._specs)
        curves = [None] if has_curves(self._specs.values()) else []
        self._exchanges: list[str | None] = [*curves, *self._columns]
        self.targets = parts * len(self._exchanges)

    def first(self, rows: Rows) -> First:
        """Look at the rows of a partition."""
        counted = rows[rows.counted]
        return First(
            Checks.of(rows),
            LossSums.of(counted, self._specs.values(), self._task),
            ScoreSample.of(counted.score, _SAMPLE),
        )

    def plan(self, firsts: Sequence[First]) -> Plan:
        """Decide how to divide the rows anew.

        Parameters
        ----------
        firsts
            Of all partitions, at least one.

        Raises
        ------
        DataError
            As in `evaluate`, with the same words.
        """
        Checks.total([first.checks for first in firsts]).require(self._specs, self._task)
        return Plan(
            LossSums.total([first.losses for first in firsts]),
            splitters([first.sample for first in firsts], self._parts),
        )

    def split(
        self, rows: Rows, keys: Mapping[str, Keys], plan: Plan
    ) -> Iterator[tuple[int, Message]]:
        """Divide the rows of a partition anew.

        Parameters
        ----------
        rows
            As given to `first`.
        keys
            The grouping columns, (n,) each. A column is of the same type in all partitions.

        Yields
        ------
        tuple
            A target, and arrays for it: views, to be packed before the next is asked for.
        """
        counted = rows.counted
        rows = rows[counted]
        for k, column in enumerate(self._exchanges):
            if column is None:
                messages = _by_range(rows, plan.bounds)
            else:
                values, codes = keys[column].values, keys[column].codes[counted]
                messages = _by_hash(rows, values, codes, self._parts)
            for part, message in messages:
                yield k * self._parts + part, message

    def reduce(self, target: int, messages: Sequence[Message]) -> Share:
        """Compute the share of a target in the metrics, from all messages to it."""
        column = self._exchanges[target // self._parts]
        if column is None:
            return Share(thresholds=_of_range(messages))
        return Share(groups=_of_groups(self._columns[column], messages))

    def finish(self, plan: Plan, shares: Sequence[Share]) -> dict[str, float]:
        """Return the metrics, from the shares of all targets that got messages."""
        groups = {
            name: GroupSum.total([share.groups[name] for share in shares if name in share.groups])
            for column in self._columns.values()
            for name in column
        }
        thresholds = ThresholdSums.total([share.thresholds for share in shares])
        return metric_values(self._specs, plan.losses, thresholds, groups)


def _by_range(rows: Rows, bounds: NDArray[np.float64]) -> Iterator[tuple[int, Message]]:
    """Cut rows into ranges of scores, the highest first."""
    if not rows.score.size:
        return
    weights = class_weights(rows.score, rows.response, rows.weight)
    below = np.searchsorted(weights.score[::-1], bounds, side="right")
    ends = [*(weights.score.size - below), weights.score.size]
    above, start = np.zeros(2), 0
    for k, end in enumerate(ends):
        part = ClassWeights(*(array[start:end] for array in weights))
        yield k, {"above": above, **part._asdict()}
        above = above + [part.positive.sum(), part.negative.sum()]
        start = end


def _of_range(messages: Sequence[Message]) -> ThresholdSums:
    """Go over the thresholds of one range, starting from the weights above it."""
    above = np.sum([m["above"] for m in messages], axis=0)
    weights = ClassWeights(
        *(np.concatenate([m[name] for m in messages]) for name in ClassWeights._fields)
    )
    thresholds = ThresholdSums(*above.tolist())
    thresholds.add(at_distinct_scores(weights))
    return thresholds


def _by_hash(
    rows: Rows, values: pa.Array, codes: NDArray[np.int32], parts: int
) -> Iterator[tuple[int, Message]]:
    """Divide rows by a hash of their key; those without one are left out."""
    # The narrowest integers: NumPy sorts those of 16 bits by counting.
    part = (key_hashes(values) % np.uint64(parts)).astype(np.min_scalar_type(parts - 1))
    key_order, first_key = _grouped(part, parts)
    number = np.empty(part.size, np.int32)  # of each key in its part
    number[key_order] = np.arange(part.size) - np.repeat(first_key[:-1], np.diff(first_key))
    values = values.take(pa.array(key_order))
    members = np.flatnonzero(codes >= 0)
    row_order, first_row = _grouped(part[codes[members]], parts)
    for p in np.flatnonzero(np.diff(first_row)):
        chosen = members[row_order[first_row[p] : first_row[p + 1]]]
        own = rows[chosen]
        keys = _packed(values[first_key[p] : first_key[p + 1]])
        columns = {"score": own.score, "response": own.response, "weight": own.weight}
        yield int(p), {**columns, "code": number[codes[chosen]], **keys}


def _grouped(part: NDArray[Any], parts: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return an order by part, and where in it each part starts, the end last."""
    order = np.argsort(part, kind="stable")
    return order, np.append(0, np.cumsum(np.bincount(part, minlength=parts)))


def _of_groups(specs: Mapping[str, MetricSpec], messages: Sequence[Message]) -> dict[str, GroupSum]:
    """Compute grouped metrics of the groups of one target."""
    keys = [_unpacked(message) for message in messages]
    table = KeyTable(keys[0].type)
    codes = [table.insert(k)[m["code"]] for k, m in zip(keys, messages, strict=True)]
    score, response, weight = (
        np.concatenate([m[name] for m in messages]) for name in ("score", "response", "weight")
    )
    return group_sums(specs, Rows(score, response, weight), np.concatenate(codes))


def _packed(keys: pa.Array) -> Message:
    """Return keys as plain arrays."""
    if pa.types.is_integer(keys.type):
        return {"integers": keys.to_numpy()}
    _, ends, text = keys.buffers()
    ends = np.frombuffer(ends, np.int64)[keys.offset : keys.offset + len(keys) + 1]
    size = ends[-1] - ends[0]  # none where the one key is the empty one
    text = np.frombuffer(text, np.uint8)[ends[0] : ends[-1]] if size else np.empty(0, np.uint8)
    return {"ends": ends - ends[0], "text": text}


def _unpacked(arrays: Message) -> pa.Array:
    if "integers" in arrays:
        return pa.array(arrays["integers"])
    ends = arrays["ends"]
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(arrays["text"])]
    return pa.Array.from_buffers(pa.large_string(), ends.size - 1, buffers)
