// Facts about libtorch and the process: version, CPU kernels, memory allocator.
#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <malloc.h>
#include <torch/version.h>

#include "kernels/amx.h"
#include "kernels/kernels.h"

namespace linformer {
std::string& last_error() {
  static thread_local std::string text;
  return text;
}
}  // namespace linformer

extern "C" const char* linformer_last_error() { return linformer::last_error().c_str(); }

extern "C" const char* linformer_torch_version() { return TORCH_VERSION; }

extern "C" const char* linformer_kernels() { return linformer::kernels().name; }

// Whether the gradients of weights in bf16 are made in tiles.
extern "C" int linformer_has_tiles() { return linformer::amx::available(); }

extern "C" const char* linformer_cpu_capability() {
  static const std::string capability = at::get_cpu_capability();
  return capability.c_str();
}

// glibc gives large buffers back to the kernel when they are freed and maps (and clears) them anew at the next step.
// Keeping them costs memory that the next step would take anyway. No threshold: it is an int, and buffers beyond 2 GiB are
// where a page fault for every 4 KiB hurts most.
extern "C" void linformer_keep_freed_memory() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
}

// Gives what is free back to the kernel, so that what is resident afterwards is in use.
extern "C" void linformer_give_back_freed_memory() { malloc_trim(0); }

// How many threads at::parallel_for really uses from this library: 1 here although libtorch reports more means that
// this file was compiled without OpenMP.
extern "C" int linformer_parallel_chunks() {
  LINFORMER_TRY
  std::atomic<int> chunks{0};
  at::parallel_for(0, 64, 1, [&](int64_t, int64_t) { chunks++; });
  return chunks;
  LINFORMER_CATCH(-1)
}
