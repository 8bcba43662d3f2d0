// c10d's NCCL process group, for ranks on GPUs. A library of its own, loaded when ranks ask for GPUs: the program itself needs
// no CUDA library to start. Compiled where libtorch came with NCCL (make setup CUDA=1).
#include "shim.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <cstdio>

#define EXPORTED extern "C" __attribute__((visibility("default")))

using c10::intrusive_ptr;

namespace linformer {
std::string& last_error() {
  static thread_local std::string text;
  return text;
}
}  // namespace linformer

EXPORTED const char* linformer_nccl_error() { return linformer::last_error().c_str(); }

// Such as 2.28.9.
EXPORTED const char* linformer_nccl_version() {
  LINFORMER_TRY
  static const std::string version = c10d::getNcclVersion();
  return version.c_str();
  LINFORMER_CATCH(nullptr)
}

// Where a device sits on this machine's bus: the same device has the same name in all processes, whatever they call visible.
EXPORTED const char* linformer_nccl_device(int index) {
  LINFORMER_TRY
  static thread_local char name[32];
  const cudaDeviceProp* found = at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(index));
  std::snprintf(name, sizeof name, "%04x:%02x:%02x", found->pciDomainID, found->pciBusID, found->pciDeviceID);
  return name;
  LINFORMER_CATCH(nullptr)
}

// Meets the others through the store, an `intrusive_ptr<c10d::Store>*`, under keys that begin with `prefix`; a new
// `intrusive_ptr<c10d::Backend>*`, or null.
EXPORTED void* linformer_nccl_new(void* store, const char* prefix, int rank, int size, int device, int64_t timeout_ms) {
  LINFORMER_TRY
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
  auto below = c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), *static_cast<intrusive_ptr<c10d::Store>*>(store));
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = std::chrono::milliseconds(timeout_ms);
  auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(below, rank, size, options);
  nccl->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
  return new intrusive_ptr<c10d::Backend>(nccl);
  LINFORMER_CATCH(nullptr)
}
