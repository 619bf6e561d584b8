"""The PTX emulator's threads and memories: who waits for whom, what is a fault, what is refused."""

import re

import numpy as np
import pytest
from ptx_emulator import EmulatorError, MemoryFault, Stats, run, unsupported
from ptx_emulator.snippets import kernel

PARTED = "@%p1 bra EARLY; bra LATE;"


def words(n):
    return np.zeros(n, np.uint32)


def run_on(y: np.ndarray, body: str, variables: str = "", **options) -> Stats:
    return run(kernel(body, variables), "t", options.pop("grid", 1), len(y), [y], **options)


def test_a_shuffle_waits_for_the_lanes_that_it_reads():
    """The low lanes reach the shuffle, at a lower address, before the high lanes have computed what it reads."""
    y = words(32)
    shuffle = "EARLY: shfl.sync.bfly.b32 %r3, %r2, 16, 31, -1; st.global.u32 [%rd3], %r3; ret;"
    run_on(y, f"{PARTED} {shuffle} LATE: add.u32 %r2, %r1, 100; bra EARLY;")
    assert y.tolist() == [i + 16 + 100 for i in range(16)] + [5] * 16


HALVES = """@!%p1 bra LATE;
EARLY: bar.warp.sync -1; ld.shared.u32 %r3, [%r8 + 64]; st.global.u32 [%rd3], %r3; ret;
LATE: add.u32 %r2, %r1, 100; st.shared.u32 [%r8], %r2; @%p2 bra EARLY; """


def test_a_warp_barrier_orders_shared_memory():
    y = words(32)
    with pytest.raises(MemoryFault, match="uninitialised"):  # lanes from 16 on read beyond what was written
        run_on(y, HALVES + "bra EARLY;")
    y[:] = 0
    run_on(y, HALVES + "ret;")
    assert y.tolist() == [i + 16 + 100 for i in range(16)] + [0] * 16
    with pytest.raises(EmulatorError, match="deadlock"):
        run_on(y, HALVES + "bar.sync 0; ret;")


EXCHANGE = """setp.lt.u32 %p3, %r1, 32; @!%p3 bra END;
st.shared.u32 [%r8], %r1; bar.warp.sync -1; xor.b32 %r4, %r9, 4; mov.u32 %r5, sm; add.u32 %r5, %r5, %r4;
ld.shared.u32 %r6, [%r5]; st.global.u32 [%rd3], %r6; bra OUT;
END: {wait}
OUT: ret;"""


def test_a_warp_barrier_is_no_block_barrier():
    y = words(64)
    run_on(y, EXCHANGE.format(wait="bar.sync 1, 32;"))
    assert y.tolist() == [i ^ 1 for i in range(32)] + [0] * 32
    y[:] = 0
    spin = "ld.volatile.global.u32 %r6, [%rd1]; setp.eq.u32 %p4, %r6, 0; @%p4 bra END;"
    run_on(y, EXCHANGE.format(wait=spin), max_steps=1000)  # the second warp waits until the first is past its barrier
    assert y[0] == 1


@pytest.mark.parametrize("op", ["popc.u32", "and.pred", "or.pred"])
def test_a_barrier_reduces_over_the_block(op):
    y, p = words(64), "%r3" if op.startswith("popc") else "%p5"
    take = "" if p == "%r3" else "selp.u32 %r3, 1, 0, %p5;"
    run_on(y, f"bar.red.{op} {p}, 0, %p1; {take} st.global.u32 [%rd3], %r3; ret;")
    assert y.tolist() == [{"popc.u32": 16, "and.pred": 0, "or.pred": 1}[op]] * 64


def test_threads_meet_again_after_a_branch():
    y = words(32)
    stats = run_on(
        y,
        """@%p1 bra A; add.u32 %r2, %r2, 1; bra B;
        A: add.u32 %r2, %r2, 2;
        B: activemask.b32 %r3; st.global.u32 [%rd3], %r3; ret;""",
    )
    assert (y == 0xFFFFFFFF).all()
    assert stats.opcodes["activemask.b32"] == 32
    assert stats.requests["st"] == 1
    assert stats.traffic == {0: (0, 128)}


