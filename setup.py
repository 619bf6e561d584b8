"""Builds the compiled part of vae_fast; everything else about the package is in pyproject.toml.

The kernels' libraries, `vae_fast/_C_cpu.so` and `vae_fast/_C_cuda.so`, are plain shared objects that
`torch.ops.load_library` loads. They are built on PyTorch's stable ABI and know nothing of Python: one file serves every
Python and every torch from 2.11 on. The CUDA kernels need nvcc to be built, and neither a GPU nor a torch that is built
with CUDA. Autograd's nodes in C++, `vae_fast/_C_autograd.so`, serve only the torch that they were built with; with any
other, nodes in Python do the same. They are built wherever C++ kernels are asked for, if they can be.
The environment says what to build:

    VAE_FAST_BUILD      auto (default): what can be built here; what can't is skipped, and the reason recorded
                        cpu: the C++ kernels, or an error
                        cuda: the C++ and the CUDA kernels, or an error
                        none: pure Python
    CXX                 the compiler (default: the first of c++, g++, clang++)
    NVCC                the CUDA compiler (default: that of the toolkit in CUDA_HOME, else the first nvcc on the path)
    CXXFLAGS, NVCCFLAGS, LDFLAGS    more flags, put last
    VAE_FAST_CUDA_ARCHS the GPUs that machine code is made for, such as "90;100" (default: ARCHITECTURES below)
    MAX_JOBS            how many compilers run at once (default: one a core)

What was built and with what, what was skipped and why: `vae_fast/_build.json`, which the package shows.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

REQUESTED = {"auto": (), "cpu": ("cpu",), "cuda": ("cpu", "cuda"), "none": ()}
PARTS = {"cpu": "kernels", "cuda": "kernels", "autograd": "nodes"}  # what the libraries hold
OLDEST_TORCH = (2, 11)
FLAGS = ["-std=c++17", "-O3", "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH)]
HOST_FLAGS = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS = [*FLAGS, *HOST_FLAGS, "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
NODE_FLAGS = ["-std=c++20", "-O2", *HOST_FLAGS]  # what headers of torch beyond the stable ABI ask for
NVCC_FLAGS = [*FLAGS, "-DUSE_CUDA", "--threads=2", f"-Xcompiler={','.join(HOST_FLAGS)}"]
# libtorch_cpu.so has the stable ABI; named without version or folder, it is the one that torch has loaded.
LINK_FLAGS = {
    "linux": ["-shared", "-Wl,--as-needed", "-Wl,-z,defs", "-ltorch_cpu"],
    "darwin": ["-shared", "-undefined", "dynamic_lookup"],
}
# The machine code is made from the PTX of the first, which is in the library for all GPUs to come.
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
# What the CUDA kernels use of libtorch_cuda.so. Only a torch that is built with CUDA has that library, so that the
# linker is shown an empty one of its name.
TORCH_CUDA = ("aoti_torch_get_current_cuda_stream", "torch_c10_cuda_check_msg", "torch_c10_cuda_free_error_msg")
OBJECTS = Path("build", "objects")
SHARED_HEADERS = ("csrc/*.h", "csrc/likelihoods/*.h")


def find_torch() -> Path | None:
    """The folder of an installed torch that has the stable ABI's headers, found without importing torch.

    pip's isolated build hides the environment that it installs into from `sys.path`, but not from sysconfig.
    """
    spec = importlib.util.find_spec("torch")
    folders = [*(spec.submodule_search_locations or () if spec else ())]
    folders += [os.path.join(sysconfig.get_path(scheme), "torch") for scheme in ("purelib", "platlib")]
    return next((Path(f) for f in folders if Path(f, "include/torch/csrc/stable/library.h").exists()), None)


def torch_version(torch: Path) -> str:
    match = re.search(r"__version__ = '(.+)'", Path(torch, "version.py").read_text())
    return match[1] if match else "0.0"


def flags_from(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))


def output_of(command: list[str]) -> str:
    """What the command prints, "" if it can't be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout + done.stderr


