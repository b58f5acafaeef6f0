"""What is trained, of which rows, and where results go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML

from gdmix.config.base import Paths, Strict, config_errors, known_as
from gdmix.config.coordinates import (
    AUTO,
    NAME,
    BinnedColumn,
    ColumnRoles,
    ExternalScores,
    FeatureBag,
    FixedEffect,
    LinearSpec,
    RandomEffect,
)
from gdmix.config.deep import DeepFixedEffect
from gdmix.config.engine import EngineName, SparkConfig
from gdmix.config.kinds import CoordinateSpec
from gdmix.config.metrics import DEFAULT_METRICS, Task, parse_metric
from gdmix.config.tuning import TuneConfig
from gdmix.config.yaml_files import override, read_yaml
from gdmix.errors import ConfigError, did_you_mean

ValidateMode = Literal["strict", "drop", "off"]
_AUTO_PASSES = 10  # each pass after the first is an estimate from the one before


def _any_auto(tree: Mapping[str, Any]) -> bool:
    specs = tree.get("coordinates") or ()
    values = specs.values() if isinstance(specs, Mapping) else specs
    if not isinstance(values, Iterable):
        return False  # whatever it is, it is refused elsewhere
    weights = (s.get("l2") if isinstance(s, Mapping) else getattr(s, "l2", None) for s in values)
    return any(weight in AUTO for weight in weights if isinstance(weight, str))


_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(b|[kmgt]b|[kmgt]ib)?", re.IGNORECASE)
_UNITS = {"b": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgt", 1)
    for unit, base in ((f"{letter}b", 1000), (f"{letter}ib", 1024))
}
_LEAST_LIMIT = 10**9  # the program itself, and a few batches of rows


def _refuse_limit(value: Any) -> Any:
    raise PydanticCustomError(
        "memory", f"{value!r} is no limit; give a number of bytes, or such as 4GB; at least 1GB"
    )


@known_as("prior")
class Prior(Strict):
    """An earlier model as a Gaussian prior: incremental training.

    Its coefficients are the means. The precisions come from the Hessians or variances that are
    saved with it. An entity or a feature that it lacks has the L2 weight alone.
    """

    model: Path = Field(description="model folder; coordinates are matched by name")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="how much it counts, beside the new rows"
    )
    forgetting: float = Field(
        1.0, gt=0, le=1, description="share that is kept; the rest gives way to the L2 weight"
    )


class ModelConfig(Strict):
    """What is trained and how: everything but where rows come from and results go."""

    task: Task = "logistic_regression"
    columns: ColumnRoles = ColumnRoles()
    features: dict[str, FeatureBag] = {}
    coordinates: dict[str, CoordinateSpec] = Field(min_length=1)
    passes: int = Field(
        1, ge=1, description="rounds over all coordinates, at most; with l2: auto default 10"
    )
    solver: Literal["descent", "joint"] = Field(
        "descent", description="joint: after the passes, fit all coordinates at once"
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="stop when a pass changes the joint objective by less than this share of it",
    )
    select: Literal["last", "best"] = Field(
        "last", description="model after the last step, or the best by the first metric"
    )
    early_stopping: int | None = Field(
        None, ge=1, description="stop after that many passes that did not better the first metric"
    )
    metrics: tuple[str, ...] = Field((), description="default: by task")
    validate_mode: ValidateMode = Field("strict", alias="validate")
    initial_model: Path | None = Field(
        None, description="model folder to start from; coordinates are matched by name"
    )
    prior: Prior | None = Field(
        None, description="earlier model whose coefficients are the mean of a Gaussian prior"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of samples of rows")
    threads: int | None = Field(None, ge=1, description="default: all cores of this process")
    memory_limit: int | None = Field(
        None,
        description="bytes, or such as 4GB: what is beyond lies in scratch files; "
        "default: six tenths of what there is",
    )
    scratch: Path | None = Field(
        None, description="folder for scratch files; default: beside the output"
    )

    @field_validator("memory_limit", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        match = _BYTES.fullmatch(str(value))
        if value is None or match is None:
            return value if value is None else _refuse_limit(value)
        size = int(float(match[1]) * _UNITS[(match[2] or "b").lower()])
        return size if size >= _LEAST_LIMIT else _refuse_limit(value)

    @field_validator("coordinates", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            for position, spec in enumerate(value):
                if not getattr(spec, "name", ""):
                    raise PydanticCustomError("name", f"coordinate {position + 1} has no name")
            names = [spec.name for spec in value]
            repeated = sorted({n for n in names if names.count(n) > 1})
            if repeated:
                raise PydanticCustomError("repeated", f"two coordinates are named '{repeated[0]}'")
            return dict(zip(names, value, strict=True))
        if isinstance(value, Mapping):
            for key, spec in value.items():
                if isinstance(spec, Mapping) and "name" in spec:
                    raise PydanticCustomError(
                        "name", f"'{key}' is the coordinate's name already; remove its key `name`"
                    )
            return {
                name: {**spec, "name": str(name)} if isinstance(spec, Mapping) else spec
                for name, spec in value.items()
            }
        return value

    @field_validator("features")
    @classmethod
    def _plain_bag_names(cls, bags: dict[str, FeatureBag]) -> dict[str, FeatureBag]:
        for name in bags:
            if not NAME.fullmatch(name):
                raise PydanticCustomError(
                    "name",
                    f"'{name}' can't name a feature bag: it becomes a file; "
                    "use letters, digits, '-', '_', '.'",
                )
        return bags

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_metric(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                parse_metric(name)
            except ConfigError as error:
                raise PydanticCustomError("metric", str(error)) from None
        return names

    @model_validator(mode="before")
    @classmethod
    def _metrics_of_task(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and not value.get("metrics"):
            task = value.get("task", "logistic_regression")
            default = next((names for t, names in DEFAULT_METRICS.items() if t == task), None)
            return {**value, "metrics": default} if default else value
        return value

    @model_validator(mode="after")
    def _bags_exist(self) -> Self:
        for name, spec in self.coordinates.items():
            columns: dict[str, str] = {}
            for bag in spec.bags:
                if bag not in self.features:
                    hint = did_you_mean(bag, self.features)
                    known = ", ".join(self.features) or "none is defined"
                    raise PydanticCustomError(
                        "bag",
                        f"coordinates.{name}.{spec.place_of(bag)}: no feature bag '{bag}'{hint}; "
                        f"bags under `features`: {known}",
                    )
                for column in self.features[bag].columns:
                    if column in columns:
                        raise PydanticCustomError(
                            "bag",
                            f"coordinates.{name}.{spec.place_of(bag)}: column '{column}' is in "
                            f"the bags '{columns[column]}' and '{bag}'; a coordinate takes it once",
                        )
                    columns[column] = bag
        return self

    @model_validator(mode="after")
    def _gaps_have_a_reader(self) -> Self:
        for name, bag in self.features.items():
            if bag.missing == "keep" and not self._may_have_gaps(name):
                raise PydanticCustomError(
                    "bag",
                    f"features.{name}.missing: keep is for a bag that only the `dense` of deep "
                    "coordinates uses, without min_count, max_features, feature_list, hash_buckets",
                )
        return self

    def _may_have_gaps(self, bag: str) -> bool:
        """Whether all that use a bag of plain columns know what to do about a missing number."""
        own = self.features[bag]
        plain = not own.is_selected and own.feature_list is None and own.hash_buckets is None
        specs = self.coordinates.values()
        return plain and all(bag in spec.gap_bags for spec in specs if bag in spec.bags)

    @model_validator(mode="after")
    def _rankers_are_alone(self) -> Self:
        for name, spec in self.fitted.items():
            loss = getattr(spec, "loss", "pointwise")
            if loss != "pointwise" and len(self.fitted) > 1:
                other = next(n for n in self.fitted if n != name)
                raise PydanticCustomError(
                    "loss",
                    f"coordinates.{name}.loss: {loss} fits the order within groups alone: its "
                    f"scores have no level that '{other}' could be fitted to; use pointwise, or "
                    "train it without other coordinates",
                )
        return self

    @model_validator(mode="after")
    def _entities_have_names_of_their_own(self) -> Self:
        known: dict[str, CoordinateSpec] = {}
        for spec in self.coordinates.values():
            for key in spec.key_columns:
                other = known.setdefault(key, spec)
                if other.derived_entities.get(key) != spec.derived_entities.get(key):
                    raise PydanticCustomError(
                        "entity",
                        f"coordinates.{spec.name}.entity: '{key}' names another entity in "
                        f"coordinates.{other.name}; rename the column",
                    )
        return self

    @model_validator(mode="before")
    @classmethod
    def _passes_of_auto(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("passes") is None:
            rest = {key: v for key, v in value.items() if key != "passes"}
            return {**rest, "passes": _AUTO_PASSES} if _any_auto(value) else rest
        return value

    @model_validator(mode="after")
    def _penalties_have_a_solver(self) -> Self:
        for name, spec in self.fitted_linear.items():
            kinds = {
                "l1": spec.l1 > 0,
                "bounds": bool(getattr(spec, "bounds", None)),
                "normalization: standardize of a regularized intercept": (
                    spec.normalization == "standardize" and spec.regularizes_intercept
                ),
            }
            for key, is_set in kinds.items():
                if is_set and self.solver == "joint":
                    raise PydanticCustomError(
                        "penalty",
                        f"coordinates.{name}: solver 'joint' has no {key}; use more passes instead",
                    )
                if is_set and self.prior is not None:
                    raise PydanticCustomError(
                        "penalty", f"coordinates.{name}: {key} and prior: choose one"
                    )
            if spec.is_auto and self.prior is not None:
                raise PydanticCustomError(
                    "penalty",
                    f"coordinates.{name}: l2 '{spec.l2}' and prior: choose one; "
                    "use the weight that the earlier run has found",
                )
        if self.prior is not None and self.solver == "joint":
            raise PydanticCustomError("penalty", "prior: solver 'joint' has none; use more passes")
        if self.prior is not None and self.initial_model is not None:
            raise PydanticCustomError(
                "prior", "prior: its model is where training starts; remove initial_model"
            )
        return self

    @property
    def auto(self) -> dict[str, LinearSpec]:
        """Coordinates whose L2 weights are estimated."""
        return {name: spec for name, spec in self.fitted_linear.items() if spec.is_auto}

    @property
    def earlier_model(self) -> Path | None:
        """The model that training starts from."""
        return self.initial_model if self.prior is None else self.prior.model

    @model_validator(mode="after")
    def _something_is_fitted(self) -> Self:
        for name in self.locked:
            if self.earlier_model is None:
                raise PydanticCustomError(
                    "locked",
                    f"coordinates.{name}: locked needs initial_model: the model to keep it from",
                )
        if not self.fitted:
            raise PydanticCustomError(
                "locked", "coordinates: nothing to fit: all are locked or external_scores"
            )
        return self

    @model_validator(mode="after")
    def _joint_is_linear(self) -> Self:
        for name in self.fitted.keys() - self.linear.keys() if self.solver == "joint" else ():
            raise PydanticCustomError(
                "solver",
                f"coordinates.{name}: solver 'joint' fits fixed and random effects only, "
                f"not type {self.coordinates[name].type}; use more passes instead",
            )
        return self

    @model_validator(mode="after")
    def _negatives_can_be_sampled(self) -> Self:
        for name, spec in self.linear.items():
            if spec.negative_sampling is None:
                continue
            where = f"coordinates.{name}.negative_sampling"
            if self.task != "logistic_regression":
                raise PydanticCustomError(
                    "sampling", f"{where}: is for logistic_regression, not {self.task}"
                )
            if self.solver == "joint":
                raise PydanticCustomError(
                    "sampling",
                    f"{where}: solver 'joint' fits all rows at once; use more passes instead",
                )
        return self

    @property
    def linear(self) -> dict[str, LinearSpec]:
        """Coordinates that have coefficients, in order."""
        specs = self.coordinates.items()
        return {name: s for name, s in specs if isinstance(s, FixedEffect | RandomEffect)}

    @property
    def fitted(self) -> dict[str, CoordinateSpec]:
        """Coordinates that are fitted, in order."""
        return {name: spec for name, spec in self.coordinates.items() if spec.is_fitted}

    @property
    def locked(self) -> dict[str, CoordinateSpec]:
        """Coordinates that are kept as an earlier model has them, in order."""
        specs = self.coordinates.items()
        return {name: spec for name, spec in specs if getattr(spec, "locked", False)}

    @property
    def fitted_linear(self) -> dict[str, LinearSpec]:
        """Coordinates that have coefficients and are fitted, in order."""
        return {name: spec for name, spec in self.linear.items() if spec.is_fitted}

    @property
    def used_features(self) -> dict[str, FeatureBag]:
        """Feature bags that some coordinate uses."""
        used = {bag for spec in self.coordinates.values() for bag in spec.bags}
        bags = {name: bag for name, bag in self.features.items() if name in used}
        return {
            name: bag.model_copy(update={"missing": "keep"}) if self._may_have_gaps(name) else bag
            for name, bag in bags.items()
        }

    @property
    def judged_on_validation(self) -> list[str]:
        """Coordinates whose fit looks at validation rows."""
        deep = (spec for spec in self.fitted.values() if isinstance(spec, DeepFixedEffect))
        return [spec.name for spec in deep if spec.training.judge_on_validation]

    @property
    def entities(self) -> tuple[str, ...]:
        """Names of the keys that coordinates need of rows, each once."""
        specs = self.coordinates.values()
        return tuple(dict.fromkeys(key for spec in specs for key in spec.key_columns))

    @property
    def optional_entities(self) -> frozenset[str]:
        """Those of them that no coordinate insists on."""
        specs = self.coordinates.values()
        needed = {key for s in specs for key in s.key_columns if key not in s.optional_keys}
        return frozenset(self.entities) - needed

    @property
    def text_keys(self) -> frozenset[str]:
        """Those of them that are nothing but texts: no columns of score files."""
        specs = self.coordinates.values()
        others = {key for s in specs for key in s.key_columns if key not in s.text_keys}
        return frozenset(self.entities) - others - set(self.group_columns)

    @property
    def random_effects(self) -> list[RandomEffect]:
        """The random effects, in order."""
        return [s for s in self.coordinates.values() if isinstance(s, RandomEffect)]

    @property
    def derived_entities(self) -> dict[str, tuple[str | BinnedColumn, ...]]:
        """What those of the entities are derived from that no column holds."""
        specs = self.coordinates.values()
        return {key: parts for spec in specs for key, parts in spec.derived_entities.items()}

    @property
    def group_columns(self) -> tuple[str, ...]:
        """Grouping columns of the metrics, each once."""
        columns = (parse_metric(m).column for m in self.metrics)
        return tuple(dict.fromkeys(c for c in columns if c))

    @staticmethod
    def of(**fields: Any) -> ModelConfig:
        """Build from Python values.

        Raises
        ------
        ConfigError
            One line per mistake.
        """
        with config_errors(""):
            return ModelConfig(**fields)


@known_as("joined")
class JoinedData(Paths):
    """More columns of the same rows, which are found by their uid."""

    prefix: str = Field("", description="of the names of these columns")


@known_as("data")
class DataConfig(Paths):
    """Where rows come from: a file, a folder, a glob pattern, or a list of these."""

    joined: tuple[JoinedData, ...] = Field((), description="more columns of the same rows, by uid")

    @model_validator(mode="after")
    def _joined_alike(self) -> Self:
        for source in self.joined:
            if (source.validation is None) != (self.validation is None):
                raise PydanticCustomError(
                    "joined", "joined: name validation rows here if data.validation does, only then"
                )
        return self


@known_as("avro")
class AvroLayout(Strict):
    """How `format: avro` names and parts files; the defaults are those of LinkedIn's GDMix."""

    partitions: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="random effect to its number of files; default 1"
    )
    score: str = Field("predictionScore", description="field of the score, offset included")
    own_score: str = Field(
        "predictionScorePerCoordinate", description="field of the coordinate's own score"
    )


