// An operator around the loop over rows: tensors in, the values [B] and the gradients that are asked for out.
#pragma once

#include <utility>

#include "memory.h"
#include "rows.h"

namespace vae_fast {

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  static const Place cpu{aoti_torch_device_type_cpu()};
  return empty(sizes, type, cpu, new_result);
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

// The operands of one accumulator, and the tensors that its results go to
template <int K>
struct Term {
  Rows<K> rows;
  Tensor parameters[K], gradients[K];

  // `asked` has a bit for each parameter
  void allocate_gradients(int64_t asked) {
    for (int k = 0; k < K; ++k)
      gradients[k] = gradient(parameters[k], asked >> k & 1, rows.rows, rows.columns, rows.gradients[k]);
  }
  void set_size(int64_t b, int64_t d) {
    rows.rows = b, rows.columns = d;
    for (int k = 0; k < K; ++k) rows.parameters[k] = parameter(parameters[k], "each parameter", b, d);
  }
  void set_selection(const std::optional<Tensor>& weight, const std::optional<Tensor>& mask) {
    rows.weight = column_vector(weight, "weight", rows.rows);
    rows.mask = mask_of(mask, rows.rows, rows.columns);
  }
  ScalarType type() const { return accumulate_type(rows.parameters); }

  template <template <class, int> class Accumulator>
  Work work() {
    return type() == ScalarType::Double ? work_on<Accumulator, double>(rows) : work_on<Accumulator, float>(rows);
  }
  // [B], weighted
  Tensor values() const {
    return vector(rows.rows, type(), [&, chunks = rows.chunks()](int64_t b) { return row_value(rows, b, chunks); });
  }
};

// The KL's, from the standard normal and from a given prior (latent.cpp)
Work divergence_work(Term<2>& term);
Work divergence_work(Term<4>& term);

}  // namespace vae_fast
