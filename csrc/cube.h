// A [B, C, N] operand of any dtype and any strides, as it lies in memory.
#pragma once

#include "matrix.h"

namespace vae_fast {

// [B, C, N] as it lies in memory
struct Cube {
  char* data = nullptr;  // null: absent
  ScalarType type = ScalarType::Float;
  int64_t row_stride = 0, plane_stride = 0, column_stride = 0;
  bool counts = false;

  // The planes of a row as [C, N], and its observations as [N, C]
  Matrix planes_of(int64_t row) const { return {at(row), type, plane_stride, column_stride, counts}; }
  Matrix observations_of(int64_t row) const { return {at(row), type, column_stride, plane_stride, counts}; }
  bool by_observation() const { return plane_stride == 1; }

 private:
  char* at(int64_t row) const { return data + row * row_stride * size_of(type); }
};

}  // namespace vae_fast
