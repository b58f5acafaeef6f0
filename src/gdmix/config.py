"""The configuration of a run: one schema for YAML and for Python, one validation.

`RunConfig` is what a YAML file is parsed into; `FixedEffect` and `RandomEffect` are the
same specs that a user writes in Python. They are pure data: an engine builds the runtime
coordinate from them. Unknown keys are rejected, and all mistakes are reported at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gdmix.errors import ConfigError, did_you_mean

Task = Literal["logistic_regression", "linear_regression", "poisson_regression"]
ValidateMode = Literal["strict", "drop", "off"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
JOINT = "joint"  # what the history calls the step that fits all coordinates at once
_RESERVED_NAMES = {
    JOINT,
    "checkpoint",
    "inputs.json",
    "feature_index",
    "manifest.json",
    "run.yaml",
    "history.json",
    "run.log",
}


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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ColumnRoles(_Strict):
    """Which column plays which role.

    A role that is named here must exist in the data. One that is not is played by the column
    of the role's own name (`uid`, `response`, `weight`, `offset`) if the data have it; only the
    response is needed, and only to train and to evaluate.
    """

    uid: str | None = Field(None, description="unique int64 row id; else the row's position")
    response: str | None = Field(None, description="label")
    weight: str | None = Field(None, description="non-negative row weight; else 1")
    offset: str | None = Field(None, description="score added before the model's own; else 0")

    def column(self, role: str) -> str:
        """Return the column that plays a role, named or by default."""
        return str(getattr(self, role) or role)


class FeatureBag(_Strict):
    """A named group of columns that becomes one sparse design matrix.

    `columns` holds plain columns (number or bool: one feature; string or categorical: one-hot;
    list of strings: multi-hot; fixed-size list of floats: dense), or columns of
    name-term-value structs, or a pair ``<x>_indices``, ``<x>_values``.
    """

    columns: tuple[str, ...] = Field(min_length=1)
    feature_list: Path | None = Field(
        None, description="CSV of name,term lines that names the indices of a pair"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"columns": (value,)}
        return {"columns": tuple(value)} if isinstance(value, list | tuple) else value

    @field_validator("columns")
    @classmethod
    def _no_repeats(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({c for c in columns if columns.count(c) > 1})
        if repeated:
            raise PydanticCustomError("repeated", f"column '{repeated[0]}' is listed twice")
        return columns


class _Paths(_Strict):
    train: tuple[str, ...]
    validation: tuple[str, ...] | None = None

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | os.PathLike) else value

    @field_validator("train", "validation")
    @classmethod
    def _not_empty(cls, paths: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if paths is not None and not (paths and all(paths)):
            raise PydanticCustomError("empty", "is empty")
        return paths


class _Named(_Strict):
    name: str = Field("", exclude=True, description="key under `coordinates`")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if name and (not _NAME.fullmatch(name) or name in _RESERVED_NAMES):
            raise PydanticCustomError(
                "name",
                f"'{name}' can't name a coordinate: it becomes a folder beside others; "
                "use letters, digits, '-', '_', '.'",
            )
        return name


class _Coordinate(_Named):
    features: tuple[str, ...] = Field((), description="feature bags; none: intercept only")
    intercept: bool = Field(True, description="add an intercept, always the first coefficient")
    l2: float = Field(1.0, ge=0, allow_inf_nan=False, description="L2 weight of the objective")
    tolerance: float = Field(
        1e-8, gt=0, lt=1, description="stop at this gradient norm relative to the one at zero"
    )
    max_iterations: int = Field(100, ge=1, description="Newton iterations")
    locked: bool = Field(False, description="keep initial_model's as it is: score, never fit")

    @field_validator("features", mode="before")
    @classmethod
    def _one_bag(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _something_to_fit(self) -> Self:
        if not self.features and not self.intercept:
            raise PydanticCustomError("empty", "has neither features nor an intercept")
        repeated = sorted({b for b in self.features if self.features.count(b) > 1})
        if repeated:
            raise PydanticCustomError("repeated", f"bag '{repeated[0]}' is listed twice")
        return self


class FixedEffect(_Coordinate):
    """A fixed effect: one linear model over all rows.

    Examples
    --------
    >>> FixedEffect("global", features=["user", "movie"], l2=1.0).name
    'global'
    """

    type: Literal["fixed_effect"] = "fixed_effect"
    regularize_intercept: bool = Field(False, description="put the L2 weight on it too")

    def __init__(self, name: str = "", /, **fields: Any) -> None:
        with _config_errors(f"{type(self).__name__}('{name}'): " if name else None):
            super().__init__(**({**fields, "name": name} if name else fields))


class BinnedColumn(_Strict):
    """A number's bin as an entity: below the first edge, from one up to the next, from the last.

    Examples
    --------
    >>> RandomEffect("per-age", entity={"column": "age", "bins": [18, 25]}).key
    'age[18,25]'
    """

    column: str = Field(min_length=1)
    bins: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(
        min_length=1, description="edges, ascending"
    )

    @field_validator("bins")
    @classmethod
    def _ascending(cls, bins: tuple[float, ...]) -> tuple[float, ...]:
        if any(low >= high for low, high in pairwise(bins)):
            raise PydanticCustomError("bins", "should ascend")
        return bins

    @property
    def edges(self) -> list[str]:
        """The edges as text, from which they can be read back."""
        return [repr(edge).removesuffix(".0") for edge in self.bins]


def _kind_of_entity(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "<columns>"
    return "<bins>" if isinstance(value, Mapping | BinnedColumn) else "<column>"


EntityPart = Annotated[
    Annotated[str, Field(min_length=1), Tag("<column>")] | Annotated[BinnedColumn, Tag("<bins>")],
    Discriminator(_kind_of_entity),
]
Entity = Annotated[
    Annotated[str, Field(min_length=1), Tag("<column>")]
    | Annotated[BinnedColumn, Tag("<bins>")]
    | Annotated[tuple[EntityPart, ...], Tag("<columns>")],
    Discriminator(_kind_of_entity),
]


def _part_name(part: str | BinnedColumn) -> str:
    if isinstance(part, str):
        return part
    return f"{part.column}[{','.join(part.edges)}]"


class RandomEffect(_Coordinate):
    """A random effect: one small linear model per value of the `entity` column.

    Examples
    --------
    >>> RandomEffect("per-user", entity="user_id", features=["movie"], l2=5.0).l2
    5.0
    """

    type: Literal["random_effect"] = "random_effect"
    entity: Entity = Field(
        description="the entity column; or several, or a number's bins: {column: age, bins: [18]}"
    )
    regularize_intercept: bool = Field(
        True, description="if false, an entity with labels of one class has no finite optimum"
    )
    min_active_rows: int = Field(1, ge=1, description="an entity with fewer rows has no model")
    max_active_rows: int | None = Field(
        None, ge=1, description="train an entity on a sample of that many rows; default: all"
    )
    reweight: bool = Field(True, description="let a sample weigh as much as all the entity's rows")

    @field_validator("entity")
    @classmethod
    def _each_part_once(cls, entity: Any) -> Any:
        if isinstance(entity, tuple):
            if len(entity) < 2:
                raise PydanticCustomError("empty", "needs two columns, or one without brackets")
            columns = [p if isinstance(p, str) else p.column for p in entity]
            repeated = sorted({c for c in columns if columns.count(c) > 1})
            if repeated:
                raise PydanticCustomError("repeated", f"column '{repeated[0]}' is listed twice")
        return entity

    @property
    def key(self) -> str:
        """What the entity is called: the column, or what it is derived from."""
        return "+".join(map(_part_name, self._parts))

    @property
    def derived(self) -> tuple[str | BinnedColumn, ...] | None:
        """What the entity is derived from, None where a column holds it."""
        return None if isinstance(self.entity, str) else self._parts

    @property
    def _parts(self) -> tuple[str | BinnedColumn, ...]:
        return self.entity if isinstance(self.entity, tuple) else (self.entity,)

    @model_validator(mode="after")
    def _some_may_be_active(self) -> Self:
        if self.max_active_rows is not None and self.min_active_rows > self.max_active_rows:
            raise PydanticCustomError(
                "rows",
                f"min_active_rows ({self.min_active_rows}) is more than "
                f"max_active_rows ({self.max_active_rows})",
            )
        return self

    def __init__(self, name: str = "", /, **fields: Any) -> None:
        with _config_errors(f"{type(self).__name__}('{name}'): " if name else None):
            super().__init__(**({**fields, "name": name} if name else fields))


class ExternalScores(_Named, _Paths):
    """Scores of another program's model, in files: part of the sum, never fitted.

    Examples
    --------
    >>> ExternalScores("deep", train="deep/train", validation="deep/validation").missing
    'error'
    """

    type: Literal["external_scores"] = "external_scores"
    uid: str = Field("uid", min_length=1, description="column by which rows are found")
    score: str | None = Field(
        None, min_length=1, description="their linear predictor; else predictionScore or score"
    )
    missing: Literal["error", "zero"] = Field("error", description="what a row without score is")

    def __init__(self, name: str = "", /, **fields: Any) -> None:
        with _config_errors(f"{type(self).__name__}('{name}'): " if name else None):
            super().__init__(**({**fields, "name": name} if name else fields))


LinearSpec = FixedEffect | RandomEffect
CoordinateSpec = Annotated[FixedEffect | RandomEffect | ExternalScores, Field(discriminator="type")]


@dataclass(frozen=True)
class MetricSpec:
    """A metric's name taken apart: ``precision@5:user_id`` is ("precision", 5, "user_id").

    Attributes
    ----------
    kind
        One of `PLAIN_METRICS` or `GROUPED_METRICS`.
    k
        Length of the ranked list, for ``precision@k`` and ``ndcg@k``.
    column
        The grouping column of a grouped metric.
    """

    kind: str
    k: int | None = None
    column: str | None = None

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is a better model."""
        return self.kind in {"auc", "aupr", "precision", "ndcg", "mrr"}

    @property
    def needs_binary_labels(self) -> bool:
        """Whether the response must be 0 or 1."""
        return self.kind in {"auc", "aupr", "logloss", "precision", "mrr"}


