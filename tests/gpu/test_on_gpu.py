"""What only a GPU can show: graphs, streams, synchronisation, memory, launches, sizes; for each backend that runs
there. Skipped where there is no GPU."""

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import vae_fast
from vae_fast import ELBOLoss, reference
from vae_fast.ops.library import announce, unavailable

GPU = torch.device("cuda", 0)
B, D, Z = 64, 784, 16

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]


@pytest.fixture(autouse=True, params=["cuda", "triton"])
def backend(request):
    """The backend that a test runs on; None is the one that the library chooses."""
    if request.param and (reason := unavailable(request.param)):
        pytest.skip(reason)
    with vae_fast.backend(request.param) if request.param else nullcontext():
        yield request.param


unforced = pytest.mark.parametrize("backend", [None], indirect=True)


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, device=GPU).to(dtype)


def uniform(*shape, dtype=torch.float32):
    x = torch.rand(shape, device=GPU)
    return (x * 255).round().to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)


def leaf(t):
    return t.detach().requires_grad_()


def elbo(dtype=torch.float32, x_dtype=torch.float32, *, weighted=False, beta=None, **options):
    """(leaves, a function of them): the Bernoulli ELBO."""
    loss = ELBOLoss(beta=1.0 if beta is None else torch.tensor(beta, device=GPU), **options)
    x = uniform(B, D, dtype=x_dtype)
    selection = {"weight": uniform(B), "mask": uniform(B, D) > 0.3} if weighted else {}
    leaves = [leaf(normal(B, D, dtype=dtype)), *(leaf(normal(B, Z)) for _ in range(2))]
    return leaves, lambda logits, mu, logvar: loss(logits, x, mu, logvar, **selection)


def gaussian(*shape):
    """(leaves, a function of them): the Gaussian ELBO, the log-variance and the prior trained along."""
    loss, x = ELBOLoss("gaussian"), uniform(B, D)
    leaves = [normal(B, D), normal(*shape), normal(B, Z), normal(B, Z), normal(Z), normal(Z)]

    def run(mean, sigma, mu, logvar, *prior):
        kl = vae_fast.sample_kl(mu, logvar, prior)[1] + vae_fast.gaussian_kl(mu, logvar, prior)
        return loss((mean, sigma), x, mu, logvar) + kl.mean()

    return [leaf(t) for t in leaves], run


def sampling(**seed):
    """(leaves, a function of them): a sample and both forms of the KL."""

    def run(mu, logvar):
        z, kl = vae_fast.sample_kl(mu, logvar, **seed)
        again = vae_fast.reparameterize(mu, logvar, **seed)
        return (z * again).sum() + kl.sum() + vae_fast.monte_carlo_kl(z, mu, logvar).sum()

    return [leaf(normal(B, Z)) for _ in range(2)], run


WORKLOADS = {
    "bernoulli": elbo,
    "bernoulli, bf16 and bytes": lambda: elbo(torch.bfloat16, torch.uint8),
    "bernoulli, fp16": lambda: elbo(torch.float16),
    "of each row": lambda: elbo(reduction="none"),
    "weight, mask, beta on the GPU": lambda: elbo(weighted=True, beta=0.5),
    "probabilities": lambda: elbo(torch.float16, from_logits=False, reduction="sum"),
    "monte carlo": lambda: elbo(kl="monte_carlo", beta=0.5),
    "monte carlo, beta a number": lambda: elbo(kl="monte_carlo"),
    "gaussian": lambda: gaussian(B, D),
    "gaussian, one a feature": lambda: gaussian(D),
    "gaussian, one": lambda: gaussian(1),
    "sampling": sampling,
    "sampling, seed an int": lambda: sampling(seed=2**40 + 7),
}


def train(leaves, function, incoming=None):
    """(value, gradients) of one forward and backward pass."""
    value = function(*leaves)
    incoming = torch.ones_like(value) if incoming is None else incoming
    return value.detach(), *torch.autograd.grad(value, leaves, incoming)


def equal(got, expected):
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def close(got, expected, rtol=1e-5, atol=1e-5):
    return all(torch.allclose(a, b, rtol=rtol, atol=atol) for a, b in zip(got, expected, strict=True))


