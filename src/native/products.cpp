// The gradients of weights.
#include "shim.h"

#include "blocks.h"
#include "kernels/amx.h"

using at::Tensor;

namespace linformer {

// libtorch's bf16 product with its left side transposed reaches little more than half the speed of its others; packed for the tiles, and
// with the sums in fp32 to the end, it does not have to.
Tensor weight_gradient(const Tensor& d_y, const Tensor& x) {
  const int64_t rows = x.size(0), out = d_y.size(1), in = x.size(1);
  const bool tiles = x.scalar_type() == at::kBFloat16 && d_y.scalar_type() == at::kBFloat16 && out % amx::kBlock == 0 && in % amx::kBlock == 0 &&
                     rows > 0 && d_y.stride(1) == 1 && x.stride(1) == 1 && x.is_cpu() && amx::available();
  if (!tiles) return at::mm(d_y.t(), x);
  const Tensor d_w = at::empty({out, in}, x.options().dtype(at::kFloat));
  const Tensor scratch = at::empty({amx::scratch_bytes(out, in)}, x.options().dtype(at::kByte));
  const auto side = [](const Tensor& t) { return amx::Rows{data<at::BFloat16>(t), t.size(1), t.stride(0)}; };
  amx::transposed_product(side(d_y), side(x), rows, floats(d_w), scratch.data_ptr(), at::in_parallel_region() ? 1 : at::get_num_threads());
  return d_w;
}

}  // namespace linformer
