// Softmax cross-entropy with label smoothing e over V classes (Szegedy et al. 2016, as PyTorch defines it), with its gradient.
//
// With x = logits + bias, Z = sum of exp(x - max): loss = (1 - e) (log_sum - x[target]) + e (log_sum - mean(x)),
// log_sum = max + log Z. Its gradient, which takes the logits' memory: exp(x - max) / Z - (1 - e) [target] - e / V.
#pragma once
#include <cmath>

#include "kernels.h"
#include "vector.h"

namespace linformer {
namespace {

template <class T>
double cross_entropy(const CrossEntropy<T>& a, int64_t first, int64_t last, float* scratch, float* sums) {
  double losses = 0;
  const float smoothing = a.smoothing, classes = static_cast<float>(a.classes);
  for (int64_t row = first; row < last; row++) {
    T* logits = a.logits + row * a.classes;
    const int64_t target = a.targets[row];
    if (target < 0) {
      if (a.gradient) along(a.classes, [&](int64_t c, int lanes) { store(logits + c, Floats{}, lanes); });
      continue;
    }
    Floats top = splat(-INFINITY), total = {};
    along(a.classes, [&](int64_t c, int lanes) {
      const Floats v = load(logits + c, lanes) + load(a.bias + c, lanes);
      store(scratch + c, v, lanes);
      top = larger(top, fill(v, lanes, -INFINITY));
      total += fill(v, lanes, 0.0f);
    });
    const float highest = largest(top), at_target = scratch[target];
    Floats weights = {};
    along(a.classes, [&](int64_t c, int lanes) {
      const Floats e = exponential(load(scratch + c, lanes) - highest);
      store(scratch + c, e, lanes);
      weights += fill(e, lanes, 0.0f);
    });
    const float z = sum(weights), log_sum = highest + std::log(z);
    losses += (1.0f - smoothing) * (log_sum - at_target) + smoothing * (log_sum - sum(total) / classes);
    if (!a.gradient) continue;
    // softmax - (1 - e) [target] - e / V
    scratch[target] -= (1.0f - smoothing) * z;
    const float inverse = 1.0f / z, share = smoothing / classes;
    along(a.classes, [&](int64_t c, int lanes) {
      const Floats v = load(scratch + c, lanes) * inverse - share;
      store(logits + c, v, lanes);
      store(sums + c, load(sums + c, lanes) + v, lanes);
    });
  }
  return losses;
}

}  // namespace
}  // namespace linformer
