"""What the compiled kernels may cost: instructions an element, accesses, registers, counted in the SASS.

A byte of memory traffic pays for 9.6, 8.9 and 4.4 instructions on an A100, H100 and B200 (sass.ARCHITECTURES); these
bars are far below that, except where noted, so that memory alone decides.
"""

import pytest
import sass
import torch
from launches import recorded

from vae_fast.kernels import elbo, latent

pytestmark = pytest.mark.skipif(sass.cuobjdump() is None, reason="there is no cuobjdump")
ARCHITECTURES = [80, 90, 100]
SEED = torch.tensor(3)
ROWS, PIXELS, Z = 8192, 784, 64


def image(dtype, *shape):
    return torch.empty(shape or (ROWS, PIXELS), dtype=dtype)


def code(dtype):
    return torch.empty((65_536, Z), dtype=dtype)


BF16, F32, U8 = torch.bfloat16, torch.float32, torch.uint8
# label: (launch, bytes that an element reads, widths in bits of its accesses, instructions on sm_80, 90, 100, MUFU)
BARS = {
    "Bernoulli, bfloat16 and bytes": (
        lambda: elbo.nll("bernoulli", image(BF16), image(U8), None, None, 1), 3, {128, 64}, (19, 19, 18.5), 2,
    ),
    "Bernoulli, float32": (
        lambda: elbo.nll("bernoulli", image(F32), image(F32), None, None, 1), 8, {128}, (15.5, 15.5, 13.5), 2,
    ),
    "Bernoulli, float32 and bytes": (
        lambda: elbo.nll("bernoulli", image(F32), image(U8), None, None, 1), 5, {128, 32}, (18.5, 18.5, 17.5), 2,
    ),
    "Bernoulli without gradient": (
        lambda: elbo.nll("bernoulli", image(BF16), image(U8), None, None, 0), 3, {128, 64}, (12.5, 12.5, 12.5), 1,
    ),
    "Gaussian, fixed": (
        lambda: elbo.nll("gaussian", image(BF16), image(BF16, 1, 1), image(BF16), None, None, 1),
        4, {128}, (8, 8, 6.5), 0,
    ),
    "Gaussian, log-variance": (
        lambda: elbo.nll("gaussian", image(BF16), image(BF16), image(BF16), None, None, 3), 6, {128}, (17, 17, 14), 1,
    ),
    "Laplace": (
        lambda: elbo.nll("laplace", image(BF16), image(BF16), image(BF16), None, None, 3),
        6, {128}, (17.5, 17.5, 14.5), 1,
    ),
    "Laplace, fixed": (
        lambda: elbo.nll("laplace", image(BF16), image(BF16, 1, 1), image(BF16), None, None, 1),
        4, {128}, (8.5, 8.5, 7.75), 0,
    ),
    # Memory decides on an A100 and an H100. A B200's 5 bytes pay for 22 instructions
    "continuous Bernoulli, bfloat16 and bytes": (
        lambda: elbo.nll("continuous_bernoulli", image(BF16), image(U8), None, None, 1),
        3, {128, 64}, (36, 36, 28.5), 3,
    ),
    "continuous Bernoulli, float32": (
        lambda: elbo.nll("continuous_bernoulli", image(F32), image(F32), None, None, 1), 8, {128}, (32, 32, 29), 3,
    ),
    # Instructions decide: 9 bytes pay for 86, 80 and 40; and memory for float32, whose 20 bytes pay for 192, 178 and 88
    "discretised logistic, bfloat16 and bytes": (
        lambda: elbo.nll("discretized_logistic", image(BF16), image(BF16), image(U8), 256.0, 0.0, 255.0, None, None, 3),
        5, {64, 32}, (87.5, 89, 71), 4,
    ),
    "discretised logistic, float32": (
        lambda: elbo.nll("discretized_logistic", image(F32), image(F32), image(F32), 256.0, -1.0, 1.0, None, None, 3),
        12, {128}, (83.5, 83.5, 71.5), 4,
    ),
    "Poisson": (
        lambda: elbo.nll("poisson", image(F32), image(F32), 1.0, None, None, 1), 8, {128}, (64.5, 65, 47), 3,
    ),
    # 20 bytes an element, of which 192, 178 and 88 instructions pay for: on sm_100 instructions decide
    "negative binomial": (
        lambda: elbo.nll(
            "negative_binomial", image(F32), image(F32), image(F32, 1, 1), image(F32), 0.0, 0.0, None, None, 3
        ),
        12, {128}, (169, 169, 131.5), 9,
    ),
    # One theta a gene leaves 12 bytes, of which 115, 107 and 53 pay for: instructions decide
    "negative binomial, one theta a feature": (
        lambda: elbo.nll(
            "negative_binomial", image(F32), image(F32, 1, PIXELS), image(F32, 1, 1), image(F32), 0.0, 0.0,
            None, None, 3,
        ),
        12, {128}, (177, 178, 125), 9,
    ),
    # 28 bytes: 269, 249 and 123
    "zero-inflated negative binomial": (
        lambda: elbo.nll(
            "zero_inflated_negative_binomial", image(F32), image(F32), image(F32), image(F32, 1, 1), image(F32),
            0.0, 0.0, None, None, 7,
        ),
        16, {128}, (224, 224, 184), 13,
    ),
    # One theta a gene: 20 bytes
    "zero-inflated negative binomial, one theta a feature": (
        lambda: elbo.nll(
            "zero_inflated_negative_binomial", image(F32), image(F32, 1, PIXELS), image(F32), image(F32, 1, 1),
            image(F32), 0.0, 0.0, None, None, 7,
        ),
        16, {128}, (235, 235, 173.5), 13,
    ),
    "reparameterize": (lambda: latent.reparameterize(code(BF16), code(BF16), SEED), 4, {128}, (26, 26, 26), 3),
    "sample_kl backward": (
        lambda: latent.sample_kl_backward(code(BF16), torch.ones(65_536), code(BF16), code(BF16), None, None, SEED, 3),
        6, {128}, (32.5, 32.5, 32.5), 3,
    ),
    # The KL's series near the prior costs 11; where memory alone should decide, sm_100 would need 26
    "sample_kl": (
        lambda: latent.sample_kl(code(BF16), code(BF16), None, None, SEED), 4, {128}, (38.5, 38.5, 33.5), 3,
    ),
}  # fmt: skip


