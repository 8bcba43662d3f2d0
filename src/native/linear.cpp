// y = x W^T + b, with the weight in the type of x and the gradient of the bias summed in fp32.
#include "shim.h"

#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;
using linformer::WeightPointers;

namespace {

struct Linear : ag::Function<Linear> {
  // x [.., in], W [out, in], b [out] in fp32 or none; w: W in the type of x.
  static Tensor forward(ag::AutogradContext* context, const Tensor& x, const Tensor&, const std::optional<Tensor>& b, const Tensor* w) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, *w});
    context->saved_data["bias"] = b.has_value();
    return at::linear(x, *w, b ? std::optional<Tensor>(b->to(x.scalar_type())) : std::nullopt);
  }

  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list d_outs) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1];
    const Tensor d_y = d_outs[0].reshape({-1, w.size(0)});
    const Tensor d_x = context->needs_input_grad(0) ? at::mm(d_y, w).view(x.sizes()) : Tensor();
    const Tensor d_w = context->needs_input_grad(1) ? linformer::weight_gradient(d_y, x.reshape({-1, w.size(1)})) : Tensor();
    return {d_x, d_w, context->saved_data["bias"].toBool() ? linformer::column_sums(d_y) : Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" void* linformer_linear(void* x, const WeightPointers* weight, void* b) {
  LINFORMER_TRY
  const Tensor& input = linformer::tensor_at(x);
  const Tensor w = linformer::in_type(*weight, input.scalar_type());
  return new Tensor(Linear::apply(input, linformer::tensor_at(weight->parameter), linformer::tensor_or_none(b), &w));
  LINFORMER_CATCH(nullptr)
}
