"""Autograd's nodes in Python where those in C++ would be taken."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import vae_fast
from vae_fast import functional, parts
from vae_fast.ops import latent, onepass


def are_native(t: torch.Tensor) -> bool:
    return "CppNode" in t.grad_fn.name()


@contextmanager
def in_python() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for module in (onepass, latent):
            patched.setattr(module, "suits_native_nodes", lambda t: False)
        for module in (functional, parts):
            patched.setattr(module, "is_plain_call", lambda *operands: False)
        t = torch.zeros(2, 3, requires_grad=True)
        calls = vae_fast.gaussian_kl(t, t), vae_fast.reparameterize(t, t, seed=1), vae_fast.bernoulli_nll(t, t.detach())
        assert not any(map(are_native, calls))
        yield
