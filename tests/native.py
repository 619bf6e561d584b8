"""C++ of csrc/ as a library of its own, for ctypes."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parent.parent / "csrc"
TORCH = Path(torch.__file__).parent / "include"
FLAGS = "-std=c++17 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -shared -fPIC".split()


def library(folder: Path, program: str, *flags: str) -> ctypes.CDLL:
    """The program, compiled with the kernels' flags and others. Skips the test where there is no compiler."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    (folder / "program.cpp").write_text(program)
    command = [compiler, *FLAGS, *flags, f"-I{CSRC}", "-isystem", str(TORCH), "program.cpp", "-o", "program.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "program.so"))


def pointer(array) -> ctypes.c_void_p:
    """To the numbers of numpy's array or a tensor."""
    return ctypes.c_void_p(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)
