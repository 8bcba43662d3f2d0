// out = GELU(h + bias) = x Phi(x); in the backward pass Phi is computed again instead of being stored.
#include "shim.h"

#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;

namespace {

struct BiasGelu : ag::Function<BiasGelu> {
  // h [.., f], bias [f] in fp32.
  static Tensor forward(ag::AutogradContext* context, const Tensor& h, const Tensor& bias) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor x = h.contiguous();
    context->save_for_backward({x, bias});
    return linformer::bias_gelu(x, bias, at::empty_like(x));
  }

  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list d_outs) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto saved = context->get_saved_variables();
    const Tensor d_h = at::empty_like(saved[0]);
    const Tensor d_bias = linformer::bias_gelu_backward(saved[0], saved[1], d_outs[0].contiguous(), d_h, Tensor());
    return {d_h, d_bias};
  }
};

}  // namespace

extern "C" void* linformer_bias_gelu(void* h, void* bias) {
  LINFORMER_TRY
  return new Tensor(BiasGelu::apply(linformer::tensor_at(h), linformer::tensor_at(bias)));
  LINFORMER_CATCH(nullptr)
}
