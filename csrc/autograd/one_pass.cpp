// The node of operators that compute their gradients in the forward pass; `vae_fast/ops/onepass.py` says how.
#include <ATen/core/TorchDispatchUtils.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <bit>
#include <deque>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "node.h"

namespace vae_fast {
namespace {

// Of what a plain call's operands are; `vae_fast/likelihoods.py` says how
struct Observations {
  bool intensities, joint, channels, per_row;
};

// What OnePassOperator says in Python
struct Operator {
  OperatorHandle handle;
  int64_t arity, values;  // arguments without `asked`; results before the gradients
  std::vector<int64_t> differentiable;
  int64_t rows, weight;
  std::optional<int64_t> reduce;
  Observations observations;

  Stack run(Stack arguments, int64_t asked) const {
    arguments.emplace_back(asked);
    return call(handle, std::move(arguments));
  }
  // The gradients that are asked for
  variable_list gradients(const Stack& results, int64_t asked) const {
    variable_list found;
    for (size_t k = 0; k < differentiable.size(); ++k)
      if (asked >> k & 1) found.push_back(results[values + k].toTensor());
    return found;
  }
};

std::deque<Operator> operators;  // a node knows its own by number

// What a call is asked for, and what its backward will have to do
struct Request {
  int64_t asked = 0;
  bool recomputes = false, sums_rows = false;
  variable_list inputs;  // that require gradients

  // given: the arguments as the caller has them, of which the operator's may be views or copies
  Request(const Operator& op, const Stack& given, const Stack& arguments) {
    if (!at::GradMode::is_enabled()) return;
    const bool reduces = op.reduce && arguments[*op.reduce].toBool();
    const int64_t rows = arguments[op.rows].toTensor().size(0);
    for (size_t k = 0; k < op.differentiable.size(); ++k) {
      const int64_t i = op.differentiable[k];
      if (!given[i].isTensor() || !given[i].toTensor().requires_grad()) continue;
      const Tensor& t = inputs.emplace_back(given[i].toTensor());
      asked |= int64_t{1} << k;
      recomputes |= t.scalar_type() == at::kHalf;
      sums_rows |= !reduces && arguments[i].toTensor().size(0) != rows;
    }
  }
};

// While a graph is traced, or runs for a batch of incoming gradients
bool stands_for_others(const Tensor& dvalue) {
  using Key = c10::DispatchKey;
  constexpr c10::DispatchKeySet kOthers{Key::Python, Key::Functionalize, Key::FuncTorchBatched,
                                        Key::FuncTorchGradWrapper, Key::Batched};
  return dvalue.key_set().has_any(kOthers) || at::impl::dispatch_mode_enabled();
}

// Whether the gradients may be asked for once more
bool must_keep(const Tensor& dvalue) {
  return stands_for_others(dvalue) || torch::autograd::get_current_graph_task_keep_graph();
}

template <class T>
bool values_equal(const Tensor& dvalue, std::optional<double> wanted) {
  const int64_t stride = dvalue.dim() ? dvalue.stride(0) : 0, count = stride ? dvalue.size(0) : 1;
  const T* values = dvalue.const_data_ptr<T>();
  const T first = wanted ? static_cast<T>(*wanted) : values[0];
  for (int64_t i = 0; i < count; ++i)
    if (values[i * stride] != first) return false;
  return true;
}

// Whether all numbers of dvalue, [] or [B], are the wanted one, or, without one, the same. false: not, or not known.
bool all_equal(const Tensor& dvalue, std::optional<double> wanted = {}) {
  if (dvalue.numel() == 0 || stands_for_others(dvalue) || dvalue.is_neg() || dvalue._is_zerotensor()) return false;
  if (dvalue.scalar_type() == at::kDouble) return values_equal<double>(dvalue, wanted);
  return dvalue.scalar_type() == at::kFloat && values_equal<float>(dvalue, wanted);
}

bool is_uniform(const Tensor& dvalue) { return dvalue.stride(0) == 0 || all_equal(dvalue); }

// gradient [B, ...] times factor, [] or [B]; a factor of 0 selects, it doesn't multiply
Tensor times(const Tensor& gradient, Tensor factor) {
  for (int64_t d = factor.dim() ? 1 : gradient.dim(); d < gradient.dim(); ++d) factor = factor.unsqueeze(-1);
  return at::where(factor.eq(0), at::Scalar(0), gradient.mul(factor)).to(gradient.scalar_type());
}

// [B, C, N], contiguous or channels last, as [B, D]
Tensor matrix(const Tensor& gradient) {
  if (gradient.dim() == 2) return gradient;
  return (gradient.is_contiguous() ? gradient : gradient.transpose(1, 2)).flatten(1);
}

// In the wider dtype: torch would let a 0-dim float32 fall to a float16 vector's
Tensor product(const Tensor& a, const Tensor& b) {
  const auto type = c10::promoteTypes(a.scalar_type(), b.scalar_type());
  return a.to(type).mul(b.to(type));
}

// What a node knows of its call; as one number, since each that is saved is looked up by a string
struct Plan {
  int64_t number, asked;
  bool recomputes, sums_rows, channels_last;

