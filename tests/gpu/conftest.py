"""What the tests of the GPU kernels share."""

import pytest

pytest.importorskip("triton")
