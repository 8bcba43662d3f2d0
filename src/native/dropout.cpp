// Stateless dropout (philox.h): the same mask for any number of threads and any device, drawn again in the backward pass
// instead of being stored.
#include "shim.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include "rows.h"

namespace ag = torch::autograd;
using at::Tensor;
using linformer::kPerBlock, linformer::Mask;

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

// The same bits from tensor operations, for a device without a kernel of its own. 32-bit words live in int64.
Tensor apply_by_tensor_operations(const Tensor& x, const Mask& mask) {
  constexpr int64_t kLow = 0xffffffff;
  const auto high = [](const Tensor& t) { return t.bitwise_right_shift(32).bitwise_and(kLow); };
  const auto word = [](uint64_t v) { return static_cast<int64_t>(v & 0xffffffffull); };
  const auto options = x.options().dtype(at::kLong);
  const Tensor index = at::arange(x.numel(), options) + mask.offset;
  const Tensor block = index.div(kPerBlock, "floor");
  Tensor a = block.bitwise_and(kLow), b = high(block);
  Tensor c = at::full_like(block, word(mask.nonce)), d = at::full_like(block, word(mask.nonce >> 32));
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u, kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  uint32_t k0 = static_cast<uint32_t>(mask.key), k1 = static_cast<uint32_t>(mask.key >> 32);
  for (int round = 0; round < 10; round++, k0 += kWeyl0, k1 += kWeyl1) {
    const Tensor p0 = a * static_cast<int64_t>(kMultiplier0), p1 = c * static_cast<int64_t>(kMultiplier1);
    a = high(p1).bitwise_xor(b).bitwise_xor(static_cast<int64_t>(k0));
    c = high(p0).bitwise_xor(d).bitwise_xor(static_cast<int64_t>(k1));
    b = p1.bitwise_and(kLow);
    d = p0.bitwise_and(kLow);
  }
  const Tensor which = index.remainder(kPerBlock).div(2, "floor");
  const Tensor drawn = at::where(which.eq(0), a, at::where(which.eq(1), b, at::where(which.eq(2), c, d)));
  const Tensor bits = at::where(index.remainder(2).eq(1), drawn.bitwise_right_shift(16), drawn.bitwise_and(0xffff));
  const Tensor keep = bits.ge(static_cast<int64_t>(mask.threshold())).view(x.sizes());
  const Tensor scaled = (x.to(at::kFloat) * mask.scale()).to(x.scalar_type());
  return at::where(keep, scaled, at::zeros({}, x.options()));
}

Tensor apply(const Tensor& x, const Mask& mask, bool by_tensor_operations) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return by_tensor_operations || !x.is_cpu() ? apply_by_tensor_operations(x.contiguous(), mask) : apply_on_cpu(x, mask);
}

struct DropoutBackward final : ag::Node {
  Mask mask;
  bool by_tensor_operations;
  ag::variable_list apply(ag::variable_list&& gradients) override {
    if (!gradients[0].defined() || !task_should_compute_output(0)) return {Tensor()};
    return {::apply(gradients[0], mask, by_tensor_operations)};
  }
  std::string name() const override { return "StatelessDropoutBackward"; }
};

}  // namespace

extern "C" void* linformer_dropout(void* tensor, double p, uint64_t key, uint64_t nonce, int64_t offset,
                                   int by_tensor_operations) {
  LINFORMER_TRY
  const Tensor& x = *static_cast<Tensor*>(tensor);
  TORCH_CHECK(p >= 0.0 && p < 1.0, "dropout probability ", p, " is not in [0, 1)");
  const Mask mask{p, key, nonce, offset};
  Tensor out = apply(x, mask, by_tensor_operations != 0);
  if (ag::compute_requires_grad(x)) {
    auto node = std::shared_ptr<DropoutBackward>(new DropoutBackward(), ag::deleteNode);
    node->mask = mask;
    node->by_tensor_operations = by_tensor_operations != 0;
    node->set_next_edges(ag::collect_next_edges(x));
    ag::set_history(out, node);
  }
  return new Tensor(out);
  LINFORMER_CATCH(nullptr)
}
