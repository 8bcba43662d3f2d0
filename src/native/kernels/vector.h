// Sixteen floats at a time, by the compiler's vector extension: the same operations in the same order from every
// instruction set, hence the same bits. Included once for each set, so everything stands in an unnamed namespace: code
// for a newer processor must never be shared with code for an older one.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace linformer {

namespace {

constexpr int kWidth = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint16_t WideHalves __attribute__((vector_size(64)));

inline Floats splat(float x) { return Floats{} + x; }
inline Words bits_of(Floats x) { return (Words)x; }
inline Floats floats_of(Words x) { return (Floats)x; }
inline Floats choose(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }

// One instruction where there is one; the bits are the same everywhere.
#if defined(__AVX512F__)
// a * b + c, rounded once.
inline Floats multiply_add(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
// a > b ? a : b, and a < b ? a : b.
inline Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
inline Floats smaller(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
#else
inline Floats larger(Floats a, Floats b) { return choose(a > b, a, b); }
inline Floats smaller(Floats a, Floats b) { return choose(a < b, a, b); }
#if defined(__FMA__)
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  __m256 x[2], y[2], z[2];
  std::memcpy(x, &a, 64), std::memcpy(y, &b, 64), std::memcpy(z, &c, 64);
  for (int i = 0; i < 2; i++) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  std::memcpy(&c, z, 64);
  return c;
}
#else
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  for (int i = 0; i < kWidth; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
#endif
#endif
// Rounded correctly everywhere, as IEEE asks.
inline Floats square_root(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_sqrt_ps((__m512)x);
#else
  for (int i = 0; i < kWidth; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
inline Floats multiply_add(Floats a, Floats b, float c) { return multiply_add(a, b, splat(c)); }

// To nearest, ties to even; NaN stays NaN.
#if defined(__AVX512F__) && defined(__AVX512BW__)
inline Floats widen(Halves h) { return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16); }
inline Halves narrow(Floats x) {
  const __m512i b = (__m512i)x, high = _mm512_srli_epi32(b, 16);
  const __m512i even = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7fff)), even), 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
  return (Halves)_mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40)));
}
#else
inline Floats widen(Halves h) { return floats_of(__builtin_convertvector(h, Words) << 16); }
inline Halves narrow(Floats x) {
  const Words b = bits_of(x);
  const Words rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  const Words quiet = (b >> 16) | 0x40u;
  const Words is_nan = (Words)(x != x);
  return __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), Halves);
}
#endif

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Floats load(const BFloat16* p) {
  Halves v;
  std::memcpy(&v, p, sizeof v);
  return widen(v);
}
inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
inline void store(BFloat16* p, Floats v) {
  const Halves h = narrow(v);
  std::memcpy(p, &h, sizeof h);
}

// The first `count` elements; the other lanes are zero.
template <class T>
inline Floats load(const T* p, int count) {
  if (count >= kWidth) return load(p);
  T part[kWidth] = {};
  std::memcpy(part, p, count * sizeof(T));
  return load(part);
}
template <class T>
inline void store(T* p, Floats v, int count) {
  if (count >= kWidth) return store(p, v);
  T part[kWidth];
  store(part, v);
  std::memcpy(p, part, count * sizeof(T));
}

// What a value becomes when it is stored as T.
inline Floats as_stored(const float*, Floats v) { return v; }
inline Floats as_stored(const BFloat16*, Floats v) { return widen(narrow(v)); }

