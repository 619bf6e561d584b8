"""No figure without agreement: outputs and gradients are held against the float64 reference."""

from typing import Any

import torch
from torch import Tensor

from .cases import Case, Opponent

Outputs = tuple[Tensor, ...]

GATED = 2**24  # elements that the gate looks at: of larger shapes, fewer rows
VALUE_TOLERANCE = 1e-5  # relative: float32 sums of millions of terms, as the opponents take them
GRADIENT_TOLERANCE = 2e-6  # of the largest gradient, beside half a unit in the last place of its dtype


def as_tuple(outputs: Any) -> Outputs:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def cotangents(outputs: Outputs) -> list[Tensor | None]:
    """Incoming gradients: none for a scalar; ones for a value [B]; fixed noise for a sample [B, Z]."""
    device = outputs[0].device
    noise = torch.Generator(device).manual_seed(1)

    def sample(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=noise, device=device).to(t.dtype)

    makers = (lambda t: None, torch.ones_like, sample)
    return [makers[t.dim()](t) for t in outputs]


def arranged(opponent: Opponent, leaves: list[Tensor]) -> list[Tensor]:
    """The leaves as an opponent takes them: the same tensors, unless it wants them in another form."""
    with torch.no_grad():
        return [t.requires_grad_() for t in opponent.arrange(leaves)]


def gate(case: Case, name: str, opponent: Opponent, leaves: list[Tensor], data: list[Tensor]) -> float:
    """The opponent's largest error of a gradient, over the largest gradient. Raises AssertionError unless outputs and
    gradients agree with the float64 reference: ours closely, others as far as float32 lets the usual formula."""
    theirs = arranged(opponent, leaves)
    outputs = as_tuple(opponent.function(*theirs, *data))
    incoming = cotangents(outputs)
    found = torch.autograd.grad(outputs, theirs, incoming)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    wide_data = [x.double() if x.is_floating_point() else x for x in data]
    expected = as_tuple(case.truth(tuple(t.detach().double() for t in outputs), *wide, *wide_data))
    for got, want in zip(outputs, expected, strict=True):
        rounding = (torch.finfo(got.dtype).eps / 2 + VALUE_TOLERANCE) * want.detach().abs()
        close(case, f"{name}'s output", got.double() + opponent.shift(case.shape), want.detach(), rounding)
    truth = torch.autograd.grad(expected, wide, [None if t is None else t.double() for t in incoming])
    slack = case.slack(outputs, incoming) if case.slack else [torch.zeros_like(t) for t in wide]
    allowed = GRADIENT_TOLERANCE if name == "ours" else max(GRADIENT_TOLERANCE, case.usual_error)
    worst = 0.0
    for got, want, unknown in zip(found, opponent.arrange([*truth]), opponent.arrange(slack), strict=True):
        rounding = torch.finfo(got.dtype).eps / 2 * want.abs()
        close(case, f"{name}'s gradient", got, want, allowed * want.abs().amax() + rounding + unknown)
        error = ((got.double() - want).abs() - unknown).amax() / want.abs().amax()
        worst = max(worst, error.item())
    return worst


def close(case: Case, what: str, got: Tensor, want: Tensor, tolerance: Tensor) -> None:
    assert got.shape == want.shape == tolerance.shape, f"{case}: {what} of shape {[*got.shape]}, not {[*want.shape]}"
    worst = ((got.double() - want).abs() / (tolerance + 1e-30)).max().item()
    assert worst <= 1, f"{case}: {what} off by {worst:.3g} times the tolerance"
