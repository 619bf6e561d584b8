"""Autograd for operators that compute their gradients in the forward pass.

An operator `op(*arguments, asked) -> (value, more values..., gradients...)` returns with bit k of `asked` the gradient
of its k-th differentiable argument. OnePass keeps those and hands them out in backward, scaled by the incoming
one. Where a kept gradient can't be scaled afterwards (float16 would underflow; a parameter shared by rows is already
summed, and rows have incoming gradients of their own), backward runs the operator again with those in its weights.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from vae_fast.likelihoods import Likelihood
from vae_fast.ops import triton_backend
from vae_fast.ops.backend import forced
from vae_fast.ops.library import LIBRARY, NO_NATIVE_NODES, define

_REFERENCE = "`with vae_fast.backend('reference'):`"
_ONCE = f"vae_fast's operators differentiate once; for create_graph use {_REFERENCE}"
_REVERSE = f"vae_fast's operators have no forward-mode derivatives; for those use {_REFERENCE}"
_PLAIN = f"vae_fast's operators have gradients in plain autograd; in torch.func's use {_REFERENCE}"
_C, _PRE_DISPATCH = torch._C, torch._C.DispatchKey.PreDispatch


def differentiates_once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """A backward that raises where its result is to be differentiated again (create_graph).

    torch's `once_differentiable` lets results pass as constants where the incoming gradient needs no gradient itself.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *incoming: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(_ONCE)
        return backward(ctx, *incoming)

    return wrapped


def dense(incoming: Tensor) -> Tensor:
    """An incoming gradient, which may be sparse."""
    return incoming if incoming.layout is torch.strided else incoming.to_dense()


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd must see the call. True in forward mode too, where torch.autograd.Function raises."""
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        transformed = torch._C._are_functorch_transforms_active()
        for t in tensors:
            if t is not None and (t.requires_grad or (transformed and _inside(t).requires_grad)):
                return True
    return False


def suits_native_nodes(t: Tensor) -> bool:
    """Whether nodes in C++, where there are some, know what to do for such a tensor: on a CPU, with nobody watching."""
    return t.is_cpu and not _is_watched()


def is_plain_call(*tensors: object) -> bool:
    """Whether nodes in C++, where there are some, may look at these operands: nothing but what they are can keep them
    from the call."""
    if torch.compiler.is_compiling() or forced() is not None:
        return False
    for t in tensors:
        if (type(t) is not Tensor and type(t) is not Parameter) or not t.is_cpu:
            return False
    return not _is_watched()


def bare(overload: Any) -> Any:
    """What an overload calls: the same, for calls that nobody watches, less what Python does around it."""
    return getattr(overload, "_op", overload)


def is_traced() -> bool:
    """Whether a graph is made of the call, which shall hold the operator and no node."""
    return torch.compiler.is_compiling() or _C._get_tracing_state() is not None


def _is_watched() -> bool:
    """Whether forward mode, a transform, a tracer or a mode wants to see the operators that are called."""
    return (
        forward_ad._current_level >= 0
        or _C._are_functorch_transforms_active()
        or _C._len_torch_dispatch_stack() > 0
        or _C._len_torch_function_stack() > 0
        or _C._get_tracing_state() is not None
        or _C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)
    )


def _inside(t: Tensor) -> Tensor:
    """The tensor that a transform, such as vmap, has wrapped; the wrapper doesn't say whether it requires grad."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t) and not t.requires_grad:
        t = torch._C._functorch.get_unwrapped(t)
    return t


