// Layouts: transposes, and brgemm's second operand (as it is in fp32, pairs of rows interleaved in bf16).
#pragma once
#include <cstring>

#include "kernels.h"
#include "vector.h"

namespace linformer {
namespace {

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

}  // namespace
}  // namespace linformer
