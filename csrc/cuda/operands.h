// The operands of one accumulator as tensors: how they lie, and where their gradients go.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <string>
#include <vector>

#include "fold.cuh"
#include "rows.cuh"

namespace vae_fast {

// float64 is left to the reference, which gets the arguments as they are on the stack
inline bool is_double(StableIValue argument, bool optional) {
  if (optional) {
    const auto* present = torch::stable::detail::to<StableIValue*>(argument);
    if (present == nullptr) return false;
    argument = *present;
  }
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(torch::stable::detail::to<AtenTensorHandle>(argument), &dtype));
  return dtype == aoti_torch_dtype_float64();
}

inline void call_reference(const char* name, StableIValue* stack) {
  const std::string reference = std::string("vae_fast_reference::") + name;
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(reference.c_str(), "", stack, TORCH_ABI_VERSION));
}

// True if the reference took the call to operator `name`, since one of its arguments from `first` on, `required` and
// then `optional` of them, is float64
inline bool left_to_reference(const char* name, StableIValue* stack, int first, int required, int optional = 0) {
  bool doubles = false;
  for (int k = first; k < first + required + optional; ++k)
    doubles = doubles || is_double(stack[k], k >= first + required);
  if (!doubles) return false;
  call_reference(name, stack);
  return true;
}

inline void check_posterior(const Tensor& mu, const Tensor& logvar) {
  STD_TORCH_CHECK(mu.dim() == 2, "mu must have shape [B, Z]");
  STD_TORCH_CHECK(logvar.dim() == 2 && logvar.size(0) == mu.size(0) && logvar.size(1) == mu.size(1),
                  "logvar must have mu's shape");
}

// Whether a likelihood's last parameter is one number for all of a row's columns
inline bool shared_by_row(const Tensor& parameter, const Tensor& x) {
  return parameter.dim() == 2 && parameter.size(1) == 1 && x.size(1) != 1;
}

// Whether rows of m can be read `vector` elements at a time: aligned, one after the other
inline bool in_vectors(const Matrix& m, int vector) {
  const int64_t size = size_of(m.type);
  const auto address = reinterpret_cast<uintptr_t>(m.data);
  return m.column_stride == 1 && address % (vector * size) == 0 && m.row_stride % vector == 0;
}

// The operands of an accumulator as tensors
template <int K>
struct Operands {
  Tensor parameters[K];
  int64_t rows, columns, asked;
  Term<K> term;
  std::vector<Folded> sums;  // gradients that are sums
  Tensor gradients[K];

  void take(const Tensor (&tensors)[K], int64_t b, int64_t d, int64_t wanted) {
    STD_TORCH_CHECK(d < (1 << 30), "rows must have fewer than 2^30 columns, got ", d);
    rows = b, columns = d, asked = wanted, term.columns = static_cast<int>(d);
    for (int k = 0; k < K; ++k) {
      const Tensor& t = parameters[k] = tensors[k];
      term.parameters[k] = parameter(t, "each parameter", b, d);
      const bool over_columns = t.size(1) != d, over_rows = t.size(0) != b;
      term.gradients[k].kind = over_columns ? over_rows ? Gradient::kOverAll : Gradient::kOverColumns
                               : over_rows  ? Gradient::kOverRows
                                            : Gradient::kEach;
    }
  }
  void observe(const Tensor& x, bool counts, const std::vector<float>& options, const std::optional<Tensor>& mask) {
    std::copy(options.begin(), options.end(), term.options);
    term.x = observed(x, rows, columns, counts);
    term.mask = mask_of(mask, rows, columns);
  }
  bool wants(int k) const { return asked >> k & 1; }
  // Some wanted gradient among the first n is a sum: over rows, or any
  bool wants_sum(bool over_rows, int n = K) const {
    for (int k = 0; k < n; ++k) {
      const auto kind = term.gradients[k].kind;
      if (wants(k) && (over_rows ? kind == Gradient::kOverRows : kind != Gradient::kEach)) return true;
    }
    return false;
  }
  // The wanted gradients among the first n that are sums are those of `of`, over rows
  bool wants_sums_over_rows(int of, int n) const {
    for (int k = 0; k < n; ++k)
      if (wants(k) && term.gradients[k].kind != (of >> k & 1 ? Gradient::kOverRows : Gradient::kEach)) return false;
    return true;
  }
  bool same_type(int n, ScalarType type) const {
    for (int k = 0; k < n; ++k)
      if (term.parameters[k].type != type) return false;
    return true;
  }

  void allocate(const Tiling& tiling, const Place& place) {
    for (int k = 0; k < K; ++k) {
      const Tensor& like = parameters[k];
      Gradient& g = term.gradients[k];
      if (!wants(k)) {
        gradients[k] = empty({0}, like.scalar_type(), place);
        continue;
      }
      gradients[k] = empty({like.size(0), like.size(1)}, like.scalar_type(), place);
      if (g.kind == Gradient::kEach) {
        g.data = static_cast<char*>(gradients[k].data_ptr());
        continue;
      }
      const int64_t count = g.kind == Gradient::kOverColumns ? tiling.splits
                            : g.kind == Gradient::kOverRows  ? teams_of(tiling, rows)
                                                             : tiling.splits * tiling.groups;
      sums.emplace_back(gradients[k], count, place);
      g.data = reinterpret_cast<char*>(sums.back().floats());
    }
  }
  void finish(const Device& device) {
    for (const Folded& sum : sums) sum.finish(device);
  }
};

}  // namespace vae_fast
