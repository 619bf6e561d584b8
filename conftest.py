"""pytest's option --device, for tests and benchmarks alike.

    python -m pytest tests --device cuda           the operators' tests against the GPU's kernels, and no others
    python -m pytest benchmarks -q --device cuda   the benchmarks there

Without it tensors are made on the CPU, and every test runs.
"""

import pytest
import torch

# What torch says of matrix products on GPUs; and that the reference serves float64 there
EXPECTED = (
    "TensorFloat32 tensor cores",
    "vae_fast. the plain PyTorch reference runs on cuda. the kernels for GPUs don't compute in float64",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tensors are made that name no device: cpu, cuda or cuda:1")


def pytest_configure(config: pytest.Config) -> None:
    """Before tests are collected, since some modules hold tensors."""
    if config.option.device == "cpu":
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError(f"--device {config.option.device}: torch sees no GPU")
    torch.set_default_device(config.option.device)
    for message in EXPECTED:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")