  static constexpr int kFlags = 3, kMostGradients = 16;
  int64_t packed() const {
    return (number << kMostGradients | asked) << kFlags | recomputes << 2 | sums_rows << 1 | channels_last;
  }
  static Plan of(int64_t packed) {
    const int64_t rest = packed >> kFlags;
    return {rest >> kMostGradients, rest & ((1 << kMostGradients) - 1), (packed & 4) != 0, (packed & 2) != 0,
            (packed & 1) != 0};
  }
};

struct OnePass : torch::autograd::Function<OnePass> {
  // inputs: the request's. `stack`: the arguments, then the results. Returned is the value that is differentiable.
  static Tensor forward(AutogradContext* ctx, at::TensorList inputs, const Request& request, int64_t number,
                        bool channels_last, Stack& stack) {
    const Operator& op = operators[number];
    auto& data = ctx->saved_data;
    const Plan plan{number, request.asked, request.recomputes, request.sums_rows, channels_last};
    data["plan"] = plan.packed();
    save_shapes(ctx, plan, inputs, stack);
    if (request.recomputes || request.sums_rows) save(ctx, stack);
    stack = op.run(std::move(stack), request.recomputes ? 0 : request.asked);
    if (!request.recomputes) {
      const variable_list gradients = op.gradients(stack, request.asked);
      for (size_t i = 0; i < gradients.size(); ++i) data[std::to_string(i)] = gradients[i];
    }
    ctx->set_materialize_grads(false);
    return stack[0].toTensor();
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& incoming) {
    check_differentiates_once();
    const variable_list saved = ctx->get_saved_variables();  // throws where the graph was freed
    const Plan plan = Plan::of(ctx->saved_data["plan"].toInt());
    const Tensor dvalue = dense(incoming[0]);
    variable_list result;
    if (dvalue.defined()) result = in_shape(ctx, plan, gradients_of(ctx, plan, saved, dvalue));
    else result.resize(std::popcount(static_cast<uint64_t>(plan.asked)));
    result.resize(result.size() + 4);  // of what else `forward` takes
    return result;
  }

 private:
  static variable_list gradients_of(AutogradContext* ctx, const Plan& plan, const variable_list& saved, Tensor dvalue) {
    const Operator& op = operators[plan.number];
    if (plan.sums_rows && dvalue.dim() && dvalue.size(0) && is_uniform(dvalue)) dvalue = dvalue.select(0, 0);
    if (!plan.recomputes && !(plan.sums_rows && dvalue.dim())) return scaled(ctx, dvalue);
    if (!must_keep(dvalue)) kept(ctx, true);  // dropped before there are others
    Stack arguments = restored(ctx, saved);
    const int64_t rows = arguments[op.rows].toTensor().size(0);
    const IValue weight = arguments[op.weight];
    arguments[op.weight] = weight.isNone() ? dvalue.expand({rows}) : product(dvalue, weight.toTensor());
    return op.gradients(op.run(std::move(arguments), plan.asked), plan.asked);
  }

  // The kept gradients times dvalue, [] or [B]: in place where nobody else can hold or ask for them
  static variable_list scaled(AutogradContext* ctx, const Tensor& dvalue) {
    const bool last = !must_keep(dvalue);
    variable_list gradients = kept(ctx, last);
    if (!last) {
      for (Tensor& g : gradients)
        if (g.numel()) g = times(g, dvalue);
      return gradients;
    }
    if (all_equal(dvalue, 1.)) return gradients;  // of a loss, of a sum: `scale_rows_` needn't be called to see it
    static const OperatorHandle scale_rows = find("scale_rows_");
    for (const Tensor& g : gradients)
      if (g.numel()) call(scale_rows, {matrix(g), dvalue});
    return gradients;
  }

  // The kept gradients, `last` for the last time; each by its own name, as compiled autograd wants tensors
  static variable_list kept(AutogradContext* ctx, bool last) {
    variable_list gradients;
    for (auto& data = ctx->saved_data;;) {
      const auto found = data.find(std::to_string(gradients.size()));
      if (found == data.end()) return gradients;
      gradients.push_back(found->second.toTensor());
      if (last) data.erase(found);
    }
  }

