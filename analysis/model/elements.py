"""Decodes and encodes numbers of the data types of keys, values and scores."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.core.errors import EngineError

Array = npt.NDArray[Any]

_EIGHT = {"float8_e4m3fn": 7, "float8_e4m3fnuz": 8}
"""Types of 8 bits: 4 of the exponent, by its bias, and 3 of the fraction; without infinity."""
_BITS: dict[str, type[np.unsignedinteger[Any]]] = {
    "float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32,
    **dict.fromkeys(_EIGHT, np.uint8),
}  # fmt: skip
NANS = {
    "float16": (0x7E00, 0xFE00), "bfloat16": (0x7FC0, 0xFFC0),
    "float32": (0x7FC00000, 0xFFC00000), "float8_e4m3fn": (0x7F, 0xFF), "float8_e4m3fnuz": (0x80,),
}  # fmt: skip
"""Bits of the NaN that arithmetic gives, by type."""


def check(dtype: str) -> None:
    """Raise EngineError for an unknown type."""
    if dtype not in _BITS:
        raise EngineError(
            f"Numbers of the type {dtype} cannot be read. Export the model with a cache of"
            f" {', '.join(_BITS)}."
        )


def decode(data: Any, dtype: str) -> Array:
    """Return the numbers in bytes, as float16 or float32. Raises EngineError."""
    check(dtype)
    bits = np.frombuffer(data, dtype=_BITS[dtype])
    if dtype in _EIGHT:
        found: Array = _eight(dtype)[bits]
        return found
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16 if dtype == "float16" else np.float32)


def encode(value: float, dtype: str) -> Array:
    """Return the bits of the nearest number of a type, [1]. Raises EngineError."""
    check(dtype)
    if math.isnan(value):
        return np.array([NANS[dtype][0]], dtype=_BITS[dtype])
    if dtype in _EIGHT:
        apart = np.abs(_eight(dtype).astype(np.float64) - value)
        return np.array([np.nanargmin(apart)], dtype=np.uint8)
    with np.errstate(over="ignore"):
        if dtype == "float16":
            return np.array([value], dtype=np.float16).view(np.uint16)
        bits = np.array([value], dtype=np.float32).view(np.uint32)
    if dtype == "float32":
        return bits
    # Round to nearest, ties to even.
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def nans_in_words(dtype: str) -> Array:
    """Return 64-bit words filled with NaN, one for each kind of NaN of a type."""
    if dtype not in NANS:
        return np.zeros(0, dtype=np.uint64)
    kinds = np.array(NANS[dtype], dtype=_BITS[dtype])
    return np.repeat(kinds, 8 // kinds.itemsize).view(np.uint64)


@functools.cache
def _eight(dtype: str) -> Array:
    """Return the number of each of the 256 patterns of an 8-bit type."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    least = exponent == 0
    size = np.where(least, fraction / 8, 1 + fraction / 8)
    size = size * 2.0 ** (np.maximum(exponent, 1) - _EIGHT[dtype])
    values: Array = np.where(codes & 128, -size, size)
    values[list(NANS[dtype])] = np.nan
    return values.astype(np.float32)
