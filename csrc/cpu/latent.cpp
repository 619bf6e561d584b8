// The latent variable on the CPU: reparameterised sampling with the KL in the same pass, and the divergences alone.
#include "../divergences.h"
#include "operators.h"
#include "words.h"

namespace vae_fast {
namespace {

// z = mu + e^(logvar/2) eps over [B, Z]. Work is cut into units of whole rows, at most kBlock elements, or pieces of
// one long row; a unit's operands lie flat, so that short rows fill the vector lanes too.
template <int K>
struct Latent {
  int64_t rows = 0, columns = 0;
  Matrix parameters[K];  // mu, logvar and, for K = 4, the prior's
  Matrix z, kl;          // forward: the sample and, if asked for, the divergence
  Matrix dz, dkl;        // backward: incoming, each may be absent; dkl [1, rows]
  Matrix gradients[2];   // backward: of mu and logvar
  uint64_t seed = 0;
  std::vector<double> sums;  // of the divergence's terms, [rows, pieces], where units aren't whole rows

  int64_t pieces() const { return columns > kBlock ? (columns + kBlock - 1) / kBlock : 1; }
  bool has_whole_rows() const { return columns > 0 && columns <= kBlock; }  // each unit
  int64_t rows_per_unit() const { return columns > 0 && columns < kBlock ? kBlock / columns : 1; }
};

// Where a unit lies: `count` rows from `row` on, `width` columns from `column` on
struct Unit {
  int64_t row, count, column, width;
  int64_t size() const { return count * width; }
};

// Whether the unit's elements of an operand lie in one run
bool is_flat(const Matrix& m, const Unit& u) {
  return m.column_stride == 1 && (u.count == 1 || m.row_stride == u.width);
}

// Memory of the next unit, asked for while this one's noise is made, for which nothing is read: of half the operands with
// the words, of half with the normals. AMD's processors foresee forward's three runs of memory in place, and none foresees
// backward's five.
struct Next {
  Unit unit;
  bool exists;
  Fetched fetched[2];
  int operands = 0;

  template <int K>
  Next(const Latent<K>& p, const Unit& u) : unit(u) {
    unit.column += u.width;
    if (unit.column >= p.columns) unit.column = 0, unit.row += u.count;
    exists = unit.row < p.rows;
  }
  void add(const Matrix& m) {
    if (exists && m.data && is_flat(m, unit)) fetched[operands++ % 2].add(m, unit.row, unit.column);
  }
};

// Box and Muller's normals of n pairs of words, in two loops, of radii and of angles: of one loop's long chains a
// processor's schedulers would hold only some two vectors' at a time.
template <class T>
VAE_FAST_CLONES void make_normals(const Words& words, int n, T* noise, const Fetched& fetched) {
  for (int begin = 0; begin < n; begin += kPiece / 2) {
    const int end = std::min(n, begin + kPiece / 2);
    fetched.fetch(2 * begin);
    T radii[kPiece / 2];
    for (int k = begin; k < end; ++k) radii[k - begin] = radius_of<T>(words[0][k]);
#pragma GCC ivdep
    for (int k = begin; k < end; ++k) normals_at(radii[k - begin], words[1][k], noise[2 * k], noise[2 * k + 1]);
  }
}

// The normals of n elements from `first` on
template <class T>
const T* normals(uint64_t seed, int64_t first, int64_t n, T (&noise)[kNoise], const Next& next) {
  constexpr int64_t kAtOnce = 4 * kCountersAtOnce;
  const int counters = static_cast<int>((first % 4 + n + kAtOnce - 1) / kAtOnce) * kCountersAtOnce;
  Words words;
  random_words(PhiloxKeys<uint64_t>(seed), static_cast<uint64_t>(first / 4), counters, words, next.fetched[0]);
  make_normals(words, 2 * counters, noise, next.fetched[1]);
  return noise + first % 4;
}

// A unit of an operand as one flat run of T
template <class T>
const T* flat(const Matrix& m, const Unit& u, T* buffer) {
  if (is_flat(m, u)) return load(m, u.row, u.column, u.size(), buffer);
  for (int64_t i = 0; i < u.count; ++i) {
    T* to = buffer + i * u.width;
    const T* from = load(m, u.row + i, u.column, u.width, to);
    if (from != to) std::copy(from, from + u.width, to);
  }
  return buffer;
}

// A number for each of the unit's rows as one for each of its elements
template <class T>
VAE_FAST_CLONES void spread(const T* numbers, const Unit& u, T* to) {
  for (int64_t i = 0; i < u.count; ++i)
    for (int64_t j = 0; j < u.width; ++j) to[i * u.width + j] = numbers[i];
}

template <class T>
inline __attribute__((always_inline)) double sum(const T* terms, int64_t n) {
  double total = 0;
  const int64_t whole = n - n % kLanes;
  for (int64_t i = whole; i < n; ++i) total += terms[i];
  if (whole == 0) return total;
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += terms[i + lane];
  return total + add_lanes(lanes);
}

template <class T, int K>
VAE_FAST_CLONES void sample(const T* const (&in)[K], const T* noise, int64_t n, T* z) {
  for (int64_t i = 0; i < n; ++i) {
    T unused;
    z[i] = in[0][i] + sigma_and_excess(in[1][i], unused) * noise[i];  // as with the divergence, to an ulp
  }
}

// The same, and the divergence's terms
template <class Kl, class T, int K>
VAE_FAST_CLONES void sample_with_terms(const T* const (&in)[K], const T* noise, int64_t n, T* z, T* terms) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    T parameters[K];
    for (int k = 0; k < K; ++k) parameters[k] = in[k][i];
    T sigma;
    terms[i] = Kl::term(parameters, sigma);
    z[i] = parameters[0] + sigma * noise[i];
  }
}

