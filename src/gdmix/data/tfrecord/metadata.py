"""The small files beside GDMix's TFRecords: ``tensor_metadata.json`` and feature lists."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gdmix.data.write import atomic_file, write_json
from gdmix.errors import DataError

_TYPES = {
    "int": pa.int64(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float32(),  # a TFRecord holds no others
    "string": pa.string(),
    "bytes": pa.binary(),
}


@dataclass(frozen=True)
class TensorSpec:
    """One feature or label.

    Attributes
    ----------
    dtype
        ``int``, ``long``, ``float``, ``double``, ``string`` or ``bytes``.
    shape
        Empty for a scalar.
    is_sparse
        Whether it stands as ``<name>_indices`` and ``<name>_values``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    is_sparse: bool = False

    def fields(self) -> list[pa.Field]:
        """Return the columns it is read as."""
        kind = _TYPES[self.dtype]
        if self.is_sparse:
            return [
                pa.field(f"{self.name}_indices", pa.list_(pa.int64())),
                pa.field(f"{self.name}_values", pa.list_(kind)),
            ]
        return [pa.field(self.name, pa.list_(kind) if self.shape else kind)]


@dataclass(frozen=True)
class TensorMetadata:
    """What ``tensor_metadata.json`` says of the TFRecords beside it."""

    features: tuple[TensorSpec, ...]
    labels: tuple[TensorSpec, ...] = ()
    training_samples: int | None = None

    def fields(self) -> list[pa.Field]:
        """Return the columns of all features and labels."""
        return [f for spec in (*self.features, *self.labels) for f in spec.fields()]

    @staticmethod
    def read(path: Path) -> TensorMetadata:
        """Read a file.

        Raises
        ------
        DataError
            Naming what is missing or wrong.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            what = (getattr(error, "strerror", None) or str(error)).rstrip(".")
            raise DataError(f"{path}: can't be read as tensor metadata: {what}") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}: expected an object with 'features' and 'labels'")
        samples = value.get("numberOfTrainingSamples")
        if samples is not None and (type(samples) is not int or samples < 0):
            raise DataError(f"{path}: numberOfTrainingSamples: expected a number of rows")
        return TensorMetadata(
            _specs(path, value, "features"), _specs(path, value, "labels"), samples
        )

    def write(self, path: Path) -> None:
        """Write a file."""
        value: dict[str, Any] = (
            {}
            if self.training_samples is None
            else {"numberOfTrainingSamples": self.training_samples}
        )
        for key, specs in (("features", self.features), ("labels", self.labels)):
            value[key] = [
                {"name": s.name, "dtype": s.dtype, "shape": list(s.shape), "isSparse": s.is_sparse}
                for s in specs
            ]
        write_json(value, path)


def _specs(path: Path, value: dict[str, Any], key: str) -> tuple[TensorSpec, ...]:
    entries = value.get(key, [])
    if not isinstance(entries, list):
        raise DataError(f"{path}: {key}: expected a list")
    return tuple(_spec(f"{path}: {key}[{i}]", entry) for i, entry in enumerate(entries))


def _spec(where: str, entry: Any) -> TensorSpec:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: expected an object with a 'name'")
    where = f"{where} '{name}'"
    dtype, shape = entry.get("dtype"), entry.get("shape", [])
    sparse = entry.get("isSparse", False)
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise DataError(f"{where}: dtype {dtype!r} is none of {', '.join(_TYPES)}")
    if not isinstance(shape, list) or any(type(size) is not int for size in shape):
        raise DataError(f"{where}: shape {shape!r} is no list of integers")
    if type(sparse) is not bool:
        raise DataError(f"{where}: isSparse {sparse!r} is neither true nor false")
    return TensorSpec(name, dtype, tuple(shape), sparse)


def write_feature_list(path: Path, features: Iterable[tuple[str, str]]) -> None:
    """Write CSV lines ``name,term``, the first of which is index 0.

    `FeatureIndex.from_feature_list` reads them.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        plain = csv.writer(file, lineterminator="\n")
        quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for feature in features:
            # Of itself, csv takes a carriage return for no reason to quote.
            (quoted if "\r" in "".join(feature) else plain).writerow(feature)
