// Dropout, residual and LayerNorm, forward and backward.
//
// Forward, per row of width d: s = r + m * (y + b), m the factors of the dropout (0 or 1 / (1 - p)); mean and
// rstd = 1 / sqrt(var + eps) of s; out = gamma * z + beta with z = (s - mean) * rstd.
// Backward, from g = d_out: u = g * gamma; d_s = rstd * (u - mean(u) - z * mean(u * z)), the gradient of r; that of y is m * d_s;
// over the rows: d_gamma = sum of g * z, d_beta = sum of g, d_b = sum of m * d_s.
#pragma once
#include <cmath>

#include "kernels.h"
#include "vector.h"

namespace linformer {
namespace {

template <class T>
void drop_add_norm(const NormForward<T>& a, int64_t first, int64_t last) {
  Dropout dropout(a.mask);
  const float width = static_cast<float>(a.width);
  for (int64_t row = first; row < last; row++) {
    T* y = a.y + row * a.width;
    const T* residual = a.residual ? a.residual + row * a.width : nullptr;
    const int64_t masked = (a.numbers ? a.numbers[row] : row) * a.width;
    Floats total = {};
    along(a.width, [&](int64_t c, int lanes) {
      Floats v = load(y + c, lanes);
      if (a.bias) v += load(a.bias + c, lanes);
      if (dropout.on()) v *= dropout.factors(masked + c, lanes);
      if (residual) v += load(residual + c, lanes);
      store(y + c, v, lanes);
      total += fill(as_stored(y, v), lanes, 0.0f);
    });
    const float mean = sum(total) / width;
    Floats squares = {};
    along(a.width, [&](int64_t c, int lanes) {
      const Floats v = fill(load(y + c, lanes) - mean, lanes, 0.0f);
      squares += v * v;
    });
    const float rstd = 1.0f / std::sqrt(sum(squares) / width + a.eps);
    a.mean[row] = mean;
    a.rstd[row] = rstd;
    T* out = a.out + row * a.width;
    along(a.width, [&](int64_t c, int lanes) {
      const Floats normal = (load(y + c, lanes) - mean) * rstd;
      store(out + c, normal * load(a.gamma + c, lanes) + load(a.beta + c, lanes), lanes);
    });
  }
}

template <class T>
void drop_add_norm_backward(const NormBackward<T>& a, int64_t first, int64_t last, float* sums) {
  Dropout dropout(a.mask);
  const float width = static_cast<float>(a.width);
  float *d_gamma = sums, *d_beta = sums + a.width, *d_bias = sums + 2 * a.width;
  for (int64_t row = first; row < last; row++) {
    const T *d_out = a.d_out + row * a.width, *s = a.s + row * a.width;
    const float mean = a.mean[row], rstd = a.rstd[row];
    const int64_t masked = (a.numbers ? a.numbers[row] : row) * a.width;
    Floats plain = {}, weighted = {};
    along(a.width, [&](int64_t c, int lanes) {
      const Floats g = load(d_out + c, lanes), normal = (load(s + c, lanes) - mean) * rstd, d = g * load(a.gamma + c, lanes);
      plain += fill(d, lanes, 0.0f);
      weighted += fill(d * normal, lanes, 0.0f);
      store(d_gamma + c, load(d_gamma + c, lanes) + g * normal, lanes);
      store(d_beta + c, load(d_beta + c, lanes) + g, lanes);
    });
    const float mean_plain = sum(plain) / width, mean_weighted = sum(weighted) / width;
    along(a.width, [&](int64_t c, int lanes) {
      const Floats normal = (load(s + c, lanes) - mean) * rstd, d = load(d_out + c, lanes) * load(a.gamma + c, lanes);
      Floats v = (d - mean_plain - normal * mean_weighted) * rstd;
      store(a.d_residual + row * a.width + c, v, lanes);
      if (dropout.on()) {
        v *= dropout.factors(masked + c, lanes);
        store(a.d_y + row * a.width + c, v, lanes);
      }
      store(d_bias + c, load(d_bias + c, lanes) + v, lanes);
    });
  }
}

template <class T>
void dropout(const T* x, T* out, int64_t first, int64_t last, const Mask& mask) {
  Dropout dropout(mask);
  for (int64_t i = first; i < last; i += kWidth) {
    const int lanes = static_cast<int>(last - i < kWidth ? last - i : kWidth);
    store(out + i, load(x + i, lanes) * dropout.factors(i, lanes), lanes);
  }
}

}  // namespace
}  // namespace linformer
