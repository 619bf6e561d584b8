"""The machine code of a GPU kernel, counted without a GPU.

`count` disassembles what Triton or nvcc compiled and finds the loop that does the work. What a thread executes there
for each element, held against what an element's bytes cost in HBM time, says whether memory can be the limit:

    code = count(triton.compile(source, target=GPUTarget("cuda", 90, 32)))
    n = code.body.elements(read_bytes_per_element=3)         # bf16 logits and uint8 data; ptxas may have unrolled
    code.per_element(n).instructions, code.per_element(n).mufu, code.body.accesses[("LDG", 128)], code.spills
    ARCHITECTURES[90].bound(code.per_element(n), hbm_bytes=5)     # ("hbm", 0.97): the limit, and the next unit's share

Counts are static: an instruction in the body counts once for each iteration, whether or not a branch skips it. Two
things left out: called functions, and the path that libdevice's sine and cosine take for arguments above 105615.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

FMA = frozenset("FADD FADD32I FMUL FMUL32I FFMA FFMA32I HADD2 HMUL2 HFMA2 IMAD IDP FADD2 FMUL2 FFMA2".split())
PACKED = frozenset("FADD2 FMUL2 FFMA2".split())  # two float32 lanes an instruction, from sm_100
XU = frozenset("MUFU I2F F2I F2F FRND POPC FLO BREV FCHK".split())
CONVERSIONS = frozenset("I2F F2I F2F".split())
GLOBAL_LOADS = frozenset("LDG LDGSTS LD".split())
GLOBAL_STORES = frozenset("STG ST".split())
SHARED = frozenset("LDS STS LDSM STSM ATOMS".split())
SPILLS = frozenset("LDL STL".split())
ACCESSES = GLOBAL_LOADS | GLOBAL_STORES | SHARED | SPILLS | frozenset("RED REDG ATOM ATOMG".split())
LSU = ACCESSES | frozenset("SHFL LDC LDGDEPBAR MATCH REDUX".split())
CONTROL = frozenset(
    "BRA BRX JMP BAR EXIT S2R S2UR CS2R BSSY BSYNC WARPSYNC DEPBAR RET CALL YIELD BMOV BREAK ERRBAR MEMBAR CCTL FENCE "
    "SYNCS ACQBULK PREEXIT VOTE VOTEU R2UR R2P P2R ELECT LEPC NANOSLEEP WARPGROUP".split()
)
TENSOR = re.compile(r"U?[A-Z]{1,3}MMA$")
FP64 = frozenset("DADD DMUL DFMA DSETP DMNMX".split())

BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}  # 32 where nothing is said
LINE = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
FUNCTION = re.compile(r"^\s*Function : (\S+)\s*$", re.MULTILINE)
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
RESERVED_SHARED = 1024  # bytes of each block's shared memory that the system takes, from sm_90


@dataclass(frozen=True)
class Instruction:
    """One line of SASS."""

    address: int
    predicate: str
    mnemonic: str
    operands: str

    @cached_property
    def opcode(self) -> str:
        return self.mnemonic.split(".")[0]

    @cached_property
    def bits(self) -> int:
        """How wide a memory access is, a thread."""
        named = [BITS[part] for part in self.mnemonic.split(".")[1:] if part in BITS]
        return named[-1] if named else 32

    @property
    def target(self) -> int | None:
        """Where a branch or a call goes."""
        if self.opcode not in ("BRA", "CALL"):
            return None
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def idle(self) -> bool:
        """Padding: never executed for its effect."""
        return self.opcode == "NOP" or self.predicate in ("!PT", "!UPT")


def pipe(opcode: str) -> str:
    """The unit that executes an instruction, by what is known of sm_80 to sm_100."""
    named = {"fma": FMA, "xu": XU, "lsu": LSU, "control": CONTROL, "fp64": FP64}
    for name, opcodes in named.items():
        if opcode in opcodes:
            return name
    if TENSOR.match(opcode):
        return "tensor"
    return "uniform" if opcode.startswith("U") or opcode == "LDCU" else "alu"


@dataclass(frozen=True)
class Counts:
    """Thread instructions, by the pipe that executes them, and those of interest: an iteration's, or per element."""

    instructions: float = 0
    fma: float = 0
    alu: float = 0
    xu: float = 0  # MUFU and conversions: a quarter of the others' speed, or less
    lsu: float = 0
    uniform: float = 0
    control: float = 0
    tensor: float = 0
    fp64: float = 0  # a Python float that arrived as a double shows here
    mufu: float = 0
    conversions: float = 0  # I2F, F2I, F2F
    packed: float = 0  # of fma: two float32 at once
    wide: float = 0  # of fma: IMAD.WIDE and IMAD.HI, at half speed

    @classmethod
    def of(cls, instructions: Iterable[Instruction]) -> "Counts":
        counted = [i for i in instructions if not i.idle]
        pipes = Counter(pipe(i.opcode) for i in counted)
        return cls(
            instructions=len(counted),
            mufu=sum(i.opcode == "MUFU" for i in counted),
            conversions=sum(i.opcode in CONVERSIONS for i in counted),
            packed=sum(i.opcode in PACKED for i in counted),
            wide=sum(i.mnemonic.startswith(("IMAD.WIDE", "IMAD.HI")) for i in counted),
            **pipes,
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __mul__(self, n: float) -> "Counts":
        return Counts(*(n * getattr(self, field.name) for field in fields(self)))

    def __truediv__(self, n: float) -> "Counts":
        return self * (1 / n)


@dataclass(frozen=True)
class Body:
    """A loop's instructions, or a whole kernel's; `nested` counts the loops inside, whose instructions count once."""

    instructions: tuple[Instruction, ...]
    own: tuple[Instruction, ...]  # those of no loop inside
    depth: int  # 0: the whole kernel
    nested: int

    @cached_property
    def counts(self) -> Counts:
        return Counts.of(self.instructions)

    @cached_property
    def accesses(self) -> Counter[tuple[str, int]]:
        """Memory accesses by kind and width in bits, such as ("LDG", 128)."""
        return Counter((i.opcode, i.bits) for i in self.instructions if i.opcode in ACCESSES and not i.idle)

    @cached_property
    def opcodes(self) -> Counter[str]:
        """How often each instruction occurs, with its modifiers, such as "MUFU.EX2"."""
        return Counter(i.mnemonic for i in self.instructions if not i.idle)

    @property
    def is_loop(self) -> bool:
        return self.depth > 0

    @property
    def shared_accesses(self) -> int:
        return self._number(SHARED)

    @property
    def spills(self) -> int:
        return self._number(SPILLS)

    @property
    def bytes_loaded(self) -> int:
        """From global memory, by one thread in one iteration."""
        return self._bytes(GLOBAL_LOADS)

    @property
    def bytes_stored(self) -> int:
        return self._bytes(GLOBAL_STORES)

    def elements(self, read_bytes_per_element: float) -> float:
        """How many elements one thread handles in an iteration, however often ptxas has unrolled it."""
        if not self.bytes_loaded:
            raise ValueError("this body loads nothing from global memory, so its elements can't be told")
        return self.bytes_loaded / read_bytes_per_element

    def per_element(self, n: float) -> Counts:
        """The counts divided by n, the elements that a thread handles in an iteration."""
        return self.counts / n

    def _number(self, opcodes: frozenset[str]) -> int:
        return sum(number for (opcode, _), number in self.accesses.items() if opcode in opcodes)

    def _bytes(self, opcodes: frozenset[str]) -> int:
        return sum(number * bits // 8 for (opcode, bits), number in self.accesses.items() if opcode in opcodes)


@dataclass(frozen=True)
class Sass:
    """A compiled kernel: its main loop (`body`), all of its loops in the order of addresses, and its resources."""

    name: str
    arch: int  # 80, 90, 100
    body: Body
    loops: tuple[Body, ...]
    whole: Body
    registers: int
    spills: int  # LDL and STL anywhere in the kernel
    stack: int  # bytes of local memory a thread
    shared: int  # bytes a block: Triton's own number, or what nvcc laid out statically

    @property
    def counts(self) -> Counts:
        return self.body.counts

    def per_element(self, n: float) -> Counts:
        return self.body.per_element(n)

    def executed(self, turns: float) -> Counts:
        """What a thread executes from entry to exit: all instructions once, those of the main loop `turns` times."""
        return self.whole.counts + self.body.counts * (turns - 1) if self.body.is_loop else self.whole.counts


@dataclass(frozen=True)
class Architecture:
    """A GPU in numbers of its datasheet, and the model that makes of them: every unit at its peak, all overlapping."""

    name: str
    sms: int
    ghz: float
    fp32_lanes: int  # an SM
    bandwidth: float  # GB/s of HBM

    @property
    def bytes_per_cycle(self) -> float:
        """HBM traffic of one SM's share in one cycle."""
        return self.bandwidth / (self.sms * self.ghz)

    @property
    def budget(self) -> Counts:
        """How many thread instructions one byte of HBM traffic pays for before their pipe takes longer than memory."""
        a_cycle = Counts(instructions=128, fma=self.fp32_lanes, alu=64, xu=16, mufu=16)
        return a_cycle / self.bytes_per_cycle

    def cycles(self, per_element: Counts, hbm_bytes: float) -> dict[str, float]:
        """Cycles of one SM that each unit needs for an element; an SM issues four warp instructions a cycle."""
        fma = per_element.fma + per_element.packed  # a packed instruction fills two lanes
        return {
            "hbm": hbm_bytes / self.bytes_per_cycle,
            "issue": per_element.instructions / 128,
            "fma": fma / self.fp32_lanes,
            "alu": per_element.alu / 64,
            "xu": per_element.xu / 16,
            "wide": per_element.wide / 32,
        }

    def bound(self, per_element: Counts, hbm_bytes: float) -> tuple[str, float]:
        """The unit that takes longest, and the time of the slowest unit but HBM over HBM's."""
        cycles = self.cycles(per_element, hbm_bytes)
        slowest = max((unit for unit in cycles if unit != "hbm"), key=lambda unit: cycles[unit])
        share = cycles[slowest] / cycles["hbm"] if cycles["hbm"] else float("inf")
        return ("hbm" if share <= 1 else slowest), share

    def picoseconds(self, per_element: Counts, hbm_bytes: float) -> float:
        """The roofline's time of an element on the whole GPU."""
        return max(self.cycles(per_element, hbm_bytes).values()) / (self.sms * self.ghz) * 1e3


ARCHITECTURES = {
    80: Architecture("A100", sms=108, ghz=1.410, fp32_lanes=64, bandwidth=2039),
    90: Architecture("H100", sms=132, ghz=1.755, fp32_lanes=128, bandwidth=3350),
    100: Architecture("B200", sms=148, ghz=1.850, fp32_lanes=128, bandwidth=8000),
}


def cuobjdump() -> str | None:
    """The disassembler that comes with triton, or the one on PATH."""
    spec = importlib.util.find_spec("triton")
    if spec and spec.origin:
        shipped = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        if shipped.exists():
            return str(shipped)
    return shutil.which("cuobjdump")


def run_cuobjdump(*arguments: object, folder: str | None = None) -> str:
    """What it prints; what it extracts goes to `folder`."""
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError("no cuobjdump: it comes with triton and with the CUDA toolkit")
    run = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, cwd=folder)
    if run.returncode:
        raise RuntimeError(f"cuobjdump failed: {run.stderr.strip()}")
    return run.stdout


def disassemble(cubin: bytes, function: str | None = None) -> str:
    """Resource usage and SASS of every kernel in a cubin, or of one, as cuobjdump prints them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        only = ["-fun", function] if function else []
        return run_cuobjdump("-sass", "-res-usage", *only, path)


def count(compiled: Any, function: str | None = None) -> Sass:
    """Counts a kernel that `triton.compile` returned, or the one named `function` (or a part of it) in a cubin."""
    cubin = compiled if isinstance(compiled, bytes) else compiled.asm["cubin"]
    known = function is not None and b"\0" + function.encode() + b"\0" in cubin
    text = disassemble(cubin, function if known else None)
    name = _pick(FUNCTION.findall(text), function)
    arch = _architecture(text)
    registers, stack, shared = _usage(text, name, arch)
    if not isinstance(compiled, bytes):
        shared = compiled.metadata.shared
    listing = _instructions(text, name)
    whole, loops = _bodies(listing)
    spills = sum(i.opcode in SPILLS for i in listing)
    return Sass(name, arch, main_body(whole, loops), loops, whole, registers, spills, stack, shared)


def _pick(names: Sequence[str], wanted: str | None) -> str:
    found = [name for name in names if wanted is None or wanted == name] or [n for n in names if wanted and wanted in n]
    if len(found) != 1:
        raise LookupError(f"{wanted!r} is {len(found)} of the kernels in this cubin: {', '.join(names)}")
    return found[0]


def _architecture(text: str) -> int:
    found = re.search(r"code for sm_(\d+)", text)
    if not found:
        raise ValueError("cuobjdump names no architecture")
    return int(found[1])


def _usage(text: str, name: str, arch: int) -> tuple[int, int, int]:
    """Registers, bytes of stack, bytes of static shared memory."""
    usage = {found[1]: found for found in USAGE.finditer(text)}[name]
    registers, stack, shared = (int(usage[k]) for k in (2, 3, 4))
    return registers, stack, max(0, shared - RESERVED_SHARED) if arch >= 90 else shared


def _instructions(text: str, name: str) -> list[Instruction]:
    start = next(found.end() for found in FUNCTION.finditer(text) if found[1] == name)
    after = FUNCTION.search(text, start)
    lines = LINE.finditer(text, start, after.start() if after else len(text))
    return [Instruction(int(m[1], 16), m[2] or "", m[3], m[4].strip()) for m in lines]


def _bodies(listing: Sequence[Instruction]) -> tuple[Body, tuple[Body, ...]]:
    """The kernel, without the functions that stand behind it, and its loops."""
    end = _end(listing)
    main = [i for i in listing if i.address <= end]
    slow = {i.address for region in _slow_paths(main) for i in region}
    kept = [i for i in main if i.address not in slow]
    spans = _loop_spans(kept)
    return _body(kept, (-1, end), spans), tuple(_body(kept, span, spans) for span in spans)


def _end(listing: Sequence[Instruction]) -> int:
    """The last address before the functions that are called, or before the closing branch to itself."""
    called = [i.target for i in listing if i.opcode == "CALL" and i.target is not None and _returns(listing, i.target)]
    closing = [i.address for i in listing if i.opcode == "BRA" and i.target == i.address]
    return min([*called, *closing], default=listing[-1].address + 1) - 1


def _returns(listing: Sequence[Instruction], start: int) -> bool:
    """Whether a function starts there; on sm_80 a CALL may also be how a loop is left, and the kernel goes on."""
    ends = (i.opcode for i in listing if i.address >= start and i.opcode in ("RET", "EXIT"))
    return next(ends, "RET") == "RET"


def _slow_paths(listing: Sequence[Instruction]) -> Iterable[list[Instruction]]:
    """What sine and cosine jump over unless their argument is huge: the product with a table of the digits of 2/pi."""
    for branch in listing:
        if not branch.predicate or branch.target is None or branch.target <= branch.address or branch.opcode == "CALL":
            continue
        region = [i for i in listing if branch.address < i.address < branch.target]
        table = any(i.opcode == "LDG" and "CONSTANT" in i.mnemonic for i in region)
        one = sum(i.mnemonic == "I2F.F64.S64" for i in region) == 1
        if table and one and not any(i.opcode in GLOBAL_STORES for i in region):
            yield region


def _loop_spans(listing: Sequence[Instruction]) -> list[tuple[int, int]]:
    """First and last address of every loop: a branch backwards, the farthest where several share a head."""
    last: dict[int, int] = {}
    for i in listing:
        if i.opcode == "BRA" and i.target is not None and i.target < i.address:
            last[i.target] = max(i.address, last.get(i.target, 0))
    return sorted(last.items())


def _body(listing: Sequence[Instruction], span: tuple[int, int], spans: Sequence[tuple[int, int]]) -> Body:
    def contains(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
        return outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]

    inside = [other for other in spans if contains(span, other)]
    instructions = tuple(i for i in listing if span[0] <= i.address <= span[1])
    own = tuple(i for i in instructions if not any(start <= i.address <= end for start, end in inside))
    depth = sum(contains(other, span) for other in spans) + (span[0] >= 0)
    return Body(instructions, own, depth, len(inside))


def main_body(whole: Body, loops: Sequence[Body]) -> Body:
    """The loop that moves the data: the widest accesses to global memory, then the innermost, then one that stores,
    then the most bytes an iteration, then the fewest instructions. The whole kernel, where no loop does."""

    def traffic(body: Body) -> tuple[int, int, bool]:
        own = [i for i in body.own if i.opcode in GLOBAL_LOADS | GLOBAL_STORES and not i.idle]
        stores = any(i.opcode in GLOBAL_STORES for i in own)
        return max((i.bits for i in own), default=0), sum(i.bits for i in own), stores

    def rank(body: Body) -> tuple[int, int, bool, int, float]:
        widest, moved, stores = traffic(body)
        return widest, body.depth, stores, moved, -body.counts.instructions

    best = max(loops, key=rank, default=whole)
    outside, inside = traffic(whole), traffic(best)
    if inside[0] == 0 or (outside[0] > inside[0] and outside[1] > inside[1]):
        return whole
    return best
