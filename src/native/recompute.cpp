// A part of the model that keeps its input alone for the backward pass, and is run forward once more there.
#include "shim.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;

namespace {

// The caller's closure. `run` takes a tensor over and gives one, or null with the reason in last_error().
struct RecomputedPart {
  void* closure;
  void* (*run)(void* closure, void* x);
  void (*drop)(void* closure);

  Tensor operator()(const Tensor& x) const {
    Tensor* out = static_cast<Tensor*>(run(closure, new Tensor(x)));
    TORCH_CHECK(out, linformer::last_error());
    const std::unique_ptr<Tensor> owner(out);
    return *out;
  }
  ~RecomputedPart() { drop(closure); }
};

struct Recompute final : ag::Node {
  std::shared_ptr<RecomputedPart> part;
  ag::SavedVariable x;
  std::vector<Tensor> weights;

  // The gradients of x and the weights come from a graph of their own, made and used up here.
  ag::variable_list apply(ag::variable_list&& d_outs) override {
    if (!d_outs[0].defined()) return ag::variable_list(1 + weights.size());
    TORCH_CHECK(part, "a graph with recomputation can be used once");
    const at::AutoGradMode with_gradients(true);
    const Tensor input = x.unpack().detach().set_requires_grad(true);
    const Tensor out = (*part)(input);
    ag::variable_list inputs{input};
    inputs.insert(inputs.end(), weights.begin(), weights.end());
    return ag::grad({out}, inputs, {d_outs[0]}, /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
  }

  void release_variables() override {
    x.reset_data();
    part.reset();
  }

  std::string name() const override { return "Recompute"; }
};

}  // namespace

// out = part(x). `weights`: all that the part multiplies or adds and that is learned. The closure is dropped when the graph is.
extern "C" void* linformer_recompute(void* x_at, void** weights, int count, void* closure, void* (*run)(void*, void*), void (*drop)(void*)) {
  LINFORMER_TRY
  const auto part = std::shared_ptr<RecomputedPart>(new RecomputedPart{closure, run, drop});
  const Tensor& x = linformer::tensor_at(x_at);
  std::vector<Tensor> list;
  for (int i = 0; i < count; i++) list.push_back(linformer::tensor_at(weights[i]));
  const bool is_learning = ag::compute_requires_grad(x, list);
  Tensor out;
  {
    // As it will be run again, with a graph, which is dropped at once: some of libtorch's operations (matmul) choose their way by whether a
    // gradient is wanted, and another way gives other bits.
    const at::AutoGradMode with_gradients(is_learning);
    out = (*part)(x.detach().set_requires_grad(is_learning)).detach();
  }
  if (is_learning) {
    const auto node = std::shared_ptr<Recompute>(new Recompute(), ag::deleteNode);
    node->part = part;
    node->x = ag::SavedVariable(x, false);
    node->weights = list;
    node->set_next_edges(ag::collect_next_edges(x, list));
    ag::set_history(out, node);
  }
  return new Tensor(out);
  LINFORMER_CATCH(nullptr)
}

// Notes why a closure failed.
extern "C" void linformer_fail(const char* text, int64_t length) { linformer::last_error().assign(text, length); }
