// The node of `sample_kl` and `reparameterize`, whose backward makes the noise again; `vae_fast/ops/latent.py` says how.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>

#include <limits>
#include <mutex>
#include <optional>
#include <tuple>

#include "node.h"

namespace vae_fast {
namespace {

using OptionalTensor = std::optional<Tensor>;

struct SampleKl : torch::autograd::Function<SampleKl> {
  // z, and kl with `divergence`
  static variable_list forward(AutogradContext* ctx, const Tensor& mu, const Tensor& logvar,
                               const OptionalTensor& prior_mu, const OptionalTensor& prior_logvar, const Tensor& seed,
                               bool divergence) {
    ctx->save_for_backward({mu, logvar, prior_mu.value_or(Tensor()), prior_logvar.value_or(Tensor()), seed});
    ctx->set_materialize_grads(false);
    return sample(mu, logvar, prior_mu, prior_logvar, seed, divergence);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& incoming) {
    check_differentiates_once();
    static const OperatorHandle op = find("sample_kl_backward");
    const variable_list saved = ctx->get_saved_variables();
    const bool of_kl = incoming.size() > 1 && incoming[1].defined();
    variable_list result(6);
    if (!incoming[0].defined() && !of_kl) return result;
    int64_t asked = 0, edge = 0;
    for (int k = 0; k < 4; ++k)
      if (saved[k].defined() && ctx->needs_input_grad(edge++)) asked |= 1 << k;
    Stack arguments{or_none(dense(incoming[0])), of_kl ? IValue(dense(incoming[1])) : IValue()};
    for (const Tensor& t : saved) arguments.push_back(or_none(t));
    arguments.emplace_back(asked);
    const Stack gradients = call(op, std::move(arguments));
    for (int k = 0; k < (of_kl ? 4 : 2); ++k)
      if (asked >> k & 1) result[k] = gradients[k].toTensor();
    return result;
  }

  static variable_list sample(const Tensor& mu, const Tensor& logvar, const OptionalTensor& prior_mu,
                              const OptionalTensor& prior_logvar, const Tensor& seed, bool divergence) {
    static const OperatorHandle both = find("sample_kl"), alone = find("reparameterize");
    if (!divergence) return {call(alone, {mu, logvar, seed})[0].toTensor()};
    const Stack results = call(both, {mu, logvar, prior_mu, prior_logvar, seed});
    return {results[0].toTensor(), results[1].toTensor()};
  }

 private:
  static IValue or_none(const Tensor& t) { return t.defined() ? IValue(t) : IValue(); }
};

// As torch.randint(2^63 - 1, ()) draws it, whose way through the dispatcher takes longer than a small sample
Tensor draw_seed() {
  constexpr int64_t kSeeds = std::numeric_limits<int64_t>::max();
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const Tensor seed = at::detail::empty_cpu({}, at::kLong);
  const std::lock_guard lock(generator.mutex());
  *seed.mutable_data_ptr<int64_t>() = generator.get<at::CPUGeneratorImpl>()->random64() % kSeeds;
  return seed;
}

variable_list recorded(const Tensor& mu, const Tensor& logvar, const OptionalTensor& prior_mu,
                       const OptionalTensor& prior_logvar, const OptionalTensor& given_seed, bool divergence) {
  const Tensor seed = given_seed ? *given_seed : draw_seed();
  const auto wants = [](const OptionalTensor& t) { return t && t->requires_grad(); };
  const bool records = wants(mu) || wants(logvar) || wants(prior_mu) || wants(prior_logvar);
  if (at::GradMode::is_enabled() && records)
    return SampleKl::apply(mu, logvar, prior_mu, prior_logvar, seed, divergence);
  return SampleKl::sample(mu, logvar, prior_mu, prior_logvar, seed, divergence);
}

Tensor reparameterize(const Tensor& mu, const Tensor& logvar, const OptionalTensor& seed) {
  return recorded(mu, logvar, {}, {}, seed, false)[0];
}

std::tuple<Tensor, Tensor> sample_kl(const Tensor& mu, const Tensor& logvar, const OptionalTensor& prior_mu,
                                     const OptionalTensor& prior_logvar, const OptionalTensor& seed) {
  const variable_list results = recorded(mu, logvar, prior_mu, prior_logvar, seed, true);
  return {results[0], results[1]};
}

bool are_plain(const Tensor& mu, const Tensor& logvar) {
  const bool known = has_rows(mu) && has_rows(logvar) && is_floating(mu) && is_floating(logvar);
  return known && mu.dim() == 2 && mu.sizes() == logvar.sizes();
}

OptionalTensor plain_reparameterize(const Tensor& mu, const Tensor& logvar) {
  if (!are_plain(mu, logvar)) return {};
  return reparameterize(mu, logvar, {});
}

std::tuple<OptionalTensor, OptionalTensor> plain_sample_kl(const Tensor& mu, const Tensor& logvar) {
  if (!are_plain(mu, logvar)) return {};
  return sample_kl(mu, logvar, {}, {}, {});
}

// `plain`: with a seed of its own, from N(0, I); nothing where Python has to look at the operands
TORCH_LIBRARY_FRAGMENT(vae_fast_autograd, m) {
  m.def("reparameterize(Tensor mu, Tensor logvar, Tensor? seed) -> Tensor", &reparameterize);
  m.def("reparameterize.plain(Tensor mu, Tensor logvar) -> Tensor?", &plain_reparameterize);
  m.def("sample_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor? seed) -> (Tensor, Tensor)",
        &sample_kl);
  m.def("sample_kl.plain(Tensor mu, Tensor logvar) -> (Tensor?, Tensor?)", &plain_sample_kl);
}

}  // namespace
}  // namespace vae_fast
