// Stateless dropout's definition: element i of a tensor is kept or dropped by 16 bits of Philox4x32-10 at counter
// (i / 8, nonce) under `key`: the mask is a function of (key, nonce, index) alone.
#pragma once
#include <cmath>
#include <cstdint>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace linformer {

struct Mask {
  double p;
  uint64_t key, nonce;
  int64_t offset;  // index of the tensor's first element in the whole batch

  // An element is dropped when its 16 bits are below this.
  uint32_t threshold() const { return static_cast<uint32_t>(std::lround(p * 65536.0)); }
  float scale() const { return 65536.0f / static_cast<float>(65536u - threshold()); }
};

constexpr int kPerBlock = 8;  // four 32-bit words, two elements a word
constexpr int kLanes = 32;    // blocks drawn at once; the compiler turns a lane loop into vector code
constexpr int kGroup = kPerBlock * kLanes;

namespace {  // one copy for each instruction set that it is compiled for

// Words of blocks first..first+kLanes: words[w][lane].
inline void philox(const Mask& mask, uint64_t first, uint32_t words[4][kLanes]) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u, kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  uint32_t *a = words[0], *b = words[1], *c = words[2], *d = words[3];
  for (int i = 0; i < kLanes; i++) {
    const uint64_t block = first + i;
    a[i] = static_cast<uint32_t>(block);
    b[i] = static_cast<uint32_t>(block >> 32);
    c[i] = static_cast<uint32_t>(mask.nonce);
    d[i] = static_cast<uint32_t>(mask.nonce >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(mask.key), k1 = static_cast<uint32_t>(mask.key >> 32);
#if defined(__AVX512F__)
  // Two vectors side by side: the rounds of one are a chain of slow products.
  constexpr int kSets = kLanes / 16;
  __m512i va[kSets], vb[kSets], vc[kSets], vd[kSets];
  for (int s = 0; s < kSets; s++) {
    va[s] = _mm512_loadu_si512(a + 16 * s), vb[s] = _mm512_loadu_si512(b + 16 * s);
    vc[s] = _mm512_loadu_si512(c + 16 * s), vd[s] = _mm512_loadu_si512(d + 16 * s);
  }
  const __m512i m0 = _mm512_set1_epi32(static_cast<int>(kMultiplier0)), m1 = _mm512_set1_epi32(static_cast<int>(kMultiplier1));
  // Products of even and of odd lanes; their halves are put together again.
  const auto multiply = [](__m512i x, __m512i m, __m512i& high, __m512i& low) {
    const __m512i even = _mm512_mul_epu32(x, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), m);
    high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
    low = _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
  };
  for (int round = 0; round < 10; round++, k0 += kWeyl0, k1 += kWeyl1) {
    const __m512i key0 = _mm512_set1_epi32(static_cast<int>(k0)), key1 = _mm512_set1_epi32(static_cast<int>(k1));
    for (int s = 0; s < kSets; s++) {
      __m512i h0, l0, h1, l1;
      multiply(va[s], m0, h0, l0);
      multiply(vc[s], m1, h1, l1);
      va[s] = _mm512_ternarylogic_epi32(h1, vb[s], key0, 0x96);
      vc[s] = _mm512_ternarylogic_epi32(h0, vd[s], key1, 0x96);
      vb[s] = l1;
      vd[s] = l0;
    }
  }
  for (int s = 0; s < kSets; s++) {
    _mm512_storeu_si512(a + 16 * s, va[s]), _mm512_storeu_si512(b + 16 * s, vb[s]);
    _mm512_storeu_si512(c + 16 * s, vc[s]), _mm512_storeu_si512(d + 16 * s, vd[s]);
  }
#else
  for (int round = 0; round < 10; round++, k0 += kWeyl0, k1 += kWeyl1) {
    for (int i = 0; i < kLanes; i++) {
      const uint64_t p0 = static_cast<uint64_t>(a[i]) * kMultiplier0, p1 = static_cast<uint64_t>(c[i]) * kMultiplier1;
      a[i] = static_cast<uint32_t>(p1 >> 32) ^ b[i] ^ k0;
      c[i] = static_cast<uint32_t>(p0 >> 32) ^ d[i] ^ k1;
      b[i] = static_cast<uint32_t>(p1);
      d[i] = static_cast<uint32_t>(p0);
    }
  }
#endif
}

}  // namespace
}  // namespace linformer
