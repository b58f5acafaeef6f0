"""A run: train what a YAML file says, and write all of it into one folder.

    <output>/
      manifest.json, feature_index/     with <coordinate>/models/: the model (`model.store`)
      <coordinate>/metric/evalSummary.json
      <coordinate>/{train_scores,validation_scores}/part-00000.parquet
      run.yaml, history.json, run.log

The folder is built beside its place and renamed: an output that exists is whole. A run that was
stopped leaves its state there (`checkpoint`), and `resume` goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gdmix import memory
from gdmix.checkpoint import Checkpoint
from gdmix.config import JOINT, DeepFixedEffect, ExternalScores, RunConfig
from gdmix.coordinates.variance_components import Estimate
from gdmix.data.join import open_data
from gdmix.data.write import (
    FolderInUse,
    check_replaceable,
    locked_folder,
    replaced_folder,
    temporary_folder,
    write_json,
)
from gdmix.deep.distributed import leading, serve, team
from gdmix.descent import Step
from gdmix.engines.base import Workspace
from gdmix.engines.local import LocalEngine
from gdmix.engines.make import Place, Stamps, open_engine, stamps
from gdmix.errors import ConfigError, ModelError, OutputError
from gdmix.estimator import train
from gdmix.model.base import CoordinateModel
from gdmix.model.store import is_model_folder

HISTORY = "history.json"
# Settings without effect on the model.
_WITHOUT_EFFECT = ("output", "threads", "memory_limit", "scratch", "tune", "spark")
# Of an unfinished run only. No coordinate can have the name of the state of long fits.
_CHECKPOINT, _INPUTS, _FITS = "checkpoint", "inputs.json", ".fits"
_PASSES = "passes"  # with a model folder after each


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
    variance_components
        With estimated L2 weights, those of the last fit: ``coordinate``, ``group``, ``l2``,
        ``variance``, ``coefficients``, ``effective`` of each.
    log_marginal_likelihood, dispersion
        With estimated L2 weights: see `coordinates.variance_components`.
    """

    steps: list[dict[str, Any]]
    selected: int
    converged: bool | None
    metrics_of: str
    variance_components: list[dict[str, Any]] = field(default_factory=list)
    log_marginal_likelihood: float | None = None
    dispersion: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what is written."""
        return {
            "metrics_of": self.metrics_of,
            "selected": self.selected,
            "converged": self.converged,
            **(
                {
                    "variance_components": self.variance_components,
                    "log_marginal_likelihood": self.log_marginal_likelihood,
                    "dispersion": self.dispersion,
                }
                if self.variance_components
                else {}
            ),
            "steps": self.steps,
        }


def run(
    config: RunConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_start: Callable[[int, str], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> RunHistory:
    """Train and write the run folder.

    Parameters
    ----------
    overwrite
        Replace earlier results, and forget an unfinished run.
    resume
        Go on with an unfinished run, if there is one.

    Raises
    ------
    GdmixError
        What a user can mend; the output is then as it was before.
    """
    check_replaceable(config.output, overwrite, is_run_folder)
    unfinished = unfinished_run(config.output)
    checkpoint = Checkpoint(unfinished / _CHECKPOINT, stored=config.engine == "spark")
    scratch = scratch_folder(config, unfinished)
    try:
        with (
            replaced_folder(config.output, unfinished) as folder,
            locked_folder(folder),
            open_engine(config, scratch, folder / _FITS) as place,
        ):
            files = partial(files_of, config, place.stamps)
            _check_unfinished(config, files, unfinished, checkpoint, scratch, overwrite, resume)
            with log_to(folder / "run.log"), memory.limited(config.memory_limit, scratch):
                config.to_yaml(folder / "run.yaml")
                write_json(files(), folder / _INPUTS)
                history = _train_into(folder, config, place, checkpoint, on_start, on_step)
            shutil.rmtree(scratch, ignore_errors=True)
        # Only now: killed a moment earlier, the run would have to start anew.
        for state in (_CHECKPOINT, _FITS):
            shutil.rmtree(config.output / state, ignore_errors=True)
        (config.output / _INPUTS).unlink(missing_ok=True)
    except FolderInUse:
        raise
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if not stopped:
            shutil.rmtree(scratch, ignore_errors=True)
        if not _has_state(unfinished, checkpoint, scratch):
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(scratch, ignore_errors=True)
        elif stopped:
            raise KeyboardInterrupt(f"{unfinished} keeps the state: --resume goes on") from None
        raise
    return history


def assist(config: RunConfig) -> None:
    """Train the networks of a run that another process of the same ``torchrun`` does.

    Raises
    ------
    GdmixError
        What a user can mend.
    """
    team()
    names = [name for name, spec in config.fitted.items() if isinstance(spec, DeepFixedEffect)]
    with (
        temporary_folder(config.scratch) as scratch,
        memory.limited(config.memory_limit, scratch),
    ):
        rows = open_data(config.data, "train", config.columns.column("uid"))
        serve(LocalEngine().prepare_fits(config, rows, names) if names else {})


def scratch_folder(config: RunConfig, unfinished: Path) -> Path:
    """Return where arrays beyond memory lie: in the folder of the work, or where it is told to."""
    if config.scratch is None:
        return unfinished / "scratch"
    digest = hashlib.sha256(str(unfinished).encode()).hexdigest()[:12]
    return config.scratch / f"gdmix-{config.output.name}-{digest}"


def _has_state(unfinished: Path, checkpoint: Checkpoint, scratch: Path) -> bool:
    return _has_models(unfinished, checkpoint) or memory.has_kept(scratch)


def _has_models(unfinished: Path, checkpoint: Checkpoint) -> bool:
    """Whether any model was fitted, or is half-way."""
    return checkpoint.exists() or any((unfinished / _FITS).glob("[!.]*"))


def unfinished_run(output: Path) -> Path:
    """Return where a run that did not come to its end leaves its state."""
    target = output.resolve()
    return target.with_name(f".{target.name}.unfinished")


def _train_into(
    folder: Path,
    config: RunConfig,
    place: Place,
    checkpoint: Checkpoint,
    on_start: Callable[[int, str], None] | None,
    on_step: Callable[[Step], None] | None,
) -> RunHistory:
    data, uid = config.data, config.columns.column("uid")
    avro = config.avro if config.format == "avro" else None

    def keep(number: int, workspace: Workspace, models: Mapping[str, CoordinateModel]) -> None:
        path = folder / _PASSES / str(number)
        with replaced_folder(path) as staging:
            workspace.write_model(models, staging, avro)

    with leading():
        result, workspace = train(
            config,
            place.rows(data, "train", uid),
            place.rows(data, "validation", uid),
            engine=place.engine,
            on_start=on_start,
            on_step=on_step,
            state=checkpoint.load() if checkpoint.exists() else None,
            on_state=checkpoint.save,
            on_pass=keep if config.output_models == "all" else None,
        )
    history = RunHistory(
        [step.to_dict() for step in result.history],
        result.selected,
        result.converged,
        "train" if data.validation is None else "validation",
        *_estimates(result.estimate),
    )
    for name in result.models:
        steps = history.steps[: result.selected + 1]
        last = next(s for s in reversed(steps) if s["coordinate"] in (name, JOINT))
        write_json(last["metrics"], folder / name / "metric" / "evalSummary.json")
    workspace.write_scores(result.models, folder, avro)
    write_json(history.to_dict(), folder / HISTORY)
    if config.output_models != "none":
        workspace.write_model(result.models, folder, avro, checkpoint.folder_of)
    return history


def _estimates(
    estimate: Estimate | None,
) -> tuple[list[dict[str, Any]], float | None, float | None]:
    if estimate is None:
        return [], None, None
    components = [asdict(component) for component in estimate.components]
    return components, estimate.log_marginal_likelihood, estimate.dispersion


def is_run_folder(path: Path) -> bool:
    """Whether a folder holds a whole run, with or without its model."""
    return is_model_folder(path) or (path / HISTORY).is_file()


def _check_unfinished(
    config: RunConfig,
    files: Callable[[], Stamps],
    unfinished: Path,
    checkpoint: Checkpoint,
    scratch: Path,
    overwrite: bool,
    resume: bool,
) -> None:
    """Decide what becomes of what an earlier run left; afterwards it is as this run needs it."""
    if resume and _has_state(unfinished, checkpoint, scratch):
        before = RunConfig.from_yaml(unfinished / "run.yaml")
        setting = changed_setting(before, config)
        if setting is not None:
            raise ConfigError(
                f"{unfinished}: the unfinished run had another '{setting}'; "
                "use its settings, or start anew with --overwrite"
            )
        if json.loads((unfinished / _INPUTS).read_text(encoding="utf-8")) != files():
            raise ConfigError(
                f"{unfinished}: the data have changed since the unfinished run; "
                "start anew with --overwrite"
            )
    elif _has_models(unfinished, checkpoint) and not overwrite:
        raise OutputError(
            f"{unfinished}: holds an unfinished run; "
            "go on with --resume, or start anew with --overwrite"
        )
    else:
        for path in unfinished.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(scratch, ignore_errors=True)


def changed_setting(before: RunConfig, now: RunConfig) -> str | None:
    """Return the first setting in which two runs differ that has an effect on the model."""
    for name in RunConfig.model_fields:
        if name not in _WITHOUT_EFFECT and getattr(before, name) != getattr(now, name):
            return name
    return None


def files_of(config: RunConfig, stamps_of: Callable[[Sequence[str]], Stamps] = stamps) -> Stamps:
    """Return size and time of change of every input file: what tells that it is the same."""
    external = [c for c in config.coordinates.values() if isinstance(c, ExternalScores)]
    sources = (config.data, *config.data.joined, *external)
    files: Stamps = {}
    for paths in (paths for s in sources for paths in (s.train, s.validation) if paths):
        files |= stamps_of(paths)
    if config.earlier_model is not None:
        model = config.earlier_model
        inside = [p for p in (model, *sorted(model.rglob("*"))) if p.is_file()]
        files |= stamps([str(p) for p in inside])
    return files


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


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write what the program logs into a file."""
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
