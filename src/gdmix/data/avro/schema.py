"""Avro schemas: JSON to a tree of types, and each type's Arrow type.

More is let pass than the specification does: defaults are not looked at, and real files have
some that don't fit, such as null for ``["string", "null"]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gdmix.errors import DataError

_PRIMITIVES = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
_LEAST_BYTES = {"null": 0, "float": 4, "double": 8}
# What a union of several kinds is read as: the first that holds all of them.
_PROMOTIONS = (
    ("long", {"int", "long"}),
    ("double", {"int", "long", "float", "double"}),
    ("string", {"string", "int", "long"}),
    ("bytes", {"bytes", "string"}),
)
_MOST_BYTES = 1 << 20
_MOST_TYPES = 10_000


@dataclass(frozen=True)
class AvroType:
    """A type of a schema, with all names in it replaced by what they stand for.

    Attributes
    ----------
    kind
        A primitive's name, ``record``, ``enum``, ``fixed``, ``array``, ``map`` or ``union``.
    fields
        Names and types of a record's fields.
    parts
        Branches of a union; the one type of an array's or a map's items.
    least
        The fewest bytes a value takes.
    weight
        Number of types in it, each time it is used.
    """

    kind: str
    fields: tuple[tuple[str, AvroType], ...] = ()
    parts: tuple[AvroType, ...] = ()
    symbols: tuple[str, ...] = ()
    size: int = 0
    least: int = 1
    weight: int = 1

    @property
    def nullable(self) -> bool:
        """Whether it is a union with null."""
        return any(part.kind == "null" for part in self.parts) and self.kind == "union"

    def value(self) -> AvroType:
        """Return what a union holds besides null.

        Raises
        ------
        ValueError
            If that is several types with none that holds them all.
        """
        if self.kind != "union":
            return self
        others = [part for part in self.parts if part.kind != "null"]
        if len(others) < 2:
            return others[0] if others else _primitive("null")
        kinds = {part.kind for part in others}
        for kind, held in _PROMOTIONS:
            if kinds <= held:
                return _primitive(kind)
        raise ValueError(f"a union of {', '.join(sorted(kinds))} has no one type to be read as")


def arrow_type(avro: AvroType) -> pa.DataType:
    """Return the Arrow type that values are read as.

    Raises
    ------
    ValueError
        If it is, or holds, a union of types that don't go together.
    """
    avro = avro.value()
    if avro.kind == "record":
        return pa.struct([arrow_field(name, kind) for name, kind in avro.fields])
    if avro.kind == "array":
        return pa.list_(arrow_field("item", avro.parts[0]))
    if avro.kind == "map":
        value = arrow_field("value", avro.parts[0])
        return pa.map_(pa.string(), value)
    return {"enum": pa.string(), "fixed": pa.binary()}.get(avro.kind) or _PRIMITIVES[avro.kind]


def arrow_field(name: str, avro: AvroType) -> pa.Field:
    """Return an Arrow field; that it may be null is not told, as of any other file."""
    return pa.field(name, arrow_type(avro))


def parse_schema(schema: Any, label: str) -> AvroType:
    """Return the record type that a schema, parsed from JSON, describes.

    Raises
    ------
    DataError
        If it is no schema of records, or holds itself.
    """
    try:
        avro = _Parser().parse(schema, "")
    except ValueError as error:
        raise DataError(f"{label}: its Avro schema can't be used: {error}") from None
    except RecursionError:
        raise DataError(f"{label}: its Avro schema can't be used: it is too deep") from None
    if avro.kind != "record":
        raise DataError(f"{label}: holds {avro.kind} values, not records")
    return avro


class _Parser:
    def __init__(self) -> None:
        self._named: dict[str, AvroType | None] = {}  # None while it is being defined

    def parse(self, schema: Any, namespace: str) -> AvroType:
        if isinstance(schema, str):
            return self._by_name(schema, namespace)
        if isinstance(schema, list):
            branches = tuple(self.parse(part, namespace) for part in schema)
            if any(part.kind == "union" for part in branches) or not branches:
                raise ValueError("a union is empty, or holds another one")
            return AvroType("union", parts=branches, weight=self._weight(branches))
        if not isinstance(schema, Mapping) or "type" not in schema:
            raise ValueError(f"{str(schema)[:60]!r} is no type")
        kind = schema["type"]
        if kind in ("array", "map"):
            key = "items" if kind == "array" else "values"
            item = self.parse(schema.get(key), namespace)
            if kind == "array" and item.least == 0:
                raise ValueError("an array has items that take no bytes")
            return AvroType(kind, parts=(item,), weight=self._weight((item,)))
        if kind in ("record", "error", "enum", "fixed"):
            return self._named_type(schema, namespace)
        return self.parse(kind, namespace)

    def _by_name(self, name: str, namespace: str) -> AvroType:
        if name in _PRIMITIVES:
            return _primitive(name)
        for full in (f"{namespace}.{name}", name):
            if full in self._named:
                found = self._named[full]
                if found is None:
                    raise ValueError(f"'{name}' holds itself, which no column can")
                return found
        raise ValueError(f"unknown type '{name[:60]}'")

    def _named_type(self, schema: Mapping[str, Any], namespace: str) -> AvroType:
        name, kind = schema.get("name"), schema["type"]
        if not isinstance(name, str):
            raise ValueError(f"a {kind} has no name")
        if "." in name:
            namespace, _, name = name.rpartition(".")
        else:
            namespace = str(schema.get("namespace", namespace) or "")
        full = f"{namespace}.{name}" if namespace else name
        self._named[full] = None
        if kind == "enum":
            symbols = schema.get("symbols")
            if not isinstance(symbols, list) or not all(isinstance(s, str) for s in symbols):
                raise ValueError(f"enum '{name}' has no list of symbols")
            avro = AvroType("enum", symbols=tuple(symbols))
        elif kind == "fixed":
            size = schema.get("size")
            if type(size) is not int or not 0 <= size <= _MOST_BYTES:
                raise ValueError(f"fixed '{name}' has no usable size")
            avro = AvroType("fixed", size=size, least=size)
        else:
            avro = self._record(name, schema.get("fields"), namespace)
        self._named[full] = avro
        return avro

    def _record(self, name: str, fields: Any, namespace: str) -> AvroType:
        if not isinstance(fields, list):
            raise ValueError(f"record '{name}' has no list of fields")
        parsed: dict[str, AvroType] = {}
        for f in fields:
            if not isinstance(f, Mapping) or not isinstance(f.get("name"), str):
                raise ValueError(f"record '{name}' has a field without a name")
            if f["name"] in parsed:
                raise ValueError(f"record '{name}' has two fields '{f['name']}'")
            parsed[f["name"]] = self.parse(f.get("type"), namespace)
        least = sum(kind.least for kind in parsed.values())
        weight = self._weight(tuple(parsed.values()))
        return AvroType("record", tuple(parsed.items()), least=least, weight=weight)

    @staticmethod
    def _weight(parts: tuple[AvroType, ...]) -> int:
        """Return the size of a type; used twice at each level, names grow without bounds."""
        weight = 1 + sum(part.weight for part in parts)
        if weight > _MOST_TYPES:
            raise ValueError(f"it has more than {_MOST_TYPES:,} types")
        return weight


def _primitive(kind: str) -> AvroType:
    return AvroType(kind, least=_LEAST_BYTES.get(kind, 1))
