"""A run: train what a YAML file says, and write all of it into one folder.

    <output>/
      manifest.json, feature_index/     with <coordinate>/models/: the model (`model.store`)
      <coordinate>/metric/evalSummary.json
      <coordinate>/{train_scores,validation_scores}/part-00000.parquet
      run.yaml, history.json, run.log

The folder is built beside its place and renamed: an output that exists is whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdmix.config import JOINT, RunConfig
from gdmix.data.write import check_replaceable, replaced_folder, write_json
from gdmix.descent import Descent, Step
from gdmix.errors import ModelError
from gdmix.estimator import train
from gdmix.model.store import is_model_folder, write_model

HISTORY = "history.json"


@dataclass(frozen=True)
class RunHistory:
    """What `history.json` holds.

    Attributes
    ----------
    steps
        One entry per coordinate and pass: ``pass``, ``coordinate``, ``objective``, ``models``,
        ``statuses``, ``iterations``, ``gradient_norm``, ``metrics``, ``seconds``.
    selected
        Position of the step whose model was kept.
    converged
        Whether the convergence test ended the run; None without a test.
    metrics_of
        ``validation`` or ``train``: the rows the metrics are of.
    """

    steps: list[dict[str, Any]]
    selected: int
    converged: bool | None
    metrics_of: str

    def to_dict(self) -> dict[str, Any]:
        """Return what is written."""
        return {
            "metrics_of": self.metrics_of,
            "selected": self.selected,
            "converged": self.converged,
            "steps": self.steps,
        }


def run(
    config: RunConfig,
    *,
    overwrite: bool = False,
    on_start: Callable[[int, str], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> RunHistory:
    """Train and write the run folder.

    Raises
    ------
    GdmixError
        What a user can mend; the output is then as it was before.
    """
    output = config.output
    check_replaceable(output, overwrite, is_model_folder)
    with replaced_folder(output) as folder, _log_to(folder / "run.log"):
        config.to_yaml(folder / "run.yaml")
        data = config.data
        result, workspace = train(
            config, data.train, data.validation, on_start=on_start, on_step=on_step
        )
        history = _history(result, "train" if data.validation is None else "validation")
        for name in result.models:
            steps = history.steps[: result.selected + 1]
            last = next(s for s in reversed(steps) if s["coordinate"] in (name, JOINT))
            write_json(last["metrics"], folder / name / "metric" / "evalSummary.json")
        workspace.write_scores(result.models, folder)
        write_json(history.to_dict(), folder / HISTORY)
        write_model(workspace.trained_model(result.models), folder)
    return history


def read_history(folder: Path) -> RunHistory:
    """Read a run's history.

    Raises
    ------
    ModelError
        If the folder is no run folder.
    """
    path = folder / HISTORY
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return RunHistory(**fields)
    except FileNotFoundError:
        raise ModelError(f"{folder}: is not a run folder: has no {HISTORY}") from None
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: can't be read: {error}") from None


def _history(result: Descent, metrics_of: str) -> RunHistory:
    steps = [
        {
            "pass": step.pass_number,
            "coordinate": step.coordinate,
            "objective": step.objective,
            "models": step.report.models,
            "statuses": {s.name.lower(): n for s, n in step.report.statuses.items()},
            "iterations": step.report.iterations,
            "gradient_norm": step.report.gradient_norm,
            "metrics": dict(step.metrics),
            "seconds": step.seconds,
        }
        for step in result.history
    ]
    return RunHistory(steps, result.selected, result.converged, metrics_of)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    logger = logging.getLogger("gdmix")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()