def run_compiler(command: list[str], what: str) -> None:
    """Runs the compiler; what it said is passed on, and is an error if it failed."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        reason = next((line for line in lines if re.search("error|undefined|cannot find", line)), lines[-1])
        raise CompileError(f"`{command[0]}` failed on {what}: {reason}")


class Cxx:
    """The C++ compiler, which also links."""

    language, sources = "C++", "csrc/cpu/**/*.cpp"
    headers: tuple[str, ...] = (*SHARED_HEADERS, "csrc/cpu/**/*.h")
    to_host = ""  # what goes before a flag

    @cached_property
    def command(self) -> list[str]:
        names = ("c++", "g++", "clang++")
        return flags_from("CXX") or [next((name for name in names if shutil.which(name)), "c++")]

    @cached_property
    def version(self) -> str:
        return output_of([*self.command, "--version"]).partition("\n")[0]

    def obstacle(self) -> str | None:
        """Why it can't compile, None if it can."""
        if self.version:
            return None
        return f"no C++ compiler: `{shlex.join(self.command)}` can't be run (install g++ or set CXX)"

    def flags(self) -> list[str]:
        return CXX_FLAGS + flags_from("CXXFLAGS")

    def libraries(self) -> list[str]:
        """What to link with, besides torch."""
        return []

    def record(self) -> dict[str, object]:
        return {"compiler": self.version, "flags": shlex.join(self.flags())}


class Nodes(Cxx):
    """The same for autograd's nodes, on torch's own C++ API."""

    language, sources, headers = "autograd", "csrc/autograd/*.cpp", ("csrc/autograd/*.h",)

    def flags(self) -> list[str]:
        return NODE_FLAGS + flags_from("CXXFLAGS")

    def libraries(self) -> list[str]:
        return ["-lc10"] if sys.platform == "linux" else []

    def record(self) -> dict[str, object]:
        return {"compiler": self.version, "autograd_flags": shlex.join(self.flags())}


class Nvcc:
    """The CUDA compiler, with a C++ compiler for the host's part."""

    language, sources = "CUDA", "csrc/cuda/**/*.cu"
    headers = (*SHARED_HEADERS, "csrc/cuda/**/*.h", "csrc/cuda/**/*.cuh")
    to_host = "-Xcompiler="

    def __init__(self, host: Cxx) -> None:
        self.host = host

    @cached_property
    def command(self) -> list[str]:
        home = os.environ.get("CUDA_HOME")
        return flags_from("NVCC") or [(home and shutil.which("nvcc", path=f"{home}/bin")) or "nvcc"]

    @cached_property
    def version(self) -> str:
        match = re.search(r"release [\d.]+, V([\d.]+)", output_of([*self.command, "--version"]))
        return match[1] if match else ""

    @cached_property
    def known(self) -> list[str]:
        """The architectures that it makes machine code for, of those that take PTX of the first of ours."""
        found = re.findall(r"^sm_(\d+)$", output_of([*self.command, "--list-gpu-code"]), re.MULTILINE)
        return sorted((a for a in found if int(a) >= int(ARCHITECTURES[0])), key=int)

    @cached_property
    def asked(self) -> list[str]:
        return re.findall(r"[^\s;,]+", os.environ.get("VAE_FAST_CUDA_ARCHS", ""))

    @cached_property
    def architectures(self) -> list[str]:
        return self.asked or [a for a in ARCHITECTURES if a in self.known]

    def obstacle(self) -> str | None:
        """Why it can't compile, None if it can."""
        if reason := self.host.obstacle():
            return reason
        if not self.version:
            return f"no nvcc: `{shlex.join(self.command)}` can't be run (install the CUDA toolkit or set NVCC)"
        if strange := set(self.architectures or ARCHITECTURES) - set(self.known):
            return (
                f"nvcc {self.version} can't compile for {', '.join(sorted(strange))}, only for {', '.join(self.known)}"
            )
        return None

    def flags(self) -> list[str]:
        ptx = f"compute_{ARCHITECTURES[0]}"
        code = ",".join([*(f"sm_{a}" for a in self.architectures), ptx])
        options = [word for word in self.host.command if word.startswith("-")]
        program = [word for word in self.host.command if word not in options][-1]  # behind ccache, say
        host = [f"-ccbin={program}", *(f"{self.to_host}{option}" for option in options)]
        return [*NVCC_FLAGS, f"-gencode=arch={ptx},code=[{code}]", *host, *flags_from("NVCCFLAGS")]

    def libraries(self) -> list[str]:
        """What to link with, besides torch: the empty library, and the CUDA runtime, found by a dry run of nvcc."""
        shown = re.search(r"LIBRARIES=(.*)", output_of([*self.command, "--dryrun", "-x", "cu", os.devnull]))
        folders = shlex.split(shown[1]) if shown else []
        source, stub = OBJECTS / "torch_cuda.cpp", OBJECTS / "libtorch_cuda.so"
        source.write_text("".join(f'extern "C" void {name}() {{}}\n' for name in TORCH_CUDA))
        command = [*self.host.command, "-shared", "-fPIC", f"-Wl,-soname,{stub.name}", str(source), "-o", str(stub)]
        run_compiler(command, stub.name)
        return [str(stub), *folders, "-lcudart_static", "-lrt", "-ldl", "-lpthread"]

    def record(self) -> dict[str, object]:
        left_out = [a for a in ARCHITECTURES if a not in self.architectures]
        record: dict[str, object] = {"compiler": self.host.version, "nvcc": self.version}
        record |= {"nvcc_flags": shlex.join(self.flags()), "architectures": self.architectures}
        return record | ({"architectures_left_out": left_out} if left_out else {})