@dataclass(frozen=True)
class OnePassOperator:
    """overload: the operator. values: how many outputs come before the gradients; the first is differentiable.
    differentiable: positions of the differentiable arguments; rows: of an argument whose first size is B;
    weight: of the row weights [B]; reduce: of the flag for one value over all rows, None where values are [B].
    native: the values from the same arguments, with autograd's node in C++ (`csrc/autograd/`), where that is there;
    plain: those of a likelihood, or None where the operands have to be looked at in Python."""

    overload: Any
    values: int
    differentiable: tuple[int, ...]
    rows: int
    weight: int
    reduce: int | None = None
    native: Any = None
    plain: Any = None

    def wants_gradient(self, arguments: Sequence[Any]) -> bool:
        return wants_gradient(*[arguments[i] for i in self.differentiable])

    def call(self, arguments: Sequence[Any], asked: int) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*arguments, asked)

    def ask(self, arguments: Sequence[Any], needs: Sequence[bool]) -> tuple[int, bool, bool]:
        """`asked`; whether backward must run the operator again; whether a gradient sums rows which may have incoming
        gradients of their own."""
        asked, recomputes, sums_rows = 0, False, False
        reduces = self.reduce is not None and arguments[self.reduce]
        rows = arguments[self.rows].size(0)
        for k, i in enumerate(self.differentiable):
            if needs[i]:
                asked |= 1 << k
                recomputes = recomputes or arguments[i].dtype is torch.float16
                sums_rows = sums_rows or (not reduces and arguments[i].size(0) != rows)
        return asked, recomputes, sums_rows


class Function(torch.autograd.Function):
    """torch's, called without its Python wrapper, 2 microseconds that only functorch's transforms need: these raise.

    Skipped is `unwrap_dead_wrappers`: a tensor that has outlived its transform is an error of the caller's.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(_PLAIN)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(_REVERSE)


class OnePass(Function):
    """values = OnePass.apply(operator, *arguments)"""

    @staticmethod
    def forward(ctx: Any, operator: OnePassOperator, *arguments: Any) -> Any:
        asked, recomputes, ctx.sums_rows = operator.ask(arguments, ctx.needs_input_grad[1:])
        ctx.operator, ctx.asked, ctx.arity = operator, asked, len(arguments)
        outputs = operator.call(arguments, 0 if recomputes else asked)
        ctx.gradients = None if recomputes else outputs[operator.values :]
        if recomputes or ctx.sums_rows:
            ctx.numbers = [None if isinstance(a, Tensor) else a for a in arguments]
            ctx.save_for_backward(*(a if isinstance(a, Tensor) else None for a in arguments))
        ctx.set_materialize_grads(False)
        if operator.values == 1:
            return outputs[0]
        values = outputs[: operator.values]
        ctx.mark_non_differentiable(*values[1:])
        return values

    @staticmethod
    @differentiates_once
    def backward(ctx: Any, dvalue: Tensor | None, *_: None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # raises where the graph was freed
        result: list[Tensor | None] = [None] * (1 + ctx.arity)
        if dvalue is None:
            return tuple(result)
        dvalue = dense(dvalue)
        if ctx.sums_rows and dvalue.dim() and dvalue.size(0) and _is_uniform(dvalue):
            dvalue = dvalue[0]  # of a sum or a mean over rows
        if ctx.gradients is None or (ctx.sums_rows and dvalue.dim()):
            if ctx.gradients is not None and not _must_keep(dvalue):
                ctx.gradients = ()  # before there are others
            arguments = [t if t is not None else number for t, number in zip(saved, ctx.numbers, strict=True)]
            gradients = _again(ctx.operator, arguments, ctx.asked, dvalue)
        else:
            gradients = _scaled(ctx, dvalue)
        for k, i in enumerate(ctx.operator.differentiable):
            if ctx.asked >> k & 1:
                result[i + 1] = gradients[k]
        return tuple(result)


def _times(gradient: Tensor, factor: Tensor) -> Tensor:
    """gradient [B, ...] times factor, [] or [B]; a factor of 0 selects, it doesn't multiply."""
    for _ in range(gradient.dim() - 1 if factor.dim() else 0):
        factor = factor.unsqueeze(-1)
    return torch.where(factor == 0, 0, gradient * factor).to(gradient.dtype)


def _scale_kernel(gradient: Tensor, factor: Tensor) -> None:
    if not (factor.is_cpu and bool((factor == 1).all())):
        gradient.copy_(_times(gradient, factor))


SCALE_ROWS = define(
    "scale_rows_(Tensor(a!) gradient, Tensor factor) -> ()", lambda gradient, factor: None, _scale_kernel
)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b in the wider dtype: torch would let a 0-dim float32 fall to a float16 vector's."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype) * b.to(dtype)


def _again(operator: OnePassOperator, arguments: list[Any], asked: int, dvalue: Tensor) -> Any:
    weight = arguments[operator.weight]
    rows = arguments[operator.rows].size(0)
    arguments[operator.weight] = dvalue.expand(rows) if weight is None else _product(dvalue, weight)
    return operator.call(arguments, asked)[operator.values :]


