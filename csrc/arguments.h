// Reading an operator's arguments from the dispatcher's stack, checking them, and handing over its results.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>

#include "cube.h"

namespace vae_fast {

using torch::stable::Tensor;

struct Place {
  int32_t type = -1, index = 0;  // of a device; -1 is none

  Place() = default;
  explicit Place(int32_t type) : type(type) {}
  explicit Place(const Tensor& t) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &index));
  }
  bool operator==(const Place& other) const { return type == other.type && index == other.index; }
};

// The arguments in their order. All are read before anything is checked, or those that were left would never be freed.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : next_(stack) {}

  Tensor tensor() {
    auto t = torch::stable::detail::to<Tensor>(*next_++);
    meet(t);
    return t;
  }
  std::optional<Tensor> optional_tensor() {
    auto t = torch::stable::detail::to<std::optional<Tensor>>(*next_++);
    if (t) meet(*t);
    return t;
  }
  double number() { return torch::stable::detail::to<double>(*next_++); }
  int64_t integer() { return torch::stable::detail::to<int64_t>(*next_++); }
  bool flag() { return torch::stable::detail::to<bool>(*next_++); }

  // Where all the tensors are, which must be one device
  const Place& place() const {
    STD_TORCH_CHECK(!mixed_, "all tensors must be on one device");
    return place_;
  }

 private:
  void meet(const Tensor& t) {
    const Place place(t);
    mixed_ = mixed_ || !(place_.type == -1 || place_ == place);
    place_ = place;
  }

  StableIValue* next_;
  Place place_;
  bool mixed_ = false;
};

class Results {
 public:
  explicit Results(StableIValue* stack) : next_(stack) {}
  void push(const Tensor& t) { *next_++ = torch::stable::detail::from(t); }
  template <int K>
  void push(const Tensor (&tensors)[K]) {
    for (const Tensor& t : tensors) push(t);
  }

 private:
  StableIValue* next_;
};

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

// of more than a byte
inline bool is_integer(ScalarType type) {
  return type == ScalarType::Int || type == ScalarType::Long || type == ScalarType::UInt16;
}

inline bool is_read(ScalarType type) {
  return is_floating(type) || is_integer(type) || type == ScalarType::Byte || type == ScalarType::Bool;
}

// [B, D] as it lies in memory; a dimension of size 1 is repeated
inline Matrix matrix(const Tensor& t, const char* name, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(t.dim() == 2 && (t.size(0) == rows || t.size(0) == 1) && (t.size(1) == columns || t.size(1) == 1),
                  name, " must have shape [", rows, ", ", columns, "] or 1 in place of either");
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(is_read(type), name, " has a dtype that no kernel reads");
  return {static_cast<char*>(t.data_ptr()), type, t.size(0) == 1 ? 0 : t.stride(0), t.size(1) == 1 ? 0 : t.stride(1)};
}

// x, in which integers other than bytes are counts
inline Matrix observed(const Tensor& x, int64_t rows, int64_t columns, bool counts) {
  Matrix m = matrix(x, "x", rows, columns);
  STD_TORCH_CHECK(counts || !is_integer(m.type), "x must be floating point, uint8 (an intensity, x / 255) or bool");
  m.counts = counts;
  return m;
}

inline Matrix parameter(const Tensor& t, const char* name, int64_t rows, int64_t columns) {
  const Matrix m = matrix(t, name, rows, columns);
  STD_TORCH_CHECK(is_floating(m.type), name, " must be floating point");
  return m;
}

// [B], or absent
inline Matrix column_vector(const std::optional<Tensor>& t, const char* name, int64_t rows) {
  if (!t) return {};
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == rows && is_floating(t->scalar_type()), name,
                  " must be floating point of shape [", rows, "]");
  return {static_cast<char*>(t->data_ptr()), t->scalar_type(), t->stride(0), 1};
}

inline Matrix mask_of(const std::optional<Tensor>& t, int64_t rows, int64_t columns) {
  if (!t) return {};
  const Matrix m = matrix(*t, "mask", rows, columns);
  STD_TORCH_CHECK(m.type == ScalarType::Bool, "mask must be bool");
  return m;
}

// One number, in a tensor of one element
inline Matrix scalar(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.numel() == 1 && is_floating(t.scalar_type()), name, " must be one floating point number");
  return {static_cast<char*>(t.data_ptr()), t.scalar_type(), 0, 0};
}

// [B, C, N], or [B, N] as one plane, as it lies in memory
inline Cube cube(const Tensor& t) {
  Cube c;
  c.data = static_cast<char*>(t.data_ptr()), c.type = t.scalar_type();
  c.row_stride = t.stride(0), c.plane_stride = t.dim() == 3 ? t.stride(1) : 0, c.column_stride = t.stride(t.dim() - 1);
  return c;
}

// Of a joint likelihood, x's number of channels
inline int64_t channels_of(const Tensor& x) { return x.dim() == 3 ? x.size(1) : 1; }

inline void check_joint(const Tensor& parameters, const Tensor& x) {
  STD_TORCH_CHECK(parameters.dim() == 3 && is_floating(parameters.scalar_type()),
                  "parameters must be floating point of shape [B, C, N]");
  STD_TORCH_CHECK(
      (x.dim() == 2 || x.dim() == 3) && x.size(0) == parameters.size(0) && x.size(x.dim() - 1) == parameters.size(2),
      "x must have shape [B, N] or [B, channels, N] and the parameters' B and N");
  STD_TORCH_CHECK(is_read(x.scalar_type()), "x has a dtype that no kernel reads");
}

inline const int64_t* seed_of(const Tensor& t) {
  STD_TORCH_CHECK(t.numel() == 1 && t.scalar_type() == ScalarType::Long, "seed must be one int64 number");
  return static_cast<const int64_t*>(t.data_ptr());
}

// As torch's C functions have it
inline int32_t dtype_of(ScalarType type) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

using Allocator = Tensor(const int64_t* sizes, const int64_t* strides, int64_t dimensions, ScalarType type,
                         const Place& place);

inline Tensor empty_strided(const int64_t* sizes, const int64_t* strides, int64_t dimensions, ScalarType type,
                            const Place& place) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dimensions, sizes, strides, dtype_of(type), place.type, place.index, &handle));
  return Tensor(handle);
}

// Contiguous, of up to two dimensions
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type, const Place& place,
                    Allocator* allocate = empty_strided) {
  std::array<int64_t, 2> strides{1, 1};
  if (sizes.size() == 2) strides[0] = sizes.begin()[1] > 0 ? sizes.begin()[1] : 1;
  return allocate(sizes.begin(), strides.data(), static_cast<int64_t>(sizes.size()), type, place);
}

// [B, C, N] for the gradient of such a tensor: channels last where that is, else contiguous
inline Tensor empty_planes(const Tensor& like, const Place& place, Allocator* allocate = empty_strided) {
  const int64_t sizes[3] = {like.size(0), like.size(1), like.size(2)};
  const int64_t c = std::max<int64_t>(1, sizes[1]), n = std::max<int64_t>(1, sizes[2]);
  const bool last = like.stride(1) == 1;
  const int64_t strides[3] = {c * n, last ? 1 : n, last ? c : 1};
  return allocate(sizes, strides, 3, like.scalar_type(), place);
}

inline Matrix output(const Tensor& t) {
  const bool vector = t.dim() < 2;
  return {static_cast<char*>(t.data_ptr()), t.scalar_type(), vector ? 1 : t.stride(0), vector ? 0 : 1};
}

}  // namespace vae_fast
