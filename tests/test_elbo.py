"""ELBOLoss: reductions, weights, masks, priors, both forms of the KL, against the float64 reference."""

import math

import pytest
import torch
from operands import FLOATING, LAYOUTS, ON_GPU, assert_gradients, assert_values, leaf, levels, target, wide

import vae_fast
from vae_fast import ELBOLoss, reference

LIKELIHOODS = {
    "bernoulli": (reference.bernoulli, 1, lambda: {}),
    "bernoulli_probs": (reference.bernoulli_probs, 1, lambda: {"from_logits": False}),
    "gaussian": (reference.gaussian, 2, lambda: {}),
    "laplace": (reference.laplace, 2, lambda: {}),
    "continuous_bernoulli": (reference.continuous_bernoulli, 1, lambda: {}),
    "discretized_logistic": (reference.discretized_logistic, 2, lambda: {}),
}
B, D, Z = 7, 37, 5


def operands(likelihood, dtype=torch.float32, prior=False):
    """(parameters, x, mu, logvar, prior or None), all leaves but x."""
    count = LIKELIHOODS[likelihood][1]
    parameters = [torch.randn(B, D) for _ in range(count)]
    if likelihood == "bernoulli_probs":
        parameters = [torch.rand(B, D).clamp(0.01, 0.99)]
    latent = [torch.randn(B, Z) for _ in range(2)]
    given = [torch.randn(Z), torch.randn(B, Z)] if prior else []
    return (
        [leaf(t.to(dtype)) for t in parameters],
        levels((B, D)) if likelihood == "discretized_logistic" else target((B, D)),
        *(leaf(t.to(dtype)) for t in latent),
        tuple(leaf(t.to(dtype)) for t in given) or None,
    )


def loss_of(likelihood, **options):
    return ELBOLoss(likelihood.removesuffix("_probs"), **LIKELIHOODS[likelihood][2](), **options)


def recon_of(parameters):
    return parameters[0] if len(parameters) == 1 else tuple(parameters)


def expected(likelihood, parameters, x, mu, logvar, prior, *, incoming=None, **options):
    """(loss, nll, kl) and the gradients, in float64."""
    leaves = [wide(t) for t in (*parameters, mu, logvar, *(prior or ()))]
    count = len(parameters)
    rows = [t.reshape(1, -1) if t.dim() == 1 else t for t in leaves]
    p = (rows[count + 2], rows[count + 3]) if prior else None
    values = reference.elbo(
        LIKELIHOODS[likelihood][0], rows[:count], x.double(), rows[count], rows[count + 1], p, **options
    )
    incoming = torch.ones_like(values[0]) if incoming is None else incoming.double()
    return [v.detach() for v in values], torch.autograd.grad(values[0], leaves, incoming)


SCALES = {"mean": 1 / B, "sum": 1.0, "none": 1.0, "mean_all": 1 / (B * D)}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("reduction", SCALES)
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "given"])
@pytest.mark.parametrize("selected", [False, True], ids=["all", "selected"])
def test_one_pass(likelihood, reduction, prior, selected, poisoned):
    parameters, x, mu, logvar, p = operands(likelihood, prior=prior)
    weight = torch.rand(B) * (torch.arange(B) != 2) if selected else None
    mask = torch.rand(B, D) > 0.3 if selected else None
    beta = 0.7
    terms = loss_of(likelihood, beta=beta, reduction=reduction, prior=p).terms(
        recon_of(parameters), x, mu, logvar, weight=weight, mask=mask
    )
    incoming = torch.randn(terms.loss.shape)
    terms.loss.backward(incoming)
    values, gradients = expected(
        likelihood,
        parameters,
        x,
        mu,
        logvar,
        p,
        incoming=incoming,
        weight=weight,
        mask=mask,
        beta=beta,
        scale=SCALES[reduction],
        reduce=reduction != "none",
    )
    for got, value in zip(terms, values, strict=True):
        magnitude = value.abs() + (0 if likelihood.startswith("bernoulli") else D)
        assert_values(got, value, magnitude + 1e-30)
    assert not terms.nll.requires_grad and not terms.kl.requires_grad
    leaves = [*parameters, mu, logvar, *(p or ())]
    sums = max(1.0, float(max(g.abs().max() for g in gradients)))
    assert_gradients([t.grad for t in leaves], gradients, sums=sums, relative=1e-6)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_dtypes(dtype, likelihood):
    parameters, x, mu, logvar, _ = operands(likelihood, dtype)
    loss = loss_of(likelihood)(recon_of(parameters), x, mu, logvar)
    loss.backward()
    (value, *_), gradients = expected(likelihood, parameters, x, mu, logvar, None, scale=1 / B)
    assert_values(loss, value)
    assert_gradients([t.grad for t in (*parameters, mu, logvar)], gradients, relative=1e-6)


