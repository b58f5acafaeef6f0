"""Coordinates as a user writes them, in YAML or in Python, and the columns they use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gdmix.config.base import Paths, Strict, config_errors, known_as

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
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

    def __init__(self, name: str = "", /, **fields: Any) -> None:
        with config_errors(f"{type(self).__name__}('{name}'): " if name else None):
            super().__init__(**({**fields, "name": name} if name else fields))


LinearSpec = FixedEffect | RandomEffect
CoordinateSpec = Annotated[FixedEffect | RandomEffect | ExternalScores, Field(discriminator="type")]
