"""What a person sees of a run: tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group
from rich.table import Table
from rich.text import Text

from gdmix.model.mixed_model import TrainedModel
from gdmix.runs import RunHistory
from gdmix.tuning.search import Tuning

_WITHOUT_FEATURES = {"external_scores": "(scores from files)"}
_MOST_TRIALS = 15
_MOST_FEATURES = 20  # of a bag
_MOST_COMPONENTS = 30
_NUMBER_WIDTH = 6
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


def components_table(history: RunHistory) -> Group:
    """Lay out the estimated L2 weights as variance components."""
    table = Table()
    for name in ("coordinate", "group"):
        table.add_column(name)
    for name in ("l2", "variance", "coefficients", "effective"):
        table.add_column(name, justify="right")
    for one in history.variance_components[:_MOST_COMPONENTS]:
        table.add_row(
            one["coordinate"],
            one["group"],
            f"{one['l2']:.4g}",
            f"{one['variance']:.4g}",
            f"{one['coefficients']:,}",
            f"{one['effective']:,.1f}",
        )
    more = len(history.variance_components) - _MOST_COMPONENTS
    caption = f"log marginal likelihood {history.log_marginal_likelihood:,.2f}"
    if history.dispersion is not None and history.dispersion != 1.0:
        caption += f", residual variance {history.dispersion:.4g}"
    caption += f"; {more:,} more are in history.json" if more > 0 else ""
    return _titled("Estimated L2 weights", table, caption)


def _shown_passes(last: int, kept: int) -> set[int]:
    if last <= _MOST_PASSES:
        return set(range(1, last + 1))
    return {*range(1, _MOST_PASSES - 1), kept, last}


def comparison_table(runs: Mapping[str, RunHistory]) -> Group:
    """Lay out runs one below another: after each coordinate of the first pass, and at the end."""
    firsts = {name: [s for s in h.steps if s["pass"] == 1] for name, h in runs.items()}
    stages = list(dict.fromkeys(s["coordinate"] for steps in firsts.values() for s in steps))
    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("metric", no_wrap=True)
    for position, stage in enumerate(stages):
        header = ("+ " if position else "") + stage
        table.add_column(header, justify="right", overflow="fold", min_width=_NUMBER_WIDTH)
    table.add_column("kept", justify="right", no_wrap=True, style="bold")
    table.add_column("pass", justify="right", no_wrap=True)
    for name, history in runs.items():
        metrics, kept = list(history.steps[0]["metrics"]), history.steps[history.selected]
        after = {s["coordinate"]: s["metrics"] for s in firsts[name]}
        table.add_row(
            Text(name),
            "\n".join(metrics),
            *(_lines(after.get(stage, {}), metrics) for stage in stages),
            _lines(kept["metrics"], metrics),
            str(kept["pass"]),
            end_section=True,
        )
    return _titled("Metrics after each coordinate of the first pass, and of the model kept", table)


def _lines(values: Mapping[str, Any], metrics: Sequence[str]) -> str:
    return "\n".join(_number(values[m]) if m in values else "" for m in metrics)


def trials_table(tuning: Tuning, title: str) -> Group:
    """Lay out the best trials of a search, and the one with the weights it began with."""
    metrics = list(tuning.best.metrics)
    table = Table()
    table.add_column("trial", justify="right")
    for key in tuning.space:
        name, _, setting = key.removeprefix("coordinates.").rpartition(".")
        header = f"{name}\n{setting.replace('_', ' ')}"  # may wrap at the blank
        table.add_column(header, justify="right", overflow="fold")
    for name in (*metrics, "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = tuning.ranked[:_MOST_TRIALS]
    first = tuning.first
    extra = [first] if first is not None and first not in shown else []
    for trial in shown + extra:
        table.add_row(
            f"{trial.number}{' *' if trial is first else ''}",
            *(f"{trial.values[key]:.3g}" for key in tuning.space),
            *(_number(trial.metrics[name]) for name in metrics),
            f"{trial.seconds:.1f}",
            style="bold" if trial is shown[0] else None,
            end_section=trial is shown[-1],
        )
    n = len(tuning.trials)
    of = f"mean over {tuning.folds} folds" if tuning.folds else "metrics of the validation rows"
    count = f"{n} of {tuning.planned} trials" if n < tuning.planned else f"{n} trials"
    star = "; * the weights it began with" if first is not None else ""
    return _titled(title, table, f"{of}; {count}, the best by {tuning.metric} first{star}")


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
            str(summary.get("estimator", summary["type"])),
            str(summary["entity"] or ""),
            _features(summary),
            f"{summary['models']:,}",
            f"{summary['coefficients']:,}",
        )
    return _titled(title, table)


def _features(summary: Mapping[str, Any]) -> str:
    names = [*summary["features"], *summary.get("categorical", ())]
    return ", ".join(names) or _WITHOUT_FEATURES.get(summary["type"], "(intercept)")


def coefficient_table(coefficients: pa.Table, title: str) -> Group:
    """Lay out coefficients, one a row."""
    table = Table()
    for name in coefficients.column_names:
        table.add_column(name, justify="right" if name in ("value", "variance") else "left")
    for row in coefficients.to_pylist():
        cells = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()]
        table.add_row(*(Text(cell) for cell in cells))
    return _titled(title, table)


def feature_summary_tables(features: pa.Table, title: str) -> Group:
    """Lay out what the features of each bag are like, the first of them."""
    parts: list[Group] = []
    for bag in dict.fromkeys(features["bag"].to_pylist()):
        own = features.filter(pc.equal(features["bag"], bag)).drop_columns(["bag"])
        table = Table()
        for name in own.column_names:
            table.add_column(name, justify="left" if name in ("name", "term") else "right")
        for row in own.slice(0, _MOST_FEATURES).to_pylist():
            texts = [row.pop("name"), row.pop("term"), f"{row.pop('nnz'):,}"]
            table.add_row(*map(Text, texts), *(f"{value:.6g}" for value in row.values()))
        more = own.num_rows - _MOST_FEATURES
        caption = f"and {more:,} more: --output writes all" if more > 0 else ""
        count = f"{own.num_rows:,} feature{'' if own.num_rows == 1 else 's'}"
        parts.append(_titled(f"{title}: bag '{bag}', {count}", table, caption))
    return Group(*parts)


def _titled(title: str, table: Table, caption: str = "") -> Group:
    """Put lines above and below a table; as parts of it they would wrap at its width."""
    below = [Text(caption, style="dim")] if caption else []
    return Group(Text(title, style="italic"), table, *below)


def _number(value: float | str | None) -> str:
    """Write a metric; JSON holds an infinite one as text and an undefined one as null."""
    return "–" if value is None or value != value else f"{float(value):.4f}"