def test_float16_gradients_of_a_large_batch_do_not_underflow():
    """1/B of a small gradient is below float16's least number; the gradient scaler's factor must come first."""
    rows, scaler = 20_000, 65536.0
    logits = leaf(torch.full((rows, 3), -9.0, dtype=torch.float16))
    zeros = torch.zeros(rows, 1, dtype=torch.float16)
    (ELBOLoss()(logits, torch.zeros(rows, 3), zeros, zeros) * scaler).backward()
    exact = torch.sigmoid(torch.tensor(-9.0, dtype=torch.float64)) / rows * scaler
    assert exact / scaler < 2**-24
    assert logits.grad.double().sub(exact).abs().max() <= 2**-11 * exact


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    parameters, x, mu, logvar, _ = operands("gaussian")
    parameters = [leaf(LAYOUTS[layout](t)) for t in parameters]
    mu, logvar = leaf(LAYOUTS[layout](mu)), leaf(LAYOUTS[layout](logvar))
    mask = LAYOUTS[layout](torch.rand(B, D).clamp(max=0.9)) > 0.4
    loss = ELBOLoss("gaussian")(tuple(parameters), LAYOUTS[layout](x), mu, logvar, mask=mask)
    loss.backward()
    (value, *_), gradients = expected(
        "gaussian", parameters, LAYOUTS[layout](x), mu, logvar, None, mask=mask, scale=1 / B
    )
    assert_values(loss, value, value.abs() + D)
    assert_gradients([t.grad for t in (*parameters, mu, logvar)], gradients, relative=1e-6)


def test_nothing_is_read_where_masked_or_of_weight_zero():
    parameters, x, mu, logvar, _ = operands("gaussian")
    mask, weight = torch.rand(B, D) > 0.5, torch.tensor([1.0, 0, 2, 1, 0, 1, 1])
    clean = ELBOLoss("gaussian")(tuple(parameters), x, mu, logvar, mask=mask, weight=weight)
    with torch.no_grad():
        for t in (*parameters, x):
            t[~mask] = torch.nan
            t[weight == 0] = torch.inf
        for t in (mu, logvar):
            t[weight == 0] = torch.nan
    loss = ELBOLoss("gaussian")(tuple(parameters), x, mu, logvar, mask=mask, weight=weight)
    loss.backward()
    assert torch.equal(loss, clean)
    for t in (*parameters, mu, logvar):
        assert t.grad.isfinite().all()
        assert (t.grad[weight == 0] == 0).all()
    assert (parameters[0].grad[~mask] == 0).all()


@pytest.mark.skipif(ON_GPU, reason="there nothing is moved together")
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 31, 256, 509])
def test_a_masked_row_is_the_row_of_what_counts(columns, dtype):
    """To the last bit: what counts is moved together, and its gradients back, eight at a time and one by one."""
    mean, logvar, x = (torch.randn(5, columns).to(dtype) for _ in range(3))
    mask = torch.rand(5, columns) < torch.tensor([0, 0.1, 0.5, 0.9, 1])[:, None]
    whole = leaf(mean), leaf(logvar)
    nll = vae_fast.gaussian_nll(whole[0], x, logvar=whole[1], mask=mask)
    nll.sum().backward()
    for row, kept in enumerate(mask):
        alone = leaf(mean[row, kept][None]), leaf(logvar[row, kept][None])
        all_of_it = torch.ones_like(alone[0], dtype=torch.bool)
        of_those = vae_fast.gaussian_nll(alone[0], x[row, kept][None], logvar=alone[1], mask=all_of_it)
        of_those.sum().backward()
        assert torch.equal(nll[row], of_those[0])
        for t, counts in zip(whole, alone, strict=True):
            assert torch.equal(t.grad[row, kept], counts.grad[0])
            assert not t.grad[row, ~kept].any()


