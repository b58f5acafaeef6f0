"""Estimators of other libraries, and classes of the user's own: which they are, how each is fitted.

A coordinate is fitted given an offset: the score that all else adds to a row. LightGBM takes it as
``init_score``, XGBoost as ``base_margin``, a class of the user's own as ``offset``. scikit-learn's
estimators take none: for the squared loss they are fitted to response - offset, which is the same;
for others the offset must be one number for all rows.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gdmix.config import CustomEffect, ModelConfig, Task
from gdmix.errors import ConfigError, did_you_mean
from gdmix.model.predictors import (
    LightGBMTrees,
    Output,
    Pickled,
    Predictor,
    XGBoostTrees,
    missing,
)

F64 = NDArray[np.float64]
Library = Literal["lightgbm", "xgboost", "scikit-learn", "own"]

log = logging.getLogger("gdmix")

_CONTRACT = "fit(X, y, *, offset, weight, names) and score(X)"
_EXTRAS = ("lightgbm", "xgboost", "sklearn")
_DEFAULT_OBJECTIVES: Mapping[str, Mapping[Task, str]] = {
    "lightgbm": {
        "logistic_regression": "binary",
        "linear_regression": "regression",
        "poisson_regression": "poisson",
    },
    "xgboost": {
        "logistic_regression": "binary:logistic",
        "linear_regression": "reg:squarederror",
        "poisson_regression": "count:poisson",
    },
}
# Objectives whose raw score is a logit, or the logarithm of a mean; that of others is a mean.
_LOGIT = {
    "binary",
    "cross_entropy",
    "xentropy",
    "binary:logistic",
    "binary:logitraw",
    "reg:logistic",
}
_LOGARITHM = {"poisson", "tweedie", "gamma", "count:poisson", "reg:tweedie", "reg:gamma"}


@dataclass(frozen=True)
class Labels:
    """What an estimator is fitted to, and given.

    Attributes
    ----------
    response, weight, offset
        (n,) each.
    level
        The number that, added to the offset, fits the responses best.
    names
        Of the columns of X; for a class of the user's own only.
    categorical
        How many of these, the last ones, hold numbers of categories.
    """

    response: F64
    weight: F64
    offset: F64
    level: float
    names: list[str]
    categorical: int


@dataclass(frozen=True)
class Estimator:
    """An estimator that can be fitted as a coordinate.

    Attributes
    ----------
    spec
        What the user asked for.
    task
        What its score must be.
    library
        Decides how it takes an offset.
    parameters
        Arguments of its constructor.
    """

    spec: CustomEffect
    task: Task
    library: Library
    parameters: Mapping[str, Any]

    @property
    def needs_level(self) -> bool:
        """Whether it is given an offset to which the level is added.

        Boosted trees begin with the mean where there is no offset; where there is one, they would
        spend trees on finding it.
        """
        return self.library in ("lightgbm", "xgboost")

    def fit(self, X: Any, labels: Labels) -> tuple[Predictor, float, int]:
        """Fit.

        Returns
        -------
        tuple
            What it learned; what is to be added to its score; its number of trees, or 0.

        Raises
        ------
        ConfigError
            With the library's own message, if that refuses; if the offset varies and the
            estimator takes none.
        """
        new = self.build()
        if self.library == "own":
            # What goes wrong in there is for the user's eyes, with its traceback.
            new.fit(
                X,
                labels.response,
                offset=labels.offset,
                weight=labels.weight,
                names=labels.names,
            )
            return Pickled(self._pickle(new), "score", is_trusted=True), 0.0, 0
        try:
            if self.library == "lightgbm":
                return _fit_lightgbm(new, X, labels)
            if self.library == "xgboost":
                return _fit_xgboost(new, X, labels)
            return self._fit_plain(new, X, labels)
        except ConfigError:
            raise
        except Exception as error:
            log.debug("%s.fit", self.spec.estimator, exc_info=True)
            raise self._refusal(f"fit: {type(error).__name__}: {error}") from error

    def build(self) -> Any:
        """Return a new estimator.

        Raises
        ------
        ConfigError
            If its constructor refuses the parameters.
        """
        try:
            return estimator_class(self.spec)(**self.parameters)
        except ConfigError:
            raise
        except Exception as error:
            raise self._refusal(f"params: {type(error).__name__}: {error}") from error

    def _refusal(self, what: str) -> ConfigError:
        where = f"coordinates.{self.spec.name}: {self.spec.estimator}"
        return ConfigError(" ".join(f"{where}: {what}".split()))

    def _pickle(self, fitted: Any) -> bytes:
        try:
            return pickle.dumps(fitted)
        except Exception as error:
            raise self._refusal(f"can't be saved, as it can't be pickled: {error}") from error

    def _fit_plain(self, new: Any, X: Any, labels: Labels) -> tuple[Predictor, float, int]:
        """Fit an estimator that knows no offset."""
        arguments = {}
        if (labels.weight != 1.0).any():
            if "sample_weight" not in inspect.signature(new.fit).parameters:
                raise self._refusal("takes no weights (`sample_weight`), and the rows have some")
            arguments["sample_weight"] = labels.weight
        if self.task == "linear_regression":
            new.fit(X, labels.response - labels.offset, **arguments)
            return Pickled(self._pickle(new), "mean", is_trusted=True), 0.0, 0
        level = float(labels.offset[0])
        if (labels.offset != level).any():
            raise self._refusal(f"{_NO_OFFSET}, and the offset of these rows varies")
        new.fit(X, labels.response, **arguments)
        return Pickled(self._pickle(new), self._output(new), is_trusted=True), -level, 0

    def _output(self, fitted: Any) -> Output:
        if self.task == "poisson_regression":
            return "log_mean"
        return "log_odds" if hasattr(fitted, "predict_proba") else "decision"


_NO_OFFSET = "takes no offset, the score that other coordinates and the rows add"


def _fit_lightgbm(new: Any, X: Any, labels: Labels) -> tuple[Predictor, float, int]:
    first = X.shape[1] - labels.categorical
    new.fit(
        X,
        labels.response,
        sample_weight=labels.weight,
        init_score=labels.offset + labels.level,
        categorical_feature=list(range(first, X.shape[1])),
    )
    trees = LightGBMTrees(new.booster_.model_to_string().encode())
    return trees, labels.level, new.booster_.num_trees()


def _fit_xgboost(new: Any, X: Any, labels: Labels) -> tuple[Predictor, float, int]:
    kinds = ["q"] * (X.shape[1] - labels.categorical) + ["c"] * labels.categorical
    new.set_params(feature_types=kinds, enable_categorical=True)
    base = labels.offset + labels.level
    new.fit(X, labels.response, sample_weight=labels.weight, base_margin=base)
    booster = new.get_booster()
    trees = XGBoostTrees(bytes(booster.save_raw("ubj")))
    return trees, labels.level, booster.num_boosted_rounds()


def estimators(config: ModelConfig, threads: int) -> dict[str, Estimator]:
    """Return the estimators of the custom coordinates.

    Raises
    ------
    ConfigError
        One line per estimator that can't be imported or built, or doesn't suit the task or the
        place of its coordinate.
    """
    result, findings = {}, []
    for name, spec in config.coordinates.items():
        if isinstance(spec, CustomEffect):
            try:
                result[name] = _checked(spec, config, threads)
            except ConfigError as error:
                findings.append(str(error))
    if findings:
        raise ConfigError("\n".join(findings))
    return result


def _checked(spec: CustomEffect, config: ModelConfig, threads: int) -> Estimator:
    own = estimator_class(spec)
    library = _library(own)
    if library is None:
        raise ConfigError(
            f"coordinates.{spec.name}.estimator: {spec.estimator} has neither {_CONTRACT}, nor "
            "fit and predict as scikit-learn's have"
        )
    defaults: dict[str, Any] = {}
    if library in ("lightgbm", "xgboost"):
        objective = _DEFAULT_OBJECTIVES[library][config.task]
        defaults = {"objective": objective, "n_jobs": threads, "random_state": config.seed}
        if library == "lightgbm":
            defaults["verbosity"] = -1
    given = {name: value for name, value in spec.params.items() if value is not None}
    result = Estimator(spec, config.task, library, {**spec.params, **defaults, **given})
    new = result.build()
    if library != "own":
        _check_task(result, new)
    if library == "scikit-learn":
        _check_place(spec, config)
    return result


def estimator_class(spec: CustomEffect) -> Any:
    """Import an estimator's class.

    Raises
    ------
    ConfigError
        If there is none.
    """
    where = f"coordinates.{spec.name}.estimator"
    place, _, name = spec.estimator.rpartition(".")
    if not place:
        raise ConfigError(f"{where}: '{spec.estimator}' should be module.Class")
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        lacking = str(error.name)
        if lacking in _EXTRAS:
            raise ConfigError(f"{where}: {spec.estimator} {missing(lacking)}") from None
        mend = "is it installed, or its folder in PYTHONPATH?"
        raise ConfigError(f"{where}: {spec.estimator}: no module '{lacking}'; {mend}") from None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{where}: {place} can't be imported: {reason}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        hint = did_you_mean(name, dir(module))
        raise ConfigError(f"{where}: module '{place}' has no class '{name}'{hint}")
    return found


def _library(own: type) -> Library | None:
    """Return how a class is fitted; None if it can't be."""
    fit = getattr(own, "fit", None)
    if not callable(fit):
        return None
    packages = [base.__module__.partition(".")[0] for base in own.__mro__]
    if "offset" in inspect.signature(fit).parameters:
        return "own" if callable(getattr(own, "score", None)) else None
    if "lightgbm" in packages:
        return "lightgbm"
    if "xgboost" in packages:
        return "xgboost"
    predicts = any(callable(getattr(own, m, None)) for m in ("predict", "decision_function"))
    return "scikit-learn" if predicts else None


