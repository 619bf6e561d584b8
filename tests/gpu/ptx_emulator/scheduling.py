"""Which threads run next: groups by their next instruction, barriers, warps that wait for their lanes, deadlocks."""

from __future__ import annotations

import functools
from collections import defaultdict

import numpy as np

from .errors import EmulatorError
from .machine import Machine
from .options import WARP
from .ptx_types import U32
from .steps import Barrier, Branch, Compute, Exit, WarpSync
from .threads import Active

Groups = dict[int, np.ndarray]  # threads by their next instruction


def _put(groups: Groups, pc: int, mask: np.ndarray) -> None:
    groups[pc] = groups[pc] | mask if pc in groups else mask


class Scheduler:
    """Runs the threads of a machine, the group with the lowest program counter first."""

    def __init__(self, m: Machine):
        self.m = m
        self.counts = [0] * len(m.steps)  # threads that ran each instruction
        self.runnable: Groups = {}
        self.warp_wait: Groups = {}
        self.barrier_wait: Groups = {}

    def run(self, live: np.ndarray) -> None:
        """Runs these threads from the kernel's start to its end."""
        self.live, self.budget = live, self.m.launch.max_steps
        self.runnable, self.warp_wait, self.barrier_wait = {0: live.copy()}, {}, {}
        while self.runnable or self.warp_wait or self.barrier_wait:
            if not self.runnable and not self._wake():
                waiting = {**self.warp_wait, **self.barrier_wait}
                at = [(self._where(pc), int(mask.sum())) for pc, mask in waiting.items()]
                raise EmulatorError(f"deadlock: threads wait for ever at {at}")
            pc = min(self.runnable)
            mask = self.runnable.pop(pc)
            if pc in self.warp_wait:
                mask = mask | self.warp_wait.pop(pc)
            others = [q for q in (*self.runnable, *self.warp_wait) if q > pc]
            self._run_group(pc, Active(mask), min(others, default=-1))

    def _where(self, pc: int) -> str:
        return str(self.m.site(self.m.program.code[pc]))

    def _run_group(self, pc: int | None, act: Active, meeting: int) -> None:
        """Runs threads until they come to where others are (`meeting`), part, wait or end."""
        steps, counts, m = self.m.steps, self.counts, self.m
        alone = not (self.runnable or self.warp_wait)
        while pc is not None and pc != meeting:
            if pc >= len(steps):
                raise EmulatorError("ran off the end of the kernel")
            step = steps[pc] or m.step(pc)
            self.budget -= 1
            if self.budget < 0:
                limit = f"step limit of {m.launch.max_steps} reached (endless loop?)"
                raise EmulatorError(f"{limit} at {self._where(pc)}")
            if type(step) is Compute:
                chosen = act if step.guard is None else m.guarded(act, step.guard)
                if chosen.n:
                    counts[pc] += chosen.n
                    step.run(chosen)
                pc += 1
            elif type(step) is Branch:
                pc = self._branch(pc, step, act, alone)
            elif type(step) is Exit:
                self._exit(pc, step, act)
                return
            else:
                pc = self._synchronise(pc, step, act)
        if pc is not None:
            _put(self.runnable, pc, act.full_mask())

    def _branch(self, pc: int, step: Branch, act: Active, alone: bool) -> int | None:
        """The next instruction if the group stays together and may go on, else None."""
        self.counts[pc] += act.n
        ways = step.choose(act)
        if len(ways) == 1 and (alone or ways[0][0] == pc + 1):
            return ways[0][0]
        for target, mask in ways:
            _put(self.runnable, target, act.full_mask() if mask is None else mask)
        return None

    def _exit(self, pc: int, step: Exit, act: Active) -> None:
        gone = act if step.guard is None else self.m.guarded(act, step.guard)
        self.counts[pc] += gone.n
        self.live &= ~gone.full_mask()
        rest = act.full_mask() & self.live
        if rest.any():
            _put(self.runnable, pc + 1, rest)

    def _synchronise(self, pc: int, step: WarpSync | Barrier, act: Active) -> int | None:
        if step.guard is not None:
            chosen = self.m.guarded(act, step.guard).n
            if chosen == 0:
                return pc + 1
            if chosen != act.n:
                raise NotImplementedError(f"divergent guard on {self._where(pc)}")
        if type(step) is WarpSync:
            return self._run_warps(pc, step, act)
        _put(self.barrier_wait, pc, act.full_mask())
        if act.n == np.count_nonzero(self.live):
            self._release_barriers()
        return None

    def _run_warps(self, pc: int, step: WarpSync, act: Active) -> int | None:
        """Runs the warps of which all members are here; the others wait."""
        waiting = self._waiting(pc, step, act)
        ready = act
        if waiting is not None:
            mask = act.full_mask()
            _put(self.warp_wait, pc, mask & waiting)
            ready = Active(mask & ~waiting)
            if ready.n == 0:
                return None
        self.counts[pc] += ready.n
        step.run(ready)
        if waiting is None:
            return pc + 1
        _put(self.runnable, pc + 1, ready.full_mask())
        return None

    def _waiting(self, pc: int, step: WarpSync, act: Active) -> np.ndarray | None:
        """Threads that must wait because other lanes that they name haven't arrived (None: nobody)."""
        if act.mask is None:
            return None
        here = act.mask.reshape(-1, WARP)
        members = np.where(act.mask, step.members, U32(0)).reshape(-1, WARP).max(1)
        needed = ((members[:, None] >> np.arange(WARP, dtype=U32)) & U32(1)).astype(np.bool_)
        if (here & ~needed).any():
            raise EmulatorError(f"a thread outside its own membermask executes {self._where(pc)}")
        wait = (needed & self.live.reshape(-1, WARP) & ~here).any(1)
        return np.repeat(wait, WARP) if wait.any() else None

    def _wake(self) -> bool:
        """Nothing can run: tries the warps that wait again (lanes may have ended), then the barriers."""
        for pc, mask in list(self.warp_wait.items()):
            waiting = self._waiting(pc, self.m.step(pc), Active(mask))
            ready = mask if waiting is None else mask & ~waiting
            if ready.any():
                _put(self.runnable, pc, ready)
                del self.warp_wait[pc]
                if waiting is not None:
                    self.warp_wait[pc] = mask & waiting
                return True
        return self._release_barriers()

    def _per_cta(self, mask: np.ndarray) -> np.ndarray:
        return mask.reshape(self.m.ctas, self.m.per_cta).sum(1)

    def _release_barriers(self) -> bool:
        """Lets the CTAs go on of which enough threads have come to a barrier; whether there were any."""
        arrived = defaultdict(list)
        for pc, mask in self.barrier_wait.items():
            step, first = self.m.step(pc), int(np.argmax(mask))
            count = None if step.count is None else int(step.count[first])
            arrived[int(step.ident[first])].append((pc, mask, count))
        released = False
        for waiting in arrived.values():
            total = self._per_cta(functools.reduce(np.logical_or, [mask for _, mask, _ in waiting]))
            for pc, mask, count in waiting:
                complete = total >= (self._per_cta(self.live) if count is None else count)
                ready = (self._per_cta(mask) > 0) & complete
                if ready.any():
                    self.m.epoch[ready & (total >= self._per_cta(self.live))] += 1
                    self._release(pc, mask, np.repeat(ready, self.m.per_cta))
                    released = True
        return released

    def _release(self, pc: int, mask: np.ndarray, ready: np.ndarray) -> None:
        """Of the threads that wait at a barrier, lets those go on whose CTA is ready."""
        step, go = self.m.step(pc), mask & ready
        warps, live = go.reshape(-1, WARP), self.live.reshape(-1, WARP)
        if (warps.any(1) & (live & ~warps).any(1)).any():
            raise EmulatorError(f"divergent barrier: part of a warp waits at {self._where(pc)}")
        self.counts[pc] += int(np.count_nonzero(go))
        if step.run:
            step.run(Active(go))
        rest = mask & ~go
        del self.barrier_wait[pc]
        if rest.any():
            self.barrier_wait[pc] = rest
        _put(self.runnable, pc + 1, go)
