"""The operators as PyTorch sees them: opcheck, gradcheck, torch.compile, autocast, vmap, functorch."""

import contextlib

import pytest
import torch
from operands import DEVICE, EMULATED, leaf
from torch.library import opcheck

import vae_fast
from vae_fast import ELBOLoss
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.losses import REDUCTIONS
from vae_fast.ops.likelihoods import NLL

B, D, Z = 4, 9, 3
SEED = torch.tensor(11)


def posterior(dtype=torch.float32, prior="none"):
    tensors = [leaf(torch.randn(B, Z, dtype=dtype)) for _ in range(2)]
    if prior == "none":
        return [*tensors, None, None]
    return [*tensors, leaf(torch.randn(1, Z, dtype=dtype)), leaf(torch.randn(B, Z, dtype=dtype))]


def joint(name, dtype=torch.float32):
    """[parameters, x, options...] of a likelihood with many parameters to each observation, [B, C, 3]."""
    entry = LIKELIHOODS[name]
    if entry.joint == "classes":
        return [leaf(torch.randn(B, 5, 3, dtype=dtype)), torch.randint(5, (B, 3))]
    x = torch.randint(256, (B, 3, 3), dtype=torch.uint8)
    planes = leaf(torch.randn(B, 3, 20, dtype=dtype).transpose(1, 2))
    return [planes, x, *entry.numbers(entry.options_for({}, x))]


def parameters(name, dtype=torch.float32):
    if name == "bernoulli_probs":
        return [leaf(torch.rand(B, D, dtype=dtype).clamp(0.1, 0.9))]
    entry = LIKELIHOODS[name]
    sizes = [D] * len(entry.parameters)
    if entry.per_row:
        sizes[-1] = 1
    if entry.counts:
        return [leaf(torch.rand(B, d, dtype=dtype) + 0.1) for d in sizes]
    return [leaf(torch.randn(B, d, dtype=dtype)) for d in sizes]


def samples(dtype=torch.float32):
    """(operator, arguments) for every operator."""
    ops, x, weight, mask = torch.ops.vae_fast, torch.rand(B, D), torch.rand(B), torch.rand(B, D) > 0.5
    beta = torch.tensor(0.5)
    for name, entry in LIKELIHOODS.items():
        observed = ((3 * x).floor() if entry.counts else x, *entry.numbers({}))
        operands = joint(name, dtype) if entry.joint else (*parameters(name, dtype), *observed)
        seen = mask[:, :3] if entry.joint else mask
        yield getattr(ops, f"{name}_nll"), (*operands, None, None, 0)
        yield getattr(ops, f"{name}_nll"), (*operands, weight, seen, 0)
        for prior, reduce in (("none", True), ("given", False)):
            q = posterior(dtype, prior)
            yield getattr(ops, f"elbo_{name}"), (*operands, *q, weight, seen, beta, 0.7, 0.25, reduce, 0)
    mu, theta, library = parameters("negative_binomial", dtype)
    theta = leaf(theta[:1])
    yield ops.negative_binomial_nll, (mu, theta, library, (3 * x).floor(), 0.0, 1.0, None, None, 0)
    shared = leaf(torch.randn(1, D, dtype=dtype))
    yield ops.gaussian_nll, (leaf(torch.randn(B, D, dtype=dtype)), shared, x, None, None, 0)
    for prior in ("none", "given"):
        yield ops.sample_kl, (*posterior(dtype, prior), SEED)
        yield ops.gaussian_kl, (*posterior(dtype, prior), None, 0)
        dz, dkl, (mu, logvar, *p) = torch.randn(B, Z), torch.randn(B), posterior(dtype, prior)
        detached = [t if t is None else t.detach() for t in (mu, logvar, *p)]
        yield ops.sample_kl_backward, (dz, dkl, *detached, SEED, 15)
    yield ops.reparameterize, (*posterior(dtype)[:2], SEED)
    yield ops.monte_carlo_kl, (leaf(torch.randn(B, Z, dtype=dtype)), *posterior(dtype, "given"), None, 0)
    yield ops.scale_rows_, (torch.randn(B, D, dtype=dtype), torch.randn(B))