PLAIN_METRICS = ("auc", "aupr", "logloss", "rmse", "mae", "poisson_loss")
GROUPED_METRICS = ("auc:<column>", "precision@<k>:<column>", "ndcg@<k>:<column>", "mrr:<column>")
_GROUPED = re.compile(r"(?:(auc|mrr)|(precision|ndcg)@([1-9][0-9]*)):(.+)")


def parse_metric(name: str) -> MetricSpec:
    """Take a metric's name apart.

    Raises
    ------
    ConfigError
        If there is no such metric.
    """
    if name in PLAIN_METRICS:
        return MetricSpec(name)
    if match := _GROUPED.fullmatch(name):
        plain, ranked, k, column = match.groups()
        return MetricSpec(plain or ranked, int(k) if k else None, column)
    hint = did_you_mean(name, PLAIN_METRICS)
    known = ", ".join(PLAIN_METRICS + GROUPED_METRICS)
    raise ConfigError(f"unknown metric '{name}'{hint}; known: {known}")


DEFAULT_METRICS: dict[Task, tuple[str, ...]] = {
    "logistic_regression": ("auc", "logloss"),
    "linear_regression": ("rmse", "mae"),
    "poisson_regression": ("poisson_loss", "rmse"),
}


class ModelConfig(_Strict):
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
            if not _NAME.fullmatch(name):
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
        with _config_errors(""):
            return ModelConfig(**fields)


