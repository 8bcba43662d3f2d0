// Stateless dropout's definition: element i of a tensor is kept or dropped by 16 bits of Philox4x32-10 at counter
// (i / 8, nonce) under `key`: the mask is a function of (key, nonce, index) alone.
#pragma once
#include <cmath>
#include <cstdint>

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
constexpr int kLanes = 16;    // blocks drawn at once; the compiler turns a lane loop into vector code
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
  for (int round = 0; round < 10; round++, k0 += kWeyl0, k1 += kWeyl1) {
    for (int i = 0; i < kLanes; i++) {
      const uint64_t p0 = static_cast<uint64_t>(a[i]) * kMultiplier0, p1 = static_cast<uint64_t>(c[i]) * kMultiplier1;
      a[i] = static_cast<uint32_t>(p1 >> 32) ^ b[i] ^ k0;
      c[i] = static_cast<uint32_t>(p0 >> 32) ^ d[i] ^ k1;
      b[i] = static_cast<uint32_t>(p1);
      d[i] = static_cast<uint32_t>(p0);
    }
  }
}

}  // namespace
}  // namespace linformer
