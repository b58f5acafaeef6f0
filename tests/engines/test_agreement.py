"""How the tasks of a barrier stage end together, whatever becomes of each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gdmix.deep.distributed import PeerEnded
from gdmix.engines.spark.collective import PeerLost
from gdmix.engines.spark.deep_effect import in_agreement
from gdmix.errors import ConfigError


def ends_of(*works: Any) -> tuple[list[Any], list[str]]:
    """Let each task work in a thread; return how they end, and what happened in order."""
    barrier = threading.Barrier(len(works))
    said: list[str] = [""] * len(works)
    ends: list[Any] = [None] * len(works)
    events: list[str] = []

    def run(rank: int) -> None:
        def all_gather(text: str) -> list[str]:
            said[rank] = text
            barrier.wait(10)
            events.append("gathered")
            return list(said)

        @contextmanager
        def team() -> Iterator[None]:
            try:
                yield
            finally:
                events.append(f"{rank} leaves")

        try:
            ends[rank] = in_agreement(all_gather, team(), works[rank])
        except Exception as error:
            ends[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return ends, events


def fails(error: Exception) -> Any:
    def work() -> None:
        raise error

    return work


def test_all_tasks_are_done() -> None:
    ends, events = ends_of(lambda: "a", lambda: "b")
    assert ends == ["a", "b"]
    assert events.index("gathered") < min(events.index(f"{rank} leaves") for rank in (0, 1))


def test_a_mistake_is_told_by_the_task_that_knows() -> None:
    mistake, lost = ConfigError("lower learning_rate"), PeerEnded("another process has ended")
    ends, events = ends_of(fails(lost), fails(mistake), lambda: "c")
    assert ends == [None, mistake, None]
    assert events.index("1 leaves") < events.index("gathered")


def test_all_tasks_make_the_same_mistake() -> None:
    mistakes = [ConfigError("not finite"), ConfigError("not finite")]
    assert ends_of(*map(fails, mistakes))[0] == mistakes


def test_a_task_that_is_lost_fails_all() -> None:
    """Spark repeats what fails by no `GdmixError`."""
    ends, _ = ends_of(fails(PeerEnded("closed")), lambda: "b")
    assert [type(end) for end in ends] == [PeerLost, PeerLost]
    assert [str(end) for end in ends] == [
        "closed",
        "another task of the stage lost its connection",
    ]


def test_any_other_failure_is_not_held_up() -> None:
    ends, events = ends_of(fails(MemoryError()))
    assert isinstance(ends[0], MemoryError) and events == ["0 leaves"]
