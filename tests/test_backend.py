"""Choosing a backend, what is reported, and life without the compiled library."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import vae_fast
from vae_fast import ELBOLoss
from vae_fast.ops import backend, library, triton_backend

WITHOUT = """
import sys, warnings, torch
import vae_fast.ops
from pathlib import Path
real = Path.exists
Path.exists = lambda self: False if self.name == "_C_cpu.so" else real(self)
"""


WITH_A_GPU = """
import torch
from pathlib import Path
exists, load = Path.exists, torch.ops.load_library
Path.exists = lambda self: self.name == "_C_cuda.so" or exists(self)
torch.ops.load_library = lambda path: None if path.name == "_C_cuda.so" else load(path)
torch.version.cuda, torch.cuda.is_available = "99.0", lambda: True
import vae_fast
from vae_fast.ops import triton_backend
print(vae_fast.report())
print("overridden", triton_backend.ON_GPU.library is not None)
"""

IMPORTED_ANYWHERE = """
import torch
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
with torch.inference_mode():
    import vae_fast
torch.set_default_dtype(torch.float32)
torch.set_default_device("cpu")
mu, theta = torch.rand(4, 5, requires_grad=True), torch.ones(5, requires_grad=True)
vae_fast.negative_binomial_nll(mu, theta, torch.ones(4, 5)).square().sum().backward()  # keeps a library of 1
print(mu.grad.dtype, bool(theta.grad.isfinite().all()))
"""

needs_triton = pytest.mark.skipif(library.MISSING["triton"] is not None, reason="triton is not installed")


def run(code, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def losses():
    generator = torch.Generator().manual_seed(3)
    logits, x, mu, logvar = (torch.randn(5, 7, generator=generator) for _ in range(4))
    logits.requires_grad_()
    weight, mask = torch.tensor([1.0, 0, 2, 1, 1]), torch.rand(5, 7, generator=generator) > 0.4
    loss = ELBOLoss(beta=0.5)(logits, x.sigmoid(), mu, logvar, weight=weight, mask=mask)
    loss.backward()
    z, kl = vae_fast.sample_kl(mu, logvar, (mu[0], logvar[0]), seed=7)
    ratio = vae_fast.monte_carlo_kl(z, mu, logvar)
    nll = vae_fast.gaussian_nll(mu, x, logvar=logvar[0])
    return (
        loss,
        logits.grad,
        z,
        kl,
        ratio,
        nll,
        vae_fast.gaussian_kl(mu, logvar),
        vae_fast.reparameterize(mu, mu, seed=2),
    )


def test_defaults_at_import_do_not_matter():
    done = run(IMPORTED_ANYWHERE)
    assert done.stdout == "torch.float32 True\n", done.stderr


def test_reference_agrees_with_the_kernels():
    ours = losses()
    with vae_fast.backend("reference"):
        theirs = losses()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_backend_is_restored_after_an_error():
    with pytest.raises(ZeroDivisionError), vae_fast.backend("reference"):
        raise ZeroDivisionError
    assert "forced" not in vae_fast.report()


def test_cpp_can_be_asked_for():
    with vae_fast.backend("cpp"):
        assert "forced     cpp" in vae_fast.report()
        ELBOLoss()(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2, 1))


def test_report():
    lines = vae_fast.report().splitlines()
    assert lines[0].startswith(f"torch {torch.__version__}")
    assert any(line.split()[:2] == ["cpp", "cpu"] and "available" in line for line in lines)
    done = run("import runpy; runpy.run_module('vae_fast', run_name='__main__')")
    assert done.returncode == 0 and done.stdout.strip() == vae_fast.report()


def test_environment():
    code = "import vae_fast; print(vae_fast.report())"
    assert "forced     reference" in run(code, VAE_FAST_BACKEND="reference").stdout
    bad = run(code, VAE_FAST_BACKEND="fast")
    assert bad.returncode != 0
    assert "VAE_FAST_BACKEND: unknown backend 'fast', expected one of reference, cpp, triton, cuda" in bad.stderr


def test_without_the_library_the_reference_runs_and_says_so_once():
    code = WITHOUT.replace("import vae_fast.ops\n", "") + (
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import vae_fast\n"
        "    for _ in range(3):\n"
        "        a = torch.zeros(2, 3, requires_grad=True)\n"
        "        loss = vae_fast.ELBOLoss()(a, torch.ones(2, 3), torch.zeros(2, 1), torch.zeros(2, 1))\n"
        "        (2 * loss).backward()\n"
        "        compiled = torch.compile(vae_fast.bernoulli_nll, fullgraph=True, backend='aot_eager')\n"
        "        compiled(a, torch.ones(2, 3)).sum().backward()\n"
        "print(loss.item(), a.grad[0, 0].item())\n"
        "print(*(str(w.message) for w in caught if w.category is vae_fast.ReferenceWarning), sep='\\n')\n"
        "try:\n"
        "    vae_fast.backend('cpp').__enter__()\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    values, *messages = done.stdout.strip().splitlines()
    loss, gradient = (float(v) for v in values.split())
    assert loss == pytest.approx(3 * 0.6931472, rel=1e-6) and gradient == pytest.approx(-0.5 - 0.5)
    assert len(messages) == 2
    assert messages[0].startswith("vae_fast: the plain PyTorch reference runs on cpu: the C++ library was not built")
    assert messages[1].startswith("backend: the backend 'cpp' can't run: the C++ library was not built")


def test_heavy_packages_are_imported_when_first_needed():
    code = "import sys, torch, vae_fast; print([m for m in ('triton', 'lightning', 'matplotlib') if m in sys.modules])"
    before = run("import sys, torch; print([m for m in ('triton', 'lightning', 'matplotlib') if m in sys.modules])")
    assert run(code).stdout == before.stdout


@pytest.mark.parametrize(("chosen", "state"), [("enable", "True"), ("disable", "False")])
def test_an_import_collects_no_garbage_and_leaves_the_choice_as_it_was(chosen, state):
    watched = "import gc, torch; gc.set_threshold(1, 1000, 1000); collections = gc.get_stats()[0]['collections']"
    shown = "print(gc.get_stats()[0]['collections'] - collections < 200, gc.isenabled())"
    assert run(f"{watched}; gc.{chosen}(); import vae_fast; {shown}").stdout == f"True {state}\n"


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_gpu_backend_that_was_asked_for_leaves_float64_to_nobody(monkeypatch, name):
    monkeypatch.setattr(backend, "_forced", name)
    on_gpu = [SimpleNamespace(device=torch.device("cuda"), dtype=t) for t in (torch.float32, torch.float64)]
    assert not backend.use_reference(on_gpu[0])
    with pytest.raises(RuntimeError, match=f"the backend '{name}' can't run: .* float64"):
        backend.use_reference(*on_gpu)


def test_what_a_gpu_leaves_to_the_reference_is_announced():
    library.announce.cache_clear()
    logits = torch.randn(2, 3, dtype=torch.float64)
    kernel = triton_backend._operator("bernoulli_nll", range(1), "elbo", "nll", "bernoulli")
    with pytest.warns(vae_fast.ReferenceWarning, match="runs on cpu: the kernels for GPUs don't compute in float64"):
        nll, gradient = kernel(logits, logits.sigmoid(), None, None, 1)
    with vae_fast.backend("reference"):
        assert torch.equal(nll, vae_fast.bernoulli_nll(logits, logits.sigmoid()))
    assert gradient.shape == logits.shape


def test_every_operator_has_a_namesake_for_float64():
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("vae_fast::")]
    assert names
    for name in names:
        ours, theirs = (
            getattr(ns, name.removeprefix("vae_fast::")).default
            for ns in (torch.ops.vae_fast, torch.ops.vae_fast_reference)
        )
        assert str(ours._schema).replace("vae_fast::", "") == str(theirs._schema).replace("vae_fast_reference::", "")


@pytest.fixture
def two_for_a_device(monkeypatch):
    """As on a GPU with compiled kernels: the C++ kernels are those, and functions that return sevens are Triton's."""
    override = triton_backend.Override("CPU", compiled=True)
    monkeypatch.setattr(backend, "SWITCHES", [override.switch])
    monkeypatch.setattr(backend, "unavailable", lambda name: None)
    monkeypatch.setattr(triton_backend, "_function", lambda *_: lambda mu, *_: torch.full_like(mu, 7))
    for name in ("triton", "cuda"):
        monkeypatch.setitem(backend.BACKENDS, name, "cpu")
    yield override
    override.switch(None)


