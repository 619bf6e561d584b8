// Reading an operator's arguments from the dispatcher's stack, checking them, and allocating its results.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>

#include "rows.h"

namespace vae_fast {

using torch::stable::Tensor;

class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : next_(stack) {}

  Tensor tensor() { return torch::stable::detail::to<Tensor>(*next_++); }
  std::optional<Tensor> optional_tensor() { return torch::stable::detail::to<std::optional<Tensor>>(*next_++); }
  double number() { return torch::stable::detail::to<double>(*next_++); }
  int64_t integer() { return torch::stable::detail::to<int64_t>(*next_++); }
  bool flag() { return torch::stable::detail::to<bool>(*next_++); }

 private:
  StableIValue* next_;
};

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

// [B, D] as it lies in memory; a dimension of size 1 is repeated
inline Matrix matrix(const Tensor& t, const char* name, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(t.dim() == 2 && (t.size(0) == rows || t.size(0) == 1) && (t.size(1) == columns || t.size(1) == 1),
                  name, " must have shape [", rows, ", ", columns, "] or 1 in place of either");
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(is_floating(type) || type == ScalarType::Byte || type == ScalarType::Bool, name,
                  " must be floating point, uint8 or bool");
  return {static_cast<char*>(t.data_ptr()), type, t.size(0) == 1 ? 0 : t.stride(0), t.size(1) == 1 ? 0 : t.stride(1)};
}

inline Matrix parameter(const Tensor& t, const char* name, int64_t rows, int64_t columns) {
  const Matrix m = matrix(t, name, rows, columns);
  STD_TORCH_CHECK(is_floating(m.type), name, " must be floating point");
  return m;
}

// [B], or absent
inline Matrix column_vector(const std::optional<Tensor>& t, const char* name, int64_t rows) {
  if (!t) return {};
  STD_TORCH_CHECK(t->is_cpu() && t->dim() == 1 && t->size(0) == rows && is_floating(t->scalar_type()), name,
                  " must be a floating point CPU tensor of shape [", rows, "]");
  return {static_cast<char*>(t->data_ptr()), t->scalar_type(), t->stride(0), 1};
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  std::array<int64_t, 2> strides{1, 1};
  if (sizes.size() == 2) strides[0] = sizes.begin()[1] > 0 ? sizes.begin()[1] : 1;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides.data(),
                                                  torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Matrix output(const Tensor& t) {
  const bool vector = t.dim() < 2;
  return {static_cast<char*>(t.data_ptr()), t.scalar_type(), vector ? 1 : t.stride(0), vector ? 0 : 1};
}

// [n], float32 or float64, of value(0), value(1), ...
template <class F>
Tensor vector(int64_t n, ScalarType type, const F& value) {
  const Tensor out = empty({n}, type);
  if (type == ScalarType::Double)
    std::generate_n(static_cast<double*>(out.data_ptr()), n, [&, i = int64_t{0}]() mutable { return value(i++); });
  else
    std::generate_n(static_cast<float*>(out.data_ptr()), n,
                    [&, i = int64_t{0}]() mutable { return static_cast<float>(value(i++)); });
  return out;
}

// float64 where any parameter is, else float32
template <int K>
ScalarType accumulate_type(const Matrix (&parameters)[K]) {
  for (const Matrix& m : parameters)
    if (m.type == ScalarType::Double) return ScalarType::Double;
  return ScalarType::Float;
}

// The gradient of a parameter of size [1 or B, 1 or D]: allocated if asked for, else an empty tensor
inline Tensor gradient(const Tensor& like, bool asked, int64_t rows, int64_t columns, Gradient& g) {
  if (!asked) return empty({0}, like.scalar_type());
  Tensor t = empty({like.size(0), like.size(1)}, like.scalar_type());
  g.over_rows = like.size(0) != rows;
  g.over_columns = like.size(1) != columns;
  g.to = output(t);
  return t;
}

}  // namespace vae_fast
