// Adam (Kingma and Ba, algorithm 1; AdamW: Loshchilov and Hutter, algorithm 2) and the norm of the gradients that clipping needs.
//
// g = gradient * scale + decay * w (Adam's L2; AdamW has decay 0); m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
// w = shrink * w - step_size * m / (sqrt(v) * inverse_root + eps): step_size = lr / (1 - beta1^t),
// inverse_root = 1 / sqrt(1 - beta2^t), shrink = 1 - lr * decay of AdamW (1 of Adam).
#pragma once
#include "kernels.h"
#include "vector.h"

namespace linformer {
namespace {

void adam(const Adam& a) {
  along(a.count, [&](int64_t i, int lanes) {
    Floats weight = load(a.weight + i, lanes), g = load(a.gradient + i, lanes) * a.gradient_scale;
    g = multiply_add(weight, splat(a.decay), g);
    const Floats m = multiply_add(g, splat(1.0f - a.beta1), load(a.exp_avg + i, lanes) * a.beta1);
    const Floats v = multiply_add(g * g, splat(1.0f - a.beta2), load(a.exp_avg_sq + i, lanes) * a.beta2);
    store(a.exp_avg + i, m, lanes);
    store(a.exp_avg_sq + i, v, lanes);
    const Floats denominator = multiply_add(square_root(v), splat(a.inverse_root), a.eps);
    weight = weight * a.shrink - m / denominator * a.step_size;
    store(a.weight + i, weight, lanes);
    if (a.copy) store(a.copy + i, weight, lanes);
  });
}

double squares(const float* x, int64_t count) {
  double total = 0;
  for (int64_t first = 0; first < count; first += 1024) {
    const int64_t length = count - first < 1024 ? count - first : 1024;
    Floats part = {};
    along(length, [&](int64_t i, int lanes) {
      const Floats v = load(x + first + i, lanes);
      part = multiply_add(v, v, part);
    });
    total += sum(part);
  }
  return total;
}

}  // namespace
}  // namespace linformer
