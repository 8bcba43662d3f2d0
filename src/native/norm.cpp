// out = LayerNorm(residual + dropout(y + bias)) in one pass over memory, and its gradients in another.
#include "shim.h"

#include <torch/csrc/autograd/custom_function.h>

#include "rows.h"

using at::Tensor;
namespace ag = torch::autograd;
using linformer::by_type, linformer::data, linformer::floats, linformer::Mask, linformer::Stored, linformer::table;

namespace {

struct DropAddNorm : ag::Function<DropAddNorm> {
  // y, residual [.., d]; bias, gamma, beta [d] in fp32. y's memory is taken for the sum.
  static Tensor forward(ag::AutogradContext* context, const Tensor& y, const std::optional<Tensor>& bias_or_none,
                        const std::optional<Tensor>& residual_or_none, const Tensor& gamma, const Tensor& beta, double eps, const Mask* mask) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor bias = bias_or_none.value_or(Tensor()), residual = residual_or_none.value_or(Tensor());
    const int64_t width = gamma.numel(), rows = y.numel() / width;
    const Tensor sum = y.contiguous(), kept = residual.defined() ? residual.contiguous() : Tensor();
    const Tensor out = at::empty_like(sum), mean = at::empty({rows}, at::kFloat), rstd = at::empty({rows}, at::kFloat);
    by_type(sum, [&](auto element) {
      using E = decltype(element);
      const linformer::NormForward<Stored<E>> arguments{data<E>(sum),  floats(bias),   data<E>(kept),  floats(gamma), floats(beta), float(eps),
                                                        data<E>(out), floats(mean), floats(rstd), width,         *mask};
      linformer::over_rows(rows, [&](int64_t first, int64_t last) { table<E>().drop_add_norm(arguments, first, last); });
    });
    context->save_for_backward({sum, gamma, mean, rstd});
    context->saved_data["p"] = mask->p;
    context->saved_data["key"] = static_cast<int64_t>(mask->key);
    context->saved_data["nonce"] = static_cast<int64_t>(mask->nonce);
    context->saved_data["offset"] = mask->offset;
    context->saved_data["bias"] = bias.defined();
    context->saved_data["residual"] = residual.defined();
    return out;
  }

  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list gradients) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto saved = context->get_saved_variables();
    const Tensor &sum = saved[0], &gamma = saved[1], &mean = saved[2], &rstd = saved[3];
    const auto word = [&](const char* name) { return static_cast<uint64_t>(context->saved_data[name].toInt()); };
    const Mask mask{context->saved_data["p"].toDouble(), word("key"), word("nonce"), context->saved_data["offset"].toInt()};
    const int64_t width = gamma.numel(), rows = sum.numel() / width;
    const Tensor d_out = gradients[0].contiguous(), d_residual = at::empty_like(sum);
    const Tensor d_y = mask.threshold() > 0 ? at::empty_like(sum) : d_residual;
    Tensor sums;
    by_type(sum, [&](auto element) {
      using E = decltype(element);
      const linformer::NormBackward<Stored<E>> arguments{data<E>(d_out),      data<E>(sum), floats(gamma), floats(mean), floats(rstd),
                                                         data<E>(d_residual), data<E>(d_y), width,         mask};
      sums = linformer::summed_over_rows(rows, 3 * width, [&](int64_t first, int64_t last, float* part) {
        table<E>().drop_add_norm_backward(arguments, first, last, part);
      });
    });
    const Tensor d_bias = context->saved_data["bias"].toBool() ? sums.narrow(0, 2 * width, width) : Tensor();
    return {d_y,    d_bias, context->saved_data["residual"].toBool() ? d_residual : Tensor(), sums.narrow(0, 0, width), sums.narrow(0, width, width),
            Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" void* linformer_drop_add_norm(void* y, void* bias, void* residual, void* gamma, void* beta, double eps, double p, uint64_t key,
                                         uint64_t nonce, int64_t offset) {
  LINFORMER_TRY
  const Mask mask{p, key, nonce, offset};
  const auto tensor = linformer::tensor_at;
  return new Tensor(DropAddNorm::apply(tensor(y), linformer::tensor_or_none(bias), linformer::tensor_or_none(residual), tensor(gamma), tensor(beta),
                                       eps, &mask));
  LINFORMER_CATCH(nullptr)
}