SAMPLES = list(samples())


@pytest.mark.parametrize("index", range(len(SAMPLES)), ids=[f"{i}-{s[0].__name__}" for i, s in enumerate(SAMPLES)])
def test_opcheck(index):
    operator, arguments = SAMPLES[index]
    opcheck(operator.default, arguments)


def test_every_operator_is_checked():
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("vae_fast::")}
    assert names == {operator.__name__ for operator, _ in SAMPLES}


def differentiable(arguments):
    return [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]


@pytest.mark.skipif(EMULATED, reason="a GPU leaves float64 to the reference")
@pytest.mark.parametrize("index", range(len(SAMPLES)), ids=[f"{i}-{s[0].__name__}" for i, s in enumerate(SAMPLES)])
def test_gradcheck(index):
    operator, arguments = list(samples(torch.float64))[index]
    leaves = differentiable(arguments)
    if not leaves:
        assert operator.__name__ in ("sample_kl_backward", "scale_rows_")
        return

    def function(*tensors):
        given = iter(tensors)
        replaced = (next(given) if isinstance(a, torch.Tensor) and a.requires_grad else a for a in arguments)
        outputs = operator(*replaced)
        return tuple(t for t in (outputs if isinstance(outputs, tuple) else (outputs,)) if t.requires_grad)

    assert torch.autograd.gradcheck(function, leaves)


def workload(name):
    """A function of (recon, x, mu, logvar, scalar weight) that uses many of the public names."""
    loss = ELBOLoss(name, beta=0.5)

    def run(a, b, x, mu, logvar, beta):
        recon = a.tanh() if name == "bernoulli" else (a.tanh(), b.sin())
        z, kl = vae_fast.sample_kl(mu, logvar, seed=SEED)
        ratio = vae_fast.monte_carlo_kl(z, mu, logvar)
        return loss(recon, x, mu * 2, logvar) + (kl.mean() + ratio.mean()) * beta + z.square().sum()

    return run


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_equals_eager(name, dynamic):
    torch.compiler.reset()
    run = workload(name)
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic)
    for rows in (4, 7) if dynamic else (4,):
        tensors = [
            torch.randn(rows, D),
            torch.randn(rows, D),
            torch.rand(rows, D),
            torch.randn(rows, Z),
            torch.randn(rows, Z),
        ]
        results = []
        for function in (run, compiled):
            a, b, x, mu, logvar = (t.clone() for t in tensors)
            used = [leaf(t) for t in ((a, mu, logvar) if name == "bernoulli" else (a, b, mu, logvar))]
            args = (used[0], b, x, *used[1:]) if name == "bernoulli" else (*used[:2], x, *used[2:])
            value = function(*args, torch.tensor(0.3))
            value.backward()
            results.append((value.detach(), *(t.grad for t in used)))
        for eager, ours in zip(*results, strict=True):
            assert torch.allclose(eager, ours, rtol=1e-5, atol=1e-6)


def test_compiled_unreduced_and_reference():
    torch.compiler.reset()
    x = torch.rand(B, D)
    compiled = torch.compile(vae_fast.bernoulli_nll, fullgraph=True)
    logits, other, incoming = leaf(torch.randn(B, D)), None, torch.randn(B)
    compiled(logits, x).backward(incoming)
    other = leaf(logits)
    vae_fast.bernoulli_nll(other, x).backward(incoming)
    assert torch.allclose(logits.grad, other.grad, rtol=1e-6)
    with vae_fast.backend("reference"):
        assert torch.allclose(compiled(logits, x), vae_fast.bernoulli_nll(logits, x), rtol=1e-6)


