// An operator around the loop over rows: tensors in, the values [B] and the gradients that are asked for out.
#pragma once

#include <utility>

#include "arguments.h"

namespace vae_fast {

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
    if (!mask) return;
    rows.mask = matrix(*mask, "mask", rows.rows, rows.columns);
    STD_TORCH_CHECK(rows.mask.type == ScalarType::Bool, "mask must be bool");
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

}  // namespace vae_fast