def on_triton(function=vae_fast.reparameterize):
    return function(*torch.zeros(2, 3, 4), seed=1).eq(7).all().item()


def test_the_compiled_kernels_run_unless_others_are_asked_for(two_for_a_device):
    assert not on_triton()
    with vae_fast.backend("triton"):
        assert on_triton()
        with vae_fast.backend("triton"):
            assert on_triton()
        for name in ("cuda", "reference"):
            with vae_fast.backend(name):
                assert not on_triton()
        assert on_triton()
    assert not on_triton()
    with pytest.raises(ZeroDivisionError), vae_fast.backend("triton"):
        raise ZeroDivisionError
    assert not on_triton()


def test_what_is_compiled_follows_the_choice(two_for_a_device):
    torch.compiler.reset()
    compiled = torch.compile(vae_fast.reparameterize, fullgraph=True, backend="aot_eager")
    assert not on_triton(compiled)
    with vae_fast.backend("triton"):
        assert on_triton(compiled)
    assert not on_triton(compiled)


def test_with_nothing_compiled_triton_runs_whatever_is_asked_for():
    override = triton_backend.Override("XPU", compiled=False)
    for asked_for in (None, "triton", "reference", None):
        override.switch(asked_for)
        assert override.library is not None
    override.library._destroy()


