// out = a^T b: `rows` is cut into slices of kSlice; of each slice both sides are packed into tiles (by all threads, then a
// barrier), and every pair of 32 columns adds its part to a block of 32 x 32 sums. The blocks stand one after the other in the
// scratch memory until the last slice writes them to their place.
#include "amx.h"

#if defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <omp.h>

#include <algorithm>

namespace linformer::amx {
namespace {

constexpr int64_t kSlice = 512;     // rows: two panels of 32 columns fill two thirds of the first cache
constexpr int64_t kTile = 16;       // rows of a tile; columns of the output of one
constexpr int64_t kDepth = 32;      // rows of a and b that one tile product sums
constexpr int64_t kElements = 512;  // bf16 elements of a tile: 1 KiB

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {};
  uint8_t rows[16] = {};
};

// Eight tiles of 16 rows of 64 bytes, for the calling thread while this lives.
struct Tiles {
  Tiles() {
    TileConfig config;
    for (int i = 0; i < 8; i++) config.bytes_a_row[i] = 64, config.rows[i] = kTile;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

// Rows 2i and 2i + 1 of 16 columns, element by element beside one another: a row of the tile on the right of a product.
// Rows past the end are zeros.
inline __m512i row_pair(const uint16_t* row, int64_t stride, int64_t left) {
  const auto half = [&](int64_t i) {
    return i < left ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i * stride))) : _mm512_setzero_si512();
  };
  return _mm512_or_si512(half(0), _mm512_slli_epi32(half(1), 16));
}

// A 16 x 16 matrix of 32-bit elements, one register a row.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

// Tile `depth` of every 16 columns: column group j's tiles stand at packed + j * tiles * kElements. The left side of the
// product wants its columns as rows.
template <bool kLeft>
void pack(const Rows& from, int64_t first_row, int64_t end_row, int64_t depth, int64_t tiles, uint16_t* packed) {
  const int64_t begin = first_row + depth * kDepth;
  const auto* rows = reinterpret_cast<const uint16_t*>(from.first) + begin * from.stride;
  for (int64_t j = 0; j < from.width / kTile; j++) {
    __m512i r[16];
    for (int64_t i = 0; i < 16; i++) r[i] = row_pair(rows + 2 * i * from.stride + j * kTile, from.stride, end_row - begin - 2 * i);
    if (kLeft) transpose(r);
    uint16_t* tile = packed + (j * tiles + depth) * kElements;
    for (int64_t i = 0; i < 16; i++) _mm512_store_si512(tile + i * 32, r[i]);
  }
}

// Adds `tiles` products to a block of 2 x 2 tiles of sums: from `sums` (unless first), to `sums`, or at the end to `out`.
// Tiles 0 to 3 are the sums, 4 and 5 the left side, 6 and 7 the right one.
void add_block(const uint16_t* left, const uint16_t* right, int64_t tiles, float* sums, bool first, float* out, int64_t out_stride) {
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 256, 64);
    _tile_loadd(2, sums + 512, 64);
    _tile_loadd(3, sums + 768, 64);
  }
  const uint16_t *left1 = left + tiles * kElements, *right1 = right + tiles * kElements;
  for (int64_t t = 0; t < tiles * kElements; t += kElements) {
    _tile_loadd(4, left + t, 64);
    _tile_loadd(6, right + t, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right1 + t, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left1 + t, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  float* to = out ? out : sums;
  const int64_t right_by = out ? kTile : 256, down_by = out ? kTile * out_stride : 512, stride = out ? out_stride * 4 : 64;
  _tile_stored(0, to, stride);
  _tile_stored(1, to + right_by, stride);
  _tile_stored(2, to + down_by, stride);
  _tile_stored(3, to + down_by + right_by, stride);
}

}  // namespace

const bool kCompiled = true;

int64_t scratch_bytes(int64_t a_width, int64_t b_width) { return (a_width + b_width) * kSlice * 2 + a_width * b_width * 4; }

void transposed_product(const Rows& a, const Rows& b, int64_t rows, float* out, void* scratch, int threads) {
  uint16_t* const left = static_cast<uint16_t*>(scratch);
  uint16_t* const right = left + a.width * kSlice;
  float* const sums = reinterpret_cast<float*>(right + b.width * kSlice);
  // The longer side is shared out and walked outside: the other one stays in the second cache.
  const int64_t down = a.width / kBlock, across = b.width / kBlock;
  const int64_t outer = std::max(down, across), inner = std::min(down, across);
#pragma omp parallel num_threads(threads)
  {
    const Tiles configured;
    const int64_t count = omp_get_num_threads(), me = omp_get_thread_num();
    for (int64_t row = 0; row < rows; row += kSlice) {
      const int64_t end = std::min(rows, row + kSlice), tiles = (end - row + kDepth - 1) / kDepth;
      for (int64_t depth = tiles * me / count; depth < tiles * (me + 1) / count; depth++) {
        pack<true>(a, row, end, depth, tiles, left);
        pack<false>(b, row, end, depth, tiles, right);
      }
#pragma omp barrier
      for (int64_t x = outer * me / count; x < outer * (me + 1) / count; x++) {
        for (int64_t y = 0; y < inner; y++) {
          const int64_t i = down >= across ? x : y, j = down >= across ? y : x;
          add_block(left + 2 * i * tiles * kElements, right + 2 * j * tiles * kElements, tiles, sums + (x * inner + y) * kBlock * kBlock, row == 0,
                    end == rows ? out + i * kBlock * b.width + j * kBlock : nullptr, b.width);
        }
      }
#pragma omp barrier
    }
  }
}

}  // namespace linformer::amx

#else

namespace linformer::amx {
const bool kCompiled = false;
int64_t scratch_bytes(int64_t, int64_t) { return 0; }
void transposed_product(const Rows&, const Rows&, int64_t, float*, void*, int) {}
}  // namespace linformer::amx

#endif
