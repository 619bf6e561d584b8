"""No figure without agreement: outputs and gradients are held against the float64 reference."""

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from .cases import Case, Opponent

Outputs = tuple[Tensor, ...]

GATED = 2**24  # elements that the gate looks at: of larger shapes, fewer rows
PIECE = 2**16  # elements that are compared at a time
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
    """The leaves as an opponent takes them, the same numbers in tensors of its own: it has gradients of its own and
    drops those alone."""
    with torch.no_grad():
        return [t.detach().requires_grad_() for t in opponent.arrange(leaves)]


class Gate:
    """A case's operands, which every opponent has to pass.

    The float64 reference runs once for all of them; for each where outputs are samples, of which it takes the noise.
    """

    def __init__(self, case: Case, leaves: list[Tensor], data: list[Tensor]) -> None:
        self.case, self.leaves, self.data = case, leaves, data
        self._known: tuple[Outputs, Outputs] | None = None

    def truth(self, name: str, outputs: Outputs, incoming: list[Tensor | None]) -> tuple[Outputs, Outputs]:
        """What the opponent's outputs should be, and the gradients of the leaves."""
        if self._known is None or self.case.slack:
            wide = [t.detach().double().requires_grad_() for t in self.leaves]
            wide_data = [x.double() if x.is_floating_point() else x for x in self.data]
            expected = as_tuple(self.case.truth(tuple(t.detach().double() for t in outputs), *wide, *wide_data))
            for got, want in zip(outputs, expected, strict=True):
                like(self.case, f"{name}'s output", got, want)
            gradients = torch.autograd.grad(expected, wide, [None if t is None else t.double() for t in incoming])
            self._known = tuple(t.detach() for t in expected), gradients
        return self._known

    def __call__(self, name: str, opponent: Opponent) -> float:
        """The opponent's largest error of a gradient, over the largest gradient. Raises AssertionError unless outputs
        and gradients agree with the reference: ours closely, others as far as float32 lets the usual formula."""
        case, theirs = self.case, arranged(opponent, self.leaves)
        outputs = as_tuple(opponent.function(*theirs, *self.data))
        incoming = cotangents(outputs)
        found = torch.autograd.grad(outputs, theirs, incoming)
        expected, truth = self.truth(name, outputs, incoming)
        for got, want in zip(outputs, expected, strict=True):
            relative = torch.finfo(got.dtype).eps / 2 + VALUE_TOLERANCE
            close(case, f"{name}'s output", got.detach().double() + opponent.shift(case.shape), want, relative)
        slack = opponent.arrange(case.slack(outputs, incoming)) if case.slack else [None] * len(found)
        allowed = GRADIENT_TOLERANCE if name == "ours" else max(GRADIENT_TOLERANCE, case.usual_error)
        worst = 0.0
        for got, want, unknown in zip(found, opponent.arrange([*truth]), slack, strict=True):
            largest = torch.linalg.vector_norm(want, torch.inf).item()
            relative = torch.finfo(got.dtype).eps / 2
            error = close(case, f"{name}'s gradient", got, want, relative, allowed * largest, unknown)
            worst = max(worst, error / max(largest, 1e-30))
        return worst


def like(case: Case, what: str, got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape, f"{case}: {what} of shape {[*got.shape]}, not {[*want.shape]}"


def pieces(t: Tensor) -> tuple[Tensor, ...]:
    """Rows of t, so few that what is computed from them stays in a cache."""
    t = torch.atleast_1d(t)
    return t.split(max(1, PIECE * len(t) // max(1, t.numel())))


def close(
    case: Case,
    what: str,
    got: Tensor,
    want: Tensor,
    relative: float,
    absolute: float = 0.0,
    unknown: Tensor | None = None,
) -> float:
    """The largest error beyond the unknown. Raises AssertionError where it is above relative * |want| + absolute."""
    like(case, what, got, want)
    if unknown is not None:
        like(case, f"{what}'s slack", unknown, want)
    errors, times = [], []
    for some, theirs, beyond in zip_longest(pieces(got), pieces(want), () if unknown is None else pieces(unknown)):
        error = (some.double() - theirs).abs()
        if beyond is not None:
            error -= beyond
        errors.append(error.amax())
        times.append((error / (relative * theirs.abs() + (absolute + 1e-30))).amax())
    worst = torch.stack(times).amax().item()
    assert worst <= 1, f"{case}: {what} off by {worst:.3g} times the tolerance"
    return torch.stack(errors).amax().item()