template <class T>
VAE_FAST_CLONES void row_sums(const T* terms, const Unit& u, double* sums) {
  for (int64_t i = 0; i < u.count; ++i) sums[i] = sum(terms + i * u.width, u.width);
}

// dmu = dz + dkl dKL/dmu, dlogvar = dz e^(logvar/2) eps / 2 + dkl dKL/dlogvar
template <class Kl, bool DIVERGENCE, class T, int K>
VAE_FAST_CLONES void sample_gradients(const T* const (&in)[K], const T* noise, const T* dz, const T* dkl, int64_t n,
                                      T* dmu, T* dlogvar) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    T parameters[K], dm = 0, dv = 0;
    for (int k = 0; k < K; ++k) parameters[k] = in[k][i];
    const T half = half_sigma(parameters[1]);
    if (DIVERGENCE) Kl::differentiate(parameters, half, dkl[i], dm, dv);
    dmu[i] = dz[i] + dm;
    dlogvar[i] = dz[i] * (half * noise[i]) + dv;
  }
}

template <class Kl, class T, int K>
void forward_unit(Latent<K>& p, const Unit& u) {
  T staged[K][kBlock], noise[kNoise], terms[kBlock], z[kBlock];
  const T* in[K];
  Next next(p, u);
  for (const Matrix* m : {&p.parameters[0], &p.parameters[1], &p.z})
    if (kIsIntel || m->type != scalar_type<T>) next.add(*m);
  const int64_t first = u.row * p.columns + u.column;
  const T* eps = normals(p.seed, first, u.size(), noise, next);
  for (int k = 0; k < K; ++k) in[k] = flat(p.parameters[k], u, staged[k]);
  T* to = destination(p.z, 0, first, z);
  if (p.kl.data) sample_with_terms<Kl>(in, eps, u.size(), to, terms);
  else sample(in, eps, u.size(), to);
  if (to == z) store(z, p.z, 0, first, u.size());
  if (!p.kl.data) return;
  if (!p.has_whole_rows()) return row_sums(terms, u, &p.sums[u.row * p.pieces() + u.column / kBlock]);
  double sums[kBlock];
  row_sums(terms, u, sums);
  for (int64_t i = 0; i < u.count; ++i) *p.kl.template at<T>(u.row + i, 0) = Kl{}.finish(static_cast<T>(sums[i]), T(1));
}

template <class Kl, class T, int K>
void backward_unit(Latent<K>& p, const Unit& u) {
  T staged[K][kBlock], noise[kNoise], dz_staged[kBlock], dkl_staged[kBlock], computed[2][kBlock];
  const T *in[K], *dz = dz_staged;
  Next next(p, u);
  for (const Matrix* m : {&p.parameters[0], &p.parameters[1], &p.dz, &p.gradients[0], &p.gradients[1]}) next.add(*m);
  const int64_t first = u.row * p.columns + u.column;
  const T* eps = normals(p.seed, first, u.size(), noise, next);
  for (int k = 0; k < K; ++k) in[k] = flat(p.parameters[k], u, staged[k]);
  if (p.dz.data) dz = flat(p.dz, u, dz_staged);
  else std::fill(dz_staged, dz_staged + u.size(), T(0));
  if (p.dkl.data) spread(load(p.dkl, 0, u.row, u.count, computed[0]), u, dkl_staged);
  T* to[2];
  for (int k = 0; k < 2; ++k) to[k] = destination(p.gradients[k], 0, first, computed[k]);
  if (p.dkl.data) sample_gradients<Kl, true>(in, eps, dz, dkl_staged, u.size(), to[0], to[1]);
  else sample_gradients<Kl, false>(in, eps, dz, dkl_staged, u.size(), to[0], to[1]);
  for (int k = 0; k < 2; ++k)
    if (to[k] == computed[k]) store(computed[k], p.gradients[k], 0, first, u.size());
}