def compiled(launch_of, cc):
    with recorded() as launches:
        launch_of()
    return launches[0], sass.count(launches[0].compile(cc)[0])


@pytest.mark.parametrize("cc", ARCHITECTURES)
@pytest.mark.parametrize("name", BARS)
def test_the_loop(name, cc):
    launch_of, read, widths, instructions, mufu = BARS[name]
    counted = compiled(launch_of, cc)[1]
    body = counted.body
    per_element = body.per_element(body.elements(read))
    assert per_element.instructions <= instructions[ARCHITECTURES.index(cc)]
    assert per_element.mufu <= mufu
    assert per_element.fp64 == 0
    if launch_of is BARS["Bernoulli, bfloat16 and bytes"][0]:
        assert per_element.conversions == 0
    assert counted.spills == 0 and body.shared_accesses == 0
    assert {bits for (kind, bits) in body.accesses if kind in ("LDG", "STG")} == widths


@pytest.mark.parametrize("cc", ARCHITECTURES)
def test_the_whole_bernoulli_kernel(cc):
    """784 pixels, with prologue, tail, masks and reductions: what is outside the loop runs once."""
    launch, counted = compiled(BARS["Bernoulli, bfloat16 and bytes"][0], cc)
    elements = 16 * PIXELS / (32 * launch.num_warps)  # of a thread, in 16 rows
    turns = PIXELS // 64 / (counted.body.elements(3) / 8)
    once = counted.whole.counts.instructions - counted.body.counts.instructions
    assert (once + turns * counted.body.counts.instructions) / elements <= 22


@pytest.mark.parametrize("cc", ARCHITECTURES)
def test_no_kernel_spills(cc):
    """The largest: a given prior, weights, a mask, gradients to everything."""
    shared = torch.empty(1, Z)
    launches_of = [
        lambda: elbo.elbo(
            "gaussian", image(F32), image(F32, 1, PIXELS), image(F32), *(torch.empty(ROWS, Z) for _ in range(2)),
            shared, shared, torch.ones(ROWS), torch.ones(ROWS, PIXELS, dtype=torch.bool), None, 1.0, 1.0, True, 63,
        ),
        lambda: elbo.monte_carlo_kl(*(torch.empty(ROWS, Z) for _ in range(5)), torch.ones(ROWS), 31),
        lambda: latent.sample_kl(code(F32), code(F32), shared, shared, SEED),
    ]  # fmt: skip
    for launch_of in launches_of:
        assert compiled(launch_of, cc)[1].spills == 0
