"""The operators' own tests with the GPU kernels behind them, executed in the emulator: autograd, torch.compile,
autocast, opcheck, masks, weights, errors. The Triton kernels are compiled for sm_90; the CUDA ones are as nvcc made
them, with the host code that launches them."""

import os
import subprocess
import sys

import cuda_launches
import pytest

FILES = ["bernoulli", "gaussian", "latent", "elbo", "gradients", "errors", "operators"]
needs_nvcc = pytest.mark.skipif(cuda_launches.unavailable() is not None, reason=str(cuda_launches.unavailable()))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kernels", ["triton", pytest.param("cuda", marks=needs_nvcc)])
def test_in_the_emulator(kernels, name, request):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/test_{name}.py"]
    environment = {**os.environ, "VAE_FAST_TEST_EMULATED": kernels}
    done = subprocess.run(
        command, cwd=request.config.rootpath, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
