"""Integers of varying length, as protocol buffers and Avro write them: kernels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.compiled import kernel

Bytes = NDArray[np.uint8]


@kernel
def get_varint(data: Bytes, p: int, end: int) -> tuple[int, int]:
    """Read a varint before `end`; return it and the position after it, or -1."""
    value = 0
    for k in range(10):
        if p >= end:
            return 0, -1
        byte = int(data[p] & 255)
        p += 1
        value |= (byte & 127) << (7 * k)
        if byte < 128:
            return value, p
    return 0, -1


@kernel
def put_varint(out: Bytes, p: int, value: int) -> int:
    """Write a varint of at most ten bytes; return the position after it."""
    while value < 0 or value > 127:
        out[p] = (value & 127) | 128
        value = (value >> 7) & 0x1FFFFFFFFFFFFFF  # as of an unsigned number
        p += 1
    out[p] = value
    return p + 1


@kernel
def get_zigzag(data: Bytes, p: int, end: int) -> tuple[int, int]:
    """Read a varint that stands for a number with a sign."""
    value, p = get_varint(data, p, end)
    return ((value >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(value & 1), p


@kernel
def put_zigzag(out: Bytes, p: int, value: int) -> int:
    """Write a number with a sign as a varint."""
    return put_varint(out, p, (value << 1) ^ (value >> 63))
