// A term from its tensors to its launch: which kernel takes their dtypes, how rows are cut, what is allocated.
#pragma once

#include "operands.h"

namespace vae_fast {

// What rows come to: nll and the loss, with what the blocks write of them
struct Values {
  std::optional<Folded> nll, loss;

  // For the objective's rows, as its tiling cuts them
  void allocate(Objective& o, const Place& place, bool with_loss) {
    const Tiling& t = o.tiling;
    nll.emplace(empty({o.rows}, ScalarType::Float, place), t.splits, place);
    o.nll = nll->floats();
    if (!with_loss) return;
    if (o.reduce) loss.emplace(empty({}, ScalarType::Float, place), t.splits * t.groups, place);
    else loss.emplace(empty({o.rows}, ScalarType::Float, place), t.splits, place);
    o.loss = loss->floats();
  }
  void finish(const Device& device) const {
    for (const auto* folded : {&nll, &loss})
      if (*folded) (*folded)->finish(device);
  }
};

// X: None for a divergence, Any for a likelihood, whose x decides. A likelihood may have a standard normal latent beside
// it, or a KL that is known.
template <template <class, int> class Accumulator, class X>
class Program {
 public:
  using A = Accumulator<float, 1>;
  static constexpr int K = A::kParameters;
  static constexpr bool kCounts = A::kCounts;

  Operands<K> operands;
  std::optional<Operands<2>> standard;
  std::optional<Tensor> kl;  // [B], times weight; what `standard` leaves, or known before
  Objective objective;

  Program(const Device& device, const char* name) : device_(device), name_(name) {}

  // Chooses the kernel and launches it, and what adds its partial sums
  void run(bool with_loss = false) {
    with_loss_ = with_loss;
    const ScalarType type = operands.term.parameters[0].type;
    if (!operands.same_type(kEach, type) || !run_typed(type)) launch<Any, X, 0>(0);
    operands.finish(device_);
    values_.finish(device_);
  }

  const Tensor& value() const { return values_.nll->out; }  // [B], times weight
  const Tensor& loss() const { return values_.loss->out; }

 private:
  static constexpr int kEach = shares_last<A, float> ? K - 1 : K;  // parameters with an element for each observation
  static constexpr int kAll = (1 << K) - 1;

  // False where no kernel has the dtypes
  bool run_typed(ScalarType type) {
    if (type == ScalarType::Float) return run_on<float>();
    if (type == ScalarType::BFloat16) return run_on<BFloat16>();
    return run_on<Half>();
  }

  template <class P>
  bool run_on() {
    if constexpr (std::is_same_v<X, None>) {
      choose<P, None>();
    } else {
      const ScalarType x = operands.term.x.type;
      if constexpr (A::kCounts && !A::kPixels) return run_on_counts<P>(x);
      else if (x == ScalarType::Byte) choose<P, std::conditional_t<A::kCounts, uint8_t, Intensity>>();
      else if (x == ScalarType::Bool && !A::kCounts) choose<P, Intensity>();
      else if (x == Dtype<P>::type) choose<P, P>();
      else if (x == ScalarType::Float) choose<P, float>();
      else return false;
    }
    return true;
  }

  template <class P>
  bool run_on_counts(ScalarType x) {
    if constexpr (!std::is_same_v<P, float>) return false;
    else if (x == ScalarType::Float) choose<P, float>();
    else if (x == ScalarType::Int) choose<P, int32_t>();
    else if (x == ScalarType::UInt16) choose<P, uint16_t>();
    else if (x == ScalarType::Byte) choose<P, uint8_t>();
    else return false;
    return true;
  }

  // There are kernels by vectors for all gradients, for none and, of two parameters, for either; and for all with sums
  // over rows of the parameters that are often one row for all. Whether a shared parameter's is asked for is seen later.
  template <class P, class S>
  void choose() {
    constexpr int kShared = kEach < K ? 1 << kEach : 0;
    const int wanted = static_cast<int>(operands.asked) & kAll, vector = in_vectors<S>(vector_of<P, S>);
    if (operands.wants_sum(false, kEach)) {
      if constexpr (A::kOfColumns != 0)
        if (vector > 0 && (wanted | kShared) == kAll && operands.wants_sums_over_rows(A::kOfColumns, kEach))
          return launch<P, S, kAll | A::kOfColumns << K>(vector);
      return launch<Any, X, 0>(0);
    }
    if (wanted == 0) return launch<P, S, 0>(vector);
    if constexpr (K == 2 && !A::kHeavy) {
      if (wanted == 1) return launch<P, S, 1>(vector);
      if (wanted == 2) return launch<P, S, 2>(vector);
    }
    launch<P, S, kAll>((wanted | kShared) == kAll ? vector : 0);
  }

  // The vector, or 0 if operands must be read element by element
  template <class S>
  int in_vectors(int vector) const {
    const Term<K>& term = operands.term;
    bool fits = !term.mask.data && operands.columns % vector == 0;
    for (int k = 0; k < kEach; ++k) fits = fits && vae_fast::in_vectors(term.parameters[k], vector);
    return fits && (std::is_same_v<S, None> || vae_fast::in_vectors(term.x, vector)) ? vector : 0;
  }

  template <class P, class S, int WANTED>
  void launch(int vector) {
    objective.tiling = tiling_of(operands.rows, operands.columns, std::max(1, vector), operands.wants_sum(true));
    operands.term.vectors = vector > 0;
    Latent latent;
    latent.kind = !kl && !standard ? Latent::kAbsent : kl ? Latent::kKnown : Latent::kAny;
    if constexpr (!std::is_same_v<P, Any>) {
      if (standard && standard->same_type(2, Dtype<P>::type)) {
        const int v = vector_of<P, None>;
        latent.kind = Latent::kTyped;
        standard->term.vectors = standard->asked % 4 == 3 && standard->columns % v == 0 &&
                                 vae_fast::in_vectors(standard->term.parameters[0], v) &&
                                 vae_fast::in_vectors(standard->term.parameters[1], v);
      }
    }
    allocate(objective.tiling);
    device_.launch(name_, vae_fast::objective<Accumulator, P, S, WANTED, K>, objective.tiling.groups,
                   objective.tiling.splits, operands.term, standard ? standard->term : Term<2>{}, objective, latent);
  }

  void allocate(const Tiling& tiling) {
    const Place& place = device_.place();
    const int64_t rows = objective.rows = operands.rows;
    operands.allocate(tiling, place);
    values_.allocate(objective, place, with_loss_);
    if (standard) {
      standard->allocate(tiling, place);
      kl = empty({rows}, ScalarType::Float, place);
    }
    if (kl) objective.kl = static_cast<float*>(kl->data_ptr());
  }

  const Device& device_;
  const char* name_;
  bool with_loss_ = false;
  Values values_;
};

// The KL from a given prior, [B], times weight; and scale beta times its gradients, which may be sums (latent.cu)
struct GivenKl {
  Tensor kl, gradients[4];
};
GivenKl given_kl(const char* name, const Device& device, const Tensor (&parameters)[4], const Objective& objective,
                 int64_t asked);
GivenKl standard_kl(const char* name, const Device& device, const Tensor (&parameters)[2], const Objective& objective,
                    int64_t asked);

}  // namespace vae_fast
