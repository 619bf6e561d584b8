"""torch.compile's Triton kernels for a GPU that need not be there.

`compile_for` runs Inductor on a function as torch.compile does on such a GPU: it traces, differentiates, partitions and
fuses, chooses configurations and compiles. Only the memory and the launches are missing. Each kernel comes with the
bytes that it reads and writes, its source and the machine code of every configuration that Inductor would choose from.

    program = compile_for(loss, [Input((8192, 784), torch.bfloat16, True), Input((8192, 784), torch.uint8)], arch=90)
    program.launches, [(kernel.kind, kernel.read, kernel.written) for kernel in program.kernels]

Inductor is told of the GPU by patching torch and Triton. That happens in a process of its own, which is why the
function has to be a module's.
"""

import contextlib
import functools
import math
import multiprocessing
import os
import re
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

SMS = {80: 108, 90: 132, 100: 148}  # A100, H100, B200: Inductor splits reductions over them
SHARED = {80: 166912, 90: 232448, 100: 232448}  # bytes a block may ask for
KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)", re.DOTALL)
LIBRARY_CALL = re.compile(r"^ +(?:\w+ = )?(?:aten|extern_kernels|torch\.ops)\.\S+\(", re.MULTILINE)


@dataclass(frozen=True)
class Input:
    """A tensor on the GPU, known by its shape and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool = False

    def on_cpu(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, requires_grad=self.requires_grad)


@dataclass(frozen=True)
class Variant:
    """A kernel compiled in one of the configurations that Inductor would measure, if there is more than one."""

    tile: int  # elements that a block handles at a time, those beyond the tensor's end included
    trips: int  # tiles that a block walks through: more than one in reductions of long rows
    useful: float  # the part of the tiles that the tensor fills
    warps: int
    cubin: bytes

    @property
    def elements(self) -> float:
        """Elements of the tensor that a thread handles in a tile."""
        return self.tile * self.useful / (32 * self.warps)


@dataclass(frozen=True)
class Kernel:
    """One launch. Bytes are per element of the whole function; a buffer counts once, however often it is read."""

    name: str
    kind: str  # of Inductor's heuristics: pointwise, reduction, persistent_reduction
    backward: bool
    elements: int  # that this kernel goes through
    read: float
    written: float
    source: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Program:
    """What torch.compile launches for one call of a function, and for its backward if inputs require gradients."""

    arch: int
    elements: int
    kernels: tuple[Kernel, ...]
    library_calls: int  # launches of kernels that Inductor did not write, such as the seeds'

    @property
    def launches(self) -> int:
        return len(self.kernels) + self.library_calls

    @property
    def moved(self) -> float:
        """Bytes of HBM traffic per element."""
        return sum(kernel.read + kernel.written for kernel in self.kernels)


def compile_for(function: Callable[..., Any], inputs: Sequence[Input], arch: int) -> Program:
    """Compiles a module's function of tensors as torch.compile does on sm_80, sm_90 or sm_100.

    Elements are those of the largest input. With an input that requires a gradient, backward is included.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_compile, function, tuple(inputs), arch).result()


def _compile(function: Callable[..., Any], inputs: tuple[Input, ...], arch: int) -> Program:
    """`compile_for`, in a process that ends thereafter."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["TRITON_CACHE_DIR"] = folder
        launches, sources = _generate(function, inputs, arch)
        elements = max(math.prod(i.shape) for i in inputs)
        with _gpu(arch):
            kernels = tuple(_kernel(launch, sources, elements) for launch in launches)
    return Program(arch, elements, kernels, sum(len(LIBRARY_CALL.findall(source)) for source in sources))


@contextlib.contextmanager
def _gpu(arch: int) -> Iterator[None]:
    """Makes torch and Triton believe that there is a GPU, as far as compiling goes."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.runtime import triton_helpers
    from torch.utils._triton import has_triton
    from triton.runtime import driver

    device = types.SimpleNamespace(
        name="none",
        gcnArchName="",
        multi_processor_count=SMS[arch],
        major=arch // 10,
        minor=arch % 10,
        warp_size=32,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=SHARED[arch],
        shared_memory_per_multiprocessor=SHARED[arch] + 1024,
        L2_cache_size=50 * 2**20,
        total_memory=80 * 2**30,
    )
    answers = {
        "get_device_properties": device,
        "get_device_capability": (device.major, device.minor),
        "current_device": 0,
        "device_count": 1,
        "is_available": True,
        "is_initialized": False,
        "is_bf16_supported": True,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        **dict.fromkeys(("synchronize", "set_rng_state", "set_device", "current_stream", "_lazy_init"), None),
        **dict.fromkeys(("_exchange_device", "_maybe_exchange_device"), 0),
    }
    patches = [mock.patch.object(torch.cuda, name, _always(answer)) for name, answer in answers.items()]
    for owner, name, answer in (
        (CudaInterface, "get_device_properties", device),
        (CudaInterface.Worker, "get_device_properties", device),
        (CudaInterface, "is_available", True),
        (CudaInterface, "current_device", 0),
        (CudaInterface, "get_compute_capability", arch),
        (triton_helpers, "set_driver_to_gpu", None),
    ):
        patches.append(mock.patch.object(owner, name, staticmethod(_always(answer))))
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        has_triton.cache_clear()  # asked before, on the CPU
        driver.set_active(_Driver(arch))  # for the rest of the process: resetting looks for a GPU
        yield


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: answer