def test_compiled_sampling_follows_the_seed():
    torch.compiler.reset()
    compiled = torch.compile(vae_fast.reparameterize, fullgraph=True)
    mu, logvar = torch.zeros(B, Z), torch.zeros(B, Z)
    assert torch.equal(compiled(mu, logvar, seed=SEED), vae_fast.reparameterize(mu, logvar, seed=SEED))
    assert not torch.equal(compiled(mu, logvar), compiled(mu, logvar))


def test_beta_anneals_without_recompiling():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    loss = ELBOLoss(beta=torch.tensor(0.0), reduction="sum")
    compiled = torch.compile(loss, fullgraph=True)
    logits, x, mu = torch.randn(B, D), torch.rand(B, D), torch.randn(B, Z)
    for step in range(4):
        loss.beta.fill_(step / 4)
        assert torch.allclose(compiled(logits, x, mu, mu), ELBOLoss(beta=step / 4, reduction="sum")(logits, x, mu, mu))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_graph_for_batches_of_all_sizes(reduction, kl):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    loss = ELBOLoss(reduction=reduction, kl=kl)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (2, 5, 9):
        tensors = torch.randn(rows, D), torch.rand(rows, D), torch.randn(rows, Z), torch.randn(rows, Z)
        results = []
        for function in (loss, compiled):
            recon, mu, logvar = leaf(tensors[0]), leaf(tensors[2]), leaf(tensors[3])
            value = function(recon, tensors[1], mu, logvar, z=tensors[2] + 1)
            results.append((value.detach(), *torch.autograd.grad(value.sum(), (recon, mu, logvar))))
        for eager, ours in zip(*results, strict=True):
            assert torch.allclose(eager, ours, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_a_model_is_exported_with_a_batch_of_any_size(strict):
    model = vae_fast.VAE(torch.nn.Linear(D, 2 * Z), torch.nn.Linear(Z, D), latent_dim=Z)
    rows = {"x": {0: torch.export.Dim("rows", min=2, max=64)}}
    exported = torch.export.export(model, (torch.rand(4, D),), dynamic_shapes=rows, strict=strict).module()
    x = torch.rand(7, D)
    out = exported(x)
    expected = model.objective(out.recon, x, out.mu, out.logvar)
    assert torch.allclose(out.loss, expected, rtol=1e-6) and out.nll.shape == (7,)


def test_autocast():
    """Under autocast a decoder's bfloat16 logits go into the loss as they are; the loss stays float32."""
    layer, hidden, x = torch.nn.Linear(6, D), torch.randn(B, 6), torch.rand(B, D)
    mu = leaf(torch.randn(B, Z))
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        logits = layer(hidden)
        loss = ELBOLoss()(logits, x, mu, mu)
    loss.backward()
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    outside = ELBOLoss()(logits.detach(), x, mu, mu)
    assert torch.equal(loss, outside) and layer.weight.grad.dtype == torch.float32


def test_functorch_raises_rather_than_guesses():
    x, mu = torch.rand(B, D), torch.zeros(B, Z)
    with pytest.raises(RuntimeError, match="plain autograd"):
        torch.func.grad(lambda t: ELBOLoss()(t, x, mu, mu))(torch.randn(B, D))


def test_vmap_is_right_or_raises():
    logits, x = torch.randn(3, B, D), torch.rand(B, D)
    expected = torch.stack([vae_fast.bernoulli_nll(t, x) for t in logits])
    try:
        got = torch.vmap(lambda t: vae_fast.bernoulli_nll(t, x))(logits)
    except (RuntimeError, UserWarning):
        return
    assert torch.equal(got, expected)


@pytest.mark.parametrize("transform", [torch.vmap, lambda f: torch.vmap(torch.vmap(f))], ids=["vmap", "vmap of vmap"])
@pytest.mark.parametrize(
    "function",
    [
        lambda t: vae_fast.bernoulli_nll(t, torch.zeros_like(t)),
        lambda t: vae_fast.gaussian_kl(t, t),
        lambda t: vae_fast.reparameterize(t, t, seed=1),
        lambda t: vae_fast.sample_kl(t, t, seed=1)[1],
    ],
)
def test_gradients_do_not_get_lost_under_vmap(function, transform):
    """A transform's tensors don't say that gradients are wanted of what they wrap."""
    with pytest.raises(RuntimeError, match=r"plain autograd.*reference"):
        transform(function)(leaf(torch.randn(2, 3, B, D)))


@pytest.mark.parametrize("reference", [False, True], ids=["kernel", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
@pytest.mark.parametrize("name, parameters", [("poisson", 1), ("negative_binomial", 2)])
def test_what_is_below_0_is_no_count(name, parameters, dtype, reference):
    """NaN, as torch.distributions has it, in the gradients too: -1 for what is missing must not train."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x = torch.tensor([[-1, 0, 3], [2, 1, 0]]).to(dtype)
    leaves = [leaf(torch.ones(2, 3, dtype=wide)) for _ in range(parameters)]
    with vae_fast.backend("reference") if reference else contextlib.nullcontext():
        nll = getattr(vae_fast, f"{name}_nll")(*leaves, x)
    assert nll.isnan().tolist() == [True, False]
    nll.sum().backward()
    for t in leaves:
        assert t.grad.isnan().tolist() == [[True, False, False], [False] * 3]


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 40), (1, 400)], ids=str)
def test_a_fraction_is_no_class(shape):
    logits, x = leaf(torch.randn(shape)), torch.full((1, *shape[2:]), 1.5)
    for backend in (contextlib.nullcontext(), vae_fast.backend("reference")):
        with backend:
            assert vae_fast.categorical_nll(logits, x).isnan().all()
            assert vae_fast.categorical_nll(logits, x.floor()).isfinite().all()


def test_inference_mode():
    with torch.inference_mode():
        z, kl = vae_fast.sample_kl(torch.zeros(B, Z), torch.zeros(B, Z))
        loss = ELBOLoss()(torch.zeros(B, D), torch.rand(B, D), z, z)
    assert loss.is_inference() and kl.shape == (B,)


def test_two_threads_at_once():
    """Kernels hold no state: four Python threads get the answers that one gets."""
    from concurrent.futures import ThreadPoolExecutor

    def run(seed):
        generator = torch.Generator(DEVICE).manual_seed(seed)
        logits, mu = leaf(torch.randn(500, 300, generator=generator, device=DEVICE)), torch.zeros(500, 2, device=DEVICE)
        loss = ELBOLoss()(logits, torch.full((500, 300), 0.3, device=DEVICE), mu, mu)
        loss.backward()
        return loss.item(), logits.grad.sum().item()

    alone = [run(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(8))) == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name, entry in LIKELIHOODS.items() if len(entry.parameters) > 1])
def test_gradients_are_the_same_whichever_others_are_asked_for(name, dtype):
    """Each set of gradients has those that all have, whether the last parameter is a number a row or an element's."""
    entry, columns, operator = LIKELIHOODS[name], 529, NLL[name]
    x = torch.randint(4, (3, columns)).float()
    for last in (1, columns) if not entry.per_row else (1,):
        widths = [columns] * (len(entry.parameters) - 1) + [last]
        given = [(torch.rand(3, width) + 0.1).to(dtype) for width in widths]
        arguments = (*given, x, *entry.numbers(entry.options_for({}, x)), torch.tensor([1.0, 0.0, 2.0]), None)
        nll, *everything = operator.call(arguments, 2 ** len(given) - 1)
        for asked in range(2 ** len(given) - 1):
            value, *some = operator.call(arguments, asked)
            torch.testing.assert_close(value, nll, rtol=1e-6, atol=0)
            for k, (got, want) in enumerate(zip(some, everything, strict=True)):
                torch.testing.assert_close(got, want if asked >> k & 1 else want.new_empty(0), rtol=1e-6, atol=1e-7)
