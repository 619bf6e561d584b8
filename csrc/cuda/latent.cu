// The latent variable on a GPU: reparameterised sampling with the KL in the same pass, and the divergences alone.
#include "latent.cuh"
#include "program.h"

namespace vae_fast {
namespace {

// mu, logvar, prior_mu?, prior_logvar? as they stand among an operator's arguments
struct Posterior {
  Tensor mu, logvar;
  std::optional<Tensor> prior_mu, prior_logvar;

  explicit Posterior(Arguments& in)
      : mu(in.tensor()), logvar(in.tensor()), prior_mu(in.optional_tensor()), prior_logvar(in.optional_tensor()) {}

  // Once all arguments have been read
  void check() const {
    check_posterior(mu, logvar);
    STD_TORCH_CHECK(prior_mu.has_value() == prior_logvar.has_value(), "prior_mu and prior_logvar go together");
  }
};

template <int K>
Sampling<K> sampling(const Tensor (&parameters)[K], const Tensor& seed) {
  Sampling<K> s;
  s.rows = parameters[0].size(0);
  const int64_t columns = parameters[0].size(1);
  STD_TORCH_CHECK(columns < (1 << 30), "rows must have fewer than 2^30 columns, got ", columns);
  s.columns = static_cast<int>(columns);
  for (int k = 0; k < K; ++k) s.parameters[k] = parameter(parameters[k], "each parameter", s.rows, columns);
  s.seed = seed_of(seed);
  return s;
}

// Launches the kernel for the operands' dtypes. allocate(tiling) sets what it writes.
template <template <class, int> class Kl, bool BACKWARD, bool DIVERGENCE, int K, class Allocate>
void launch(const Device& device, Sampling<K>& s, const Allocate& allocate) {
  const ScalarType type = s.parameters[0].type;
  const bool typed = s.parameters[1].type == type && (!s.dz.data || s.dz.type == type);
  const int vector = type == ScalarType::Float ? 4 : 8;
  s.vectors = typed && s.columns % vector == 0 && (!s.dz.data || in_vectors(s.dz, vector));
  for (const Matrix& m : s.parameters) s.vectors = s.vectors && m.type == type && in_vectors(m, vector);
  s.tiling = tiling_of(s.rows, s.columns, s.vectors ? vector : 4, false);
  allocate(s.tiling);
  const auto start = [&](auto kernel) { device.launch("sample", kernel, s.tiling.tiles, s.tiling.splits, s); };
  if (!typed) start(sample<Kl, Any, BACKWARD, DIVERGENCE>);
  else if (type == ScalarType::Float) start(sample<Kl, float, BACKWARD, DIVERGENCE>);
  else if (type == ScalarType::BFloat16) start(sample<Kl, BFloat16, BACKWARD, DIVERGENCE>);
  else start(sample<Kl, Half, BACKWARD, DIVERGENCE>);
}

// z, and the KL [B] if it is asked for
template <template <class, int> class Kl, bool DIVERGENCE, int K>
void sample_forward(const Device& device, const Tensor (&parameters)[K], const Tensor& seed, Results& out) {
  Sampling<K> s = sampling(parameters, seed);
  const Tensor z = empty({s.rows, s.columns}, parameters[0].scalar_type(), device.place());
  s.z = output(z);
  std::optional<Folded> kl;
  const int64_t count = s.rows * s.columns;
  if (!DIVERGENCE && count < (1 << 30) && parameters[0].is_contiguous() && parameters[1].is_contiguous()) {
    s.columns = static_cast<int>(count), s.rows = count > 0;  // one long row
    for (Matrix& m : s.parameters) m.row_stride = 0, m.column_stride = 1;
  }
  launch<Kl, false, DIVERGENCE>(device, s, [&](const Tiling& tiling) {
    if (!DIVERGENCE) return;
    kl.emplace(empty({s.rows}, ScalarType::Float, device.place()), tiling.splits, device.place());
    s.kl = kl->floats();
  });
  if (kl) kl->finish(device);
  out.push(z);
  if (kl) out.push(kl->out);
}

// (mu, logvar, seed) -> z
void reparameterize(StableIValue* stack, uint64_t, uint64_t) {
  if (left_to_reference("reparameterize", stack, 0, 2)) return;
  Arguments in(stack);
  const Tensor mu = in.tensor(), logvar = in.tensor(), seed = in.tensor();
  const Device device(in.place());
  check_posterior(mu, logvar);
  Results out(stack);
  sample_forward<StandardKl, false, 2>(device, {mu, logvar}, seed, out);
}

// (mu, logvar, prior_mu?, prior_logvar?, seed) -> (z, kl [B])
void sample_kl(StableIValue* stack, uint64_t, uint64_t) {
  if (left_to_reference("sample_kl", stack, 0, 2, 2)) return;
  Arguments in(stack);
  const Posterior q(in);
  const Tensor seed = in.tensor();
  const Device device(in.place());
  q.check();
  Results out(stack);
  if (q.prior_mu)
    sample_forward<GaussianKl, true, 4>(device, {q.mu, q.logvar, *q.prior_mu, *q.prior_logvar}, seed, out);
  else sample_forward<StandardKl, true, 2>(device, {q.mu, q.logvar}, seed, out);
}

// A divergence alone: (value [B], gradients)
template <template <class, int> class Divergence, int K>
void divergence(const char* name, const Device& device, const Tensor (&parameters)[K],
                const std::optional<Tensor>& weight, int64_t asked, Tensor& value, Tensor (&gradients)[K]) {
  Program<Divergence, None> program(device, name);
  const int64_t rows = parameters[0].size(0);
  program.operands.take(parameters, rows, parameters[0].size(1), asked);
  program.objective.weight = column_vector(weight, "weight", rows);
  program.run();
  value = program.value();
  std::copy(program.operands.gradients, program.operands.gradients + K, gradients);
}

template <template <class, int> class Kl, bool DIVERGENCE, int K>
void sample_backward(const Device& device, const Tensor (&parameters)[K], const Tensor& seed,
                     const std::optional<Tensor>& dz, const std::optional<Tensor>& dkl, Tensor (&gradients)[4]) {
  Sampling<K> s = sampling(parameters, seed);
  if (dz) s.dz = parameter(*dz, "dz", s.rows, s.columns);
  s.dkl = column_vector(dkl, "dkl", s.rows);
  for (int k = 0; k < 2; ++k) {
    gradients[k] = empty({s.rows, s.columns}, parameters[k].scalar_type(), device.place());
    s.gradients[k] = output(gradients[k]);
  }
  launch<Kl, true, DIVERGENCE>(device, s, [](const Tiling&) {});
}

// (dz?, dkl?, mu, logvar, prior_mu?, prior_logvar?, seed, asked) -> (dmu, dlogvar, dprior_mu, dprior_logvar)
void sample_kl_backward(StableIValue* stack, uint64_t, uint64_t) {
  if (left_to_reference("sample_kl_backward", stack, 2, 2, 2)) return;
  Arguments in(stack);
  const auto dz = in.optional_tensor(), dkl = in.optional_tensor();
  const Posterior q(in);
  const Tensor seed = in.tensor();
  const int64_t asked = in.integer();
  const Device device(in.place());
  q.check();
  Tensor gradients[4];
  for (int k = 2; k < 4; ++k) gradients[k] = empty({0}, q.mu.scalar_type(), device.place());
  if (!dkl) {
    sample_backward<StandardKl, false, 2>(device, {q.mu, q.logvar}, seed, dz, dkl, gradients);
  } else if (!q.prior_mu) {
    sample_backward<StandardKl, true, 2>(device, {q.mu, q.logvar}, seed, dz, dkl, gradients);
  } else {
    const Tensor parameters[4] = {q.mu, q.logvar, *q.prior_mu, *q.prior_logvar};
    sample_backward<GaussianKl, true>(device, parameters, seed, dz, dkl, gradients);
    if (asked & 0b1100) {
      Tensor kl, of_kl[4];
      divergence<GaussianKl>("sample_kl_backward", device, parameters, dkl, asked & 0b1100, kl, of_kl);
      std::copy(of_kl + 2, of_kl + 4, gradients + 2);
    }
  }
  Results(stack).push(gradients);
}

// (mu, logvar, prior_mu?, prior_logvar?, weight?, asked) -> (kl [B], gradients of the four)
void gaussian_kl(StableIValue* stack, uint64_t, uint64_t) {
  if (left_to_reference("gaussian_kl", stack, 0, 2, 2)) return;
  Arguments in(stack);
  const Posterior q(in);
  const auto weight = in.optional_tensor();
  const int64_t asked = in.integer();
  const Device device(in.place());
  q.check();
  Tensor kl, gradients[4];
  if (q.prior_mu) {
    divergence<GaussianKl, 4>("gaussian_kl", device, {q.mu, q.logvar, *q.prior_mu, *q.prior_logvar}, weight, asked, kl,
                              gradients);
  } else {
    Tensor two[2];
    divergence<StandardKl, 2>("gaussian_kl", device, {q.mu, q.logvar}, weight, asked, kl, two);
    std::copy(two, two + 2, gradients);
    for (int k = 2; k < 4; ++k) gradients[k] = empty({0}, q.mu.scalar_type(), device.place());
  }
  Results out(stack);
  out.push(kl);
  out.push(gradients);
}

// (z, mu, logvar, prior_mu, prior_logvar, weight?, asked) -> (log q(z) - log p(z) [B], gradients of the five)
void monte_carlo_kl(StableIValue* stack, uint64_t, uint64_t) {
  if (left_to_reference("monte_carlo_kl", stack, 0, 5)) return;
  Arguments in(stack);
  Tensor parameters[5], gradients[5], value;
  for (Tensor& t : parameters) t = in.tensor();
  const auto weight = in.optional_tensor();
  const int64_t asked = in.integer();
  const Device device(in.place());
  STD_TORCH_CHECK(parameters[0].dim() == 2, "z must have shape [B, Z]");
  divergence<LogRatio>("monte_carlo_kl", device, parameters, weight, asked, value, gradients);
  Results out(stack);
  out.push(value);
  out.push(gradients);
}

}  // namespace

template <template <class, int> class Divergence, int K>
static GivenKl kl_alone(const char* name, const Device& device, const Tensor (&parameters)[K],
                        const Objective& objective, int64_t asked) {
  Program<Divergence, None> program(device, name);
  program.operands.take(parameters, parameters[0].size(0), parameters[0].size(1), asked);
  program.objective = objective;
  program.run();
  GivenKl found{program.value(), {}};
  std::copy(program.operands.gradients, program.operands.gradients + K, found.gradients);
  for (int k = K; k < 4; ++k) found.gradients[k] = empty({0}, parameters[0].scalar_type(), device.place());
  return found;
}
GivenKl given_kl(const char* name, const Device& device, const Tensor (&parameters)[4], const Objective& objective,
                 int64_t asked) {
  return kl_alone<GaussianKl>(name, device, parameters, objective, asked);
}
GivenKl standard_kl(const char* name, const Device& device, const Tensor (&parameters)[2], const Objective& objective,
                    int64_t asked) {
  return kl_alone<StandardKl>(name, device, parameters, objective, asked);
}

STABLE_TORCH_LIBRARY_IMPL(vae_fast, CUDA, m) {
  m.impl("reparameterize", &reparameterize);
  m.impl("sample_kl", &sample_kl);
  m.impl("sample_kl_backward", &sample_kl_backward);
  m.impl("gaussian_kl", &gaussian_kl);
  m.impl("monte_carlo_kl", &monte_carlo_kl);
}

}  // namespace vae_fast
