"""PTX's types and literals, as NumPy stores them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
I8, I16, I32, I64 = np.int8, np.int16, np.int32, np.int64
F16, F32, F64 = np.float16, np.float32, np.float64

UNSIGNED = {1: np.bool_, 8: U8, 16: U16, 32: U32, 64: U64}
SIGNED = {8: I8, 16: I16, 32: I32, 64: I64}


@dataclass(frozen=True)
class PtxType:
    """A type of PTX; `kind` is u (unsigned or plain bits), s (signed), f, bf (bfloat16) or p (predicate)."""

    name: str
    kind: str
    bits: int  # of the whole register
    raw: type  # NumPy type of one lane as stored
    lanes: int = 1

    @property
    def integer(self) -> bool:
        return self.kind in ("u", "s")

    @property
    def floating(self) -> bool:
        return self.kind in ("f", "bf")


def _all_types() -> dict[str, PtxType]:
    types = [PtxType("pred", "p", 1, np.bool_)]
    for bits, signed in SIGNED.items():
        types += [PtxType(f"{letter}{bits}", "u", bits, UNSIGNED[bits]) for letter in "bu"]
        types.append(PtxType(f"s{bits}", "s", bits, signed))
    types += [
        PtxType("f16", "f", 16, F16),
        PtxType("bf16", "bf", 16, U16),
        PtxType("f32", "f", 32, F32),
        PtxType("tf32", "f", 32, F32),
        PtxType("f64", "f", 64, F64),
        PtxType("f16x2", "f", 32, F16, 2),
        PtxType("bf16x2", "bf", 32, U16, 2),
        PtxType("f32x2", "f", 64, F32, 2),
        PtxType("s16x2", "s", 32, I16, 2),
        PtxType("u16x2", "u", 32, U16, 2),
    ]
    return {t.name: t for t in types}


TYPES = _all_types()
NUMBER = re.compile(
    r"-?(0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|\d+\.\d*(?:[eE][-+]?\d+)?|\d+U?)$"
)


def immediate_bits(text: str, t: PtxType) -> int:
    """The bits that a literal has in a register of type `t`."""
    negative, digits = text.startswith("-"), text.lstrip("-").rstrip("U")
    if digits[:2] in ("0f", "0F"):
        bits = int(digits[2:], 16) ^ (0x80000000 if negative else 0)
        return int(np.array(bits, U32).view(F32).astype(F64).view(U64)) if t.name == "f64" else bits
    if digits[:2] in ("0d", "0D"):
        bits = int(digits[2:], 16) ^ (1 << 63 if negative else 0)
        return int(np.array(bits, U64).view(F64).astype(F32).view(U32)) if t.name == "f32" else bits
    if "." in digits:
        return int(np.array(float(text), t.raw).view(UNSIGNED[t.bits]))
    value = int(digits, 8) if re.fullmatch(r"0[0-7]+", digits) else int(digits, 0)
    value = -value if negative else value
    return int(value != 0) if t.kind == "p" else value & ((1 << t.bits) - 1)
