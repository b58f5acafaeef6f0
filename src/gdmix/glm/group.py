"""One problem whose rows are divided among processes: what these need of each other.

Every member of a `Group` runs the same program on rows of its own (single program, multiple
data). What decides where the program goes next has to be the same in all of them, so every sum
over rows, and every inner product of vectors that are divided too, is taken over the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.objective import dot

F64 = NDArray[np.float64]


class Group(Protocol):
    """Processes that work on one problem; each calls the same methods in the same order."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def sum(self, array: F64) -> F64:
        """Return the sum of every rank's array: bit for bit the same on all ranks."""

    def maximum(self, array: F64) -> F64:
        """Return the largest of every rank's arrays, entry by entry."""

    def exchange(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Send one array to each rank, in order, and return the one that each sent here.

        Arrays have one axis, and any length and type. What comes back may be what was sent.
        """


class Alone:
    """The group of one process."""

    rank = 0
    size = 1

    def sum(self, array: F64) -> F64:
        """Return the array."""
        return array

    def maximum(self, array: F64) -> F64:
        """Return the array."""
        return array

    def exchange(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the arrays."""
        return list(arrays)


ALONE = Alone()


# What follows makes no array where there is one rank: small problems would feel it.


def total(group: Group, value: float) -> float:
    """Return the sum of every rank's number."""
    return value if group.size == 1 else float(group.sum(np.array([value]))[0])


def largest(group: Group, value: float) -> float:
    """Return the largest of every rank's numbers."""
    return value if group.size == 1 else float(group.maximum(np.array([value]))[0])


def inner_products(group: Group, *pairs: tuple[F64, F64]) -> list[float]:
    """Return the inner products of pairs of vectors, of which each rank holds a part."""
    # BLAS would wake threads that cost more than they save.
    products = [dot(a.size, a, b) for a, b in pairs]
    if group.size > 1:
        products = [float(product) for product in group.sum(np.array(products))]
    return products


def any_rank(group: Group, *facts: bool | np.bool_) -> list[bool]:
    """Return for each fact whether it holds on any rank."""
    if group.size == 1:
        return [bool(fact) for fact in facts]
    return [bool(fact) for fact in group.maximum(np.array(facts, np.float64)) > 0.0]
