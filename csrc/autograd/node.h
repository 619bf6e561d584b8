// Autograd's nodes in C++, for plain tensors on a CPU: what `vae_fast/ops/onepass.py` and `latent.py` do for all others.
// Unlike the kernels these need torch's C++ API, which is not stable: the library serves the torch that it was built with.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <utility>

namespace vae_fast {

using at::Tensor;
using c10::IValue;
using c10::OperatorHandle;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

inline OperatorHandle find(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("vae_fast::" + name).c_str(), "");
}

// The operator's results in place of its arguments
inline Stack call(const OperatorHandle& op, Stack stack) {
  const at::AutoDispatchBelowAutograd below;
  op.callBoxed(&stack);
  return stack;
}

// On a CPU, dense, without a subclass
inline bool is_strided(const Tensor& t) {
  return t.is_cpu() && t.layout() == at::kStrided && !t.is_nested() && !t.key_set().has(c10::DispatchKey::Python);
}

// And rows [B, D] as it lies: of any strides where it is a matrix, else contiguous
inline bool has_rows(const Tensor& t) { return is_strided(t) && (t.dim() == 2 || (t.dim() > 0 && t.is_contiguous())); }

inline bool is_floating(const Tensor& t) {
  const at::ScalarType type = t.scalar_type();
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

// [B, ...] as [B, D], a view where the strides allow it
inline Tensor rows_of(const Tensor& t) {
  if (t.dim() == 2) return t;
  return t.dim() == 1 ? t.unsqueeze(1) : t.flatten(1);
}

// An incoming gradient, which may be sparse or undefined
inline Tensor dense(const Tensor& t) { return t.defined() && t.layout() != at::kStrided ? t.to_dense() : t; }

inline void check_differentiates_once() {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "vae_fast's operators differentiate once; for create_graph use `with vae_fast.backend('reference'):`");
}

}  // namespace vae_fast