def test_jump_table():
    y = words(32)
    targets = "TABLE: .branchtargets A, B, C;"
    body = f"""{targets} and.b32 %r3, %r1, 3; brx.idx %r3, TABLE;
    A: mov.u32 %r4, 10; bra END;
    B: mov.u32 %r4, 20; bra END;
    C: mov.u32 %r4, 30;
    END: st.global.u32 [%rd3], %r4; ret;"""
    run_on(y, body)
    assert y.tolist() == [10, 20, 30, 30] * 8


def test_inner_scopes_have_their_own_registers():
    y = words(32)
    inner = "{ .reg .b32 %r<4>; .reg .b32 %v; mov.u32 %r3, 7; mov.u32 %v, %r3; add.u32 %r9, %v, 1; }"
    run_on(y, f"mov.u32 %r3, 1; {inner} add.u32 %r9, %r9, %r3; st.global.u32 [%rd3], %r9; ret;")
    assert (y == 9).all()


def test_functions_are_inlined_with_names_of_their_own():
    function = """.func (.param .b32 out) twice(.param .b32 in)
    { .reg .b32 %r<4>; ld.param.b32 %r1, [in]; add.u32 %r2, %r1, %r1; st.param.b32 [out], %r2; ret; }
    .visible .entry"""
    call = "{ .param .b32 a; .param .b32 b; st.param.b32 [a], %r1; call.uni (b), twice, (a); ld.param.b32 %r3, [b]; }"
    ptx = kernel(f"{call} st.global.u32 [%rd3], %r3; ret;").replace(".visible .entry", function, 1)
    y = words(64)
    run(ptx, "t", 1, 64, [y])
    assert y.tolist() == [2 * i for i in range(64)]


@pytest.mark.parametrize("batch_threads", [32, 64])
def test_shared_memory_is_fresh_for_every_block(batch_threads):
    only_the_first = "mov.u32 %r3, %ctaid.x; setp.eq.u32 %p3, %r3, 0; @%p3 st.shared.u32 [%r8], %r1;"
    body = only_the_first + "ld.shared.u32 %r3, [%r8]; st.global.u32 [%rd3], %r3; ret;"
    with pytest.raises(MemoryFault, match=r"uninitialised.*ctaid \(1,0,0\)"):
        run_on(words(32), body, grid=2, batch_threads=batch_threads)


BAD_ADDRESSES = {
    "shared: below": "st.shared.u32 [%r9], %r2;",
    "shared: above": "st.shared.u32 [sm+1000], %r2;",
    "shared: misaligned": "st.shared.u32 [%r8+2], %r2;",
    "global: below": "st.global.u32 [%rd2], %r2;",
    "global: null": "mov.u64 %rd4, 0; ld.global.u32 %r3, [%rd4];",
    "local: below": "mov.u64 %rd4, 0; st.local.u32 [%rd4+-4], %r2;",
    "local: null": "mov.u64 %rd4, 0; st.local.u32 [%rd4], %r2;",
    "local: above": "mov.u64 %rd4, 1000; st.local.u32 [%rd4], %r2;",
}


@pytest.mark.parametrize("name", BAD_ADDRESSES)
@pytest.mark.parametrize("variables", ["", ".local .align 4 .b8 depot[16];"], ids=["", "with a stack"])
def test_bad_addresses(name, variables):
    with pytest.raises(MemoryFault, match=name.split(":")[0]):
        run_on(words(32), BAD_ADDRESSES[name] + " ret;", variables)


def test_a_kernel_without_arrays_has_no_global_memory():
    with pytest.raises(MemoryFault, match="outside every global buffer"):
        run(kernel("st.global.u32 [%rd3], %r1; ret;"), "t", 1, 32, [1 << 40])


