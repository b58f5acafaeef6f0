"""Threads inside one process: kernels release the interpreter lock, so a pool is enough."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def available_threads() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gdmix")


if hasattr(os, "register_at_fork"):  # a forked child inherits the pool, but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def map_threads(
    function: Callable[[_Task], _Result], tasks: Sequence[_Task], threads: int
) -> list[_Result]:
    """Apply `function` to every task, `threads` at a time, tasks started in order."""
    if threads == 1 or len(tasks) == 1:
        return [function(task) for task in tasks]
    return list(_pool(threads).map(function, tasks))


def split_evenly(n: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``range(n)`` into at most `parts` non-empty slices of about equal length."""
    bounds = [n * k // parts for k in range(parts + 1)]
    return [(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if b > a] or [(0, 0)]


def map_ordered(
    function: Callable[[_Task], _Result], tasks: Iterable[_Task], threads: int
) -> Iterator[_Result]:
    """Yield the result for every task, in order, working only a few tasks ahead."""
    if threads == 1:
        yield from map(function, tasks)
        return
    waiting: deque[Future[_Result]] = deque()
    for task in tasks:
        waiting.append(_pool(threads).submit(function, task))
        if len(waiting) > threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
