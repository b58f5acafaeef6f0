"""Vectors of four doubles inside kernels: one instruction, four entities.

numba has no vector type of its own, so here is one, `Vector`, with the handful of operations that
the solver of `dual_newton_simd` needs, each a single LLVM instruction. On a processor without
256-bit registers LLVM splits them; results are the same.

A lane array holds four problems interleaved: element i of problem k is ``a[4 * i + k]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES: Final = 4
_LLVM_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_FLAGS = ("contract", "nsz", "nnan", "ninf", "arcp")


class _VectorType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="gdmix.Vector4")


_VECTOR = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _LLVM_VECTOR)


def _address(context: Any, builder: Any, kind: Any, array: Any, position: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [position]), _LLVM_VECTOR.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def load(typing_context: Any, array: Any, position: Any) -> Any:
    """Return the four doubles from ``array[position]`` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments)
        value = builder.load(address)
        value.align = 8
        return value

    return _VECTOR(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, array: Any, position: Any, value: Any) -> Any:
    """Write the four doubles of `value` to ``array[position]`` and on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], address).align = 8
        return context.get_dummy_value()

    return types.void(array, types.intp, _VECTOR), generate


@intrinsic  # type: ignore[untyped-decorator]
def fill(typing_context: Any, value: Any) -> Any:
    """Return four copies of a double."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.Constant(_LLVM_VECTOR, ir.Undefined)
        for lane in range(LANES):
            index = ir.Constant(ir.IntType(32), lane)
            vector = builder.insert_element(vector, arguments[0], index)
        return vector

    return _VECTOR(types.float64), generate


def _binary(instruction: str) -> Callable[[Any, Any], Any]:
    @intrinsic  # type: ignore[untyped-decorator]
    def operation(typing_context: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments, flags=_FLAGS)

        return _VECTOR(_VECTOR, _VECTOR), generate

    return operation  # type: ignore[no-any-return]


def _library(name: str, n_arguments: int) -> Callable[..., Any]:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_LLVM_VECTOR, [_LLVM_VECTOR] * n_arguments)
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v4f64")
        return builder.call(function, arguments)

    if n_arguments == 1:

        @intrinsic  # type: ignore[untyped-decorator]
        def unary(typing_context: Any, a: Any) -> Any:
            return _VECTOR(_VECTOR), generate

        return unary  # type: ignore[no-any-return]

    @intrinsic  # type: ignore[untyped-decorator]
    def ternary(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
        return _VECTOR(_VECTOR, _VECTOR, _VECTOR), generate

    return ternary  # type: ignore[no-any-return]


add = _binary("fadd")
subtract = _binary("fsub")
multiply = _binary("fmul")
divide = _binary("fdiv")
square_root = _library("sqrt", 1)
multiply_add = _library("fma", 3)  # a * b + c