SHAPES = {  # of the parameters
    "bernoulli": [(B, D)],
    "continuous_bernoulli": [(B, D)],
    "gaussian": [(B, D)] * 2,
    "poisson": [(B, D)],
    "discretized_logistic": [(B, D)] * 2,
    "categorical": [(B, 4, D)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("likelihood", SHAPES)
@pytest.mark.parametrize("which", ["mask", "x"])
def test_true_is_any_byte_but_0(which, likelihood, dtype):
    """As to PyTorch, of whose bool tensors some are views of bytes."""
    parameters = tuple(leaf(torch.randn(shape).to(dtype)) for shape in SHAPES[likelihood])
    x, mu = torch.randint(2, (B, D)).float(), torch.randn(B, Z)
    bits = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[torch.randint(4, (B, D))]

    def results(bits):
        given = {"x": x, "mask": None} | {which: bits}
        loss = ELBOLoss(likelihood)(parameters, given["x"], mu, mu, mask=given["mask"])
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    for got, right in zip(results(bits.view(torch.bool)), results(bits != 0), strict=True):
        assert torch.equal(got, right)


@pytest.mark.parametrize("shape", [(1, D), (B, 1), (D,)], ids=str)
def test_masks_broadcast(shape):
    parameters, x, mu, logvar, _ = operands("bernoulli")
    mask = torch.rand(shape) > 0.4
    got = ELBOLoss()(parameters[0], x, mu, logvar, mask=mask)
    assert torch.equal(got, ELBOLoss()(parameters[0], x, mu, logvar, mask=mask.expand(B, D).contiguous()))


def test_beta():
    parameters, x, mu, logvar, _ = operands("bernoulli")
    loss = ELBOLoss(reduction="sum", beta=3.0)
    terms = loss.terms(parameters[0], x, mu, logvar)
    assert terms.loss.item() == pytest.approx((terms.nll + 3 * terms.kl).sum().item(), rel=1e-6)
    loss.beta = torch.tensor(0.5)
    assert loss(parameters[0], x, mu, logvar).item() == pytest.approx((terms.nll + terms.kl / 2).sum().item(), rel=1e-6)
    loss.beta = 0.0
    with torch.no_grad():
        logvar[0, 0] = 1e4
    off = loss(parameters[0], x, mu, logvar)
    off.backward()
    assert off.item() == pytest.approx(terms.nll.sum().item(), rel=1e-6)
    assert (mu.grad == 0).all() and (logvar.grad == 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_monte_carlo_kl(weighted):
    """At given z the loss is nll + beta (log q - log p); over many z its mean is the analytic loss."""
    parameters, x, mu, logvar, p = operands("bernoulli", prior=True)
    weight = torch.rand(B) if weighted else None
    z = vae_fast.reparameterize(mu, logvar)
    loss = ELBOLoss(kl="monte_carlo", beta=0.5, prior=p, reduction="none")
    got = loss(parameters[0], x, mu, logvar, z=z, weight=weight)
    nll = vae_fast.bernoulli_nll(parameters[0], x, weight=weight)
    ratio = torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(z)
    ratio = (ratio - torch.distributions.Normal(p[0], (p[1] / 2).exp()).log_prob(z)).sum(1)
    assert torch.allclose(got, nll + 0.5 * ratio * (1 if weight is None else weight), rtol=1e-5, atol=1e-4)

    count = 400  # draws, in one call
    repeated = [t.repeat(count, 1) for t in (parameters[0], x, mu, logvar, p[1])]
    recon, *rest, prior_logvar = (t.detach() for t in repeated)
    loss = ELBOLoss(kl="monte_carlo", beta=0.5, prior=(p[0], prior_logvar), reduction="none")
    weights = None if weight is None else weight.repeat(count)
    many = loss(recon, *rest, weight=weights)
    assert not torch.equal(many, loss(recon, *rest, weight=weights))
    many = many.detach().unflatten(0, (count, B)).double()
    exact = ELBOLoss(beta=0.5, prior=p, reduction="none")(parameters[0], x, mu, logvar, weight=weight).detach()
    assert ((many.mean(0) - exact).abs() < 5 * many.std(0) / math.sqrt(count)).all()


def test_monte_carlo_kl_selects_rows_and_keeps_zero_gradients():
    parameters, x, mu, logvar, _ = operands("bernoulli")
    weight = torch.ones(B)
    weight[3] = 0
    with torch.no_grad():
        mu[3] = torch.nan
    loss = ELBOLoss(kl="monte_carlo")(parameters[0], x, mu, logvar, weight=weight)
    loss.backward()
    assert loss.isfinite() and mu.grad.isfinite().all() and (mu.grad[3] == 0).all()
    for beta in (0.0, torch.tensor(0.0)):
        mu, logvar = leaf(torch.full((B, Z), torch.inf)), leaf(torch.zeros(B, Z))
        ELBOLoss(kl="monte_carlo", beta=beta)(parameters[0], x, mu, logvar, z=torch.zeros(B, Z)).backward()
        assert (mu.grad == 0).all() and (logvar.grad == 0).all()


def test_a_learned_prior_belongs_to_the_module():
    prior = (torch.nn.Parameter(torch.zeros(Z)), torch.nn.Parameter(torch.zeros(Z)))
    loss = ELBOLoss(prior=prior)
    assert [p is q for p, q in zip(loss.parameters(), prior, strict=True)] == [True, True]
    parameters, x, mu, logvar, _ = operands("bernoulli")
    loss(parameters[0], x, mu, logvar).backward()
    assert prior[0].grad.abs().sum() > 0
    fixed = ELBOLoss(prior=(torch.zeros(Z), torch.zeros(Z))).double()
    assert fixed.prior[0].dtype == torch.float64 and not fixed.state_dict()


def test_a_prior_that_isnt_where_it_was_registered():
    """A parametrised one is computed at each call; replicas, as DataParallel makes them, have theirs as attributes."""

    class Tanh(torch.nn.Module):
        def forward(self, t):
            return t.tanh()

    parameters, x, mu, logvar, _ = operands("bernoulli")
    learned = [torch.nn.Parameter(torch.randn(Z)) for _ in range(2)]
    expected = ELBOLoss(prior=(learned[0].tanh(), learned[1]))(*parameters, x, mu, logvar)
    loss = ELBOLoss(prior=learned)
    torch.nn.utils.parametrize.register_parametrization(loss, "prior_mu", Tanh())
    torch.testing.assert_close(loss(*parameters, x, mu, logvar), expected)
    replica = ELBOLoss(prior=learned)._replicate_for_data_parallel()
    for name, t in zip(("prior_mu", "prior_logvar"), learned, strict=True):
        setattr(replica, name, t.detach() * 1.0)
    expected = ELBOLoss(prior=learned)(*parameters, x, mu, logvar)
    torch.testing.assert_close(replica(*parameters, x, mu, logvar), expected)


def test_parts_and_whole_agree():
    parameters, x, mu, logvar, _ = operands("bernoulli")
    terms = ELBOLoss(reduction="none").terms(parameters[0], x, mu, logvar)
    assert torch.equal(terms.nll, vae_fast.bernoulli_nll(parameters[0], x))
    assert torch.allclose(terms.kl, vae_fast.gaussian_kl(mu, logvar), rtol=1e-6)


@pytest.mark.parametrize("reduction", SCALES)
def test_empty_batch(reduction):
    logits, mu = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 2, requires_grad=True)
    loss = ELBOLoss(reduction=reduction)(logits, torch.zeros(0, 4), mu, mu)
    loss.sum().backward()
    assert loss.sum().item() == 0 and logits.grad.shape == (0, 4)


def test_long_rows_and_many_rows_are_deterministic(threads):
    """Long rows are cut among threads, a shared log-variance is summed over groups of rows: always the same bits."""
    results = []
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        torch.manual_seed(1)
        for shape in ((2, 50_000), (3000, 33)):
            mean, logvar = leaf(torch.randn(shape)), leaf(torch.randn(shape[1]))
            mu = leaf(torch.randn(shape[0], 3))
            loss = ELBOLoss("gaussian")((mean, logvar), torch.rand(shape), mu, mu)
            loss.backward()
            results.append((loss.detach(), mean.grad, logvar.grad, mu.grad))
    for other in (results[2:4], results[4:]):
        for first, again in zip(results[:2], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", [torch.Tensor.float, torch.Tensor.bfloat16], ids=["float32", "bfloat16"])
def test_bytes_and_bits_are_read_as_they_are(kind):
    parameters, _, mu, logvar, _ = operands("bernoulli")
    logits = kind(parameters[0].detach())
    for x in (target((B, D), torch.uint8), target((B, D), torch.bool)):
        as_float = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        got = ELBOLoss()(logits, x, mu, logvar)
        assert got.item() == pytest.approx(ELBOLoss()(logits, as_float, mu, logvar).item(), rel=1e-6)
