"""README's Python runs as it stands, and its drop-in replacement gives the loss that it replaces."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vae_fast

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
B, D, Z = 6, 8, 3


def test_code():
    before, after, options, likelihoods, model = re.findall(r"```python\n(.+?)```", TEXT, flags=re.DOTALL)
    space = {"torch": torch, "F": F, "vae_fast": vae_fast, "x": torch.rand(B, D), "w": torch.rand(B)}
    space |= {name: torch.randn(B, D) for name in ("recon", "mean", "log_sigma2")}
    space |= {name: torch.randn(B, Z) for name in ("mu", "logvar", "prior_mu", "prior_logvar")}
    space |= {"m": torch.rand(B, D) > 0.5, "encoder": nn.Linear(D, 2 * Z), "decoder": nn.Linear(Z, D)}
    operands = [space[name] for name in ("recon", "x", "mu", "logvar")]
    exec(before, space)
    usual = space["loss_function"](*operands)
    exec(after, space)
    assert space["loss_function"](*operands).item() == pytest.approx(usual.item(), rel=1e-6)
    exec(options, space)
    assert space["nll"].shape == space["kl"].shape == (B,)
    exec(likelihoods, {**space, **_counts_and_pixels()})
    exec(model, space)
    assert space["encoder"].weight.grad.isfinite().all()


def _counts_and_pixels():
    cells = torch.randint(0, 9, (B, D)).to(torch.uint16)
    tensors = {"cells": cells, "library": cells.sum(1, keepdim=True, dtype=torch.float32)}
    tensors |= {
        "log_share": torch.randn(B, D).log_softmax(1),
        "log_theta": torch.randn(D),
        "dropout": torch.randn(B, D),
    }
    return tensors | {"parameters": torch.randn(B, 100, 4, 5), "images": torch.randint(0, 256, (B, 3, 4, 5)).byte()}


def test_links():
    for target in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", TEXT):
        assert (Path(__file__).parents[1] / (target[0] or target[1])).exists()
