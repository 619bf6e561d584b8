"""The operators' own tests with the GPU kernels behind them, executed in the emulator: autograd, torch.compile,
autocast, opcheck, masks, weights, errors. The Triton kernels are compiled for sm_90; the CUDA ones are as nvcc made
them, with the host code that launches them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cuda_launches
import pytest

FILES = [  # the longest first
    *("operators", "elbo", "latent", "discretized_logistic", "continuous_bernoulli", "gradients", "bernoulli"),
    *("gaussian", "laplace", "errors"),
]
needs_nvcc = pytest.mark.skipif(cuda_launches.unavailable() is not None, reason=str(cuda_launches.unavailable()))


@pytest.fixture(scope="module")
def done(request):
    """(kernels, name) -> the finished run of a file. All run beside each other, one a core; where pytest has processes
    of its own for that (-n), each when it is asked for."""
    asked = {tuple(item.callspec.params.values()) for item in request.session.items if item.path == request.path}

    def run(kernels, name):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/test_{name}.py"]
        environment = {**os.environ, "VAE_FAST_TEST_EMULATED": kernels, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=request.config.rootpath, env=environment, capture_output=True, text=True, timeout=900
        )

    if "PYTEST_XDIST_WORKER" in os.environ:
        yield run
        return
    if any(kernels == "cuda" for kernels, _ in asked):
        cuda_launches.library()  # built once, not by each
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {key: pool.submit(run, *key) for key in sorted(asked, key=lambda key: FILES.index(key[1]))}
        yield lambda *key: runs[key].result()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kernels", ["triton", pytest.param("cuda", marks=needs_nvcc)])
def test_in_the_emulator(kernels, name, done):
    finished = done(kernels, name)
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-2000:]
    assert " passed" in finished.stdout
