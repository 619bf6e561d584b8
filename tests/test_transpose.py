"""Rows to planes and back, eight rows at once and sixteen: a processor that runs the kernels takes one of the two."""

import ctypes

import native
import numpy
import pytest

PROGRAM = """
#include "cpu/transpose.h"
template <int ROWS, class T>
static void there_and_back(const T* from, long n, T* planes, long stride, T* to) {
  const T* rows[ROWS];
  T* back[ROWS];
  for (int k = 0; k < ROWS; ++k) rows[k] = from + k * n, back[k] = to + k * n;
  vae_fast::to_planes(rows, n, planes, stride);
  vae_fast::from_planes(planes, stride, n, back);
}
#define BOTH(rows, T) \\
  extern "C" void T##rows(const T* from, long n, T* planes, long stride, T* to) { \\
    there_and_back<rows>(from, n, planes, stride, to); \\
  }
BOTH(8, float) BOTH(16, float) BOTH(8, double) BOTH(16, double)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return native.library(tmp_path_factory.mktemp("transpose"), PROGRAM)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 100])
@pytest.mark.parametrize("rows, stride", [(8, 8), (8, 11), (16, 16), (16, 32)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_there_and_back(library, dtype, rows, stride, n):
    """Nothing else is written."""
    given = numpy.random.default_rng(0).standard_normal((rows, n)).astype(dtype)
    planes, back = numpy.full((n, stride), numpy.nan, dtype), numpy.full((rows, n), numpy.nan, dtype)
    pointers = [native.pointer(a) for a in (given, planes, back)]
    sizes = [ctypes.c_long(n), ctypes.c_long(stride)]
    name = f"{'float' if dtype == 'float32' else 'double'}{rows}"
    getattr(library, name)(pointers[0], sizes[0], pointers[1], sizes[1], pointers[2])
    assert numpy.array_equal(planes[:, :rows], given.T) and numpy.array_equal(back, given)
    assert numpy.isnan(planes[:, rows:]).all()
