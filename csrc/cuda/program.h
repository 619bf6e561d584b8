// An objective from its tensors to its launch: which kernel takes their dtypes, how rows are cut, what is allocated.
#pragma once

#include "operands.h"

namespace vae_fast {

// LIKELIHOOD: the accumulator has observations x and may have a latent beside it; else it is a divergence.
template <template <class, int> class Accumulator, bool LIKELIHOOD>
class Program {
 public:
  using A = Accumulator<float, 1>;
  static constexpr int K = A::kParameters;

  Operands<K> operands;
  std::optional<Operands<2>> standard;  // the latent's, one of the two or none
  std::optional<Operands<4>> given;
  Objective objective;

  Program(const Device& device, const char* name) : device_(device), name_(name) {}

  // Chooses the kernel and launches it, and what adds its partial sums
  void run(bool with_loss) {
    with_loss_ = with_loss;
    latent_.kind = standard ? Latent::kStandard : given ? Latent::kGiven : Latent::kAbsent;
    const ScalarType type = operands.term.parameters[0].type;
    const bool general = !operands.same_type(kEach, type) || operands.wants_sum(false, kEach) ||
                         (given && given->wants_sum(false)) || (wants_last() && !operands.wants(0));
    if (general || !run_typed(type)) launch<Any, std::conditional_t<LIKELIHOOD, Any, None>, true, false, true>(0);
    operands.finish(device_);
    if (given) given->finish(device_);
    for (const auto* folded : {&nll_, &loss_})
      if (*folded) (*folded)->finish(device_);
  }

  const Tensor& nll() const { return nll_->out; }
  const Tensor& loss() const { return loss_->out; }
  const Tensor& kl() const { return *kl_; }

 private:
  static constexpr bool kShares = shares_last<A>;
  static constexpr int kEach = kShares ? K - 1 : K;  // parameters with an element for each observation

  bool wants_last() const { return kShares && operands.wants(K - 1); }

  // False where no kernel has the dtypes
  bool run_typed(ScalarType type) {
    latent_.typed = standard && standard->same_type(2, type);
    if (type == ScalarType::Float) return run_on<float>();
    if (type == ScalarType::BFloat16) return run_on<BFloat16>();
    return run_on<Half>();
  }

  template <class P>
  bool run_on() {
    if constexpr (!LIKELIHOOD) {
      choose<P, None>();
    } else {
      const ScalarType x = operands.term.x.type;
      if (x == ScalarType::Byte || x == ScalarType::Bool) choose<P, uint8_t>();
      else if (x == Dtype<P>::type) choose<P, P>();
      else if (x == ScalarType::Float) choose<P, float>();
      else return false;
    }
    return true;
  }

  template <class P, class X>
  void choose() {
    constexpr int V = 16 / (std::is_same_v<X, float> ? 4 : sizeof(P));
    int wanted = 0;
    for (int k = 0; k < kEach; ++k) wanted += operands.wants(k);
    const int vector = (wanted == 0 || wanted == kEach) && in_vectors<X>(V) ? V : 0;
    if (wanted == 0) launch<P, X, false, false, false, V>(vector);
    else if (!wants_last()) launch<P, X, true, false, false, V>(vector);
    else if constexpr (kShares) launch<P, X, true, true, false, V>(vector);
  }

  template <class X>
  bool in_vectors(int vector) const {
    const Term<K>& term = operands.term;
    bool fits = !term.mask.data && operands.columns % vector == 0;
    for (int k = 0; k < kEach; ++k) fits = fits && vae_fast::in_vectors(term.parameters[k], vector);
    return fits && (std::is_same_v<X, None> || vae_fast::in_vectors(term.x, vector));
  }

  // vector: columns that a thread reads at once, 0 if it reads them one by one
  template <class P, class X, bool GRADIENTS, bool SUM_LAST, bool SUMS, int V = 0>
  void launch(int vector) {
    const bool shared = operands.wants_sum(true) || (given && given->wants_sum(true));
    objective.tiling = tiling_of(operands.rows, operands.columns, std::max(1, vector), shared);
    operands.term.vectors = vector > 0;
    allocate(objective.tiling);
    device_.launch(name_, vae_fast::objective<Accumulator, P, X, V, GRADIENTS, SUM_LAST, SUMS, LIKELIHOOD, K>,
                   objective.tiling.groups, objective.tiling.splits, operands.term,
                   standard ? standard->term : Term<2>{}, given ? given->term : Term<4>{}, objective, latent_);
  }

  void allocate(const Tiling& tiling) {
    const Place& place = device_.place();
    const int64_t rows = objective.rows = operands.rows;
    operands.allocate(tiling, place);
    nll_.emplace(empty({rows}, ScalarType::Float, place), tiling.splits, place);
    objective.nll = nll_->floats();
    if (standard || given) {
      Tiling whole = tiling;  // the first split takes the latent alone
      whole.splits = 1;
      if (standard) standard->allocate(whole, place);
      else given->allocate(whole, place);
      objective.latent_columns = standard ? standard->term.columns : given->term.columns;
      objective.kl = static_cast<float*>(kl_.emplace(empty({rows}, ScalarType::Float, place)).data_ptr());
    }
    if (!with_loss_) return;
    if (objective.reduce) loss_.emplace(empty({}, ScalarType::Float, place), tiling.splits * tiling.groups, place);
    else loss_.emplace(empty({rows}, ScalarType::Float, place), tiling.splits, place);
    objective.loss = loss_->floats();
  }

  const Device& device_;
  const char* name_;
  Latent latent_;
  bool with_loss_ = false;
  std::optional<Folded> nll_, loss_;
  std::optional<Tensor> kl_;
};

}  // namespace vae_fast
