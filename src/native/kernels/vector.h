// What kernels are written in: rows in lanes, loaded and stored in either type, and the functions of a lane.
#pragma once
#include <initializer_list>

#include "lanes.h"

namespace linformer {

namespace {

inline Floats load(const BFloat16* p) {
  Halves v;
  std::memcpy(&v, p, sizeof v);
  return widen(v);
}
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
  const Floats lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return where_less(lane, splat(static_cast<float>(count)), v, splat(other));
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
  return where_equal(argument, argument, times_power_of_two(p, shifted), argument);
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

// Calls body(column, lanes) along a row.
template <class Body>
inline void along(int64_t width, Body body) {
  int64_t c = 0;
  for (; c + kWidth <= width; c += kWidth) body(c, kWidth);
  if (c < width) body(c, static_cast<int>(width - c));
}

}  // namespace
}  // namespace linformer
