"""A tensor is a name, a dtype, a shape and a buffer. Nothing is copied on the way in or out.

Numpy is imported only when an array is asked for, so that the floor stays light. Data is always C-contiguous and
little-endian, on every wire.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from nearfar.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MOST_DIMENSIONS = 64
"""Of an array, as numpy has it."""


class DType(StrEnum):
    """Element types; the values are numpy's names."""

    BOOL = "bool"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return _SIZES[self]


_SIZES = {
    DType.BOOL: 1,
    DType.UINT8: 1,
    DType.UINT16: 2,
    DType.UINT32: 4,
    DType.UINT64: 8,
    DType.INT8: 1,
    DType.INT16: 2,
    DType.INT32: 4,
    DType.INT64: 8,
    DType.FLOAT16: 2,
    DType.FLOAT32: 4,
    DType.FLOAT64: 8,
}


class TensorSpec(msgspec.Struct, frozen=True):
    """What a model takes or gives. A dimension of -1 is free. `scale` is 0 for a tensor that is not quantised.

    real = (stored - zero_point) * scale.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    scale: float = 0.0
    zero_point: int = 0

    def accepts(self, dtype: DType, shape: Sequence[int]) -> bool:
        return (
            dtype == self.dtype
            and len(shape) == len(self.shape)
            and all(want in (-1, have) for want, have in zip(self.shape, shape, strict=True))
        )

    def __str__(self) -> str:
        dims = "x".join("?" if d < 0 else str(d) for d in self.shape) or "scalar"
        return f"{self.name} {self.dtype.value}[{dims}]"


class Tensor:
    """One named array as it travels: (name, dtype, shape, buffer).

    >>> Tensor("x", DType.UINT8, (2, 2), b"abcd").array().tolist()
    [[97, 98], [99, 100]]
    """

    __slots__ = ("buffer", "dtype", "name", "shape")

    def __init__(self, name: str, dtype: DType, shape: tuple[int, ...], buffer: bytes | memoryview) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.buffer = buffer

    @property
    def nbytes(self) -> int:
        return len(self.buffer)

    def check(self) -> Tensor:
        """This tensor; raises `InputError` when shape, dtype and buffer disagree. For what comes from outside."""
        if len(self.shape) > MOST_DIMENSIONS:  # first: the product of a million sizes takes minutes
            raise InputError(
                f"Tensor {self.name!r} has {len(self.shape)} dimensions.", f"Use at most {MOST_DIMENSIONS}."
            )
        if any(not 0 <= d < 2**63 for d in self.shape):  # also keeps the product short enough to be written out
            raise InputError(f"Tensor {self.name!r} has a dimension that is negative, or larger than any memory.")
        want = math.prod(self.shape) * self.dtype.size
        # An empty tensor may state sizes that no array can have: numpy multiplies them without the zero.
        if want == 0 and math.prod(d or 1 for d in self.shape) >= 2**59:
            raise InputError(f"Tensor {self.name!r} is empty, but too large in {list(self.shape)}.")
        if want != self.nbytes:
            raise InputError(
                f"Tensor {self.name!r} of {self.dtype.value}{list(self.shape)} needs {want} bytes, got {self.nbytes}."
            )
        return self

    def array(self) -> NDArray[Any]:
        """A view; read-only when the buffer is."""
        import numpy as np

        return np.frombuffer(self.buffer, dtype=self.dtype.value).reshape(self.shape)

    @classmethod
    def of(cls, name: str, array: NDArray[Any]) -> Tensor:
        """A tensor over the array's memory; copies only when it is not contiguous.

        Raises `InputError` for a dtype that has no place here (objects, strings, complex numbers).
        """
        import numpy as np

        contiguous = np.ascontiguousarray(array)
        try:
            dtype = _BY_CODE.get(contiguous.dtype.str) or DType(contiguous.dtype.name)
        except ValueError:
            raise InputError(
                f"Tensor {name!r} has dtype {array.dtype}, which no runtime takes.",
                f"Use one of {', '.join(DType)}.",
            ) from None
        return cls(name, dtype, tuple(array.shape), _bytes_of(contiguous))

    @classmethod
    def raw(cls, name: str, data: bytes | memoryview) -> Tensor:
        """Bytes as a uint8 vector."""
        return cls(name, DType.UINT8, (len(data),), data)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Tensor)
            and (self.name, self.dtype, self.shape) == (other.name, other.dtype, other.shape)
            and memoryview(self.buffer) == memoryview(other.buffer)
        )

    __hash__ = None  # type: ignore[assignment]  # holds a buffer that may be large or writable

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype.value}{list(self.shape)})"


_BY_CODE = {
    {"bool": "|b1", "uint8": "|u1", "int8": "|i1"}.get(d, f"<{'f' if d[0] == 'f' else d[0]}{d.size}"): d for d in DType
}
"""Numpy's codes, which it has at hand; a dtype's name it puts together anew each time."""


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """The memory of a contiguous array as flat bytes; an empty or 0-d array has no castable memoryview of its own."""
    return array.reshape(-1).view("uint8").data if array.size else memoryview(b"")
