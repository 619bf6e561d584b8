// <likelihood>_nll and elbo_<likelihood> on the CPU, for every likelihood alike.
#include "../divergences.h"
#include "../likelihoods/registry.h"
#include "operators.h"

namespace vae_fast {
namespace {

template <template <class, int> class Accumulator>
constexpr int parameters_of = Accumulator<float, kLanes>::kParameters;

// Parameters and x, [B, D]
template <int K>
void read_observations(Arguments& in, Term<K>& term) {
  for (Tensor& t : term.parameters) t = in.tensor();
  const Tensor x = in.tensor();
  STD_TORCH_CHECK(x.dim() == 2, "x must have shape [B, D]");
  term.set_size(x.size(0), x.size(1));
  term.rows.x = matrix(x, "x", x.size(0), x.size(1));
}

template <template <class, int> class Accumulator, template <class, int> class Shared, int K>
void run_likelihood(Term<K>& term) {
  if (term.rows.parameters[K - 1].column_stride == 0 && term.rows.columns > 1) term.template run<Shared>();
  else term.template run<Accumulator>();
}

// (parameters, x, weight?, mask?, asked) -> (nll [B], gradients)
template <template <class, int> class Accumulator, template <class, int> class Shared>
void nll(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  Term<parameters_of<Accumulator>> term;
  read_observations(in, term);
  const auto weight = in.optional_tensor(), mask = in.optional_tensor();
  term.set_selection(weight, mask);
  term.allocate_gradients(in.integer());
  run_likelihood<Accumulator, Shared>(term);
  Results out(stack);
  out.push(term.values());
  out.push(term.gradients);
}

double scalar(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.numel() == 1 && is_floating(t.scalar_type()), name,
                  " must be one floating point number on the CPU");
  double value;
  return *load(Matrix{static_cast<char*>(t.data_ptr()), t.scalar_type(), 0, 1}, 0, 0, 1, &value);
}

// scale * sum or each of (nll + beta kl)
Tensor combine(const Tensor& nll, const Tensor& kl, double beta, double scale, bool reduce) {
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

struct Selection {
  std::optional<Tensor> weight, mask;
  double beta, scale;
  bool reduce;
  int64_t asked;
};

Selection read_selection(Arguments& in) {
  Selection s;
  s.weight = in.optional_tensor(), s.mask = in.optional_tensor();
  s.beta = scalar(in.tensor(), "beta");
  s.scale = in.number(), s.reduce = in.flag(), s.asked = in.integer();
  return s;
}

// KL [B] with gradients for as many of (mu, logvar, prior_mu, prior_logvar) as there are
template <template <class, int> class Accumulator, int K>
Tensor latent_term(Term<K>& term, const Selection& s, int64_t asked) {
  term.set_size(term.parameters[0].size(0), term.parameters[0].size(1));
  term.set_selection(s.weight, std::nullopt);
  term.rows.scale = s.scale * s.beta;
  term.allocate_gradients(asked);
  term.template run<Accumulator>();
  return term.values();
}

// (parameters, x, mu, logvar, prior_mu?, prior_logvar?, weight?, mask?, beta, scale, reduce, asked)
//   -> (loss, nll [B], kl [B], gradients of parameters, mu, logvar, prior_mu, prior_logvar)
template <template <class, int> class Accumulator, template <class, int> class Shared>
void elbo(StableIValue* stack, uint64_t, uint64_t) {
  constexpr int K = parameters_of<Accumulator>;
  Arguments in(stack);
  Term<K> reconstruction;
  read_observations(in, reconstruction);
  const Tensor mu = in.tensor(), logvar = in.tensor();
  const auto prior_mu = in.optional_tensor(), prior_logvar = in.optional_tensor();
  const Selection s = read_selection(in);
  STD_TORCH_CHECK(mu.dim() == 2 && mu.size(0) == reconstruction.rows.rows, "mu must have shape [B, Z]");

  reconstruction.set_selection(s.weight, s.mask);
  reconstruction.rows.scale = s.scale;
  reconstruction.allocate_gradients(s.asked);
  run_likelihood<Accumulator, Shared>(reconstruction);
  const Tensor nll = reconstruction.values();

  Tensor kl, latent[4] = {mu, logvar, mu, mu};
  if (prior_mu) {
    Term<4> term{{}, {mu, logvar, *prior_mu, *prior_logvar}, {}};
    kl = latent_term<GaussianKl>(term, s, s.asked >> K);
    std::copy(term.gradients, term.gradients + 4, latent);
  } else {
    Term<2> term{{}, {mu, logvar}, {}};
    kl = latent_term<StandardKl>(term, s, s.asked >> K);
    std::copy(term.gradients, term.gradients + 2, latent);
    for (int k = 2; k < 4; ++k) latent[k] = empty({0}, mu.scalar_type());
  }
  Results out(stack);
  out.push(combine(nll, kl, s.beta, s.scale, s.reduce));
  out.push(nll);
  out.push(kl);
  out.push(reconstruction.gradients);
  out.push(latent);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vae_fast, CPU, m) {
#define VAE_FAST_REGISTER(name, accumulator, shared) \
  m.impl(#name "_nll", &nll<accumulator, shared>);   \
  m.impl("elbo_" #name, &elbo<accumulator, shared>);
  VAE_FAST_LIKELIHOODS(VAE_FAST_REGISTER)
#undef VAE_FAST_REGISTER
}

}  // namespace vae_fast
