"""A kernel as one flat list of instructions: scopes renamed, calls inlined, labels turned into indices."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import EmulatorError
from .operands import Operand, Register, parse_operand, split_list
from .parsing import SOMETHING, Function, Module, Variable, parse_variable
from .ptx_types import TYPES

LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)[^\n]*")
LABEL = re.compile(r"([\w$%]+)\s*:(?!:)")
BRANCH_TARGETS = re.compile(r"\s*\.branchtargets([^;]*);")
STATEMENT = re.compile(r"[^;]*;")
CALL = re.compile(r"call(?:\.uni)?\s+(?:\(([^)]*)\)\s*,\s*)?([\w$]+)\s*(?:,\s*\(([^)]*)\))?\s*$")
INSTRUCTION = re.compile(r"(?:@(!?)\s*([\w$%]+)\s+)?([\w.:]+)\s*(.*)", re.S)
NUMBERED = re.compile(r"(.*?)(\d+)((?:@\d+)?)")
DEEPEST_CALL = 16


@dataclass
class Instruction:
    op: str  # the whole opcode, such as fma.rn.f32
    parts: list[str]  # the opcode split at its dots
    args: list[Operand]
    guard: tuple[str, bool] | None  # register, negated
    line: int  # of the PTX text
    location: str  # source line, from .loc


@dataclass
class Program:
    """One entry with its calls inlined."""

    name: str
    params: list[Variable]
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, tuple[int, int | None]] = field(default_factory=dict)  # bits, and the count of a range
    locals: dict[str, Variable] = field(default_factory=dict)  # .local variables and the .param of calls
    shared: dict[str, Variable] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)  # labels of a brx.idx

    def register_bits(self, name: str) -> int | None:
        """Width of a register that is declared by itself or as one of a range such as %r<9>."""
        if name in self.registers:
            return self.registers[name][0]
        m = NUMBERED.fullmatch(name)
        bits, count = (m and self.registers.get(m[1] + m[3])) or (None, None)
        return bits if count is not None and int(m[2]) < count else None

    def declares(self, name: str) -> bool:
        known = name in self.locals or name in self.labels or name in self.shared
        return known or self.register_bits(name) is not None


@dataclass
class _Unresolved:
    """A statement whose names are looked up once all labels of its function are known."""

    at: int
    text: str
    line: int
    location: str
    resolve: Callable[[str], str]


class _Flattener:
    """Appends the code of one function to a program; inner scopes and inlined calls get names of their own."""

    def __init__(self, module: Module, program: Program, function: Function, prefix: str = "", depth: int = 0):
        if depth > DEEPEST_CALL:
            raise NotImplementedError("recursive calls")
        self.module, self.program, self.prefix, self.depth = module, program, prefix, depth
        self.text, self.line = function.body
        self.counted = 0  # the text up to here is counted in self.line
        self.scopes: list[int] = []
        self.scopes_made, self.location = 0, ""
        self.unresolved: list[_Unresolved] = []
        self.tables: list[tuple[str, list[str], Callable[[str], str]]] = []

    def flatten(self) -> None:
        at = 0
        while found := SOMETHING.search(self.text, at):
            at = self._read(found.start())
        for u in self.unresolved:
            self.program.code[u.at] = self._instruction(u)
        for label, names, resolve in self.tables:
            self.program.tables[label] = [resolve(name) for name in names]

    def _read(self, at: int) -> int:
        text = self.text
        self.line += text.count("\n", self.counted, at)
        self.counted = at
        if text[at] == "{":
            self.scopes_made += 1
            self.scopes.append(self.scopes_made)
            return at + 1
        if text[at] == "}":
            self.scopes.pop()
            return at + 1
        if m := LOCATION.match(text, at):
            self.location = f"{self.module.files.get(m[1], '?').rsplit('/', 1)[-1]}:{m[2]}"
            return m.end()
        if m := LABEL.match(text, at):
            return self._label(m)
        m = STATEMENT.match(text, at)
        if not m:
            raise EmulatorError(f"line {self.line}: unfinished statement {text[at : at + 60]!r}")
        self._statement(m[0][:-1].strip())
        return m.end()

    def _label(self, m: re.Match) -> int:
        label = self._declared_name(m[1])
        self.program.labels[label] = len(self.program.code)
        if targets := BRANCH_TARGETS.match(self.text, m.end()):
            self.tables.append((label, split_list(targets[1]), self._resolver()))
            return targets.end()
        return m.end()

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self._declare_registers(text)
        elif re.match(r"\.(local|shared|param)\b", text):
            v = parse_variable(text)
            variables = self.program.shared if v.space == "shared" else self.program.locals
            variables[self._declared_name(v.name)] = v
        elif text.startswith((".pragma", ".callprototype")):
            return
        elif re.match(r"(@\S+\s+)?call\b", text):
            self._inline_call(text)
        else:
            if self.depth:
                text = re.sub(r"(^|\s)ret(\.uni)?$", rf"\1bra {self.prefix}$ret", text)
            at = len(self.program.code)
            self.unresolved.append(_Unresolved(at, text, self.line, self.location, self._resolver()))
            self.program.code.append(None)

    def _declare_registers(self, text: str) -> None:
        type_name, names = re.match(r"\.reg\s*\.(\w+)\s+(.*)", text, re.S).groups()
        bits = {"pred": 1, "b128": 128}.get(type_name) or max(16, TYPES[type_name].bits)
        for name in split_list(names):
            m = re.fullmatch(r"([\w$%]+)<(\d+)>", name)
            self.program.registers[self._declared_name(m[1] if m else name)] = (bits, int(m[2]) if m else None)

    def _declared_name(self, name: str) -> str:
        return self.prefix + name + (f"@{self.scopes[-1]}" if self.scopes else "")

    def _resolver(self) -> Callable[[str], str]:
        return functools.partial(self._resolve, tuple(self.scopes))

    def _resolve(self, scopes: tuple[int, ...], name: str) -> str:
        """The full name of what `name` means inside these scopes."""
        for scope in reversed(scopes):
            scoped = f"{self.prefix}{name}@{scope}"
            if self.program.declares(scoped):
                return scoped
        full = name if self.prefix and name.startswith(self.prefix) else self.prefix + name
        return self.program.alias.get(full, full if self.program.declares(full) else name)

    def _inline_call(self, text: str) -> None:
        m = CALL.match(text)
        if not m or m[2] not in self.module.functions:
            raise NotImplementedError(f"line {self.line}: call {text[:80]}")
        program, resolve, function = self.program, self._resolver(), self.module.functions[m[2]]
        outs, ins = [[resolve(x) for x in split_list(m[k] or "")] for k in (1, 3)]
        if function.body is None:
            args = [Register(name) for name in outs + ins]
            parts = ["extern", function.name]
            program.code.append(Instruction(".".join(parts), parts, args, None, self.line, self.location))
            return
        prefix = f"{self.prefix}{function.name}#{len(program.code)}/"
        for variable, actual in zip(function.params + function.returns, ins + outs, strict=True):
            program.alias[prefix + variable.name] = actual
        _Flattener(self.module, program, function, prefix, self.depth + 1).flatten()
        program.labels[prefix + "$ret"] = len(program.code)

    @staticmethod
    def _instruction(u: _Unresolved) -> Instruction:
        negated, guard, op, operands = INSTRUCTION.match(u.text).groups()
        args = [parse_operand(a, u.resolve) for a in split_list(operands)]
        guard = (u.resolve(guard), bool(negated)) if guard else None
        return Instruction(op, op.split("."), args, guard, u.line, u.location)


@functools.lru_cache(64)
def flat_program(module: Module, kernel: str) -> Program:
    entry = module.entry(kernel)
    program = Program(kernel, entry.params)
    _Flattener(module, program, entry).flatten()
    return program