def captured(function):
    """function() as a CUDA graph, with the tensors that a replay writes to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = function()
    return graph, results


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """What makes torch wait for the GPU raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def kernels_of(function):
    """Names of the kernels that function() launches."""
    function()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        function()
        torch.cuda.synchronize()
    on_gpu = [e for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [e.name for e in on_gpu if not e.name.startswith(("Memcpy", "Memset"))]


@pytest.fixture
def launched():
    """kernels_of, where the profiler may look."""
    ones = torch.ones(8, device=GPU)
    if len(kernels_of(ones.neg)) != 1:
        pytest.skip("the profiler sees no kernels here")
    return kernels_of


def room(gibibytes):
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < gibibytes * 2**30:
        pytest.skip(f"needs {gibibytes} GiB of the GPU's memory")


@unforced
def test_the_kernels_serve_the_gpu(backend):
    chosen = "triton" if unavailable("cuda") else "cuda"
    assert f"cuda -> {chosen}" in vae_fast.report()
    vae_fast.bernoulli_nll(normal(2, 3), uniform(2, 3))


@unforced
def test_the_backends_agree(backend):
    """Both, on the same data; noise within a few units in the last place."""
    if unavailable("cuda") or unavailable("triton"):
        pytest.skip("only one backend runs here")
    for leaves, function in (WORKLOADS[name]() for name in ("bernoulli", "gaussian, one a feature", "of each row")):
        results = []
        for name in ("cuda", "triton"):
            torch.manual_seed(3)
            with vae_fast.backend(name):
                results.append(train(leaves, function))
        assert close(*results)


@pytest.mark.parametrize("name", WORKLOADS)
def test_nothing_waits_for_the_gpu(name):
    leaves, function = WORKLOADS[name]()
    incoming = torch.full_like(function(*leaves), 0.5).detach()
    train(leaves, function, incoming)
    with no_synchronisation():
        for keep in (True, False):
            torch.autograd.grad(function(*leaves), leaves, incoming, retain_graph=keep)
        with torch.no_grad():
            function(*leaves)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_replayed_graph_computes_what_eager_does(name):
    """After what it reads was changed in place, and with the same numbers from torch's generator."""
    leaves, function = WORKLOADS[name]()
    graph, results = captured(lambda: train(leaves, function))
    for _ in range(2):
        with torch.no_grad():
            for t in leaves:
                t.copy_(torch.rand_like(t).clamp(0.1, 0.9))
        torch.manual_seed(2)
        expected = train(leaves, function)
        torch.manual_seed(2)
        graph.replay()
        assert equal(results, expected)


def test_a_replayed_graph_follows_the_seed_and_beta():
    leaves, run = sampling(seed=(seed := torch.tensor(1, device=GPU)))
    loss, x = ELBOLoss(beta=torch.tensor(0.0, device=GPU)), uniform(B, D)
    logits = leaf(normal(B, D))

    def both(logits, mu, logvar):
        return run(mu, logvar) + loss(logits, x, mu, logvar)

    graph, results = captured(lambda: train([logits, *leaves], both))
    for number in (1, -7, 2**62):
        seed.fill_(number)
        loss.beta.fill_(abs(number) % 5 / 4)
        graph.replay()
        assert equal(results, train([logits, *leaves], both))


def test_each_replay_draws_fresh_noise_and_backward_takes_the_same():
    mu, logvar = leaf(normal(B, Z)), leaf(normal(B, Z))
    incoming = normal(B, Z)

    def step():
        z = vae_fast.reparameterize(mu, logvar)
        return z.detach(), *torch.autograd.grad(z, (mu, logvar), incoming)

    graph, (z, dmu, dlogvar) = captured(step)
    drawn = []
    for _ in range(3):
        graph.replay()
        drawn.append(z.clone())
        assert torch.equal(dmu, incoming)
        assert torch.allclose(dlogvar, 0.5 * incoming * (z - mu), rtol=1e-4, atol=1e-5)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    torch.manual_seed(3)
    graph.replay()
    first = z.clone()
    torch.manual_seed(3)
    graph.replay()
    assert torch.equal(z, first)


def test_a_captured_step_trains():
    with GPU:
        model = vae_fast.VAE(torch.nn.Linear(D, 2 * Z), torch.nn.Linear(Z, D))
    x, parameters = (uniform(1, D) > 0.5).float().expand(B, D).contiguous(), list(model.parameters())

    def step():
        loss = model.loss(x)
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.detach().sub_(gradient, alpha=0.002)
        return loss.detach()

    graph, loss = captured(step)
    graph.replay()
    before = loss.item()
    for _ in range(300):
        graph.replay()
    assert loss.item() < 0.9 * before


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", ["bernoulli", "gaussian, one a feature", "sampling, seed an int"])
def test_compiled_gradients(name, mode):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    leaves, function = WORKLOADS[name]()
    expected = train(leaves, function)
    compiled = torch.compile(function, fullgraph=True, mode=mode)
    for _ in range(4):  # run, record, replay
        torch.compiler.cudagraph_mark_step_begin()
        got = [t.clone() for t in train(leaves, compiled)]
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
    assert close(got, expected, atol=1e-4)
    torch.compiler.reset()


def test_compiled_sampling_draws_fresh_noise():
    torch.compiler.reset()
    compiled = torch.compile(vae_fast.reparameterize, fullgraph=True, mode="reduce-overhead")
    zeros, drawn = torch.zeros(B, Z, device=GPU), []
    for _ in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        drawn.append(compiled(zeros, zeros).clone())
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(drawn))
    torch.compiler.reset()