class Plan:
    """What this environment asks for, and what is here to build it with."""

    def __init__(self) -> None:
        self.switch = os.environ.get("VAE_FAST_BUILD") or "auto"
        if self.switch not in REQUESTED:
            raise SystemExit(f"VAE_FAST_BUILD={self.switch}: expected one of {', '.join(REQUESTED)}")
        self.host = Cxx()
        self.compilers: dict[str, Cxx | Nvcc] = {"cpu": self.host, "cuda": Nvcc(self.host), "autograd": Nodes()}
        self.torch = find_torch()
        self.torch_version = torch_version(self.torch) if self.torch else None

    def sources(self, kind: str) -> list[Path]:
        return sorted(Path().glob(self.compilers[kind].sources))

    def obstacle(self, kind: str) -> str | None:
        """Why the library of `kind` can't or shan't be built, None if it can."""
        compiler = self.compilers[kind]
        if self.switch == "none" or (self.switch == "cpu" and kind == "cuda"):
            return f"VAE_FAST_BUILD={self.switch} was set when vae_fast was built"
        if not self.sources(kind):
            return f"this source tree has no {compiler.language} {PARTS[kind]} ({compiler.sources})"
        if sys.platform not in LINK_FLAGS:
            return f"vae_fast has no build for {sys.platform}"
        return compiler.obstacle() or self.torch_obstacle()

    def torch_obstacle(self) -> str | None:
        if self.torch is None or self.torch_version is None:
            return "torch's headers were not found (install torch first)"
        if tuple(int(n) for n in re.findall(r"\d+", self.torch_version)[:2]) < OLDEST_TORCH:
            return f"torch {self.torch_version} is older than {'.'.join(map(str, OLDEST_TORCH))}"
        return None

    def insist(self, skipped: dict[str, str]) -> None:
        """Fails if what was asked for by name is among the skipped."""
        for kind in REQUESTED[self.switch]:
            if kind in skipped:
                raise CompileError(f"VAE_FAST_BUILD={self.switch}: {skipped[kind]}")

    def build_requirements(self) -> list[str]:
        """torch, if its headers are all that is missing: an isolated build then installs it for itself."""
        missing = self.torch_obstacle()
        wanted = missing and any(self.obstacle(kind) == missing for kind in self.compilers)
        return ["torch>={}.{}".format(*OLDEST_TORCH)] if wanted else []


