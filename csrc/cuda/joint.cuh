// <likelihood>_nll and elbo_<likelihood> on a GPU, of likelihoods in which many parameters belong to one observation.
#pragma once

#include "elbo.cuh"
#include "planes.cuh"

namespace vae_fast {

constexpr int kTilesByWarp = 8;   // of one observation a warp, that are worth a sum of their own
constexpr int kLeastByWarp = 64;  // planes, one after the other, that are worth a warp

// Accumulator, or Other where that is for x's number of channels
template <template <class, int> class Accumulator, template <class, int> class Other>
class JointProgram {
 public:
  using A = Accumulator<float, 1>;
  using B = Other<float, 1>;
  Tensor parameters, x, gradient;
  std::vector<float> options;
  Objective objective;

  // Its parameters, x and options, as they come on the stack
  explicit JointProgram(Arguments& in) : parameters(in.tensor()), x(in.tensor()) {
    for (int k = 0; k < A::kOptions; ++k) options.push_back(static_cast<float>(in.number()));
  }

  // True if the reference took the call: parameters in float64, or more planes than a tile holds
  static bool left_to_reference(const char* name, StableIValue* stack) {
    const auto handle = torch::stable::detail::to<AtenTensorHandle>(stack[0]);
    int64_t dimensions, planes = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &dimensions));
    if (dimensions == 3) TORCH_ERROR_CODE_CHECK(aoti_torch_get_size(handle, 1, &planes));
    if (planes <= kTileBytes / 4 / (A::kSingle ? 1 : 4)) return vae_fast::left_to_reference(name, stack, 0, 1);
    call_reference(name, stack);
    return true;
  }

  void check() const {
    check_joint(parameters, x);
    STD_TORCH_CHECK(fits<A>() || fits<B>(), "parameters have ", parameters.size(1), " planes, which don't fit ",
                    channels_of(x), " channels of x");
    const int64_t apart =
        parameters.size(2) == 1 ? kTileThreads * parameters.stride(0) : (parameters.size(2) - 1) * parameters.stride(2);
    STD_TORCH_CHECK((parameters.size(1) - 1) * parameters.stride(1) + apart < (int64_t{1} << 31),
                    "the parameters of a row, or of neighbouring rows, must lie within 2^31 of one another");
  }
  int64_t rows() const { return parameters.size(0); }

  void run(const char* name, const Device& device, const std::optional<Tensor>& mask, int64_t asked,
           std::optional<Tensor> kl = std::nullopt, bool with_loss = false) {
    if (channels_of(x) == A::kTargets) run_as<Accumulator>(name, device, mask, asked, kl, with_loss);
    else run_as<Other>(name, device, mask, asked, kl, with_loss);
  }
  const Tensor& value() const { return values_.nll->out; }  // [B], times weight
  const Tensor& loss() const { return values_.loss->out; }

 private:
  template <class L>
  bool fits() const {
    return channels_of(x) == L::kTargets && L::fits(parameters.size(1));
  }

  template <template <class, int> class L>
  void run_as(const char* name, const Device& device, const std::optional<Tensor>& mask, int64_t asked,
              const std::optional<Tensor>& kl, bool with_loss) {
    const ScalarType type = parameters.scalar_type();
    if (type == ScalarType::Float) launch<L, float>(name, device, mask, asked, kl, with_loss);
    else if (type == ScalarType::BFloat16) launch<L, BFloat16>(name, device, mask, asked, kl, with_loss);
    else launch<L, Half>(name, device, mask, asked, kl, with_loss);
  }

  template <template <class, int> class L, class P>
  void launch(const char* name, const Device& device, const std::optional<Tensor>& mask, int64_t asked,
              const std::optional<Tensor>& kl, bool with_loss) {
    using Lanes = L<float, 1>;
    const Place& place = device.place();
    JointTerm term;
    std::copy(options.begin(), options.end(), term.options);
    gradient = asked & 1 ? empty_planes(parameters, place) : empty({0}, parameters.scalar_type(), place);
    term.parameters = cube(parameters), term.x = cube(x);
    if (asked & 1) term.gradient = cube(gradient);
    const int64_t b = rows(), n = parameters.size(2);
    STD_TORCH_CHECK(b < (1 << 30) && n < (1 << 30), "there must be fewer than 2^30 rows and observations of a row");
    term.mask = mask_of(mask, b, n);
    term.planes = static_cast<int>(parameters.size(1));
    term.single = n == 1;
    term.columns = static_cast<int>(term.single ? b : n);
    if (term.single)
      for (Cube* c : {&term.parameters, &term.x, &term.gradient}) c->column_stride = c->row_stride;
    const bool by_warp = Lanes::kSingle && (term.parameters.by_observation() ? term.planes >= kLeastByWarp
                                                                             : tile_of<Lanes>(term.planes) < 8);
    term.together = by_warp ? std::min(kTileThreads / 32, kTileBytes / 4 / term.planes) : tile_of<Lanes>(term.planes);
    tile(term, b, by_warp ? kTilesByWarp : 1);
    values_.allocate(objective, place, with_loss);
    if (kl) objective.kl = static_cast<float*>(kl->data_ptr());
    const int threads = by_warp ? 32 * term.together : kTileThreads;
    const int bytes = 4 * static_cast<int>(by_warp ? term.planes * term.together
                                                   : planes_staged<Lanes>(term.planes) * (term.together + 1));
    if constexpr (Lanes::kSingle)
      if (by_warp) return launch<L, P, true>(name, device, term, threads, bytes);
    launch<L, P, false>(name, device, term, threads, bytes);
  }

  template <template <class, int> class L, class P, bool BY_WARP>
  void launch(const char* name, const Device& device, const JointTerm& term, int threads, int bytes) {
    const Tiling& t = objective.tiling;
    if (term.gradient.data)
      device.launch(name, joint_objective<L, P, true, BY_WARP>, t.groups, t.splits, threads, bytes, term, objective);
    else
      device.launch(name, joint_objective<L, P, false, BY_WARP>, t.groups, t.splits, threads, bytes, term, objective);
    values_.finish(device);
  }

  // Observations of a tile, a thread each: a power of two whose planes fit
  template <class L>
  static int tile_of(int planes) {
    int together = kTileThreads;
    while (together > 1 && 4 * planes_staged<L>(planes) * (together + 1) > kTileBytes) together /= 2;
    return together;
  }

  // least: tiles of a split
  void tile(const JointTerm& term, int64_t b, int64_t least) {
    Tiling& t = objective.tiling;
    objective.rows = b;
    const int64_t parts = std::max<int64_t>(1, cdiv(term.columns, term.together));
    if (term.single) {
      t.groups = cdiv(term.columns, term.together);
    } else {
      t.groups = b;
      const int64_t splits =
          std::min(cdiv(parts, least), std::max<int64_t>(1, cdiv(4 * kBlocks, std::max<int64_t>(1, b))));
      t.split_columns = static_cast<int>(cdiv(parts, splits)) * term.together;
      t.splits = static_cast<int>(std::max<int64_t>(1, cdiv(term.columns, t.split_columns)));
    }
  }

  Values values_;
};

