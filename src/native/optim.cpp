// libtorch's fused Adam and AdamW on lists of tensors, and the global gradient norm. tch exposes neither.
#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <optional>
#include <vector>

using at::Tensor;

namespace {
std::vector<Tensor> list(void** tensors, int count) {
  std::vector<Tensor> out;
  out.reserve(count);
  for (int i = 0; i < count; i++) out.push_back(*static_cast<Tensor*>(tensors[i]));
  return out;
}
}  // namespace

struct AdamSettings {
  double lr, beta1, beta2, eps, weight_decay;
  double gradient_divisor;  // gradients are divided by it: 1 / clip coefficient
  int decoupled;            // 1 AdamW, 0 Adam with L2
};

// One step in place on parameters, first and second moments and step counters (fp32 scalars, counted up here).
extern "C" int linformer_adam_step(void** parameters, void** gradients, void** exp_avg, void** exp_avg_sq, void** steps,
                                   int count, const AdamSettings* s) {
  LINFORMER_TRY
  if (count == 0) return 0;
  at::NoGradGuard no_grad;
  const auto p = list(parameters, count), m = list(exp_avg, count), v = list(exp_avg_sq, count), t = list(steps, count);
  const auto g = list(gradients, count);
  at::_foreach_add_(t, 1);
  std::optional<Tensor> divisor;
  if (s->gradient_divisor != 1.0) divisor = at::full({}, s->gradient_divisor, p[0].options().dtype(at::kFloat));
  if (s->decoupled)
    at::_fused_adamw_(p, g, m, v, {}, t, s->lr, s->beta1, s->beta2, s->weight_decay, s->eps, false, false, divisor);
  else
    at::_fused_adam_(p, g, m, v, {}, t, s->lr, s->beta1, s->beta2, s->weight_decay, s->eps, false, false, divisor);
  return 0;
  LINFORMER_CATCH(-1)
}

// Euclidean norm over all gradients as one number; norms[i] receives that of tensor i.
extern "C" int linformer_gradient_norms(void** gradients, int count, double* norms) {
  LINFORMER_TRY
  at::NoGradGuard no_grad;
  const auto each = at::_foreach_norm(list(gradients, count), 2, at::kFloat);
  const Tensor all = at::stack(each).to(at::kCPU, at::kDouble).contiguous();
  const double* from = all.const_data_ptr<double>();
  for (int i = 0; i < count; i++) norms[i] = from[i];
  return 0;
  LINFORMER_CATCH(-1)
}
