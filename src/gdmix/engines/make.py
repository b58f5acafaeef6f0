"""The engine that a configuration asks for, and what a run needs of the place where it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gdmix.config import DataConfig, RunConfig
from gdmix.data.join import open_data
from gdmix.data.read import Source, expand_paths
from gdmix.engines.base import Engine
from gdmix.engines.local import LocalEngine

Split = Literal["train", "validation"]
Stamps = dict[str, list[int]]


@dataclass(frozen=True)
class Place:
    """Where a run works.

    Attributes
    ----------
    engine
        That does the work.
    rows
        Opens the rows of a split, if there are any.
    stamps
        Size and time of change of each file that paths stand for: what tells that it is the same.
    """

    engine: Engine
    rows: Callable[[DataConfig, Split, str], Source | None]
    stamps: Callable[[Sequence[str]], Stamps]


@contextmanager
def open_engine(config: RunConfig, scratch: Path, fits: Path) -> Iterator[Place]:
    """Give the engine that a run asks for; a Spark session that is opened for it ends with it.

    Parameters
    ----------
    scratch
        Folder for what does not stay, which all machines of the run reach.
    fits
        Folder in which long fits keep their state.

    Raises
    ------
    ConfigError, EngineError
        If there is no such engine here.
    """
    if config.engine == "local":
        yield Place(LocalEngine(fits), open_data, stamps)
        return
    from gdmix.engines.spark.engine import SparkEngine
    from gdmix.engines.spark.session import opened

    with opened(config.spark, f"gdmix {config.output.name}") as session:
        engine = SparkEngine(session, config.spark.partitions, scratch)
        yield Place(engine, _paths, partial(_stamps_on_spark, session))


def stamps(paths: Sequence[str]) -> Stamps:
    """Return size and time of change of each file of this machine that paths stand for.

    Raises
    ------
    DataError
        If one stands for nothing.
    """
    stats = {str(file.absolute()): file.stat() for file in expand_paths(paths)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _stamps_on_spark(session: Any, paths: Sequence[str]) -> Stamps:
    from gdmix.engines.spark import sources

    on_spark = sources.opened_by_spark(session, paths)
    return sources.stamps(session, paths) if on_spark else stamps(paths)


def _paths(data: DataConfig, split: Split, uid: str) -> Source | None:
    """Return the paths themselves, for tasks to open; only what is joined is read here."""
    return open_data(data, split, uid) if data.joined else getattr(data, split)
