"""Autograd's nodes in C++ do what those in Python do, to the last bit, and leave to those what they don't know."""

import os
import subprocess
import sys

import nodes
import pytest
import torch
from operands import DEVICE, EMULATED, leaf
from operator_calls import OPERATORS, Draw
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import vae_fast
from vae_fast.operands import rows_of
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
needs_nodes = pytest.mark.skipif(
    library.NO_NATIVE_NODES is not None, reason=f"no nodes in C++: {library.NO_NATIVE_NODES}"
)


def test_nodes_are_there_wherever_kernels_were_built_with_this_torch():
    record = library.build_record()
    if "cpu" in record.get("built", ()) and record["torch"] == torch.__version__:
        assert library.NO_NATIVE_NODES is None


def incoming(value: Tensor, draw: Draw) -> Tensor:
    """The same for all rows, known to be or not, or one each, with zeros; always the same for a draw."""
    generator, factor = torch.Generator().manual_seed(1), torch.tensor(draw.chance.choice((0.0, 1.0, -2.5)))
    each = torch.randn(value.shape, generator=generator) * torch.randint(3, value.shape, generator=generator)
    choices = factor.to(value.dtype).expand(value.shape), factor.repeat(value.shape), each
    return draw.chance.choice(choices).to(value.dtype)


def identical(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    same_place = a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride() and a._is_view() == b._is_view()
    return same_place and torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))


def both(function):
    """What a function returns with nodes in C++ and with nodes in Python."""
    native = function()
    with nodes.in_python():
        return native, function()


@needs_nodes
@pytest.mark.parametrize("draw", range(DRAWS))
@pytest.mark.parametrize("name", ONE_PASS)
def test_one_pass(name, draw):
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

    native, python = both(call)
    assert len(native) == len(python) and all(map(identical, native, python))


@needs_nodes
@pytest.mark.parametrize("draw", range(DRAWS))
@pytest.mark.parametrize("divergence", [True, False])
def test_sample(divergence, draw):
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

    native, python = both(call)
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
    if "VAE_FAST_KEEP_MEMORY" in os.environ:
        pytest.skip("memory may not be kept")
    vae_fast.empty_cache()
    nll = vae_fast.bernoulli_nll(logits, torch.rand(256, 4096))
    torch.autograd.grad(nll, logits, torch.ones(256))
    assert nll.grad_fn is not None and kept() >= 4 << 20
    vae_fast.empty_cache()


def shapes_and_layouts():
    """Operands of a shape and layout, by name."""
    images = torch.randn(3, 2, 4, 5)
    return {
        "matrix": torch.randn(3, 5),
        "square": torch.randn(4, 4),
        "spaced": torch.randn(3, 10)[:, ::2],
        "transposed": torch.randn(5, 3).t(),
        "expanded": torch.randn(1, 5).expand(3, 5),
        "vector": torch.randn(3),
        "images": images,
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "no rows": torch.empty(0, 5),
        "no columns": torch.empty(3, 0),
        "one number": torch.randn(1, 1),
        "float64": torch.randn(3, 5, dtype=torch.float64),
        "half precision": torch.randn(3, 5).half(),
    }


def first(t: Tensor) -> Tensor:
    """Without its second axis."""
    return t.select(1, 0) if t.dim() > 1 and t.shape[1] else t


def wide(t: Tensor, planes: int) -> Tensor:
    """As many planes along the second axis."""
    return t.repeat(1, planes, *[1] * (t.dim() - 2))[:, :planes] if t.dim() > 1 else t


def last(t: Tensor) -> Tensor:
    return t.movedim(1, -1) if t.dim() > 1 else t


def mixture(p: Tensor, x: Tensor, **options) -> Tensor:
    return vae_fast.discretized_logistic_mixture_nll(p, x, **options)


def loss(name: str, p: Tensor, x: Tensor, **options) -> Tensor:
    posterior = rows_of(p)[:, :1] if isinstance(p, Tensor) else rows_of(p[0])[:, :1]
    return vae_fast.ELBOLoss(name, beta=0.7, **options)(p, x, posterior, posterior)


def gaussian_loss(x, mean, logvar, mu, posterior_logvar):
    return vae_fast.ELBOLoss("gaussian", reduction="none")((mean, logvar), x, mu, posterior_logvar)