  // The inputs' shapes, if the operator has one of them in another: gradients are returned in those, without nodes for
  // views. Planes that were last are in another even where the sizes agree.
  static void save_shapes(AutogradContext* ctx, const Plan& plan, at::TensorList inputs, const Stack& arguments) {
    const Operator& op = operators[plan.number];
    bool differ = false;
    const Tensor* input = inputs.begin();
    for (size_t k = 0; k < op.differentiable.size(); ++k) {
      if (!(plan.asked >> k & 1)) continue;
      const Tensor& taken = arguments[op.differentiable[k]].toTensor();
      differ |= (input++)->sizes() != taken.sizes() || is_turned(plan, taken);
    }
    if (!differ) return;
    std::vector<std::vector<int64_t>> shapes;
    for (const Tensor& t : inputs) shapes.push_back(t.sizes().vec());
    ctx->saved_data["shapes"] = std::move(shapes);
  }
  static variable_list in_shape(AutogradContext* ctx, const Plan& plan, variable_list gradients) {
    const auto found = ctx->saved_data.find("shapes");
    if (found == ctx->saved_data.end()) return gradients;
    const auto shapes = found->second.to<std::vector<std::vector<int64_t>>>();
    for (size_t i = 0; i < gradients.size(); ++i) {
      Tensor& g = gradients[i];
      if (is_turned(plan, g)) g = g.transpose(1, 2);
      if (g.sizes() != at::IntArrayRef(shapes[i])) g = g.reshape(shapes[i]);
    }
    return gradients;
  }
  // Of operands [B, C, N], whether the caller has them as [B, ..., C]
  static bool is_turned(const Plan& plan, const Tensor& t) { return plan.channels_last && t.dim() == 3; }

  static void save(AutogradContext* ctx, const Stack& arguments) {
    variable_list tensors;
    c10::impl::GenericList numbers(c10::AnyType::get());
    for (const IValue& a : arguments) {
      // Were its base changed, torch would complain of a view made under no_grad, and not of the change
      tensors.push_back(!a.isTensor() ? Tensor() : a.toTensor().is_view() ? a.toTensor().detach() : a.toTensor());
      numbers.push_back(a.isTensor() ? IValue() : a);
    }
    ctx->save_for_backward(std::move(tensors));
    ctx->saved_data["numbers"] = std::move(numbers);
  }
  static Stack restored(AutogradContext* ctx, const variable_list& saved) {
    const auto numbers = ctx->saved_data["numbers"].toList();
    Stack arguments;
    for (size_t i = 0; i < saved.size(); ++i)
      arguments.push_back(saved[i].defined() ? IValue(saved[i]) : IValue(numbers.get(i)));
    return arguments;
  }
};

// Whether operands are as in most calls, which need no look at them in Python; they become what the operator takes,
// views, or copies where strides allow none, of which autograd needn't know.
class Plain {
 public:
  Plain(const Operator& op, Stack& arguments) : op_(op), arguments_(arguments), x_(arguments[op.rows].toTensor()) {}

  // Of a likelihood, but for optional ones. channels_last: of what is joint, the planes are the last dimension.
  bool are_plain(bool channels_last) {
    if (!is_strided(x_) || !is_observed() || x_.requires_grad()) return false;
    const at::NoGradGuard unrecorded;
    return (op_.observations.joint ? are_planes(channels_last) : are_rows()) && is_posterior();
  }

 private:
  const Tensor& parameter(int64_t i) const { return arguments_[i].toTensor(); }

  bool is_observed() const {
    const at::ScalarType type = x_.scalar_type();
    if (is_floating(x_) || type == at::kByte || type == at::kBool) return true;
    return !op_.observations.intensities && (type == at::kInt || type == at::kLong || type == at::kUInt16);
  }

  // x [B, ...] and parameters of its shape; after the first they may repeat, and the last may have to
  bool are_rows() {
    if (!has_rows(x_)) return false;
    for (int64_t i = 0; i < op_.rows; ++i) {
      const Tensor t = parameter(i);
      const bool by_row = op_.observations.per_row && i == op_.rows - 1;
      if (!is_strided(t) || !is_floating(t)) return false;
      if (t.sizes() == x_.sizes() && has_rows(t) && !by_row) arguments_[i] = rows_of(t);
      else if (i > 0 && t.numel() == 1) arguments_[i] = t.reshape({1, 1});
      else if (i > 0 && is_vector(t, by_row ? 0 : 1)) arguments_[i] = t.unsqueeze(by_row ? 1 : 0);
      else return false;
    }
    arguments_[op_.rows] = rows_of(x_);
    return true;
  }
  // One number for each row or column of the matrix x; narrow ones would have to be widened
  bool is_vector(const Tensor& t, int64_t along) const {
    const bool wide = t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble;
    return wide && t.dim() == 1 && x_.dim() == 2 && t.size(0) == x_.size(along);
  }

