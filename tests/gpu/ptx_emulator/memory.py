"""The memories of a launch: spaces of bytes with checked access, and the arena that holds the host's arrays."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import EmulatorError
from .parsing import Module, Variable
from .ptx_types import I64, TYPES, U8, U16, U32, U64, immediate_bits
from .stats import Traffic

if TYPE_CHECKING:
    from .machine import Site

GLOBAL_BASE = 0x7F0000000000
SHARED_WINDOW, LOCAL_WINDOW, PARAM_WINDOW = 0x010000000000, 0x020000000000, 0x030000000000
SHARED_START, LOCAL_START, PARAM_START = 1024, 256, 256  # the first valid offsets: address 0 always faults
GUARD = 1 << 22  # bytes between the arrays in the arena, which cost address space only
EMPTY = 16  # where an empty array lies: an address too, and an invalid one


class Space:
    """A memory with `rows` private copies: one for each CTA or thread."""

    def __init__(self, name: str, size: int, start: int, row_of_thread: np.ndarray, rows: int, track_init=False):
        self.name, self.size, self.start = name, size, start
        stride = -(-max(size, 1) // 256) * 256
        self.data = np.zeros(rows * stride + 64, U8)
        self.init = np.zeros(len(self.data), U8) if track_init else None
        self.row_offset = row_of_thread.astype(I64) * stride
        self.views = _views(self.data)
        self.init_views = _views(self.init) if track_init else None

    def locate(self, addr: np.ndarray, idx: np.ndarray | None, size: int, site: Site, what: str) -> np.ndarray:
        """Checks accesses of `size` bytes by the threads `idx` (None: all) and gives their offsets into `data`."""
        _check_alignment(self.name, addr, addr, idx, size, site, what)
        bad = (addr + U64(size) > U64(self.size)) | (addr > U64(self.size)) | (addr < U64(self.start))
        if bad.any():
            site.fault(f"{size}-byte {what} outside {self.name} memory of {self.size} bytes", addr, bad, idx)
        return addr.view(I64) + (self.row_offset if idx is None else self.row_offset[idx])

    def read(self, offsets, width: int, count: int, site: Site, idx, addr) -> list[np.ndarray]:
        """`count` words of `width` bytes from each offset, one array a word."""
        shift = width.bit_length() - 1
        e = offsets >> shift if shift else offsets
        if self.init is not None:
            written = _all_ones(width)
            for j in range(count):
                bad = self.init_views[width].take(e + j) != written
                if bad.any():
                    site.fault(f"read of uninitialised {self.name} memory", addr, bad, idx)
        return [self.views[width].take(e + j if j else e) for j in range(count)]

    def write(self, offsets, width: int, values: Iterable[np.ndarray]) -> None:
        shift = width.bit_length() - 1
        e = offsets >> shift if shift else offsets
        for j, v in enumerate(values):
            self.views[width][e + j] = v
            if self.init is not None:
                self.init_views[width][e + j] = _all_ones(width)

    def forget(self, offsets, size: int) -> None:
        """The bytes count as unwritten."""
        for w in range(0, size, 4):
            self.init_views[4][(offsets + w) >> 2] = 0


class GlobalSpace(Space):
    """One memory for all threads, valid only inside its regions: (first address, one past the last, offset)."""

    def __init__(self, size: int, regions: list[tuple[int, int, int]]):
        super().__init__("global", size, 0, np.zeros(1), 1)
        self.starts, self.ends, places = (np.array(ints, I64) for ints in zip(*sorted(regions), strict=True))
        self.shifts = self.starts - places

    def locate(self, addr, idx, size, site, what):
        addresses = addr.view(I64)
        _check_alignment(self.name, addr, addr, idx, size, site, what)
        low, high = int(addresses.min()), int(addresses.max())
        region = int(np.searchsorted(self.starts, low, "right")) - 1
        if region >= 0 and high <= self.ends[region] - size:
            return addresses - self.shifts[region]
        regions = np.searchsorted(self.starts, addresses, "right") - 1
        bad = (regions < 0) | (addresses > self.ends[regions] - size)
        if bad.any():
            site.fault(f"{size}-byte {what} outside every global buffer", addr, bad, idx)
        return addresses - self.shifts[regions]


def _views(data: np.ndarray) -> dict[int, np.ndarray]:
    return {t().itemsize: data.view(t) for t in (U8, U16, U32, U64)}


def _all_ones(width: int) -> int:
    return int.from_bytes(b"\1" * width, "little")


def _check_alignment(name, offsets, addr, idx, size, site, what):
    bits = offsets & offsets.dtype.type(size - 1)
    if bits.any():
        site.fault(f"misaligned {size}-byte {what} in {name} memory", addr, bits != 0, idx)


def is_array(a: Any) -> bool:
    """Whether an argument is passed by its address: a NumPy array with dimensions or a tensor."""
    return (isinstance(a, np.ndarray) and a.ndim > 0) or hasattr(a, "data_ptr")


def host_span(a: Any) -> tuple[int, int, int]:
    """Pointer, lowest address and highest address + 1 of an array's own elements."""
    if isinstance(a, np.ndarray):
        low, high = np.lib.array_utils.byte_bounds(a)
        return a.__array_interface__["data"][0], low, high
    if a.device.type != "cpu":
        raise TypeError(f"the emulator takes CPU tensors, not {a.device}")
    pointer = a.data_ptr()
    elements = 0 if a.numel() == 0 else sum((n - 1) * s for n, s in zip(a.shape, a.stride(), strict=True)) + 1
    return pointer, pointer, pointer + elements * a.element_size()


