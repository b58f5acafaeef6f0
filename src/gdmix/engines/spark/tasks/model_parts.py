"""Models in parts, as partitions write and read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.engines.spark.exchange import (
    Addressed,
    addressed,
)
from gdmix.engines.spark.tasks.kinds import FACTS
from gdmix.glm.columns import column_totals, shift_columns
from gdmix.model.base import CoordinateModel
from gdmix.model.coefficient_files import (
    part_file,
    read_random,
    write_coefficients,
    write_passing,
)
from gdmix.model.coefficients import RandomCoefficients
from gdmix.model.linear import LinearModel, united
from gdmix.model.stored import StoredModel

F64 = NDArray[np.float64]


def write_part(model: CoordinateModel, folder: Path, partition: int) -> None:
    """Write what a partition has of a model."""
    if isinstance(model, LinearModel) and isinstance(model.coefficients, RandomCoefficients):
        write_passing(model.coefficients, folder, partition)
    else:
        model.write(folder)


def read_part(stored: StoredModel, layout: str, partition: int, coordinate: Any) -> Any:
    """Read what a partition needs of a model, as its coordinate numbers coefficients."""
    entry = stored.entry
    if entry["type"] != "random_effect":
        return stored.loaded
    if entry.get("layout") == layout:
        return of_part(stored, partition)
    return coordinate.start(stored.loaded)[0]


def of_part(stored: StoredModel, partition: int) -> LinearModel:
    """Return what one of its parts has of the model of a random effect."""
    entry = stored.entry
    return LinearModel(
        tuple(entry["features"]),
        bool(entry["intercept"]),
        read_random(stored.folder, partition),
        entry["entity"],
        float(entry.get("dispersion", 1.0)),
    )


def finish(
    fitted: StoredModel, held: StoredModel | None, folder: Path, partition: int
) -> Iterator[Addressed]:
    """Write a part of a model to stay, with the earlier models of entities that have no rows."""
    model = of_part(fitted, partition)
    if held is not None and part_file(held.folder, partition) is not None:
        model = united(model, of_part(held, partition))
    write_coefficients(model.coefficients, folder, partition)
    yield from addressed(partition, FACTS, partition, None)


def rescale_variances(
    source: StoredModel, folder: Path, factor: float, partition: int
) -> Iterator[Addressed]:
    """Write a part of a model with its variances times a factor."""
    coefficients = read_random(source.folder, partition)
    assert coefficients.variances is not None
    scaled = replace(coefficients, variances=coefficients.variances * factor)
    write_passing(scaled, folder, partition)
    yield from addressed(partition, FACTS, partition, None)


def total_columns(source: StoredModel, width: int, partition: int) -> Iterator[Addressed]:
    """Yield each column's sum and number of coefficients, of a part of a model."""
    coefficients = read_random(source.folder, partition)
    totals, counts = np.zeros(width), np.zeros(width, np.int64)
    column_totals(coefficients.columns, coefficients.values, totals, counts)
    yield from addressed(partition, FACTS, partition, (totals, counts))


def shift(source: StoredModel, folder: Path, by_column: F64, partition: int) -> Iterator[Addressed]:
    """Write a part of a model less a shift of each column."""
    coefficients = read_random(source.folder, partition)
    shift_columns(coefficients.columns, by_column, coefficients.values)
    write_passing(coefficients, folder, partition)
    yield from addressed(partition, FACTS, partition, None)
