"""Search over regularisation weights.

`search` runs trials on rows that are prepared once, `proposals` chooses their weights, `space`
says which weights there are, and `study` keeps on disk what has been found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdmix import memory
from gdmix.config import RunConfig, TuneConfig
from gdmix.config.base import config_errors
from gdmix.data.join import open_data
from gdmix.data.read import Source
from gdmix.data.write import temporary_folder
from gdmix.estimator import MixedModel
from gdmix.runs import log_to
from gdmix.tuning.search import Search, Trial, Tuning, settled
from gdmix.tuning.space import with_values
from gdmix.tuning.study import LOG, Study, study_folder

__all__ = ["Trial", "TunedModel", "Tuning", "TuningStopped", "tune", "tune_run"]


@dataclass(frozen=True)
class TunedModel(Tuning):
    """The outcome of a search for a `MixedModel`.

    Attributes
    ----------
    model
        The model with the best weights, not fitted.
    """

    model: MixedModel


class TuningStopped(KeyboardInterrupt):
    """A search that was interrupted after at least one trial.

    Attributes
    ----------
    tuning
        What it has found.
    """

    def __init__(self, message: str, tuning: Tuning) -> None:
        super().__init__(message)
        self.tuning = tuning


def tune(
    model: MixedModel, X: Source, *, validation: Source | None = None, **settings: Any
) -> TunedModel:
    """Search for the weights with which a model is best.

    Parameters
    ----------
    model
        Fitted or not; it stays as it is.
    X, validation
        Rows, as in `MixedModel.fit`.
    settings
        ``trials``, ``method``, ``metric``, ``folds``, ``space``, ``seed``, ``timeout``, as under
        `tune` of a YAML file.

    Raises
    ------
    ConfigError
        If it can't be searched so.
    DataError
        One line per finding.

    Examples
    --------
    >>> import numpy as np
    >>> from gdmix import MixedModel, RandomEffect, tune
    >>> rows = {"user": ["a", "a", "b", "b"] * 25, "x": np.arange(100.0) % 7,
    ...         "response": [0, 1, 1, 1] * 25}
    >>> model = MixedModel([RandomEffect("per-user", entity="user", features="all")],
    ...                    features={"all": ["x"]})
    >>> result = tune(model, rows, folds=2, method="random", trials=3)
    >>> sorted(result.best.values)
    ['coordinates.per-user.intercept_l2', 'coordinates.per-user.l2']
    >>> result.model.fit(rows).predict(rows).shape
    (100,)
    """
    with config_errors("tune: "):
        chosen = TuneConfig(**settings)
    config = settled(model._config(), chosen)
    search = Search(config, chosen, X, validation)
    with temporary_folder(config.scratch) as folder, memory.limited(config.memory_limit, folder):
        found = search.run()
    specs = with_values(config, found.best.values).coordinates.values()
    best = MixedModel(**{**model.get_params(), "coordinates": list(specs)})
    return TunedModel(**vars(found), model=best)


def tune_run(
    config: RunConfig,
    *,
    folder: Path | None = None,
    overwrite: bool = False,
    on_start: Callable[[Tuning], None] | None = None,
    on_trial: Callable[[Tuning], None] | None = None,
) -> Tuning:
    """Search for the weights with which a run is best; a search that was stopped goes on.

    Parameters
    ----------
    config
        With `tune`, or with its defaults.
    folder
        To write (see `gdmix.tuning.study`); default: ``<output>.tune``.
    overwrite
        Forget an earlier search there.
    on_start, on_trial
        Called before the first trial, and after each one, with what there is.

    Raises
    ------
    GdmixError
        What a user can mend.
    TuningStopped
        A `KeyboardInterrupt`, after some trials.
    """
    settings = config.tune or TuneConfig()
    config = settled(config, settings).model_copy(update={"tune": settings})
    data, uid = config.data, config.columns.column("uid")
    validation = None if settings.folds else open_data(data, "validation", uid)
    search = Search(config, settings, open_data(data, "train", uid), validation)
    study = Study(folder or study_folder(config.output), config)
    found: list[Tuning] = []

    def after(tuning: Tuning) -> None:
        found[:] = [tuning]
        study.save(tuning)
        if on_trial is not None:
            on_trial(tuning)

    try:
        with study.opened(overwrite, search.space) as trials:
            earlier = search.outcome(trials)
            found[:] = [earlier] if trials else []
            if on_start is not None:
                on_start(earlier)
            with log_to(study.folder / LOG), memory.limited(config.memory_limit, study.scratch):
                return search.run(trials, after)
    except KeyboardInterrupt:
        for tuning in found:
            raise TuningStopped(
                f"{study.folder} keeps {len(tuning.trials)} of {tuning.planned} trials: "
                "the same command goes on",
                tuning,
            ) from None
        raise
