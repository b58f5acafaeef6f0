"""The model of a fixed or random effect: its coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.data.dataset import Dataset
from gdmix.model.base import CoordinateModel, summary_of
from gdmix.model.coefficient_files import write_coefficients
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients, entity_numbers

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class LinearModel:
    """One coordinate's coefficients and what they apply to.

    Attributes
    ----------
    features
        Names of its feature bags.
    intercept
        Whether it has an intercept.
    coefficients
        `FixedCoefficients`, or `RandomCoefficients` where `entity` is given.
    entity
        Entity of a random effect: a column, or a name among the model's `derived` ones.
    dispersion
        The residual variance of the linear task, by which variances were multiplied; else 1.
    """

    features: tuple[str, ...]
    intercept: bool
    coefficients: FixedCoefficients | RandomCoefficients
    entity: str | None = None
    dispersion: float = 1.0

    @property
    def type(self) -> str:
        """The coordinate's type, as in a configuration."""
        fixed = isinstance(self.coefficients, FixedCoefficients)
        return "fixed_effect" if fixed else "random_effect"

    @property
    def keys(self) -> tuple[str, ...]:
        """The entity of a random effect."""
        return () if self.entity is None else (self.entity,)

    def score(self, rows: Dataset, threads: int = 1) -> F64:
        """Return each row's score, (n,); 0 of an entity without a model."""
        design = rows.design(self.features)
        coefficients = self.coefficients
        if isinstance(coefficients, FixedCoefficients):
            return coefficients.score(design, threads)
        assert self.entity is not None
        numbers = entity_numbers(rows.keys[self.entity], coefficients.entities, self.entity)
        return coefficients.score(design, numbers, threads)

    def summary(self) -> dict[str, object]:
        """Return what it is and how large."""
        models = len(self.coefficients)
        placeholders = 0 if self.intercept else models  # of the intercept each would have
        size = self.coefficients.values.size - placeholders
        return summary_of(self, models, size, self.entity)

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {
            "type": self.type,
            "features": list(self.features),
            "intercept": self.intercept,
            "entity": self.entity,
            **({"dispersion": self.dispersion} if self.dispersion != 1.0 else {}),
        }

    def write(self, folder: Path) -> None:
        """Write its coefficients in Parquet.

        Raises
        ------
        OutputError
            If the system refuses to write there.
        """
        write_coefficients(self.coefficients, folder)


def linear_models(models: Mapping[str, CoordinateModel]) -> dict[str, LinearModel]:
    """Return those of the models that have coefficients."""
    return {name: m for name, m in models.items() if isinstance(m, LinearModel)}


def united(one: LinearModel, other: LinearModel) -> LinearModel:
    """Return the models of both, which are of other entities."""
    own, theirs = one.coefficients, other.coefficients
    assert isinstance(own, RandomCoefficients)
    assert isinstance(theirs, RandomCoefficients)
    if theirs.variances is not None:
        share = one.dispersion / other.dispersion
        theirs = replace(theirs, variances=theirs.variances * share)
    return replace(one, coefficients=own.united(theirs))
