"""Block coordinate descent: one coordinate at a time, the scores of all others as offset.

The joint objective is convex for linear coordinates, so every step lowers it and passes until
convergence reach its one optimum. This loop exists once, for every engine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from gdmix.config import JOINT
from gdmix.coordinates.base import Coordinate, FitReport, ScoreTable
from gdmix.coordinates.variance_components import Estimate, Weights, WeightSource
from gdmix.glm.status import FitStatus
from gdmix.model.base import CoordinateModel

log = logging.getLogger("gdmix")

# Changes of the logarithm of an estimated weight.
_SETTLED, _SETTLED_JOINTLY = 0.01, 1e-6
# Of the log marginal likelihood: what is below is noise of the estimate, and of no consequence.
_LEAST_GAIN, _WORTH_A_WARNING = 0.1, 1.0
_MOST_JOINT_FITS = 50

Recentre = Callable[[Mapping[str, CoordinateModel]], dict[str, CoordinateModel]]
FitJointly = Callable[[Mapping[str, CoordinateModel]], tuple[dict[str, CoordinateModel], FitReport]]


@dataclass(frozen=True)
class Step:
    """One coordinate fitted in one pass.

    Attributes
    ----------
    pass_number
        From 1.
    coordinate
        Its name; `JOINT` for the step that fits all of them at once.
    objective
        The joint objective after the step: weighted loss plus all penalties.
    report
        How the fit ended.
    metrics
        Metrics of the total score after the step.
    seconds
        Wall time of fit and scoring.
    """

    pass_number: int
    coordinate: str
    objective: float
    report: FitReport
    metrics: Mapping[str, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return what `history.json` says of it."""
        return {
            "pass": self.pass_number,
            "coordinate": self.coordinate,
            "objective": self.objective,
            "models": self.report.models,
            "statuses": {s.name.lower(): n for s, n in self.report.statuses.items()},
            "iterations": self.report.iterations,
            "gradient_norm": self.report.gradient_norm,
            "metrics": dict(self.metrics),
            "seconds": self.seconds,
        }

    @staticmethod
    def from_dict(tree: Mapping[str, Any]) -> Step:
        """Read what `to_dict` said; JSON has no NaN, so that a missing number is one."""

        def number(value: Any) -> float:
            return float("nan") if value is None else float(value)

        report = FitReport(
            tree["models"],
            {FitStatus[name.upper()]: n for name, n in tree["statuses"].items()},
            number(tree["iterations"]),
            number(tree["gradient_norm"]),
        )
        return Step(
            tree["pass"],
            tree["coordinate"],
            number(tree["objective"]),
            report,
            {name: number(value) for name, value in tree["metrics"].items()},
            tree["seconds"],
        )


@dataclass
class Descent:
    """Where `descend` is, or ended.

    Attributes
    ----------
    models
        The selected model of each coordinate.
    history
        All steps.
    selected
        Position in the history of the step after which `models` were taken.
    converged
        Whether the convergence test ended it; None without a test.
    current
        The models after the last step.
    weights
        Estimated L2 weights of the groups of columns, by coordinate.
    settled
        Whether these weights have come to rest.
    estimate
        The last estimate of weights, around the models after the last step.
    """

    models: dict[str, CoordinateModel] = field(default_factory=dict)
    history: list[Step] = field(default_factory=list)
    selected: int = -1
    converged: bool | None = None
    current: dict[str, CoordinateModel] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    settled: bool = False
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Schedule:
    """How long descent goes on and what it keeps.

    Attributes
    ----------
    passes
        Rounds over all coordinates, at most.
    tolerance
        Stop when a pass changes the joint objective by less than this share of it.
    select
        The model after the last step, or the best by the first metric.
    higher_is_better
        Of the first metric.
    patience
        Stop after that many passes that did not better the first metric.
    """

    passes: int
    tolerance: float | None = None
    select: Literal["last", "best"] = "last"
    higher_is_better: bool = True
    patience: int | None = None


