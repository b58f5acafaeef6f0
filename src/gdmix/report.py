"""What a person sees of a run: tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.table import Table
from rich.text import Text

from gdmix.model.mixed_model import TrainedModel
from gdmix.runs import RunHistory

_MOST_PASSES = 6  # of a longer run the table shows the first ones and the last


def history_table(history: RunHistory, title: str) -> Table:
    """Lay out metrics per coordinate and pass."""
    metrics = list(history.steps[0]["metrics"])
    table = _table(title, f"metrics of the {history.metrics_of} rows")
    table.add_column("pass", justify="right")
    table.add_column("coordinate")
    table.add_column("models", justify="right")
    table.add_column("objective", justify="right")
    for name in metrics:
        table.add_column(name, justify="right")
    passes = history.steps[-1]["pass"]
    first = history.steps[0]["coordinate"]
    shown = set(range(1, passes + 1))
    if passes > _MOST_PASSES:
        shown = set(range(1, _MOST_PASSES - 1)) | {passes}
    for position, step in enumerate(history.steps):
        number = step["pass"]
        if number not in shown:
            if number == _MOST_PASSES - 1 and step["coordinate"] == first:
                table.add_row("…", *[""] * (3 + len(metrics)), end_section=True)
            continue
        opens = step["coordinate"] == first
        closes = position + 1 == len(history.steps) or history.steps[position + 1]["pass"] != number
        plus = "" if opens or number > 1 else "+ "
        table.add_row(
            str(number) if opens else "",
            plus + step["coordinate"] + (" *" if _is_early_choice(history, position) else ""),
            f"{step['models']:,}",
            f"{step['objective']:,.2f}",
            *(_number(step["metrics"][name]) for name in metrics),
            end_section=closes,
        )
    return table


def _is_early_choice(history: RunHistory, position: int) -> bool:
    return position == history.selected and position + 1 != len(history.steps)


def comparison_table(runs: Mapping[str, RunHistory]) -> Table:
    """Lay runs side by side: after each coordinate of the first pass, and at the end."""
    metrics = list(dict.fromkeys(m for h in runs.values() for m in h.steps[0]["metrics"]))
    table = _table("Metrics per coordinate", "rows of pass 1, then of the model that was kept")
    table.add_column("", no_wrap=True)
    for name in runs:
        for position, metric in enumerate(metrics):
            header = f"{'' if position else name}\n{metric}"
            table.add_column(header, justify="right", overflow="fold")
    stages = list(dict.fromkeys(s["coordinate"] for h in runs.values() for s in h.steps))
    for position, stage in enumerate(stages):
        cells = []
        for history in runs.values():
            found = [s for s in history.steps if s["coordinate"] == stage and s["pass"] == 1]
            cells += _metric_cells(found, metrics)
        last = position + 1 == len(stages)
        table.add_row(("+ " if position else "") + stage, *cells, end_section=last)
    kept = [h.steps[h.selected] for h in runs.values()]
    cells = [cell for step in kept for cell in _metric_cells([step], metrics)]
    passes = " / ".join(dict.fromkeys(str(step["pass"]) for step in kept))
    table.add_row(f"kept: pass {passes}", *cells, style="bold")
    return table


def _metric_cells(steps: list[dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    if not steps:
        return [""] * len(metrics)
    return [_number(steps[0]["metrics"][m]) if m in steps[0]["metrics"] else "" for m in metrics]


def metrics_table(metrics: Mapping[str, float], title: str) -> Table:
    """Lay out metrics of one set of scores."""
    table = _table(title)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, _number(value))
    return table


def model_table(model: TrainedModel, title: str) -> Table:
    """Lay out what a model consists of."""
    table = _table(title)
    for name in ("coordinate", "type", "entity", "feature bags"):
        table.add_column(name)
    table.add_column("models", justify="right")
    table.add_column("coefficients", justify="right")
    for name in model.coordinates:
        summary = model.summary(name)
        table.add_row(
            name,
            str(summary["type"]),
            str(summary["entity"] or ""),
            ", ".join(model.coordinates[name].features) or "(intercept only)",
            f"{summary['models']:,}",
            f"{summary['coefficients']:,}",
        )
    return table


def coefficient_table(coefficients: pa.Table, title: str) -> Table:
    """Lay out coefficients, one a row."""
    table = _table(title)
    for name in coefficients.column_names:
        table.add_column(name, justify="right" if name == "value" else "left")
    for row in coefficients.to_pylist():
        cells = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _table(title: str, caption: str | None = None) -> Table:
    return Table(title=Text(title), caption=caption, title_justify="left", caption_justify="left")


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.4f}"
