// out = GELU(h + bias) = x Phi(x); in the backward pass Phi is computed again instead of being stored.
#include "shim.h"

#include <torch/csrc/autograd/custom_function.h>

#include "rows.h"

using at::Tensor;
namespace ag = torch::autograd;
using linformer::by_type, linformer::data, linformer::floats, linformer::table;

namespace {

struct BiasGelu : ag::Function<BiasGelu> {
  // h [.., f], bias [f] in fp32.
  static Tensor forward(ag::AutogradContext* context, const Tensor& h, const Tensor& bias) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const int64_t width = bias.numel(), rows = h.numel() / width;
    const Tensor x = h.contiguous(), out = at::empty_like(x);
    by_type(x, [&](auto element) {
      using E = decltype(element);
      linformer::over_rows(rows, [&](int64_t first, int64_t last) {
        table<E>().bias_gelu(data<E>(x), floats(bias), data<E>(out), width, first, last);
      });
    });
    context->save_for_backward({x, bias});
    return out;
  }

  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list gradients) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &bias = saved[1];
    const int64_t width = bias.numel(), rows = x.numel() / width;
    const Tensor d_out = gradients[0].contiguous(), d_h = at::empty_like(x);
    Tensor d_bias;
    by_type(x, [&](auto element) {
      using E = decltype(element);
      d_bias = linformer::summed_over_rows(rows, width, [&](int64_t first, int64_t last, float* sums) {
        table<E>().bias_gelu_backward(data<E>(x), floats(bias), data<E>(d_out), data<E>(d_h), width, first, last, sums);
      });
    });
    return {d_h, d_bias};
  }
};

}  // namespace

extern "C" void* linformer_bias_gelu(void* h, void* bias) {
  LINFORMER_TRY
  return new Tensor(BiasGelu::apply(*static_cast<Tensor*>(h), *static_cast<Tensor*>(bias)));
  LINFORMER_CATCH(nullptr)
}
