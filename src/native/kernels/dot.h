// Products of bf16 by the instruction that adds a pair of them to an fp32 sum: for processors that have it but no tiles.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace linformer::dot {

// Whether the compiler knew the instruction: else the product below is empty.
extern const bool kCompiled;

// Whether it was compiled and this processor has it.
bool available();

// C [rows x n] = A [rows x inner] B [inner x n], or added to C; sums in fp32. Rows of A stand `stride` elements apart, those of C n. Of B
// every two rows are interleaved, element by element (as `pack` makes it). n is a multiple of 32, inner of 2.
void product(int64_t rows, int64_t n, int64_t inner, int64_t stride, const BFloat16* a, const BFloat16* b, float* c, bool add);

}  // namespace linformer::dot
