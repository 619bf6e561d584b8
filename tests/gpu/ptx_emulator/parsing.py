"""Reads a PTX module: its variables, functions and entries."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from .errors import EmulatorError
from .operands import split_list
from .ptx_types import TYPES

SOMETHING = re.compile(r"\S")
SECTION = re.compile(r"\.section\b[^{]*")
DIRECTIVE = re.compile(r"\.(version|target|address_size|file|loc)\b[^\n]*")
FUNCTION = re.compile(r"(?:\.(?:visible|extern|weak)\s+)?\.(entry|func)\b")
SIGNATURE = re.compile(r"\s*(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([^)]*)\))?(.*)", re.S)
SPACES = (".global", ".const", ".shared", ".local", ".param")


@dataclass
class Variable:
    name: str
    space: str
    type: str
    align: int
    size: int
    init: list[str] | None = None


@dataclass
class Function:
    name: str
    params: list[Variable] = field(default_factory=list)
    returns: list[Variable] = field(default_factory=list)
    body: tuple[str, int] | None = None  # text and its first line
    required_block: tuple[int, ...] | None = None
    largest_block: tuple[int, ...] | None = None


def strip_comments(text: str) -> str:
    """Blanks the comments and keeps the lines' numbers."""

    def blank(m):
        return m[0] if m[0][0] == '"' else "\n" * m[0].count("\n") or " "

    return re.sub(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', blank, text, flags=re.S)


def matching_brace(text: str, start: int) -> int:
    """Where the block that opens first after `start` has ended."""
    depth = 0
    for m in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if m[0] == "{" else -1
        if depth == 0:
            return m.end()
    raise EmulatorError("unbalanced braces in PTX")


def parse_variable(declaration: str) -> Variable:
    """Reads '.shared .align 4 .b8 name[128] = {...}'."""
    head, _, init = declaration.partition("=")
    m = re.search(r"([\w$%.]+)\s*((?:\[\s*\d*\s*\]\s*)*)$", head.strip())
    words = re.findall(r"\.[\w:]+", head[: m.start()])
    space = next((w[1:] for w in words if w in SPACES), "param")
    type_name = [w[1:] for w in words if w[1:] in TYPES or w == ".b128"][-1]
    element = 16 if type_name == "b128" else max(1, TYPES[type_name].bits // 8)
    vector = next((int(w[2:]) for w in words if re.fullmatch(r"\.v[248]", w)), 1)
    align = re.search(r"\.align\s+(\d+)", head)
    count = vector
    for extent in re.findall(r"\[\s*(\d*)\s*\]", m[2]):
        count *= int(extent or 0)
    values = [v.strip() for v in re.sub(r"[{}]", "", init).split(",")] if init.strip() else None
    return Variable(m[1], space, type_name, int(align[1]) if align else element * vector, count * element, values)


class Module:
    """All that a PTX text declares."""

    def __init__(self, ptx: str):
        self.text = strip_comments(ptx)
        self.files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', self.text))
        self.variables: dict[str, Variable] = {}
        self.functions: dict[str, Function] = {}
        self.entries: dict[str, Function] = {}
        at = 0
        while found := SOMETHING.search(self.text, at):
            at = self._read_statement(found.start())

    def entry(self, kernel: str) -> Function:
        if kernel not in self.entries:
            raise EmulatorError(f"no kernel {kernel!r}; the module has {sorted(self.entries)}")
        return self.entries[kernel]

    def _read_statement(self, at: int) -> int:
        text = self.text
        if m := SECTION.match(text, at):
            return matching_brace(text, m.end())
        if m := DIRECTIVE.match(text, at):
            return m.end()
        if m := FUNCTION.match(text, at):
            return self._read_function(m[1], m.end())
        end = text.index(";", at)
        declaration = text[at:end]
        if re.search(r"\.(global|const|shared)\b", declaration):
            variable = parse_variable(declaration)
            self.variables[variable.name] = variable
        elif not re.match(r"\.(pragma|alias)\b", declaration):
            raise NotImplementedError(f"module statement: {declaration.strip()[:80]}")
        return end + 1

    def _read_function(self, kind: str, at: int) -> int:
        text = self.text
        end = re.compile(r"[{;]").search(text, at).start()
        returns, name, params, rest = SIGNATURE.match(text[at:end]).groups()
        function = Function(name, *[[parse_variable(x) for x in split_list(s or "")] for s in (params, returns)])
        function.required_block, function.largest_block = _extent("reqntid", rest), _extent("maxntid", rest)
        if text[end] == ";":
            self.functions.setdefault(name, function)
            return end + 1
        close = matching_brace(text, end)
        function.body = (text[end + 1 : close - 1], text.count("\n", 0, end + 1) + 1)
        (self.entries if kind == "entry" else self.functions)[name] = function
        return close


def _extent(directive: str, text: str) -> tuple[int, ...] | None:
    """The numbers of a directive such as .maxntid 128, 1, 1."""
    m = re.search(rf"\.{directive}\s+([\d\s,]+)", text)
    return tuple(int(x) for x in m[1].replace(",", " ").split()) if m else None


@functools.lru_cache(64)
def parse(ptx: str) -> Module:
    return Module(ptx)
