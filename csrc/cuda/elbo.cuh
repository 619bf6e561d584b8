// <likelihood>_nll and elbo_<likelihood> on a GPU, for every likelihood alike.
#pragma once

#include "program.h"

namespace vae_fast {

template <template <class, int> class Accumulator>
constexpr int parameters_of = Accumulator<float, 1>::kParameters;

// A likelihood's parameters, x and options, as they come on the stack
template <template <class, int> class Accumulator>
struct Observations {
  using A = Accumulator<float, 1>;
  static constexpr int K = A::kParameters;
  static_assert(A::kOptions <= kMostOptions, "kMostOptions is too small");

  Tensor parameters[K], x;
  std::vector<float> options;

  explicit Observations(Arguments& in) {
    for (Tensor& t : parameters) t = in.tensor();
    x = in.tensor();
    for (int k = 0; k < A::kOptions; ++k) options.push_back(static_cast<float>(in.number()));
  }
  void check() const {
    STD_TORCH_CHECK(x.dim() == 2, "x must have shape [B, D]");
    STD_TORCH_CHECK(!(shares_last<A, float>) || (parameters[K - 1].dim() == 2 && parameters[K - 1].size(1) == 1),
                    "the last parameter must be one number a row");
  }
};

// (parameters, x, options, weight?, mask?, asked) -> (nll [B], gradients)
template <template <class, int> class Accumulator, class Seen>
void nll(const char* name, const Device& device, const Seen& seen, const std::optional<Tensor>& weight,
         const std::optional<Tensor>& mask, int64_t asked, Results& out) {
  const int64_t rows = seen.x.size(0);
  Program<Accumulator, Any> program(device, name);
  program.operands.take(seen.parameters, rows, seen.x.size(1), asked);
  program.operands.observe(seen.x, program.kCounts, seen.options, mask);
  program.objective.weight = column_vector(weight, "weight", rows);
  program.run();
  out.push(program.value());
  out.push(program.operands.gradients);
}

template <template <class, int> class Accumulator, template <class, int> class Shared>
void nll(const char* name, StableIValue* stack) {
  if (left_to_reference(name, stack, 0, parameters_of<Accumulator>)) return;
  Arguments in(stack);
  const Observations<Accumulator> seen(in);
  const auto weight = in.optional_tensor(), mask = in.optional_tensor();
  const int64_t asked = in.integer();
  const Device device(in.place());
  seen.check();
  Results out(stack);
  if (shared_by_row(seen.parameters[seen.K - 1], seen.x)) nll<Shared>(name, device, seen, weight, mask, asked, out);
  else nll<Accumulator>(name, device, seen, weight, mask, asked, out);
}

struct ElboArguments {
  Tensor mu, logvar;
  std::optional<Tensor> prior_mu, prior_logvar, weight, mask, beta_factor;
  double beta, scale;
  bool reduce;
  int64_t asked;

  explicit ElboArguments(Arguments& in)
      : mu(in.tensor()),
        logvar(in.tensor()),
        prior_mu(in.optional_tensor()),
        prior_logvar(in.optional_tensor()),
        weight(in.optional_tensor()),
        mask(in.optional_tensor()),
        beta_factor(in.optional_tensor()),
        beta(in.number()),
        scale(in.number()),
        reduce(in.flag()),
        asked(in.integer()) {}

  void check(const Tensor& x) const {
    STD_TORCH_CHECK(x.dim() == 2, "x must have shape [B, D]");
    check_latent(x.size(0));
  }
  void check_latent(int64_t rows) const {
    check_posterior(mu, logvar);
    STD_TORCH_CHECK(mu.size(0) == rows, "mu must have shape [B, Z] and x's B");
    STD_TORCH_CHECK(prior_mu.has_value() == prior_logvar.has_value(), "prior_mu and prior_logvar go together");
  }
  void set(Objective& o, int64_t rows) const {
    o.weight = column_vector(weight, "weight", rows);
    if (beta_factor) o.beta_factor = scalar(*beta_factor, "beta_factor");
    o.beta = static_cast<float>(beta), o.scale = static_cast<float>(scale), o.reduce = reduce;
  }
};

template <template <class, int> class Accumulator, class Seen>
void elbo(const char* name, const Device& device, const Seen& seen, const ElboArguments& in, Results& out) {
  const int64_t rows = seen.x.size(0), of_latent = in.asked >> Seen::K;
  Program<Accumulator, Any> program(device, name);
  program.operands.take(seen.parameters, rows, seen.x.size(1), in.asked);
  program.operands.observe(seen.x, program.kCounts, seen.options, in.mask);
  Objective& o = program.objective;
  in.set(o, rows);
  std::optional<GivenKl> given;
  if (in.prior_mu) {  // a launch of its own, before
    given = given_kl(name, device, {in.mu, in.logvar, *in.prior_mu, *in.prior_logvar}, o, of_latent);
    program.kl = given->kl;
  } else {
    program.standard.emplace().take({in.mu, in.logvar}, rows, in.mu.size(1), of_latent);
  }
  program.run(true);
  Tensor absent[2];  // gradients
  for (Tensor& t : absent) t = empty({0}, in.mu.scalar_type(), device.place());

  out.push(program.loss());
  out.push(program.value());
  out.push(*program.kl);
  out.push(program.operands.gradients);
  if (given) return out.push(given->gradients);
  out.push(program.standard->gradients);
  out.push(absent);
}

// (parameters, x, options, mu, logvar, prior_mu?, prior_logvar?, weight?, mask?, beta_factor?, beta, scale, reduce,
//  asked) -> (loss, nll [B], kl [B], gradients of parameters, mu, logvar, prior_mu, prior_logvar)
template <template <class, int> class Accumulator, template <class, int> class Shared>
void elbo(const char* name, StableIValue* stack) {
  using Seen = Observations<Accumulator>;
  constexpr int kFirst = Seen::K + 1 + Seen::A::kOptions;  // of the latent's arguments
  if (left_to_reference(name, stack, 0, Seen::K) || left_to_reference(name, stack, kFirst, 2, 2)) return;
  Arguments in(stack);
  const Seen seen(in);
  const ElboArguments rest(in);
  const Device device(in.place());
  seen.check();
  rest.check(seen.x);
  Results out(stack);
  if (shared_by_row(seen.parameters[Seen::K - 1], seen.x)) elbo<Shared>(name, device, seen, rest, out);
  else elbo<Accumulator>(name, device, seen, rest, out);
}

// The operators' name, the likelihood's accumulator, and the one for a last parameter that is one number a row
#define VAE_FAST_LIKELIHOOD(name, accumulator, shared)                                                               \
  static void name##_nll(StableIValue* stack, uint64_t, uint64_t) { nll<accumulator, shared>(#name "_nll", stack); } \
  static void elbo_##name(StableIValue* stack, uint64_t, uint64_t) {                                                 \
    elbo<accumulator, shared>("elbo_" #name, stack);                                                                 \
  }                                                                                                                  \
  STABLE_TORCH_LIBRARY_IMPL(vae_fast, CUDA, m) {                                                                     \
    m.impl(#name "_nll", &name##_nll);                                                                               \
    m.impl("elbo_" #name, &elbo_##name);                                                                             \
  }

}  // namespace vae_fast
