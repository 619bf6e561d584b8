"""The counter of `sass.py` on kernels whose counts are known."""

from typing import Any

import pytest
import sass
from sass import ARCHITECTURES, Counts, Sass, count

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

pytestmark = [
    pytest.mark.skipif(sass.cuobjdump() is None, reason="no cuobjdump"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="Triton interprets its kernels"),
]
WARPS = 4
BLOCK = 1024  # eight elements a thread


@triton.jit
def exponentials(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(y_ptr + at, tl.exp2(tl.load(x_ptr + at)))


@triton.jit
def unrolled(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    for start in tl.range(0, n, BLOCK, loop_unroll_factor=4):
        at = start + tl.arange(0, BLOCK)
        tl.store(y_ptr + at, tl.exp2(tl.load(x_ptr + at)))


@triton.jit
def straight(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.exp2(tl.load(x_ptr + at)))


@triton.jit
def widths(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        byte = tl.load(x_ptr + at).to(tl.float32)
        tl.store(y_ptr + at, tl.load(y_ptr + at) + byte.to(tl.bfloat16))


@triton.jit
def tailed(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    for row in range(tl.program_id(0), n, tl.num_programs(0)):
        for start in range(0, n - n % BLOCK, BLOCK):
            at = start + tl.arange(0, BLOCK)
            tl.store(y_ptr + row * BLOCK + at, tl.exp2(tl.load(x_ptr + row * BLOCK + at)))
        for start in range(n - n % BLOCK, n, BLOCK // 8):
            at = start + tl.arange(0, BLOCK // 8)
            tl.store(y_ptr + row + at, tl.load(x_ptr + row + at, mask=at < n), mask=at < n)


@triton.jit
def row_sums(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    for row in range(tl.program_id(0), n, tl.num_programs(0)):
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, n * BLOCK, BLOCK):
            total += tl.load(x_ptr + row * BLOCK + start + tl.arange(0, BLOCK))
        tl.store(y_ptr + row, tl.sum(total))


@triton.jit
def reduced_in_the_loop(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    for row in range(0, n):
        tl.store(y_ptr + row, tl.sum(tl.load(x_ptr + row * BLOCK + tl.arange(0, BLOCK))))


@triton.jit
def spilling(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n * BLOCK, BLOCK):
        total += total * tl.load(x_ptr + start + at)
    tl.store(y_ptr + at, total)


@triton.jit
def cosines(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(y_ptr + at, tl.cos(tl.load(x_ptr + at)))


@triton.jit
def doubles(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(y_ptr + at, (tl.load(x_ptr + at).to(tl.float64) * 0.1).to(tl.float32))


def compiled(kernel: Any, arch: int, x: str = "*fp32", y: str = "*fp32", block: int = BLOCK, **options: Any) -> Any:
    source = ASTSource(
        fn=kernel,
        signature={"x_ptr": x, "y_ptr": y, "n": "i32", "BLOCK": "constexpr"},
        constexprs={(3,): block},
        attrs={(k,): [["tt.divisibility", 16]] for k in range(3)},
    )
    options = {"num_warps": WARPS, "enable_fp_fusion": True, **options}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def counted(kernel: Any, arch: int, **options: Any) -> Sass:
    return count(compiled(kernel, arch, **options))


@pytest.fixture(params=ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
def arch(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.mark.parametrize("kernel", [exponentials, unrolled, straight], ids=lambda kernel: kernel.__name__)
def test_one_exponential_an_element(kernel: Any, arch: int) -> None:
    code = counted(kernel, arch)
    assert code.arch == arch
    assert code.body.is_loop == (kernel is not straight)
    n = code.body.elements(4)
    assert n == 8 if kernel is straight else n % 8 == 0  # ptxas unrolls where it likes
    assert kernel is not unrolled or n >= 32
    assert code.per_element(n).mufu == 1 == code.body.opcodes["MUFU.EX2"] / n
    assert code.body.bytes_stored == code.body.bytes_loaded == 4 * n
    assert code.registers > 8 and code.spills == code.stack == code.shared == code.body.shared_accesses == 0


def test_pipes_sum_to_the_instructions(arch: int) -> None:
    c = counted(exponentials, arch).counts
    assert c.fma + c.alu + c.xu + c.lsu + c.uniform + c.control + c.tensor + c.fp64 == c.instructions
    assert c.control >= 1 and c.lsu == c.mufu / 2 and c.xu == c.mufu  # two loads, two stores for eight exponentials


def test_widths_and_conversions(arch: int) -> None:
    code = counted(widths, arch, x="*u8", y="*bf16")
    times = code.body.accesses[("LDG", 64)]
    assert code.body.accesses == {("LDG", 64): times, ("LDG", 128): times, ("STG", 128): times}
    assert code.body.elements(3) == 8 * times
    assert code.per_element(8 * times).conversions == 1  # each byte through the slow pipe


def test_the_main_loop_is_found_beside_a_masked_tail(arch: int) -> None:
    code = counted(tailed, arch)
    assert set(code.body.accesses) == {("LDG", 128), ("STG", 128)}
    assert code.body.nested == 0
    assert [loop for loop in code.loops if set(loop.accesses) == {("LDG", 32), ("STG", 32)}]
    assert [loop for loop in code.loops if loop.nested and set(code.body.accesses) < set(loop.accesses)]


def test_the_loop_that_loads_goes_before_the_rows_that_store(arch: int) -> None:
    body = counted(row_sums, arch).body
    assert set(body.accesses) == {("LDG", 128)} and body.depth == 2
    with pytest.raises(ValueError, match="loads nothing"):
        sass.Body((), (), 1, 0).elements(4)


def test_shared_memory_in_the_loop(arch: int) -> None:
    code = counted(reduced_in_the_loop, arch)
    assert code.body.shared_accesses > 0 and code.shared > 0
    outside = counted(row_sums, arch)
    assert outside.body.shared_accesses == 0 and outside.shared > 0 and outside.whole.shared_accesses > 0


def test_spills(arch: int) -> None:
    code = counted(spilling, arch, block=64 * BLOCK // 8, maxnreg=32)
    assert code.spills > 0 and code.stack > 0 and code.registers <= 32
    assert code.body.spills <= code.spills


def test_the_slow_path_of_a_cosine_is_left_out(arch: int) -> None:
    code = counted(cosines, arch)
    assert code.body.nested == 0 and len(code.loops) == 1
    assert not any("CONSTANT" in mnemonic for mnemonic in code.body.opcodes)
    assert code.counts.fp64 == 0
    assert code.body.elements(4) % 8 == 0


def test_doubles_show(arch: int) -> None:
    code = counted(doubles, arch)
    assert code.per_element(code.body.elements(4)).fp64 >= 1
    assert counted(exponentials, arch).counts.fp64 == 0


def test_a_cubin_counts_like_the_kernel_it_is_of() -> None:
    kernel = compiled(exponentials, 90)
    assert count(kernel.asm["cubin"], "exponentials") == count(kernel)
    with pytest.raises(LookupError, match="exponentials"):
        count(kernel.asm["cubin"], "logarithms")


LISTING = """
\tcode for sm_90a
\t\tFunction : first_kernel
        /*0000*/                   LDG.E R2, desc[UR4][R2.64] ;   /* 0x0000000000000000 */
        /*0010*/                   EXIT ;
        /*0020*/                   BRA 0x20;
\t\tFunction : second_kernel
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P0 LDG.E.U8.CONSTANT R2, desc[UR4][R2.64] ;
        /*0020*/              @!PT LDS RZ, [RZ] ;
        /*0030*/                   LDGSTS.E.BYPASS.LTC128B.128 [R3], desc[UR4][R4.64] ;
        /*0040*/                   NOP;
        /*0050*/                   FFMA2 R2, R2, R3, R4 ;
        /*0060*/                   IMAD.WIDE R2, R2, R3, R4 ;
        /*0070*/                   HGMMA.64x64x16.F32 R24, gdesc[UR4], RZ, !UPT ;
        /*0080*/               @P1 BRA 0x10 ;
        /*0090*/                   CALL.REL.NOINC 0xc0 ;
        /*00a0*/               @P0 EXIT ;
        /*00b0*/                   BRA.U UP0, 0x10 ;
        /*00c0*/                   STL [R1], R2 ;
        /*00d0*/                   RET.REL.NODEC R2 0x0 ;
        /*00e0*/                   BRA 0xe0;
Resource usage:
 Function first_kernel:
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:584
 Function second_kernel:
  REG:24 STACK:16 SHARED:1224 LOCAL:0 CONSTANT[0]:584
"""


def test_a_listing_of_two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "disassemble", lambda cubin, function=None: LISTING)
    with pytest.raises(LookupError, match="None is 2 of the kernels"):
        count(b"")
    code = count(b"", "second")
    assert (code.name, code.registers, code.stack, code.shared, code.spills) == ("second_kernel", 24, 16, 200, 1)
    assert len(code.loops) == 1 and code.body.bytes_loaded == 17
    assert code.body.accesses == {("LDG", 8): 1, ("LDGSTS", 128): 1}
    expected = Counts(instructions=9, fma=2, lsu=2, control=4, tensor=1, packed=1, wide=1)
    assert code.counts == expected
    assert not count(b"", "first").loops


LEFT_BY_CALL = """
\tcode for sm_80
\t\tFunction : loop
        /*0000*/                   LDG.E.128 R4, [R2.64] ;
        /*0010*/               @P1 CALL.REL.NOINC 0x30 ;
        /*0020*/                   BRA 0x0;
        /*0030*/                   CALL.REL.NOINC 0x60 ;
        /*0040*/                   STG.E [R2.64], R4 ;
        /*0050*/                   EXIT ;
        /*0060*/                   MUFU.RCP R4, R4 ;
        /*0070*/                   RET.REL.NODEC R2 0x0 ;
        /*0080*/                   BRA 0x80;
 Function loop:
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:584
"""


def test_a_loop_that_is_left_by_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ptxas writes it for sm_80: what follows belongs to the kernel, a function that returns does not."""
    monkeypatch.setattr(sass, "disassemble", lambda cubin, function=None: LEFT_BY_CALL)
    code = count(b"")
    assert code.whole.counts == Counts(instructions=6, lsu=2, control=4)
    assert code.body.counts == Counts(instructions=3, lsu=1, control=2)
    assert code.executed(1) == code.whole.counts
    assert code.executed(4) == Counts(instructions=15, lsu=5, control=10)
    assert code.executed(4) / 2 == code.executed(4) * 0.5 == Counts(instructions=7.5, lsu=2.5, control=5)


def test_budgets() -> None:
    """Thread instructions, MUFU and ALU for a byte of HBM: the table that every kernel is designed by."""
    budgets = {arch: a.budget for arch, a in ARCHITECTURES.items()}
    assert [round(b.instructions, 1) for b in budgets.values()] == [9.6, 8.9, 4.4]
    assert [round(b.mufu, 2) for b in budgets.values()] == [1.19, 1.11, 0.55]
    assert [round(b.alu, 1) for b in budgets.values()] == [4.8, 4.4, 2.2]


def test_the_bound_is_the_slowest_unit() -> None:
    h100 = ARCHITECTURES[90]
    budget = h100.budget
    assert h100.bound(Counts(instructions=budget.instructions), hbm_bytes=1) == ("hbm", pytest.approx(1))
    assert h100.bound(Counts(xu=2 * budget.xu), hbm_bytes=1) == ("xu", pytest.approx(2))
    assert h100.bound(Counts(instructions=1), hbm_bytes=0) == ("issue", float("inf"))
    assert h100.picoseconds(Counts(instructions=1), hbm_bytes=3.35) == pytest.approx(1)
    packed = Counts(instructions=1, fma=1, packed=1)
    assert h100.cycles(packed, 0)["fma"] == 2 * h100.cycles(Counts(fma=1), 0)["fma"]
