"""The state of an unfinished run on disk, so that a killed one can go on.

    <output's folder>/.<output>.unfinished/
      run.yaml, run.log
      checkpoint/state.json             history, and which files hold which models; written last
      checkpoint/<coordinate>.<step>/   a model, as in the model folder (on Spark in Arrow files)

A state that exists is whole: models are written under new names, then the state that names them
replaces the one before it in a single step, then what it no longer names is removed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gdmix.coordinates.variance_components import Weights
from gdmix.data.write import write_json
from gdmix.descent import Descent, Step
from gdmix.errors import ModelError
from gdmix.model.base import CoordinateModel
from gdmix.model.custom import with_pickles_trusted
from gdmix.model.stored import StoredModel, in_memory

STATE = "state.json"
# At most a tenth of the time goes into checkpoints: of a run of short steps not every one is kept.
_SHARE = 0.1


class Checkpoint:
    """The folder that holds the state.

    Parameters
    ----------
    folder
        Made when the first state is saved.
    stored
        Whether models are to stay on disk until someone looks at them.
    """

    def __init__(self, folder: Path, stored: bool = False) -> None:
        self._folder, self._stored = folder, stored
        self._files: dict[int, tuple[str, CoordinateModel]] = {}
        self._resting_until = 0.0

    def exists(self) -> bool:
        """Whether there is a state."""
        return (self._folder / STATE).is_file()

    def save(self, state: Descent) -> None:
        """Save a state, unless checkpoints take too large a share of the time.

        Raises
        ------
        OutputError
            If the system refuses to write; the state before is still whole.
        """
        started = time.monotonic()
        if started < self._resting_until:
            return
        step = len(state.history)
        files = {
            "current": self._write(state.current, step),
            "kept": self._write(state.models, step),
        }
        tree = {
            "selected": state.selected,
            "weights": {name: asdict(own) for name, own in state.weights.items()},
            "settled": state.settled,
            "steps": [s.to_dict() for s in state.history],
            **{
                role: {n: {"file": f, **m.describe()} for n, (f, m) in of.items()}
                for role, of in files.items()
            },
        }
        write_json(tree, self._folder / STATE)
        in_use = {f for of in files.values() for f, _ in of.values()}
        for path in self._folder.iterdir():
            if path.name != STATE and path.name not in in_use:
                shutil.rmtree(path, ignore_errors=True)
        self._files = {id(m): (f, m) for of in files.values() for f, m in of.values()}
        now = time.monotonic()
        self._resting_until = now + (now - started) / _SHARE

    def _write(
        self, models: Mapping[str, CoordinateModel], step: int
    ) -> dict[str, tuple[str, CoordinateModel]]:
        """Write the models that are not on disk yet; return file and model of each."""
        result = {}
        for name, model in models.items():
            if id(model) not in self._files:
                file = f"{name}.{step}"
                model.write(self._folder / file)
                self._files[id(model)] = (file, model)
            result[name] = self._files[id(model)]
        return result

    def folder_of(self, model: CoordinateModel) -> Path | None:
        """Return the folder that a model was written into, if the last state has it."""
        file, _ = self._files.get(id(model), ("", None))
        return self._folder / file if file else None

    def load(self) -> Descent:
        """Read the state.

        Raises
        ------
        ModelError
            If it is damaged.
        """
        path = self._folder / STATE
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            state = Descent(
                models=self._read(tree["kept"]),
                history=[Step.from_dict(step) for step in tree["steps"]],
                selected=tree["selected"],
                current=self._read(tree["current"]),
                weights={name: Weights(**own) for name, own in tree["weights"].items()},
                settled=tree["settled"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: can't be read: {error}") from None
        return state

    def _read(self, entries: Mapping[str, dict[str, Any]]) -> dict[str, CoordinateModel]:
        known = {file: model for file, model in self._files.values()}
        models = {}
        for name, entry in entries.items():
            file = entry["file"]
            if file not in known:
                described = {key: value for key, value in entry.items() if key != "file"}
                model: CoordinateModel = StoredModel(self._folder / file, described)
                known[file] = model if self._stored else with_pickles_trusted(in_memory(model))
                self._files[id(known[file])] = (file, known[file])
            models[name] = known[file]
        return models
