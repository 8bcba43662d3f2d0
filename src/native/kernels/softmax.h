// Rows of attention's scores to probabilities after dropout, and back.
//
// Forward: P = softmax(scale * S) over the keys that take part, and m * P, m the factors of the dropout; log_sum = max + log Z.
// Backward, from G, the gradient of m * P: P is made again as exp(scale * S - log_sum); d_S = scale * P * (m * G - dot) with
// dot = sum over the keys of P * m * G, which is sum(d_out * out) over the head's width: so it is given, not summed here.
#pragma once
#include <cmath>

#include "kernels.h"
#include "vector.h"

namespace linformer {
namespace {

// Scores of the keys that take part, scaled; the others and the columns beyond are far below.
inline Floats scaled(const Softmax& a, const float* scores, int64_t c) {
  Floats v = load(scores + c) * a.scale;
  const int lanes = static_cast<int>(a.keys - c < kWidth ? a.keys - c : kWidth);
  v = fill(v, lanes, -1e30f);
  if (a.keep)
    for (int i = 0; i < lanes; i++)
      if (!a.keep[c + i]) v[i] = -1e30f;
  return v;
}

template <class T>
void softmax(const Softmax& a, float* scores, T* probabilities, float* log_sum, int64_t rows, const int64_t* firsts) {
  Dropout dropout(a.mask);
  for (int64_t row = 0; row < rows; row++) {
    float* s = scores + row * a.padded;
    T* p = probabilities + row * a.padded;
    Floats top = splat(-INFINITY), total = {};
    for (int64_t c = 0; c < a.padded; c += kWidth) {
      const Floats v = c < a.keys ? scaled(a, s, c) : splat(-1e30f);
      store(s + c, v);
      top = larger(top, v);
    }
    const float highest = largest(top);
    for (int64_t c = 0; c < a.padded; c += kWidth) {
      const Floats v = load(s + c);
      const Floats e = where_less(v, splat(-1e29f), Floats{}, exponential(v - highest));
      store(s + c, e);
      total += e;
    }
    const float z = sum(total), inverse = z == 0.0f ? 0.0f : 1.0f / z;
    log_sum[row] = highest + std::log(z);
    for (int64_t c = 0; c < a.padded; c += kWidth) {
      Floats v = load(s + c) * inverse;
      if (dropout.on() && c < a.keys) v *= dropout.factors(firsts[row] + c, kWidth);
      store(p + c, v);
    }
  }
}

template <class T>
void softmax_backward(const Softmax& a, const float* scores, const float* d_probabilities, const float* log_sum, const float* dot,
                      T* probabilities, T* d_scores, int64_t rows, const int64_t* firsts) {
  Dropout dropout(a.mask);
  for (int64_t row = 0; row < rows; row++) {
    const float *s = scores + row * a.padded, *g = d_probabilities + row * a.padded;
    for (int64_t c = 0; c < a.padded; c += kWidth) {
      Floats p = {}, d = {};
      if (c < a.keys) {
        const Floats v = scaled(a, s, c);
        const Floats e = where_less(v, splat(-1e29f), Floats{}, exponential(v - log_sum[row]));
        p = e;
        d = load(g + c);
        if (dropout.on()) {
          const Floats factors = dropout.factors(firsts[row] + c, kWidth);
          p *= factors;
          d *= factors;
        }
        d = e * (d - dot[row]) * a.scale;
      }
      store(probabilities + row * a.padded + c, p);
      store(d_scores + row * a.padded + c, d);
    }
  }
}

}  // namespace
}  // namespace linformer