CALLS = {
    "bernoulli": lambda p, x: vae_fast.bernoulli_nll(p, x),
    "probabilities": lambda p, x: vae_fast.bernoulli_nll(p.sigmoid(), x, from_logits=False),
    "continuous bernoulli": lambda p, x: vae_fast.continuous_bernoulli_nll(p, x),
    "gaussian": lambda p, x: vae_fast.gaussian_nll(p, x),
    "gaussian, a number": lambda p, x: vae_fast.gaussian_nll(p, x, logvar=0.3),
    "gaussian, [1, 1]": lambda p, x: vae_fast.gaussian_nll(p, x, logvar=torch.full((1, 1), 0.3)),
    "gaussian, each": lambda p, x: vae_fast.gaussian_nll(p, x, logvar=p * 2),
    "gaussian, a learned number": lambda p, x: vae_fast.gaussian_nll(p, x, logvar=p.mean()),
    "gaussian, one a column": lambda p, x: vae_fast.gaussian_nll(p, x, logvar=p.sum(0)),
    "laplace": lambda p, x: vae_fast.laplace_nll(p, x, log_scale=1.0),
    "discretized logistic": lambda p, x: vae_fast.discretized_logistic_nll(p, p, x),
    "discretized logistic, 16": lambda p, x: vae_fast.discretized_logistic_nll(p, 0.0, x, levels=16, x_range=[0, 1]),
    "discretized logistic, compat": lambda p, x: vae_fast.discretized_logistic_nll(p, 0.0, x, compat="nvae"),
    "categorical": lambda p, x: vae_fast.categorical_nll(p, first(x)),
    "categorical, last": lambda p, x: vae_fast.categorical_nll(last(p), first(x), class_dim=-1),
    "mixture": lambda p, x: mixture(wide(p, 20), wide(x, 3)),
    "mixture, last": lambda p, x: mixture(last(wide(p, 20)), last(wide(x, 3)), channels_last=True),
    "mixture, grey": lambda p, x: mixture(wide(p, 6), wide(x, 1), levels=2),
    "mixture, two channels": lambda p, x: mixture(wide(p, 6), wide(x, 2)),
    "mixture, too few planes": lambda p, x: mixture(wide(p, 6), wide(x, 3)),
    "mixture, compat": lambda p, x: mixture(wide(p, 10), wide(x, 3), compat="pixelcnn++"),
    "poisson": lambda p, x: vae_fast.poisson_nll(p, x),
    "poisson, rates": lambda p, x: vae_fast.poisson_nll(p.exp(), x, log_rate=False),
    "nb, each": lambda p, x: vae_fast.negative_binomial_nll(p.exp(), p.exp(), x),
    "nb, one a column": lambda p, x: vae_fast.negative_binomial_nll(p, p.exp().sum(0), x, log_mu=True),
    "nb, libraries": lambda p, x: vae_fast.negative_binomial_nll(
        p.exp(), 1.0, x, library=rows_of(p)[:, :1].exp().sum(1)
    ),
    "nb, a library each": lambda p, x: vae_fast.negative_binomial_nll(p.exp(), 1.0, x, library=p.exp()),
    "nb, a library a column": lambda p, x: vae_fast.negative_binomial_nll(p.exp(), 1.0, x, library=p.sum(0)),
    "nb, a library": lambda p, x: vae_fast.negative_binomial_nll(p.exp(), 2.5, x, library=3),
    "zinb": lambda p, x: vae_fast.zero_inflated_negative_binomial_nll(p.exp(), p, p, x, log_theta=True),
    "loss, poisson": lambda p, x: loss("poisson", p, x, reduction="none"),
    "loss, zinb": lambda p, x: loss("zero_inflated_negative_binomial", (p.exp(), p.exp(), p), x),
    "loss, discretized": lambda p, x: loss("discretized_logistic", (p, p), x, x_range=(0.0, 1.0)),
    "loss, categorical": lambda p, x: loss("categorical", p, first(x)),
    "loss, mixture": lambda p, x: loss("discretized_logistic_mixture", wide(p, 10), wide(x, 3)),
    "loss, grey": lambda p, x: loss("discretized_logistic_mixture", wide(p, 3), wide(x, 1), channels=1),
    "loss, two channels": lambda p, x: loss("discretized_logistic_mixture", wide(p, 6), wide(x, 2)),
    "loss": lambda p, x: vae_fast.ELBOLoss(beta=0.7)(p, x, rows_of(p)[:, :2], rows_of(p)[:, :2]),
    "loss, gaussian": lambda p, x: gaussian_loss(x, *(p.clone() for _ in range(4))),  # whose order fixes their sum's
    "reparameterize": lambda p, x: vae_fast.reparameterize(p, p),
    "sample_kl": lambda p, x: sum(t.sum() for t in vae_fast.sample_kl(p, p)),
}


