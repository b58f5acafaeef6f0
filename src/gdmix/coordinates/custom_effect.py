"""The custom effect: a fixed effect that an estimator of the user's own fits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gdmix.coordinates.base import FitReport, Scores
from gdmix.coordinates.estimators import Estimator, Labels
from gdmix.coordinates.fixed_effect import best_level
from gdmix.data.dataset import Dataset
from gdmix.data.feature_index import FeatureIndex
from gdmix.glm.status import FitStatus
from gdmix.model.custom import CustomModel
from gdmix.model.estimator_input import input_matrix, input_names
from gdmix.model.predictors import package_of

F64 = NDArray[np.float64]


class CustomEffectCoordinate:
    """A custom effect bound to its rows. Every fit starts anew.

    Parameters
    ----------
    estimator
        What to fit.
    train, validation
        The rows.
    indices
        The feature index of each bag.
    loss
        A loss of `gdmix.glm.losses`.
    threads
        Number of threads, where the estimator can be told.
    """

    def __init__(
        self,
        estimator: Estimator,
        train: Dataset,
        validation: Dataset | None,
        indices: Mapping[str, FeatureIndex],
        loss: int,
        threads: int,
    ) -> None:
        self._estimator, self._indices = estimator, indices
        self._train, self._validation = train, validation
        self._loss, self._threads = loss, threads

    def fit(self, offset: F64, warm_start: CustomModel | None) -> tuple[CustomModel, FitReport]:
        """Fit to the training rows."""
        spec, rows = self._estimator.spec, self._train
        categories = {column: rows.keys[column].values for column in spec.categorical}
        labels = Labels(
            rows.response,
            rows.weight,
            offset,
            self._level(offset),
            self._names() if self._estimator.library == "own" else [],
            len(categories),
        )
        X = input_matrix(rows, spec.features, categories, spec.dense)
        predictor, level, trees = self._estimator.fit(X, labels)
        model = CustomModel(
            spec.features,
            categories,
            spec.dense,
            spec.estimator,
            package_of(spec.estimator),
            level,
            predictor,
        )
        return model, FitReport(1, {FitStatus.CONVERGED: 1}, trees, float("nan"))

    def _names(self) -> list[str]:
        spec = self._estimator.spec
        return input_names(self._indices, spec.features, spec.categorical)

    def _level(self, offset: F64) -> float:
        """Return what the estimator begins with, 0 where it finds that by itself."""
        if not self._estimator.needs_level:
            return 0.0
        return best_level(self._train, offset, self._loss, self._threads)

    def start(self, model: CustomModel) -> tuple[CustomModel, CustomModel | None]:
        """Take an earlier model as it is."""
        return model, None

    def score(self, model: CustomModel) -> Scores:
        """Score training and validation rows."""
        train, validation = (
            None if rows is None else model.score(rows, self._threads)
            for rows in (self._train, self._validation)
        )
        assert train is not None
        return Scores(train, validation)

    def penalty(self, model: CustomModel) -> float:
        """Return 0: how an estimator penalises itself is its own affair."""
        return 0.0
