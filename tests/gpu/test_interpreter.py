"""The Triton kernels in Triton's interpreter, which runs the algorithm as written: a process of its own, since triton
must be imported so. bfloat16 is left out: the interpreter computes with its bit patterns."""

import os
import subprocess
import sys

import cases
import pytest
import torch
from cases import KERNELS
from launches import OPERATORS
from operands import LAYOUTS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that test_in_the_interpreter starts")


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter(request):
    """The tests below."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    no_gpu = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}  # or the kernels would choose its instructions
    environment = {**os.environ, **no_gpu, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, cwd=request.config.rootpath, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@interpreted
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # of formulas for other counts than 0, not chosen
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (3, 784), (2, 1025)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_numbers(name, dtype, shape, poisoned):
    KERNELS[name](*shape, dtype).check(OPERATORS)


@interpreted
@pytest.mark.parametrize("name", ["bernoulli", "elbo, given prior", "sample_kl", "sample_kl_backward"])
def test_rows_cut_among_programs(name, poisoned):
    KERNELS[name](1, 40_000, torch.float32).check(OPERATORS)


@interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    change = LAYOUTS[layout]
    mask = change(torch.rand(5, 37)) > 0.3
    case = cases.nll("gaussian", [change(torch.randn(5, 37)) for _ in range(2)], change(torch.rand(5, 37)), None, mask)
    case.check(OPERATORS)
