// What the blocks share: tables by type, rows cut over threads, sums over rows that do not depend on the number of threads.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <optional>
#include <type_traits>
#include <vector>

#include "kernels/kernels.h"

namespace linformer {

// What tch holds a pointer to.
inline const at::Tensor& tensor_at(void* pointer) { return *static_cast<at::Tensor*>(pointer); }
inline std::optional<at::Tensor> tensor_or_none(void* pointer) { return pointer ? std::optional<at::Tensor>(tensor_at(pointer)) : std::nullopt; }

// Rows whose sums are added up one after the other; the chunks' sums are added in their order, whatever the threads.
constexpr int64_t kRowChunk = 128;

template <class Element>
const auto& table() {
  if constexpr (std::is_same_v<Element, float>) return kernels().f32;
  else return kernels().bf16;
}

// The kernels' name of a libtorch type.
template <class Element>
using Stored = std::conditional_t<std::is_same_v<Element, float>, float, BFloat16>;

template <class Element>
Stored<Element>* data(const at::Tensor& t) {
  return t.defined() ? reinterpret_cast<Stored<Element>*>(t.data_ptr<Element>()) : nullptr;
}
inline float* floats(const at::Tensor& t) { return t.defined() ? t.data_ptr<float>() : nullptr; }
inline const int64_t* integers(const at::Tensor& t) { return t.defined() ? t.const_data_ptr<int64_t>() : nullptr; }

// Calls body with a value of the tensor's element type.
template <class Body>
void by_type(const at::Tensor& t, Body body) {
  if (t.scalar_type() == at::kFloat) return body(float{});
  TORCH_CHECK(t.scalar_type() == at::kBFloat16, "fused kernels take fp32 and bf16, not ", t.scalar_type());
  body(at::BFloat16{});
}

template <class Body>
void over_rows(int64_t rows, Body body) {
  const int64_t threads = at::get_num_threads();
  at::parallel_for(0, rows, (rows + threads - 1) / threads, body);
}

// body(first, last, sums) adds to `width` sums; gives their totals.
template <class Body>
at::Tensor summed_over_rows(int64_t rows, int64_t width, Body body) {
  const int64_t chunks = (rows + kRowChunk - 1) / kRowChunk;
  const at::Tensor partial = at::zeros({std::max<int64_t>(chunks, 1), width}, at::kFloat);
  float* sums = floats(partial);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) body(c * kRowChunk, std::min(rows, (c + 1) * kRowChunk), sums + c * width);
  });
  const at::Tensor total = at::empty({width}, at::kFloat);
  float* out = floats(total);
  at::parallel_for(0, width, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) out[i] = sums[i];
    for (int64_t c = 1; c < chunks; c++)
      for (int64_t i = begin; i < end; i++) out[i] += sums[c * width + i];
  });
  return total;
}

}  // namespace linformer