  // Parameters [B, C, ...] and x [B, ...], of classes, or [B, channels, ...]
  bool are_planes(bool channels_last) {
    const bool channels = op_.observations.channels;
    Tensor p = parameter(0), x = x_;
    if (!is_strided(p) || !is_floating(p) || p.dim() < 2 || x.dim() < 1 + channels) return false;
    if (channels_last) p = p.movedim(-1, 1);
    if (channels_last && channels) x = x.movedim(-1, 1);
    if (p.size(0) != x.size(0) || p.sizes().slice(2) != x.sizes().slice(1 + channels) || p.size(1) == 0) return false;
    if (channels) {
      const int64_t count = x.size(1);
      if (count != arguments_[op_.rows + 1].toDouble() || (count != 1 && count != 3)) return false;
      if (p.size(1) % (count == 3 ? 10 : 3) != 0) return false;
    }
    arguments_[0] = planes_of(p), arguments_[op_.rows] = channels ? planes_of(x) : rows_of(x);
    return true;
  }
  static Tensor planes_of(const Tensor& t) { return t.dim() > 2 ? t.flatten(2) : t.unsqueeze(2); }

  // mu and logvar, of one shape, where the operator has them
  bool is_posterior() {
    std::optional<Tensor> mu;
    for (const int64_t i : op_.differentiable) {
      if (i < op_.rows || arguments_[i].isNone()) continue;
      const Tensor t = parameter(i);
      if (!has_rows(t) || !is_floating(t)) return false;
      if (!mu) mu = t;
      if (t.size(0) != x_.size(0) || t.sizes() != mu->sizes()) return false;
      arguments_[i] = rows_of(t);
    }
    return true;
  }

  const Operator& op_;
  Stack& arguments_;
  const Tensor x_;
};

// The operator's values, differentiable; with `checks`, none where Python has to look at the operands
class Recorded : public c10::OperatorKernel {
 public:
  Recorded(int64_t number, bool checks) : number_(number), checks_(checks) {}

  void operator()(const OperatorHandle&, c10::DispatchKeySet, Stack* stack) const {
    const Operator& op = operators[number_];
    const bool channels_last = checks_ && torch::jit::pop(*stack).toBool();
    const auto first = std::make_move_iterator(stack->end() - op.arity);
    const Stack given(first, std::make_move_iterator(stack->end()));
    Stack own = given;
    torch::jit::drop(*stack, op.arity);
    if (checks_ && !Plain(op, own).are_plain(channels_last)) {
      stack->resize(stack->size() + op.values);
      return;
    }
    if (const Request request(op, given, own); request.asked)
      own[0] = OnePass::apply(at::TensorList(request.inputs), request, number_, channels_last, own);
    else own = op.run(std::move(own), 0);
    std::move(own.begin(), own.begin() + op.values, std::back_inserter(*stack));
  }

 private:
  int64_t number_;
  bool checks_;
};

// vae_fast_autograd::name has the arguments of vae_fast::name without `asked`, and its values for results; of likelihoods,
// which have a kind, there is name.plain, which has them only where the operands are plain
void define(const std::string& name, int64_t values, const std::vector<int64_t>& differentiable, int64_t rows,
            int64_t weight, std::optional<int64_t> reduce, const std::string& kind, const std::string& joint,
            bool per_row) {
  // Never destroyed: torch's dispatcher may be gone by then
  static auto* library = new torch::Library(torch::Library::FRAGMENT, "vae_fast_autograd", {}, __FILE__, __LINE__);
  const OperatorHandle handle = find(name);
  const auto &arguments = handle.schema().arguments(), &results = handle.schema().returns();
  const int64_t number = operators.size(), arity = arguments.size() - 1;
  const Observations observations{kind == "intensity", !joint.empty(), joint == "channels", per_row};
  operators.push_back({handle, arity, values, differentiable, rows, weight, reduce, observations});
  for (const bool checks : {false, true}) {
    if (checks && kind.empty()) break;
    std::vector<c10::Argument> given(arguments.begin(), arguments.end() - 1);
    std::vector<c10::Argument> own(results.begin(), results.begin() + values);
    if (checks) {
      given.emplace_back("channels_last", c10::BoolType::get());
      std::fill(own.begin(), own.end(), c10::Argument("", c10::OptionalType::ofTensor()));
    }
    const std::string overload = checks ? "plain" : "";
    library->def(c10::FunctionSchema("vae_fast_autograd::" + name, overload, given, own));
    library->impl((name + (checks ? ".plain" : "")).c_str(),
                  torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Recorded>(number, checks)));
  }
}

TORCH_LIBRARY(vae_fast_autograd, m) {
  m.def(
      "define(str name, int values, int[] differentiable, int rows, int weight, int? reduce, str kind, str joint, "
      "bool per_row) -> ()",
      &define);
}

}  // namespace
}  // namespace vae_fast
