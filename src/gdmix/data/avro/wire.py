"""Kernels that carry out the programs of `avro_program`, on the bytes of Avro values.

A program walks one row. Each instruction is (operation, region, argument, target). Values lie
in regions of one piece of memory: region r holds ``counts[r]`` elements of one width, the first
at index ``bases[r]`` of the memory seen as such elements.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gdmix.data.varint import get_zigzag, put_zigzag
from gdmix.glm.compiled import kernel

Bytes = NDArray[np.uint8]
I64 = NDArray[np.int64]


class Op(IntEnum):
    """Operations; those that read with region -1 only pass over a value."""

    ROW_END = 0
    # One value between the bytes and a region; TEXT and FIXED also use the region after it.
    LONG = 1
    INT = 2
    FLOAT = 3
    DOUBLE = 4
    BOOLEAN = 5
    TEXT = 6
    FIXED = 7  # of `argument` bytes
    ENUM = 8  # of `argument` symbols
    # Reading only: one type as another.
    LONG_AS_DOUBLE = 9
    FLOAT_AS_DOUBLE = 10
    LONG_AS_TEXT = 11
    # Reading only: what stands for a value that is not there.
    PUSH = 12  # `argument`, a byte
    PUSH_INT = 13
    PUSH_LONG = 14
    REPEAT = 15  # the last element
    # Reading: one of `argument` branches; as many GOTOs follow.
    UNION = 16
    GOTO = 17
    # Arrays and maps. BLOCK reads how many items follow; their end is pushed to the region.
    ARRAY = 18
    BLOCK = 19  # go to `target` after the last one
    NEXT = 20  # go to `target`, the BLOCK before the items
    # Writing only.
    CONSTANT = 21  # `argument`
    OPTION = 22  # `argument` holds two branches; if the region holds 0, go to `target`
    ITEMS = 23  # the region holds how many; if 0, go to `target`


(_ROW_END, _LONG, _INT, _FLOAT, _DOUBLE, _BOOLEAN, _TEXT, _FIXED, _ENUM, _LONG_AS_DOUBLE,
 _FLOAT_AS_DOUBLE, _LONG_AS_TEXT, _PUSH, _PUSH_INT, _PUSH_LONG, _REPEAT, _UNION, _GOTO, _ARRAY,
 _BLOCK, _NEXT, _CONSTANT, _OPTION, _ITEMS) = (int(op) for op in Op)  # fmt: skip

OK, GROW, CUT_OFF, BAD_LENGTH, BAD_BRANCH, BAD_COUNT, BAD_SYMBOL, BAD_INT = range(8)
MOST_DEPTH = 64
_ROOM = 32  # bytes that one instruction may write, besides text


class Memory(NamedTuple):
    """Regions: one piece of memory seen in five ways, and where each region lies in it.

    Attributes
    ----------
    bases, sizes, counts
        (regions,) index of its first element, room for elements, elements that are there (in
        writing: that were taken).
    """

    octets: Bytes
    ints: NDArray[np.int32]
    longs: I64
    floats: NDArray[np.float32]
    doubles: NDArray[np.float64]
    bases: I64
    sizes: I64
    counts: I64

    @staticmethod
    def of(octets: Bytes, bases: I64, sizes: I64, counts: I64) -> Memory:
        """Return the five views of some bytes, a multiple of eight."""
        return Memory(
            octets,
            octets.view(np.int32),
            octets.view(np.int64),
            octets.view(np.float32),
            octets.view(np.float64),
            bases,
            sizes,
            counts,
        )


@kernel
def _put_decimal(out: Bytes, p: int, value: int) -> int:
    """Write a number in digits, at most 20; return the position after it."""
    rest = np.uint64(value)
    ten = np.uint64(10)
    if value < 0:
        rest = np.uint64(-(value + 1)) + np.uint64(1)  # the least number has no positive
        out[p] = 45
        p += 1
    last = p
    more = rest
    while more >= ten:
        more //= ten
        last += 1
    for k in range(last - p + 1):
        out[last - k] = 48 + np.uint8(rest % ten)
        rest //= ten
    return last + 1


@kernel
def decode_rows(
    data: Bytes, p: int, rows: int, program: I64, memory: Memory, before: I64
) -> tuple[int, int, int, int]:
    """Read rows from ``data[p:]`` into regions.

    Parameters
    ----------
    before
        (regions,) keeps the counts at the begin of a row: one that fails adds nothing.

    Returns
    -------
    code, rows, position, region
        How many rows were read; where the next one begins; the region to GROW.
    """
    octets, ints, longs, floats, doubles, bases, sizes, counts = memory
    end = len(data)
    left, total = np.zeros((2, MOST_DEPTH), np.int64)
    for row in range(rows):
        begin = p
        before[:] = counts
        code, full = OK, 0
        pc, depth = 0, -1
        while code == OK:
            op, r, argument = program[pc, 0], program[pc, 1], program[pc, 2]
            pc += 1
            at = -1
            if r >= 0:
                at = bases[r] + counts[r]
                if counts[r] >= sizes[r]:
                    code, full = GROW, r
                    break
            if op == _ROW_END:
                break
            if op in (_TEXT, _FIXED, _LONG_AS_TEXT):
                length, value = argument, 0
                if op != _FIXED:
                    value, p = get_zigzag(data, p, end)
                    length = value
                if p < 0:
                    code = CUT_OFF
                elif op == _LONG_AS_TEXT:
                    if at >= 0 and counts[r + 1] + 20 > sizes[r + 1]:
                        code, full = GROW, r + 1
                    elif at >= 0:
                        start = bases[r + 1]
                        stop = _put_decimal(octets, start + counts[r + 1], value)
                        counts[r + 1] = stop - start
                        ints[at] = stop - start
                elif length < 0 or length > end - p:
                    code = BAD_LENGTH
                else:
                    if at >= 0 and counts[r + 1] + length > sizes[r + 1]:
                        code, full = GROW, r + 1
                    elif at >= 0:
                        start = bases[r + 1] + counts[r + 1]
                        for k in range(length):
                            octets[start + k] = data[p + k]
                        counts[r + 1] += length
                        ints[at] = counts[r + 1]
                    p += length
            elif op in (_LONG, _INT, _ENUM, _LONG_AS_DOUBLE):
                value, p = get_zigzag(data, p, end)
                if p < 0:
                    code = CUT_OFF
                elif op == _ENUM and (value < 0 or value >= argument):
                    code = BAD_SYMBOL
                elif op == _INT and (value < -0x80000000 or value > 0x7FFFFFFF):
                    code = BAD_INT
                elif at >= 0:
                    if op == _LONG:
                        longs[at] = value
                    elif op == _LONG_AS_DOUBLE:
                        doubles[at] = value
                    else:
                        ints[at] = value
            elif op in (_FLOAT, _FLOAT_AS_DOUBLE, _DOUBLE, _BOOLEAN):
                size = 8 if op == _DOUBLE else 1 if op == _BOOLEAN else 4
                if end - p < size:
                    code = CUT_OFF
                elif at >= 0:
                    if op == _BOOLEAN:
                        octets[at] = data[p] != 0
                    else:
                        # Of a float that becomes a double, the bits go to the region first.
                        width = 4 if op == _FLOAT else 8
                        for k in range(size):
                            octets[width * at + k] = data[p + k]
                        if op == _FLOAT_AS_DOUBLE:
                            doubles[at] = floats[2 * at]
                p += size
            elif op == _UNION:
                value, p = get_zigzag(data, p, end)
                if p < 0:
                    code = CUT_OFF
                elif value < 0 or value >= argument:
                    code = BAD_BRANCH
                else:
                    pc = program[pc + value, 3]
            elif op == _GOTO:
                pc = program[pc - 1, 3]
            elif op == _ARRAY:
                depth += 1
                total[depth] = 0
            elif op == _NEXT:
                left[depth] -= 1
                pc = program[pc - 1, 3] + (left[depth] > 0)
            elif op == _BLOCK:
                count, p = get_zigzag(data, p, end)
                size = -1
                if p >= 0 and count < 0:
                    count = -count
                    size, p = get_zigzag(data, p, end)
                    if p >= 0 and (size < 0 or size > end - p):
                        code = BAD_LENGTH
                if p < 0:
                    code = CUT_OFF
                elif code == OK and (count < 0 or count > end - p):
                    code = BAD_COUNT
                elif code == OK and count == 0:
                    if at >= 0:
                        ints[at] = ints[at - 1] + total[depth]
                        counts[r] += 1
                    depth -= 1
                    pc = program[pc - 1, 3]
                elif code == OK and r < 0 and size >= 0:
                    p += size
                    pc -= 1
                elif code == OK:
                    left[depth] = count
                    total[depth] += count
            elif op == _PUSH:
                octets[at] = argument
            elif op == _PUSH_INT:
                ints[at] = 0
            elif op == _PUSH_LONG:
                longs[at] = 0
            elif op == _REPEAT:
                ints[at] = ints[at - 1]
            if at >= 0 and op != _BLOCK:
                counts[r] += 1
        if code != OK:
            counts[:] = before
            return code, row, begin, full
    return OK, rows, p, 0


@kernel
def encode_rows(
    memory: Memory, rows: int, program: I64, out: Bytes, most: int, before: I64
) -> tuple[int, int, int]:
    """Write rows from regions until they take `most` bytes.

    Returns
    -------
    code, rows, size
        GROW if `out` has no room for the next row.
    """
    octets, ints, longs, _, _, bases, _, counts = memory
    left = np.zeros(MOST_DEPTH, np.int64)
    p = 0
    for row in range(rows):
        if p >= most:
            return OK, row, p
        begin = p
        before[:] = counts
        pc, depth = 0, -1
        while True:
            op, r, argument = program[pc, 0], program[pc, 1], program[pc, 2]
            pc += 1
            at = -1
            if r >= 0:
                at = bases[r] + counts[r]
                counts[r] += 1
            start, length = 0, 0
            if op in (_TEXT, _FIXED):
                start = int(bases[r + 1] + longs[at])
                length = int(longs[at + 1] - longs[at])
            if len(out) - p < length + _ROOM:
                counts[:] = before
                return GROW, row, begin
            if op == _ROW_END:
                break
            if op in (_TEXT, _FIXED):
                if op == _TEXT:
                    p = put_zigzag(out, p, length)
                for k in range(length):
                    out[p + k] = octets[start + k]
                p += length
            elif op == _LONG:
                p = put_zigzag(out, p, int(longs[at]))
            elif op == _INT:
                p = put_zigzag(out, p, int(ints[at]))
            elif op in (_FLOAT, _DOUBLE, _BOOLEAN):
                size = 8 if op == _DOUBLE else 1 if op == _BOOLEAN else 4
                for k in range(size):
                    out[p + k] = octets[size * at + k]
                p += size
            elif op == _CONSTANT:
                p = put_zigzag(out, p, argument)
            elif op == _OPTION:
                if octets[at] != 0:
                    p = put_zigzag(out, p, argument >> 32)
                else:
                    p = put_zigzag(out, p, argument & 0xFFFFFFFF)
                    pc = program[pc - 1, 3]
            elif op == _ITEMS:
                count = int(ints[at])
                p = put_zigzag(out, p, count)
                if count == 0:
                    pc = program[pc - 1, 3]
                else:
                    depth += 1
                    left[depth] = count
            elif op == _NEXT:
                left[depth] -= 1
                if left[depth] > 0:
                    pc = program[pc - 1, 3]
                else:
                    out[p] = 0
                    p += 1
                    depth -= 1
    return OK, rows, p
