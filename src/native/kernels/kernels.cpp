// The kernels of kernels.h; compiled once for each instruction set, which LINFORMER_TABLE names.
#include "kernels.h"

#include <cmath>

#include "gelu.h"
#include "vector.h"

namespace linformer {
namespace {

// Calls body(column, lanes) along a row.
template <class Body>
inline void along(int64_t width, Body body) {
  int64_t c = 0;
  for (; c + kWidth <= width; c += kWidth) body(c, kWidth);
  if (c < width) body(c, static_cast<int>(width - c));
}

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

template <class T>
void column_sums(const T* x, int64_t width, int64_t first, int64_t last, float* sums) {
  for (int64_t row = first; row < last; row++)
    along(width, [&](int64_t c, int lanes) { store(sums + c, load(sums + c, lanes) + load(x + row * width + c, lanes), lanes); });
}

template <class T>
void sum_of_three(const float* a, const float* b, const float* c, T* out, int64_t width) {
  along(width, [&](int64_t i, int lanes) { store(out + i, load(a + i, lanes) + load(b + i, lanes) + load(c + i, lanes), lanes); });
}

template <class T>
void add_to(const T* x, float* total, int64_t width) {
  along(width, [&](int64_t i, int lanes) { store(total + i, load(total + i, lanes) + load(x + i, lanes), lanes); });
}

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

template <class T>
void row_dots(const T* a, const T* b, float* out, int64_t rows, int64_t width, int64_t stride) {
  for (int64_t row = 0; row < rows; row++) {
    Floats total = {};
    for (int64_t c = 0; c < width; c += kWidth) total += load(a + row * stride + c) * load(b + row * stride + c);
    out[row] = sum(total);
  }
}

typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t WideHalves __attribute__((vector_size(64)));

inline Words load_words(const void* p) {
  Words v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// In place: lane j of register i becomes lane i of register j.
inline void transpose_16x16(Words r[16]) {
  for (int step = 8; step > 0; step /= 2) {
    Words low, high;
    for (int j = 0; j < kWidth; j++) {
      low[j] = (j & step) ? j - step + kWidth : j;
      high[j] = (j & step) ? j + kWidth : j + step;
    }
    for (int i = 0; i < kWidth; i++) {
      if (i & step) continue;
      const Words a = r[i], b = r[i + step];
      r[i] = __builtin_shuffle(a, b, low);
      r[i + step] = __builtin_shuffle(a, b, high);
    }
  }
}

void transpose_block(const void* in, int64_t in_bytes, void* out, int64_t out_bytes) {
  Words r[kWidth];
  for (int i = 0; i < kWidth; i++) r[i] = load_words(static_cast<const char*>(in) + i * in_bytes);
  transpose_16x16(r);
  for (int i = 0; i < kWidth; i++) std::memcpy(static_cast<char*>(out) + i * out_bytes, &r[i], sizeof r[i]);
}

// Sixteen columns of two bf16 rows as pairs.
inline void interleave(const BFloat16* a, const BFloat16* b, void* out) {
  WideHalves both;
  std::memcpy(&both, a, 32);
  std::memcpy(reinterpret_cast<char*>(&both) + 32, b, 32);
  WideHalves order;
  for (int i = 0; i < kWidth; i++) {
    order[2 * i] = i;
    order[2 * i + 1] = i + kWidth;
  }
  both = __builtin_shuffle(both, order);
  std::memcpy(out, &both, 64);
}

void pack(const float* in, int64_t stride, float* out, int64_t rows, int64_t columns, int64_t filled) {
  for (int64_t r = 0; r < filled; r++)
    for (int64_t c = 0; c < columns; c += kWidth) store(out + r * columns + c, r < rows ? load(in + r * stride + c) : Floats{});
}

void pack(const BFloat16* in, int64_t stride, BFloat16* out, int64_t rows, int64_t columns, int64_t filled) {
  const BFloat16 zeros[kWidth] = {};
  for (int64_t r = 0; r < filled; r += 2)
    for (int64_t c = 0; c < columns; c += kWidth)
      interleave(r < rows ? in + r * stride + c : zeros, r + 1 < rows ? in + (r + 1) * stride + c : zeros, out + r * columns + c * 2);
}

// in [columns x rows] -> [rows x filled], the columns from `columns` on zero.
void pack_transposed(const float* in, int64_t stride, float* out, int64_t rows, int64_t columns, int64_t filled) {
  for (int64_t c = 0; c < filled; c += kWidth)
    for (int64_t r = 0; r < rows; r += kWidth) {
      Words block[kWidth];
      for (int i = 0; i < kWidth; i++) block[i] = c + i < columns ? load_words(in + (c + i) * stride + r) : Words{};
      transpose_16x16(block);
      for (int i = 0; i < kWidth; i++) std::memcpy(out + (r + i) * filled + c, &block[i], 64);
    }
}

// Pairs along the rows of the result are neighbours in the input: a transpose of 32-bit words.
void pack_transposed(const BFloat16* in, int64_t stride, BFloat16* out, int64_t rows, int64_t columns, int64_t filled) {
  for (int64_t c = 0; c < filled; c += kWidth)
    for (int64_t r = 0; r < rows; r += 2 * kWidth) {
      Words block[kWidth];
      for (int i = 0; i < kWidth; i++) block[i] = c + i < columns ? load_words(in + (c + i) * stride + r) : Words{};
      transpose_16x16(block);
      for (int i = 0; i < kWidth; i++) std::memcpy(out + (r + 2 * i) * filled + c * 2, &block[i], 64);
    }
}

void transpose(const float* in, float* out, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r += kWidth)
    for (int64_t c = 0; c < columns; c += kWidth) transpose_block(in + r * columns + c, columns * 4, out + c * rows + r, rows * 4);
}

void transpose(const BFloat16* in, BFloat16* out, int64_t rows, int64_t columns) {
  alignas(64) BFloat16 pairs[2 * kWidth * kWidth];
  for (int64_t r = 0; r < rows; r += 2 * kWidth)
    for (int64_t c = 0; c < columns; c += kWidth) {
      for (int i = 0; i < kWidth; i++) interleave(in + (r + 2 * i) * columns + c, in + (r + 2 * i + 1) * columns + c, pairs + i * 2 * kWidth);
      transpose_block(pairs, 64, out + c * rows + r, rows * 2);
    }
}

template <class T>
void from_float(const float* in, int64_t in_stride, T* out, int64_t out_stride, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < columns; c += kWidth) store(out + r * out_stride + c, load(in + r * in_stride + c));
}

template <class T>
constexpr KernelTable<T> table() {
  return {drop_add_norm<T>, drop_add_norm_backward<T>, bias_gelu<T>, bias_gelu_backward<T>, column_sums<T>, sum_of_three<T>,
          add_to<T>,        cross_entropy<T>,          softmax<T>,   softmax_backward<T>,   row_dots<T>,    pack,
          pack_transposed,  transpose,                 from_float<T>, dropout<T>};
}

}  // namespace

#define LINFORMER_TEXT_OF(x) #x
#define LINFORMER_TEXT(x) LINFORMER_TEXT_OF(x)
extern const Kernels LINFORMER_TABLE;
const Kernels LINFORMER_TABLE = {LINFORMER_TEXT(LINFORMER_TABLE), adam, squares, table<float>(), table<BFloat16>()};

}  // namespace linformer
