"""Which columns a model needs of its rows, and what kind of feature a column holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.types as pat

from gdmix.config import ColumnRoles, EntityPart, FeatureBag
from gdmix.errors import DataError, did_you_mean

FeatureKind = Literal["numeric", "categorical", "multi_hot", "dense", "ntv"]

# What the columns of indices and of values end with: GDMix's, and two of DeText.
_PAIRS = (("_indices", "_values"), ("_indices0", "_values"), ("_idx", "_val"))

KEY_HINT = "an integer or a string"
FEATURE_HINT = (
    "a number, a string, a list of strings, a fixed-size list of floats, "
    "a list of {name, term, value}, or a pair <x>_indices and <x>_values"
)


@dataclass(frozen=True)
class RowSchema:
    """What is read of each row.

    Attributes
    ----------
    roles
        Column names of uid, response, weight and offset.
    bags
        Feature bags by name.
    entities
        Entities of the random effects: columns, or names in `derived`.
    groups
        Grouping columns of metrics, such as ``user_id`` in ``auc:user_id``.
    needs_response
        False where rows are only scored.
    derived
        Parts of the entities that no column holds.
    optional
        Those of the entities that a row may lack.
    """

    roles: ColumnRoles
    bags: Mapping[str, FeatureBag]
    entities: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    needs_response: bool = True
    derived: Mapping[str, tuple[EntityPart, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    @property
    def keys(self) -> tuple[str, ...]:
        """Entities and grouping columns, each once."""
        return tuple(dict.fromkeys(self.entities + self.groups))

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns whose values are keys, or parts of keys, or are put into bins."""
        return tuple(dict.fromkeys(self.plain_key_columns + self.binned_columns))

    @property
    def binned_columns(self) -> tuple[str, ...]:
        """Columns of numbers that are put into bins."""
        parts = (p for p in self._key_parts if not isinstance(p, str))
        return tuple(dict.fromkeys(p.column for p in parts))

    @property
    def plain_key_columns(self) -> tuple[str, ...]:
        """Columns whose values are keys, or parts of keys, as they are."""
        return tuple(dict.fromkeys(p for p in self._key_parts if isinstance(p, str)))

    @property
    def needed_key_columns(self) -> frozenset[str]:
        """Those of the columns of keys whose value no row may lack."""
        optional = self.optional - set(self.groups)
        parts = (p for k in self.keys if k not in optional for p in self.derived.get(k, (k,)))
        return frozenset(p if isinstance(p, str) else p.column for p in parts)

    @property
    def _key_parts(self) -> list[EntityPart]:
        return [part for key in self.keys for part in self.derived.get(key, (key,))]

    def role_column(self, role: str, available: Iterable[str]) -> str | None:
        """Return the column that plays `role`, or None where a default one is absent."""
        column = self.roles.column(role)
        return column if column in set(available) else None

    def select(self, schema: pa.Schema, source: str) -> list[str]:
        """Return the columns to read.

        Raises
        ------
        DataError
            Naming every column that is missing or has a type that can't be used.
        """
        available = schema.names
        required: dict[str, str] = {}
        mends: dict[str, str] = {}
        for role in ("uid", "response", "weight", "offset"):
            column, named = self.roles.column(role), getattr(self.roles, role) is not None
            # What rows weighed and were labelled in training is not needed to score others.
            needed = self.needs_response and (named or role == "response")
            if needed or (named and role in ("uid", "offset")):
                required[column] = f"the {role}"
                if not named:
                    mends[column] = f"; if it has another name: `columns: {{{role}: NAME}}`"
        required |= {c: "an entity column" for c in self.key_columns}
        groups = [c for c in self.groups if c not in self.derived]
        required |= {c: "the grouping column of a metric" for c in groups}
        required |= {
            c: f"in feature bag '{b}'" for b, bag in self.bags.items() for c in bag.columns
        }
        findings = [
            f"{source}: column '{c}' is missing{did_you_mean(c, available)}: "
            f"{purpose}{mends.get(c, '')}"
            for c, purpose in required.items()
            if c not in available
        ]
        optional = [
            c
            for r in ("uid", "response", "weight", "offset")
            if (c := self.role_column(r, available))
        ]
        columns = list(dict.fromkeys([*optional, *(c for c in required if c in available)]))
        findings += _wrong_types(self, {c: schema.field(c).type for c in columns}, source)
        if findings:
            raise DataError(findings)
        return columns or available[:1]  # some column, to tell the number of rows


@dataclass(frozen=True)
class BagSource:
    """One source of features within a bag: a column, or a pair of index and value columns."""

    column: str
    kind: FeatureKind | Literal["indexed"]
    values: str | None = None

    @property
    def feature(self) -> str:
        """Name of its features, where they don't bring their own."""
        return self.column if self.values is None else _stem_of(self.column)[0]


