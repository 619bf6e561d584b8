"""Where the results of the CPU kernels lie."""

import re
from pathlib import Path

import pytest
import torch

import vae_fast

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_kilobytes(address: int) -> int:
    """Of the mapping that an address is in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(mapping[1], 16) <= address < int(mapping[2], 16)
        elif inside and line.startswith("AnonHugePages"):
            return int(line.split()[1])
    return 0


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="the system has no huge pages")
@pytest.mark.skipif("cpp        cpu   available" not in vae_fast.report(), reason="no C++")
def test_large_gradients_come_in_huge_pages():
    rows = 16_384  # 48 MiB, which the C library maps anew each time
    logits = torch.randn(rows, 784, requires_grad=True)
    vae_fast.bernoulli_nll(logits, torch.rand(rows, 784)).sum().backward()
    middle = logits.grad.data_ptr() + logits.grad.nbytes // 2
    assert huge_kilobytes(middle) >= 8 * 1024
