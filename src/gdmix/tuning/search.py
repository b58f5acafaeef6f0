"""Trials: a model for each choice of weights, on rows that are read and prepared once."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from gdmix.config import JOINT, ModelConfig, TuneConfig, parse_metric
from gdmix.data.read import Source
from gdmix.descent import Descent
from gdmix.engines.local import LocalEngine, LocalWorkspace
from gdmix.errors import ConfigError
from gdmix.estimator import descend_in
from gdmix.model.base import CoordinateModel
from gdmix.tuning.proposals import Outcome, Proposals
from gdmix.tuning.space import (
    Space,
    Values,
    distance,
    estimated_values,
    estimating,
    own_values,
    search_space,
    with_values,
)

log = logging.getLogger("gdmix")

_MODELS_KEPT = 8  # of the best trials, for others to start from
_Config = TypeVar("_Config", bound=ModelConfig)
_Models = Mapping[str, CoordinateModel]


@dataclass(frozen=True)
class Trial:
    """What came of one choice of weights.

    Attributes
    ----------
    number
        From 1.
    values
        Setting to weight.
    metrics
        Of the validation rows; with folds, the mean over the folds.
    passes
        Of descent; with folds, the most.
    converged
        Whether descent met the tolerance; None without one.
    seconds
        Wall time.
    """

    number: int
    values: Values
    metrics: Mapping[str, float]
    passes: int
    converged: bool | None
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """The outcome of a search.

    Attributes
    ----------
    trials
        In the order in which they ran.
    space
        The settings that were searched.
    metric
        What trials are judged by.
    folds
        How many folds of the training rows it is the mean over; None: it is of validation rows.
    planned
        How many trials there were to be.
    own
        The weights that the configuration has, None where it is not among what was searched.
    """

    trials: tuple[Trial, ...]
    space: tuple[str, ...]
    metric: str
    folds: int | None
    planned: int
    own: Values | None

    @property
    def summary(self) -> str:
        """What a person wants to see meanwhile."""
        n = min(len(self.trials) + 1, self.planned)
        best = f", best {self.metric} {self.best.metrics[self.metric]:.4f}" if self.trials else ""
        return f"trial {n}/{self.planned}{best}"

    def to_dict(self) -> dict[str, Any]:
        """Return what `gdmix tune --json` says."""
        return {
            "metric": self.metric,
            "folds": self.folds,
            "planned": self.planned,
            "best": dict(self.best.values),
            "trials": [
                {
                    "trial": t.number,
                    "values": dict(t.values),
                    "metrics": dict(t.metrics),
                    "passes": t.passes,
                    "converged": t.converged,
                    "seconds": t.seconds,
                }
                for t in self.trials
            ],
        }

    @property
    def first(self) -> Trial | None:
        """The trial with the configuration's own weights, if there was one."""
        return next((trial for trial in self.trials if trial.values == self.own), None)

    @property
    def ranked(self) -> list[Trial]:
        """Trials, the best first; those whose metric is undefined last."""
        return sorted(self.trials, key=lambda t: -merit(t.metrics[self.metric], self.metric))

    @property
    def best(self) -> Trial:
        """The best trial: of equal ones the first."""
        return self.ranked[0]


def settled(config: _Config, settings: TuneConfig) -> _Config:
    """Return the configuration with the metric of the search in the first place."""
    metric = settings.metric or config.metrics[0]
    metrics = (metric, *(name for name in config.metrics if name != metric))
    return config.model_copy(update={"metrics": metrics})


