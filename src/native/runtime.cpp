// Facts about libtorch and its devices: version, CPU kernels, what a GPU does and holds.
#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
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

// Waits until a GPU has done what it was given.
extern "C" int linformer_wait_for_gpu(int index) {
  LINFORMER_TRY
  at::accelerator::synchronizeDevice(static_cast<c10::DeviceIndex>(index));
  return 0;
  LINFORMER_CATCH(-1)
}

// Gives back what libtorch keeps on GPUs for later use.
extern "C" int linformer_empty_gpu_cache() {
  LINFORMER_TRY
  at::accelerator::emptyCache();
  return 0;
  LINFORMER_CATCH(-1)
}

// Bytes that libtorch has handed out on a GPU: now, and the most since the last call that asked for a new start.
extern "C" int linformer_gpu_bytes(int index, int starts_anew, int64_t* now, int64_t* most) {
  LINFORMER_TRY
  const auto device = static_cast<c10::DeviceIndex>(index);
  const auto stats = at::accelerator::getDeviceStats(device);
  const auto& all = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
  *now = all.current, *most = all.peak;
  if (starts_anew) at::accelerator::resetPeakStats(device);
  return 0;
  LINFORMER_CATCH(-1)
}

// How many threads at::parallel_for really uses from this library: 1 here although libtorch reports more means that
// this file was compiled without OpenMP.
extern "C" int linformer_parallel_chunks() {
  LINFORMER_TRY
  std::atomic<int> chunks{0};
  at::parallel_for(0, 64, 1, [&](int64_t, int64_t) { chunks++; });
  return chunks;
  LINFORMER_CATCH(-1)
}
