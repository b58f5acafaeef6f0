"""Coordinates as a user writes them, in YAML or in Python, and the columns they use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gdmix.config.base import Paths, Strict, config_errors, known_as

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
JOINT = "joint"  # what the history calls the step that fits all coordinates at once
_RESERVED_NAMES = {
    JOINT,
    "checkpoint",
    "passes",
    "inputs.json",
    "feature_index",
    "manifest.json",
    "run.yaml",
    "history.json",
    "run.log",
}


@known_as("columns")
class ColumnRoles(Strict):
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


@known_as("features")
class FeatureBag(Strict):
    """A named group of columns that becomes one sparse design matrix.

    `columns` holds plain columns (number or bool: one feature; string or categorical: one-hot;
    list of strings: multi-hot; fixed-size list of floats: dense), or columns of
    name-term-value structs, or a pair ``<x>_indices``, ``<x>_values``.
    """

    columns: tuple[str, ...] = Field(min_length=1)
    feature_list: Path | None = Field(
        None, description="CSV of name,term lines that names the indices of a pair"
    )
    min_count: int = Field(
        1, ge=1, description="leave features out that fewer training rows have, not being 0"
    )
    max_features: int | None = Field(
        None, ge=1, description="keep that many, of largest correlation with the response"
    )
    hash_buckets: int | None = Field(
        None, ge=2, le=2**31, description="number columns by a hash of the feature: no index"
    )
    missing: Literal["zero", "keep"] = Field(
        "zero",
        description="what a number without a value is: 0; keep: missing, which only the `dense` of "
        "a deep coordinate takes, and has for bags that nothing else uses",
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

    @property
    def is_selected(self) -> bool:
        """Whether features may be left out by what training rows say of them."""
        return self.min_count > 1 or self.max_features is not None

    @model_validator(mode="after")
    def _one_way_to_number(self) -> Self:
        fixed = {"feature_list": self.feature_list, "hash_buckets": self.hash_buckets}
        others = {"min_count": self.min_count > 1, "max_features": self.max_features is not None}
        chosen = [key for key, value in fixed.items() if value is not None]
        selecting = [key for key, value in others.items() if value]
        if chosen and len(chosen + selecting) > 1:
            first, second = (chosen + selecting)[:2]
            raise PydanticCustomError(
                "columns", f"{first} says what the columns are: remove it, or {second}"
            )
        return self


class _Named(Strict):
    name: str = Field("", exclude=True, description="key under `coordinates`")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if name and (not NAME.fullmatch(name) or name in _RESERVED_NAMES):
            raise PydanticCustomError(
                "name",
                f"'{name}' can't name a coordinate: it becomes a folder beside others; "
                "use letters, digits, '-', '_', '.'",
            )
        return name

    @property
    def bags(self) -> tuple[str, ...]:
        """Feature bags that it needs of rows."""
        return ()

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Keys that it needs of rows: entities, plain or derived."""
        return ()

    @property
    def derived_entities(self) -> dict[str, tuple[EntityPart, ...]]:
        """What those of its entities are derived from that no column holds."""
        return {}

    @property
    def gap_bags(self) -> tuple[str, ...]:
        """Those of its bags whose numbers may be missing."""
        return ()

    @property
    def optional_keys(self) -> frozenset[str]:
        """Those of its keys that a row may lack."""
        return frozenset()

    @property
    def text_keys(self) -> frozenset[str]:
        """Those of its keys that are texts, rather than what rows belong to."""
        return frozenset()

    def place_of(self, bag: str) -> str:
        """Return the key of its configuration that a bag is named under."""
        return "features"

    @property
    def is_fitted(self) -> bool:
        """Whether training changes it."""
        return True


AUTO = ("auto", "auto_per_feature")
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Normalization = Literal["none", "standardize", "scale_by_std", "scale_by_max"]


def _weight_or_auto(value: Any) -> Any:
    """Take a weight, one per bag, or a word; one message for whatever is none of these."""
    if isinstance(value, Mapping):
        if not value or any(isinstance(_weight_or_auto(own), str) for own in value.values()):
            raise PydanticCustomError("weight", "should hold a weight for each bag")
        return {bag: _weight_or_auto(own) for bag, own in value.items()}
    if value in AUTO:
        return value
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if isinstance(value, str):
        with suppress(ValueError):
            number = float(value)
    if number is None or not 0 <= number < float("inf"):
        raise PydanticCustomError("weight", f"should be 0 or more, or {' or '.join(AUTO)}")
    return float(number)