class JoinedData(_Paths):
    """More columns of the same rows, which are found by their uid."""

    prefix: str = Field("", description="of the names of these columns")


class DataConfig(_Paths):
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


class AvroLayout(_Strict):
    """How `format: avro` names and parts files; the defaults are those of LinkedIn's GDMix."""

    partitions: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="random effect to its number of files; default 1"
    )
    score: str = Field("predictionScore", description="field of the score, offset included")
    own_score: str = Field(
        "predictionScorePerCoordinate", description="field of the coordinate's own score"
    )


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
            _override(tree, key, value)
        with _config_errors(f"{path}: "):
            return RunConfig.model_validate(tree)

    def to_yaml(self, path: Path) -> None:
        """Write every setting, defaults included."""
        yaml = YAML(typ="safe", pure=True)  # the same rules of what needs quotes as in reading
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(self.model_dump(mode="json", by_alias=True), file)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises
    ------
    ConfigError
        If it can't be read, is no valid YAML, or holds anything else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = (p.name for p in path.parent.glob("*.y*ml"))
        hint = did_you_mean(path.name, siblings)
        raise ConfigError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: can't be read: it is not UTF-8 text") from None
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{path}:{where} not valid YAML: {problem}") from None
    if tree is None:
        raise ConfigError(f"{path}: is empty")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], key: str, value: str) -> None:
    node, place, last = tree, "", key
    while "." in last:
        # A name may hold dots itself: the longest one that is there.
        names = [name for name in node if last.startswith(f"{name}.")]
        parent = max(names, key=len) if names else last.partition(".")[0]
        if not names and node is not tree:
            hint = did_you_mean(parent, map(str, node))
            raise ConfigError(f"--set {key}: there is no '{parent}' under '{place}'{hint}")
        if node.get(parent) is None:
            node[parent] = {}
        place = f"{place}.{parent}" if place else parent
        last = last[len(parent) + 1 :]
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: '{place}' has no keys of its own")
    try:
        node[last] = YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        raise ConfigError(f"--set {key}: '{value}' is not a YAML value") from None