@needs_triton
@pytest.mark.parametrize(("name", "overridden"), [("", False), ("cuda", False), ("triton", True)])
def test_environment_on_a_gpu(name, overridden):
    done = run(WITH_A_GPU, VAE_FAST_BACKEND=name)
    assert done.returncode == 0, done.stderr
    assert f"overridden {overridden}" in done.stdout
    assert (f"forced     {name}" if name else "cuda -> cuda") in done.stdout


@pytest.mark.parametrize(
    ("missing", "sees_gpu", "reasons"),
    [
        ({}, True, {"cuda": None, "triton": None}),
        ({}, False, {"cuda": "torch sees no GPU", "triton": "torch sees no GPU"}),
        ({"cuda": "not built"}, True, {"cuda": "not built", "triton": None}),
        ({"cuda": "not built", "triton": "not there"}, False, {"cuda": "not built", "triton": "not there"}),
    ],
)
def test_why_a_gpu_backend_is_not_available(monkeypatch, missing, sees_gpu, reasons):
    monkeypatch.setattr(library, "MISSING", {"cpp": None, **missing})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees_gpu)
    library.unavailable.cache_clear()
    try:
        assert {name: library.unavailable(name) for name in reasons} == reasons
        best = next((name for name in reasons if reasons[name] is None), "reference")
        assert f"cuda -> {best}" in vae_fast.report()
        for name in filter(reasons.get, reasons):
            with pytest.raises(RuntimeError, match=f"backend: the backend '{name}' can't run: {reasons[name]}"):
                vae_fast.backend(name).__enter__()
    finally:
        library.unavailable.cache_clear()


@pytest.mark.parametrize(
    ("files", "cuda", "reason"),
    [
        ({}, "13.0", "the CUDA library was not built$"),
        ({"_build.json": '{"skipped": {"cuda": "no nvcc"}}'}, None, "the CUDA library was not built: no nvcc$"),
        ({"_C_cuda.so": ""}, None, "torch .* is not built with CUDA$"),
        ({"_C_cuda.so": "", "_build.json": '{"nvcc": "13.0.88"}'}, "12.8", "built with CUDA 13.0.88, torch .* 12.8$"),
        ({"_C_cuda.so": "", "_build.json": '{"nvcc": "12.4.131"}'}, "13.0", "did not load: .*_C_cuda.so: .+"),
    ],
)
def test_why_the_cuda_library_is_not_loaded(monkeypatch, tmp_path, files, cuda, reason):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert re.search(reason, library._load("cuda", "CUDA"))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"_build.json": '{"skipped": {"autograd": "no gcc"}}'}, "the autograd library was not built: no gcc$"),
        ({"_C_autograd.so": ""}, "built with torch None, this is "),
        ({"_C_autograd.so": "", "_build.json": '{"torch": "2.11.0"}'}, "built with torch 2.11.0, this is "),
        (
            {"_C_autograd.so": "", "_build.json": f'{{"torch": "{torch.__version__}"}}'},
            "did not load: .*_C_autograd.so",
        ),
    ],
)
def test_nodes_in_cpp_are_loaded_into_the_torch_that_they_were_built_with(monkeypatch, tmp_path, files, reason):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    assert re.search(reason, library._load("autograd", "autograd"))
