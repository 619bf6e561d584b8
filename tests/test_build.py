"""Builds of the package, in copies of this source tree: what they make, and what they say when they can't."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile", "constraints.txt")
FOLDERS = ("vae_fast", "kernels", "csrc", "tests")
MADE_BY_BUILDS = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
STEERED_BY = ("VAE_FAST_BUILD", "CXX", "CXXFLAGS", "LDFLAGS")
STEERED_BY += ("VAE_FAST_CUDA_ARCHS", "NVCC", "NVCCFLAGS", "NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS", "CUDA_HOME")

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on this machine"
)


# An nvcc of version 12.4 that leaves all to the C++ compiler and notes what it was called with
NVCC = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
  *--version*) echo "Cuda compilation tools, release 12.4, V12.4.131" ;;
  *--list-gpu-code*) printf 'sm_75\\nsm_80\\nsm_86\\nsm_90\\nsm_90a\\n' ;;
  *--dryrun*) echo "#$ LIBRARIES=  \\"-L$here/lib/stubs\\" \\"-L$here/lib\\"" >&2 ;;
  *) echo "$@" >> "$here/calls"
     for word; do case $last:$word in -o:*) out=$word ;; *.cu) source=$word ;; esac; last=$word; done
     exec c++ -fPIC -Icsrc -x c++ -c "$source" -o "$out" ;;
esac
"""
CUDA_SOURCE = """
extern "C" int aoti_torch_get_current_cuda_stream(int device, void** stream);
int three() { void* stream; return one() + 2 * aoti_torch_get_current_cuda_stream(0, &stream); }
"""
KERNEL = """
#include <cuda_runtime.h>
__global__ void kernel() {}
int launch(void* stream) { kernel<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(); return cudaGetLastError(); }
"""


def copy_tree(target: Path) -> Path:
    target.mkdir()
    for name in FILES:
        shutil.copy2(ROOT / name, target)
    for name in filter(lambda name: (ROOT / name).is_dir(), FOLDERS):
        shutil.copytree(ROOT / name, target / name, ignore=MADE_BY_BUILDS)
    return target


def build(tree: Path, hook: str = "build_wheel('dist')", **environment: str) -> subprocess.CompletedProcess[str]:
    """Calls a hook of the build backend in `tree`, as pip would; its value is the last line of stdout."""
    kept = {name: value for name, value in os.environ.items() if name not in STEERED_BY}
    program = f"from setuptools import build_meta; print(repr(build_meta.{hook}))"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=tree, env=kept | environment, capture_output=True, text=True)