@needs_nodes
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.uint8, torch.bool, torch.int64, torch.int16], ids=str)
@pytest.mark.parametrize("shape", shapes_and_layouts())
@pytest.mark.parametrize("name", CALLS)
def test_operands_that_cpp_looks_at_are_what_the_checks_make_of_them(name, shape, x_dtype):
    """Values and gradients, and errors."""
    p = shapes_and_layouts()[shape]
    x = (torch.rand(p.shape) * (1 if x_dtype.is_floating_point else 255)).to(x_dtype)

    def call():
        parameter = leaf(p)
        torch.manual_seed(3)
        try:
            value = CALLS[name](parameter, x)
        except (TypeError, ValueError, RuntimeError) as error:
            return [type(error), str(error)]
        return [value.detach(), *torch.autograd.grad(value.sum(), parameter)]

    native, python = both(call)
    same = [identical(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(native, python, strict=True)]
    assert all(same), (native, python)


@needs_nodes
def test_usual_calls_are_not_looked_at_in_python(monkeypatch):
    """Of every likelihood; a parameter may be an nn.Parameter."""
    for name in ("vae_fast.parts.observations", "vae_fast.checks.floating", "vae_fast.checks.target"):
        monkeypatch.setattr(name, None)
    images, p, theta = torch.randn(3, 30, 4, 5), leaf(torch.randn(3, 5)), torch.nn.Parameter(torch.rand(5))
    counts, pixels, genes = torch.ones(3, 5, dtype=torch.int32), torch.rand(3, 3, 4, 5), torch.rand(3)
    usual = [
        vae_fast.bernoulli_nll(leaf(images), torch.rand(images.shape)),
        vae_fast.gaussian_nll(p, counts.float(), logvar=theta),
        vae_fast.laplace_nll(p, counts.float()),
        vae_fast.continuous_bernoulli_nll(p, counts.byte()),
        vae_fast.discretized_logistic_nll(p, p, counts),
        vae_fast.categorical_nll(leaf(images), counts.long()[:, :1, None].expand(3, 4, 5)),
        vae_fast.categorical_nll(p, counts.long()[:, 0], class_dim=-1),
        mixture(leaf(images), pixels),
        mixture(leaf(last(images)), last(pixels), channels_last=True),
        vae_fast.poisson_nll(p, counts),
        vae_fast.negative_binomial_nll(p.exp(), theta, counts, library=genes),
        vae_fast.zero_inflated_negative_binomial_nll(p.exp(), theta, p, counts.to(torch.uint16)),
        loss("discretized_logistic_mixture", leaf(images), pixels),
        loss("zero_inflated_negative_binomial", (p.exp(), theta, p, genes), counts),
    ]
    for value in usual:
        assert torch.isfinite(value).all() and nodes.are_native(value)
        value.sum().backward()


@needs_nodes
def test_views_have_no_nodes():
    """Gradients come in the operands' own shapes; of operands that backward needs again, views are known as such."""
    images, halves = leaf(torch.randn(3, 30, 4, 5)), leaf(torch.randn(3, 30, 4, 5).half())
    pixels, theta = torch.rand(3, 3, 4, 5), leaf(torch.randn(30 * 20))
    for value in (
        vae_fast.bernoulli_nll(images, images.detach().sigmoid()),
        vae_fast.categorical_nll(images, torch.zeros(3, 4, 5, dtype=torch.long)),
        mixture(images, pixels),
        vae_fast.gaussian_nll(leaf(torch.randn(3, 600)), torch.rand(3, 600), logvar=theta),
        gaussian_loss(torch.rand(images.shape), *[images] * 4),
    ):
        followed = {type(node).__name__ for node, _ in value.grad_fn.next_functions if node is not None}
        assert followed == {"AccumulateGrad"}
        value.sum().backward()
    assert images.grad.shape == images.shape and theta.grad.shape == theta.shape

    value = vae_fast.bernoulli_nll(halves, torch.rand(images.shape))
    with torch.no_grad():
        halves.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


@needs_nodes
def test_as_many_classes_as_observations():
    """Sizes alone don't say which of the two comes last."""
    p, classes, pixels = torch.randn(3, 20, 20), torch.randint(20, (3, 20)), torch.rand(3, 20, 3)

    def gradients():
        parameter = leaf(p)
        values = (
            vae_fast.categorical_nll(parameter, classes, class_dim=-1),
            mixture(parameter, pixels, channels_last=True),
        )
        return [torch.autograd.grad(v.sum(), parameter)[0] for v in values]

    assert all(map(identical, *both(gradients)))


@needs_nodes
@pytest.mark.parametrize("shape", [(5,), (3, 5)], ids=str)
def test_a_sparse_incoming_gradient(shape):
    p, q, x = leaf(torch.randn(3, 5)), leaf(torch.randn(shape)), torch.rand(3, 5)
    of_rows = torch.tensor([0.0, 0.5, 2.0])

    def gradients(incoming):
        z, kl = vae_fast.sample_kl(p, p, seed=3)
        values, given = (vae_fast.gaussian_nll(p, x, logvar=q), z), (of_rows, torch.eye(3, 5))
        found = torch.autograd.grad(values, (p, q), [incoming(t) for t in given], retain_graph=True)
        return [*found, *torch.autograd.grad(kl, p, incoming(of_rows))]

    expected = gradients(lambda t: t)
    for found in both(lambda: gradients(torch.Tensor.to_sparse)):
        assert all(map(identical, found, expected))


@needs_nodes
def test_a_number_is_no_first_parameter():
    with pytest.raises(TypeError, match="bernoulli_nll: logits must be a tensor, got float"):
        vae_fast.bernoulli_nll(0.0, torch.rand(1, 1))


@needs_nodes
def test_nodes_in_cpp_serve_plain_calls_and_no_others():
    logits, x, seen = leaf(torch.randn(3, 5)), torch.rand(3, 5), []
    assert nodes.are_native(vae_fast.bernoulli_nll(logits, x))
    assert nodes.are_native(vae_fast.sample_kl(logits, logits)[1])
    assert nodes.are_native(vae_fast.ELBOLoss()(logits, x, logits, logits))
    assert not nodes.are_native(torch.ops.vae_fast.bernoulli_nll(logits, x, None, None, 0)[0])
    assert not onepass.suits_native_nodes(torch.empty(3, device="meta"))
    with torch.autograd.forward_ad.dual_level():
        assert not onepass.suits_native_nodes(logits)
    torch.func.vmap(lambda t: (seen.append(onepass.suits_native_nodes(t)), t)[1])(x)
    assert seen == [False]


@needs_nodes
def test_compiled_before_anything_was_called():
    """In a process of its own: what eager calls prepare isn't there for Dynamo."""
    code = """
import torch, vae_fast
p, x = torch.randn(3, 4, requires_grad=True), torch.rand(3, 4)
loss = vae_fast.ELBOLoss()
calls = [
    lambda: vae_fast.bernoulli_nll(p, x),
    lambda: vae_fast.gaussian_nll(p, x, logvar=p),
    lambda: vae_fast.sample_kl(p, p)[1],
    lambda: loss(p, x, p, p),
]
for call in calls:
    torch.compile(call, backend="eager", fullgraph=True)().sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_graphs_hold_the_operators_alone(tmp_path):
    """And so can be saved, with networks around them."""

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Linear(5, 10)

        def forward(self, x):
            mu, logvar = self.encoder(x).chunk(2, 1)
            z, kl = vae_fast.sample_kl(mu, logvar, seed=3)
            return vae_fast.bernoulli_nll(z, x) + kl + vae_fast.gaussian_kl(mu, logvar)

    loss, x = Loss(), torch.rand(3, 5)
    traced = torch.jit.trace(loss, x)
    traced.save(tmp_path / "loss.pt")
    loaded, parameters = torch.jit.load(tmp_path / "loss.pt"), [*loss.parameters()]
    expected = torch.autograd.grad(loss(x).sum(), parameters)
    assert torch.equal(loaded(x), loss(x))
    assert all(map(torch.equal, torch.autograd.grad(loaded(x).sum(), [*loaded.parameters()]), expected))
    assert "vae_fast::" in str(loaded.inlined_graph) and "vae_fast_autograd" not in str(loaded.inlined_graph)


@needs_nodes
def test_modes_see_the_operators():
    class Seen(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.name())
            return function(*args, **(kwargs or {}))

    p = torch.randn(3, 5)
    for guard in (torch.no_grad, torch.inference_mode):
        with guard(), Seen() as seen:
            vae_fast.bernoulli_nll(p, p.sigmoid())
            vae_fast.reparameterize(p, p)
        called = [name.split(".")[0] for name in seen.names]
        assert called == ["aten::sigmoid", "vae_fast::bernoulli_nll", "aten::randint", "vae_fast::reparameterize"]


@needs_nodes
def test_function_modes_see_the_operators():
    class Seven(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.names.append(getattr(function, "__name__", str(function)))
            result = function(*args, **(kwargs or {}))
            return torch.full_like(result, 7) if function is torch.randint else result

    p = torch.randn(3, 5)
    with Seven() as seen:
        z, _ = vae_fast.reparameterize(p, p), vae_fast.bernoulli_nll(p, p.sigmoid())
    assert torch.equal(z, vae_fast.reparameterize(p, p, seed=7))
    assert "bernoulli_nll.default" in seen.names and not [name for name in seen.names if "plain" in name]


@needs_nodes
@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_a_graph_with_its_gradients(pre_dispatch):
    p, x = torch.randn(3, 5), torch.rand(3, 5)

    def gradient(p):
        p = leaf(p)
        return torch.autograd.grad(vae_fast.bernoulli_nll(p, x).sum(), p)[0]

    graph, other = make_fx(gradient, pre_dispatch=pre_dispatch)(p), torch.randn(3, 5)
    assert torch.allclose(graph(other), gradient(other))


@needs_nodes
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own look at it
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_compiled_autograd(dtype):
    """Backward as a graph of its own: nodes are called from it as they are, whatever they have saved."""
    logits, x = leaf(torch.randn(3, 5).to(dtype)), torch.rand(3, 5)
    mu, logvar, shared = leaf(torch.randn(3, 2)), leaf(torch.randn(3, 2)), leaf(torch.randn(5))
    images = leaf(torch.randn(3, 10, 2, 4).to(dtype))
    leaves = (logits, mu, logvar, shared, images)

    def loss():
        z, kl = vae_fast.sample_kl(mu, logvar, seed=3)
        nll = vae_fast.bernoulli_nll(logits, x) + vae_fast.gaussian_nll(logits.float(), x, logvar=shared)
        nll = nll + vae_fast.bernoulli_nll(images, images.detach().sigmoid())
        nll = (
            nll
            + mixture(images, x.new_zeros(3, 3, 2, 4))
            + mixture(last(images), x.new_zeros(3, 2, 4, 3), channels_last=True)
        )
        return vae_fast.ELBOLoss()(logits, x, mu, logvar) + z.sum() + kl.sum() + nll @ torch.arange(3.0)

    expected = torch.autograd.grad(loss(), leaves)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss().backward()
    assert all(torch.allclose(t.grad, e, rtol=1e-6) for t, e in zip(leaves, expected, strict=True))


@needs_nodes
def test_a_seed_is_drawn_as_torch_draws_it():
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

    native, python = both(call)
    assert all(map(torch.equal, native, python))
    assert not torch.equal(native[0], native[4])


@needs_nodes
def test_a_traced_graph_draws_another_seed_each_time():
    mu = torch.zeros(3, 4)
    graph = make_fx(lambda t: vae_fast.reparameterize(t, t))(mu)
    assert not torch.equal(graph(mu), graph(mu))
