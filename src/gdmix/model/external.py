"""The model of a coordinate whose scores come from files: no more than where to look in these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gdmix.data.dataset import Dataset
from gdmix.data.external_scores import read_external_scores
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.read import Source
from gdmix.errors import ModelError
from gdmix.model.base import CoordinateModel, summary_of

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class ExternalModel:
    """A coordinate whose scores come from files.

    Attributes
    ----------
    uid, score_column, missing
        As `uid`, `score` and `missing` of `config.ExternalScores`.
    source
        Scores of the rows at hand; not part of the model.
    """

    uid: str
    score_column: str | None
    missing: Literal["error", "zero"]
    source: Source | None = None
    type: ClassVar[str] = "external_scores"
    features: ClassVar[tuple[str, ...]] = ()
    keys: ClassVar[tuple[str, ...]] = ()

    def score(self, rows: Dataset, threads: int = 1) -> F64:
        """Return each row's score, (n,), from its source.

        Raises
        ------
        DataError
            Where scores are missing or stand twice.
        """
        assert self.source is not None
        return read_external_scores(self.source, rows, self.uid, self.score_column, self.missing)

    def summary(self) -> dict[str, object]:
        """Return what it is."""
        return summary_of(self, models=0, coefficients=0)

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {
            "type": self.type,
            "uid": self.uid,
            "score": self.score_column,
            "missing": self.missing,
        }

    def write(self, folder: Path) -> None:
        """Write nothing: the manifest says all."""


def read_external(
    folder: Path, entry: Mapping[str, Any], indices: Mapping[str, FeatureIndex]
) -> ExternalModel:
    """Return what `ExternalModel.describe` said."""
    return ExternalModel(entry["uid"], entry["score"], entry["missing"])


def with_sources(
    models: Mapping[str, CoordinateModel], sources: Mapping[str, Source]
) -> dict[str, CoordinateModel]:
    """Return the models, those that have scores from files with the files of the rows at hand.

    Raises
    ------
    ModelError
        If those of a coordinate are not given, or are given to another.
    """
    result = dict(models)
    external = {n: m for n, m in models.items() if isinstance(m, ExternalModel)}
    for name, model in external.items():
        if name not in sources:
            raise ModelError(
                f"coordinate '{name}' has scores from files: give those of these rows "
                f"(`gdmix score --external {name}=PATH`, `predict(external={{'{name}': ...}})`)"
            )
        result[name] = replace(model, source=sources[name])
    for name in sources:
        if name not in external:
            raise ModelError(f"no coordinate '{name}' has scores from files")
    return result