def test_launches_follow_the_current_stream():
    """Behind a slow kernel of the same stream: on any other, zeros would be read."""
    (logits, mu, logvar), function = elbo()
    expected = train([logits, mu, logvar], function)
    stream, late = torch.cuda.Stream(), torch.zeros_like(logits, requires_grad=True)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            late.copy_(logits)
        got = train([late, mu, logvar], function)
    stream.synchronize()
    assert equal(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
def test_launches_follow_the_tensors_device():
    leaves, function = sampling(seed=5)
    expected = train(leaves, function)
    assert torch.cuda.current_device() == 0
    got = train([leaf(t.to("cuda:1")) for t in leaves], function)
    assert got[0].device.index == 1 and close([t.to(GPU) for t in got], expected)


@pytest.mark.parametrize("name", ["bernoulli", "of each row", "bernoulli, fp16", "gaussian, one a feature"])
def test_two_backward_passes_with_different_incoming_gradients(name):
    leaves, function = WORKLOADS[name]()
    value = function(*leaves)
    kinds = [torch.full_like(value, k) for k in (1.0, 2.0, -3.0, 5.0)]
    kinds.append(torch.rand_like(value))
    passes = [torch.autograd.grad(value, leaves, k, retain_graph=True) for k in kinds]
    last = torch.autograd.grad(value, leaves, kinds[1])
    for k, gradients in zip((2.0, -3.0, 5.0), passes[1:], strict=False):
        assert close(gradients, [k * g for g in passes[0]], rtol=2e-3 if "fp16" in name else 1e-5)
    assert close(last, passes[1], rtol=2e-3 if "fp16" in name else 1e-6)
    if value.dim():
        expected = [(kinds[4][:, None] * g.float()).to(g.dtype) for g in passes[0]]
        assert close(passes[4], expected)


def test_training_holds_the_gradients_and_little_more():
    leaves = [leaf(normal(8192, D)), leaf(normal(8192, Z)), leaf(normal(8192, Z))]
    x, loss = uniform(8192, D), ELBOLoss()
    gradients = sum(t.nbytes for t in leaves)
    train(leaves, lambda logits, mu, logvar: loss(logits, x, mu, logvar))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    loss(leaves[0], x, *leaves[1:]).backward()
    assert torch.cuda.memory_stats()["requested_bytes.all.peak"] - before <= 1.01 * gradients
    assert sum(t.grad.nbytes for t in leaves) == gradients


def test_autocast():
    with GPU:
        layer = torch.nn.Linear(6, D)
    hidden, x, mu = normal(B, 6), uniform(B, D, dtype=torch.uint8), leaf(normal(B, Z))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = layer(hidden)
        loss = ELBOLoss()(logits, x, mu, mu)
    loss.backward()
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    outside = ELBOLoss()(logits.detach(), x, mu, mu)
    assert torch.allclose(loss, outside, rtol=1e-6) and layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 50_000), (3000, 33), (5, 784)], ids=str)
def test_the_same_bits_whatever_else_runs(shape):
    """Long rows are cut among programs, a shared log-variance is summed over groups of rows, in fixed order."""
    leaves = [normal(*shape), normal(shape[1]), normal(shape[0], 3), normal(shape[0], 3)]
    x, loss, leaves = uniform(*shape), ELBOLoss("gaussian"), [leaf(t) for t in leaves]

    def run(mean, sigma, mu, logvar):
        return loss((mean, sigma), x, mu, logvar)

    first = train(leaves, run)
    stream, a = torch.cuda.Stream(), normal(2048, 2048)
    torch.cuda.synchronize()
    for _ in range(5):
        with torch.cuda.stream(stream):
            for _ in range(10):
                a = (a @ a).tanh()
        assert equal(train(leaves, run), first)
    torch.cuda.synchronize()


def test_launches(launched, backend):
    """One kernel a call; a mean has the sum over programs after it; backward scales what forward left."""
    (logits, mu, logvar), x = elbo()[0], uniform(B, D)
    seed, one = torch.tensor(3, device=GPU), torch.ones((), device=GPU)
    each, mean = ELBOLoss(reduction="none"), ELBOLoss()
    assert len(launched(lambda: each(logits, x, mu, logvar))) == 1
    assert len(launched(lambda: mean(logits, x, mu, logvar))) <= 2
    assert len(launched(lambda: vae_fast.bernoulli_nll(logits, x))) == 1
    assert len(launched(lambda: vae_fast.sample_kl(mu, logvar, seed=seed))) == 1
    backward = launched(lambda: torch.autograd.grad(mean(logits, x, mu, logvar), (logits, mu, logvar), one))
    assert len(backward) <= (3 if backend == "triton" else 5)  # CUDA C++: one for each gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_long_row(dtype):
    logits, x = leaf(normal(1, 200_000, dtype=dtype)), uniform(1, 200_000, dtype=torch.uint8)
    value, gradient = train([logits], lambda t: vae_fast.bernoulli_nll(t, x))
    wide = leaf(logits.double())
    exact = train([wide], lambda t: reference.nll(reference.bernoulli, [t], x))
    assert torch.allclose(value.double(), exact[0], rtol=1e-6)
    assert (gradient.double() - exact[1]).abs().max() <= 1e-6 + (dtype != torch.float32) * 2**-9


