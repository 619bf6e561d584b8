"""The launches of csrc/cuda, whose host code runs as nvcc compiled it, executed in the PTX emulator on CPU tensors.

with emulated(cc=90) as launches:
    torch.ops.vae_fast.bernoulli_nll(...)       # on CPU tensors: the CUDA operator, each launch in the emulator
launches[0].stats.bytes

The objects are the extension's latest, unless its sources have changed since: then, what nvcc makes of them, which also
names the line of an error. cuda_runtime.cpp stands in for the CUDA runtime and makes the host
code take CPU tensors for a GPU's. A kernel reaches the tensors whose data pointers its operator took, from the first
element to the last, and nothing else; the host, as with a GPU, none of them. Fresh memory holds NaN.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ptx_emulator
import sass
import torch
from ptx_emulator.parsing import parse

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
RUNTIME = Path(__file__).with_name("cuda_runtime.cpp")
BUILT, CACHE = ROOT / "build" / "objects", ROOT / "build" / "emulated"
ARCHITECTURES = (80,)
INCLUDED = ("*", "likelihoods/*", "cuda/**/*")  # what the sources may include, of csrc
FLAGS = [
    *("-std=c++17", "-O3", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
    *("-lineinfo", "-Xcompiler"),
    f"-fPIC,-fvisibility=hidden,-iquote,{CSRC}",  # no -I, which would hide the system's math.h
    *(f"-gencode=arch=compute_{cc},code=compute_{cc}" for cc in ARCHITECTURES),
]
WRAPPED = [
    *("aoti_torch_get_data_ptr", "torch_get_mutable_data_ptr", "torch_get_const_data_ptr"),
    *("aoti_torch_empty_strided", "aoti_torch_get_device_type", "aoti_torch_get_device_index"),
    *("aoti_torch_get_current_device_index", "aoti_torch_create_device_guard", "aoti_torch_delete_device_guard"),
    "aoti_torch_library_init_impl",
]
KEY = torch._C.DispatchKey.PrivateUse1  # where cuda_runtime.cpp registers CUDA operators
MULTIPROCESSORS, CC_MAJOR, CC_MINOR = 16, 75, 76  # of cudaDeviceAttr


class _Region(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("host", ctypes.c_void_p), ("bytes", ctypes.c_uint64))


class _Asked(ctypes.Structure):
    """cuda_runtime.cpp's Launch."""

    _fields_ = (
        ("fat_binary", ctypes.c_void_p),
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint64),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("regions", ctypes.POINTER(_Region)),
        ("region_count", ctypes.c_uint64),
    )


_EXECUTE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Asked))


@dataclass
class Launch:
    """One launch as the host code asked for it; `stats` once it has been executed.

    arguments: the bytes of each parameter. `stats.traffic` is by address, which `address` gives for a tensor.
    """

    name: str
    kernel: str  # as PTX calls it
    ptx: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    dynamic_shared: int
    arguments: list[bytes]
    stats: Any = None


_Receiver = Callable[[Launch, dict[int, np.ndarray]], None]


def address(t: torch.Tensor) -> int:
    """Where kernels find a tensor."""
    return t.data_ptr() + (1 << 60)


def unavailable() -> str | None:
    """Why the CUDA sources can't be compiled here, None if they can."""
    found = {"nvcc": shutil.which("nvcc"), "g++": shutil.which("g++"), "cuobjdump": sass.cuobjdump()}
    missing = next((name for name, path in found.items() if path is None), None)
    return missing and f"{missing} isn't installed"


