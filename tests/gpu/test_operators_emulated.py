"""The operators' own tests with the Triton kernels behind them, as compiled for sm_90 and executed in the emulator:
autograd, torch.compile, autocast, opcheck, masks, weights, errors."""

import os
import subprocess
import sys

import pytest

FILES = ["bernoulli", "gaussian", "latent", "elbo", "gradients", "errors", "operators"]


@pytest.mark.parametrize("name", FILES)
def test_in_the_emulator(name, request):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/test_{name}.py"]
    environment = {**os.environ, "VAE_FAST_TEST_EMULATED": "1"}
    done = subprocess.run(
        command, cwd=request.config.rootpath, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
