// out = LayerNorm(residual + dropout(y + bias)) in one pass over memory, and its gradients in another.
#include "shim.h"

#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;
using linformer::Mask;

namespace {

struct DropAddNorm : ag::Function<DropAddNorm> {
  // y, residual [.., d]; bias, gamma, beta [d] in fp32. y's memory is taken for the sum.
  static Tensor forward(ag::AutogradContext* context, const Tensor& y, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                        const Tensor& gamma, const Tensor& beta, double eps, const Mask* mask) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto normed = linformer::drop_add_norm(y, bias.value_or(Tensor()), residual.value_or(Tensor()), gamma, beta, eps, *mask);
    context->save_for_backward({normed.sum, gamma, normed.mean, normed.rstd});
    linformer::save(context, *mask);
    context->saved_data["bias"] = bias.has_value();
    context->saved_data["residual"] = residual.has_value();
    return normed.out;
  }

  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list d_out) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto saved = context->get_saved_variables();
    const auto d = linformer::drop_add_norm_backward(d_out[0], saved[0], saved[1], saved[2], saved[3], linformer::saved_mask(context));
    const auto if_given = [&](const char* name, const Tensor& gradient) { return context->saved_data[name].toBool() ? gradient : Tensor(); };
    return {d.y, if_given("bias", d.bias), if_given("residual", d.residual), d.gamma, d.beta, Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" void* linformer_drop_add_norm(void* y, void* bias, void* residual, void* gamma, void* beta, double eps, const Mask* mask) {
  LINFORMER_TRY
  using linformer::tensor_at, linformer::tensor_or_none;
  return new Tensor(DropAddNorm::apply(tensor_at(y), tensor_or_none(bias), tensor_or_none(residual), tensor_at(gamma), tensor_at(beta), eps, mask));
  LINFORMER_CATCH(nullptr)
}
