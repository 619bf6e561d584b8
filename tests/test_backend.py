"""Choosing a backend, what is reported, and life without the compiled library."""

import subprocess
import sys

import pytest
import torch

import vae_fast
from vae_fast import ELBOLoss
from vae_fast.ops import triton_backend

WITHOUT = """
import sys, warnings, torch
import vae_fast.ops
from pathlib import Path
real = Path.exists
Path.exists = lambda self: False if self.name == "_C_cpu.so" else real(self)
"""


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


def test_triton_when_asked_for_leaves_float64_to_nobody(monkeypatch):
    kernel = triton_backend._operator("bernoulli_nll", range(1), "elbo", "nll", "bernoulli")
    logits = torch.zeros(2, 3, dtype=torch.float64)
    monkeypatch.setattr("vae_fast.ops.backend._forced", "triton")
    with pytest.raises(RuntimeError, match=r"'triton' can't run bernoulli_nll: .* float64"):
        kernel(logits, logits, None, None, 0)
