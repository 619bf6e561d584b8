"""The gradient contract: kept buffers are reused only where nobody can see it, under every way to call backward."""

import pytest
import torch
from operands import leaf

import vae_fast
from vae_fast import ELBOLoss

pytestmark = pytest.mark.usefixtures("nodes")
B, D, Z = 8, 40, 3
REDUCTIONS = ("mean", "none")


@pytest.fixture(params=REDUCTIONS)
def problem(request):
    """(loss, leaves, the gradients for an incoming gradient of 1)."""
    leaves = [leaf(torch.randn(B, D)), leaf(torch.randn(B, Z)), leaf(torch.randn(B, Z))]
    x = torch.rand(B, D)
    module = ELBOLoss(reduction=request.param)

    def loss():
        return module(leaves[0], x, leaves[1], leaves[2])

    value = loss()
    return loss, leaves, torch.autograd.grad(value, leaves, torch.ones_like(value))


def close(got, expected):
    return all(torch.allclose(g, e, rtol=1e-6, atol=1e-9) for g, e in zip(got, expected, strict=True))


def test_two_backward_passes_with_different_incoming_gradients(problem):
    loss, leaves, gradients = problem
    value = loss()
    first = torch.autograd.grad(value, leaves, torch.full_like(value, 2), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(value, leaves, torch.full_like(value, -3), retain_graph=True)
    last = torch.autograd.grad(value, leaves, torch.full_like(value, 5))
    assert close(first, [2 * g for g in gradients])
    assert close(second, [-3 * g for g in gradients])
    assert close(last, [5 * g for g in gradients])
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_what_a_user_does_to_a_gradient_stays_with_the_user(problem):
    loss, leaves, gradients = problem
    value = loss()
    for g in torch.autograd.grad(value, leaves, torch.ones_like(value), retain_graph=True):
        g.zero_()
    assert close(torch.autograd.grad(value, leaves, torch.ones_like(value)), gradients)


def test_a_second_pass_through_a_freed_graph_raises(problem):
    loss, *_ = problem
    value = loss()
    value.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        value.sum().backward()


def test_gradients_accumulate(problem):
    loss, leaves, gradients = problem
    for _ in range(3):
        value = loss()
        value.backward(torch.ones_like(value))
    assert close([t.grad for t in leaves], [3 * g for g in gradients])


def test_adaptive_weight_from_the_last_layer(problem):
    """What latent diffusion's loss does: grad of one leaf with retain_graph, then backward of a multiple."""
    loss, leaves, gradients = problem
    value = loss().sum()
    (alone,) = torch.autograd.grad(value, leaves[0], retain_graph=True)
    (value * 0.25).backward()
    assert close([alone], gradients[:1])
    assert close([t.grad for t in leaves], [g / 4 for g in gradients])


def test_frozen_inputs_get_no_gradient_and_cost_none(problem):
    loss, leaves, gradients = problem
    leaves[0].requires_grad_(False)
    loss().sum().backward()
    assert leaves[0].grad is None
    assert close([t.grad for t in leaves[1:]], gradients[1:])
    outputs = torch.ops.vae_fast.bernoulli_nll(leaves[0], torch.rand(B, D), None, None, 0)
    assert outputs[1].numel() == 0


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_checkpoint_and_saved_tensor_hooks(likelihood):
    from torch.utils.checkpoint import checkpoint

    parameter, mu = leaf(torch.randn(B, D)), leaf(torch.randn(B, Z))
    x = torch.rand(B, D)
    module = ELBOLoss(likelihood)

    def loss(p, m):
        return module(p * 2, x, m, m)

    expected = torch.autograd.grad(loss(parameter, mu), (parameter, mu))
    again = checkpoint(loss, parameter, mu, use_reentrant=False)
    assert close(torch.autograd.grad(again, (parameter, mu)), expected)
    with torch.autograd.graph.save_on_cpu():
        offloaded = loss(parameter, mu)
    assert close(torch.autograd.grad(offloaded, (parameter, mu)), expected)


def test_shared_parameter_with_rows_weighted_differently():
    """Gradients of a parameter shared by rows, summed already in the forward pass, could not be scaled by row."""
    mean, logvar = leaf(torch.randn(B, D)), leaf(torch.randn(D))
    x, incoming = torch.rand(B, D), torch.randn(B)
    vae_fast.gaussian_nll(mean, x, logvar=logvar).backward(incoming)
    expected = (incoming[:, None] * 0.5 * (1 - (x - mean) ** 2 * torch.exp(-logvar))).sum(0)
    assert torch.allclose(logvar.grad, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda t: vae_fast.bernoulli_nll(t, torch.full_like(t, 0.5, requires_grad=False)),
        lambda t: vae_fast.gaussian_nll(t, torch.zeros(B, D)),
        lambda t: vae_fast.gaussian_kl(t, t),
        lambda t: vae_fast.monte_carlo_kl(t, t * 2, t),
        lambda t: vae_fast.sample_kl(t, t)[1],
        lambda t: vae_fast.reparameterize(t, t),
        lambda t: ELBOLoss()(t, torch.rand(B, D), t[:, :2], t[:, :2]),
    ],
    ids=["bernoulli_nll", "gaussian_nll", "gaussian_kl", "monte_carlo_kl", "sample_kl", "reparameterize", "elbo"],
)
def test_create_graph_raises_except_in_the_reference(function):
    t = leaf(torch.randn(B, D))
    with pytest.raises(RuntimeError, match="differentiate once"):
        torch.autograd.grad(function(t).sum(), t, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate once"):
        (function(t).sum() + t.pow(3).sum()).backward(create_graph=True, inputs=[t])
    with vae_fast.backend("reference"):
        value = function(t).sum() + t.pow(3).sum()
        (gradient,) = torch.autograd.grad(value, t, create_graph=True)
        gradient.square().sum().backward()
        assert t.grad.isfinite().all()


def test_forward_mode_raises_except_in_the_reference():
    x, tangent = torch.rand(B, D), torch.ones(B, D)

    def loss(t):
        return vae_fast.bernoulli_nll(t, x).sum() + vae_fast.sample_kl(t, t, seed=1)[0].sum()

    t, advice = torch.randn(B, D), r"`with vae_fast.backend\('reference'\):`$"
    with pytest.raises(RuntimeError, match=advice):
        torch.func.jvp(loss, (t,), (tangent,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=advice):
        loss(torch.autograd.forward_ad.make_dual(t, tangent))
    with vae_fast.backend("reference"):
        _, forward = torch.func.jvp(loss, (t,), (tangent,))
    logits = leaf(t)
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    assert forward.item() == pytest.approx(gradient.sum().item(), rel=1e-4)


def test_weights_in_half_precision():
    """The incoming gradient, 65536 here, must not fall to the weights' float16."""
    logits, x, weight = leaf(torch.randn(B, D).half()), torch.rand(B, D), torch.rand(B).half()
    loss = ELBOLoss()(logits, x, torch.zeros(B, Z), torch.zeros(B, Z), weight=weight)
    (loss * 65536).backward()
    expected = (torch.sigmoid(logits.double()) - x) * weight.double()[:, None] / B * 65536
    assert logits.grad.isfinite().all()
    assert (logits.grad - expected).abs().max() <= 2**-11 * expected.abs().max()


def test_a_row_without_incoming_gradient_gets_none_whatever_is_in_it():
    logits, incoming = leaf(torch.randn(B, D)), torch.ones(B)
    with torch.no_grad():
        logits[2, 3] = torch.nan
    incoming[2], incoming[4] = 0, 2
    for keep in (True, False):
        (gradient,) = torch.autograd.grad(
            vae_fast.bernoulli_nll(logits, torch.rand(B, D)), logits, incoming, retain_graph=keep
        )
        assert (gradient[2] == 0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("retain", [True, False])
def test_batched_incoming_gradients(retain):
    logits, x, incoming = leaf(torch.randn(B, D)), torch.rand(B, D), torch.randn(3, B)
    nll = vae_fast.bernoulli_nll(logits, x)
    (batched,) = torch.autograd.grad(nll, logits, incoming, is_grads_batched=True, retain_graph=retain)
    nll = vae_fast.bernoulli_nll(logits, x)
    for i in range(3):
        (alone,) = torch.autograd.grad(nll, logits, incoming[i], retain_graph=True)
        assert torch.allclose(batched[i], alone, rtol=1e-6)
