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
            rounding = (torch.finfo(got.dtype).eps / 2 + VALUE_TOLERANCE) * want.abs()
            close(case, f"{name}'s output", got.double() + opponent.shift(case.shape), want, rounding)
        slack = case.slack(outputs, incoming) if case.slack else [torch.zeros_like(t) for t in truth]
        allowed = GRADIENT_TOLERANCE if name == "ours" else max(GRADIENT_TOLERANCE, case.usual_error)
        worst = 0.0
        for got, want, unknown in zip(found, opponent.arrange([*truth]), opponent.arrange(slack), strict=True):
            assert unknown.shape == want.shape, f"{case}: slack of shape {[*unknown.shape]}, not {[*want.shape]}"
            rounding = torch.finfo(got.dtype).eps / 2 * want.abs()
            close(case, f"{name}'s gradient", got, want, allowed * want.abs().amax() + rounding + unknown)
            error = ((got.double() - want).abs() - unknown).amax() / want.abs().amax()
            worst = max(worst, error.item())
        return worst


def like(case: Case, what: str, got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape, f"{case}: {what} of shape {[*got.shape]}, not {[*want.shape]}"


def close(case: Case, what: str, got: Tensor, want: Tensor, tolerance: Tensor) -> None:
    like(case, what, got, want)
    worst = ((got.double() - want).abs() / (tolerance + 1e-30)).max().item()
    assert worst <= 1, f"{case}: {what} off by {worst:.3g} times the tolerance"
