// The feed-forward block: out = LayerNorm(x + dropout(GELU(x W1^T + b1) W2^T + b2)).
//
// Kept for the backward pass: h = x W1^T and the sum under the LayerNorm. GELU is computed again from h; where there will be
// no backward pass it takes h's memory.
#include "shim.h"

#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;
using linformer::Mask, linformer::WeightPointers;

namespace {

struct FeedForward : ag::Function<FeedForward> {
  struct Plan {
    Tensor w1, w2;   // in the type of x
    Tensor numbers;  // of the rows, for the mask; or undefined
    double eps;
    Mask mask;
    bool is_kept;  // for a backward pass
  };

  // x [rows, d], W1 [f, d], W2 [d, f]; biases, gamma, beta in fp32.
  static Tensor forward(ag::AutogradContext* context, const Tensor& x_in, const Tensor&, const Tensor& b1, const Tensor&, const Tensor& b2,
                        const Tensor& gamma, const Tensor& beta, const Plan* plan) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor x = x_in.contiguous();
    const Tensor h = at::mm(x, plan->w1.t());
    const Tensor y = at::mm(linformer::bias_gelu(h, b1, plan->is_kept ? at::empty_like(h) : h), plan->w2.t());
    const auto normed = linformer::drop_add_norm(y, b2, x, gamma, beta, plan->eps, plan->mask, plan->numbers);
    if (plan->is_kept) context->save_for_backward({x, plan->w1, b1, plan->w2, gamma, h, normed.sum, normed.mean, normed.rstd, plan->numbers});
    linformer::save(context, plan->mask);
    return normed.out;
  }

  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list d_outs) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &w1 = saved[1], &b1 = saved[2], &w2 = saved[3], &gamma = saved[4], &h = saved[5];
    const auto d = linformer::drop_add_norm_backward(d_outs[0], saved[6], gamma, saved[7], saved[8], linformer::saved_mask(context), saved[9]);
    const Tensor d_h = at::mm(d.y, w2), a = at::empty_like(h);
    const Tensor d_b1 = linformer::bias_gelu_backward(h, b1, d_h, d_h, a);
    const Tensor d_w1 = linformer::weight_gradient(d_h, x), d_w2 = linformer::weight_gradient(d.y, a);
    Tensor d_x = d.residual;
    // Without dropout y's gradient is the same memory, and still needed below no more.
    at::addmm_out(d_x, d_x, d_h, w1);
    return {d_x, d_w1, d_b1, d_w2, d.bias, d.gamma, d.beta, Tensor()};
  }
};

// The end of the attention block: out = LayerNorm(x + dropout(o W^T + b)).
struct OutputNorm : ag::Function<OutputNorm> {
  struct Plan {
    Tensor w, numbers;
    double eps;
    Mask mask;
  };

  static Tensor forward(ag::AutogradContext* context, const Tensor& o_in, const Tensor& x, const Tensor&, const Tensor& b, const Tensor& gamma,
                        const Tensor& beta, const Plan* plan) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor o = o_in.contiguous();
    const auto normed = linformer::drop_add_norm(at::mm(o, plan->w.t()), b, x, gamma, beta, plan->eps, plan->mask, plan->numbers);
    context->save_for_backward({o, plan->w, gamma, normed.sum, normed.mean, normed.rstd, plan->numbers});
    linformer::save(context, plan->mask);
    return normed.out;
  }

  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list d_outs) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto saved = context->get_saved_variables();
    const auto d = linformer::drop_add_norm_backward(d_outs[0], saved[3], saved[2], saved[4], saved[5], linformer::saved_mask(context), saved[6]);
    return {at::mm(d.y, saved[1]), d.residual, linformer::weight_gradient(d.y, saved[0]), d.bias, d.gamma, d.beta, Tensor()};
  }
};

}  // namespace

using linformer::in_type, linformer::tensor_at;

namespace {

// The numbers of the rows of x, if they are given.
Tensor numbers_of(void* numbers, const Tensor& x) {
  const Tensor given = numbers ? tensor_at(numbers).contiguous() : Tensor();
  TORCH_CHECK(!numbers || given.numel() == x.size(0), given.numel(), " numbers of ", x.size(0), " rows");
  return given;
}

}  // namespace

extern "C" void* linformer_feed_forward(void* x, const WeightPointers* w1, void* b1, const WeightPointers* w2, void* b2, void* gamma, void* beta,
                                        double eps, const Mask* mask, void* numbers) {
  LINFORMER_TRY
  const at::ScalarType type = tensor_at(x).scalar_type();
  const FeedForward::Plan plan{in_type(*w1, type), in_type(*w2, type), numbers_of(numbers, tensor_at(x)), eps, *mask, at::GradMode::is_enabled()};
  return new Tensor(FeedForward::apply(tensor_at(x), tensor_at(w1->parameter), tensor_at(b1), tensor_at(w2->parameter), tensor_at(b2),
                                       tensor_at(gamma), tensor_at(beta), &plan));
  LINFORMER_CATCH(nullptr)
}

extern "C" void* linformer_output_norm(void* o, void* x, const WeightPointers* w, void* b, void* gamma, void* beta, double eps,
                                       const Mask* mask, void* numbers) {
  LINFORMER_TRY
  const OutputNorm::Plan plan{in_type(*w, tensor_at(o).scalar_type()), numbers_of(numbers, tensor_at(o)), eps, *mask};
  return new Tensor(OutputNorm::apply(tensor_at(o), tensor_at(x), tensor_at(w->parameter), tensor_at(b), tensor_at(gamma), tensor_at(beta), &plan));
  LINFORMER_CATCH(nullptr)
}