L2 = Annotated[
    float | Literal["auto", "auto_per_feature"] | dict[str, float],
    BeforeValidator(_weight_or_auto),
]


class _Coordinate(_Named):
    features: tuple[str, ...] = Field((), description="feature bags; none: intercept only")
    intercept: bool = Field(True, description="add an intercept, always the first coefficient")
    l2: L2 = Field(
        1.0,
        description="L2 weight of the objective, or one for each bag; auto: estimated, one for the "
        "intercept and one per bag; auto_per_feature: one per feature",
    )
    intercept_l2: Weight | None = Field(
        None, description="L2 weight of the intercept; default: l2, if it is regularized at all"
    )
    l1: Weight = Field(0.0, description="L1 weight of the objective, never on the intercept")
    penalty_factors: dict[str, Weight] = Field(
        {}, description="feature `name`, or one term of it `name:term`, to a factor of its weights"
    )
    normalization: Normalization = Field(
        "none", description="of features within the penalty; coefficients stay in raw units"
    )
    variance: Literal["none", "simple", "full"] = Field(
        "none", description="of coefficients: simple is 1 / diag(H), full is diag(H^-1)"
    )
    save_hessian: bool = Field(False, description="with the model: for a prior that has it all")
    tolerance: float = Field(
        1e-8, gt=0, lt=1, description="stop at this gradient norm relative to the one at zero"
    )
    max_iterations: int = Field(100, ge=1, description="Newton iterations")
    negative_sampling: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the rows of response 0 that train it, each weighing 1 / share",
    )
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

    @model_validator(mode="before")
    @classmethod
    def _regularized_by_its_weight(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "regularize_intercept" not in value:
            weight = value.get("intercept_l2")
            if isinstance(weight, int | float):
                return {**value, "regularize_intercept": weight > 0}
        return value

    @model_validator(mode="after")
    def _penalties_go_together(self) -> Self:
        for key, is_set in self._beside_l1().items():
            if self.l1 > 0 and is_set:
                raise PydanticCustomError(
                    "penalty", f"l1 and {key}: choose one; there is no estimate of both"
                )
        if isinstance(self.l2, dict):
            if set(self.l2) != set(self.features):
                raise PydanticCustomError(
                    "penalty",
                    f"l2: has weights of {', '.join(self.l2)}; the bags are "
                    f"{', '.join(self.features) or 'none'}",
                )
            if self.regularizes_intercept and self.intercept_l2 is None:
                raise PydanticCustomError(
                    "penalty", "intercept_l2: is required beside an l2 for each bag"
                )
        if self.is_auto and self.intercept_l2 is not None:
            raise PydanticCustomError(
                "penalty", f"intercept_l2: l2 '{self.l2}' estimates it too; remove it"
            )
        regularize: bool = getattr(self, "regularize_intercept")  # noqa: B009
        if self.intercept_l2 is not None and regularize != (self.intercept_l2 > 0):
            raise PydanticCustomError(
                "penalty",
                f"intercept_l2 is {self.intercept_l2:g}, but regularize_intercept is "
                f"{str(regularize).lower()}; remove one",
            )
        if self.is_auto and self.normalization == "standardize" and self.regularizes_intercept:
            raise PydanticCustomError(
                "penalty",
                "normalization: standardize shifts a regularized intercept, whose L2 weight can't "
                "be estimated then; use scale_by_std",
            )
        if not self.intercept and self.normalization == "standardize":
            raise PydanticCustomError(
                "penalty",
                "normalization: standardize centres features, which takes an intercept; "
                "use scale_by_std",
            )
        return self

    def _beside_l1(self) -> dict[str, bool]:
        """Return what an L1 weight does not go with."""
        return {
            "l2: auto": self.is_auto,
            "variance": self.variance != "none",
            "save_hessian": self.save_hessian,
        }

    @property
    def bags(self) -> tuple[str, ...]:
        """Feature bags that it needs of rows."""
        return self.features

    @property
    def is_fitted(self) -> bool:
        """Whether training changes it."""
        return not self.locked

    @property
    def is_auto(self) -> bool:
        """Whether L2 weights are estimated."""
        return self.l2 in AUTO

    def bag_weight(self, bag: str) -> float:
        """Return the L2 weight of a bag; where it is estimated, the one to begin with."""
        if isinstance(self.l2, dict):
            return self.l2[bag]
        return 1.0 if isinstance(self.l2, str) else self.l2

    @property
    def intercept_weight(self) -> float:
        """L2 weight of the intercept."""
        if self.intercept_l2 is not None:
            return self.intercept_l2
        return self.bag_weight("") if self.regularizes_intercept else 0.0

    @property
    def regularizes_intercept(self) -> bool:
        """Whether the intercept has an L2 weight."""
        if self.intercept_l2 is not None:
            return self.intercept_l2 > 0
        return bool(getattr(self, "regularize_intercept"))  # noqa: B009


@known_as("fixed_effect", "FixedEffect")
class FixedEffect(_Coordinate):
    """A fixed effect: one linear model over all rows.

    Examples
    --------
    >>> FixedEffect("global", features=["user", "movie"], l2=1.0).name
    'global'
    """

    type: Literal["fixed_effect"] = "fixed_effect"
    regularize_intercept: bool = Field(False, description="put the L2 weight on it too")
    bounds: dict[str, tuple[float | None, float | None]] = Field(
        {}, description="feature `name` or `name:term` to [least, largest] coefficient; null: none"
    )

    @field_validator("bounds")
    @classmethod
    def _ordered(cls, bounds: dict[str, Any]) -> dict[str, Any]:
        for feature, (low, high) in bounds.items():
            if low is not None and high is not None and low > high:
                raise PydanticCustomError("bounds", f"{feature}: {low:g} is above {high:g}")
        return bounds

    @model_validator(mode="after")
    def _bounds_alone(self) -> Self:
        for key, is_set in self._beside_l1().items():
            if self.bounds and is_set:
                raise PydanticCustomError(
                    "penalty", f"bounds and {key}: choose one; there is no estimate of both"
                )
        return self

    def __init__(self, name: str = "", /, **fields: Any) -> None:
        with config_errors(f"{type(self).__name__}('{name}'): " if name else None):
            super().__init__(**({**fields, "name": name} if name else fields))


@known_as("<bins>")
class BinnedColumn(Strict):
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


def parts_of(entity: str | BinnedColumn | tuple[EntityPart, ...]) -> tuple[EntityPart, ...]:
    """Return the columns, and bins of columns, that an entity is a combination of."""
    return entity if isinstance(entity, tuple) else (entity,)


def entity_name(entity: str | BinnedColumn | tuple[EntityPart, ...]) -> str:
    """Return what an entity is called: the column, or what it is derived from."""
    return "+".join(map(_part_name, parts_of(entity)))


def check_parts(entity: Any) -> None:
    """Refuse a combination of one column, or of one column twice."""
    if isinstance(entity, tuple):
        if len(entity) < 2:
            raise PydanticCustomError("empty", "needs two columns, or one without brackets")
        columns = [p if isinstance(p, str) else p.column for p in entity]
        repeated = sorted({c for c in columns if columns.count(c) > 1})
        if repeated:
            raise PydanticCustomError("repeated", f"column '{repeated[0]}' is listed twice")


@known_as("random_effect", "RandomEffect")
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
    features_to_samples_ratio: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="keep at most that many features per active row of an entity, "
        "of largest correlation with its responses",
    )

    @field_validator("entity")
    @classmethod
    def _each_part_once(cls, entity: Any) -> Any:
        check_parts(entity)
        return entity

    @property
    def key(self) -> str:
        """What the entity is called: the column, or what it is derived from."""
        return entity_name(self.entity)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The entity."""
        return (self.key,)

    @property
    def derived(self) -> tuple[str | BinnedColumn, ...] | None:
        """What the entity is derived from, None where a column holds it."""
        return None if isinstance(self.entity, str) else parts_of(self.entity)

    @property
    def derived_entities(self) -> dict[str, tuple[EntityPart, ...]]:
        """The same by its name, if it is derived."""
        return {} if self.derived is None else {self.key: self.derived}

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
        with config_errors(f"{type(self).__name__}('{name}'): " if name else None):
            super().__init__(**({**fields, "name": name} if name else fields))


@known_as("external_scores", "ExternalScores")
class ExternalScores(_Named, Paths):
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

    @property
    def is_fitted(self) -> bool:
        """Never."""
        return False

    def __init__(self, name: str = "", /, **fields: Any) -> None:
        with config_errors(f"{type(self).__name__}('{name}'): " if name else None):
            super().__init__(**({**fields, "name": name} if name else fields))


LinearSpec = FixedEffect | RandomEffect