def wheel_of(tree: Path, done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


def record_of(wheel: Path) -> dict:
    with zipfile.ZipFile(wheel) as files:
        return json.loads(files.read("vae_fast/_build.json"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of this source tree, with small C++ files in place of the kernels, and one header, and of the nodes."""
    copy = copy_tree(tmp_path / "tree")
    shutil.rmtree(copy / "csrc")
    (copy / "csrc/cpu").mkdir(parents=True)
    (copy / "csrc/one.h").write_text("inline int one() { return 1; }\n")
    (copy / "csrc/cpu/two.cpp").write_text('#include "../one.h"\nint two() { return 2 * one(); }\n')
    (copy / "csrc/autograd").mkdir()
    (copy / "csrc/autograd/node.cpp").write_text("int node() { return 3; }\n")
    return copy


@pytest.fixture
def cuda_tree(tree: Path) -> Path:
    """The same with one small CUDA file and its header."""
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/own.cuh").write_text('#include "../one.h"\n')
    (tree / "csrc/cuda/three.cu").write_text('#include "own.cuh"\n' + CUDA_SOURCE)
    return tree


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A CUDA toolkit with the nvcc above and a runtime that is empty."""
    folder = tmp_path / "toolkit/bin"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib/libcudart_static.a").write_text("!<arch>\n")
    (folder / "nvcc").write_text(NVCC)
    (folder / "nvcc").chmod(0o755)
    return folder.parent


@pytest.fixture(scope="module")
def compiled_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the real tree, with what objects an editable install has made of the same sources."""
    copy = copy_tree(tmp_path_factory.mktemp("compiled") / "tree")
    if (ROOT / "build/objects").is_dir():
        shutil.copytree(ROOT / "build/objects", copy / "build/objects")
    return wheel_of(copy, build(copy, VAE_FAST_BUILD="cpu"))


def test_an_unknown_switch_is_refused_in_one_line(tree):
    done = build(tree, VAE_FAST_BUILD="gpu")
    assert done.returncode != 0
    assert done.stderr.strip() == "VAE_FAST_BUILD=gpu: expected one of auto, cpu, cuda, none"


def test_none_builds_a_pure_wheel_that_works_without_the_library(tree, tmp_path):
    wheel = wheel_of(tree, build(tree, VAE_FAST_BUILD="none"))
    assert wheel.name == "vae_fast-0.1.0-py3-none-any.whl"
    assert record_of(wheel)["skipped"]["cpu"] == "VAE_FAST_BUILD=none was set when vae_fast was built"
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "import torch, vae_fast\n"
        "recon, x, mu, logvar = torch.zeros(2, 5), torch.ones(2, 5), torch.zeros(2, 3), torch.zeros(2, 3)\n"
        "print(vae_fast.__file__, vae_fast.ELBOLoss()(recon, x, mu, logvar).item())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, loss = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path / "site")
    assert float(loss) == pytest.approx(5 * 0.6931471805599453, rel=1e-6)


def test_without_a_compiler_the_reason_is_said_and_recorded(tree):
    done = build(tree, CXX="/nonexistent/c++ -m64")
    reason = "no C++ compiler: `/nonexistent/c++ -m64` can't be run (install g++ or set CXX)"
    wheel = wheel_of(tree, done)
    assert f"vae_fast: WITHOUT the cpu kernels: {reason}" in done.stderr
    assert wheel.name.endswith("-py3-none-any.whl")
    assert record_of(wheel)["built"] == []
    assert record_of(wheel)["skipped"]["cpu"] == reason


def test_asked_for_cpu_a_build_without_a_compiler_fails(tree):
    done = build(tree, VAE_FAST_BUILD="cpu", CXX="/nonexistent/c++")
    assert done.returncode != 0
    assert "VAE_FAST_BUILD=cpu: no C++ compiler: `/nonexistent/c++` can't be run" in done.stderr


def test_asked_for_cuda_a_tree_without_cuda_kernels_fails(tree):
    done = build(tree, VAE_FAST_BUILD="cuda")
    assert done.returncode != 0
    assert "VAE_FAST_BUILD=cuda: this source tree has no CUDA kernels (csrc/cuda/**/*.cu)" in done.stderr


@needs_compiler
def test_without_nvcc_the_rest_is_built_and_the_reason_said_and_recorded(cuda_tree):
    done = build(cuda_tree, NVCC="/nonexistent/nvcc")
    record = record_of(wheel_of(cuda_tree, done))
    reason = "no nvcc: `/nonexistent/nvcc` can't be run (install the CUDA toolkit or set NVCC)"
    assert f"vae_fast: WITHOUT the cuda kernels: {reason}" in done.stderr
    assert record["built"] == ["autograd", "cpu"] and record["skipped"] == {"cuda": reason}
    assert "nvcc" not in record and "architectures" not in record


@needs_compiler
@pytest.mark.parametrize("nvcc", ["/nonexistent/nvcc", "false", "true"])
def test_asked_for_cuda_a_build_without_nvcc_fails(cuda_tree, nvcc):
    done = build(cuda_tree, VAE_FAST_BUILD="cuda", NVCC=nvcc)
    assert done.returncode != 0
    assert f"VAE_FAST_BUILD=cuda: no nvcc: `{nvcc}` can't be run" in done.stderr
    assert not (cuda_tree / "build/objects").exists()


@needs_compiler
@pytest.mark.parametrize("found_by", ["NVCC", "CUDA_HOME", "PATH"])
def test_nvcc_is_found_and_what_it_built_recorded(cuda_tree, toolkit, found_by):
    path = os.environ["PATH"]
    where = {"NVCC": f"{toolkit}/bin/nvcc", "CUDA_HOME": str(toolkit), "PATH": f"{toolkit}/bin:{path}"}[found_by]
    wheel = wheel_of(cuda_tree, build(cuda_tree, VAE_FAST_BUILD="cuda", **{found_by: where}))
    assert re.fullmatch(r"vae_fast-0\.1\.0-py3-none-(linux|macosx)_\w+\.whl", wheel.name)
    assert {"vae_fast/_C_cpu.so", "vae_fast/_C_cuda.so"} <= set(zipfile.ZipFile(wheel).namelist())
    record = record_of(wheel)
    assert record["built"] == ["autograd", "cpu", "cuda"] and record["skipped"] == {}
    assert record["nvcc"] == "12.4.131"
    assert record["architectures"] == ["80", "86", "90"]
    assert record["architectures_left_out"] == ["89", "100", "120"]
    (call,) = (toolkit / "bin/calls").read_text().splitlines()
    assert "-gencode=arch=compute_80,code=[sm_80,sm_86,sm_90,compute_80]" in call
    assert "fast_math" not in call and "fast-math" not in call


@needs_compiler
def test_the_environment_chooses_architectures_compiler_and_flags(cuda_tree, toolkit):
    compiler = next(filter(shutil.which, ("c++", "g++", "clang++")))
    chosen = {"VAE_FAST_CUDA_ARCHS": "90; 80", "NVCC": f"{toolkit}/bin/nvcc -Xptxas=-v", "NVCCFLAGS": "-lineinfo"}
    record = record_of(wheel_of(cuda_tree, build(cuda_tree, CXX=f"{compiler} -O1", **chosen)))
    assert record["architectures"] == ["90", "80"]
    (call,) = (toolkit / "bin/calls").read_text().splitlines()
    assert call.startswith("-Xptxas=-v ")
    for flag in ("code=[sm_90,sm_80,compute_80]", f"-ccbin={compiler} ", "-Xcompiler=-O1 ", "-lineinfo "):
        assert flag in call


@needs_compiler
@pytest.mark.parametrize("chosen", ["100", "75", "90a", "sm_90"])
def test_an_architecture_that_nvcc_cannot_compile_for_is_named(cuda_tree, toolkit, chosen):
    environment = {"NVCC": f"{toolkit}/bin/nvcc", "VAE_FAST_CUDA_ARCHS": f"80,{chosen}"}
    reason = f"nvcc 12.4.131 can't compile for {chosen}, only for 80, 86, 90"
    assert record_of(wheel_of(cuda_tree, build(cuda_tree, **environment)))["skipped"] == {"cuda": reason}
    done = build(cuda_tree, VAE_FAST_BUILD="cuda", **environment)
    assert done.returncode != 0 and f"VAE_FAST_BUILD=cuda: {reason}" in done.stderr


@needs_compiler
def test_an_nvcc_that_fails_is_shown_and_recorded_and_fails_if_cuda_was_asked_for(cuda_tree, toolkit):
    (cuda_tree / "csrc/cuda/three.cu").write_text("#error out of order\n")
    nvcc = f"{toolkit}/bin/nvcc"
    done = build(cuda_tree, NVCC=nvcc)
    record = record_of(wheel_of(cuda_tree, done))
    assert "csrc/cuda/three.cu:1:2: error: #error out of order" in done.stderr
    assert record["built"] == ["autograd", "cpu"]
    assert re.match(r"`.*/nvcc` failed on csrc/cuda/three\.cu: .*out of order", record["skipped"]["cuda"])
    assert build(cuda_tree, NVCC=nvcc, VAE_FAST_BUILD="cuda").returncode != 0


@needs_compiler
def test_what_torch_with_cuda_does_not_promise_is_a_link_error(cuda_tree, toolkit):
    source = cuda_tree / "csrc/cuda/three.cu"
    source.write_text(source.read_text().replace("aoti_torch_get_current_cuda_stream", "torch_of_tomorrow"))
    done = build(cuda_tree, NVCC=f"{toolkit}/bin/nvcc")
    assert "torch_of_tomorrow" in record_of(wheel_of(cuda_tree, done))["skipped"]["cuda"]


@needs_compiler
def test_cuda_objects_are_made_again_when_their_headers_have_changed(cuda_tree, toolkit):
    def objects_made() -> dict[str, int]:
        build(cuda_tree, VAE_FAST_BUILD="cuda", NVCC=f"{toolkit}/bin/nvcc")
        return {path.name[:3]: path.stat().st_mtime_ns for path in (cuda_tree / "build/objects").glob("*.o")}

    first = objects_made()
    assert objects_made() == first
    (cuda_tree / "csrc/cuda/own.cuh").write_text('#include "../one.h"\n\n')
    second = objects_made()
    assert second["two"] == first["two"] and second["thr"] != first["thr"]
    (cuda_tree / "csrc/cpu/own.h").write_text("\n")
    assert objects_made()["thr"] == second["thr"]
    (cuda_tree / "csrc/one.h").write_text("inline int one() { return 1 + 0; }\n")
    third = objects_made()
    assert third["two"] != second["two"] and third["thr"] != second["thr"] and third["nod"] == first["nod"]


@needs_compiler
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on this machine")
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not on this machine")
def test_the_cuda_library_names_torch_and_no_cuda_library_beside(cuda_tree, tmp_path):
    with (cuda_tree / "csrc/cuda/three.cu").open("a") as source:
        source.write(KERNEL)
    wheel = wheel_of(cuda_tree, build(cuda_tree, VAE_FAST_BUILD="cuda", VAE_FAST_CUDA_ARCHS="80"))
    library = zipfile.ZipFile(wheel).extract("vae_fast/_C_cuda.so", tmp_path)
    shown = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = {name.split(".so")[0] for name in re.findall(r"NEEDED.*\[(.+)\]", shown)}
    assert "libtorch_cuda" in needed
    assert not [name for name in needed if name.startswith(("libcuda", "libpython"))]
    assert "RPATH" not in shown and "RUNPATH" not in shown
    assert str(cuda_tree).encode() not in Path(library).read_bytes()


@needs_compiler
def test_a_compile_error_is_shown_and_recorded_and_fails_if_cpu_was_asked_for(tree):
    (tree / "csrc/cpu/two.cpp").write_text("#error out of order\n")
    done = build(tree)
    wheel = wheel_of(tree, done)
    assert "csrc/cpu/two.cpp:1:2: error: #error out of order" in done.stderr
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "failed on csrc/cpu/two.cpp" in record_of(wheel)["skipped"]["cpu"]
    assert "out of order" in record_of(wheel)["skipped"]["cpu"]
    assert build(tree, VAE_FAST_BUILD="cpu").returncode != 0


@needs_compiler
def test_an_object_is_made_again_when_a_header_has_changed(tree):
    def objects_made() -> dict[Path, int]:
        build(tree, VAE_FAST_BUILD="cpu")
        return {path: path.stat().st_mtime_ns for path in (tree / "build/objects").iterdir()}

    first = objects_made()
    assert len(first) == 2
    assert objects_made() == first
    (tree / "csrc/one.h").write_text("inline int one() { return 1 + 0; }\n")
    assert objects_made() != first


@needs_compiler
def test_without_nodes_the_kernels_are_built_and_the_reason_said_and_recorded(tree):
    (tree / "csrc/autograd/node.cpp").write_text("#error torch has changed\n")
    done = build(tree, VAE_FAST_BUILD="cpu")
    record = record_of(wheel_of(tree, done))
    assert "vae_fast: WITHOUT the autograd nodes: `" in done.stderr
    assert record["built"] == ["cpu"] and "torch has changed" in record["skipped"]["autograd"]


@needs_compiler
def test_a_wheel_holds_nothing_that_an_earlier_build_left(tree):
    (tree / "vae_fast/removed.py").touch()
    (tree / "vae_fast/_C_cpu.so").write_text("left by an editable install")
    wheel_of(tree, build(tree, VAE_FAST_BUILD="cpu")).unlink()
    (tree / "vae_fast/removed.py").unlink()
    wheel = wheel_of(tree, build(tree, VAE_FAST_BUILD="none"))
    assert not {"vae_fast/_C_cpu.so", "vae_fast/removed.py"} & set(zipfile.ZipFile(wheel).namelist())


def fake_torch(folder: Path, version: str) -> Path:
    header = folder / "torch/include/torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (folder / "torch/__init__.py").write_text("raise RuntimeError('the build imported torch')\n")
    (folder / "torch/version.py").write_text(f"__version__ = '{version}'\n")
    return folder


@needs_compiler
def test_headers_of_an_old_torch_are_not_used(tree, tmp_path):
    done = build(tree, PYTHONPATH=str(fake_torch(tmp_path, "2.10.1+cu130")))
    assert record_of(wheel_of(tree, done))["skipped"]["cpu"] == "torch 2.10.1+cu130 is older than 2.11"


@needs_compiler
@pytest.mark.parametrize(
    ("version", "switch", "wanted"),
    [("2.10.0", "auto", ["torch>=2.11"]), ("2.11.0", "auto", []), ("2.10.0", "none", [])],
)
def test_a_build_asks_for_torch_only_where_it_is_missing(tree, tmp_path, version, switch, wanted):
    path = str(fake_torch(tmp_path, version))
    done = build(tree, "get_requires_for_build_wheel()", VAE_FAST_BUILD=switch, PYTHONPATH=path)
    assert done.stdout.splitlines()[-1] == repr(wanted), done.stderr


@needs_compiler
def test_the_compiled_wheel_fits_every_python_and_holds_no_tests(compiled_wheel):
    assert re.fullmatch(r"vae_fast-0\.1\.0-py3-none-(linux|macosx)_\w+\.whl", compiled_wheel.name)
    names = zipfile.ZipFile(compiled_wheel).namelist()
    assert {"vae_fast/_C_cpu.so", "vae_fast/_C_autograd.so", "vae_fast/_build.json", "vae_fast/py.typed"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vae_fast"}
    assert not [name for name in names if "tests" in Path(name).parts or Path(name).name.startswith("test_")]
    record = record_of(compiled_wheel)
    assert record["built"] == ["autograd", "cpu"]
    assert record["compiler"] and record["torch"] and "-O3" in record["flags"]


@needs_compiler
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not on this machine")
@pytest.mark.parametrize(("kind", "beside"), [("cpu", set()), ("autograd", {"libc10.so", "ld-linux-x86-64.so.2"})])
def test_a_library_names_no_python_no_torch_version_and_no_folder_of_this_machine(
    compiled_wheel, tmp_path, kind, beside
):
    library = Path(zipfile.ZipFile(compiled_wheel).extract(f"vae_fast/_C_{kind}.so", tmp_path))
    shown = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.+)\]", shown))
    assert "libtorch_cpu.so" in needed
    assert needed - beside <= {"libtorch_cpu.so", "libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6"}
    assert "RPATH" not in shown and "RUNPATH" not in shown
    torch = Path(str(importlib.util.find_spec("torch").origin)).parent
    for folder in (torch, ROOT, compiled_wheel.parents[1]):
        assert bytes(folder) not in library.read_bytes()


def test_the_source_distribution_holds_the_kernels_and_nothing_built(tree):
    (tree / "vae_fast/_C_cpu.so").write_text("stale")
    done = build(tree, "build_sdist('dist')")
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"csrc/one.h", "csrc/cpu/two.cpp", "setup.py", "Makefile", "constraints.txt"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "_build.json"))]
