// <likelihood>_nll and elbo_<likelihood> on the CPU, for every likelihood alike.
#pragma once

#include "../divergences.h"
#include "joint.h"

namespace vae_fast {

template <template <class, int> class Accumulator>
constexpr int parameters_of = Accumulator<float, kLanes>::kParameters;

// A likelihood whose observations are the elements of [B, D]
template <template <class, int> class Accumulator, template <class, int> class Shared>
struct Elements : Term<parameters_of<Accumulator>> {
  static constexpr int kParameters = parameters_of<Accumulator>;
  using A = Accumulator<float, kLanes>;
  Tensor x;

  // Its parameters, x and options, as they come on the stack
  explicit Elements(Arguments& in) {
    for (Tensor& t : this->parameters) t = in.tensor();
    x = in.tensor();
    for (int k = 0; k < A::kOptions; ++k) this->rows.options.push_back(in.number());
  }
  void set_observations() {
    STD_TORCH_CHECK(x.dim() == 2, "x must have shape [B, D]");
    this->set_size(x.size(0), x.size(1));
    this->rows.x = observed(x, x.size(0), x.size(1), A::kCounts);
    STD_TORCH_CHECK(!(shares_last<A, float>) || this->parameters[kParameters - 1].size(1) == 1,
                    "the last parameter must be one number a row");
  }
  Work likelihood_work() {
    const bool shared = this->rows.parameters[kParameters - 1].column_stride == 0 && this->rows.columns > 1;
    return shared ? this->template work<Shared>() : this->template work<Accumulator>();
  }
};

// (parameters, x, options, weight?, mask?, asked) -> (nll [B], gradients)
template <class Likelihood>
void nll(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  Likelihood likelihood(in);
  const auto weight = in.optional_tensor(), mask = in.optional_tensor();
  const int64_t asked = in.integer();
  in.place();
  likelihood.set_observations();
  likelihood.set_selection(weight, mask);
  likelihood.allocate_gradients(asked);
  run_together({likelihood.likelihood_work()});
  Results out(stack);
  out.push(likelihood.values());
  out.push(likelihood.gradients);
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

template <class Likelihood, int L>
void elbo(Likelihood& reconstruction, Term<L>&& latent, const Objective& objective, StableIValue* stack) {
  run_together({reconstruction.likelihood_work(), divergence_work(latent)});
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
template <class Likelihood>
void elbo(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  Likelihood reconstruction(in);
  const Tensor mu = in.tensor(), logvar = in.tensor();
  const auto prior_mu = in.optional_tensor(), prior_logvar = in.optional_tensor();
  Objective objective(in);
  reconstruction.set_observations();
  STD_TORCH_CHECK(mu.dim() == 2 && mu.size(0) == reconstruction.rows.rows, "mu must have shape [B, Z]");
  STD_TORCH_CHECK(prior_mu.has_value() == prior_logvar.has_value(), "prior_mu and prior_logvar go together");

  reconstruction.set_selection(objective.weight, objective.mask);
  reconstruction.rows.scale = objective.scale;
  reconstruction.allocate_gradients(objective.asked);
  const int64_t asked = objective.asked >> Likelihood::kParameters;
  if (prior_mu)
    elbo(reconstruction, latent_term<4>({mu, logvar, *prior_mu, *prior_logvar}, objective, asked), objective, stack);
  else elbo(reconstruction, latent_term<2>({mu, logvar}, objective, asked), objective, stack);
}

// The operators' name, the likelihood's accumulator, and the one for a last parameter that is one number a row
#define VAE_FAST_LIKELIHOOD(name, accumulator, shared)           \
  STABLE_TORCH_LIBRARY_IMPL(vae_fast, CPU, m) {                  \
    m.impl(#name "_nll", &nll<Elements<accumulator, shared>>);   \
    m.impl("elbo_" #name, &elbo<Elements<accumulator, shared>>); \
  }

// The operators' name, the joint likelihood's accumulator, and the one for x of another number of channels
#define VAE_FAST_JOINT(name, accumulator, other)             \
  STABLE_TORCH_LIBRARY_IMPL(vae_fast, CPU, m) {              \
    m.impl(#name "_nll", &nll<Joint<accumulator, other>>);   \
    m.impl("elbo_" #name, &elbo<Joint<accumulator, other>>); \
  }

}  // namespace vae_fast