def _check_task(estimator: Estimator, new: Any) -> None:
    """Refuse an estimator whose score is of another kind than the task's."""
    spec, task = estimator.spec, estimator.task
    where = f"coordinates.{spec.name}: {spec.estimator}"
    from sklearn.base import is_classifier, is_regressor

    if task == "logistic_regression" and not is_classifier(new):
        raise ConfigError(f"{where} is no classifier, as task {task} needs")
    if task != "logistic_regression" and not is_regressor(new):
        raise ConfigError(f"{where} is no regressor, as task {task} needs")
    if estimator.library == "scikit-learn":
        return
    objective = estimator.parameters["objective"]
    kind = "mean"
    if objective in _LOGIT:
        kind = "logit"
    elif objective in _LOGARITHM:
        kind = "logarithm"
    needed = {"logistic_regression": "logit", "poisson_regression": "logarithm"}.get(task, "mean")
    if isinstance(objective, str) and kind != needed:
        fitting = _DEFAULT_OBJECTIVES[estimator.library][task]
        raise ConfigError(
            f"{where}: objective '{objective}' doesn't suit task {task}; such as '{fitting}' does"
        )


def _check_place(spec: CustomEffect, config: ModelConfig) -> None:
    """Refuse what a scikit-learn estimator can't do, before any row is read."""
    where = f"coordinates.{spec.name}: {spec.estimator}"
    if spec.categorical:
        raise ConfigError(
            f"{where} takes the numbers of categories for quantities; "
            "put these columns into a feature bag, which makes them one-hot"
        )
    alone = (
        next(iter(config.coordinates)) == spec.name
        and config.passes == 1
        and len(config.fitted) == len(config.coordinates)
        and config.earlier_model is None
    )
    if config.task != "linear_regression" and not alone:
        raise ConfigError(
            f"{where} {_NO_OFFSET}: it must be the first coordinate, with `passes: 1`, no initial "
            "model and no scores from files; LightGBM's and XGBoost's take one"
        )
