"""One large problem whose rows, and whose coefficients, are divided among processes.

Each rank has a shard of the rows and holds a slice of the coefficients: rank 0 the first one, with
the intercept. Before a product with its rows a rank gathers the coefficients that they meet from
the ranks that hold them, after one with their transpose it sends what belongs to these back, where
it is added up. Who needs what is told once. So no rank has a vector of all coefficients, unless
its rows meet them all; and all is done as in one process but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.compiled import kernel
from gdmix.glm.group import Group
from gdmix.glm.large import MAX_FALLBACK_COEFFICIENTS, SparseMap
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Labels, Minimum, minimize
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.proximal import finite_bounds, minimize_proximal
from gdmix.glm.quadratic_model import Terms, model_of

F64 = NDArray[np.float64]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]


def held_slice(d: int, rank: int, size: int) -> slice:
    """Return which of d coefficients a rank holds: about equally many each, rank 0 the first."""
    return slice(-(-d * rank // size), -(-d * (rank + 1) // size))


@dataclass(frozen=True)
class DividedPenalty(QuadraticPenalty):
    """The penalty of the coefficients that a rank holds; where all are few, with a matrix.

    Its `product`, `between` and `whole_matrix` are called by all ranks; what is between two vectors
    is the rank's part of a sum.

    Attributes
    ----------
    matrix
        (own, d) the rows of these coefficients, or None.
    held
        Which they are.
    group
        The ranks.
    """

    held: slice = field(kw_only=True)
    group: Group = field(kw_only=True)

    def product(self, theta: F64) -> F64:
        """Return ``(diag(weights) + matrix) theta``, of the coefficients held here."""
        result = self.weights * theta
        if self.matrix is not None:
            result += self.matrix @ self._of_all(theta)
        return result

    def whole_matrix(self) -> F64 | None:
        """Return the matrix, (d, d)."""
        if self.matrix is None:
            return None
        return self._of_all(self.matrix.ravel()).reshape(-1, self.matrix.shape[1])

    @property
    def diagonal(self) -> F64:
        """The matrix's diagonal and the weights, of the coefficients held here."""
        if self.matrix is None:
            return self.weights
        return self.weights + np.diagonal(self.matrix, self.held.start)

    def _of_all(self, own: F64) -> F64:
        """Return every rank's numbers one after another."""
        return np.concatenate(self.group.exchange([own] * self.group.size))


class DistributedMap(SparseMap):
    """The design of a shard of the rows, in a group: a `newton.LinearMap` of slices.

    Every vector of coefficients is the `held` slice of it. All methods are called by all ranks, in
    the same order.

    Parameters
    ----------
    design
        (own rows, d - 1) features: the same columns on all ranks.
    group
        The ranks.
    threads
        Of this rank; results depend on it only through the order of sums.

    Attributes
    ----------
    held
        The coefficients that this rank holds, of all d, the intercept first.
    """

    def __init__(self, design: CsrMatrix, intercept: bool, threads: int, group: Group) -> None:
        d = design.n_columns + 1
        met, shard = _renumbered(design)
        owners = _Ranks(group, d, met)
        self.intercept, self.threads, self.group = intercept, threads, group
        self.held = owners.held
        super().__init__(shard, intercept, threads, owners)


def fit_large_distributed(
    design: DistributedMap,
    response: F64,
    weight: F64,
    offset: F64,
    *,
    loss: int,
    penalty: QuadraticPenalty,
    l1: F64 | None = None,
    lower: F64 | None = None,
    upper: F64 | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
    start: F64 | None = None,
) -> Minimum:
    """Do as `large.fit_large`, with the rows and the coefficients of one rank.

    With L1 weights or bounds, on all ranks or none, it does as `proximal.fit_large_proximal`.

    Parameters
    ----------
    response, weight, offset
        Of the design's rows.
    penalty
        Of the coefficients that this rank holds; with a matrix, a `DividedPenalty`.
    l1, lower, upper
        L1 weights and bounds of the coefficients that this rank holds, if there are any.
    start
        Start coefficients, those that this rank holds.

    Returns
    -------
    Minimum
        Its coefficients are those that this rank holds; all else is the same on all ranks.
    """
    is_whole = penalty.matrix is not None and not isinstance(penalty, DividedPenalty)
    if is_whole and design.group.size > 1:
        raise ValueError("a penalty with a matrix has to be a DividedPenalty")
    labels = Labels(response, weight, offset, loss, design.threads, design.group)
    options: dict[str, Any] = {
        "intercept": design.intercept,
        "tolerance": tolerance,
        "max_iterations": max_iterations,
    }
    is_first = design.group.rank == 0
    if l1 is not None or lower is not None or upper is not None:
        bounds = finite_bounds(
            np.empty(0) if lower is None else lower,
            np.empty(0) if upper is None else upper,
            design.size,
            is_first and not design.intercept,
        )
        l1 = np.zeros(design.size) if l1 is None else l1
        terms = Terms(penalty, l1, *bounds, design.group)
        return minimize_proximal(
            design, labels, terms, model_of(design, None), start=start, **options
        )
    theta = np.zeros(design.size) if start is None else start.copy()
    if is_first:
        theta[0] *= design.intercept
    return minimize(design, labels, penalty, start=theta, **options)


