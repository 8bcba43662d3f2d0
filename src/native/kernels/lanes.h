// Sixteen floats at a time: the same operations in the same order from every instruction set, hence the same bits. Included once
// for each set, so everything stands in an unnamed namespace: code for a newer processor must never be shared with code for an
// older one.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace linformer {

namespace {

constexpr int kWidth = 16;
typedef uint16_t Halves __attribute__((vector_size(32)));

#if defined(__AVX512F__)

typedef float Floats __attribute__((vector_size(64)));

inline Floats splat(float x) { return Floats{} + x; }
// a * b + c, rounded once.
inline Floats multiply_add(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
// a > b ? a : b, and a < b ? a : b.
inline Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
inline Floats smaller(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
// a < b ? yes : no, and a == b ? yes : no.
inline Floats where_less(Floats a, Floats b, Floats yes, Floats no) { return a < b ? yes : no; }
inline Floats where_equal(Floats a, Floats b, Floats yes, Floats no) { return a == b ? yes : no; }
// Rounded correctly everywhere, as IEEE asks.
inline Floats square_root(Floats x) { return (Floats)_mm512_sqrt_ps((__m512)x); }
// x 2^n by its exponent's bits, n the integer in the low bits of 1.5 x 2^23 + n.
inline Floats times_power_of_two(Floats x, Floats shifted) {
  typedef int32_t Ints __attribute__((vector_size(64)));
  return (Floats)((Ints)x + (((Ints)shifted - 0x4b400000) << 23));
}
inline Floats load(const float* p) { return (Floats)_mm512_loadu_ps(p); }
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, (__m512)v); }
inline Floats widen(Halves h) { return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16); }
// To nearest, ties to even; NaN stays NaN.
inline Halves narrow(Floats x) {
  const __m512i b = (__m512i)x, high = _mm512_srli_epi32(b, 16);
  const __m512i even = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7fff)), even), 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
  return (Halves)_mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40)));
}

#else

// The compiler takes much of what it is asked of vectors wider than the processor's lane by lane, through memory: these are cut.
constexpr int kPart = 8;
typedef float Part __attribute__((vector_size(kPart * 4)));
typedef int32_t PartInts __attribute__((vector_size(kPart * 4)));
typedef uint32_t PartWords __attribute__((vector_size(kPart * 4)));

struct Floats {
  Part low, high;

  struct Lane {
    Floats& all;
    int i;
    void operator=(float x) { (i < kPart ? all.low : all.high)[i % kPart] = x; }
  };
  Lane operator[](int i) { return {*this, i}; }
};

template <class Function, class... Vectors>
inline Floats by_parts(Function function, const Vectors&... vectors) {
  return {function(vectors.low...), function(vectors.high...)};
}
// Part by part: sixteen lanes at once would be copied through the stack.
inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v.low, p, sizeof v.low);
  std::memcpy(&v.high, p + kPart, sizeof v.high);
  return v;
}
inline void store(float* p, Floats v) {
  std::memcpy(p, &v.low, sizeof v.low);
  std::memcpy(p + kPart, &v.high, sizeof v.high);
}
inline Floats splat(float x) {
  return by_parts([x](Part zero) { return zero + x; }, Floats{});
}
inline Floats operator+(Floats a, Floats b) {
  return by_parts([](Part a, Part b) { return a + b; }, a, b);
}
inline Floats operator-(Floats a, Floats b) {
  return by_parts([](Part a, Part b) { return a - b; }, a, b);
}
inline Floats operator*(Floats a, Floats b) {
  return by_parts([](Part a, Part b) { return a * b; }, a, b);
}
inline Floats operator/(Floats a, Floats b) {
  return by_parts([](Part a, Part b) { return a / b; }, a, b);
}
inline Floats operator+(Floats a, float b) { return a + splat(b); }
inline Floats operator-(Floats a, float b) { return a - splat(b); }
inline Floats operator*(Floats a, float b) { return a * splat(b); }
inline Floats& operator+=(Floats& a, Floats b) { return a = a + b; }
inline Floats& operator*=(Floats& a, Floats b) { return a = a * b; }
inline Floats larger(Floats a, Floats b) {
  return by_parts([](Part a, Part b) { return a > b ? a : b; }, a, b);
}
inline Floats smaller(Floats a, Floats b) {
  return by_parts([](Part a, Part b) { return a < b ? a : b; }, a, b);
}
inline Floats where_less(Floats a, Floats b, Floats yes, Floats no) {
  return by_parts([](Part a, Part b, Part yes, Part no) { return a < b ? yes : no; }, a, b, yes, no);
}
inline Floats where_equal(Floats a, Floats b, Floats yes, Floats no) {
  return by_parts([](Part a, Part b, Part yes, Part no) { return a == b ? yes : no; }, a, b, yes, no);
}
inline Floats times_power_of_two(Floats x, Floats shifted) {
  return by_parts([](Part x, Part shifted) { return (Part)((PartInts)x + (((PartInts)shifted - 0x4b400000) << 23)); }, x, shifted);
}

inline Part multiply_add(Part a, Part b, Part c) {
#if defined(__AVX2__) && defined(__FMA__)
  return (Part)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  for (int i = 0; i < kPart; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return by_parts([](Part a, Part b, Part c) { return multiply_add(a, b, c); }, a, b, c);
}

inline Part square_root(Part x) {
#if defined(__AVX2__)
  return (Part)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < kPart; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
inline Floats square_root(Floats x) {
  return by_parts([](Part x) { return square_root(x); }, x);
}

// The upper halves of the words that a value rounds to.
inline PartWords rounded(Part x) {
  const PartWords b = (PartWords)x;
  return x == x ? (b + 0x7fffu + ((b >> 16) & 1u)) >> 16 : (b >> 16) | 0x40u;
}
#if defined(__AVX2__)
inline Floats widen(Halves h) {
  const __m256i all = (__m256i)h;
  const auto part = [](__m128i half) { return (Part)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16); };
  return {part(_mm256_castsi256_si128(all)), part(_mm256_extracti128_si256(all, 1))};
}
inline Halves narrow(Floats x) {
  // Packing takes turns between the halves of its operands.
  return (Halves)_mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)rounded(x.low), (__m256i)rounded(x.high)), 0xd8);
}
#else
typedef uint16_t PartHalves __attribute__((vector_size(kPart * 2)));
inline Floats widen(Halves h) {
  PartHalves half[2];
  std::memcpy(half, &h, sizeof h);
  const auto part = [](PartHalves h) { return (Part)(__builtin_convertvector(h, PartWords) << 16); };
  return {part(half[0]), part(half[1])};
}
inline Halves narrow(Floats x) {
  const PartHalves half[2] = {__builtin_convertvector(rounded(x.low), PartHalves), __builtin_convertvector(rounded(x.high), PartHalves)};
  Halves h;
  std::memcpy(&h, half, sizeof h);
  return h;
}
#endif

#endif

inline Floats multiply_add(Floats a, Floats b, float c) { return multiply_add(a, b, splat(c)); }

}  // namespace
}  // namespace linformer
