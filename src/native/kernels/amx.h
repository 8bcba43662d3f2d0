// Products in the tile registers of processors with AMX.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace linformer::amx {

// Whether the compiler knew the instructions: else the product below is empty.
extern const bool kCompiled;

// Whether they were compiled, this processor has tiles for bf16, and the system lets this process use them.
bool available();

// Sides of the output come in pairs of tiles.
constexpr int64_t kBlock = 32;

struct Rows {
  const BFloat16* first;
  int64_t width, stride;  // elements
};

// out [a.width, b.width] = a^T b, summed over `rows` rows in fp32, in an order that the number of threads does not change. Both widths
// are multiples of kBlock; `scratch` has room for scratch_bytes(a.width, b.width), at a multiple of 64.
void transposed_product(const Rows& a, const Rows& b, int64_t rows, float* out, void* scratch, int threads);
int64_t scratch_bytes(int64_t a_width, int64_t b_width);

}  // namespace linformer::amx
