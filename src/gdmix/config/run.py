"""What is trained, of which rows, and where results go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML

from gdmix.config.base import Paths, Strict, config_errors, known_as
from gdmix.config.coordinates import (
    NAME,
    BinnedColumn,
    ColumnRoles,
    CoordinateSpec,
    ExternalScores,
    FeatureBag,
    FixedEffect,
    LinearSpec,
    RandomEffect,
)
from gdmix.config.metrics import DEFAULT_METRICS, Task, parse_metric
from gdmix.config.yaml_files import override, read_yaml
from gdmix.errors import ConfigError, did_you_mean

ValidateMode = Literal["strict", "drop", "off"]

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


class ModelConfig(Strict):
    """What is trained and how: everything but where rows come from and results go."""

    task: Task = "logistic_regression"
    columns: ColumnRoles = ColumnRoles()
    features: dict[str, FeatureBag] = {}
    coordinates: dict[str, CoordinateSpec] = Field(min_length=1)
    passes: int = Field(1, ge=1, description="rounds over all coordinates, at most")
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
    metrics: tuple[str, ...] = Field((), description="default: by task")
    validate_mode: ValidateMode = Field("strict", alias="validate")
    initial_model: Path | None = Field(
        None, description="model folder to start from; coordinates are matched by name"
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
        for name, spec in self.linear.items():
            columns: dict[str, str] = {}
            for bag in spec.features:
                if bag not in self.features:
                    hint = did_you_mean(bag, self.features)
                    known = ", ".join(self.features) or "none is defined"
                    raise PydanticCustomError(
                        "bag",
                        f"coordinates.{name}.features: no feature bag '{bag}'{hint}; "
                        f"bags under `features`: {known}",
                    )
                for column in self.features[bag].columns:
                    if column in columns:
                        raise PydanticCustomError(
                            "bag",
                            f"coordinates.{name}.features: column '{column}' is in the bags "
                            f"'{columns[column]}' and '{bag}'; a coordinate takes it once",
                        )
                    columns[column] = bag
        return self

    @model_validator(mode="after")
    def _entities_have_names_of_their_own(self) -> Self:
        known: dict[str, RandomEffect] = {}
        for spec in self.random_effects:
            other = known.setdefault(spec.key, spec)
            if other.derived != spec.derived:
                raise PydanticCustomError(
                    "entity",
                    f"coordinates.{spec.name}.entity: '{spec.key}' names another entity in "
                    f"coordinates.{other.name}; rename the column",
                )
        return self

    @model_validator(mode="after")
    def _something_is_fitted(self) -> Self:
        for name, spec in self.linear.items():
            if spec.locked and self.initial_model is None:
                raise PydanticCustomError(
                    "locked",
                    f"coordinates.{name}: locked needs initial_model: the model to keep it from",
                )
        if not self.fitted:
            raise PydanticCustomError(
                "locked", "coordinates: nothing to fit: all are locked or external_scores"
            )
        return self

    @property
    def linear(self) -> dict[str, LinearSpec]:
        """Coordinates that have coefficients, in order."""
        specs = self.coordinates.items()
        return {name: s for name, s in specs if isinstance(s, FixedEffect | RandomEffect)}

    @property
    def fitted(self) -> dict[str, LinearSpec]:
        """Coordinates that are fitted, in order."""
        return {name: spec for name, spec in self.linear.items() if not spec.locked}

    @property
    def used_features(self) -> dict[str, FeatureBag]:
        """Feature bags that some coordinate uses."""
        used = {bag for spec in self.linear.values() for bag in spec.features}
        return {name: bag for name, bag in self.features.items() if name in used}

    @property
    def entities(self) -> tuple[str, ...]:
        """Names of the entities of the random effects, each once."""
        return tuple(dict.fromkeys(spec.key for spec in self.random_effects))

    @property
    def random_effects(self) -> list[RandomEffect]:
        """The random effects, in order."""
        return [s for s in self.coordinates.values() if isinstance(s, RandomEffect)]

    @property
    def derived_entities(self) -> dict[str, tuple[str | BinnedColumn, ...]]:
        """What those of the entities are derived from that no column holds."""
        specs = self.random_effects
        return {spec.key: spec.derived for spec in specs if spec.derived is not None}

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
    avro: AvroLayout = Field(AvroLayout(), description="details of `format: avro`")

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
