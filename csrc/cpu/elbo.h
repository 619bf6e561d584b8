// <likelihood>_nll and elbo_<likelihood> on the CPU, for every likelihood alike.
#pragma once

#include "../divergences.h"
#include "operators.h"

namespace vae_fast {

template <template <class, int> class Accumulator>
constexpr int parameters_of = Accumulator<float, kLanes>::kParameters;

// A likelihood's parameters, x and options, as they come on the stack
template <template <class, int> class Accumulator, int K = parameters_of<Accumulator>>
Tensor read_observations(Arguments& in, Term<K>& term) {
  for (Tensor& t : term.parameters) t = in.tensor();
  const Tensor x = in.tensor();
  for (int k = 0; k < Accumulator<float, kLanes>::kOptions; ++k) term.rows.options.push_back(in.number());
  return x;
}

template <template <class, int> class Accumulator, int K>
void set_observations(Term<K>& term, const Tensor& x) {
  using A = Accumulator<float, kLanes>;
  STD_TORCH_CHECK(x.dim() == 2, "x must have shape [B, D]");
  term.set_size(x.size(0), x.size(1));
  term.rows.x = observed(x, x.size(0), x.size(1), A::kCounts);
  STD_TORCH_CHECK(!(shares_last<A, float>) || term.parameters[K - 1].size(1) == 1,
                  "the last parameter must be one number a row");
}

template <template <class, int> class Accumulator, template <class, int> class Shared, int K>
Work likelihood_work(Term<K>& term) {
  if (term.rows.parameters[K - 1].column_stride == 0 && term.rows.columns > 1) return term.template work<Shared>();
  return term.template work<Accumulator>();
}

// (parameters, x, options, weight?, mask?, asked) -> (nll [B], gradients)
template <template <class, int> class Accumulator, template <class, int> class Shared>
void nll(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  Term<parameters_of<Accumulator>> term;
  const Tensor x = read_observations<Accumulator>(in, term);
  const auto weight = in.optional_tensor(), mask = in.optional_tensor();
  const int64_t asked = in.integer();
  in.place();
  set_observations<Accumulator>(term, x);
  term.set_selection(weight, mask);
  term.allocate_gradients(asked);
  run_together({likelihood_work<Accumulator, Shared>(term)});
  Results out(stack);
  out.push(term.values());
  out.push(term.gradients);
}

// scale * sum or each of (nll + beta kl)
inline Tensor combine(const Tensor& nll, const Tensor& kl, double beta, double scale, bool reduce) {
  const ScalarType type = nll.scalar_type() == ScalarType::Double ? ScalarType::Double : kl.scalar_type();
  const auto of_row = [&, from = output(nll), divergence = output(kl)](int64_t row) {
    double a, b;
    const double regulariser = beta == 0 ? 0. : beta * *load(divergence, row, 0, 1, &b);
    return scale * (*load(from, row, 0, 1, &a) + regulariser);
  };
  if (!reduce) return vector(nll.size(0), type, of_row);
  double sum = 0;
  for (int64_t row = 0; row < nll.size(0); ++row) sum += of_row(row);
  const Tensor loss = empty({}, type);
  store(&sum, output(loss), 0, 0, 1);
  return loss;
}

// What the loss is made of beside the distributions: scale * sum of weight * (nll + beta * kl)
struct Objective {
  std::optional<Tensor> weight, mask, beta_factor;
  double beta, scale;
  bool reduce;
  int64_t asked;

  explicit Objective(Arguments& in)
      : weight(in.optional_tensor()),
        mask(in.optional_tensor()),
        beta_factor(in.optional_tensor()),
        beta(in.number()),
        scale(in.number()),
        reduce(in.flag()),
        asked(in.integer()) {
    in.place();
    double value;
    if (beta_factor) beta *= *load(scalar(*beta_factor, "beta_factor"), 0, 0, 1, &value);
  }
};

// The KL's term, with gradients for as many of (mu, logvar, prior_mu, prior_logvar) as there are
template <int K>
Term<K> latent_term(Tensor (&&parameters)[K], const Objective& objective, int64_t asked) {
  Term<K> term;
  std::move(parameters, parameters + K, term.parameters);
  term.set_size(term.parameters[0].size(0), term.parameters[0].size(1));
  term.set_selection(objective.weight, std::nullopt);
  term.rows.scale = objective.scale * objective.beta;
  term.allocate_gradients(asked);
  return term;
}

template <template <class, int> class Accumulator, template <class, int> class Shared, int K, int L>
void elbo(Term<K>& reconstruction, Term<L>&& latent, const Objective& objective, StableIValue* stack) {
  run_together({likelihood_work<Accumulator, Shared>(reconstruction), divergence_work(latent)});
  const Tensor nll = reconstruction.values(), kl = latent.values();
  Results out(stack);
  out.push(combine(nll, kl, objective.beta, objective.scale, objective.reduce));
  out.push(nll);
  out.push(kl);
  out.push(reconstruction.gradients);
  out.push(latent.gradients);
  for (int k = L; k < 4; ++k) out.push(empty({0}, latent.parameters[0].scalar_type()));
}

// (parameters, x, options, mu, logvar, prior_mu?, prior_logvar?, weight?, mask?, beta_factor?, beta, scale, reduce, asked)
//   -> (loss, nll [B], kl [B], gradients of parameters, mu, logvar, prior_mu, prior_logvar)
template <template <class, int> class Accumulator, template <class, int> class Shared>
void elbo(StableIValue* stack, uint64_t, uint64_t) {
  constexpr int K = parameters_of<Accumulator>;
  Arguments in(stack);
  Term<K> reconstruction;
  const Tensor x = read_observations<Accumulator>(in, reconstruction), mu = in.tensor(), logvar = in.tensor();
  const auto prior_mu = in.optional_tensor(), prior_logvar = in.optional_tensor();
  Objective objective(in);
  set_observations<Accumulator>(reconstruction, x);
  STD_TORCH_CHECK(mu.dim() == 2 && mu.size(0) == reconstruction.rows.rows, "mu must have shape [B, Z]");
  STD_TORCH_CHECK(prior_mu.has_value() == prior_logvar.has_value(), "prior_mu and prior_logvar go together");

  reconstruction.set_selection(objective.weight, objective.mask);
  reconstruction.rows.scale = objective.scale;
  reconstruction.allocate_gradients(objective.asked);
  const int64_t asked = objective.asked >> K;
  if (prior_mu)
    elbo<Accumulator, Shared>(reconstruction, latent_term<4>({mu, logvar, *prior_mu, *prior_logvar}, objective, asked),
                              objective, stack);
  else elbo<Accumulator, Shared>(reconstruction, latent_term<2>({mu, logvar}, objective, asked), objective, stack);
}

// The operators' name, the likelihood's accumulator, and the one for a last parameter that is one number a row
#define VAE_FAST_LIKELIHOOD(name, accumulator, shared) \
  STABLE_TORCH_LIBRARY_IMPL(vae_fast, CPU, m) {        \
    m.impl(#name "_nll", &nll<accumulator, shared>);   \
    m.impl("elbo_" #name, &elbo<accumulator, shared>); \
  }

}  // namespace vae_fast
