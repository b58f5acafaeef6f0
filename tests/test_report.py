"""Tables at 80 columns: the key cells are there and no line is longer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console, RenderableType

from gdmix import report
from gdmix.config import ColumnRoles, FeatureBag
from gdmix.data.feature_index import FeatureIndex
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.runs import RunHistory

NAMES = ("global", "per-user", "per-movie")


def render(table: RenderableType) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= 80
    return text


def cells(text: str) -> list[list[str]]:
    """Return the cells of each row, header included."""
    lines = [line.replace("┃", "│") for line in text.splitlines()]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]


def history(
    passes: int, selected: int | None = None, metrics: dict[str, Any] | None = None
) -> RunHistory:
    steps = [
        {
            "pass": number,
            "coordinate": name,
            "objective": 123456.789 / number,
            "models": (1, 943, 1_234_567)[position],
            "metrics": metrics or {"auc": 0.7 + number / 1000 + position / 100, "logloss": 0.5},
        }
        for number in range(1, passes + 1)
        for position, name in enumerate(NAMES)
    ]
    return RunHistory(steps, len(steps) - 1 if selected is None else selected, None, "validation")


def test_history_of_one_pass() -> None:
    text = render(report.history_table(history(1), "run.yaml"))
    assert text.splitlines()[0] == "run.yaml"
    assert text.splitlines()[-1] == "metrics of the validation rows"
    assert cells(text) == [
        ["pass", "coordinate", "models", "objective", "auc", "logloss"],
        ["1", "global", "1", "123,456.79", "0.7010", "0.5000"],
        ["", "+ per-user", "943", "123,456.79", "0.7110", "0.5000"],
        ["", "+ per-movie", "1,234,567", "123,456.79", "0.7210", "0.5000"],
    ]


def shown_passes(text: str) -> list[str]:
    return [row[0] for row in cells(text)[1:] if row[0]]


@pytest.mark.parametrize(
    ("passes", "selected", "shown"),
    [
        (6, None, ["1", "2", "3", "4", "5", "6"]),
        (7, None, ["1", "2", "3", "4", "…", "7"]),
        (150, None, ["1", "2", "3", "4", "…", "150"]),
        (150, 3 * 99 + 1, ["1", "2", "3", "4", "…", "100", "…", "150"]),
        (150, 3 * 4, ["1", "2", "3", "4", "5", "…", "150"]),
        (150, 3 * 1, ["1", "2", "3", "4", "…", "150"]),
    ],
)
def test_long_histories_are_cut(passes: int, selected: int | None, shown: list[str]) -> None:
    text = render(report.history_table(history(passes, selected), "run.yaml"))
    assert shown_passes(text) == shown


def test_an_earlier_model_that_was_kept_is_marked() -> None:
    text = render(report.history_table(history(3, selected=4), "run.yaml"))
    marked = [row for row in cells(text) if row[1].endswith("*")]
    assert [row[1] for row in marked] == ["per-user *"]
    assert text.splitlines()[-1] == "metrics of the validation rows; * the model that was kept"
    assert "*" not in render(report.history_table(history(3), "run.yaml"))


def test_metrics_without_a_plain_value() -> None:
    metrics = {"auc": math.nan, "poisson_loss": math.inf, "rmse": None, "mae": "inf"}
    text = render(report.history_table(history(1, metrics=metrics), "run.yaml"))
    assert cells(text)[1][4:] == ["–", "inf", "–", "inf"]


def test_comparison() -> None:
    other = history(2, metrics={"logloss": 0.25})
    text = render(report.comparison_table({"one": history(10), "two": other}))
    assert cells(text) == [
        ["run", "metric", "global", "+ per-user", "+ per-movie", "kept", "pass"],
        ["one", "auc", "0.7010", "0.7110", "0.7210", "0.7300", "10"],
        ["", "logloss", "0.5000", "0.5000", "0.5000", "0.5000", ""],
        ["two", "logloss", "0.2500", "0.2500", "0.2500", "0.2500", "2"],
    ]


def test_a_joint_step_is_no_coordinate_of_the_first_pass() -> None:
    steps = history(1).steps
    joint = {**steps[0], "pass": 2, "coordinate": "joint", "metrics": {"auc": 0.9, "logloss": 0.4}}
    ended = RunHistory([*steps, joint], 3, True, "validation")
    assert shown_passes(render(report.history_table(ended, "run.yaml"))) == ["1", "2"]
    rows = cells(render(report.comparison_table({"one": ended})))
    assert rows[0][2:] == ["global", "+ per-user", "+ per-movie", "kept", "pass"]
    assert [row[-2:] for row in rows[1:]] == [["0.9000", "2"], ["0.4000", ""]]


def test_a_run_without_a_coordinate_has_empty_cells() -> None:
    short = history(1)
    short = RunHistory(short.steps[:1], 0, None, "validation")
    text = render(report.comparison_table({"one": short, "two": history(1)}))
    assert cells(text)[1] == ["one", "auc", "0.7010", "", "", "0.7010", "1"]
    assert cells(text)[3] == ["two", "auc", "0.7010", "0.7110", "0.7210", "0.7210", "1"]


def test_metrics() -> None:
    text = render(report.metrics_table({"auc": 0.75, "ndcg@10:user_id": math.nan}, "s.parquet"))
    assert text.splitlines()[0] == "s.parquet"
    assert cells(text) == [["metric", "value"], ["auc", "0.7500"], ["ndcg@10:user_id", "–"]]


def model() -> TrainedModel:
    random = RandomCoefficients(
        pa.array([1, 2]), np.array([0, 1, 3]), np.array([0, 0, 1], np.uint32), np.array([1, 2, 3.0])
    )
    return TrainedModel(
        "logistic_regression",
        ColumnRoles(),
        {"user": FeatureBag(columns=("x",))},
        {"user": FeatureIndex(["x"], [""])},
        {
            "global": LinearModel(("user",), True, FixedCoefficients(np.array([1.0, 2.0]))),
            "per-user": LinearModel(("user",), True, random, "user_id"),
            "level": LinearModel((), True, FixedCoefficients(np.array([1.0]))),
        },
    )


def test_model() -> None:
    assert cells(render(report.model_table(model(), "model/"))) == [
        ["coordinate", "type", "entity", "features", "models", "coefficients"],
        ["global", "fixed_effect", "", "user", "1", "2"],
        ["per-user", "random_effect", "user_id", "user", "2", "3"],
        ["level", "fixed_effect", "", "(intercept)", "1", "1"],
    ]


def test_coefficients_are_written_as_they_are() -> None:
    table = pa.table(
        {"name": ["[bold]x[/bold]", "y"], "term": ["[/]", ""], "value": [1 / 3, -1e-12]}
    )
    assert cells(render(report.coefficient_table(table, "global"))) == [
        ["name", "term", "value"],
        ["[bold]x[/bold]", "[/]", "0.333333"],
        ["y", "", "-1e-12"],
    ]


def test_names_that_are_long_or_look_like_markup_fit() -> None:
    long = "a-very-long-name-of-a-coordinate-" * 4
    table = pa.table({"name": [long], "term": [long], "value": [0.5]})
    assert "0.5" in render(report.coefficient_table(table, long))
    steps = [{**step, "coordinate": long} for step in history(1).steps]
    assert "0.7010" in render(
        report.history_table(RunHistory(steps, 2, None, "train"), f"[bold]{long}")
    )
    runs = {f"runs/{long}{i}": history(2) for i in range(3)}
    text = render(report.comparison_table(runs))
    assert "0.7010" in text and "0.7220" in text and max(map(len, text.splitlines())) <= 80
