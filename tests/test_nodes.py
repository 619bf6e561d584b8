"""Autograd's nodes in C++ do what those in Python do, to the last bit, and leave to those what they don't know."""

import pytest
import torch
from operands import DEVICE, EMULATED, leaf
from operator_calls import OPERATORS, Draw
from torch import Tensor

import vae_fast
from vae_fast.ops import latent, library, onepass
from vae_fast.ops.likelihoods import ELBO, NLL

DRAWS = 16
ONE_PASS = {f"{name}_nll": operator for name, operator in NLL.items()}
ONE_PASS |= {f"elbo_{name}": operator for name, operator in ELBO.items()}
ONE_PASS |= {"gaussian_kl": latent.GAUSSIAN_KL, "monte_carlo_kl": latent.MONTE_CARLO_KL}

pytestmark = [
    pytest.mark.filterwarnings("ignore:vae_fast. the plain PyTorch reference runs on cpu"),
    pytest.mark.skipif(DEVICE.type != "cpu" or EMULATED, reason="nodes in C++ are for the kernels of a CPU"),
]
needs_nodes = pytest.mark.skipif(library.PYTHON_NODES is not None, reason=f"no nodes in C++: {library.PYTHON_NODES}")


def test_nodes_are_there_wherever_kernels_were_built_with_this_torch():
    record = library.build_record()
    if "cpu" in record.get("built", ()) and record["torch"] == torch.__version__:
        assert library.PYTHON_NODES is None


def incoming(value: Tensor, draw: Draw) -> Tensor:
    """The same for all rows, known to be or not, or one each, with zeros; always the same for a draw."""
    generator, factor = torch.Generator().manual_seed(1), torch.tensor(draw.chance.choice((0.0, 1.0, -2.5)))
    each = torch.randn(value.shape, generator=generator) * torch.randint(3, value.shape, generator=generator)
    choices = factor.to(value.dtype).expand(value.shape), factor.repeat(value.shape), each
    return draw.chance.choice(choices).to(value.dtype)


def identical(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    same_place = a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
    return same_place and torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))


def both(monkeypatch, function):
    """What a function returns with nodes in C++ and with nodes in Python."""
    native = function()
    with monkeypatch.context() as patched:
        for module in (onepass, latent):
            patched.setattr(module, "has_native_nodes", lambda t: False)
        return native, function()


@needs_nodes
@pytest.mark.parametrize("draw", range(DRAWS))
@pytest.mark.parametrize("name", ONE_PASS)
def test_one_pass(name, draw, monkeypatch):
    operator, seed = ONE_PASS[name], f"{name} {draw}"
    draw = Draw(seed)
    *arguments, asked = OPERATORS[name](draw)
    leaves = []
    for k, i in enumerate(operator.differentiable):
        if arguments[i] is not None and asked >> k & 1:
            arguments[i] = leaf(arguments[i])
            leaves.append(arguments[i])
    retain = draw.maybe()

    def call():
        outputs = onepass.apply(operator, *arguments)
        values = outputs if operator.values > 1 else (outputs,)
        assert [v.requires_grad for v in values] == [bool(leaves)] + [False] * (operator.values - 1)
        if not leaves:
            return values
        dvalue = incoming(values[0].detach(), Draw(seed))
        first = torch.autograd.grad(values[0], leaves, dvalue, retain_graph=retain)
        again = torch.autograd.grad(values[0], leaves[:1], 2 * dvalue) if retain else ()
        return (*(v.detach() for v in values), *first, *again)

    native, python = both(monkeypatch, call)
    assert len(native) == len(python) and all(map(identical, native, python))


@needs_nodes
@pytest.mark.parametrize("draw", range(DRAWS))
@pytest.mark.parametrize("divergence", [True, False])
def test_sample(divergence, draw, monkeypatch):
    draw = Draw(f"sample {draw}")
    *posterior, seed = OPERATORS["sample_kl" if divergence else "reparameterize"](draw)
    asked = draw.asked(len(posterior))
    tensors = [leaf(t) if t is not None and asked >> k & 1 else t for k, t in enumerate(posterior)]
    leaves = [t for t in tensors if t is not None and t.requires_grad]
    prior = (tensors[2], tensors[3]) if len(tensors) > 2 and tensors[2] is not None else None
    used, retain = draw.chance.choice(((0, 1), (0,), (1,))) if divergence else (0,), draw.maybe()

    def call():
        outputs = latent.sample(tensors[0], tensors[1], prior, seed, divergence)
        values = outputs if divergence else (outputs,)
        assert [v.requires_grad for v in values] == [bool(leaves)] * len(values)
        if not leaves:
            return values
        dvalues = [incoming(values[i].detach(), Draw(str(i))) for i in used]
        gradients = torch.autograd.grad(
            [values[i] for i in used], leaves, dvalues, retain_graph=retain, allow_unused=True
        )
        alone = torch.autograd.grad(values[used[0]], leaves[:1], dvalues[0], allow_unused=True) if retain else ()
        return (*(v.detach() for v in values), *gradients, *alone)

    native, python = both(monkeypatch, call)
    assert len(native) == len(python) and all(map(identical, native, python))


