// A block of 8 x 32 sums stays in registers while its rows of A go over 32 columns of B, which stay in the first cache for all rows.
#include "dot.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

#include <cstring>

namespace linformer::dot {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kColumns = 2 * kLanes;
constexpr int64_t kRows = 8;

inline __m512bh pairs(const BFloat16* from) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from)); }

inline __m512bh one_pair(const BFloat16* from) {
  int32_t both;
  std::memcpy(&both, from, sizeof both);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
}

template <int64_t rows>
void block(int64_t n, int64_t inner, int64_t stride, const BFloat16* a, const BFloat16* b, float* c, bool add) {
  __m512 sums[rows][2];
  for (int64_t r = 0; r < rows; r++)
    for (int64_t half = 0; half < 2; half++) sums[r][half] = add ? _mm512_loadu_ps(c + r * n + half * kLanes) : _mm512_setzero_ps();
  for (int64_t i = 0; i < inner; i += 2) {
    const __m512bh left = pairs(b + i * n), right = pairs(b + i * n + 2 * kLanes);
    for (int64_t r = 0; r < rows; r++) {
      const __m512bh of_row = one_pair(a + r * stride + i);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], of_row, left);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], of_row, right);
    }
  }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t half = 0; half < 2; half++) _mm512_storeu_ps(c + r * n + half * kLanes, sums[r][half]);
}

}  // namespace

const bool kCompiled = true;

void product(int64_t rows, int64_t n, int64_t inner, int64_t stride, const BFloat16* a, const BFloat16* b, float* c, bool add) {
  for (int64_t column = 0; column < n; column += kColumns) {
    const BFloat16* right = b + 2 * column;
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) block<kRows>(n, inner, stride, a + row * stride, right, c + row * n + column, add);
    for (; row < rows; row++) block<1>(n, inner, stride, a + row * stride, right, c + row * n + column, add);
  }
}

}  // namespace linformer::dot

#else

namespace linformer::dot {
const bool kCompiled = false;
void product(int64_t, int64_t, int64_t, int64_t, const BFloat16*, const BFloat16*, float*, bool) {}
}  // namespace linformer::dot

#endif
