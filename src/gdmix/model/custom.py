"""The model of a coordinate that an estimator of the user's own has fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.data.dataset import Dataset
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.write import atomic_file, write_table
from gdmix.errors import ModelError
from gdmix.model.base import CoordinateModel, summary_of
from gdmix.model.coefficient_files import read_entities
from gdmix.model.estimator_input import input_matrix
from gdmix.model.predictors import Pickled, Predictor, predictor_of

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class CustomModel:
    """A fitted estimator and what it applies to.

    Attributes
    ----------
    features
        Names of its feature bags.
    categories
        Of each id column the values of the training rows, in the order of their numbers.
    dense
        Whether it is given arrays rather than sparse matrices.
    estimator
        Where its class is imported from.
    package
        The package of that and its version.
    level
        What is added to the estimator's own score.
    predictor
        What it has learned.
    """

    features: tuple[str, ...]
    categories: Mapping[str, pa.Array]
    dense: bool
    estimator: str
    package: str
    level: float
    predictor: Predictor
    type: ClassVar[str] = "custom"

    @property
    def keys(self) -> tuple[str, ...]:
        """The id columns."""
        return tuple(self.categories)

    def score(self, rows: Dataset, threads: int = 1) -> F64:
        """Return each row's score, (n,).

        Raises
        ------
        ModelError
            If the estimator can't be used here, or its scores are no finite number per row.
        """
        X = input_matrix(rows, self.features, self.categories, self.dense)
        scores = np.asarray(self.predictor.raw(X, threads))
        if scores.shape != (rows.n_rows,):
            shape = f"{rows.n_rows:,} rows gave an array of shape {scores.shape}"
            raise ModelError(f"{self.estimator}: should score each row with one number; {shape}")
        scores = scores.astype(np.float64) + self.level
        odd = int(np.count_nonzero(~np.isfinite(scores)))
        if odd:
            of = f"{odd:,} of the scores of {rows.n_rows:,} rows are infinite or NaN"
            cause = "; is it sure of some rows, with a probability or a mean of 0?"
            guess = getattr(self.predictor, "output", "") in ("log_odds", "log_mean")
            raise ModelError(f"{self.estimator}: {of}{cause if guess else ''}")
        return scores

    def summary(self) -> dict[str, object]:
        """Return what it is."""
        return {
            **summary_of(self, models=1, coefficients=0),
            "categorical": list(self.categories),
            "estimator": self.estimator,
            "package": self.package,
        }

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {
            "type": self.type,
            "features": list(self.features),
            "categorical": list(self.categories),
            "dense": self.dense,
            "estimator": self.estimator,
            "package": self.package,
            "level": self.level,
            "saved_as": self.predictor.file,
            "output": getattr(self.predictor, "output", None),
        }

    def write(self, folder: Path) -> None:
        """Write the estimator, in its own format, and the values of its id columns.

        Raises
        ------
        OutputError
            If the system refuses to write there.
        """
        for number, values in enumerate(self.categories.values()):
            write_table(pa.table({"value": values}), folder / _categories(number))
        with atomic_file(folder / self.predictor.file) as temporary:
            temporary.write_bytes(self.predictor.content)


def read_custom(
    folder: Path, entry: Mapping[str, Any], indices: Mapping[str, FeatureIndex]
) -> CustomModel:
    """Read what `CustomModel.write` wrote. A pickle stays closed: see `with_pickles_trusted`.

    Raises
    ------
    ModelError
        If a file is missing or damaged.
    """
    path = folder / entry["saved_as"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: damaged or missing: {error.strerror}") from None
    return CustomModel(
        tuple(entry["features"]),
        {
            column: read_entities(folder / _categories(number), "value")
            for number, column in enumerate(entry["categorical"])
        },
        bool(entry["dense"]),
        entry["estimator"],
        entry["package"],
        float(entry["level"]),
        predictor_of(entry, content),
    )


def with_pickles_trusted(model: CoordinateModel) -> CoordinateModel:
    """Return the model; if it is a pickle, as one that may be opened."""
    if not isinstance(model, CustomModel) or not isinstance(model.predictor, Pickled):
        return model
    closed = model.predictor
    return replace(model, predictor=Pickled(closed.content, closed.output, is_trusted=True))


def _categories(number: int) -> str:
    return f"categories-{number}.parquet"