inline float sum(Floats v) {
  float lane[kWidth];
  store(lane, v);
  for (int width = kWidth / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
}
inline float largest(Floats v) {
  float lane[kWidth];
  store(lane, v);
  for (int width = kWidth / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

// Lanes from `count` on become `other`.
inline Floats fill(Floats v, int count, float other) {
  if (count >= kWidth) return v;
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return choose(lane < count, v, splat(other));
}

// e^x within 3 units in the last place, for x in [-87, 88]; beyond, the value at the bound. NaN stays NaN.
inline Floats exponential(Floats argument) {
  Floats x = larger(smaller(argument, splat(88.0f)), splat(-87.0f));
  const float kMagic = 12582912.0f;  // 1.5 x 2^23: adding it rounds to an integer in the low bits
  const Floats shifted = multiply_add(x, splat(1.44269504f), kMagic);
  const Floats n = shifted - kMagic;
  const Floats r = multiply_add(n, splat(2.12194440e-4f), multiply_add(n, splat(-0.693359375f), x));
  Floats p = splat(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = multiply_add(p, r, c);
  p = multiply_add(p, r * r, r + 1.0f);
  const Ints exponent = (Ints)shifted - 0x4b400000;
  return choose(argument == argument, floats_of((Words)((Ints)p + (exponent << 23))), argument);
}

// The factors (0 or 1 / (1 - p)) of consecutive elements, drawn in groups and kept for the next call.
class Dropout {
 public:
  explicit Dropout(const Mask& mask) : mask_(mask), on_(mask.threshold() > 0), scale_(mask.scale()) {}
  bool on() const { return on_; }

  // Factors of elements first..first + count (count at most kWidth) of the tensor.
  Floats factors(int64_t first, int count) {
    const uint64_t index = static_cast<uint64_t>(first + mask_.offset);
    const uint64_t group = index / kGroup;
    const int at = static_cast<int>(index % kGroup);
    draw(group);
    if (at + count <= kGroup) return load(factor_ + at);
    float part[kWidth] = {};
    const int here = kGroup - at;
    std::memcpy(part, factor_ + at, here * sizeof(float));
    draw(group + 1);
    std::memcpy(part + here, factor_, (count - here) * sizeof(float));
    return load(part);
  }

 private:
  void draw(uint64_t group) {
    if (group == have_) return;
    have_ = group;
    uint32_t words[4][kLanes];
    philox(mask_, group * kLanes, words);
    const uint32_t threshold = mask_.threshold();
#if defined(__AVX512F__) && defined(__AVX512BW__)
    const __m512i limit = _mm512_set1_epi16(static_cast<short>(threshold));
    const __m512 scale = _mm512_set1_ps(scale_);
    for (int first = 0; first < kLanes; first += 16) {
      __m512i w[4];
      for (int i = 0; i < 4; i++) w[i] = _mm512_loadu_si512(words[i] + first);
      const __m512i low01 = _mm512_unpacklo_epi32(w[0], w[1]), high01 = _mm512_unpackhi_epi32(w[0], w[1]);
      const __m512i low23 = _mm512_unpacklo_epi32(w[2], w[3]), high23 = _mm512_unpackhi_epi32(w[2], w[3]);
      // Byte j of kept[i]: the eight elements of block 4 j + i.
      const uint32_t kept[4] = {_mm512_cmpge_epu16_mask(_mm512_unpacklo_epi64(low01, low23), limit),
                                _mm512_cmpge_epu16_mask(_mm512_unpackhi_epi64(low01, low23), limit),
                                _mm512_cmpge_epu16_mask(_mm512_unpacklo_epi64(high01, high23), limit),
                                _mm512_cmpge_epu16_mask(_mm512_unpackhi_epi64(high01, high23), limit)};
      for (int pair = 0; pair < 8; pair++) {
        const int shift = pair / 2 * 8, i = pair % 2 * 2;
        const uint32_t both = ((kept[i] >> shift) & 0xffu) | (((kept[i + 1] >> shift) & 0xffu) << 8);
        _mm512_store_ps(factor_ + (first / 2 + pair) * kWidth, _mm512_maskz_mov_ps(static_cast<__mmask16>(both), scale));
      }
    }
#else
    // Words of one block side by side: the order of the elements.
    uint32_t ordered[kLanes * 4];
    for (int i = 0; i < kLanes; i++)
      for (int w = 0; w < 4; w++) ordered[i * 4 + w] = words[w][i];
    uint16_t bits[kGroup];
    std::memcpy(bits, ordered, sizeof bits);
    for (int i = 0; i < kGroup; i++) factor_[i] = bits[i] < threshold ? 0.0f : scale_;
#endif
  }

  Mask mask_;
  bool on_;
  float scale_;
  uint64_t have_ = ~0ull;
  alignas(64) float factor_[kGroup + kWidth] = {};
};

}  // namespace
}  // namespace linformer