class _Driver:
    """As much of a Triton driver as compiling takes."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda

    @staticmethod
    def is_active() -> bool:
        return True


@dataclass(frozen=True)
class _Launch:
    """What Inductor knows of a kernel when it emits its launch."""

    name: str
    backward: bool
    numels: dict[str, int]  # by axis: x, y, r0_
    read: int  # bytes
    written: int


def _generate(function: Callable[..., Any], inputs: tuple[Input, ...], arch: int) -> tuple[list[_Launch], list[str]]:
    """Inductor's launches in their order, and its source for forward and backward.

    The function is traced and differentiated on the CPU, for which there is autograd; the graphs of forward and
    backward are then moved to the GPU and generated for it.
    """
    import torch._functorch.config
    import torch._inductor.config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.graph import GraphLowering

    launches: list[_Launch] = []
    sources: list[str] = []

    def unloaded(graph: Any, wrapper_code: Any) -> Any:
        sources.append(wrapper_code.value)
        return types.SimpleNamespace(__file__="", call=lambda args: (), runner=None)

    def generate(graph: torch.fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        with _gpu(arch), _moved(graph, example_inputs) as on_gpu:
            return compile_fx_inner(graph, on_gpu, **kwargs)

    def backend(graph: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        compile_fx(graph, example_inputs, inner_compile=generate)
        return graph.forward

    with (
        mock.patch.object(GraphLowering, "_compile_to_module_lines", unloaded),
        _recorded(launches),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False),
        torch._inductor.config.patch(compile_threads=1, fx_graph_cache=False),
    ):
        torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*(i.on_cpu() for i in inputs))
    return launches, sources


@contextlib.contextmanager
def _moved(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Iterator[list[Any]]:
    """Moves a graph traced on the CPU to the GPU, and yields inputs there, while Inductor believes in its shapes."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile_fx
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._pytree import tree_map

    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def move(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cuda", 0)
        if isinstance(value, torch.Tensor):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
        return value

    with mode:
        for node in graph.graph.nodes:
            node.args = torch.fx.node.map_aggregate(node.args, move)
            node.kwargs = torch.fx.node.map_aggregate(node.kwargs, move)
            if "val" in node.meta:
                node.meta["val"] = tree_map(move, node.meta["val"])
        on_gpu = [move(value) for value in inputs]
    graph.recompile()
    known = mock.patch.object(compile_fx, "fake_tensor_prop", _always(mode))  # it would run what takes a GPU
    with known, tracing(TracingContext(mode)):
        yield on_gpu


@contextlib.contextmanager
def _recorded(launches: list[_Launch]) -> Iterator[None]:
    """Has Inductor note each launch of a Triton kernel that it emits."""
    from torch._inductor.codegen.triton import TritonKernel
    from torch._inductor.virtualized import V

    emit = TritonKernel.call_kernel

    def size(names: set[str]) -> int:
        return sum(int(V.graph.get_numel(name)) * V.graph.get_dtype(name).itemsize for name in names)

    @functools.wraps(emit)
    def noted(kernel: Any, name: str, *args: Any, **kwargs: Any) -> None:
        read, written = _buffers(kernel.args)
        numels = {axis: int(numel) for axis, numel in kernel.numels.items()}
        launches.append(_Launch(name, V.graph.is_backward, numels, size(read), size(written)))
        emit(kernel, name, *args, **kwargs)

    with mock.patch.object(TritonKernel, "call_kernel", noted):
        yield


def _buffers(args: Any) -> tuple[set[str], set[str]]:
    """Names of the buffers that a kernel reads and writes; one changed in place is both."""
    from torch._inductor.codegen.common import InplacedBuffer, RemovedArg

    read = set(args.input_buffers)
    written = {name for name, inner in args.output_buffers.items() if not isinstance(inner, RemovedArg)}
    for buffer in args.inplace_buffers.values():
        if isinstance(buffer, InplacedBuffer):
            read.add(buffer.other_names[0])
            written.add(buffer.other_names[-1])
    return read, written


def _kernel(launch: _Launch, sources: Sequence[str], elements: int) -> Kernel:
    source = next(text for code in sources for name, text in KERNEL.findall(code) if name == launch.name)
    tuner = _load(launch.name, source)
    kind = re.search(r"@triton_heuristics\.(\w+)", source)
    assert kind
    return Kernel(
        name=launch.name,
        kind=kind[1],
        backward=launch.backward,
        elements=math.prod(launch.numels.values()),
        read=launch.read / elements,
        written=launch.written / elements,
        source=source,
        variants=tuple(_variant(tuner, config, launch.numels, source) for config in tuner.configs),
    )


def _load(name: str, source: str) -> Any:
    """Inductor's autotuner of the kernel."""
    from torch._inductor.codecache import PyCodeCache

    return getattr(PyCodeCache.load(source), name)


def _variant(tuner: Any, config: Any, numels: dict[str, int], source: str) -> Variant:
    with torch._inductor.config.patch(use_static_cuda_launcher=False):  # it would load what it compiles
        binary = tuner._precompile_config(config).kernel
    blocks = {axis: _block(axis, config.kwargs, source) for axis in numels if numels[axis] > 1 or axis != "r0_"}
    tiles = {axis: math.ceil(numels[axis] / block) for axis, block in blocks.items()}
    padded = math.prod(tiles[axis] * block for axis, block in blocks.items())
    return Variant(
        tile=math.prod(blocks.values()),
        trips=tiles.get("r0_", 1),
        useful=math.prod(numels[axis] for axis in blocks) / padded,
        warps=binary.metadata.num_warps,
        cubin=binary.asm["cubin"],
    )


def _block(axis: str, config: dict[str, int], source: str) -> int:
    """How many elements of an axis a block takes at a time: a parameter, or for persistent reductions a constant."""
    name = f"{axis.upper()}BLOCK"
    if name in config:
        return int(config[name])
    constant = re.search(rf"^ +{name}: tl\.constexpr = (\d+)$", source, re.MULTILINE)
    if constant is None:
        raise LookupError(f"no {name} in {config} or the source")
    return int(constant[1])
