"""A configuration of LinkedIn's GDMix as one of ours.

Its keys, `output_dir`, `fixed_effect_config` and `random_effect_config`, tell it from ours. Each
coordinate has a folder of rows of its own; their columns are put together by uid
(`data.join`). GDMix trains one pass and writes Avro; so does what comes out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gdmix.compat import detext
from gdmix.config import ModelConfig, RunConfig, read_yaml
from gdmix.data.read import open_rows
from gdmix.errors import ConfigError, did_you_mean

_SECTIONS = ("fixed_effect_config", "random_effect_config")
_CLUSTER = ("spark_config", "tfjob_config")
_TOP = ("output_dir", *_SECTIONS, *_CLUSTER)

# Keys of a coordinate and what they hold; then those that have no meaning here.
_COORDINATE: dict[str, type] = {
    "training_data_dir": str,
    "validation_data_dir": str,
    "feature_bag": str,
    "feature_file": str,
    "l2_reg_weight": float,
    "regularize_bias": bool,
    "has_intercept": bool,
    "offset_column_name": str,
    "fixed_effect_variance_mode": str,
    "random_effect_variance_mode": str,
    "gdmix_config": dict,
}
_RANDOM: dict[str, type] = {"partition_entity": str, "num_partitions": int}
_SOLVER = ("lbfgs_tolerance", "num_of_lbfgs_iterations", "num_of_lbfgs_curvature_pairs")
_WITHOUT_MEANING = (
    *("metadata_file", "data_format", "batch_size", "sparsity_threshold", "output_model_dir"),
    *("copy_to_local", "num_server_creation_retries", "retry_interval", "delayed_exit_in_seconds"),
    *("disable_fixed_effect_scoring_after_training", "enable_local_indexing"),
    *("max_training_queue_size", "training_queue_timeout_in_seconds", "num_of_consumers"),
    *("disable_random_effect_scoring_after_training",),
)
_VARIANCE = {False: "fixed_effect_variance_mode", True: "random_effect_variance_mode"}
_VARIANCES = ("NONE", "SIMPLE", "FULL")
# Read without a word: they say what is so here anyway, or where GDMix finds what we find.
_SILENT = {"metadata_file", "data_format", "enable_local_indexing"}
_SHARED: dict[str, type] = {
    "model_type": str,
    "label_column_name": str,
    "uid_column_name": str,
    "weight_column_name": str,
    "prediction_score_column_name": str,
    "prediction_score_per_coordinate_column_name": str,
}
_SHARED_WITHOUT_MEANING = (
    *("action", "stage", "training_score_dir", "validation_score_dir", "partition_list_file"),
)
_WORDS: dict[Any, str] = {
    str: "text",
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    (str, list): "a name or a list of names",
    (int, list, str): "a number or a list of numbers",
}


@dataclass(frozen=True)
class LoadedRun:
    """A configuration.

    Attributes
    ----------
    config
        What runs.
    notes
        A line for each thing of the file that means nothing here.
    """

    config: RunConfig
    notes: tuple[str, ...] = ()


def load_run(path: Path, overrides: Mapping[str, str] | None = None) -> LoadedRun:
    """Read a YAML file, ours or GDMix's.

    Parameters
    ----------
    overrides
        As in `RunConfig.from_yaml`; also of a GDMix file the keys are ours.

    Raises
    ------
    ConfigError
        One line per mistake, with the key it is at.
    DataError
        If a GDMix file names rows that can't be read.
    """
    tree = read_yaml(path)
    if not any(section in tree for section in _SECTIONS):
        return LoadedRun(RunConfig.from_tree(tree, path, overrides))
    file = _GdmixFile(path, tree)
    return LoadedRun(RunConfig.from_tree(file.to_tree(), path, overrides), tuple(file.notes))


def load_description(path: Path) -> ModelConfig:
    """Read from a YAML file, ours or GDMix's, which coordinates, features and entities there are.

    A file of ours needs nothing but these: no data, no output.

    Raises
    ------
    ConfigError
        One line per mistake.
    """
    tree = read_yaml(path)
    if any(section in tree for section in _SECTIONS):
        return load_run(path).config
    of_runs = RunConfig.model_fields.keys() - ModelConfig.model_fields.keys()
    fields = {k: v for k, v in tree.items() if v is not None and k not in of_runs}
    try:
        return ModelConfig.of(**fields)
    except ConfigError as error:
        lines = (f"{path}: {line}" for line in str(error).splitlines())
        raise ConfigError("\n".join(lines)) from None


@dataclass
class _Coordinate:
    """A coordinate as GDMix configures it, with its place in the file."""

    name: str
    place: str
    entity: bool
    keys: dict[str, Any]
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def is_detext(self) -> bool:
        """Whether it is a network."""
        return not self.entity and self.shared.get("model_type") == detext.MODEL_TYPE


class _GdmixFile:
    """A GDMix file on its way to ours."""

    def __init__(self, path: Path, tree: Mapping[str, Any]) -> None:
        self._path = path
        self._mistakes: list[str] = []
        self.notes: list[str] = []
        self._check_keys("", tree, _TOP)
        self._coordinates = [
            coordinate
            for section in _SECTIONS
            for coordinate in self._section(section, tree.get(section))
        ]
        output = tree.get("output_dir")
        if not isinstance(output, str) or not output:
            self._mistakes.append("output_dir: is required")
        self._output = output
        for section in _CLUSTER:
            if section in tree:
                self.notes.append(f"{section}: ignored: `engine` and `spark` say where a run works")
        meaningless = {*_SOLVER, *_WITHOUT_MEANING, *_SHARED_WITHOUT_MEANING} - _SILENT
        ignored = dict.fromkeys(
            key
            for c in self._coordinates
            for key in (*c.keys, *c.shared)
            if key in meaningless
            or key == _VARIANCE[not c.entity]
            or (c.is_detext and key in c.keys and key in detext.WITHOUT_MEANING)
        )
        if ignored:
            self.notes.append(f"ignored, as nothing here depends on them: {', '.join(ignored)}")
        if not self._coordinates and not self._mistakes:
            self._mistakes.append("fixed_effect_config: holds no coordinate")
        self._stop()

    def _stop(self) -> None:
        if self._mistakes:
            raise ConfigError("\n".join(f"{self._path}: {line}" for line in self._mistakes))

    def _check_keys(self, place: str, keys: Mapping[str, Any], known: Any) -> None:
        for key in keys:
            if key not in known:
                hint = did_you_mean(str(key), known)
                where = f"{place}.{key}" if place else key
                self._mistakes.append(f"{where}: unknown key{hint}")

    def _check_types(self, place: str, keys: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        for key, value in keys.items():
            kind = known.get(key, object)
            if value is None or isinstance(value, kind) and not _is_odd_bool(value, kind):
                continue
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                continue
            word = _WORDS.get(kind, "keys and values")
            self._mistakes.append(f"{place}.{key}: should be {word} (got {value!r})")

    def _section(self, section: str, value: Any) -> list[_Coordinate]:
        if value is None:
            return []
        if not isinstance(value, Mapping):
            self._mistakes.append(f"{section}: should hold a coordinate's name and its keys")
            return []
        if section == "fixed_effect_config" and len(value) > 1:
            self._mistakes.append(f"{section}: holds {len(value)} coordinates; GDMix has one")
        found = []
        for name, keys in value.items():
            place = f"{section}.{name}"
            if not isinstance(keys, Mapping):
                self._mistakes.append(f"{place}: should hold keys and values")
                continue
            entity = section == "random_effect_config"
            shared = keys.get("gdmix_config")
            if isinstance(shared, Mapping) and shared.get("model_type") == detext.MODEL_TYPE:
                found += [self._network(str(name), place, keys, shared)] if not entity else []
                if entity:
                    what = f"{place}.gdmix_config.model_type: '{detext.MODEL_TYPE}'"
                    self._mistakes.append(f"{what} is for the fixed effect")
                continue
            known = _COORDINATE | (_RANDOM if entity else {})
            self._check_keys(place, keys, (*known, *_SOLVER, *_WITHOUT_MEANING))
            self._check_types(place, keys, known)
            required = ("training_data_dir", *(("partition_entity",) if entity else ()))
            self._mistakes += [f"{place}.{k}: is required" for k in required if not keys.get(k)]
            mode = keys.get(_VARIANCE[entity])
            if isinstance(mode, str) and mode.upper() not in _VARIANCES:
                what = f"{place}.{_VARIANCE[entity]}: '{mode}'"
                self._mistakes.append(f"{what} is none of {', '.join(_VARIANCES)}")
            keys = {k: v for k, v in keys.items() if v is not None}
            shared = dict(shared) if isinstance(shared, Mapping) else {}
            self._check_shared(place, shared)
            found.append(_Coordinate(str(name), place, entity, keys, shared))
        return found

    def _check_shared(self, place: str, shared: Mapping[str, Any]) -> None:
        inside = f"{place}.gdmix_config"
        self._check_keys(inside, shared, (*_SHARED, *_SHARED_WITHOUT_MEANING))
        self._check_types(inside, shared, _SHARED)

    def _network(
        self, name: str, place: str, keys: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> _Coordinate:
        """Return a DeText model, its rows named as those of other coordinates are."""
        self._check_keys(place, keys, ("gdmix_config", *detext.KNOWN))
        self._check_types(place, keys, detext.MAPPED)
        self._check_shared(place, shared)
        if not keys.get("train_file"):
            self._mistakes.append(f"{place}.train_file: is required")
        own = {k: v for k, v in keys.items() if v is not None and k != "gdmix_config"}
        own["training_data_dir"] = own.get("train_file", "")
        if own.get("dev_file"):
            own["validation_data_dir"] = own["dev_file"]
        return _Coordinate(name, place, False, own, dict(shared))

    def to_tree(self) -> dict[str, Any]:
        """Return the same in our keys; it opens the rows, to see which columns there are.

        Raises
        ------
        ConfigError
            One line per mistake.
        """
        first = self._coordinates[0]
        task = self._one("model_type", "logistic_regression")
        if task not in ("logistic_regression", "linear_regression"):
            known = ("logistic_regression", "linear_regression")
            self._mistakes.append(
                f"{first.place}.gdmix_config.model_type: unknown '{task}'"
                f"{did_you_mean(str(task), known)}; known: {', '.join(known)}"
            )
        uid = self._one("uid_column_name", "uid")
        label = self._one("label_column_name", "response")
        data = self._data()
        self._stop()
        names = open_rows(first.keys["training_data_dir"]).schema.names
        network = self._translated(first, names, label) if first.is_detext else None
        columns = {"uid": uid, "response": network.label if network else label}
        weight = first.shared.get("weight_column_name")
        offset = first.keys.get("offset_column_name")
        # GDMix, too, does without those that the rows don't have.
        columns |= {"weight": weight} if weight in names else {}
        columns |= {"offset": offset} if offset in names else {}
        bags = {c.name: self._bag(c) for c in self._coordinates if not c.is_detext}
        specs = {
            c.name: self._spec(c, task, list(bags[c.name]))
            for c in self._coordinates
            if not c.is_detext
        }
        if network:
            bags = {first.name: network.bags, **bags}
            specs = {first.name: network.spec, **specs}
        self._stop()
        score = first.shared.get("prediction_score_column_name", "predictionScore")
        own = first.shared.get(
            "prediction_score_per_coordinate_column_name", "predictionScorePerCoordinate"
        )
        random = [c for c in self._coordinates if c.entity]
        return {
            "task": task,
            "data": data,
            "columns": columns,
            "features": {name: bag for found in bags.values() for name, bag in found.items()},
            "coordinates": specs,
            "output": self._output,
            "format": "avro",
            "avro": {
                "partitions": {c.name: c.keys.get("num_partitions", 1) for c in random},
                "score": score,
                "own_score": own,
            },
        }

    def _translated(self, c: _Coordinate, names: list[str], label: str) -> detext.Detext:
        return detext.translate(
            c.keys, names, label, c.place, self._mistakes.append, self.notes.append
        )

    def _one(self, key: str, default: str) -> Any:
        """Return what all coordinates say of a key that is one for the whole run here."""
        of_linear = [c for c in self._coordinates if not c.is_detext]
        among = of_linear if key == "model_type" else self._coordinates
        if not among:
            return default
        first = among[0]
        value = first.shared.get(key, default)
        for c in among[1:]:
            if c.shared.get(key, value) != value:
                self._mistakes.append(
                    f"{c.place}.gdmix_config.{key}: '{c.shared[key]}', but '{value}' in "
                    f"{first.place}; it has to be one for all"
                )
        return value

    def _data(self) -> dict[str, Any]:
        """Return the rows: those of the first coordinate, and the others' columns."""
        first = self._coordinates[0]
        sources: dict[str, dict[str, Any]] = {}
        for c in self._coordinates:
            train, validation = c.keys.get("training_data_dir"), c.keys.get("validation_data_dir")
            if bool(validation) != bool(first.keys.get("validation_data_dir")):
                self._mistakes.append(
                    f"{c.place}.validation_data_dir: name one for every coordinate, or for none"
                )
            source = {"train": train, "validation": validation or None}
            known = sources.setdefault(str(train), source)
            if known["validation"] != source["validation"]:
                self._mistakes.append(
                    f"{c.place}: shares its training_data_dir with another coordinate, but not "
                    "its validation_data_dir"
                )
        base, *others = sources
        joined = [sources[k] | {"prefix": self._prefix(k)} for k in others]
        return sources[base] | ({"joined": joined} if joined else {})

    def _prefix(self, folder: str) -> str:
        """Return what keeps the columns of a folder apart: two folders may have a bag's name."""
        own = [c for c in self._coordinates if c.keys.get("training_data_dir") == folder]
        bags = {c.keys.get("feature_bag") for c in own} - {None}
        before = self._coordinates[: self._coordinates.index(own[0])]
        clash = bags & {c.keys.get("feature_bag") for c in before}
        return f"{own[0].name}." if clash else ""

    def _bag(self, c: _Coordinate) -> dict[str, Any]:
        """Return a coordinate's bag by name; none of an intercept-only model."""
        bag = c.keys.get("feature_bag")
        if bag is None:
            return {}
        base = c.keys["training_data_dir"] == self._coordinates[0].keys["training_data_dir"]
        prefix = "" if base else self._prefix(c.keys["training_data_dir"])
        names = open_rows(c.keys["training_data_dir"]).schema.names
        pair = [f"{bag}_indices", f"{bag}_values"]
        columns = pair if pair[0] in names else [bag]
        if columns[0] not in names:
            hint = did_you_mean(bag, [n.removesuffix("_indices") for n in names])
            self._mistakes.append(
                f"{c.place}.feature_bag: the rows have neither '{pair[0]}' nor '{bag}'{hint}"
            )
        spec: dict[str, Any] = {"columns": [prefix + column for column in columns]}
        if "feature_file" in c.keys:
            spec["feature_list"] = c.keys["feature_file"]
        return {prefix + bag: spec}

    @staticmethod
    def _spec(c: _Coordinate, task: str, bags: list[str]) -> dict[str, Any]:
        l2 = c.keys.get("l2_reg_weight", 1.0)
        if task == "linear_regression" and not c.entity:
            l2 = l2 / 2  # its squared loss has no 1/2
        return {
            "type": "random_effect" if c.entity else "fixed_effect",
            **({"entity": c.keys["partition_entity"]} if c.entity else {}),
            "features": bags,
            "l2": l2,
            "intercept": c.keys.get("has_intercept", True),
            "regularize_intercept": c.keys.get("regularize_bias", True),
            "variance": c.keys.get(_VARIANCE[c.entity], "none").lower(),
        }


def _is_odd_bool(value: Any, kind: type) -> bool:
    """Whether a truth value stands where a number should: Python takes it for one."""
    return isinstance(value, bool) and kind in (int, float)
