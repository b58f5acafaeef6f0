"""The loop itself, on coordinates that compute nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from gdmix.coordinates.base import FitReport, Scores
from gdmix.descent import Descent, Schedule, Step, descend, describe
from gdmix.glm.status import FitStatus

Calls = list[tuple[Any, ...]]


class FakeCoordinate:
    """A coordinate whose models are labels: ("a", 2) is the second fit of a."""

    def __init__(self, name: str, calls: Calls, report: FitReport) -> None:
        self.name, self.calls, self.report, self.fits = name, calls, report, 0

    def fit(self, offset: Any, warm_start: Any) -> tuple[Any, FitReport]:
        self.calls.append(("fit", self.name, offset, warm_start))
        self.fits += 1
        return (self.name, self.fits), self.report

    def score(self, model: Any) -> Scores:
        self.calls.append(("score", model))
        return Scores(np.array(model[1]), None)

    def penalty(self, model: Any) -> float:
        assert model[0] == self.name
        return 100.0 * model[1]


class FakeScores:
    """A score table that notes what is asked of it; losses and metrics come from lists."""

    def __init__(self, calls: Calls, losses: Sequence[float], metric: Sequence[float]) -> None:
        self.calls, self.losses, self.metric = calls, iter(losses), iter(metric)
        self.held: dict[str, Any] = {}

    def put(self, name: str, scores: Scores) -> None:
        self.calls.append(("put", name))
        self.held[name] = scores.train

    def total_without(self, name: str) -> Any:
        return {other: int(score) for other, score in self.held.items() if other != name}

    def loss(self) -> float:
        return next(self.losses)

    def evaluate(self) -> dict[str, float]:
        return {"first": next(self.metric), "second": 0.5}


GOOD = FitReport(3, {FitStatus.CONVERGED: 3}, 2.0, 1e-9)


def run(
    schedule: Schedule,
    names: str = "ab",
    losses: Sequence[float] | None = None,
    metric: Sequence[float] | None = None,
    report: FitReport = GOOD,
    **options: Any,
) -> tuple[Descent, Calls]:
    calls: Calls = []
    coordinates = {name: FakeCoordinate(name, calls, report) for name in names}
    steps = schedule.passes * len(names)
    scores = FakeScores(calls, losses or [1.0] * steps, metric or [0.5] * steps)
    return descend(coordinates, scores, schedule, **options), calls


def test_order_offsets_and_warm_starts() -> None:
    _, calls = run(Schedule(2))
    assert calls == [
        ("fit", "a", {}, None),
        ("score", ("a", 1)),
        ("put", "a"),
        ("fit", "b", {"a": 1}, None),
        ("score", ("b", 1)),
        ("put", "b"),
        # The second pass starts from the first, with the scores of all others as they are now.
        ("fit", "a", {"b": 1}, ("a", 1)),
        ("score", ("a", 2)),
        ("put", "a"),
        ("fit", "b", {"a": 2}, ("b", 1)),
        ("score", ("b", 2)),
        ("put", "b"),
    ]


def test_models_to_start_from_count_from_the_first_step_on() -> None:
    result, calls = run(Schedule(1), state=Descent(current={"b": ("b", 9)}))
    assert calls == [
        ("score", ("b", 9)),
        ("put", "b"),
        ("fit", "a", {"b": 9}, None),
        ("score", ("a", 1)),
        ("put", "a"),
        ("fit", "b", {"a": 1}, ("b", 9)),
        ("score", ("b", 1)),
        ("put", "b"),
    ]
    assert [s.objective for s in result.history] == [1001.0, 201.0]
    assert result.models == {"a": ("a", 1), "b": ("b", 1)}


def test_history() -> None:
    losses, metric = [8.0, 4.0, 2.0, 1.0], [0.1, 0.2, 0.3, 0.4]
    result, _ = run(Schedule(2), losses=losses, metric=metric)
    assert [(s.pass_number, s.coordinate) for s in result.history] == [
        (1, "a"), (1, "b"), (2, "a"), (2, "b"),
    ]  # fmt: skip
    # Loss plus the penalties of all coordinates fitted so far.
    assert [s.objective for s in result.history] == [108.0, 204.0, 302.0, 401.0]
    assert [s.metrics["first"] for s in result.history] == metric
    assert all(s.report is GOOD and s.seconds >= 0 for s in result.history)
    assert result.models == {"a": ("a", 2), "b": ("b", 2)}
    assert result.selected == 3
    assert result.converged is None


def test_callbacks() -> None:
    seen: list[Any] = []
    result, _ = run(
        Schedule(2),
        on_start=lambda number, name: seen.append((number, name)),
        on_step=seen.append,
    )
    assert seen[::2] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert seen[1::2] == result.history
    assert isinstance(seen[1], Step)


def test_recentring_happens_between_passes_and_its_scores_count() -> None:
    seen = []

    def recentre(models: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(dict(models))
        return {**models, "a": ("a", 70)}

    result, calls = run(Schedule(3), recentre=recentre)
    assert seen == [
        {"a": ("a", 1), "b": ("b", 1)},
        {"a": ("a", 2), "b": ("b", 2)},
    ]
    assert calls[6:9] == [("score", ("a", 70)), ("put", "a"), ("fit", "a", {"b": 1}, ("a", 70))]
    assert ("score", ("b", 70)) not in calls
    assert result.models == {"a": ("a", 3), "b": ("b", 3)}


@pytest.mark.parametrize("status", [FitStatus.CONVERGED, FitStatus.STALLED])
def test_all_coordinates_at_once_after_the_passes(status: FitStatus) -> None:
    report, started = FitReport(2, {status: 2}, 9.0, 1e-9), []

    def fit_jointly(models: Mapping[str, Any]) -> tuple[dict[str, Any], FitReport]:
        assert models == {"a": ("a", 2), "b": ("b", 2)}
        return {"a": ("a", 50), "b": ("b", 60)}, report

    result, calls = run(
        Schedule(2, tolerance=1e-9),
        losses=[5.0, 4.0, 3.0, 2.0, 1.0],
        metric=[0.5] * 5,
        fit_jointly=fit_jointly,
        on_start=lambda *at: started.append(at),
    )
    assert calls[-4:] == [("score", ("a", 50)), ("put", "a"), ("score", ("b", 60)), ("put", "b")]
    assert started[-1] == (3, "joint")
    last = result.history[-1]
    assert (last.pass_number, last.coordinate, last.report) == (3, "joint", report)
    assert last.objective == 1.0 + 5000.0 + 6000.0
    assert result.models == {"a": ("a", 50), "b": ("b", 60)}
    assert result.selected == 4
    # That fit, not the passes' change, tells whether the optimum was reached.
    assert result.converged is (status == FitStatus.CONVERGED)


def test_the_best_model_may_be_from_before_the_joint_fit() -> None:
    result, _ = run(
        Schedule(1, select="best"),
        losses=[1.0] * 3,
        metric=[0.1, 0.7, 0.6],
        fit_jointly=lambda models: ({n: (n, 9) for n in models}, GOOD),
    )
    assert result.selected == 1
    assert result.models == {"a": ("a", 1), "b": ("b", 1)}


NAN = math.nan


@pytest.mark.parametrize(
    ("higher", "metric", "selected"),
    [
        (True, [0.9, 0.1, 0.2, 0.3, 0.2, 0.1], 3),  # 0.9 is of a model that lacks b
        (True, [0.9, 0.5, 0.5, 0.4, 0.5, 0.5], 1),  # of equals the first
        (True, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 5),
        (False, [0.1, 0.5, 0.4, 0.3, 0.6, 0.7], 3),
        (False, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1),
        (True, [0.1, 0.7, NAN, 0.6, NAN, NAN], 1),  # a NaN is never better than a number
        (True, [NAN, NAN, NAN, 0.1, NAN, 0.2], 5),
        (False, [NAN, NAN, 0.3, NAN, 0.4, NAN], 2),
    ],
)
def test_the_best_whole_model_is_kept(higher: bool, metric: list[float], selected: int) -> None:
    result, _ = run(Schedule(3, select="best", higher_is_better=higher), metric=metric)
    assert result.selected == selected
    step = result.history[selected]
    expected = {"a": ("a", step.pass_number), "b": ("b", step.pass_number)}
    if step.coordinate == "a":
        expected["b"] = ("b", step.pass_number - 1)
    assert result.models == expected


def test_without_any_number_a_whole_model_is_kept_nevertheless() -> None:
    result, _ = run(Schedule(2, select="best"), metric=[NAN] * 4)
    assert set(result.models) == {"a", "b"}
    assert result.selected > 0


def test_the_last_model_is_kept_whatever_its_metric() -> None:
    result, _ = run(Schedule(2), metric=[0.9, 0.9, 0.9, 0.1])
    assert result.selected == 3
    assert result.models == {"a": ("a", 2), "b": ("b", 2)}


def test_convergence_ends_it_early() -> None:
    # Penalties grow by 100 a fit; losses make the objective after each pass 1000, 900, 899.
    result, _ = run(Schedule(9, tolerance=0.01), names="a", losses=[900, 700, 599, 0, 0])
    assert [s.objective for s in result.history] == [1000, 900, 899]
    assert result.converged is True


def test_an_objective_that_rises_is_judged_by_its_change() -> None:
    result, _ = run(Schedule(9, tolerance=0.01), names="a", losses=[900, 801, 0])
    assert [s.objective for s in result.history] == [1000, 1001]
    assert result.converged is True


def test_one_pass_cannot_tell_whether_it_converged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="gdmix"):
        result, _ = run(Schedule(1, tolerance=0.5))
    assert result.converged is False
    assert caplog.messages == ["not converged to 0.5 after 1 passes"]


def test_no_warning_where_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="gdmix"):
        run(Schedule(3, tolerance=0.9))
    assert caplog.messages == []


def test_fits_that_ended_badly_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    bad = FitReport(
        1200, {FitStatus.CONVERGED: 197, FitStatus.STALLED: 1000, FitStatus.NOT_FINITE: 3}, 1.0, 1.0
    )
    with caplog.at_level(logging.WARNING, logger="gdmix"):
        run(Schedule(1), names="a", report=bad)
    assert caplog.messages == ["pass 1, a: not fitted well: 1,000 stalled, 3 not_finite"]


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (FitReport(1, {FitStatus.CONVERGED: 1}, 1.0, 0.0), "1 model"),
        (FitReport(1648, {FitStatus.CONVERGED: 1648}, 1.0, 0.0), "1,648 models"),
        (
            FitReport(1648, {FitStatus.CONVERGED: 1358, FitStatus.SEPARATED: 290}, 1.0, 0.0),
            "1,648 models (1,358 converged, 290 separated)",
        ),
        (FitReport(0, {}, 0.0, 0.0), "0 models"),
    ],
)
def test_a_report_in_words(report: FitReport, text: str) -> None:
    assert describe(report) == text
