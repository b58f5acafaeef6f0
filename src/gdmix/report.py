"""What a person sees of a run: tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.console import Group
from rich.table import Table
from rich.text import Text

from gdmix.model.mixed_model import ExternalModel, LinearModel, TrainedModel
from gdmix.runs import RunHistory

_MOST_PASSES = 6  # of a longer run the table shows the first ones, the kept one and the last


def history_table(history: RunHistory, title: str) -> Group:
    """Lay out metrics per coordinate and pass."""
    steps = history.steps
    metrics = list(steps[0]["metrics"])
    table = Table()
    table.add_column("pass", justify="right")
    table.add_column("coordinate")
    table.add_column("models", justify="right")
    table.add_column("objective", justify="right")
    for name in metrics:
        table.add_column(name, justify="right")
    shown = _shown_passes(steps[-1]["pass"], steps[history.selected]["pass"])
    early = history.selected != len(steps) - 1
    pass_number = 0  # of the row above
    for position, step in enumerate(steps):
        number = step["pass"]
        opens, pass_number = number != pass_number, number
        if number not in shown:
            if opens and number - 1 in shown:
                table.add_row("…", end_section=True)
            continue
        plus = "" if opens or number > 1 else "+ "
        star = " *" if early and position == history.selected else ""
        table.add_row(
            str(number) if opens else "",
            plus + step["coordinate"] + star,
            f"{step['models']:,}",
            f"{step['objective']:,.2f}",
            *(_number(step["metrics"][name]) for name in metrics),
            end_section=position + 1 == len(steps) or steps[position + 1]["pass"] != number,
        )
    rows = "training" if history.metrics_of == "train" else "validation"
    kept = "; * the model that was kept" if early else ""
    return _titled(title, table, f"metrics of the {rows} rows{kept}")


def _shown_passes(last: int, kept: int) -> set[int]:
    if last <= _MOST_PASSES:
        return set(range(1, last + 1))
    return {*range(1, _MOST_PASSES - 1), kept, last}


def comparison_table(runs: Mapping[str, RunHistory]) -> Group:
    """Lay runs side by side: after each coordinate of the first pass, and at the end."""
    metrics = list(dict.fromkeys(m for h in runs.values() for m in h.steps[0]["metrics"]))
    table = Table()
    table.add_column("", no_wrap=True)
    for name in runs:
        for position, metric in enumerate(metrics):
            header = f"{'' if position else name}\n{metric}"
            table.add_column(header, justify="right", overflow="fold")
    firsts = [[s for s in h.steps if s["pass"] == 1] for h in runs.values()]
    stages = list(dict.fromkeys(s["coordinate"] for steps in firsts for s in steps))
    for position, stage in enumerate(stages):
        cells = []
        for steps in firsts:
            cells += _metric_cells([s for s in steps if s["coordinate"] == stage], metrics)
        last = position + 1 == len(stages)
        table.add_row(("+ " if position else "") + stage, *cells, end_section=last)
    kept = [h.steps[h.selected] for h in runs.values()]
    cells = [cell for step in kept for cell in _metric_cells([step], metrics)]
    passes = " / ".join(dict.fromkeys(str(step["pass"]) for step in kept))
    table.add_row(f"kept: pass {passes}", *cells, style="bold")
    return _titled("Metrics after each coordinate of the first pass, and of the model kept", table)


def _metric_cells(steps: list[dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    if not steps:
        return [""] * len(metrics)
    return [_number(steps[0]["metrics"][m]) if m in steps[0]["metrics"] else "" for m in metrics]


def metrics_table(metrics: Mapping[str, float], title: str) -> Group:
    """Lay out metrics of one set of scores."""
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, _number(value))
    return _titled(title, table)


def model_table(model: TrainedModel, title: str) -> Group:
    """Lay out what a model consists of."""
    table = Table()
    for name in ("coordinate", "type", "entity", "features"):
        table.add_column(name)
    table.add_column("models", justify="right")
    table.add_column("coefficients", justify="right")
    for name in model.coordinates:
        summary = model.summary(name)
        table.add_row(
            name,
            str(summary["type"]),
            str(summary["entity"] or ""),
            _features(model.coordinates[name]),
            f"{summary['models']:,}",
            f"{summary['coefficients']:,}",
        )
    return _titled(title, table)


def _features(model: LinearModel | ExternalModel) -> str:
    if isinstance(model, ExternalModel):
        return "(scores from files)"
    return ", ".join(model.features) or "(intercept)"


def coefficient_table(coefficients: pa.Table, title: str) -> Group:
    """Lay out coefficients, one a row."""
    table = Table()
    for name in coefficients.column_names:
        table.add_column(name, justify="right" if name == "value" else "left")
    for row in coefficients.to_pylist():
        cells = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()]
        table.add_row(*(Text(cell) for cell in cells))
    return _titled(title, table)


def _titled(title: str, table: Table, caption: str = "") -> Group:
    """Put lines above and below a table; as parts of it they would wrap at its width."""
    below = [Text(caption, style="dim")] if caption else []
    return Group(Text(title, style="italic"), table, *below)


def _number(value: float | str | None) -> str:
    """Write a metric; JSON holds an infinite one as text and an undefined one as null."""
    return "–" if value is None or value != value else f"{float(value):.4f}"