// (parameters, x, options, weight?, mask?, asked) -> (nll [B], gradient)
template <template <class, int> class Accumulator, template <class, int> class Other>
void joint_nll(const char* name, StableIValue* stack) {
  using Program = JointProgram<Accumulator, Other>;
  if (Program::left_to_reference(name, stack)) return;
  Arguments in(stack);
  Program program(in);
  const auto weight = in.optional_tensor(), mask = in.optional_tensor();
  const int64_t asked = in.integer();
  const Device device(in.place());
  program.check();
  program.objective.weight = column_vector(weight, "weight", program.rows());
  program.run(name, device, mask, asked);
  Results out(stack);
  out.push(program.value());
  out.push(program.gradient);
}

// (parameters, x, options, mu, logvar, prior_mu?, prior_logvar?, weight?, mask?, beta_factor?, beta, scale, reduce, asked)
//   -> (loss, nll [B], kl [B], gradients of parameters, mu, logvar, prior_mu, prior_logvar). The KL is a launch before.
template <template <class, int> class Accumulator, template <class, int> class Other>
void joint_elbo(const char* name, StableIValue* stack) {
  using Program = JointProgram<Accumulator, Other>;
  if (Program::left_to_reference(name, stack)) return;
  if (left_to_reference(name, stack, 2 + Program::A::kOptions, 2, 2)) return;
  Arguments in(stack);
  Program program(in);
  const ElboArguments rest(in);
  const Device device(in.place());
  program.check();
  rest.check_latent(program.rows());
  Objective& o = program.objective;
  rest.set(o, program.rows());
  const GivenKl latent =
      rest.prior_mu
          ? given_kl(name, device, {rest.mu, rest.logvar, *rest.prior_mu, *rest.prior_logvar}, o, rest.asked >> 1)
          : standard_kl(name, device, {rest.mu, rest.logvar}, o, rest.asked >> 1);
  program.run(name, device, rest.mask, rest.asked, latent.kl, true);
  Results out(stack);
  out.push(program.loss());
  out.push(program.value());
  out.push(latent.kl);
  out.push(program.gradient);
  out.push(latent.gradients);
}

// The operators' name, the joint likelihood's accumulator, and the one for x of another number of channels
#define VAE_FAST_JOINT(name, accumulator, other)                     \
  static void name##_nll(StableIValue* stack, uint64_t, uint64_t) {  \
    joint_nll<accumulator, other>(#name "_nll", stack);              \
  }                                                                  \
  static void elbo_##name(StableIValue* stack, uint64_t, uint64_t) { \
    joint_elbo<accumulator, other>("elbo_" #name, stack);            \
  }                                                                  \
  STABLE_TORCH_LIBRARY_IMPL(vae_fast, CUDA, m) {                     \
    m.impl(#name "_nll", &name##_nll);                               \
    m.impl("elbo_" #name, &elbo_##name);                             \
  }

}  // namespace vae_fast