@needs_nodes
def test_a_gradient_is_handed_over_and_not_copied():
    logits, places = leaf(torch.randn(8, 40)), []
    mu, logvar = leaf(torch.randn(8, 3)), leaf(torch.randn(8, 3))
    for t in (logits, mu, logvar):
        t.register_hook(lambda g: places.append(g.data_ptr()))
    vae_fast.bernoulli_nll(logits, torch.rand(8, 40)).backward(torch.rand(8))
    z, kl = vae_fast.sample_kl(mu, logvar)
    (z.sum() + kl.sum()).backward()
    assert sorted(places) == sorted(t.grad.data_ptr() for t in (logits, mu, logvar))


@needs_nodes
def test_gradients_are_let_go_with_the_graph():
    """Whoever keeps the loss, to log it, doesn't keep the gradients that its node had."""
    logits = leaf(torch.randn(256, 4096))  # 4 MiB, in memory that is counted
    kept = torch.ops.vae_fast_memory.cached_bytes
    vae_fast.empty_cache()
    nll = vae_fast.bernoulli_nll(logits, torch.rand(256, 4096))
    torch.autograd.grad(nll, logits, torch.ones(256))
    assert nll.grad_fn is not None and kept() >= 4 << 20
    vae_fast.empty_cache()


@needs_nodes
def test_nodes_in_cpp_serve_plain_calls_and_no_others():
    logits, x = leaf(torch.randn(3, 5)), torch.rand(3, 5)
    assert "CppNode" in vae_fast.bernoulli_nll(logits, x).grad_fn.name()
    assert "CppNode" in vae_fast.sample_kl(logits, logits)[1].grad_fn.name()
    assert "CppNode" in vae_fast.ELBOLoss()(logits, x, logits, logits).grad_fn.name()
    assert "CppNode" not in torch.ops.vae_fast.bernoulli_nll(logits, x, None, None, 0)[0].grad_fn.name()
    assert not onepass.has_native_nodes(torch.empty(3, device="meta"))
    with torch.autograd.forward_ad.dual_level():
        assert not onepass.has_native_nodes(logits)
    torch.func.vmap(lambda t: [t, pytest.fail("vmap")][0] if onepass.has_native_nodes(t) else t)(x)


@needs_nodes
def test_compiled_autograd():
    """Backward as a graph of its own: the node is called from it as it is."""
    logits, x = leaf(torch.randn(3, 5)), torch.rand(3, 5)
    mu, logvar = leaf(torch.randn(3, 2)), leaf(torch.randn(3, 2))
    leaves = (logits, mu, logvar)

    def loss():
        z, kl = vae_fast.sample_kl(mu, logvar, seed=3)
        return vae_fast.ELBOLoss()(logits, x, mu, logvar) + z.sum() + kl.sum() + vae_fast.bernoulli_nll(logits, x).sum()

    expected = torch.autograd.grad(loss(), leaves)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss().backward()
    assert all(torch.allclose(t.grad, e, rtol=1e-6) for t, e in zip(leaves, expected, strict=True))


@needs_nodes
def test_a_seed_is_drawn_as_torch_draws_it(monkeypatch):
    """The same noise and the same state of torch's generator with nodes in C++ and in Python, call after call."""

    def call():
        torch.manual_seed(7)
        mu = leaf(torch.zeros(3, 4))
        drawn = [
            vae_fast.reparameterize(mu, mu),
            *vae_fast.sample_kl(mu, mu),
            torch.rand(2),
            vae_fast.reparameterize(mu, mu),
        ]
        return [*(t.detach() for t in drawn), torch.get_rng_state()]

    native, python = both(monkeypatch, call)
    assert all(map(torch.equal, native, python))
    assert not torch.equal(native[0], native[4])


@needs_nodes
def test_a_traced_graph_draws_another_seed_each_time():
    from torch.fx.experimental.proxy_tensor import make_fx

    mu = torch.zeros(3, 4)
    graph = make_fx(lambda t: vae_fast.reparameterize(t, t))(mu)
    assert not torch.equal(graph(mu), graph(mu))
