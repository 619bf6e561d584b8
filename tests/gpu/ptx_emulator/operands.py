"""The operands of an instruction and how they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .ptx_types import NUMBER


@dataclass(frozen=True)
class Register:
    """A register, or any other name: a variable, a label, a special register."""

    name: str


@dataclass(frozen=True)
class Immediate:
    text: str


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}"""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Address:
    """[base + offset]; without a base, an absolute address."""

    base: Register | None
    offset: int


@dataclass(frozen=True)
class Pair:
    """a|b, two results."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Negated:
    """!p"""

    operand: Operand


@dataclass(frozen=True)
class Sink:
    """_, a result that nobody wants."""


Operand = Register | Immediate | Vector | Address | Pair | Negated | Sink


def items_of(operand: Operand) -> list[Operand]:
    """A vector's parts, or the operand itself."""
    return list(operand.items) if isinstance(operand, Vector) else [operand]


def names_in(operand: Operand | None) -> Iterator[str]:
    """Every name that an operand mentions."""
    match operand:
        case Register(name):
            yield name
        case Vector(items):
            for item in items:
                yield from names_in(item)
        case Address(base, _):
            yield from names_in(base)
        case Pair(first, second):
            yield from names_in(first)
            yield from names_in(second)
        case Negated(inner):
            yield from names_in(inner)


def split_list(text: str) -> list[str]:
    """Splits at the commas outside brackets."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()] if current.strip() else parts


def parse_operand(text: str, resolve: Callable[[str], str]) -> Operand:
    """Reads one operand; `resolve` gives the full name of a name seen in its scope."""
    if text == "_":
        return Sink()
    if text[0] == "{":
        return Vector(tuple(parse_operand(x, resolve) for x in split_list(text[1:-1])))
    if text[0] == "[":
        return _parse_address(text, resolve)
    if text[0] == "!":
        return Negated(parse_operand(text[1:].strip(), resolve))
    if "|" in text:
        return Pair(*[parse_operand(x.strip(), resolve) for x in text.split("|")])
    return Immediate(text) if NUMBER.match(text) else Register(resolve(text))


def _parse_address(text: str, resolve: Callable[[str], str]) -> Address:
    m = re.fullmatch(r"\[\s*([^\s+]+)\s*(?:\+\s*(-?\w+)\s*)?\]", text)
    if not m:
        raise NotImplementedError(f"address {text}")
    base, offset = m[1], int(m[2] or "0", 0)
    if NUMBER.match(base):
        return Address(None, int(base, 0) + offset)
    return Address(Register(resolve(base)), offset)