_MODELS: dict[str, type[_Strict]] = {
    "data": DataConfig,
    "joined": JoinedData,
    "avro": AvroLayout,
    "columns": ColumnRoles,
    "features": FeatureBag,
    "fixed_effect": FixedEffect,
    "random_effect": RandomEffect,
    "external_scores": ExternalScores,
    "FixedEffect": FixedEffect,
    "RandomEffect": RandomEffect,
    "ExternalScores": ExternalScores,
    "<bins>": BinnedColumn,
}
_TAGS = ("<column>", "<columns>", "<bins>")
_TYPES = ("fixed_effect", "random_effect", "external_scores")
_MESSAGES = {
    "missing": "is required",
    "too_short": "is empty",
    "extra_forbidden": "unknown key",
    "union_tag_not_found": f"needs `type`: one of {', '.join(_TYPES)}",
    "tuple_type": "should be a list",
    "dict_type": "should hold keys and values",
    "model_type": "should hold keys and values",
    "model_attributes_type": "should hold keys and values",
    "string_type": "should be text",
    "string_too_short": "is empty",
    "invalid_key": "should be text",
    "path_type": "should be a path",
}


@contextmanager
def _config_errors(prefix: str | None) -> Iterator[None]:
    """Turn a validation error into a `ConfigError` of one line per mistake; None: let it be."""
    try:
        yield
    except ValidationError as error:
        if prefix is None:
            raise
        lines = [_line(item, error.title, prefix) for item in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _line(item: Any, title: str, prefix: str) -> str:
    """Return one mistake's line: where it is, what it is, what was given."""
    kind, given = item["type"], item["input"]
    path = [str(part) for part in item["loc"] if part not in (*_TYPES, *_TAGS, "[key]")]
    message = _MESSAGES.get(kind, item["msg"].removeprefix("Input "))
    if kind.endswith(("_parsing", "_from_float")):
        message = message.partition(",")[0]
    if kind == "extra_forbidden":
        places = [str(part) for part in (title, *item["loc"][:-1])]
        model = next((_MODELS[p] for p in reversed(places) if p in _MODELS), RunConfig)
        keys = {field.alias or name for name, field in model.model_fields.items()}
        message += did_you_mean(path[-1], keys - {"name"})
    elif kind == "union_tag_invalid":
        tag = item["ctx"]["tag"]
        message = f"unknown type '{tag}'{did_you_mean(tag, _TYPES)}; known: {', '.join(_TYPES)}"
    elif kind == "name":
        path = path[:-1] if path[-1:] == ["name"] else path
    elif path and isinstance(given, str | int | float | None) and message != "is empty":
        message += f" (got {given!r})"
    return f"{prefix}{'.'.join(path)}: {message}" if path else f"{prefix}{message}"
