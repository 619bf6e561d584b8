"""Builds the compiled part of vae_fast; everything else about the package is in pyproject.toml.

A library, `vae_fast/_C_cpu.so`, is a plain shared object that `torch.ops.load_library` loads. It is built on
PyTorch's stable ABI and knows nothing of Python: one file serves every Python and every torch from 2.11 on.
The environment says what to build:

    VAE_FAST_BUILD      auto (default): what can be built here; what can't is skipped, and the reason recorded
                        cpu: the C++ kernels, or an error
                        cuda: the C++ and the CUDA kernels, or an error
                        none: pure Python
    CXX                 the compiler (default: the first of c++, g++, clang++)
    CXXFLAGS, LDFLAGS   more flags, put last
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
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = {"cpu": "csrc/cpu/*.cpp", "cuda": "csrc/cuda/*.cu"}
REQUESTED = {"auto": (), "cpu": ("cpu",), "cuda": ("cpu", "cuda"), "none": ()}
OLDEST_TORCH = (2, 11)
CXX_FLAGS = [
    *("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Icsrc"),
    "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH),
]
# libtorch_cpu.so has the stable ABI; named without version or folder, it is the one that torch has loaded.
LINK_FLAGS = {
    "linux": ["-shared", "-Wl,--as-needed", "-Wl,-z,defs", "-ltorch_cpu"],
    "darwin": ["-shared", "-undefined", "dynamic_lookup"],
}
OBJECTS = Path("build", "objects")


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


def find_compiler() -> list[str]:
    """The C++ compiler's command, from CXX or the path."""
    names = ("c++", "g++", "clang++")
    return flags_from("CXX") or [next((name for name in names if shutil.which(name)), "c++")]


def compiler_version(compiler: list[str]) -> str | None:
    """The first line of `compiler --version`, None if it can't be run."""
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.partition("\n")[0]


class Plan:
    """What this environment asks for, and what is here to build it with."""

    def __init__(self) -> None:
        self.switch = os.environ.get("VAE_FAST_BUILD") or "auto"
        if self.switch not in REQUESTED:
            raise SystemExit(f"VAE_FAST_BUILD={self.switch}: expected one of {', '.join(REQUESTED)}")
        self.compiler = find_compiler()
        self.compiler_version = compiler_version(self.compiler)
        self.torch = find_torch()
        self.torch_version = torch_version(self.torch) if self.torch else None

    def obstacle(self, kind: str) -> str | None:
        """Why the kernels of `kind` ("cpu" or "cuda") can't or shan't be built, None if they can."""
        if self.switch == "none" or (self.switch == "cpu" and kind == "cuda"):
            return f"VAE_FAST_BUILD={self.switch} was set when vae_fast was built"
        if not sources(kind):
            return f"this source tree has no {dict(cpu='C++', cuda='CUDA')[kind]} kernels ({SOURCES[kind]})"
        if sys.platform not in LINK_FLAGS:
            return f"vae_fast has no build for {sys.platform}"
        if self.compiler_version is None:
            return f"no C++ compiler: `{shlex.join(self.compiler)}` can't be run (install g++ or set CXX)"
        return self.torch_obstacle()

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
        wanted = missing and any(self.obstacle(kind) == missing for kind in SOURCES)
        return ["torch>={}.{}".format(*OLDEST_TORCH)] if wanted else []


def sources(kind: str) -> list[Path]:
    return sorted(Path().glob(SOURCES[kind]))


def run_compiler(command: list[str], what: str) -> None:
    """Runs the compiler; what it said is passed on, and is an error if it failed."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[-1])
        raise CompileError(f"`{command[0]}` failed on {what}: {reason}")


def flags_from(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))


def compile_flags() -> list[str]:
    return CXX_FLAGS + flags_from("CXXFLAGS")


class BuildLibraries(build_ext):
    """Compiles and links each library beside the Python files, and writes `_build.json`."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.built: list[str] = []
        self.outputs: list[Path] = []

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def run(self) -> None:
        skipped = {kind: reason for kind in SOURCES if (reason := PLAN.obstacle(kind))}
        PLAN.insist(skipped)
        for kind in sorted(SOURCES.keys() - skipped):
            try:
                self.build_library(kind)
            except CompileError as error:
                skipped[kind] = str(error)
        PLAN.insist(skipped)
        for kind, reason in skipped.items():
            self.library(kind).unlink(missing_ok=True)
            sys.stderr.write(f"vae_fast: WITHOUT the {kind} kernels: {reason}\n")
        self.write_record(skipped)

    def library(self, kind: str) -> Path:
        return Path(self.get_ext_fullpath(f"vae_fast._C_{kind}"))

    def build_library(self, kind: str) -> None:
        """Compiles the objects in parallel and links them; the library is replaced in one step."""
        library = self.library(kind)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(self.compile_object, sources(kind)))
        library.parent.mkdir(parents=True, exist_ok=True)
        fresh = library.with_suffix(".so.new")
        flags = [f"-L{PLAN.torch}/lib", *LINK_FLAGS[sys.platform], *flags_from("LDFLAGS")]
        run_compiler([*PLAN.compiler, *objects, "-o", str(fresh), *flags], library.name)
        fresh.replace(library)
        self.built.append(kind)
        self.outputs.append(library)
        sys.stderr.write(f"vae_fast: built {library} ({PLAN.compiler_version}; torch {PLAN.torch_version})\n")

    def compile_object(self, source: Path) -> str:
        """The object of one source; one that the same command made of files as old as these is kept."""
        command = [*PLAN.compiler, *compile_flags(), "-isystem", f"{PLAN.torch}/include"]
        command += [f"-ffile-prefix-map={PLAN.torch}=torch", "-c", str(source)]
        made_by = zlib.crc32(f"{command} {PLAN.compiler_version} {PLAN.torch_version}".encode())
        target = OBJECTS / f"{source.stem}-{made_by:08x}.o"
        newest = max(path.stat().st_mtime for path in [source, *Path("csrc").rglob("*.h")])
        if not target.exists() or target.stat().st_mtime <= newest:
            OBJECTS.mkdir(parents=True, exist_ok=True)
            run_compiler([*command, "-o", str(target)], str(source))
        return str(target)

    def write_record(self, skipped: dict[str, str]) -> None:
        record: dict[str, object] = {"switch": PLAN.switch, "built": self.built, "skipped": skipped}
        if self.built:
            record |= {"compiler": PLAN.compiler_version, "torch": PLAN.torch_version}
            record |= {"flags": shlex.join(compile_flags())}
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
    ext_modules=[Extension(f"vae_fast._C_{kind}", [str(path) for path in sources(kind)]) for kind in SOURCES],
    setup_requires=PLAN.build_requirements(),
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPythonWheel},
)
