"""Arrow record batches as Avro object container files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat
from numpy.typing import NDArray

from gdmix.data.avro.container import CODECS, AvroCodec, container_file
from gdmix.data.avro.schema import AvroType, parse_schema
from gdmix.data.avro.wire import GROW, MOST_DEPTH, Memory, Op, encode_rows
from gdmix.data.schema import is_bytes, is_list, is_text
from gdmix.errors import DataError, did_you_mean

Array = NDArray[Any]
Collect = Callable[[pa.Array], None]

_ROWS = 1 << 14  # encoded at a time
_NUMBERS = {
    "boolean": (Op.BOOLEAN, pa.bool_()),
    "int": (Op.INT, pa.int32()),
    "long": (Op.LONG, pa.int64()),
    "float": (Op.FLOAT, pa.float32()),
    "double": (Op.DOUBLE, pa.float64()),
}


def write_batches(
    path: Path,
    schema: Mapping[str, Any],
    batches: Iterable[pa.RecordBatch],
    codec: AvroCodec = "deflate",
    block_bytes: int = 1 << 16,
) -> None:
    """Write rows as records.

    Parameters
    ----------
    schema
        Avro schema, of a record. Its fields are matched with columns by name; columns it does
        not have are left out; a field without a column is null, if it may be.
    block_bytes
        Size that a block has at least, before compression.

    Raises
    ------
    DataError
        Naming a column that is missing, or holds what its type in the schema does not.
    OutputError
        If the file can't be written.
    """
    if codec not in CODECS:
        raise DataError(f"{path}: codec {codec!r} is none of {', '.join(CODECS)}")
    record = parse_schema(schema, str(path))
    program: _WriteProgram | None = None
    out = np.empty(4 * block_bytes, np.uint8)
    with container_file(path, schema, codec) as write:
        for batch in batches:
            if program is None or program.schema != batch.schema:
                program = _WriteProgram(path, record, batch.schema)
            for first in range(0, batch.num_rows, _ROWS):
                memory = program.collect(batch.slice(first, _ROWS))
                before = np.empty_like(memory.counts)
                left = min(_ROWS, batch.num_rows - first)
                while left:
                    code, n, size = encode_rows(
                        memory, left, program.code, out, block_bytes, before
                    )
                    if n:
                        write(n, out[:size].data)
                    elif code == GROW:
                        out = np.empty(2 * len(out), np.uint8)
                    left -= n


class _WriteProgram:
    """The instructions that write a row, and what fills the regions they write from."""

    def __init__(self, path: Path, record: AvroType, schema: pa.Schema) -> None:
        self.schema = schema
        self._path = path
        self._code: list[list[int]] = []
        self._regions: list[Array] = []
        fields = [schema.field(i) for i in range(len(schema))]
        self._collect = self._record(record, fields, "", 0)
        self._emit(Op.ROW_END)
        self.code = np.array(self._code, np.int64)

    def collect(self, batch: pa.RecordBatch) -> Memory:
        """Return the regions of some rows, for `encode_rows`."""
        self._collect(batch.columns)
        octets = [np.ascontiguousarray(r).view(np.uint8) for r in self._regions]
        padded = np.array([(o.nbytes + 7) // 8 * 8 for o in octets], np.int64)
        ends = np.cumsum(padded)
        memory = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
        bases = np.zeros(len(octets), np.int64)
        for r, (data, end) in enumerate(zip(octets, ends, strict=True)):
            begin = int(end - padded[r])
            memory[begin : begin + len(data)] = data
            bases[r] = begin // self._regions[r].itemsize
        return Memory.of(memory, bases, padded, np.zeros(len(octets), np.int64))

    def _emit(self, op: Op, region: int = -1, argument: int = 0, target: int = 0) -> int:
        self._code.append([int(op), region, argument, target])
        return len(self._code) - 1

    def _region(self) -> int:
        self._regions.append(np.zeros(0, np.uint8))
        return len(self._regions) - 1

    def _refuse(self, name: str, what: str) -> DataError:
        return DataError(f"{self._path}: column {name[:80]!r} {what}")

    def _value(self, avro: AvroType, kind: pa.DataType, name: str, depth: int) -> Collect:
        """Add the instructions of a value; return what collects it from a column."""
        if pat.is_dictionary(kind):
            plain = self._value(avro, kind.value_type, name, depth)
            return lambda column: plain(column.dictionary_decode())
        if avro.kind == "union":
            return self._union(avro, kind, name, depth)
        if not _fits(avro, kind):
            raise self._refuse(name, f"is {kind}, which is no Avro {avro.kind}")
        collect = self._plain(avro, kind, name, depth)

        def checked(column: pa.Array) -> None:
            if column.null_count and avro.kind != "null":
                raise self._refuse(name, "has a null, which its Avro type does not allow")
            try:
                collect(column)
            except pa.ArrowInvalid as error:
                what = " ".join(str(error).split())[:120]
                raise self._refuse(name, f"does not fit its Avro type: {what}") from None

        return checked

    def _union(self, avro: AvroType, kind: pa.DataType, name: str, depth: int) -> Collect:
        kinds = [part.kind for part in avro.parts]
        null = kinds.index("null") if "null" in kinds else -1
        fitting = [i for i, part in enumerate(avro.parts) if _fits(part, kind)]
        if not fitting:
            raise self._refuse(name, f"is {kind}, which is none of {', '.join(kinds)}")
        branch = next((i for i in fitting if _is_exact(avro.parts[i], kind)), fitting[0])
        if null < 0 or branch == null:
            self._emit(Op.CONSTANT, -1, branch)
            return self._value(avro.parts[branch], kind, name, depth)
        region = self._region()
        option = self._emit(Op.OPTION, region, branch << 32 | null)
        value = self._value(avro.parts[branch], kind, name, depth)
        self._code[option][3] = len(self._code)

        def collect(column: pa.Array) -> None:
            self._regions[region] = np.asarray(pc.is_valid(column)).view(np.uint8)
            value(column.drop_null() if column.null_count else column)

        return collect

    def _plain(self, avro: AvroType, kind: pa.DataType, name: str, depth: int) -> Collect:
        if avro.kind == "null":
            return lambda column: None
        if avro.kind == "record":
            fields = [kind.field(i) for i in range(kind.num_fields)]
            record = self._record(avro, fields, f"{name}.", depth)
            return lambda column: record(column.flatten())
        if avro.kind in ("array", "map"):
            return self._items(avro, kind, name, depth)
        if avro.kind in ("string", "bytes", "fixed"):
            return self._text(avro, name)
        region = self._region()
        if avro.kind == "enum":
            self._emit(Op.INT, region)
            symbols = pa.array(avro.symbols, pa.string())

            def collect(column: pa.Array) -> None:
                codes = pc.index_in(column.cast(pa.string()), value_set=symbols)
                if codes.null_count:
                    raise self._refuse(name, "has a value that its Avro enum does not have")
                self._regions[region] = codes.to_numpy()

            return collect
        op, target = _NUMBERS[avro.kind]
        self._emit(op, region)

        def collect_numbers(column: pa.Array) -> None:
            values = column.cast(target).to_numpy(zero_copy_only=False)
            self._regions[region] = values.view(np.uint8) if target == pa.bool_() else values

        return collect_numbers

    def _text(self, avro: AvroType, name: str) -> Collect:
        ends, data = self._region(), self._region()
        self._emit(Op.FIXED if avro.kind == "fixed" else Op.TEXT, ends)

        def collect(column: pa.Array) -> None:
            if avro.kind == "string" and is_bytes(column.type):
                column = column.cast(pa.large_string())  # checks that it is text
            column = column.cast(pa.large_binary())
            _, offsets, octets = column.buffers()
            stops = np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1]
            if avro.kind == "fixed" and (np.diff(stops) != avro.size).any():
                raise self._refuse(name, f"has a value that is not {avro.size} bytes long")
            self._regions[ends] = stops - stops[0]
            self._regions[data] = np.frombuffer(octets or b"", np.uint8)[stops[0] : stops[-1]]

        return collect

    def _items(self, avro: AvroType, kind: pa.DataType, name: str, depth: int) -> Collect:
        if depth == MOST_DEPTH:
            raise self._refuse(name, "has lists that are too deep")
        region = self._region()
        items = self._emit(Op.ITEMS, region)
        parts = []
        if avro.kind == "map":
            parts.append(self._value(AvroType("string"), kind.key_type, f"{name}.key", depth + 1))
        item_type = kind.item_type if avro.kind == "map" else kind.value_type
        parts.append(self._value(avro.parts[0], item_type, f"{name}.item", depth + 1))
        self._emit(Op.NEXT, target=items + 1)
        self._code[items][3] = len(self._code)

        def collect(column: pa.Array) -> None:
            if avro.kind == "map":
                column = _list_of_entries(column)
            lengths = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int32())
            self._regions[region] = lengths.to_numpy()
            values = column.flatten()
            for part, array in zip(
                parts, values.flatten() if avro.kind == "map" else [values], strict=True
            ):
                part(array)

        return collect

    def _record(
        self, avro: AvroType, fields: Sequence[pa.Field], prefix: str, depth: int
    ) -> Callable[[Sequence[pa.Array]], None]:
        names = [f.name for f in fields]
        chosen: list[tuple[int, Collect]] = []
        for name, part in avro.fields:
            if name in names:
                at = names.index(name)
                value = self._value(part, fields[at].type, prefix + name, depth)
                chosen.append((at, value))
            elif part.nullable or part.kind == "null":
                self._value(part, pa.null(), prefix + name, depth)
            else:
                raise self._refuse(prefix + name, f"is missing{did_you_mean(name, names)}")

        def collect(columns: Sequence[pa.Array]) -> None:
            for at, value in chosen:
                value(columns[at])

        return collect


def _fits(avro: AvroType, kind: pa.DataType) -> bool:
    """Whether values of this Arrow type can be written as this Avro type."""
    fits = {
        "null": pat.is_null,
        "boolean": pat.is_boolean,
        "int": pat.is_integer,
        "long": pat.is_integer,
        "float": _is_number,
        "double": _is_number,
        "string": _is_octets,
        "bytes": _is_octets,
        "fixed": _is_octets,
        "enum": is_text,
        "record": pat.is_struct,
        "array": lambda kind: is_list(kind) or pat.is_fixed_size_list(kind),
        "map": pat.is_map,
        "union": lambda kind: False,
    }
    return bool(fits[avro.kind](kind))


def _is_exact(avro: AvroType, kind: pa.DataType) -> bool:
    if avro.kind in _NUMBERS:
        return bool(_NUMBERS[avro.kind][1] == kind)
    return not _is_octets(kind) or (avro.kind == "string") == is_text(kind)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pat.is_integer(kind) or pat.is_floating(kind))


def _is_octets(kind: pa.DataType) -> bool:
    return is_text(kind) or is_bytes(kind) or bool(pat.is_fixed_size_binary(kind))


def _list_of_entries(column: pa.MapArray) -> pa.ListArray:
    """Return a map as the list of its keys and values."""
    entries = pa.StructArray.from_arrays([column.keys, column.items], ["key", "value"])
    kind = pa.list_(entries.type)
    buffers = column.buffers()[:2]
    return pa.Array.from_buffers(
        kind, len(column), buffers, offset=column.offset, children=[entries]
    )