def _scaled(ctx: Any, dvalue: Tensor) -> Sequence[Tensor]:
    """The kept gradients times dvalue, [] or [B]: in place where nobody else can hold or ask for them."""
    gradients = ctx.gradients
    if _must_keep(dvalue):
        return [_times(g, dvalue) if g.numel() else g for g in gradients]
    ctx.gradients = ()
    if dvalue.is_cpu and dvalue.dim() == 0 and dvalue.item() == 1:
        return gradients
    wanted = [_matrix(g) for g in gradients if g.numel()]
    if dvalue.is_cuda and triton_backend.ON_GPU.library is not None:
        triton_backend.scale(wanted, dvalue)
        return gradients
    with torch._C._AutoDispatchBelowAutograd():
        for g in wanted:
            SCALE_ROWS(g, dvalue)
    return gradients


def _matrix(gradient: Tensor) -> Tensor:
    """[B, C, N], contiguous or channels last, as [B, D]."""
    if gradient.dim() == 2:
        return gradient
    return (gradient if gradient.is_contiguous() else gradient.transpose(1, 2)).flatten(1)


def _stands_for_others(dvalue: Tensor) -> bool:
    """True while a graph is traced or runs for a batch of incoming gradients."""
    if torch.compiler.is_compiling() or type(dvalue) is not Tensor or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return torch._C._functorch.is_batchedtensor(dvalue) or torch._C._functorch.is_legacy_batchedtensor(dvalue)


def _must_keep(dvalue: Tensor) -> bool:
    """True where the gradients may be asked for once more."""
    return _stands_for_others(dvalue) or torch._C._autograd._get_current_graph_task_keep_graph()


def _is_uniform(dvalue: Tensor) -> bool:
    """Whether all rows are known to have the same incoming gradient. A GPU would have to be waited for, and what a
    graph is traced with says nothing."""
    if dvalue.stride(0) == 0:
        return True
    return dvalue.is_cpu and not _stands_for_others(dvalue) and bool((dvalue == dvalue[0]).all())


def one_pass(
    overload: Any,
    values: int,
    differentiable: tuple[int, ...],
    rows: int,
    weight: int,
    reduce: int | None = None,
    likelihood: Likelihood | None = None,
) -> OnePassOperator:
    """The operator with what it describes: the node in C++, where there can be one, and the dispatcher's kernel."""
    name, native, checking = overload.name().split("::")[1], None, None
    if NO_NATIVE_NODES is None:
        observations = (likelihood.kind, likelihood.joint or "", likelihood.per_row) if likelihood else ("", "", False)
        torch.ops.vae_fast_autograd.define(name, values, [*differentiable], rows, weight, reduce, *observations)
        packet = getattr(torch.ops.vae_fast_autograd, name)
        native, checking = packet.default, bare(packet.plain) if likelihood else None
    operator = OnePassOperator(overload, values, differentiable, rows, weight, reduce, native, checking)
    LIBRARY.impl(name, _autograd_kernel(operator), "Autograd")
    return operator


def _autograd_kernel(operator: OnePassOperator) -> Any:
    """The operator's kernel for the dispatcher's Autograd key: gradients go through backward, not through `asked`."""

    def kernel(*arguments_and_asked: Any) -> Any:
        *arguments, asked = arguments_and_asked
        if not operator.wants_gradient(arguments):
            return operator.call(arguments, asked)
        values = OnePass.apply(operator, *arguments)
        empty = [arguments[0].new_empty(0) for _ in operator.differentiable]
        return (*(values if operator.values > 1 else (values,)), *empty)

    return kernel


def apply(operator: OnePassOperator, *arguments: Any) -> Any:
    """The operator's values (a tensor if there is one, else a tuple), differentiable."""
    if is_traced():
        outputs = operator.overload(*arguments, 0)
    elif operator.native is not None and suits_native_nodes(arguments[operator.rows]):
        return operator.native(*arguments)
    elif operator.wants_gradient(arguments):
        return OnePass.apply(operator, *arguments)
    else:
        outputs = operator.call(arguments, 0)
    return outputs[0] if operator.values == 1 else outputs[: operator.values]
