// Sums over rows and columns, and copies from fp32.
#pragma once
#include "kernels.h"
#include "vector.h"

namespace linformer {
namespace {

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

template <class T>
void row_dots(const T* a, const T* b, float* out, int64_t rows, int64_t width, int64_t stride) {
  for (int64_t row = 0; row < rows; row++) {
    Floats total = {};
    for (int64_t c = 0; c < width; c += kWidth) total += load(a + row * stride + c) * load(b + row * stride + c);
    out[row] = sum(total);
  }
}

template <class T>
void from_float(const float* in, int64_t in_stride, T* out, int64_t out_stride, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < columns; c += kWidth) store(out + r * out_stride + c, load(in + r * in_stride + c));
}

}  // namespace
}  // namespace linformer
