"""The folder of a search: what is needed to go on with it, and what came of it.

    <output>.tune/
      run.yaml, inputs.json    the configuration, and the state of the input files
      trials.csv               the finished trials, written anew after each
      best.yaml                the configuration with the best weights so far, for `gdmix train`
      tune.log
      best/                    where that run's folder goes

The folder is not replaced as a whole: what is in it stays when the search is killed.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gdmix.config import RunConfig
from gdmix.data.write import atomic_file, check_replaceable, locked_folder, write_json
from gdmix.errors import ConfigError, ModelError
from gdmix.runs import changed_setting, files_of, scratch_folder
from gdmix.tuning.search import Trial, Tuning
from gdmix.tuning.space import with_values

BEST, TRIALS, LOG = "best.yaml", "trials.csv", "tune.log"
_RUN, _INPUTS = "run.yaml", "inputs.json"
_OWN = (_RUN, _INPUTS, TRIALS, BEST, LOG, "scratch")
_BEST_RUN = "best"
_FACTS = ("trial", "passes", "converged", "seconds")


class Study:
    """The folder of one search.

    Parameters
    ----------
    folder
        Its place.
    config
        What is searched, with `tune`.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self._config = folder, config

    @property
    def scratch(self) -> Path:
        """Where arrays beyond memory lie."""
        return scratch_folder(self._config, self.folder.resolve())

    @contextmanager
    def opened(self, overwrite: bool, settings: Sequence[str]) -> Iterator[list[Trial]]:
        """Make the folder, or go on with it; yields the trials that are finished.

        A folder without any trial is removed at the end.

        Parameters
        ----------
        overwrite
            Forget an earlier search.
        settings
            Those that are searched.

        Raises
        ------
        ConfigError
            If the folder holds a search with other settings or other data.
        OutputError
            If it holds anything else, or can't be written.
        """
        folder = self.folder
        check_replaceable(folder, True, _is_study)
        folder.mkdir(exist_ok=True)
        with locked_folder(folder):
            try:
                if overwrite or not (folder / TRIALS).exists():
                    self._clear()
                    self._begin()
                else:
                    self._check_same()
                yield self._read(settings)
            finally:
                shutil.rmtree(self.scratch, ignore_errors=True)
                if not (folder / TRIALS).exists():
                    self._clear()
                    if not any(folder.iterdir()):
                        folder.rmdir()

    def _clear(self) -> None:
        """Remove all but the run of an earlier best configuration."""
        for path in self.folder.iterdir():
            if path.name != _BEST_RUN:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _begin(self) -> None:
        self._config.to_yaml(self.folder / _RUN)
        write_json(files_of(self._config), self.folder / _INPUTS)

    def _check_same(self) -> None:
        before = RunConfig.from_yaml(self.folder / _RUN)
        setting = changed_setting(before, self._config)
        if setting is None and _method(before) != _method(self._config):
            setting = "tune"
        if setting is not None:
            raise ConfigError(
                f"{self.folder}: the search there had another '{setting}'; "
                "use its settings, or start anew with --overwrite"
            )
        if json.loads((self.folder / _INPUTS).read_text(encoding="utf-8")) != files_of(
            self._config
        ):
            raise ConfigError(
                f"{self.folder}: the data have changed since that search; "
                "start anew with --overwrite"
            )

    def _read(self, settings: Sequence[str]) -> list[Trial]:
        path = self.folder / TRIALS
        if not path.exists():
            return []
        try:
            with path.open(encoding="utf-8", newline="") as file:
                return [
                    Trial(
                        int(row["trial"]),
                        {key: float(row[key]) for key in settings},
                        {name: float(row[name]) for name in self._config.metrics},
                        int(row["passes"]),
                        {"True": True, "False": False}.get(row["converged"]),
                        float(row["seconds"]),
                    )
                    for row in csv.DictReader(file)
                ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: can't be read: {error}") from None

    def save(self, tuning: Tuning) -> None:
        """Write the trials and the best configuration.

        Raises
        ------
        OutputError
            If the system refuses to write; what was there is still whole.
        """
        metrics = self._config.metrics
        with (
            atomic_file(self.folder / TRIALS) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([_FACTS[0], *tuning.space, *metrics, *_FACTS[1:]])
            for t in tuning.trials:
                values = [t.values[key] for key in tuning.space]
                judged = [t.metrics[name] for name in metrics]
                converged = "" if t.converged is None else t.converged
                writer.writerow([t.number, *values, *judged, t.passes, converged, t.seconds])
        with atomic_file(self.folder / BEST) as temporary:
            self.best_config(tuning).to_yaml(temporary)

    def best_config(self, tuning: Tuning) -> RunConfig:
        """Return what `best.yaml` holds."""
        best = with_values(self._config, tuning.best.values)
        return best.model_copy(update={"output": self.folder / _BEST_RUN, "tune": None})


def study_folder(output: Path) -> Path:
    """Return where the search over a run's weights goes, unless told otherwise."""
    return output.with_name(f"{output.name}.tune")


def _is_study(folder: Path) -> bool:
    return all(
        path.name in (*_OWN, _BEST_RUN) or path.name.endswith(".partial")
        for path in folder.iterdir()
    )


def _method(config: RunConfig) -> object:
    """Return the settings of a search but for when it ends; those of a grid depend on it."""
    assert config.tune is not None
    ends = {"timeout"} if config.tune.method == "grid" else {"timeout", "trials"}
    return config.tune.model_dump(exclude=ends)