def test_more_elements_than_32_bits_count():
    room(16)
    rows, columns = 70_000, 32_768
    assert rows * columns > 2**31
    logits = torch.empty(rows, columns, device=GPU, dtype=torch.bfloat16).normal_().requires_grad_()
    x = torch.randint(256, (rows, columns), device=GPU, dtype=torch.uint8)
    nll, gradient = train([logits], lambda t: vae_fast.bernoulli_nll(t, x))
    last = leaf(logits[-3:])
    alone, of_last = train([last], lambda t: vae_fast.bernoulli_nll(t, x[-3:]))
    assert torch.allclose(nll[-3:], alone, rtol=1e-6)
    assert torch.allclose(gradient[-3:], of_last, rtol=2**-7)


def test_noise_of_more_elements_than_32_bits_count():
    """The last thousand elements, against the reference's generator at their places."""
    room(12)
    rows, columns = 70_000, 32_768
    zeros = torch.zeros(1, 1, device=GPU, dtype=torch.bfloat16).expand(rows, columns)
    z = vae_fast.reparameterize(zeros, zeros, seed=5)
    index = torch.arange(rows * columns - 1000, rows * columns, device=GPU)
    nothing = torch.zeros_like(index)
    seed = torch.tensor(5, device=GPU)
    words = torch.stack(reference.philox((index // 4 & 0xFFFFFFFF, index // 4 >> 32, nothing, nothing), seed))
    pair = index % 4 // 2 * 2
    u = (words.gather(0, pair[None])[0] | 1).double() * 2.0**-32
    angle = torch.pi * ((words.gather(0, pair[None] + 1)[0] >> 9).double() * 2.0**-22 - 1)
    eps = torch.sqrt(-2 * torch.log(u)) * torch.where(index % 2 == 0, torch.cos(angle), torch.sin(angle))
    assert torch.allclose(z.flatten()[-1000:].double(), eps, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_empty(shape):
    leaves = [leaf(normal(*shape)) for _ in range(3)]
    x = uniform(*shape)

    def run(logits, mu, logvar):
        z, kl = vae_fast.sample_kl(mu, logvar)
        return ELBOLoss()(logits, x, mu, logvar) + z.sum() + kl.sum() + vae_fast.gaussian_nll(logits, x).sum() * 0

    value, *gradients = train(leaves, run)
    assert value == 0 and [g.shape for g in gradients] == [shape] * 3


def test_the_same_seed_is_the_same_noise_as_on_the_cpu():
    zeros = torch.zeros(37, 65)
    expected = reference.normals(zeros.shape, torch.tensor(42), torch.float64).cpu()
    got = vae_fast.reparameterize(zeros.to(GPU), zeros.to(GPU), seed=42).cpu()
    assert torch.allclose(got.double(), expected, rtol=0, atol=1e-4)


def test_generators_of_the_gpu():
    mu = normal(B, Z)
    z = [vae_fast.reparameterize(mu, mu, generator=torch.Generator(GPU).manual_seed(4)) for _ in range(2)]
    assert torch.equal(*z)
    with pytest.raises(RuntimeError, match="generator"):
        vae_fast.reparameterize(mu, mu, generator=torch.Generator())


@unforced
def test_float64_is_left_to_the_reference_which_says_so_once(backend):
    announce.cache_clear()
    logits, x = normal(B, D, dtype=torch.float64), uniform(B, D)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = [vae_fast.bernoulli_nll(logits, x) for _ in range(2)]
    assert [w.category for w in caught] == [vae_fast.ReferenceWarning]
    assert "reference runs on cuda: the kernels for GPUs don't compute in float64" in str(caught[0].message)
    assert equal(values, [reference.nll(reference.bernoulli, [logits], x)] * 2)


@unforced
def test_training_command(tmp_path, backend):
    pytest.importorskip("lightning")
    from cli_helpers import started, write_bars

    small = ("--widths", "[4,8,16]", "--latent_dim", "4", "--batch_size", "16")
    options = ("--trainer.accelerator", "gpu", "--trainer.devices", "1", "--trainer.max_epochs", "2")
    process = started(tmp_path, "fit", "--data", write_bars(tmp_path), *small, *options)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
