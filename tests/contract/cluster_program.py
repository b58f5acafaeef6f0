"""A driver that trains on a cluster of processes; tests run it, and kill what it works with.

    python cluster_program.py MASTER FOLDER [PAUSE]

PAUSE names a coordinate; `network` is a deep one, in the place of all others. In the middle of its
first fit, one of the tasks writes the number of its executor's process into FOLDER/paused and waits
to be killed. All of that is in this file: functions of the program travel to the tasks by value.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from contract_rows import (
    Data,
    assert_same,
    config_of,
    difference,
    make_rows,
    outcome_of,
    reference_of,
)

from gdmix import DeepFixedEffect, FixedEffect, RandomEffect
from gdmix.config import SparkConfig
from gdmix.engines.spark import coordinates, deep_effect, fixed_effect
from gdmix.engines.spark.engine import SparkEngine
from gdmix.engines.spark.session import opened
from gdmix.engines.spark.tasks.fitting import fit
from spark_fixtures import SETTINGS

PARTS = (
    FixedEffect("global", features=["row", "more", "dense"], variance="full"),
    RandomEffect("per-user", entity="user", features=["row"]),
    RandomEffect("per-item", entity="item", features=["dense"], variance="simple"),
)
NETWORK = DeepFixedEffect(
    "network",
    text="item",
    dense="dense",
    categorical={"user": {"dim": 2}},
    encoder={"type": "cnn", "windows": [1], "filters": 4, "word_dim": 4},
    training={"steps": 30, "batch_size": 32, "learning_rate": 0.01, "epsilon": 1e-3},
)
ROLES = {"weight": "importance", "offset": "base"}


def pause(folder: Path) -> None:
    """Tell which executor runs this task and wait to be killed; later tasks go on."""
    paused = folder / "paused"
    temporary = folder / f"{os.getpid()}"
    temporary.write_text(str(executor()))
    try:
        os.link(temporary, paused)  # the first one wins
    except FileExistsError:
        return
    time.sleep(120.0)


def executor() -> int:
    """Return the process of the executor that this Python worker belongs to."""
    process = os.getpid()
    while "CoarseGrainedExecutorBackend" not in Path(f"/proc/{process}/cmdline").read_text():
        status = Path(f"/proc/{process}/status").read_text().splitlines()
        process = next(int(line.split()[1]) for line in status if line.startswith("PPid"))
    return process


def pausing_fit(folder: Path, task: Any, partition: int, pieces: Iterable[Any]) -> Iterator[Any]:
    """Fit a random effect; wait after the first piece of its scores."""
    for number, piece in enumerate(fit(task, partition, pieces)):
        if number == 1:
            pause(folder)
        yield piece


def pausing_shard(folder: Path, *arguments: Any) -> Iterator[Any]:
    """Fit a shard of a fixed effect; rank 1 waits amid the iterations, the others for it."""
    from pyspark import BarrierTaskContext

    from gdmix.engines.spark import fixed_effect as module

    whole = module.barrier_group

    @contextmanager
    def interrupted(context: Any, token: bytes) -> Iterator[Any]:
        with whole(context, token) as group:
            yield Interrupted(group, folder)

    if BarrierTaskContext.get().partitionId() == 1:
        module.barrier_group = interrupted
    try:
        yield from module.fit_shard(*arguments)  # as it is: only the driver has another
    finally:
        module.barrier_group = whole


def pausing_network(folder: Path, *arguments: Any) -> Iterator[Any]:
    """Fit a shard of a network; rank 1 waits amid the steps, the others for it."""
    from pyspark import BarrierTaskContext

    from gdmix.deep.distributed import Team
    from gdmix.engines.spark import deep_effect as module

    whole, calls = Team.add_up, iter(range(10_000))

    def interrupted(self: Any, tensor: Any) -> None:
        if next(calls) == 8:
            pause(folder)
        whole(self, tensor)

    if BarrierTaskContext.get().partitionId() == 1:
        Team.add_up = interrupted  # type: ignore[method-assign]
    try:
        yield from module.fit_shard(*arguments)  # as it is: only the driver has another
    finally:
        Team.add_up = whole  # type: ignore[method-assign]


class Interrupted:
    """A group of tasks, one of which waits in the middle of a fit."""

    def __init__(self, group: Any, folder: Path) -> None:
        self._group, self._folder, self._exchanges = group, folder, 0

    def exchange(self, arrays: Any) -> Any:
        self._exchanges += 1
        if self._exchanges == 8:
            pause(self._folder)
        return self._group.exchange(arrays)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


def main(master: str, folder: Path, paused: str | None = None) -> None:
    """Train on the cluster, and hold the outcome to that of one thread of one machine."""
    if paused == "per-user":
        coordinates.fit = partial(pausing_fit, folder)  # type: ignore[assignment]
    elif paused == "global":
        fixed_effect.fit_shard = partial(pausing_shard, folder)  # type: ignore[assignment]
    elif paused == "network":
        deep_effect.fit_shard = partial(pausing_network, folder)  # type: ignore[assignment]
    # A network's rows are shuffled in the order of their uids on a cluster, in files' order here.
    train, validation = make_rows(320, 1).sort_by("uid"), make_rows(140, 2, new=4)
    data = Data.write(folder / "rows", train, validation)
    parts = (NETWORK,) if paused == "network" else PARTS
    config = config_of(*parts, columns=ROLES, passes=2, metrics=["auc", "auc:user", "mrr:item"])
    settings = {**SETTINGS, "spark.executor.memory": "1g", "spark.cores.max": "2"}
    with opened(SparkConfig(master=master, conf=settings), "gdmix tests") as session:
        engine = SparkEngine(session, partitions=3, scratch=folder / "scratch")
        found = outcome_of(engine, config, data.train, data.validation)
    wanted = reference_of(config, train, validation)
    if paused == "network":  # of single precision; ranks of scores may change
        apart = difference(found, wanted)
        assert max(apart.coefficients, apart.scores, apart.objective) < 1e-4, apart
        print(apart)
    else:
        print(assert_same(found, wanted))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
