// <likelihood>_nll and elbo_<likelihood> on a GPU, for every likelihood alike.
#include "../likelihoods/registry.h"
#include "program.h"

namespace vae_fast {
namespace {

template <template <class, int> class Accumulator>
constexpr int parameters_of = Accumulator<float, 1>::kParameters;

// (parameters, x, weight?, mask?, asked) -> (nll [B], gradients)
template <template <class, int> class Accumulator, int K>
void nll(const char* name, const Device& device, Tensor (&parameters)[K], const Tensor& x,
         const std::optional<Tensor>& weight, const std::optional<Tensor>& mask, int64_t asked, Results& out) {
  Program<Accumulator, Any> program(device, name);
  program.operands.take(parameters, x.size(0), x.size(1), asked);
  program.operands.observe(x, mask);
  program.objective.weight = column_vector(weight, "weight", x.size(0));
  program.run();
  out.push(program.value());
  out.push(program.operands.gradients);
}

template <template <class, int> class Accumulator, template <class, int> class Shared>
void nll(const char* name, StableIValue* stack) {
  constexpr int K = parameters_of<Accumulator>;
  if (left_to_reference(name, stack, 0, K)) return;
  Arguments in(stack);
  Tensor parameters[K];
  for (Tensor& t : parameters) t = in.tensor();
  const Tensor x = in.tensor();
  const auto weight = in.optional_tensor(), mask = in.optional_tensor();
  const int64_t asked = in.integer();
  const Device device(in.place());
  STD_TORCH_CHECK(x.dim() == 2, "x must have shape [B, D]");
  Results out(stack);
  if (shared_by_row(parameters[K - 1], x)) nll<Shared>(name, device, parameters, x, weight, mask, asked, out);
  else nll<Accumulator>(name, device, parameters, x, weight, mask, asked, out);
}

struct ElboArguments {
  Tensor x, mu, logvar;
  std::optional<Tensor> prior_mu, prior_logvar, weight, mask, beta_factor;
  double beta, scale;
  bool reduce;
  int64_t asked;

  explicit ElboArguments(Arguments& in)
      : x(in.tensor()),
        mu(in.tensor()),
        logvar(in.tensor()),
        prior_mu(in.optional_tensor()),
        prior_logvar(in.optional_tensor()),
        weight(in.optional_tensor()),
        mask(in.optional_tensor()),
        beta_factor(in.optional_tensor()),
        beta(in.number()),
        scale(in.number()),
        reduce(in.flag()),
        asked(in.integer()) {
    check_posterior(mu, logvar);
    STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == mu.size(0), "x must have shape [B, D], and mu [B, Z]");
    STD_TORCH_CHECK(prior_mu.has_value() == prior_logvar.has_value(), "prior_mu and prior_logvar go together");
  }
};

template <template <class, int> class Accumulator, int K>
void elbo(const char* name, const Device& device, Tensor (&parameters)[K], const ElboArguments& in, Results& out) {
  const int64_t rows = in.x.size(0), columns = in.mu.size(1);
  Program<GaussianKl, None> given(device, name);
  Program<Accumulator, Any> program(device, name);
  program.operands.take(parameters, rows, in.x.size(1), in.asked);
  program.operands.observe(in.x, in.mask);
  Objective& o = program.objective;
  o.weight = column_vector(in.weight, "weight", rows);
  if (in.beta_factor) o.beta_factor = scalar(*in.beta_factor, "beta_factor");
  o.beta = static_cast<float>(in.beta), o.scale = static_cast<float>(in.scale), o.reduce = in.reduce;
  if (in.prior_mu) {  // whose gradients may be sums: a launch of its own, before
    given.operands.take({in.mu, in.logvar, *in.prior_mu, *in.prior_logvar}, rows, columns, in.asked >> K);
    given.objective = o;
    given.run();
    program.kl = given.value();
  } else {
    program.standard.emplace().take({in.mu, in.logvar}, rows, columns, in.asked >> K);
  }
  program.run(true);
  Tensor absent[2];  // gradients
  for (Tensor& t : absent) t = empty({0}, in.mu.scalar_type(), device.place());

  out.push(program.loss());
  out.push(program.value());
  out.push(*program.kl);
  out.push(program.operands.gradients);
  if (in.prior_mu) return out.push(given.operands.gradients);
  out.push(program.standard->gradients);
  out.push(absent);
}

// (parameters, x, mu, logvar, prior_mu?, prior_logvar?, weight?, mask?, beta_factor?, beta, scale, reduce, asked)
//   -> (loss, nll [B], kl [B], gradients of parameters, mu, logvar, prior_mu, prior_logvar)
template <template <class, int> class Accumulator, template <class, int> class Shared>
void elbo(const char* name, StableIValue* stack) {
  constexpr int K = parameters_of<Accumulator>;
  if (left_to_reference(name, stack, 0, K) || left_to_reference(name, stack, K + 1, 2, 2)) return;
  Arguments in(stack);
  Tensor parameters[K];
  for (Tensor& t : parameters) t = in.tensor();
  const ElboArguments rest(in);
  const Device device(in.place());
  Results out(stack);
  if (shared_by_row(parameters[K - 1], rest.x)) elbo<Shared>(name, device, parameters, rest, out);
  else elbo<Accumulator>(name, device, parameters, rest, out);
}

#define VAE_FAST_DEFINE(name, accumulator, shared)                                                            \
  void name##_nll(StableIValue* stack, uint64_t, uint64_t) { nll<accumulator, shared>(#name "_nll", stack); } \
  void elbo_##name(StableIValue* stack, uint64_t, uint64_t) { elbo<accumulator, shared>("elbo_" #name, stack); }
VAE_FAST_LIKELIHOODS(VAE_FAST_DEFINE)
#undef VAE_FAST_DEFINE

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vae_fast, CUDA, m) {
#define VAE_FAST_REGISTER(name, accumulator, shared) \
  m.impl(#name "_nll", &name##_nll);                 \
  m.impl("elbo_" #name, &elbo_##name);
  VAE_FAST_LIKELIHOODS(VAE_FAST_REGISTER)
#undef VAE_FAST_REGISTER
}

}  // namespace vae_fast
