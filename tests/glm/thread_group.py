"""A group of threads: what a group of processes computes, without what carries it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Result = TypeVar("Result")


class ThreadGroup:
    def __init__(self, rank: int, boards: list[list[Any]], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(boards[0])
        self._boards, self._barrier = boards, barrier

    def sum(self, array: F64) -> F64:
        return np.asarray(sum(self._all(array)))

    def maximum(self, array: F64) -> F64:
        return np.max(self._all(array), axis=0)

    def exchange(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        assert all(array.ndim == 1 for array in arrays)
        return [sent[self.rank] for sent in self._all([array.copy() for array in arrays])]

    def _all(self, item: Any) -> list[Any]:
        """What every rank gives: on two boards in turn, so that none is wiped while it is read."""
        board = self._boards[0]
        self._boards = self._boards[::-1]
        board[self.rank] = item.copy()
        self._barrier.wait()
        return list(board)


def run_in_group(size: int, work: Callable[[ThreadGroup], Result]) -> list[Result]:
    """Call `work` with the group of each rank; a rank that fails ends all."""
    barrier = threading.Barrier(size, timeout=60.0)
    boards: list[list[Any]] = [[None] * size, [None] * size]

    def run(rank: int) -> Result:
        try:
            return work(ThreadGroup(rank, boards, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [future.exception() for future in futures]
    first = [e for e in errors if not (e is None or isinstance(e, threading.BrokenBarrierError))]
    if first:
        raise first[0]
    return [future.result() for future in futures]