template <int K, class F>
void for_each_unit(const Latent<K>& p, const F& run) {
  const int64_t per_unit = p.rows_per_unit(), pieces = p.pieces();
  const int64_t units = (p.rows + per_unit - 1) / per_unit * pieces;
  torch::stable::parallel_for(0, units, kGrain / 2 / kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / pieces * per_unit, column = i % pieces * kBlock;
      const Unit u{row, std::min(per_unit, p.rows - row), column,
                   pieces > 1 ? std::min<int64_t>(kBlock, p.columns - column) : p.columns};
      if (u.size() > 0) run(u);
    }
  });
}

// mu, logvar, prior_mu?, prior_logvar? as they stand among an operator's arguments
struct Posterior {
  Tensor mu, logvar;
  std::optional<Tensor> prior_mu, prior_logvar;

  explicit Posterior(Arguments& in)
      : mu(in.tensor()), logvar(in.tensor()), prior_mu(in.optional_tensor()), prior_logvar(in.optional_tensor()) {}

  bool has_prior() const {
    STD_TORCH_CHECK(mu.dim() == 2, "mu must have shape [B, Z]");
    STD_TORCH_CHECK(prior_mu.has_value() == prior_logvar.has_value(), "prior_mu and prior_logvar go together");
    return prior_mu.has_value();
  }
};

uint64_t read_seed(const Tensor& t) { return static_cast<uint64_t>(*seed_of(t)); }

template <int K>
Latent<K> latent(const Tensor (&parameters)[K]) {
  Latent<K> p;
  p.rows = parameters[0].size(0), p.columns = parameters[0].size(1);
  for (int k = 0; k < K; ++k) p.parameters[k] = parameter(parameters[k], "each parameter", p.rows, p.columns);
  return p;
}

// run(T(), unit) for every unit, T the dtype that the parameters ask for
template <int K, class F>
void for_each_unit_in_type(const Latent<K>& p, const F& run) {
  if (accumulate_type(p.parameters) == ScalarType::Double) for_each_unit(p, [&](const Unit& u) { run(double{}, u); });
  else for_each_unit(p, [&](const Unit& u) { run(float{}, u); });
}

template <template <class, int> class Kl, int K>
void sample_and_divergence(const Tensor (&parameters)[K], uint64_t seed, Tensor& z, Tensor* kl) {
  Latent<K> p = latent(parameters);
  p.seed = seed;
  z = empty({p.rows, p.columns}, parameters[0].scalar_type());
  p.z = output(z);
  if (kl) {
    *kl = empty({p.rows}, accumulate_type(p.parameters));
    p.kl = output(*kl);
    if (!p.has_whole_rows()) p.sums.assign(p.rows * p.pieces(), 0.);
  }
  for_each_unit_in_type(p, [&](auto zero, const Unit& u) {
    using T = decltype(zero);
    forward_unit<Kl<T, 1>, T>(p, u);
  });
  for (int64_t row = 0; !p.sums.empty() && row < p.rows; ++row) {
    double value = 0;
    for (int64_t piece = 0; piece < p.pieces(); ++piece) value += p.sums[row * p.pieces() + piece];
    value = Kl<double, 1>{}.finish(value, 1);
    store(&value, p.kl, row, 0, 1);
  }
}

// (mu, logvar, seed) -> z
void reparameterize(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor mu = in.tensor(), logvar = in.tensor(), seed = in.tensor();
  in.place();
  STD_TORCH_CHECK(mu.dim() == 2, "mu must have shape [B, Z]");
  Tensor z;
  sample_and_divergence<StandardKl, 2>({mu, logvar}, read_seed(seed), z, nullptr);
  Results(stack).push(z);
}

// (mu, logvar, prior_mu?, prior_logvar?, seed) -> (z, kl [B])
void sample_kl(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Posterior q(in);
  const Tensor seed = in.tensor();
  in.place();
  Tensor z, kl;
  if (q.has_prior())
    sample_and_divergence<GaussianKl, 4>({q.mu, q.logvar, *q.prior_mu, *q.prior_logvar}, read_seed(seed), z, &kl);
  else sample_and_divergence<StandardKl, 2>({q.mu, q.logvar}, read_seed(seed), z, &kl);
  Results out(stack);
  out.push(z);
  out.push(kl);
}