def bag_sources(bag: FeatureBag, types: Mapping[str, pa.DataType]) -> list[BagSource]:
    """Take a bag apart into its sources, given the columns' types."""
    sources = []
    pairs = _pairs_of(bag)
    for column in bag.columns:
        if column in pairs.values():
            continue
        if column in pairs:
            sources.append(BagSource(column, "indexed", pairs[column]))
        else:
            kind = feature_kind(types[column])
            assert kind is not None, column
            sources.append(BagSource(column, kind))
    return sources


def _stem_of(column: str) -> tuple[str, str]:
    """Return what a pair's columns have in common, and the name of the values; else nothing."""
    for indices, values in _PAIRS:
        if column.endswith(indices):
            stem = column.removesuffix(indices)
            return stem, stem + values
    return "", ""


def _pairs_of(bag: FeatureBag) -> dict[str, str]:
    """Return the columns of values by those of indices."""
    found = {column: _stem_of(column)[1] for column in bag.columns}
    return {column: values for column, values in found.items() if values in bag.columns}


def feature_kind(kind: pa.DataType) -> FeatureKind | None:
    """Return how a column of this type becomes features; None if it can't."""
    if pat.is_dictionary(kind):
        kind = kind.value_type
        good = is_text(kind) or pat.is_integer(kind) or pat.is_null(kind)
        return "categorical" if good else None
    if is_scalar_number(kind):
        return "numeric"
    if is_text(kind):
        return "categorical"
    if pat.is_fixed_size_list(kind) and _is_number(kind.value_type):
        return "dense"
    if is_list(kind):
        item = kind.value_type
        item = item.value_type if pat.is_dictionary(item) else item
        if is_text(item) or pat.is_null(item):
            return "multi_hot"
        if pat.is_struct(item) and _is_ntv(item):
            return "ntv"
    return None


def is_text(kind: pa.DataType) -> bool:
    """Whether the type is a string."""
    return bool(pat.is_string(kind) or pat.is_large_string(kind))


def is_key(kind: pa.DataType) -> bool:
    """Whether rows can be grouped by a column of this type."""
    kind = kind.value_type if pat.is_dictionary(kind) else kind
    return pat.is_integer(kind) or is_text(kind) or is_bytes(kind) or bool(pat.is_null(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the type is a string of bytes, which may or may not be UTF-8."""
    return bool(pat.is_binary(kind) or pat.is_large_binary(kind))


def is_scalar_number(kind: pa.DataType) -> bool:
    """Whether a column of this type holds one number, or none at all, per row."""
    return bool(
        _is_number(kind) or pat.is_boolean(kind) or pat.is_decimal(kind) or pat.is_null(kind)
    )


def is_list(kind: pa.DataType) -> bool:
    """Whether the type is a list of any length."""
    return bool(pat.is_list(kind) or pat.is_large_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pat.is_integer(kind) or pat.is_floating(kind))


def _is_ntv(kind: pa.DataType) -> bool:
    fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    return (
        {"name", "term", "value"} <= set(fields)
        and is_text(fields["name"])
        and is_text(fields["term"])
        and _is_number(fields["value"])
    )


def _wrong_types(rows: RowSchema, types: Mapping[str, pa.DataType], source: str) -> list[str]:
    findings = []

    def expect(column: str, good: bool, wanted: str) -> None:
        # A column without any value has no type of its own: it is a matter of missing values.
        if not good and not pat.is_null(types[column]):
            findings.append(f"{source}: column '{column}' is {types[column]}, expected {wanted}")

    for role in ("response", "weight", "offset"):
        if column := rows.role_column(role, types):
            expect(column, is_scalar_number(types[column]), f"a number, as it is the {role}")
    if column := rows.role_column("uid", types):
        expect(column, pat.is_integer(types[column]), "an integer, as it is the uid")
    for column in rows.plain_key_columns:
        if column in types:
            expect(column, is_key(types[column]), f"{KEY_HINT}, as rows are grouped by it")
    for column in rows.binned_columns:
        if column in types:
            expect(column, is_scalar_number(types[column]), "a number, as it is put into bins")
    for bag in rows.bags.values():
        pairs = _pairs_of(bag)
        for column in (c for c in bag.columns if c in types):
            kind = types[column]
            item = kind.value_type if is_list(kind) else None
            if column in pairs:
                good = item is not None and (pat.is_integer(item) or pat.is_null(item))
                expect(column, good, "a list of integers")
            elif column in pairs.values():
                good = item is not None and (_is_number(item) or pat.is_null(item))
                expect(column, good, "a list of numbers")
            else:
                text = "; is it text that is not UTF-8?" if is_bytes(kind) else ""
                expect(column, feature_kind(kind) is not None, f"a feature: {FEATURE_HINT}{text}")
    return list(dict.fromkeys(findings))
