"""The operators of the latent variable: `reparameterize`, `sample_kl`, their backward, and the divergences alone.

mu, logvar, z are [B, Z]; a prior's tensors may have size 1 in place of either. The seed is a 0-dim int64 tensor on the
data's device. The noise is never stored: backward generates it again from the seed.
"""

from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.ops.library import LIBRARY, NO_NATIVE_NODES, define, recording
from vae_fast.ops.likelihoods import differentiate, empty_gradients, pair
from vae_fast.ops.onepass import (
    Function,
    bare,
    dense,
    differentiates_once,
    is_traced,
    one_pass,
    suits_native_nodes,
    wants_gradient,
)

_POSTERIOR = "Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar"
_GRADIENTS = "Tensor dmu, Tensor dlogvar, Tensor dprior_mu, Tensor dprior_logvar"


def _present(*tensors: Tensor | None) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def _sample_fake(mu: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
    return mu.new_empty(mu.shape)


def _sample_kl_fake(
    mu: Tensor, logvar: Tensor, prior_mu: Any, prior_logvar: Any, seed: Tensor
) -> tuple[Tensor, Tensor]:
    kl_dtype = reference.sum_dtype(*_present(mu, logvar, prior_mu, prior_logvar))
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape[:1], dtype=kl_dtype)


def _sample_kl_kernel(
    mu: Tensor, logvar: Tensor, prior_mu: Any, prior_logvar: Any, seed: Tensor
) -> tuple[Tensor, Tensor]:
    return reference.sample_kl(mu, logvar, seed, pair(prior_mu, prior_logvar))


def _backward_fake(dz: Any, dkl: Any, *args: Any) -> tuple[Tensor, ...]:
    *posterior, _, asked = args
    return tuple(empty_gradients(tuple(posterior), asked | 3 if dkl is not None else 3, posterior[0]))


def _backward_kernel(dz: Any, dkl: Any, *args: Any) -> tuple[Tensor, ...]:
    *posterior, seed, asked = args

    def value(mu: Tensor, logvar: Tensor, *prior: Any) -> tuple[Tensor, None]:
        z, kl = reference.sample_kl(mu, logvar, seed, pair(*prior))
        total = kl.new_zeros(()) * mu.sum()
        if dz is not None:
            total = total + (z * dz).sum()
        return (total if dkl is None else total + (kl * dkl).sum()), None

    return tuple(differentiate(value, tuple(posterior), asked | 3 if dkl is not None else 3, posterior[0])[1])


def _kl_fake(*args: Any) -> tuple[Tensor, ...]:
    *parameters, _, asked = args
    kl = parameters[0].new_empty(parameters[0].shape[:1], dtype=reference.sum_dtype(*_present(*parameters)))
    return (kl, *empty_gradients(tuple(parameters), asked, parameters[0]))


def _weighted_kernel(divergence: Any) -> Any:
    def kernel(*args: Any) -> tuple[Tensor, ...]:
        *parameters, weight, asked = args

        def value(*leaves: Any) -> tuple[Tensor, Tensor]:
            count = len(leaves) - 2
            selected = reference.select_rows(weight, *_present(*leaves))
            kl = reference.weighted(divergence(*selected[:count], tuple(selected[count:]) or None), weight)
            return kl, kl.detach()

        kl, gradients = differentiate(value, tuple(parameters), asked, parameters[0])
        return (kl, *gradients)

    return recording(kernel)


REPARAMETERIZE = define(
    "reparameterize(Tensor mu, Tensor logvar, Tensor seed) -> Tensor", _sample_fake, reference.reparameterize
)
SAMPLE_KL = define(f"sample_kl({_POSTERIOR}, Tensor seed) -> (Tensor z, Tensor kl)", _sample_kl_fake, _sample_kl_kernel)
SAMPLE_KL_BACKWARD = define(
    f"sample_kl_backward(Tensor? dz, Tensor? dkl, {_POSTERIOR}, Tensor seed, int asked) -> ({_GRADIENTS})",
    _backward_fake,
    recording(_backward_kernel),
)
GAUSSIAN_KL = one_pass(
    define(
        f"gaussian_kl({_POSTERIOR}, Tensor? weight, int asked) -> (Tensor kl, {_GRADIENTS})",
        _kl_fake,
        _weighted_kernel(reference.gaussian_kl),
    ),
    values=1,
    differentiable=(0, 1, 2, 3),
    rows=0,
    weight=4,
)
MONTE_CARLO_KL = one_pass(
    define(
        "monte_carlo_kl(Tensor z, Tensor mu, Tensor logvar, Tensor prior_mu, Tensor prior_logvar, "
        f"Tensor? weight, int asked) -> (Tensor kl, Tensor dz, {_GRADIENTS})",
        _kl_fake,
        _weighted_kernel(reference.monte_carlo_kl),
    ),
    values=1,
    differentiable=(0, 1, 2, 3, 4),
    rows=0,
    weight=5,
)