def test_one_generic_load_reaches_two_memories():
    y = words(32)
    y[:] = 77
    body = """cvt.u64.u32 %rd4, %r8; cvta.shared.u64 %rd5, %rd4; st.u32 [%rd5], %r1; bar.sync 0;
    selp.b64 %rd6, %rd5, %rd3, %p1; ld.u32 %r5, [%rd6]; st.u32 [%rd3], %r5; ret;"""
    run_on(y, body)
    assert y.tolist() == list(range(16)) + [77] * 16


def test_vector_loads_are_aligned_and_in_bounds():
    y = np.arange(8, dtype=np.float32)
    vector = ".reg .f32 %f<8>;", "ld.global.v4.f32 {{%f1,%f2,%f3,%f4}}, [%rd1+{}]; st.global.f32 [%rd1], %f4; ret;"
    run(kernel(vector[1].format(16), vector[0]), "t", 1, 32, [y])
    assert y[0] == 7
    for offset, error in ((4, "misaligned 16-byte load"), (32, "outside every global")):
        with pytest.raises(MemoryFault, match=error):
            run(kernel(vector[1].format(offset), vector[0]), "t", 1, 32, [y])


@pytest.mark.parametrize(
    "instruction",
    [
        "frobnicate.f32 %r1, %r2;",
        "add.rn.turbo.f32 %r1, %r2, %r3;",
        "wgmma.fence.sync.aligned;",
        "add.f32 %r1, %r2, %nope;",
        "cvt.rz.f16x2.f32 %r1, %r2, %r3;",
        "@%nope add.u32 %r1, %r1, %r1;",
        "redux.sync.abs.max.f32 %r1, %r2, -1;",
        "discard.global.L2 [%rd1], 128;",
    ],
)
def test_what_is_unknown_is_refused(instruction):
    op = re.escape(re.search(r"[a-z]\w*(\.\w+)+", instruction)[0])
    ptx = kernel(f"{instruction} ret;")
    (problem,) = unsupported(ptx, "t")
    assert re.match(op, problem)
    with pytest.raises(NotImplementedError, match=op):
        run(ptx, "t", 1, 32, [words(1)])
    run(kernel(f"bra END; {instruction} END: ret;"), "t", 1, 32, [words(1)])  # nobody gets there


def test_some_threads_end_early():
    y = words(64)
    stats = run_on(y, "@%p1 exit; bar.sync 0; st.global.u32 [%rd3], %r2; ret;")
    assert y.tolist() == [0] * 16 + [5] * 48
    assert stats.opcodes["exit"] == 16


WITHOUT_EFFECT = """membar.gl; fence.acq_rel.gpu; nanosleep.u32 20; griddepcontrol.wait; pmevent 1;
prefetch.global.L2 [%rd1]; prefetchu.L1 [%rd1];
applypriority.global.L2::evict_normal [%rd1], 128;
createpolicy.fractional.L2::evict_first.b64 %rd4, 1.0;"""


def test_hints_change_nothing():
    y = words(32)
    load = "ldu.global.u32 %r3, [%rd3]; barrier.sync 0; ld.global.L1::evict_last.L2::cache_hint.u32 %r3, [%rd3], %rd4;"
    run_on(y, f"{WITHOUT_EFFECT} st.global.u32 [%rd3], %r1; {load} st.global.wt.u32 [%rd3], %r3; ret;")
    assert y.tolist() == list(range(32))


def test_arguments_must_fit():
    ptx = kernel("ret;")
    for args in ([], [words(1), 2]):
        with pytest.raises(EmulatorError, match=f"1 parameters, got {len(args)}"):
            run(ptx, "t", 1, 32, args)
    with pytest.raises(EmulatorError, match="no kernel 'u'"):
        run(ptx, "u", 1, 32, [words(1)])
    assert run(ptx, "t", (0, 3), 32, [words(0)]).instructions == 0
    with pytest.raises(EmulatorError, match="step limit"):
        run(kernel("AGAIN: bra AGAIN;"), "t", 1, 32, [words(1)], max_steps=100)
    with pytest.raises(EmulatorError, match="trap"):
        run(kernel("trap;"), "t", 1, 32, [words(1)])
