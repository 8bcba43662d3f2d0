// Dropout as a function of (seed, purpose, step). On a CPU stateless (philox.h): the same mask for any number of threads and any cut
// into micro-batches, drawn again in the backward pass instead of being stored. Elsewhere libtorch's fused dropout.
#include "shim.h"

#include <ATen/Context.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <mutex>

#include "rows.h"

namespace ag = torch::autograd;
using at::Tensor;
using linformer::Mask;

namespace {

Tensor apply_on_cpu(const Tensor& input, const Mask& mask) {
  const Tensor x = input.contiguous();
  Tensor out = at::empty_like(x);
  linformer::by_type(x, [&](auto element) {
    using E = decltype(element);
    at::parallel_for(0, x.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
      linformer::table<E>().dropout(linformer::data<E>(x), linformer::data<E>(out), begin, end, mask);
    });
  });
  return out;
}

struct DropoutBackward final : ag::Node {
  Mask mask;
  ag::variable_list apply(ag::variable_list&& gradients) override {
    if (!gradients[0].defined() || !task_should_compute_output(0)) return {Tensor()};
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return {apply_on_cpu(gradients[0], mask)};
  }
  std::string name() const override { return "StatelessDropoutBackward"; }
};

Tensor stateless(const Tensor& x, const Mask& mask) {
  Tensor out;
  {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    out = apply_on_cpu(x, mask);
  }
  if (ag::compute_requires_grad(x)) {
    auto node = std::shared_ptr<DropoutBackward>(new DropoutBackward(), ag::deleteNode);
    node->mask = mask;
    node->set_next_edges(ag::collect_next_edges(x));
    ag::set_history(out, node);
  }
  return out;
}

uint64_t mixed(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Starts the device's generator anew from the mask's numbers: what libtorch's fused dropout then draws is a function of them, as ours
// is, if with other bits and bound to the cut into micro-batches. Whoever draws holds what is given until then.
std::unique_lock<std::mutex> seeded(const at::Device& device, const Mask& mask) {
  static std::mutex one_at_a_time;
  std::unique_lock<std::mutex> held(one_at_a_time);
  at::Generator generator = at::globalContext().defaultGenerator(device);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_current_seed(mixed(mixed(mixed(mask.key) ^ mask.nonce) ^ static_cast<uint64_t>(mask.offset)));
  return held;
}

void check(const Mask& mask) { TORCH_CHECK(mask.p >= 0.0 && mask.p < 1.0, "dropout probability ", mask.p, " is not in [0, 1)"); }

}  // namespace

extern "C" void* linformer_dropout(void* tensor, const Mask* mask, int by_generator) {
  LINFORMER_TRY
  const Tensor& x = linformer::tensor_at(tensor);
  check(*mask);
  if (!by_generator && x.is_cpu()) return new Tensor(stateless(x, *mask));
  const auto held = seeded(x.device(), *mask);
  return new Tensor(std::get<0>(at::native_dropout(x, mask->p, true)));
  LINFORMER_CATCH(nullptr)
}

// libtorch's attention with dropout of its probabilities: q, k, v [B, h, rows, hd], keep (bool, or null) broadcastable to [B, h, rows, keys].
extern "C" void* linformer_attention_with_dropout(void* q, void* k, void* v, void* keep, const Mask* mask) {
  LINFORMER_TRY
  const auto tensor = linformer::tensor_at;
  check(*mask);
  const auto held = seeded(tensor(q).device(), *mask);
  return new Tensor(at::scaled_dot_product_attention(tensor(q), tensor(k), tensor(v), linformer::tensor_or_none(keep), mask->p));
  LINFORMER_CATCH(nullptr)
}
