"""Joint likelihoods' operators on operands of given shape, layout and dtype, for both backends; see cases.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_fast.likelihoods import LIKELIHOODS

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SCALE = 0.75


@dataclass
class JointCase:
    """arguments of <name>_nll or elbo_<name>, without `asked`; error: of gradients, beside 1."""

    operator: str
    arguments: list[Any]
    error: float

    @property
    def parameters(self) -> Tensor:
        return self.arguments[0]

    def run(self, operators: Any, asked: int = 2**20 - 1) -> list[Tensor]:
        asked &= 1 if self.operator.endswith("_nll") else 2**5 - 1
        if not self.operator.endswith("_nll") and self.arguments[-9] is None:
            asked &= 2**3 - 1
        return [t for t in getattr(operators, self.operator)(*self.arguments, asked) if t.numel()]

    def check(self, operators: Any) -> list[Tensor]:
        """Values within 1e-6 of their terms; gradients as rounded; both laid out as the reference's."""
        got = self.run(operators)
        wide = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in self.arguments]
        exact = JointCase(self.operator, wide, 0).run(torch.ops.vae_fast_reference)
        assert [(g.shape, g.dim() < 3 or g.stride()) for g in got] == [
            (e.shape, e.dim() < 3 or e.stride()) for e in exact
        ]
        terms = self.parameters.shape[2] * (1 if exact[0].dim() else self.parameters.shape[0])
        for g, e in zip(got, exact, strict=True):
            assert torch.equal(g.isnan(), e.isnan())
            rounding = torch.finfo(g.dtype).eps / 2 * 1.01 if g.dtype.itemsize == 2 else 0
            allowed = 1e-6 * (terms + e.abs()) if e.dim() < 2 else self.error * (1 + e.abs())
            if e.dim() == 2:  # of the latent: differences, and sums of them
                allowed = 1e-6 * e.abs().amax().clamp(min=1).expand_as(e)
            over = (g.double() - e).abs() - allowed - rounding * e.abs()
            assert (over.nan_to_num() <= 0).all(), f"{g.dtype} {list(g.shape)}: {over.max():.3g} more than allowed"
        return got


def lying(t: Tensor, channels_last: bool) -> Tensor:
    return t.transpose(1, 2).contiguous().transpose(1, 2) if channels_last else t


def categorical(b: int, n: int, dtype: torch.dtype, channels_last: bool = False, classes: int = 7) -> JointCase:
    logits = lying(2 * torch.randn(b, classes, n), channels_last).to(dtype)
    return JointCase("categorical_nll", [logits, torch.randint(classes, (b, n)), None, None], 1e-6)


def mixture(
    b: int, n: int, dtype: torch.dtype, channels_last: bool = False, channels: int = 3, components: int = 10
) -> JointCase:
    """x in bytes; log-scales from -4 to 0."""
    planes = torch.randn(b, components * (10 if channels == 3 else 3), n)
    each = planes[:, components:].unflatten(1, (channels, -1, components))
    each[:, :, 0] = 2.2 * torch.rand_like(each[:, :, 0]) - 1.1
    each[:, :, 1] = -4 * torch.rand_like(each[:, :, 1])
    x = torch.randint(256, (b, channels, n), dtype=torch.uint8)
    x[..., ::5] = 255 * (x[..., ::5] > 127)
    options = LIKELIHOODS["discretized_logistic_mixture"].numbers({"channels": channels, "x_low": 0.0, "x_high": 255.0})
    arguments = [lying(planes, channels_last).to(dtype), lying(x, channels_last), *options, None, None]
    return JointCase("discretized_logistic_mixture_nll", arguments, 5e-5)


def selected(case: JointCase) -> JointCase:
    """With weights, 0 among them, and a mask, under which lie NaN and classes that aren't there."""
    parameters, x, *options, _, _ = case.arguments
    rows, _, width = parameters.shape
    weight, mask = torch.arange(rows) * 0.5, torch.rand(rows, width) > 0.4
    used = mask & (weight != 0).unsqueeze(1)
    spoilt = lying(torch.where(used.unsqueeze(1), parameters, torch.nan), parameters.stride(1) == 1)
    hidden = torch.where(used, x, -1) if x.dim() == 2 else x
    return JointCase(case.operator, [spoilt, hidden, *options, weight, mask], case.error)


def elbo(case: JointCase, *, prior: bool = False, reduce: bool = True, factor: float | None = None) -> JointCase:
    parameters, x, *options, weight, mask = case.arguments
    rows = parameters.shape[0]
    latent = [torch.randn(rows, 5).to(parameters.dtype) for _ in range(2)]
    given = [torch.randn(1, 5), torch.randn(rows, 5)] if prior else [None, None]
    beta_factor = None if factor is None else torch.tensor(factor)
    operator = f"elbo_{case.operator.removesuffix('_nll')}"
    rest = [*latent, *given, weight, mask, beta_factor, 0.5, SCALE, reduce]
    return JointCase(operator, [parameters, x, *options, *rest], case.error)


# Fewer and more observations than tiles hold, one a row; few components and many
CASES: dict[str, Callable[[torch.dtype, bool], JointCase]] = {
    "categorical": lambda dtype, last: categorical(2, 70, dtype, last),
    "categorical, more classes": lambda dtype, last: categorical(3, 40, dtype, last, 33),
    "categorical, many classes": lambda dtype, last: categorical(2, 9, dtype, last, 300),
    "categorical, one a row": lambda dtype, last: categorical(5, 1, dtype, last, 1000),
    "categorical, few, one a row": lambda dtype, last: categorical(300, 1, dtype, last, 10),
    "categorical, one class": lambda dtype, last: categorical(2, 3, dtype, last, 1),
    "mixture": lambda dtype, last: mixture(2, 70, dtype, last),
    "mixture of greys": lambda dtype, last: mixture(2, 70, dtype, last, 1, 5),
    "mixture of one": lambda dtype, last: mixture(2, 33, dtype, last, 3, 1),
    "mixture, one pixel a row": lambda dtype, last: mixture(70, 1, dtype, last, 3, 2),
    "mixture of many": lambda dtype, last: mixture(1, 20, dtype, last, 3, 40),
}
