"""What every kind of trained coordinate is: it scores rows, says what it is, and can be saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gdmix.config import CoordinateSpec
from gdmix.data.dataset import Dataset
from gdmix.data.feature_index import FeatureIndex

F64 = NDArray[np.float64]


@runtime_checkable
class CoordinateModel(Protocol):
    """One additive part of a trained model, of whatever kind.

    To add a kind: a class of this shape, and how it is read back in `model.kinds`.
    """

    @property
    def type(self) -> str:
        """The coordinate's type, as in a configuration."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the feature bags that it needs of rows, in the order of its columns."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the key columns that it needs of rows: of entities, plain or derived."""

    def score(self, rows: Dataset, threads: int = 1) -> F64:
        """Return each row's score, (n,), without the row's offset."""

    def summary(self) -> dict[str, object]:
        """Return what it is and how large: the entries of `summary_of`, and others."""

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of it, in JSON's types: its ``type``, and all but arrays."""

    def write(self, folder: Path) -> None:
        """Write what `describe` leaves out into its folder, if there is anything.

        Raises
        ------
        OutputError
            If the system refuses to write there.
        """


# How a kind is read: its folder, what `describe` said, and the feature index of each bag.
Reader = Callable[[Path, Mapping[str, Any], Mapping[str, FeatureIndex]], CoordinateModel]


@runtime_checkable
class Startable(Protocol):
    """A model of another layer that training can start from."""

    def differences(self, spec: CoordinateSpec) -> Iterator[tuple[str, str, str]]:
        """Yield what a run's spec has otherwise: what it is, there and here."""

    def aligned(
        self, name: str, before: Mapping[str, FeatureIndex], after: Mapping[str, FeatureIndex]
    ) -> CoordinateModel:
        """Return the model of the coordinate `name` under another feature index."""


def optional_keys(model: CoordinateModel) -> frozenset[str]:
    """Return those of its keys that a row may lack, which is none for most kinds."""
    return frozenset(getattr(model, "optional_keys", ()))


def text_keys(model: CoordinateModel) -> frozenset[str]:
    """Return those of its keys that are nothing but texts, which is none for most kinds."""
    return frozenset(getattr(model, "text_keys", ()))


def summary_of(
    model: CoordinateModel, models: int, coefficients: int, entity: str | None = None
) -> dict[str, object]:
    """Return the entries that every summary has."""
    return {
        "type": model.type,
        "entity": entity,
        "features": list(model.features),
        "models": models,
        "coefficients": coefficients,
    }