class SampleKl(Function):
    """(z, kl), or z without `divergence`, = SampleKl.apply(mu, logvar, prior_mu, prior_logvar, seed, divergence)."""

    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, logvar: Tensor, prior_mu: Any, prior_logvar: Any, seed: Tensor, divergence: bool
    ) -> Any:
        ctx.save_for_backward(mu, logvar, prior_mu, prior_logvar, seed)
        ctx.set_materialize_grads(False)
        return _sample(mu, logvar, prior_mu, prior_logvar, seed, divergence)

    @staticmethod
    @differentiates_once
    def backward(ctx: Any, dz: Tensor | None, dkl: Tensor | None = None) -> Any:
        if dz is None and dkl is None:
            return (None,) * 6
        dz, dkl = (t if t is None else dense(t) for t in (dz, dkl))
        mu, logvar, prior_mu, prior_logvar, *_ = ctx.needs_input_grad
        asked = mu | logvar << 1 | prior_mu << 2 | prior_logvar << 3
        with torch._C._AutoDispatchBelowAutograd():
            gradients = SAMPLE_KL_BACKWARD(dz, dkl, *ctx.saved_tensors, asked)
        computed = asked if dkl is not None else asked & 3
        return (*(g if computed >> k & 1 else None for k, g in enumerate(gradients)), None, None)


def _sample(mu: Tensor, logvar: Tensor, prior_mu: Any, prior_logvar: Any, seed: Tensor, divergence: bool) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        if divergence:
            return SAMPLE_KL(mu, logvar, prior_mu, prior_logvar, seed)
        return REPARAMETERIZE(mu, logvar, seed)


def _recorded(mu: Tensor, logvar: Tensor, prior_mu: Any, prior_logvar: Any, seed: Tensor, divergence: bool) -> Any:
    run = SampleKl.apply if wants_gradient(mu, logvar, prior_mu, prior_logvar) else _sample
    return run(mu, logvar, prior_mu, prior_logvar, seed, divergence)


def _reparameterize_autograd(mu: Tensor, logvar: Tensor, seed: Tensor) -> Any:
    return _recorded(mu, logvar, None, None, seed, divergence=False)


def _sample_kl_autograd(mu: Tensor, logvar: Tensor, prior_mu: Any, prior_logvar: Any, seed: Tensor) -> Any:
    return _recorded(mu, logvar, prior_mu, prior_logvar, seed, divergence=True)


LIBRARY.impl("reparameterize", _reparameterize_autograd, "Autograd")
LIBRARY.impl("sample_kl", _sample_kl_autograd, "Autograd")


PLAIN_REPARAMETERIZE = PLAIN_SAMPLE_KL = None
if NO_NATIVE_NODES is None:
    # (mu, logvar) -> what they are named after, with a seed of its own; None where Python has to look at them
    PLAIN_REPARAMETERIZE = bare(torch.ops.vae_fast_autograd.reparameterize.plain)
    PLAIN_SAMPLE_KL = bare(torch.ops.vae_fast_autograd.sample_kl.plain)


def draw_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    return torch.randint(2**63 - 1, (), generator=generator, device=device)


def sample(mu: Tensor, logvar: Tensor, prior: Any, seed: Tensor | None, divergence: bool) -> Any:
    """z, or (z, kl) with `divergence`; differentiable. Without a seed torch's generator draws one."""
    prior_mu, prior_logvar = prior if prior is not None else (None, None)
    if NO_NATIVE_NODES is None and not torch.compiler.is_compiling() and suits_native_nodes(mu):
        native = torch.ops.vae_fast_autograd
        if divergence:
            return native.sample_kl.default(mu, logvar, prior_mu, prior_logvar, seed)
        return native.reparameterize.default(mu, logvar, seed)
    seed = draw_seed(mu.device) if seed is None else seed
    if is_traced():
        return SAMPLE_KL(mu, logvar, prior_mu, prior_logvar, seed) if divergence else REPARAMETERIZE(mu, logvar, seed)
    return _recorded(mu, logvar, prior_mu, prior_logvar, seed, divergence)
