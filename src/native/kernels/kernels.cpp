// The table of kernels.h, from the kernels of the headers beside it; compiled once for each instruction set, which LINFORMER_TABLE names.
#include "kernels.h"

#include "adam.h"
#include "cross_entropy.h"
#include "gelu.h"
#include "norm.h"
#include "pack.h"
#include "softmax.h"
#include "sums.h"

namespace linformer {
namespace {

template <class T>
constexpr KernelTable<T> table() {
  return {drop_add_norm<T>, drop_add_norm_backward<T>, bias_gelu<T>, bias_gelu_backward<T>, column_sums<T>, sum_of_three<T>,
          add_to<T>,        cross_entropy<T>,          softmax<T>,   softmax_backward<T>,   row_dots<T>,    pack,
          pack_transposed,  transpose,                 from_float<T>, dropout<T>};
}

}  // namespace

#define LINFORMER_TEXT_OF(x) #x
#define LINFORMER_TEXT(x) LINFORMER_TEXT_OF(x)
extern const Kernels LINFORMER_TABLE;
const Kernels LINFORMER_TABLE = {LINFORMER_TEXT(LINFORMER_TABLE), adam, squares, table<float>(), table<BFloat16>()};

}  // namespace linformer
