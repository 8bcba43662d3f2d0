// Element-wise kernels over rows, one table of functions for each instruction set. A kernel works on a range of rows on
// the calling thread; who calls it cuts the rows and owns all memory.
#pragma once
#include <cstdint>

#include "../philox.h"

namespace linformer {

struct BFloat16 {
  uint16_t bits;
};

// s = residual + dropout(y + bias), out = LayerNorm(s). `bias` and `residual` may be null; s replaces y.
template <class T>
struct NormForward {
  T* y;
  const float* bias;
  const T* residual;
  const float *gamma, *beta;
  float eps;
  T* out;
  float *mean, *rstd;
  int64_t width;
  Mask mask;
  const int64_t* numbers;  // of the rows in the tensor that the mask is of; null: 0, 1, ...
};

// From the gradient of out: that of s (`d_residual`) and of y (`d_y`, may be the same memory when nothing is dropped);
// sums[3 x width]: gradients of gamma, beta and bias, over the given rows.
template <class T>
struct NormBackward {
  const T *d_out, *s;
  const float *gamma, *mean, *rstd;
  T *d_residual, *d_y;
  int64_t width;
  Mask mask;
  const int64_t* numbers;
};

// Softmax cross-entropy of a row, and its gradient in place of the logits. Ignored targets are negative.
template <class T>
struct CrossEntropy {
  T* logits;
  const float* bias;
  const int64_t* targets;
  float smoothing;
  bool gradient;
  int64_t classes;
};

// One (sequence, head): rows of scores to probabilities and back.
struct Softmax {
  float scale;
  int64_t keys, padded;  // real columns, and columns of the buffers
  const bool* keep;      // which keys take part; null: all
  Mask mask;
};

template <class T>
struct KernelTable {
  void (*drop_add_norm)(const NormForward<T>&, int64_t first, int64_t last);
  void (*drop_add_norm_backward)(const NormBackward<T>&, int64_t first, int64_t last, float* sums);
  // out = gelu(h + bias)
  void (*bias_gelu)(const T* h, const float* bias, T* out, int64_t width, int64_t first, int64_t last);
  // d_h = d_out gelu'(h + bias), sums[width] over the rows; `out`, if not null, becomes gelu(h + bias) and may be h.
  void (*bias_gelu_backward)(const T* h, const float* bias, const T* d_out, T* d_h, T* out, int64_t width, int64_t first, int64_t last,
                             float* sums);
  // Adds the rows to sums[width].
  void (*column_sums)(const T* x, int64_t width, int64_t first, int64_t last, float* sums);
  // out = a + b + c, and total += x, along a row.
  void (*sum_of_three)(const float* a, const float* b, const float* c, T* out, int64_t width);
  void (*add_to)(const T* x, float* total, int64_t width);
  // Sum of the losses of the rows; scratch[classes]; sums[classes] of the gradients is added to.
  double (*cross_entropy)(const CrossEntropy<T>&, int64_t first, int64_t last, float* scratch, float* sums);
  // scores[rows x padded] to probabilities after dropout; log_sum[row]. firsts[row]: index of a row's first element for the mask.
  // Here and on the way back a result in fp32 may stand where its scores, or their gradients, stood.
  void (*softmax)(const Softmax&, float* scores, T* probabilities, float* log_sum, int64_t rows, const int64_t* firsts);
  // From scores, their gradients after dropout and dot[row] = sum(d_out * out): probabilities after dropout, and the
  // gradient of the scores.
  void (*softmax_backward)(const Softmax&, const float* scores, const float* d_probabilities, const float* log_sum, const float* dot,
                           T* probabilities, T* d_scores, int64_t rows, const int64_t* firsts);
  // Sum of a * b over each row of `width`, rows `stride` apart.
  void (*row_dots)(const T* a, const T* b, float* out, int64_t rows, int64_t width, int64_t stride);
  // [rows x columns] to the layout of brgemm's second operand: as it is in fp32, pairs of rows interleaved in bf16.
  void (*pack)(const T* in, int64_t stride, T* out, int64_t rows, int64_t columns, int64_t filled);
  // The same of the transpose: in is [columns x rows].
  void (*pack_transposed)(const T* in, int64_t stride, T* out, int64_t rows, int64_t columns, int64_t filled);
  // [rows x columns] to [columns x rows]; both multiples of 32.
  void (*transpose)(const T* in, T* out, int64_t rows, int64_t columns);
  void (*from_float)(const float* in, int64_t in_stride, T* out, int64_t out_stride, int64_t rows, int64_t columns);
  // Elements first..last of out = dropout(x).
  void (*dropout)(const T* x, T* out, int64_t first, int64_t last, const Mask& mask);
};

// Adam (Kingma and Ba, algorithm 1) or AdamW on `count` weights, in fp32; the copy in bf16 may be null.
struct Adam {
  float *weight, *exp_avg, *exp_avg_sq;
  const float* gradient;
  BFloat16* copy;
  int64_t count;
  float gradient_scale, step_size /* lr / (1 - beta1^t) */, inverse_root /* 1 / sqrt(1 - beta2^t) */;
  float beta1, beta2, eps;
  float shrink /* AdamW: 1 - lr decay */, decay /* Adam: added to the gradient */;
};

struct Kernels {
  const char* name;
  void (*adam)(const Adam&);
  // Sum of squares.
  double (*squares)(const float* x, int64_t count);
  KernelTable<float> f32;
  KernelTable<BFloat16> bf16;
};

// The best table that this processor has.
const Kernels& kernels();
// By name (`avx512`, `avx2`, `portable`); null if this processor lacks it.
const Kernels* kernels_named(const char* name);

}  // namespace linformer