def host_phase(a: Any) -> int:
    """How far past a multiple of 256 the array would start on a GPU, where every allocation starts at one."""
    low = host_span(a)[1]
    if isinstance(a, np.ndarray):
        while isinstance(a.base, np.ndarray):
            a = a.base
        start = a.__array_interface__["data"][0]
    else:
        start = a.untyped_storage().data_ptr()
    return (low if start % 16 else low - start) % 256


def host_bytes(low: int, high: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * (high - low)).from_address(low))


@dataclass(frozen=True)
class Region:
    """Host memory [low, high), its offset in the arena, and the address at which kernels find it."""

    low: int
    high: int
    at: int
    address: int

    @property
    def valid(self) -> tuple[int, int, int]:
        return self.address, self.address + self.high - self.low, self.at


@dataclass
class Owner:
    """An argument's part of the arena, and the bytes that went through it."""

    start: int
    end: int
    loaded: int = 0
    stored: int = 0


class GlobalMemory:
    """Copies the host's arrays and the module's variables into an arena with gaps between them.

    An array is what lies between its first and its last element, not the storage behind it; arrays that overlap stay
    together, and all others are kept apart. Those of `placed` have their addresses given, as keys.
    """

    def __init__(self, module: Module, arrays: Mapping[int, Any], placed: Mapping[int, Any] | None = None):
        placed = placed or {}
        spans = {key: host_span(a) for key, a in (*arrays.items(), *placed.items())}
        free = [Span(*spans[key][1:], host_phase(a)) for key, a in arrays.items()]
        fixed = [Span(low, high, key % 256, key - low) for key, (_, low, high) in spans.items() if key in placed]
        self.regions = _place(_merged([*free, *fixed]))
        place = max((r.at + r.high - r.low for r in self.regions), default=0) + GUARD
        valid = [(0, 0, 0), *(r.valid for r in self.regions)]
        self.symbols: dict[str, int] = {}
        variables = [v for v in module.variables.values() if v.space in ("global", "const")]
        for v in variables:
            at = -(-place // max(v.align, 256)) * max(v.align, 256)
            self.symbols[v.name] = GLOBAL_BASE + at
            valid.append((self.symbols[v.name], self.symbols[v.name] + v.size, at))
            place = at + v.size + GUARD
        self.space = GlobalSpace(place + GUARD, valid)
        self.owners = {key: self._owner(low, high) for key, (_, low, high) in spans.items()}
        for r in self.regions:
            self.space.data[r.at : r.at + r.high - r.low] = host_bytes(r.low, r.high)
        for v in variables:
            self._initialise(v)

    def address(self, a: Any) -> int:
        """Where a kernel finds the array."""
        pointer, low, high = host_span(a)
        if low == high:
            return GLOBAL_BASE + EMPTY
        region = self._region(low)
        return region.address + pointer - region.low

    def count_traffic(self, kind: str, offsets: np.ndarray, size: int) -> None:
        """Adds an access to the traffic of the arrays that it touches."""
        low, high = int(offsets.min()), int(offsets.max())
        for owner in self.owners.values():
            if high < owner.start or owner.end <= low:
                continue
            n = len(offsets)
            if low < owner.start or owner.end <= high:
                n = int(np.count_nonzero((offsets >= owner.start) & (offsets < owner.end)))
            owner.loaded += n * size * (kind != "st")
            owner.stored += n * size * (kind != "ld")

    def traffic(self) -> dict[int, Traffic]:
        return {key: Traffic(owner.loaded, owner.stored) for key, owner in self.owners.items()}

    def copy_back(self) -> None:
        """Writes what the kernel changed into the host's arrays."""
        for r in self.regions:
            host, device = host_bytes(r.low, r.high), self.space.data[r.at : r.at + r.high - r.low]
            if not np.array_equal(host, device):
                host[:] = device

    def _owner(self, low: int, high: int) -> Owner:
        """Where host memory lies in the arena."""
        if low == high:
            return Owner(EMPTY, EMPTY)
        region = self._region(low)
        start = region.at + low - region.low
        return Owner(start, start + high - low)

    def _region(self, low: int) -> Region:
        return next(r for r in self.regions if r.low <= low < r.high)

    def _initialise(self, v: Variable) -> None:
        if v.init:
            raw = b"".join(self._initial_value(text, v) for text in v.init)
            at = self.symbols[v.name] - GLOBAL_BASE
            self.space.data[at : at + len(raw)] = np.frombuffer(raw, U8)

    def _initial_value(self, text: str, v: Variable) -> bytes:
        symbol = re.sub(r"generic\((.*)\)", r"\1", text)
        bits = self.symbols[symbol] if symbol in self.symbols else immediate_bits(text, TYPES[v.type])
        return int(bits).to_bytes(TYPES[v.type].bits // 8, "little")


class Span(NamedTuple):
    """Host memory [low, high), how far past a multiple of 256 it starts on a GPU, and, if that is given, by how much
    its address there is higher."""

    low: int
    high: int
    phase: int
    shift: int | None = None


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Joins the spans that overlap; those that only touch stay apart."""
    merged: list[Span] = []
    for span in sorted((s for s in spans if s.low < s.high), key=lambda s: s[:2]):
        if merged and span.low < merged[-1].high:
            merged[-1] = _joined(merged[-1], span)
        else:
            merged.append(span)
    return merged


def _joined(first: Span, second: Span) -> Span:
    shifts = {span.shift for span in (first, second)} - {None}
    if len(shifts) > 1:
        raise EmulatorError("two addresses for the same memory")
    (shift,) = shifts or {None}
    phase = first.phase if shift is None else (first.low + shift) % 256
    return Span(first.low, max(first.high, second.high), phase, shift)


def _place(spans: list[Span]) -> list[Region]:
    """Offsets in the arena with each span's phase, so that a view into a tensor is as misaligned as it is there."""
    regions, place = [], GUARD
    for low, high, phase, shift in spans:
        at = place + phase
        regions.append(Region(low, high, at, GLOBAL_BASE + at if shift is None else low + shift))
        place = -(-(at + high - low + GUARD) // 256) * 256
    return regions
