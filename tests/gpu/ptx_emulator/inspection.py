"""What a kernel's text says before it runs: instructions that would be refused, registers that nobody writes."""

from __future__ import annotations

from .launch import encode_param
from .machine import Machine
from .memory import GlobalMemory
from .operands import names_in
from .options import Launch
from .parsing import parse
from .program import Instruction, flat_program
from .stats import Stats

WITHOUT_RESULT = {
    "applypriority",
    "bar",
    "barrier",
    "bra",
    "brkpt",
    "brx",
    "call",
    "cp",
    "discard",
    "exit",
    "fence",
    "griddepcontrol",
    "membar",
    "nanosleep",
    "pmevent",
    "prefetch",
    "prefetchu",
    "red",
    "ret",
    "st",
    "stmatrix",
    "trap",
}


def unsupported(ptx: str, kernel: str, block: int = 32) -> list[str]:
    """The instructions of a kernel that would be refused if a thread reached them."""
    module = parse(ptx)
    program, memory = flat_program(module, kernel), GlobalMemory(module, {})
    params = {v.name: encode_param(v, None, memory) for v in program.params}
    m = Machine(program, module, memory, params, Launch((1, 1, 1), (block, 1, 1)), 1, Stats(kernel))
    for pc in range(len(program.code)):
        m.step(pc)
    return [str(problem) for problem in m.problems]


def never_written(ptx: str, kernel: str) -> list[str]:
    """Registers that an instruction reads and none writes: the mark of poison, such as a shift too wide."""
    program = flat_program(parse(ptx), kernel)
    written: set[str] = set()
    read: dict[str, str] = {}
    for ins in program.code:
        first_source = 0 if _has_no_result(ins) else 1
        written.update(name for a in ins.args[:first_source] for name in names_in(a))
        names = [name for a in ins.args[first_source:] for name in names_in(a)]
        for name in [*names, ins.guard[0]] if ins.guard else names:
            read.setdefault(name, f"{name} in line {ins.line}: {ins.op} ({ins.location})")
    return [where for name, where in read.items() if name not in written and program.register_bits(name)]


def _has_no_result(ins: Instruction) -> bool:
    return ins.parts[0] in WITHOUT_RESULT and "red" not in ins.parts[1:]