class BuildLibraries(build_ext):
    """Compiles and links each library beside the Python files, and writes `_build.json`."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.built: list[str] = []
        self.outputs: list[Path] = []

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def run(self) -> None:
        skipped = {kind: reason for kind in PLAN.compilers if (reason := PLAN.obstacle(kind))}
        PLAN.insist(skipped)
        for kind in [kind for kind in PLAN.compilers if kind not in skipped]:
            try:
                if kind == "autograd" and "cpu" not in self.built:
                    raise CompileError("the C++ kernels, which they serve, were not built")
                self.build_library(kind)
            except CompileError as error:
                skipped[kind] = str(error)
        PLAN.insist(skipped)
        for kind, reason in skipped.items():
            self.library(kind).unlink(missing_ok=True)
            sys.stderr.write(f"vae_fast: WITHOUT the {kind} {PARTS[kind]}: {reason}\n")
        self.write_record(skipped)

    def library(self, kind: str) -> Path:
        return Path(self.get_ext_fullpath(f"vae_fast._C_{kind}"))

    def build_library(self, kind: str) -> None:
        """Compiles the objects in parallel and links them; the library is replaced in one step."""
        library, compiler = self.library(kind), PLAN.compilers[kind]
        OBJECTS.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(lambda source: self.compile_object(compiler, source), PLAN.sources(kind)))
        library.parent.mkdir(parents=True, exist_ok=True)
        fresh = library.with_suffix(".so.new")
        flags = [f"-L{PLAN.torch}/lib", *LINK_FLAGS[sys.platform], *compiler.libraries(), *flags_from("LDFLAGS")]
        run_compiler([*PLAN.host.command, *objects, "-o", str(fresh), *flags], library.name)
        fresh.replace(library)
        self.built.append(kind)
        self.outputs.append(library)
        sys.stderr.write(f"vae_fast: built {library} ({compiler.version}; torch {PLAN.torch_version})\n")

    def compile_object(self, compiler: Cxx | Nvcc, source: Path) -> str:
        """The object of one source; one that the same command made of files as old as these is kept."""
        command = [*compiler.command, *compiler.flags(), "-isystem", f"{PLAN.torch}/include"]
        command += [f"{compiler.to_host}-ffile-prefix-map={PLAN.torch}=torch", "-c", str(source)]
        made_by = zlib.crc32(f"{command} {compiler.version} {PLAN.host.version} {PLAN.torch_version}".encode())
        target = OBJECTS / f"{source.stem}-{made_by:08x}.o"
        headers = [path for pattern in compiler.headers for path in Path().glob(pattern)]
        newest = max(path.stat().st_mtime for path in [source, *headers])
        if not target.exists() or target.stat().st_mtime <= newest:
            run_compiler([*command, "-o", str(target)], str(source))
        return str(target)

    def write_record(self, skipped: dict[str, str]) -> None:
        record: dict[str, object] = {"switch": PLAN.switch, "built": sorted(self.built), "skipped": skipped}
        for kind in self.built:
            record |= {"torch": PLAN.torch_version} | PLAN.compilers[kind].record()
        path = Path(self.get_ext_fullpath("vae_fast._build")).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        self.outputs.append(path)

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib, "vae_fast", path.name)) for path in self.outputs]

    def get_output_mapping(self) -> dict[str, str]:
        """Where each output of an editable install really lies."""
        return dict(zip(self.get_outputs(), map(str, self.outputs), strict=True)) if self.inplace else {}


class AnyPythonWheel(bdist_wheel):
    """A wheel of this tree's files alone, tagged by what is in it: py3-none-PLATFORM, or py3-none-any."""

    def run(self) -> None:
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        self.root_is_pure = not self.get_finalized_command("build_ext").built
        return "py3", "none", super().get_tag()[2]


def packages() -> list[str]:
    """The packages in vae_fast/, and those in kernels/ as `vae_fast.kernels`."""
    kernels = ["vae_fast.kernels"] if Path("kernels").is_dir() else []
    nested = [f"vae_fast.kernels.{name}" for name in find_packages("kernels")] if kernels else []
    return find_packages(include=["vae_fast", "vae_fast.*"]) + kernels + nested


PLAN = Plan()
setup(
    packages=packages(),
    package_dir={"vae_fast.kernels": "kernels"} if Path("kernels").is_dir() else {},
    package_data={"vae_fast": ["py.typed"]},
    ext_modules=[Extension(f"vae_fast._C_{kind}", [*map(str, PLAN.sources(kind))]) for kind in PLAN.compilers],
    setup_requires=PLAN.build_requirements(),
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPythonWheel},
)
