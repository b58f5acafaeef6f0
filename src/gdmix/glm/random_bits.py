"""Random numbers by counting: number k of a stream is a hash of the stream's key and k.

So that a number depends on its place alone, not on which others are drawn, or by which thread.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.compiled import kernel

_STEP = np.uint64(0x9E3779B97F4A7C15)


@kernel
def mix(h: np.uint64) -> np.uint64:
    """Mix all bits of a number into all of the result (Steele et al. 2014, SplitMix64)."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def mixed(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Do as `mix`, one step of the stream on, with each of an array's numbers."""
    h = h + _STEP
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@kernel
def standard_normal(key: np.uint64, k: int) -> float:
    """Return number k of a stream of standard normal ones (Box and Muller 1958)."""
    place = np.uint64(2) * np.uint64(k)
    first = mix(key + (place + np.uint64(1)) * _STEP)
    second = mix(key + (place + np.uint64(2)) * _STEP)
    radius = math.sqrt(-2.0 * math.log(((first >> np.uint64(11)) + np.uint64(1)) * 2.0**-53))
    return radius * math.cos(2.0 * math.pi * ((second >> np.uint64(11)) * 2.0**-53))
