// A likelihood in which many parameters belong to one observation, as an operator sees it: tensors in, [B] and a gradient out.
#pragma once

#include "operators.h"
#include "planes.h"

namespace vae_fast {

// Accumulator, or Other where that is for x's number of channels
template <template <class, int> class Accumulator, template <class, int> class Other>
struct Joint {
  static constexpr int kParameters = 1;
  using A = Accumulator<float, kLanes>;
  using B = Other<float, kLanes>;
  Tensor parameters[1], gradients[1], x;
  JointRows rows;

  // Its parameters, x and options, as they come on the stack
  explicit Joint(Arguments& in) {
    parameters[0] = in.tensor(), x = in.tensor();
    for (int k = 0; k < A::kOptions; ++k) rows.options.push_back(in.number());
  }
  void set_observations() {
    const Tensor& p = parameters[0];
    check_joint(p, x);
    const int64_t channels = channels_of(x);
    STD_TORCH_CHECK(channels == A::kTargets || channels == B::kTargets,
                    "x has a number of channels that no kernel reads");
    rows.rows = p.size(0), rows.planes = p.size(1), rows.columns = p.size(2);
    STD_TORCH_CHECK(fits<A>(channels) || fits<B>(channels), "parameters have ", rows.planes,
                    " planes, which don't fit ", channels, " channels of x");
    rows.parameters = cube(p), rows.x = cube(x);
    rows.x.counts = true;
  }
  void set_selection(const std::optional<Tensor>& weight, const std::optional<Tensor>& mask) {
    rows.weight = column_vector(weight, "weight", rows.rows);
    rows.mask = mask_of(mask, rows.rows, rows.columns);
  }
  void allocate_gradients(int64_t asked) {
    static const Place cpu{aoti_torch_device_type_cpu()};
    const Tensor& p = parameters[0];
    gradients[0] = asked & 1 ? empty_planes(p, cpu, new_result) : empty({0}, p.scalar_type());
    if (asked & 1) rows.gradient = cube(gradients[0]);
  }
  Work likelihood_work() { return channels_of(x) == A::kTargets ? work<Accumulator>() : work<Other>(); }
  // [B], weighted
  Tensor values() const {
    const ScalarType of = type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    return vector(rows.rows, of, [&, chunks = rows.chunks()](int64_t b) { return row_value(rows, b, chunks); });
  }

 private:
  ScalarType type() const { return rows.parameters.type; }
  template <class L>
  bool fits(int64_t channels) const {
    return channels == L::kTargets && L::fits(rows.planes);
  }
  template <template <class, int> class L>
  Work work() {
    return type() == ScalarType::Double ? work_on<L, double>(rows) : work_on<L, float>(rows);
  }
};

}  // namespace vae_fast