def descend(
    coordinates: Mapping[str, Coordinate[Any]],
    scores: ScoreTable,
    schedule: Schedule,
    recentre: Recentre | None = None,
    fit_jointly: FitJointly | None = None,
    weights: WeightSource | None = None,
    on_start: Callable[[int, str], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    state: Descent | None = None,
    on_state: Callable[[Descent], None] | None = None,
    on_pass: Callable[[int, Mapping[str, CoordinateModel]], None] | None = None,
) -> Descent:
    """Train all coordinates in turn, pass after pass.

    Parameters
    ----------
    coordinates
        In the order of a pass.
    scores
        Filled as coordinates are fitted.
    recentre
        Called between passes: replaces models by others with the same total training scores
        and a lower penalty.
    fit_jointly
        Called after the passes: fits all coordinates at once, from where they are.
    weights
        Estimates L2 weights between passes, and between joint fits, until they settle.
    on_start, on_step
        Called before (pass number, coordinate) and after each step.
    state
        Where to go on: what an earlier call gave `on_state`; without a history, the models
        that count from the first step on.
    on_state
        Called after each step with where descent is.
    on_pass
        Called after each pass with its number and the models.
    """
    result = state or Descent()
    result.converged = None if schedule.tolerance is None else False
    for name, model in result.current.items():
        scores.put(name, coordinates[name].score(model))
    done = len(result.history)
    if weights is not None:
        weights.apply(result.weights)

    def reweigh(enough: float, least_gain: float, accuracy: float) -> None:
        """Estimate the weights, and set them."""
        if weights is not None and not result.settled:
            result.estimate = weights.estimate(result.current, accuracy)
            result.weights = dict(result.estimate.weights)
            last = result.estimate
            result.settled = last.change < enough or last.gain < least_gain
            weights.apply(result.weights)
            _log_estimate(result.estimate)

    def replace(new: Mapping[str, CoordinateModel]) -> None:
        for name, model in new.items():
            if model is not result.current.get(name):
                scores.put(name, coordinates[name].score(model))
        result.current = {**result.current, **new}

    def step(
        number: int, name: str, fit: Callable[[], tuple[dict[str, CoordinateModel], FitReport]]
    ) -> None:
        if on_start is not None:
            on_start(number, name)
        started = time.perf_counter()
        new, report = fit()
        replace(new)
        seconds = time.perf_counter() - started
        penalty = sum(coordinates[n].penalty(m) for n, m in result.current.items())
        last = Step(number, name, scores.loss() + penalty, report, scores.evaluate(), seconds)
        result.history.append(last)
        _log_step(last)
        if schedule.select == "last" or (
            len(result.current) == len(coordinates) and _is_better(result, schedule)
        ):
            result.models, result.selected = result.current, len(result.history) - 1
        if on_state is not None:
            on_state(result)
        if on_step is not None:
            on_step(last)

    for number in range(1, schedule.passes + 1):
        first = (number - 1) * len(coordinates)
        if number > 1 and done <= first:
            if recentre is not None:
                replace(recentre(result.current))
            reweigh(_SETTLED, _LEAST_GAIN, 0.1)
        for position, name in enumerate(coordinates, first):
            if position >= done:
                step(number, name, partial(_fit_one, coordinates, scores, result.current, name))
        if on_pass is not None and done < first + len(coordinates):
            on_pass(number, result.current)
        ends = result.history[len(coordinates) - 1 :: len(coordinates)]
        if schedule.patience is not None and _is_stale(ends, schedule, schedule.patience):
            log.info("pass %d: stopped early: no better for %d passes", number, schedule.patience)
            break
        if schedule.tolerance is not None and number > 1:
            before = result.history[first - 1].objective
            now = result.history[first - 1 + len(coordinates)].objective
            small = abs(before - now) <= schedule.tolerance * abs(now)
            result.converged = small and (weights is None or result.settled)
            if result.converged:
                break
    if fit_jointly is not None:
        joint_fits = sum(s.coordinate == JOINT for s in result.history)
        if joint_fits == 0:
            result.settled = False
        while joint_fits == 0 or (weights is not None and not result.settled):
            if joint_fits == _MOST_JOINT_FITS:
                break
            reweigh(_SETTLED_JOINTLY, 0.0, 0.01)
            step(number + 1, JOINT, partial(fit_jointly, result.current))
            joint_fits += 1
        result.converged = set(result.history[-1].report.statuses) == {FitStatus.CONVERGED}
    elif result.converged is False:
        log.warning("not converged to %g after %d passes", schedule.tolerance, schedule.passes)
    if weights is not None:
        result.estimate = weights.estimate(result.current, 0.01)
        if result.estimate.gain > _WORTH_A_WARNING:
            text = "L2 weights have not settled: log likelihood to gain %.2g; use more passes"
            log.warning(text, result.estimate.gain)
    return result


def _fit_one(
    coordinates: Mapping[str, Coordinate[Any]],
    scores: ScoreTable,
    models: Mapping[str, CoordinateModel],
    name: str,
) -> tuple[dict[str, CoordinateModel], FitReport]:
    model, report = coordinates[name].fit(scores.total_without(name), models.get(name))
    return {name: model}, report


def _is_better(result: Descent, schedule: Schedule) -> bool:
    """Whether the last step beats the selected one by the first metric."""
    if result.selected < 0:
        return True
    return _beats(result.history[-1], result.history[result.selected], schedule)


def _beats(step: Step, other: Step, schedule: Schedule) -> bool:
    new, old = (next(iter(s.metrics.values()), float("nan")) for s in (step, other))
    better = new > old if schedule.higher_is_better else new < old
    return better or old != old  # a NaN never beats a number


def _is_stale(ends: Sequence[Step], schedule: Schedule, patience: int) -> bool:
    """Whether none of the last passes beats the best one before them."""
    best = 0
    for k, step in enumerate(ends):
        if _beats(step, ends[best], schedule):
            best = k
    return len(ends) - 1 - best >= patience


def _log_step(step: Step) -> None:
    metrics = ", ".join(f"{name} {value:.6f}" for name, value in step.metrics.items())
    log.info(
        "pass %d, %s: %s, objective %.6f, gradient norm %.2e, %s, %.2f s",
        step.pass_number,
        step.coordinate,
        describe(step.report),
        step.objective,
        step.report.gradient_norm,
        metrics,
        step.seconds,
    )
    trouble = {s: n for s, n in step.report.statuses.items() if s in _TROUBLE}
    if trouble:
        text = ", ".join(f"{n:,} {s.name.lower()}" for s, n in trouble.items())
        log.warning("pass %d, %s: not fitted well: %s", step.pass_number, step.coordinate, text)


def _log_estimate(estimate: Estimate) -> None:
    text = ", ".join(f"{c.coordinate}/{c.group} {c.l2:.4g}" for c in estimate.components)
    log.info("estimated L2 weights, before: %s; change %.2g", text, estimate.change)


_TROUBLE = {FitStatus.MAX_ITERATIONS, FitStatus.STALLED, FitStatus.NOT_FINITE}


def describe(report: FitReport) -> str:
    """Return how many models a fit has and how they ended, in words."""
    noun = "model" if report.models == 1 else "models"
    ended = ", ".join(f"{n:,} {s.name.lower()}" for s, n in report.statuses.items())
    if set(report.statuses) <= {FitStatus.CONVERGED}:
        return f"{report.models:,} {noun}"
    return f"{report.models:,} {noun} ({ended})"
