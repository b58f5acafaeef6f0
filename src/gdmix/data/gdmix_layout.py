"""Where LinkedIn's GDMix puts its files, and into which partition an entity falls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FIXED_MODEL = "global_model.avro"
FIXED_MODEL_ID = "global model"


def model_part(partition: int) -> str:
    """Return the file name of a random effect's models of one partition."""
    return f"part-{partition:05d}.avro"


def score_part(folder: Path, partition: int | None, rows: str = "", part: int = 0) -> Path:
    """Return a file of scores.

    Parameters
    ----------
    partition
        Of a random effect; None of a fixed effect.
    rows
        ``active`` or ``passive``, of training scores.
    part
        Number of the file, where several have the rows.
    """
    name = f"part-{part:05d}-{rows}.avro" if rows else f"part-{part:05d}.avro"
    return folder / name if partition is None else folder / f"partitionId={partition}" / name


def partitions_of(entities: pa.Array, n: int) -> NDArray[np.int32]:
    """Return the partition of each entity, (E,): the hash of its text, as Java has it, modulo n."""
    if n == 1:
        return np.zeros(len(entities), np.int32)
    hashes = map(java_hash, _texts(entities))
    return np.fromiter((abs(h) % n for h in hashes), np.int32, len(entities))


def java_hash(text: str) -> int:
    """Return Java's ``String.hashCode``, a signed number of 32 bits.

    Examples
    --------
    >>> java_hash("hello")
    99162322
    """
    h = 0
    units = text.encode("utf-16-le")
    for low, high in zip(units[::2], units[1::2], strict=True):
        h = (31 * h + low + 256 * high) & 0xFFFFFFFF
    return h - (1 << 32) if h >= 1 << 31 else h


def _texts(entities: pa.Array) -> Iterator[str]:
    for first in range(0, len(entities), 100_000):
        yield from entities.slice(first, 100_000).cast(pa.large_string()).to_pylist()