class Search:
    """A search over the weights of one configuration.

    Parameters
    ----------
    config
        As `settled` returns it.
    settings
        What is searched and how.
    train, validation
        The rows; with folds the validation rows are not read.

    Raises
    ------
    ConfigError
        If it can't be searched so.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: TuneConfig,
        train: Source,
        validation: Source | None,
    ) -> None:
        if validation is None and settings.folds is None:
            raise ConfigError(
                "tune: needs rows to judge by: name validation rows, or set tune.folds, such as 5"
            )
        self._config, self._settings = config, settings
        self._train, self._validation = train, validation
        self._space = search_space(config, settings.space)
        self._own = own_values(config, self._space)
        self._proposals = Proposals(self._space, settings)

    @property
    def space(self) -> tuple[str, ...]:
        """The settings that are searched."""
        return tuple(self._space)

    def outcome(self, trials: Sequence[Trial]) -> Tuning:
        """Return what trials have shown."""
        return Tuning(
            tuple(trials),
            self.space,
            self._config.metrics[0],
            self._settings.folds,
            self._proposals.trials,
            self._own,
        )

    def run(
        self,
        trials: Sequence[Trial] = (),
        on_trial: Callable[[Tuning], None] | None = None,
    ) -> Tuning:
        """Try weights until there are enough trials, or time is up.

        Parameters
        ----------
        trials
            Those that are finished.
        on_trial
            Called after each trial with all that are finished.
        """
        trials = list(trials)
        if len(trials) >= self._proposals.trials:
            return self.outcome(trials)
        metric, timeout = self._config.metrics[0], self._settings.timeout or math.inf
        bench = _Bench(self._config, self._workspaces(), self._space)
        starts = [] if self._own is None else [self._own]
        if len(trials) < 2 and self._settings.method in ("bayesian", "tpe"):
            estimated = bench.estimate()
            starts += [] if estimated is None or estimated in starts else [estimated]
        started = time.monotonic()
        # One in any case: a search that is called again and again gets somewhere.
        while True:
            done = [Outcome(trial.values, merit(trial.metrics[metric], metric)) for trial in trials]
            trials.append(bench.run(len(trials) + 1, self._proposals.next(done, starts)))
            if on_trial is not None:
                on_trial(self.outcome(trials))
            late = time.monotonic() - started >= timeout
            if late or len(trials) >= self._proposals.trials:
                break
        open_ended = sum(trial.converged is False for trial in trials)
        if open_ended:
            text = "%d of %d trials did not converge to the tolerance; allow more passes"
            log.warning(text, open_ended, len(trials))
        return self.outcome(trials)

    def _workspaces(self) -> list[LocalWorkspace]:
        engine, folds = LocalEngine(), self._settings.folds
        if folds is None:
            return [engine.prepare(self._config, self._train, self._validation)]
        return engine.prepare_folds(self._config, self._train, folds, self._settings.seed)


class _Bench:
    """Rows that are ready, and models of earlier trials for later ones to start from.

    A trial starts from the models of the nearest one only if descent ends by a test of
    convergence. If it ends after a number of passes, that would be a head start: each trial then
    starts as `gdmix train` would, and the figures are those of a run with its weights.
    """

    def __init__(
        self, config: ModelConfig, workspaces: Sequence[LocalWorkspace], space: Space
    ) -> None:
        self._config, self._workspaces, self._space = config, workspaces, space
        self._shares = np.array([workspace.judged_weight for workspace in workspaces])
        self._shares /= self._shares.sum()
        self._starts_warm = config.tolerance is not None or config.solver == JOINT
        self._models: list[tuple[Trial, list[_Models]]] = []

    def run(self, number: int, values: Values) -> Trial:
        """Train and judge."""
        started = time.perf_counter()
        config = with_values(self._config, values)
        results = []
        with _warnings_as_notes():
            for fold, workspace in enumerate(self._workspaces):
                bound = workspace.rebound(config)
                start = self._start(values, fold)
                results.append(descend_in(bound, config, state=start))
        steps = [result.history[result.selected] for result in results]
        metrics = {
            name: float(self._shares @ [step.metrics[name] for step in steps])
            for name in config.metrics
        }
        tested = [result.converged for result in results if result.converged is not None]
        trial = Trial(
            number,
            values,
            metrics,
            max(result.history[-1].pass_number for result in results),
            all(tested) if tested else None,
            time.perf_counter() - started,
        )
        said = ", ".join(f"{key} {value:g}" for key, value in {**values, **metrics}.items())
        log.info("trial %d: %s", number, said)
        if self._starts_warm:
            self._keep(trial, [result.current for result in results])
        return trial

    def estimate(self) -> Values | None:
        """Return the weights that ``l2: auto`` finds: they need no validation rows."""
        config = estimating(self._config, self._space)
        if config is None:
            return None
        with _warnings_as_notes():
            result = descend_in(self._workspaces[0].rebound(config), config)
        components = () if result.estimate is None else result.estimate.components
        return estimated_values(self._space, components)

    def _start(self, values: Values, fold: int) -> Descent | None:
        if not self._models:
            return None
        _, models = min(self._models, key=lambda m: distance(self._space, m[0].values, values))
        return Descent(current=dict(models[fold]))

    def _keep(self, trial: Trial, models: list[_Models]) -> None:
        metric = self._config.metrics[0]
        self._models.append((trial, models))
        self._models.sort(key=lambda m: -merit(m[0].metrics[metric], metric))
        del self._models[_MODELS_KEPT:]


def merit(value: float, metric: str) -> float:
    """Return a number that is larger the better a metric's value is; that of NaN is least."""
    if math.isnan(value):
        return -math.inf
    return value if parse_metric(metric).higher_is_better else -value


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Let what is said of every trial go to the log alone."""

    def lower(record: logging.LogRecord) -> bool:
        record.levelno = min(record.levelno, logging.INFO)
        record.levelname = logging.getLevelName(record.levelno)
        return True

    log.addFilter(lower)
    try:
        yield
    finally:
        log.removeFilter(lower)
