"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer: their own tests, random calls, planted faults.

One build of a copy of this source tree, without optimisation and without clones for other processors: the checks are
put in before either, and it takes a fifth of the time. Whatever loads it has the sanitizers' libraries loaded first.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_build import ROOT, build, copy_tree

SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
COMPILED = f"{SANITIZERS} -O0 -g1 -D_GLIBCXX_ASSERTIONS '-Dtarget_clones(...)=flatten'"
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}  # Python leaks at exit
STEERED_BY = ("TRITON_INTERPRET", "VAE_FAST_BACKEND", "VAE_FAST_TEST_EMULATED", "PYTHONPATH")
TESTS = (
    *(f"test_{name}.py" for name in ("bernoulli", "gaussian", "latent", "elbo", "gradients")),
    "test_errors.py::test_errors_in_kernels_release_what_they_were_given",
    "test_errors.py::test_raw_operators_check_what_keeps_memory_safe",
    "test_operators.py::test_two_threads_at_once",
    "test_memory.py::test_nothing_changes_that_anyone_holds",
    "test_memory.py::test_no_more_is_kept_and_in_use_than_was_in_use_at_once",
    "test_memory.py::test_threads",
    "test_stored.py::test_rows_among_others",
    "test_stored.py::test_scales_that_observations_share",
    "test_stored.py::test_gradients_that_an_incoming_one_scales",
    "test_stream.py::test_one_scale",
    "operator_calls.py",
)
FAULTS = """
import ctypes
import sys

import torch
import vae_fast

ops, columns = torch.ops.vae_fast, 108
malloc = ctypes.CDLL(None).malloc
malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
short = (ctypes.c_float * columns).from_address(malloc(4 * (columns - 1)))
bytes_ = bytearray(4 * columns + 1)

x = torch.zeros(1, columns)
beyond = torch.frombuffer(short, dtype=torch.float32).view(1, columns)
askew = torch.frombuffer(bytes_, dtype=torch.float32, offset=1).view(1, columns)
faults = {
    "none": lambda: ops.bernoulli_nll(beyond[:, :-1], x[:, :-1], None, None, 1),
    "read": lambda: ops.bernoulli_nll(beyond, x, None, None, 1),
    "write": lambda: ops.scale_rows_(beyond, torch.tensor(0.0)),
    "misaligned": lambda: ops.bernoulli_nll(askew, x, None, None, 1),
}
faults[sys.argv[1]]()
print("done")
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def sanitizer_libraries(folder: Path) -> list[str]:
    """Where the libraries lie that what g++ makes with the sanitizers needs, found by making something."""
    if sys.platform != "linux" or shutil.which("g++") is None or shutil.which("ldd") is None:
        pytest.skip("needs g++ on Linux")
    probe = folder / "probe.so"
    command = ["g++", *SANITIZERS.split(), "-shared", "-fPIC", "-x", "c++", "-", "-o", str(probe)]
    done = subprocess.run(command, input="int f(int i) { return i + 1; }", capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"g++ has no sanitizers here: {done.stderr.splitlines()[-1]}")
    needed = subprocess.run(["ldd", str(probe)], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"lib(?:asan|ubsan)\.so\S* => (/\S+)", needed)
    assert len(libraries) == 2, needed
    return libraries


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python on a copy of this source tree whose library has the sanitizers in it."""
    folder = tmp_path_factory.mktemp("sanitized")
    libraries = sanitizer_libraries(folder)
    tree = copy_tree(folder / "tree")
    shutil.copy2(ROOT / "conftest.py", tree)
    shutil.rmtree(tree / "csrc/autograd")  # torch's C++ API in nodes that touch no memory themselves
    switches = {"VAE_FAST_BUILD": "cpu", "CXX": "g++", "CXXFLAGS": COMPILED, "LDFLAGS": SANITIZERS}
    done = build(tree, "build_editable('dist')", **switches)
    assert done.returncode == 0, done.stderr
    environment = {name: value for name, value in os.environ.items() if name not in STEERED_BY}
    environment |= {"LD_PRELOAD": ":".join(libraries), **OPTIONS}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=600)

    return run


def test_operators(sanitized):
    """The operators' own tests, and random calls of every operator."""
    tests = [f"tests/{name}" for name in TESTS]
    options = ("-q", "--tb=short", "-p", "no:cacheprovider", "--capture=sys")  # reports are written below Python
    without_nodes = ("-k", "not C++")  # which this tree hasn't
    done = sanitized("-m", "pytest", *options, *without_nodes, *tests)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-10_000:]
    assert re.search(r"^\d{3,} passed, \d+ deselected in ", done.stdout, re.MULTILINE)
    assert "runtime error" not in done.stderr and "Sanitizer" not in done.stderr


def test_the_right_call_beside_the_faults_passes(sanitized):
    done = sanitized("-c", FAULTS, "none")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


SAID = {
    "read": r"heap-buffer-overflow[^#]*READ of size 4[^#]*#0 .*vae_fast::",
    "write": r"heap-buffer-overflow[^#]*WRITE of size 4(?s:.*)scale_rows_",
    "misaligned": r"runtime error: load of misaligned address[^#]*#0 .*vae_fast::",
}


@pytest.mark.parametrize("fault", SAID)
def test_a_planted_fault_is_caught(sanitized, fault):
    """An operand whose memory ends one number early, or whose numbers lie askew: it is the kernel that is stopped."""
    done = sanitized("-c", FAULTS, fault)
    assert done.returncode != 0 and done.stdout == ""
    assert re.search(SAID[fault], done.stderr), done.stderr