class Library:
    """CUDA sources, compiled with cuda_runtime.cpp and loaded; `operators` are those that they register for CUDA."""

    def __init__(self, sources: Sequence[Path], namespace: str):
        before = set(_implemented(namespace))
        path = linked(sources)
        torch.ops.load_library(path)
        self.operators = sorted(set(_implemented(namespace)) - before)
        self.namespace, self._host = namespace, ctypes.CDLL(str(path))
        self._lock = threading.RLock()
        self._error: BaseException | None = None
        self._serving: tuple[_Receiver, int] | None = None
        self._callback = _EXECUTE(self._launch)  # which the library calls as long as it is loaded
        self._host.emulation_start(self._callback)

    @contextmanager
    def serving_cpu(self, receive: _Receiver, cc: int, multiprocessors: int) -> Iterator[None]:
        """The operators run on CPU tensors; each launch goes to `receive`, with the memory that it may reach."""
        attributes = {MULTIPROCESSORS: multiprocessors, CC_MAJOR: cc // 10, CC_MINOR: cc % 10}
        for attribute, value in attributes.items():
            self._host.emulation_set_attribute(attribute, value)
        before, self._serving = self._serving, (receive, cc)
        registered = torch.library.Library(self.namespace, "IMPL")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the C++ kernels are overridden
            for name in self.operators:
                registered.impl(name, self._operator(name), "CPU", allow_override=True)
        try:
            yield
        finally:
            registered._destroy()
            self._serving = before

    def _operator(self, name: str) -> Callable[..., Any]:
        operator = getattr(getattr(torch.ops, self.namespace), name).default
        keys = torch._C.DispatchKeySet(KEY)

        def call(*args: Any, **keywords: Any) -> Any:
            with self._lock:
                try:
                    result = operator.redispatch(keys, *args, **keywords)
                except RuntimeError as error:
                    raise self._error or error from None
                finally:
                    self._host.emulation_forget()
                    kept, self._error = self._error, None
                if kept is not None:
                    raise kept
                return result

        return call

    def _launch(self, asked: Any) -> int:
        """Called by the host code. An exception can't pass through it, so it is kept for the operator's end."""
        try:
            assert self._serving is not None, "a launch outside serving_cpu"
            receive, cc = self._serving
            receive(self._read(asked.contents, cc), _memory(asked.contents))
        except BaseException as error:
            self._error = error
            return 1
        return 0

    def _read(self, asked: Any, cc: int) -> Launch:
        ptx, kernel = _ptx_for(cc, asked.fat_binary), asked.kernel.decode()
        sizes = [v.size for v in parse(ptx).entry(kernel).params]
        arguments = [ctypes.string_at(asked.arguments[k], size) for k, size in enumerate(sizes)]
        name, grid, block = self._demangled(asked.kernel), tuple(asked.grid), tuple(asked.block)
        return Launch(name, kernel, ptx, grid, block, asked.dynamic_shared, arguments)

    def _demangled(self, name: bytes) -> str:
        text = ctypes.create_string_buffer(4096)
        self._host.emulation_demangle(name, text, len(text))
        return text.value.decode()


def _memory(asked: Any) -> dict[int, np.ndarray]:
    """The bytes of each region by its address, of the longest where several start there."""
    longest: dict[int, Any] = {}
    for k in range(asked.region_count):
        region = asked.regions[k]
        if region.bytes > (longest[region.address].bytes if region.address in longest else 0):
            longest[region.address] = region
    return {at: np.ctypeslib.as_array((ctypes.c_uint8 * r.bytes).from_address(r.host)) for at, r in longest.items()}


@functools.cache
def _ptx_for(cc: int, fat_binary: int) -> str:
    """The PTX that a driver would take of what nvcc embedded: for the newest architecture up to the GPU's."""
    _, _, header, size = struct.unpack("<IHHQ", ctypes.string_at(fat_binary, 16))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernels.fatbin").write_bytes(ctypes.string_at(fat_binary, header + size))
        sass.run_cuobjdump("-xptx", "all", "kernels.fatbin", folder=folder)
        texts = [path.read_text() for path in Path(folder).glob("*.ptx")]
    by_target = {int(re.search(r"\.target sm_(\d+)", text)[1]): text for text in texts}
    return by_target[max(target for target in by_target if target <= cc)]


def _implemented(namespace: str) -> list[str]:
    """The namespace's operators that have a kernel under the key."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith(f"{namespace}::")]
    return [n.split("::")[1] for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, KEY.name)]


def linked(sources: Sequence[Path]) -> Path:
    """The shared object of some sources and the runtime."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(_compiled, [*sources, RUNTIME]))
    torch_libraries = Path(torch.__file__).parent / "lib"
    command = [
        *("g++", "-shared", "-Wl,-z,defs", f"-L{torch_libraries}", "-Wl,--no-as-needed", "-ltorch_cpu"),
        *(f"-Wl,--wrap={name}" for name in WRAPPED),
    ]
    return _made(".so", [*command, *map(str, objects)], objects)


def _compiled(source: Path) -> Path:
    near = [path for folder in INCLUDED for path in sorted(CSRC.glob(folder))] if CSRC in source.parents else []
    inputs = [source, *(path for path in near if path.suffix in (".h", ".cuh"))]
    newest = max(path.stat().st_mtime for path in (*inputs, ROOT / "setup.py"))
    if near and (built := _built(source, newest)):
        return built
    include = Path(torch.__file__).parent / "include"
    return _made(".o", ["nvcc", *FLAGS, "-isystem", str(include), "-c", str(source)], inputs)


def _built(source: Path, newest: float) -> Path | None:
    """The extension's latest object of one of its sources, if it is newer than those."""
    objects = {
        path.stat().st_mtime: path for path in BUILT.glob(f"{source.stem}-*.o") if b".nv_fatbin" in path.read_bytes()
    }
    return objects[max(objects)] if objects and max(objects) > newest else None


def _made(suffix: str, command: Sequence[str], inputs: Sequence[Path]) -> Path:
    """What a command makes of its inputs; that of an earlier run if all is as it was then."""
    key = hashlib.sha256("\0".join([*command, torch.__version__, _nvcc_version()]).encode())
    for path in inputs:
        key.update(path.read_bytes())
    target = CACHE / (key.hexdigest()[:24] + suffix)
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}-{threading.get_ident()}{suffix}")
        done = subprocess.run([*command, "-o", str(fresh)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        fresh.replace(target)
    return target


@functools.cache
def _nvcc_version() -> str:
    return subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def library() -> Library:
    """The extension's own."""
    import vae_fast  # noqa: F401  which defines the operators

    own = Library(sorted((CSRC / "cuda").rglob("*.cu")), "vae_fast")
    assert own.operators, "csrc/cuda has no operators"
    return own


@contextmanager
def recorded(cc: int = 90, *, multiprocessors: int = 132, of: Library | None = None) -> Iterator[list[Launch]]:
    """Launches are written down and not run."""
    launches: list[Launch] = []
    with (of or library()).serving_cpu(lambda launch, _: launches.append(launch), cc, multiprocessors):
        yield launches


@contextmanager
def emulated(
    cc: int = 90, *, multiprocessors: int = 132, of: Library | None = None, **emulation: Any
) -> Iterator[list[Launch]]:
    """Launches run in the emulator, as on a GPU of compute capability `cc`."""
    launches: list[Launch] = []

    def receive(launch: Launch, memory: dict[int, np.ndarray]) -> None:
        execute(launch, memory, **emulation)
        launches.append(launch)

    with (of or library()).serving_cpu(receive, cc, multiprocessors):
        yield launches


def executed(cc: int = 90) -> AbstractContextManager[None]:
    """As `emulated`, with nothing kept of the launches."""
    return library().serving_cpu(lambda launch, memory: execute(launch, memory), cc, 132)


def execute(launch: Launch, memory: Mapping[int, Any], **emulation: Any) -> None:
    """Runs a launch on memory, given by address."""
    launch.stats = ptx_emulator.run(
        launch.ptx,
        launch.kernel,
        launch.grid,
        launch.block,
        launch.arguments,
        launch.dynamic_shared,
        placed=memory,
        **emulation,
    )