@known_as("")
class RunConfig(ModelConfig):
    """A whole run: what a YAML file holds."""

    data: DataConfig
    output: Path = Field(description="run folder to write")
    format: Literal["parquet", "avro"] = Field(
        "parquet", description="of models and scores; avro: as GDMix and Photon ML have them"
    )
    output_models: Literal["none", "best", "all"] = Field(
        "best", description="the one that was kept; all: also the one after each pass; none"
    )
    avro: AvroLayout = Field(AvroLayout(), description="details of `format: avro`")
    engine: EngineName = Field("local", description="spark: on a cluster; see docs/spark.md")
    spark: SparkConfig = Field(SparkConfig(), description="details of `engine: spark`")
    tune: TuneConfig | None = Field(None, description="what `gdmix tune` searches")

    @model_validator(mode="after")
    def _external_scores_of_all_rows(self) -> Self:
        for name, spec in self.coordinates.items():
            lacks = isinstance(spec, ExternalScores) and spec.validation is None
            if lacks and self.data.validation is not None:
                raise PydanticCustomError(
                    "external",
                    f"coordinates.{name}.validation: is required: scores of data.validation",
                )
        return self

    @model_validator(mode="after")
    def _best_needs_validation(self) -> Self:
        if self.select == "best" and self.data.validation is None:
            raise PydanticCustomError("select", "select: best needs data.validation")
        if self.early_stopping is not None and self.data.validation is None:
            raise PydanticCustomError("select", "early_stopping needs data.validation")
        for name in self.judged_on_validation if self.data.validation is None else ():
            raise PydanticCustomError(
                "select", f"coordinates.{name}.training.judge_on_validation: needs data.validation"
            )
        return self

    @staticmethod
    def from_yaml(path: Path, overrides: Mapping[str, str] | None = None) -> RunConfig:
        """Read a YAML file.

        Parameters
        ----------
        overrides
            Dotted key to a YAML value: ``{"coordinates.per-user.l2": "5"}``.

        Raises
        ------
        ConfigError
            One line per mistake, with the key it is at.
        """
        return RunConfig.from_tree(read_yaml(path), path, overrides)

    @staticmethod
    def from_tree(
        tree: Mapping[str, Any], path: Path, overrides: Mapping[str, str] | None = None
    ) -> RunConfig:
        """Build from what a YAML file holds; see `from_yaml`."""
        # A key without a value, such as a section whose keys are commented out, is no key.
        tree = {key: value for key, value in tree.items() if value is not None}
        for key, value in (overrides or {}).items():
            override(tree, key, value)
        with config_errors(f"{path}: "):
            return RunConfig.model_validate(tree)

    def to_yaml(self, path: Path) -> None:
        """Write every setting, defaults included."""
        yaml = YAML(typ="safe", pure=True)  # the same rules of what needs quotes as in reading
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(self.model_dump(mode="json", by_alias=True), file)
