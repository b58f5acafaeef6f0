"""What an estimator has learned, as bytes that can be saved, and how it scores a matrix.

LightGBM's and XGBoost's trees are kept in their own formats, which hold no code. Any other
estimator is a pickle, and to read a pickle is to run what is in it: it stays closed until someone
says that it may be trusted.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix.errors import ModelError

F64 = NDArray[np.float64]

# Where an estimator's score comes from: its own; log-odds of its probabilities; its decision
# function; its prediction, or the logarithm of that.
Output = Literal["score", "log_odds", "decision", "mean", "log_mean"]


class Predictor(Protocol):
    """A fitted estimator.

    Attributes
    ----------
    file
        Name of the file that `content` goes to.
    content
        All that it is.
    """

    file: ClassVar[str]
    content: bytes

    def raw(self, X: Any, threads: int) -> Any:
        """Return its linear predictor of each row, (n,), without any offset."""


class LightGBMTrees:
    """A LightGBM booster, as text."""

    file: ClassVar[str] = "lightgbm.txt"

    def __init__(self, content: bytes) -> None:
        self.content = content

    @cached_property
    def _booster(self) -> Any:
        with _reading(self.file, "lightgbm"):
            import lightgbm

            return lightgbm.Booster(model_str=self.content.decode())

    def raw(self, X: Any, threads: int) -> Any:
        """Return the sum of its trees, which leaves the offset (`init_score`) out."""
        return self._booster.predict(X, raw_score=True, num_threads=threads)


class XGBoostTrees:
    """An XGBoost booster, as binary JSON."""

    file: ClassVar[str] = "xgboost.ubj"

    def __init__(self, content: bytes) -> None:
        self.content = content

    @cached_property
    def _booster(self) -> Any:
        with _reading(self.file, "xgboost"):
            import xgboost

            return xgboost.Booster(model_file=bytearray(self.content))

    def raw(self, X: Any, threads: int) -> Any:
        """Return the sum of its trees: its margin over an offset of zero."""
        booster = self._booster
        import xgboost

        rows = xgboost.DMatrix(
            X,
            base_margin=np.zeros(X.shape[0]),  # else it adds a base score of its own
            feature_types=booster.feature_types,
            enable_categorical=True,
            nthread=threads,
        )
        return booster.predict(rows, output_margin=True)


class Pickled:
    """Any other estimator, as a pickle.

    Parameters
    ----------
    content
        The pickle.
    output
        Where its score comes from.
    is_trusted
        Whether it may be opened.
    """

    file: ClassVar[str] = "estimator.pickle"

    def __init__(self, content: bytes, output: Output, is_trusted: bool = False) -> None:
        self.content, self.output, self.is_trusted = content, output, is_trusted

    @cached_property
    def _estimator(self) -> Any:
        if not self.is_trusted:
            raise ModelError(
                f"{self.file}: a pickle runs code of whoever wrote it when it is opened; if you "
                "trust this model: `gdmix score --allow-pickle`, "
                "`MixedModel.load(path, allow_pickle=True)`"
            )
        with _reading(self.file, "sklearn"):
            return pickle.loads(self.content)

    def raw(self, X: Any, threads: int) -> Any:
        """Return its linear predictor."""
        estimator = self._estimator
        if self.output == "score":
            return estimator.score(X)
        if self.output == "decision":
            return estimator.decision_function(X)
        with np.errstate(divide="ignore", invalid="ignore"):  # whoever calls looks for infinities
            if self.output == "log_odds":
                logs = np.log(np.asarray(estimator.predict_proba(X), np.float64))
                return logs[:, 1] - logs[:, 0]
            mean = np.asarray(estimator.predict(X), np.float64)
            return np.log(mean) if self.output == "log_mean" else mean


@contextmanager
def _reading(file: str, package: str) -> Iterator[None]:
    """Say in one line why an estimator can't be read back."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name == package:
            raise ModelError(f"{file}: {missing(package)}") from None
        raise ModelError(f"{file}: can't be read here: {error}") from None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"{file}: can't be read here: {reason}") from None


def missing(package: str) -> str:
    """Return which extra brings a package that is not installed."""
    extra = {"sklearn": "scikit-learn"}.get(package, package)
    return f"needs {extra}, which is not installed: pip install 'gdmix[{extra}]'"


def package_of(place: str) -> str:
    """Return name and version of the package that a class comes from, as far as they are known."""
    name = place.partition(".")[0]
    version = getattr(importlib.import_module(name), "__version__", "")
    return f"{name} {version}".rstrip()


def predictor_of(entry: Mapping[str, Any], content: bytes) -> Predictor:
    """Return what a file holds, given its entry in the manifest."""
    file = entry["saved_as"]
    if file == Pickled.file:
        return Pickled(content, entry["output"])
    kinds = {kind.file: kind for kind in (LightGBMTrees, XGBoostTrees)}
    return kinds[file](content)
