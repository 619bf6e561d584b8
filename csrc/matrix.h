// A [rows, columns] operand of any dtype and any strides, as it lies in memory.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

namespace vae_fast {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

constexpr int64_t size_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long: return 8;
    case ScalarType::Float:
    case ScalarType::Int: return 4;
    case ScalarType::Byte:
    case ScalarType::Bool: return 1;
    default: return 2;
  }
}

struct Matrix {
  char* data = nullptr;  // null: the operand is absent
  ScalarType type = ScalarType::Float;
  int64_t row_stride = 0, column_stride = 0;  // in elements; 0 repeats
  bool counts = false;                        // bytes are the numbers they are; else they are x / 255

  template <class S>
#if defined(__CUDACC__)
  __host__ __device__
#endif
      S* at(int64_t row, int64_t column) const {
    return reinterpret_cast<S*>(data) + row * row_stride + column * column_stride;
  }
};

}  // namespace vae_fast