class _Ranks:
    """A `large.Owners`: the ranks of a group, each of a slice of the d coefficients.

    Parameters
    ----------
    met
        Columns that this rank's rows meet, ascending; None: all of them.
    """

    def __init__(self, group: Group, d: int, met: U32 | None) -> None:
        widths = group.maximum(np.array([d, -d], np.float64))
        if widths.sum() != 0.0:
            raise ValueError("the ranks' designs have different numbers of columns")
        self.group, self.total = group, d
        slices = [held_slice(d, rank, group.size) for rank in range(group.size)]
        self.held = slices[group.rank]
        self.size = self.held.stop - self.held.start
        self._slices = slices
        self._met = None if met is None else np.append(0, met.astype(np.int64) + 1)
        # Where the coefficients of each rank lie among those met.
        bounds = np.array([own.start for own in slices] + [d])
        self._bounds = bounds if self._met is None else np.searchsorted(self._met, bounds)
        # Which of the coefficients held here each rank's rows meet.
        self._wanted = [
            None if indices.size == self.size else indices
            for indices in group.exchange(self._requests())
        ]

    def _requests(self) -> list[U32]:
        """Return, by rank, which of the coefficients that it holds are met here."""
        requests = []
        for rank, own in enumerate(self._slices):
            part = slice(*self._bounds[rank : rank + 2])
            met = np.arange(own.start, own.stop) if self._met is None else self._met[part]
            requests.append((met - own.start).astype(np.uint32))
        return requests

    def gather(self, own: F64) -> F64:
        parts = self.group.exchange([_taken(own, wanted) for wanted in self._wanted])
        met = memory.empty(int(self._bounds[-1]))
        return np.concatenate(parts, out=met)

    def add_up(self, met: F64) -> F64:
        result = memory.zeros(self.size)
        parts = self.group.exchange(np.split(met, self._bounds[1:-1]))
        for part, wanted in zip(parts, self._wanted, strict=True):
            if wanted is None:
                result += part
            else:
                _add_at(wanted, part, result)
        return result

    def add_up_matrix(self, met: F64) -> F64:
        if self._met is not None:
            small, met = met, np.zeros((self.total, self.total))
            met[np.ix_(self._met, self._met)] = small
        return self.group.sum(met)

    def deal(self, make: Callable[[], F64]) -> F64:
        # On one rank, as not all processors round alike.
        whole = make() if self.group.rank == 0 else np.empty(0)
        return self.group.exchange([whole[own] for own in self._slices])[0]


def _taken(vector: F64, indices: U32 | None) -> F64:
    if indices is None:
        return vector
    taken = memory.empty(indices.size)
    _take(vector, indices, taken)
    return taken


def _renumbered(design: CsrMatrix) -> tuple[U32 | None, CsrMatrix]:
    """Return the columns that rows meet, ascending, and the design of these alone.

    The columns are None, and the design is as it was, if it has them all, or has but few.
    """
    d = design.n_columns
    if design.is_dense or d < MAX_FALLBACK_COEFFICIENTS:
        return None, design
    first, last = int(design.indptr[0]), int(design.indptr[-1])
    indices = design.indices[first:last]
    # A bit per column, and of every 64 how many were set before: a fraction of a byte a column.
    words = np.zeros(d // 64 + 1, np.uint64)
    before = np.zeros(words.size + 1, np.uint32)
    _mark(indices, words)
    _count(words, before)
    n_met = int(before[-1])
    if n_met == d:
        return None, design
    met = memory.empty(n_met, np.uint32)
    _list(words, met)
    renumbered = memory.empty(indices.size, np.uint32)
    _renumber(indices, words, before, renumbered)
    indptr = design.indptr
    if first > 0:
        indptr = memory.copy(indptr)
        indptr -= first
    return met, CsrMatrix(indptr, renumbered, design.values[first:last], n_met)


@kernel
def _mark(indices: U32, words: U64) -> None:
    """Set the bit of each index."""
    one, last = np.uint64(1), np.uint64(63)
    for q in range(indices.size):
        index = np.uint64(indices[q])
        words[index >> np.uint64(6)] |= one << (index & last)


@kernel
def _ones(word: np.uint64) -> np.uint64:
    """Return how many bits are set, in parallel (Warren, Hacker's Delight, 2012, section 5-1)."""
    x = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@kernel
def _count(words: U64, before: U32) -> None:
    """Count the bits set before each word, and those set in all."""
    for k in range(words.size):
        before[k + 1] = before[k] + np.uint32(_ones(words[k]))


@kernel
def _list(words: U64, indices: U32) -> None:
    """Fill in the indices whose bits are set."""
    n = 0
    for k in range(words.size):
        for bit in range(64):
            if (words[k] >> np.uint64(bit)) & np.uint64(1):
                indices[n] = 64 * k + bit
                n += 1


@kernel
def _renumber(indices: U32, words: U64, before: U32, renumbered: U32) -> None:
    """Fill in, for each index, how many bits are set before its own."""
    one, last = np.uint64(1), np.uint64(63)
    for q in range(indices.size):
        index = np.uint64(indices[q])
        k = index >> np.uint64(6)
        lower = (one << (index & last)) - one
        renumbered[q] = before[k] + np.uint32(_ones(words[k] & lower))


@kernel
def _take(vector: F64, indices: U32, taken: F64) -> None:
    for k in range(indices.size):
        taken[k] = vector[indices[k]]


@kernel
def _add_at(indices: U32, values: F64, vector: F64) -> None:
    for k in range(indices.size):
        vector[indices[k]] += values[k]
