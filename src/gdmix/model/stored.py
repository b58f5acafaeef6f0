"""A model that lies in a folder, and is read when it is needed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.data.dataset import Dataset
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.write import link_files
from gdmix.errors import OutputError
from gdmix.model.base import CoordinateModel, optional_keys, text_keys
from gdmix.model.coefficient_files import read_random
from gdmix.model.kinds import read_coordinate
from gdmix.model.linear import LinearModel

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class StoredModel:
    """One coordinate's model on disk, in the parts in which it was written.

    Attributes
    ----------
    folder
        What `CoordinateModel.write` of its kind leaves there.
    entry
        What `CoordinateModel.describe` says of it.
    indices
        The feature index of each bag.
    """

    folder: Path
    entry: Mapping[str, Any]
    indices: Mapping[str, FeatureIndex] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> Any:
        # Not what was loaded: who needs it can read it.
        return StoredModel, (self.folder, self.entry, self.indices)

    @cached_property
    def loaded(self) -> CoordinateModel:
        """The model, read into memory.

        Raises
        ------
        ModelError
            If a file is missing or damaged.
        """
        return read_coordinate(self.folder, self.entry, self.indices)

    def for_rows(self, rows: Dataset) -> CoordinateModel:
        """Return the model as far as it scores these rows: their entities alone are read.

        Raises
        ------
        ModelError
            If a file is missing or damaged.
        """
        if self.type != "random_effect" or self.is_avro:
            return self.loaded
        entity = str(self.entry["entity"])
        coefficients = read_random(self.folder, only=rows.keys[entity].values)
        features, intercept = tuple(self.entry["features"]), bool(self.entry["intercept"])
        dispersion = float(self.entry.get("dispersion", 1.0))
        return LinearModel(features, intercept, coefficients, entity, dispersion)

    @property
    def type(self) -> str:
        """The coordinate's type, as in a configuration."""
        return str(self.entry["type"])

    @property
    def features(self) -> tuple[str, ...]:
        """Names of its feature bags."""
        return tuple(self.entry["features"]) if self.is_linear else self.loaded.features

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the key columns that it needs of rows."""
        if not self.is_linear:
            return self.loaded.keys
        entity = self.entry["entity"]
        return () if entity is None else (entity,)

    @property
    def is_linear(self) -> bool:
        """Whether it has coefficients."""
        return self.type in ("fixed_effect", "random_effect")

    @property
    def is_avro(self) -> bool:
        """Whether these are in the files of Photon ML and GDMix."""
        return self.entry.get("format") == "avro"

    @property
    def optional_keys(self) -> frozenset[str]:
        """Those of them that a row may lack."""
        return optional_keys(self.loaded)

    @property
    def text_keys(self) -> frozenset[str]:
        """Those of them that are nothing but texts."""
        return text_keys(self.loaded)

    def score(self, rows: Dataset, threads: int = 1) -> F64:
        """Return each row's score, (n,)."""
        return self.loaded.score(rows, threads)

    def summary(self) -> dict[str, object]:
        """Return what it is and how large."""
        return self.loaded.summary()

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return dict(self.entry)

    def write(self, folder: Path) -> None:
        """Give its files second names in a folder, unless they are there; copy them if need be.

        Raises
        ------
        OutputError
            If the system refuses to write there.
        """
        if self.folder.absolute() == folder.absolute() or link_files(self.folder, folder):
            return
        try:
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: can't be written: {error}") from None


def in_memory(model: CoordinateModel) -> CoordinateModel:
    """Return a model whose attributes can be looked at."""
    return model.loaded if isinstance(model, StoredModel) else model
