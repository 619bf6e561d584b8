"""What each instruction of the PTX emulator takes: any other modifier or type is refused, none is passed over."""

import re

import pytest
from ptx_emulator import unsupported
from ptx_emulator.instructions import BUILDERS
from ptx_emulator.snippets import kernel

MODIFIERS = """rn rz rm rp rna rni rzi ftz noftz sat satfinite relu oob NaN xorsign abs lo hi wide cc approx full f4e
or popc l wrap clamp shiftamt sync aligned uni to global shared::cluster cluster trans row x2 v2 num any async bulk
mbarrier first gl s32 u32 b32 b64 f32 f16 bf16 f16x2 bf16x2 tf32 f64 s16x2 pred e4m3x2 b128""".split()
REGISTERS = ".reg .b16 %h<20>; .reg .b32 %x<20>; .reg .b64 %d<20>; .reg .pred %q<9>; "
FRAGMENTS = "{%x1,%x2,%x3,%x4}, {%x5,%x6,%x7,%x8}, {%x9,%x10}, {%x1,%x2,%x3,%x4}"
TAKEN = {  # which of MODIFIERS may be added to an instruction; ptxas takes each of these
    "add.f32 %x1, %x2, %x3": "rn rz rm rp ftz sat f16 bf16",
    "add.f64 %d1, %d2, %d3": "rn",
    "add.f16 %h1, %h2, %h3": "rn ftz sat",
    "add.bf16 %h1, %h2, %h3": "rn",
    "add.f16x2 %x1, %x2, %x3": "rn ftz sat",
    "add.rn.bf16x2 %x1, %x2, %x3": "",
    "add.rn.f32x2 %d1, %d2, %d3": "ftz",
    "add.s32 %x1, %x2, %x3": "sat cc",
    "add.u32 %x1, %x2, %x3": "cc",
    "add.s64 %d1, %d2, %d3": "cc",
    "add.u16 %h1, %h2, %h3": "",
    "add.s16x2 %x1, %x2, %x3": "",
    "add.rn.f32.bf16 %x1, %h2, %x3": "sat",
    "sub.s32 %x1, %x2, %x3": "sat cc",
    "sub.f16 %h1, %h2, %h3": "rn ftz sat",
    "sub.rn.f32.f16 %x1, %h2, %x3": "sat",
    "addc.u32 %x1, %x2, %x3": "cc",
    "subc.u32 %x1, %x2, %x3": "cc",
    "mul.f32 %x1, %x2, %x3": "rn rz rm rp ftz sat",
    "mul.f64 %d1, %d2, %d3": "rn",
    "mul.f16 %h1, %h2, %h3": "rn ftz sat",
    "mul.rn.bf16 %h1, %h2, %h3": "",
    "mul.lo.s32 %x1, %x2, %x3": "",
    "mul.hi.u64 %d1, %d2, %d3": "",
    "mul.wide.u32 %d1, %x2, %x3": "",
    "mad.lo.u32 %x1, %x2, %x3, %x4": "cc",
    "mad.hi.s32 %x1, %x2, %x3, %x4": "cc",
    "mad.wide.u16 %x1, %h2, %h3, %x4": "",
    "mad.rn.f32 %x1, %x2, %x3, %x4": "ftz sat",
    "madc.lo.u32 %x1, %x2, %x3, %x4": "cc",
    "fma.rn.f32 %x1, %x2, %x3, %x4": "ftz sat f16 bf16",
    "fma.rn.f64 %d1, %d2, %d3, %d4": "",
    "fma.rn.f16 %h1, %h2, %h3, %h4": "ftz sat relu",
    "fma.rn.bf16x2 %x1, %x2, %x3, %x4": "relu",
    "fma.rn.f32x2 %d1, %d2, %d3, %d4": "ftz",
    "fma.rn.f32.bf16 %x1, %h2, %h3, %x4": "sat",
    "min.f32 %x1, %x2, %x3": "ftz NaN",
    "min.f64 %d1, %d2, %d3": "",
    "min.f16 %h1, %h2, %h3": "ftz NaN",
    "min.bf16x2 %x1, %x2, %x3": "NaN",
    "max.xorsign.abs.f32 %x1, %x2, %x3": "ftz NaN",
    "min.s32 %x1, %x2, %x3": "relu",
    "max.u32 %x1, %x2, %x3": "",
    "max.u64 %d1, %d2, %d3": "",
    "max.s16x2 %x1, %x2, %x3": "relu",
    "abs.f32 %x1, %x2": "ftz",
    "abs.s32 %x1, %x2": "",
    "abs.bf16 %h1, %h2": "",
    "abs.f16 %h1, %h2": "ftz",
    "neg.f32 %x1, %x2": "ftz",
    "neg.f16x2 %x1, %x2": "ftz",
    "neg.s32 %x1, %x2": "",
    "copysign.f32 %x1, %x2, %x3": "",
    "div.rn.f32 %x1, %x2, %x3": "ftz",
    "div.approx.f32 %x1, %x2, %x3": "ftz",
    "div.full.f32 %x1, %x2, %x3": "ftz",
    "div.rn.f64 %d1, %d2, %d3": "",
    "div.s32 %x1, %x2, %x3": "",
    "rem.u32 %x1, %x2, %x3": "",
    "setp.lt.f32 %q1, %x2, %x3": "ftz",
    "setp.lt.and.s32 %q1, %x2, %x3, %q2": "",
    "setp.lt.f16 %q1, %h2, %h3": "ftz",
    "setp.lt.f16x2 %q1|%q2, %x2, %x3": "ftz",
    "setp.lt.bf16 %q1, %h2, %h3": "",
    "setp.lo.u32 %q1, %x2, %x3": "",
    "set.lt.u32.f32 %x1, %x2, %x3": "ftz",
    "set.lt.f32.f32 %x1, %x2, %x3": "ftz",
    "set.lt.f16x2.f16x2 %x1, %x2, %x3": "ftz",
    "set.lt.s32.s32 %x1, %x2, %x3": "",
    "selp.b32 %x1, %x2, %x3, %q1": "",
    "slct.u32.s32 %x1, %x2, %x3, %x4": "",
    "slct.f32.f32 %x1, %x2, %x3, %x4": "ftz",
    "testp.finite.f32 %q1, %x1": "",
    "cvt.rn.bf16.f32 %h1, %x2": "ftz",
    "cvt.rn.f16x2.f32 %x1, %x2, %x3": "relu",
    "cvt.rn.bf16x2.f32 %x1, %x2, %x3": "relu",
    "cvt.rna.tf32.f32 %x1, %x2": "ftz",
    "cvt.f32.f16 %x1, %h2": "rn rz rm rp ftz sat",
    "cvt.f32.bf16 %x1, %h2": "rn rz rm rp ftz sat",
    "cvt.rn.f32.s32 %x1, %x2": "ftz sat",
    "cvt.rn.f16.s32 %h1, %x2": "sat",
    "cvt.rzi.s32.f32 %x1, %x2": "ftz sat",
    "cvt.rni.f32.f32 %x1, %x2": "ftz sat",
    "cvt.rn.f32.f64 %x1, %d2": "ftz sat",
    "cvt.f64.f32 %d1, %x2": "rn rz rm rp ftz sat",
    "cvt.u64.u32 %d1, %x2": "sat",
    "cvt.u16.s32 %h1, %x2": "sat",
    "and.b32 %x1, %x2, %x3": "",
    "or.pred %q1, %q2, %q3": "",
    "xor.b64 %d1, %d2, %d3": "",
    "not.b32 %x1, %x2": "",
    "cnot.b32 %x1, %x2": "",
    "shl.b32 %x1, %x2, %x3": "",
    "shr.s32 %x1, %x2, %x3": "",
    "shf.l.wrap.b32 %x1, %x2, %x3, %x4": "",
    "shf.r.clamp.b32 %x1, %x2, %x3, %x4": "",
    "lop3.b32 %x1, %x2, %x3, %x4, 128": "",
    "prmt.b32 %x1, %x2, %x3, %x4": "",
    "bfe.u32 %x1, %x2, %x3, %x4": "",
    "bfi.b32 %x1, %x2, %x3, %x4, %x5": "",
    "popc.b32 %x1, %x2": "",
    "clz.b32 %x1, %x2": "",
    "brev.b32 %x1, %x2": "",
    "bfind.u32 %x1, %x2": "shiftamt",
    "ret": "uni",
    "exit": "uni",
    "trap": "",
    "brkpt": "",
    "bar.sync 0": "aligned",
    "bar.red.popc.u32 %x1, 0, %q1": "aligned",
    "bar.warp.sync -1": "",
    "barrier.sync 0": "aligned",
    "barrier.red.and.pred %q1, 0, %q2": "aligned",
    "membar.gl": "",
    "fence.acq_rel.gpu": "cluster",
    "nanosleep.u32 20": "",
    "griddepcontrol.wait": "",
    "pmevent 1": "",
    "prefetch.global.L2 [%d1]": "",
    "prefetchu.L1 [%d1]": "",
    "applypriority.global.L2::evict_normal [%d1], 128": "",
    "createpolicy.fractional.L2::evict_first.b64 %d1, 1.0": "global",
    "ex2.approx.f32 %x1, %x2": "ftz",
    "ex2.approx.f16 %h1, %h2": "",
    "ex2.approx.ftz.bf16 %h1, %h2": "",
    "lg2.approx.f32 %x1, %x2": "ftz",
    "sin.approx.f32 %x1, %x2": "ftz",
    "cos.approx.f32 %x1, %x2": "ftz",
    "tanh.approx.f32 %x1, %x2": "",
    "tanh.approx.bf16x2 %x1, %x2": "",
    "sqrt.rn.f32 %x1, %x2": "ftz",
    "sqrt.rn.f64 %d1, %d2": "",
    "rsqrt.approx.f32 %x1, %x2": "ftz",
    "rsqrt.approx.ftz.f64 %d1, %d2": "",
    "rcp.rn.f32 %x1, %x2": "ftz",
    "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%x1}, [%x2]": "trans",
    "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%x2], {%x1}": "trans",
    f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {FRAGMENTS}": "",
    f"mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {FRAGMENTS}": "",
    "ld.global.b32 %x1, [%d1]": "",
    "ld.global.v2.b32 {%x1, %x2}, [%d1]": "",
    "ldu.global.u32 %x1, [%d1]": "",
    "st.global.b32 [%d1], %x1": "",
    "atom.global.add.f32 %x1, [%d1], %x2": "",
    "atom.global.add.f16x2 %x1, [%d1], %x2": "",
    "atom.global.add.u32 %x1, [%d1], %x2": "",
    "atom.global.cas.b32 %x1, [%d1], %x2, %x3": "",
    "atom.global.inc.u32 %x1, [%d1], %x2": "",
    "atom.global.min.s32 %x1, [%d1], %x2": "",
    "red.global.add.f32 [%d1], %x2": "",
    "mov.b32 %x1, %x2": "",
    "mov.b64 %d1, {%x2, %x3}": "",
    "mov.pred %q1, %q2": "",
    "cvta.to.global.u64 %d1, %d2": "",
    "cvta.shared.u64 %d1, %d2": "to",
    "shfl.sync.bfly.b32 %x1, %x2, 1, 31, -1": "",
    "activemask.b32 %x1": "",
    "elect.sync %x1|%q1, -1": "",
    "vote.sync.ballot.b32 %x1, %q1, -1": "",
    "redux.sync.add.s32 %x1, %x2, -1": "",
    "redux.sync.min.f32 %x1, %x2, -1": "NaN",
    "match.any.sync.b32 %x1, %x2, -1": "",
    "cp.async.ca.shared.global [%x1], [%d1], 16": "",
    "cp.async.commit_group": "",
    "cp.async.wait_group 0": "",
    "cp.async.wait_all": "",
}
INCOMPLETE = """mul.u32 %x1, %x2, %x3; mad.u32 %x1, %x2, %x3, %x4; shf.l.b32 %x1, %x2, %x3, %x4; div.f32 %x1, %x2, %x3;
shf.wrap.b32 %x1, %x2, %x3, %x4; setp.f32 %q1, %x2, %x3; testp.f32 %q1, %x2; sin.f32 %x1, %x2; cvt.s32.f32 %x1, %x2;
vote.ballot.b32 %x1, %q1; shfl.bfly.b32 %x1, %x2, 1, 31; redux.sync.s32 %x1, %x2, -1; match.sync.b32 %x1, %x2, -1;
add %x1, %x2, %x3; max.xorsign.f32 %x1, %x2, %x3; ld.global.v2.b32 %x1, [%d1]; ld.global.b32 {%x1, %x2}, [%d1];
cp.async.ca.shared [%x1], [%d1], 16; mma.sync.aligned.m16n8k16.col.row.f32.bf16.bf16.f32 FRAGMENTS; bar 0"""


def refused(instructions):
    """Opcodes of those instructions that the emulator doesn't take."""
    ptx = kernel(REGISTERS + "".join(f"{x}; " for x in instructions) + "ret;")
    return [re.match(r"\S+(?=:)", problem)[0] for problem in unsupported(ptx, "t")]


@pytest.mark.parametrize("instruction", TAKEN)
def test_modifiers_that_mean_nothing_are_refused(instruction):
    op, _, operands = instruction.partition(" ")
    others = [m for m in MODIFIERS if m not in TAKEN[instruction].split()]
    assert refused([instruction, *(f"{op}.{m} {operands}" for m in others)]) == [f"{op}.{m}" for m in others]
    assert refused([f"{op}.{m} {operands}" for m in TAKEN[instruction].split()]) == []


def test_every_instruction_is_tried():
    tried = {instruction.split()[0].split(".")[0] for instruction in TAKEN}
    assert tried == BUILDERS.keys() - {"extern"}


@pytest.mark.parametrize("instruction", [x.strip() for x in INCOMPLETE.split(";")])
def test_what_lacks_a_modifier_is_refused(instruction):
    (op,) = refused([instruction.replace("FRAGMENTS", FRAGMENTS)])
    assert instruction.startswith(op)
