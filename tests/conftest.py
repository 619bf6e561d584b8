"""Fixtures for all tests."""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EMULATED = os.environ.get("VAE_FAST_TEST_EMULATED")  # triton or cuda
# With --device these run there, and the others not at all
ON_ANY_DEVICE = {
    *(f"test_{name}.py" for name in ("bernoulli", "elbo", "errors", "gaussian", "gradients", "latent", "models")),
    *(f"test_{name}.py" for name in ("continuous_bernoulli", "discretized_logistic", "laplace")),
    *(f"test_{name}.py" for name in ("on_gpu", "operators", "philox", "readme")),
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.option.device == "cpu" or collection_path.suffix != ".py":
        return None
    return collection_path.name not in ON_ANY_DEVICE or None


def pytest_configure(config: pytest.Config) -> None:
    if EMULATED not in (None, "triton", "cuda"):
        raise pytest.UsageError(f"VAE_FAST_TEST_EMULATED={EMULATED}: expected triton or cuda")
    if EMULATED:  # float64 goes to the reference there
        config.addinivalue_line("filterwarnings", "ignore:vae_fast. the plain PyTorch reference runs on cpu")


@pytest.fixture(scope="session", autouse=True)
def kernels() -> Iterator[None]:
    """With TRITON_INTERPRET=1 the Triton kernels serve the CPU, in Triton's interpreter; with
    VAE_FAST_TEST_EMULATED=triton as compiled for sm_90, in the emulator; with cuda, the CUDA kernels there."""
    with (
        _triton() if INTERPRETED or EMULATED == "triton" else nullcontext(),
        _emulator() if EMULATED else nullcontext(),
    ):
        yield


@contextmanager
def _triton() -> Iterator[None]:
    from vae_fast.ops.triton_backend import register

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the C++ kernels are overridden
        library = register("CPU")
    yield
    library._destroy()


def _emulator() -> AbstractContextManager[None]:
    sys.path.insert(0, str(Path(__file__).with_name("gpu")))
    return importlib.import_module("cuda_launches" if EMULATED == "cuda" else "launches").executed(90)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whatever ran before."""
    torch.manual_seed(20140416)


@pytest.fixture(params=["C++", "Python"])
def nodes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test with autograd's nodes in C++, and with those in Python."""
    import nodes

    from vae_fast.ops import library

    if request.param == "C++" and (library.NO_NATIVE_NODES is not None or torch.get_default_device().type != "cpu"):
        pytest.skip(f"no nodes in C++: {library.NO_NATIVE_NODES}")
    with nodes.in_python() if request.param == "Python" else nullcontext():
        yield


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, so that an output that is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For work too small to gain by a second thread, which on a busy machine is only waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
