// GELU(x) = x Phi(x) and its slope Phi(x) + x phi(x), by polynomials (scripts/gelu_polynomials.py): Phi - 1/2 and the slope
// - 1/2 are odd, so each is x P(t) with t = 2 x^2 / B^2 - 1 in [-1, 1]; from |x| = B on they are exactly 0 or 1.
//
// Forward: out = GELU(h + b). Backward, from d_out: d_h = d_out * slope(h + b), d_b = sum of d_h over the rows.
#pragma once
#include "kernels.h"
#include "vector.h"

namespace linformer {
namespace {

// x P(t) + 1/2. NaN comes out as some number between 0 and 1: the factor x beside it keeps it.
template <int N>
inline Floats odd_polynomial(Floats x, float bound, const float (&coefficients)[N]) {
  const Floats within = larger(smaller(x, splat(bound)), splat(-bound));
  const Floats t = multiply_add(within * within, splat(2.0f / (bound * bound)), -1.0f);
  Floats p = splat(coefficients[0]);
  for (int i = 1; i < N; i++) p = multiply_add(p, t, coefficients[i]);
  return multiply_add(within, p, 0.5f);
}

// Phi(x), absolute error 1.7e-7, and the slope, 7.6e-7.
inline Floats normal_cdf(const float*, Floats x) {
  constexpr float c[] = {-5.356697521e-04f, 1.457727602e-03f, -1.402967909e-03f, 1.866043472e-03f,  -5.031290746e-03f, 9.074204202e-03f, -1.300326260e-02f,
                         1.832404275e-02f,  -2.498196725e-02f, 3.206470480e-02f, -3.977008959e-02f, 4.964386213e-02f,  -6.712660607e-02f, 1.346593642e-01f};
  return odd_polynomial(x, 5.25f, c);
}
inline Floats gelu_slope(const float*, Floats x) {
  constexpr float c[] = {-7.747618587e-03f, 1.395678988e-02f,  3.191605426e-03f, -1.788258517e-03f, -4.073054575e-02f, 5.692750905e-02f,
                         -4.436805928e-02f, 5.613555783e-02f,  -7.602798313e-02f, 7.674489082e-02f, -6.829824543e-02f, 5.998068375e-02f,
                         -5.376914496e-02f, 5.368203488e-02f,  -6.573919682e-02f, 1.287590717e-01f};
  return odd_polynomial(x, 5.5f, c);
}

// For values that are rounded to 8 bits anyhow: 3.2e-5 and 7.0e-5.
inline Floats normal_cdf(const BFloat16*, Floats x) {
  constexpr float c[] = {-2.685266483e-03f, 8.620264445e-03f, -1.355687589e-02f, 2.116980778e-02f,
                         -3.627003754e-02f, 5.616946078e-02f, -8.439081384e-02f, 1.759434607e-01f};
  return odd_polynomial(x, 4.0f, c);
}
inline Floats gelu_slope(const BFloat16*, Floats x) {
  constexpr float c[] = {-2.739843856e-02f, 5.813948224e-02f, -4.090411642e-02f, 4.425248890e-02f, -9.024485387e-02f,
                         1.067264206e-01f,  -9.490208107e-02f, 8.593496506e-02f, -8.994400910e-02f, 1.594512533e-01f};
  return odd_polynomial(x, 4.5f, c);
}

template <class T>
void bias_gelu(const T* h, const float* bias, T* out, int64_t width, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; row++) {
    along(width, [&](int64_t c, int lanes) {
      const Floats x = load(h + row * width + c, lanes) + load(bias + c, lanes);
      store(out + row * width + c, x * normal_cdf(h, x), lanes);
    });
  }
}

template <class T>
void bias_gelu_backward(const T* h, const float* bias, const T* d_out, T* d_h, T* out, int64_t width, int64_t first, int64_t last,
                        float* sums) {
  for (int64_t row = first; row < last; row++) {
    along(width, [&](int64_t c, int lanes) {
      const int64_t at = row * width + c;
      const Floats x = load(h + at, lanes) + load(bias + c, lanes);
      const Floats v = load(d_out + at, lanes) * gelu_slope(h, x);
      store(d_h + at, v, lanes);
      store(sums + c, load(sums + c, lanes) + v, lanes);
      if (out) store(out + at, x * normal_cdf(h, x), lanes);
    });
  }
}

}  // namespace
}  // namespace linformer
