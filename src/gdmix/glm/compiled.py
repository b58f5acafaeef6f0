"""How kernels are compiled: the one decorator, and the exponential and logarithm they share.

Every kernel is a module-level function with an on-disk cache; a loss is chosen by an integer.
(A jitclass, or a compiled function passed as an argument, would miss that cache.) The
polynomials below replace the C library's ``exp`` and ``log1p`` because the compiler can
vectorise them; both agree with the library to about one unit in the last place.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.core.event import Event, Listener, register, unregister
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Reassociation lets sums become vector sums. NaN never reaches a kernel: data are checked
# before, and results after.
_FAST = {"contract", "nsz", "arcp", "nnan", "ninf", "reassoc"}
# Without reassociation: `exp` rounds by adding and subtracting a magic number.
_EXACT_ORDER = {"contract", "nsz", "nnan", "ninf"}


def kernel(function: _Function) -> _Function:
    """Compile a kernel: cached on disk, without the interpreter lock."""
    return _compile(function, _FAST)


def _exact_order(function: _Function) -> _Function:
    return _compile(function, _EXACT_ORDER)


def _compile(function: _Function, fastmath: set[str]) -> _Function:
    options = {
        "nogil": True,
        "fastmath": fastmath,
        "error_model": "numpy",
        "no_cfunc_wrapper": True,  # nobody calls kernels from C: a tenth of the compile time
    }
    try:
        compiled: Any = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that can be written to
        compiled = numba.njit(**options)(function)
    else:
        # Numba discards a cached kernel when its own file changes, not when a kernel that it
        # calls does: let the sources of all kernels count.
        with contextlib.suppress(AttributeError):
            index = compiled._cache._cache_file
            index._source_stamp = (index._source_stamp, _sources())
    return cast(_Function, compiled)


@cache
def _sources() -> str:
    package = Path(__file__).parents[1]
    files = (p for folder in ("glm", "data") for p in sorted((package / folder).rglob("*.py")))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


class _FirstCompilation(Listener):  # type: ignore[misc]
    """Says once that kernels are being compiled: it is a long silence otherwise."""

    def on_start(self, event: Event) -> None:
        if event.data["dispatcher"].py_func.__module__.startswith("gdmix."):
            unregister("numba:compile", self)
            log.info(
                "compiling kernels, once on this machine: less than a minute; "
                "`gdmix warmup` does it in advance"
            )

    def on_end(self, event: Event) -> None:
        pass


log = logging.getLogger("gdmix.kernels")
log.setLevel(logging.INFO)
register("numba:compile", _FirstCompilation())


@intrinsic  # type: ignore[untyped-decorator]
def _bits_of(typing_context: Any, x: Any) -> Any:
    """Reinterpret a double as an int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _double_of(typing_context: Any, bits: Any) -> Any:
    """Reinterpret an int64 as a double."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_ROUND = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to an integer in the low bits


@_exact_order
def exp(x: float) -> float:
    """e**x for x clipped to [-200, 200]: range reduction by ln 2, then a Taylor polynomial."""
    x = min(max(x, -200.0), 200.0)
    shifted = x * _LOG2_E + _ROUND
    exponent = _bits_of(shifted)
    k = shifted - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = 1.6059043836821614599e-10
    p = p * r + 2.0876756987868098979e-9
    p = p * r + 2.5052108385441718775e-8
    p = p * r + 2.7557319223985890653e-7
    p = p * r + 2.7557319223985890653e-6
    p = p * r + 2.4801587301587301587e-5
    p = p * r + 1.9841269841269841270e-4
    p = p * r + 1.3888888888888888889e-3
    p = p * r + 8.3333333333333333333e-3
    p = p * r + 4.1666666666666666667e-2
    p = p * r + 1.6666666666666666667e-1
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * _double_of((exponent + 1023) << 52)  # type: ignore[no-any-return]


@_exact_order
def log1p(t: float) -> float:
    """log(1 + t) for t in [0, 1]: the series of 2 atanh(t / (2 + t))."""
    s = t / (2.0 + t)
    q = s * s
    p = 1.0 / 33
    p = p * q + 1.0 / 31
    p = p * q + 1.0 / 29
    p = p * q + 1.0 / 27
    p = p * q + 1.0 / 25
    p = p * q + 1.0 / 23
    p = p * q + 1.0 / 21
    p = p * q + 1.0 / 19
    p = p * q + 1.0 / 17
    p = p * q + 1.0 / 15
    p = p * q + 1.0 / 13
    p = p * q + 1.0 / 11
    p = p * q + 1.0 / 9
    p = p * q + 1.0 / 7
    p = p * q + 1.0 / 5
    p = p * q + 1.0 / 3
    p = p * q + 1.0
    return 2.0 * s * p