template <template <class, int> class Kl, int K>
void sample_backward(const Tensor (&parameters)[K], const std::optional<Tensor>& dz, const std::optional<Tensor>& dkl,
                     uint64_t seed, Tensor (&gradients)[4]) {
  Latent<K> p = latent(parameters);
  p.seed = seed;
  if (dz) p.dz = parameter(*dz, "dz", p.rows, p.columns);
  p.dkl = column_vector(dkl, "dkl", p.rows);
  std::swap(p.dkl.row_stride, p.dkl.column_stride);
  for (int k = 0; k < 2; ++k) {
    gradients[k] = empty({p.rows, p.columns}, parameters[k].scalar_type());
    p.gradients[k] = output(gradients[k]);
  }
  for_each_unit_in_type(p, [&](auto zero, const Unit& u) {
    using T = decltype(zero);
    backward_unit<Kl<T, 1>, T>(p, u);
  });
}

// The prior's gradients, summed where it is repeated
void prior_gradients(const Posterior& q, const Tensor& dkl, int64_t asked, Tensor (&gradients)[4]) {
  Term<4> term{{}, {q.mu, q.logvar, *q.prior_mu, *q.prior_logvar}, {}};
  term.set_size(q.mu.size(0), q.mu.size(1));
  term.set_selection(dkl, std::nullopt);
  term.allocate_gradients(asked & 0b1100);
  run_together({term.work<GaussianKl>()});
  std::copy(term.gradients + 2, term.gradients + 4, gradients + 2);
}

// (dz?, dkl?, mu, logvar, prior_mu?, prior_logvar?, seed, asked) -> (dmu, dlogvar, dprior_mu, dprior_logvar)
void sample_kl_backward(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const auto dz = in.optional_tensor(), dkl = in.optional_tensor();
  const Posterior q(in);
  const Tensor seed = in.tensor();
  const int64_t asked = in.integer();
  in.place();
  Tensor gradients[4];
  for (int k = 2; k < 4; ++k) gradients[k] = empty({0}, q.mu.scalar_type());
  if (q.has_prior())
    sample_backward<GaussianKl, 4>({q.mu, q.logvar, *q.prior_mu, *q.prior_logvar}, dz, dkl, read_seed(seed), gradients);
  else sample_backward<StandardKl, 2>({q.mu, q.logvar}, dz, dkl, read_seed(seed), gradients);
  if (q.prior_mu && dkl && asked & 0b1100) prior_gradients(q, *dkl, asked, gradients);
  Results(stack).push(gradients);
}

// A divergence alone: parameters of which the last two, the prior, may be absent -> (value [B], gradients)
template <template <class, int> class Divergence, int K>
void divergence(Term<K>& term, const std::optional<Tensor>& weight, int64_t asked, Results& out) {
  term.set_size(term.parameters[0].size(0), term.parameters[0].size(1));
  term.set_selection(weight, std::nullopt);
  term.allocate_gradients(asked);
  run_together({term.template work<Divergence>()});
  out.push(term.values());
  out.push(term.gradients);
}

// (mu, logvar, prior_mu?, prior_logvar?, weight?, asked) -> (kl [B], gradients of the four)
void gaussian_kl(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Posterior q(in);
  const auto weight = in.optional_tensor();
  const int64_t asked = in.integer();
  in.place();
  Results out(stack);
  if (q.has_prior()) {
    Term<4> term{{}, {q.mu, q.logvar, *q.prior_mu, *q.prior_logvar}, {}};
    return divergence<GaussianKl>(term, weight, asked, out);
  }
  Term<2> term{{}, {q.mu, q.logvar}, {}};
  divergence<StandardKl>(term, weight, asked, out);
  for (int k = 0; k < 2; ++k) out.push(empty({0}, q.mu.scalar_type()));
}

// (z, mu, logvar, prior_mu, prior_logvar, weight?, asked) -> (log q(z) - log p(z) [B], gradients of the five)
void monte_carlo_kl(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  Term<5> term;
  for (Tensor& t : term.parameters) t = in.tensor();
  const auto weight = in.optional_tensor();
  const int64_t asked = in.integer();
  in.place();
  STD_TORCH_CHECK(term.parameters[0].dim() == 2, "z must have shape [B, Z]");
  Results out(stack);
  divergence<LogRatio>(term, weight, asked, out);
}

}  // namespace

Work divergence_work(Term<2>& term) { return term.work<StandardKl>(); }
Work divergence_work(Term<4>& term) { return term.work<GaussianKl>(); }

STABLE_TORCH_LIBRARY_IMPL(vae_fast, CPU, m) {
  m.impl("reparameterize", &reparameterize);
  m.impl("sample_kl", &sample_kl);
  m.impl("sample_kl_backward", &sample_kl_backward);
  m.impl("gaussian_kl", &gaussian_kl);
  m.impl("monte_carlo_kl", &monte_carlo_kl);
}

}  // namespace vae_fast
