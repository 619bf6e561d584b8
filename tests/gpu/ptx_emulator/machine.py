"""A batch of CTAs: its registers and memories, and the compilation of instructions into steps on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from .errors import MemoryFault
from .instructions import BUILDERS, Modifiers
from .memory import LOCAL_START, PARAM_START, SHARED_START, GlobalMemory, Space
from .operands import Address, Immediate, Operand, Register, Sink, names_in
from .options import WARP, Launch
from .parsing import Module
from .program import Instruction, Program
from .ptx_types import I64, SIGNED, TYPES, U8, U32, U64, UNSIGNED, PtxType, immediate_bits
from .races import RaceCheck
from .registers import special_registers, view, width_of
from .stats import Stats
from .steps import Branch, Compute, Step
from .threads import Active

REFUSALS = (NotImplementedError, LookupError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True)
class Site:
    """An instruction in the kernel that runs, for the messages of errors."""

    m: Machine
    ins: Instruction

    def __str__(self) -> str:
        source = f" ({self.ins.location})" if self.ins.location else ""
        return f"kernel {self.m.program.name}, PTX line {self.ins.line}{source}, {self.ins.op}"

    def fault(self, what: str, addr: np.ndarray, bad: np.ndarray, idx: np.ndarray | None) -> NoReturn:
        """Raises for the accesses to `addr` by the threads `idx` (None: all) that are bad."""
        k = np.flatnonzero(bad)
        threads = k if idx is None else np.asarray(idx)[k]
        few = [f"{self.m.thread_name(t)} at {int(addr[j]):#x}" for t, j in zip(threads[:3], k[:3], strict=True)]
        raise MemoryFault(f"{what}: {self}: {len(k)} threads: {'; '.join(few)}")


class Machine:
    """A batch of CTAs in lock-step; `steps` is the program as far as it was compiled: what no thread reaches isn't."""

    def __init__(
        self,
        program: Program,
        module: Module,
        memory: GlobalMemory,
        param_bytes: Mapping[str, bytes],
        launch: Launch,
        ctas: int,
        stats: Stats,
    ):
        self.program, self.module, self.memory, self.param_bytes = program, module, memory, param_bytes
        self.launch, self.stats, self.noise = launch, stats, launch.approx_noise
        self.ctas, self.per_cta = ctas, launch.padded_threads
        self.threads = self.per_cta * ctas
        self.warps = self.threads // WARP
        self.thread = np.arange(self.threads)
        self.cta_of = self.thread // self.per_cta
        self.registers: dict[str, np.ndarray] = {}
        self.carry = np.zeros(self.threads, np.bool_)
        self.symbols = dict(memory.symbols)
        self.shared, self.local, self.params = self._shared_memory(), self._local_memory(), self._param_memory()
        self.special = special_registers(launch, self.threads, self.shared.size - SHARED_START)
        self.lane = self.special["%laneid"]
        self.padding = self.thread % self.per_cta >= launch.block_threads
        self.async_group = np.zeros(self.threads, I64)
        self.async_pending: list = []
        self.epoch = np.zeros(ctas, I64)  # barriers that each CTA has passed, for the race check
        self.races = RaceCheck(self) if launch.racecheck else None
        self.problems: list[NotImplementedError] = []
        self.mentions = Counter(name for ins in program.code for a in ins.args for name in names_in(a))
        self.steps: list[Step | None] = [None] * len(program.code)

    def step(self, pc: int) -> Step:
        if (step := self.steps[pc]) is None:
            step = self.steps[pc] = self._compile(pc, self.program.code[pc])
        return step

    def start(self, first_cta: int) -> np.ndarray:
        """Makes the batch the CTAs from `first_cta` on, with fresh shared memory; gives the threads that exist."""
        wanted, (gx, gy, _) = first_cta + self.cta_of, self.launch.grid
        cta = np.minimum(wanted, self.launch.blocks - 1)
        for d, v in zip("xyz", (cta % gx, cta // gx % gy, cta // (gx * gy)), strict=True):
            self.special[f"%ctaid.{d}"][:] = v
            self.special[f"%clusterid.{d}"][:] = v
        self.shared.init[:] = 0
        self.async_group[:], self.async_pending = 0, []
        self.epoch += 1
        live = (wanted < self.launch.blocks) & ~self.padding
        self.stats.threads += int(live.sum())
        return live

    def _shared_memory(self) -> Space:
        place, dynamic = SHARED_START, []
        of_module = {v.name: v for v in self.module.variables.values() if v.space == "shared"}
        for name, v in {**of_module, **self.program.shared}.items():
            if v.size == 0:
                dynamic.append(name)
                continue
            place = -(-place // v.align) * v.align
            self.symbols[name] = place
            place += v.size
        align = 128 if dynamic and place > SHARED_START else 16
        place = -(-place // align) * align
        self.symbols |= dict.fromkeys(dynamic, place)
        size = place + self.launch.dynamic_shared
        self.stats.shared_bytes = size - SHARED_START
        return Space("shared", size, SHARED_START, self.cta_of, self.ctas, track_init=True)

    def _local_memory(self) -> Space:
        place = LOCAL_START
        for name, v in self.program.locals.items():
            align = max(16, v.align)
            place = -(-place // align) * align
            self.symbols[name] = place
            place += v.size
        return Space("local", place, LOCAL_START, self.thread, self.threads if self.program.locals else 1)

    def _param_memory(self) -> Space:
        """The kernel's parameters once more, for those whose address is taken."""
        ends = PARAM_START + np.cumsum([-(-len(raw) // 128) * 128 for raw in self.param_bytes.values()])
        space = Space("param", int(ends[-1]) if len(ends) else PARAM_START, PARAM_START, np.zeros(self.threads), 1)
        place = PARAM_START
        for (name, raw), end in zip(self.param_bytes.items(), ends, strict=True):
            self.symbols[name] = place
            space.data[place : place + len(raw)] = np.frombuffer(raw, U8)
            place = int(end)
        return space

    def register(self, name: str) -> np.ndarray | None:
        """The array of a declared register, made when first asked for."""
        if name not in self.registers:
            bits = self.program.register_bits(name)
            if bits is None:
                return None
            if bits not in UNSIGNED:
                raise NotImplementedError(f"{bits}-bit register {name}")
            self.registers[name] = np.zeros(self.threads, UNSIGNED[bits])
        return self.registers[name]

    def constant(self, bits: int, t: PtxType) -> np.ndarray:
        raw = np.array([bits], UNSIGNED[t.bits]).view(t.raw)
        return np.broadcast_to(raw, (self.threads, 2) if t.lanes == 2 else (self.threads,))

    def source(self, a: Operand, t: PtxType) -> np.ndarray:
        """An operand as an array of raw values: shape [N], or [N, 2] for packed types."""
        if isinstance(a, Immediate):
            return self.constant(immediate_bits(a.text, t), t)
        if not isinstance(a, Register):
            raise NotImplementedError(f"operand {a}")
        register = self.register(a.name)
        if register is None:
            register = self.special.get(a.name)
        if register is not None:
            return view(register, t, a.name)
        if a.name in self.symbols:
            return self.constant(self.symbols[a.name], t)
        raise NotImplementedError(f"unknown name {a.name}")

    def destination(self, a: Operand, t: PtxType) -> tuple[np.ndarray, Callable | None]:
        """The array to assign to, and a conversion of narrow results to the register's width where one is needed."""
        if isinstance(a, Sink):
            return np.zeros((self.threads, 2) if t.lanes == 2 else self.threads, t.raw), None
        register = self.register(a.name) if isinstance(a, Register) else None
        if register is None:
            raise NotImplementedError(f"destination {a}")
        bits = width_of(register)
        if t.lanes == 2 or bits == t.bits:
            return view(register, t), None
        if t.kind == "p" or bits < t.bits:
            raise NotImplementedError(f"{t.name} into {bits}-bit register {a.name}")
        if t.kind == "s":
            return register.view(SIGNED[bits]), None
        return register, (lambda v: np.ascontiguousarray(v).view(UNSIGNED[t.bits])) if t.kind == "f" else None

    def assign(self, a: Operand, t: PtxType, fn: Callable, sources: list[np.ndarray]) -> Compute:
        """The step a = fn(*sources)."""
        out, widen = self.destination(a, t)
        value = fn if widen is None else (lambda *v: widen(fn(*v)))
        in_place = isinstance(fn, np.ufunc) and widen is None and all(s.dtype == out.dtype for s in sources)
        two_lanes = out.ndim == 2

        def run(act):
            if act.idx is not None:
                i = act.idx
                out[i] = value(*[s[i] for s in sources])
            elif act.mask is not None:
                where = act.mask[:, None] if two_lanes else act.mask
                np.copyto(out, value(*sources), where=where, casting="unsafe")
            elif in_place:
                fn(*sources, out=out)
            else:
                out[...] = value(*sources)

        return Compute(run)

    def address_of(self, a: Address) -> Callable[[np.ndarray | None], np.ndarray]:
        """A function from the threads (None: all) to their uint64 addresses."""
        fixed = a.offset if a.base is None else None
        if a.base is not None and self.register(a.base.name) is None and a.base.name in self.symbols:
            fixed = self.symbols[a.base.name] + a.offset
        if fixed is not None:
            constant = self.constant(fixed & (2**64 - 1), TYPES["u64"])
            return lambda idx: constant if idx is None else constant[idx]
        register = self.register(a.base.name)
        narrow = register is not None and register.dtype == U32
        base = self.source(a.base, TYPES["u32" if narrow else "u64"])
        offset = U64(a.offset & (2**64 - 1))

        def address(idx):
            v = base if idx is None else base[idx]
            v = v.astype(U64) if narrow else v
            return v + offset if offset else v

        return address

    def guarded(self, act: Active, guard: tuple[str, bool]) -> Active:
        """Those threads for which the guard holds."""
        holds = self.registers[guard[0]]
        holds = ~holds if guard[1] else holds
        return Active(holds.copy() if act.mask is None else holds & act.mask)

    def thread_name(self, thread: int) -> str:
        at = [int(self.special[f"%{register}.{d}"][thread]) for register in ("ctaid", "tid") for d in "xyz"]
        return "ctaid ({},{},{}) tid ({},{},{})".format(*at)

    def site(self, ins: Instruction) -> Site:
        return Site(self, ins)

    def _compile(self, pc: int, ins: Instruction) -> Step:
        try:
            if ins.guard is not None and self.register(ins.guard[0]) is None:
                raise NotImplementedError(f"guard {ins.guard}")
            if ins.parts[0] in ("bra", "brx"):
                return self._compile_branch(pc, ins)
            if ins.parts[0] not in BUILDERS:
                raise NotImplementedError("unknown instruction")
            step = BUILDERS[ins.parts[0]](self, ins, Modifiers(ins))
        except REFUSALS as e:
            step = self._refusal(ins, e)
        if ins.guard is not None and ins.guard[0] in self.registers:
            step.guard = ins.guard
        return step

    def _refusal(self, ins: Instruction, reason: Exception) -> Compute:
        """Raises only if some thread gets here."""
        problem = NotImplementedError(f"{ins.op}: {self.site(ins)} {ins.args}: {reason!r}")
        self.problems.append(problem)

        def refuse(act):
            raise problem

        return Compute(refuse)

    def _compile_branch(self, pc: int, ins: Instruction) -> Branch:
        if ins.parts[0] == "brx":
            return self._compile_jump_table(ins)
        target, guard = self.program.labels[ins.args[0].name], ins.guard
        if guard is None:
            return Branch(lambda act: [(target, None)])

        def choose(act):
            taken = self.guarded(act, guard)
            if taken.n == 0:
                return [(pc + 1, None)]
            if taken.n == act.n:
                return [(target, None)]
            mask = taken.full_mask()
            return [(target, mask), (pc + 1, act.full_mask() & ~mask)]

        return Branch(choose)

    def _compile_jump_table(self, ins: Instruction) -> Branch:
        if ins.guard is not None:
            raise NotImplementedError("a guard on brx.idx")
        targets = np.array([self.program.labels[name] for name in self.program.tables[ins.args[1].name]])
        index = self.source(ins.args[0], TYPES["u32"])

        def choose(act):
            mask = act.full_mask()
            to = targets[np.minimum(index, U32(len(targets) - 1))]
            return [(int(t), mask & (to == t)) for t in np.unique(to[mask])]

        return Branch(choose)
