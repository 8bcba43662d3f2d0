// Which table of kernels this processor gets, and whether it gets tiles. Compiled for any processor: those that are asked about
// here may lack what their kernels are made of.
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "amx.h"
#include "kernels.h"

namespace linformer {

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx512, kernels_avx2;
#endif

const Kernels* kernels_named(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  if (!std::strcmp(name, "avx512")) return has_avx512 ? &kernels_avx512 : nullptr;
  if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels_avx2 : nullptr;
#endif
  return std::strcmp(name, "portable") ? nullptr : &kernels_portable;
}

const Kernels& kernels() {
  static const Kernels* const best = [] {
    // To compare them; a name that this processor lacks is passed over.
    if (const char* wanted = std::getenv("LINFORMER_KERNELS"))
      if (const Kernels* found = kernels_named(wanted)) return found;
    for (const char* name : {"avx512", "avx2"})
      if (const Kernels* found = kernels_named(name)) return found;
    return &kernels_portable;
  }();
  return *best;
}

bool amx::available() {
  static const bool is = [] {
#if defined(__x86_64__) && defined(__linux__)
    // To compare them.
    if (const char* wanted = std::getenv("LINFORMER_TILES"); wanted && !std::strcmp(wanted, "off")) return false;
    unsigned a, b, c, d;
    constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
    if (!kCompiled || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16) == 0 || (d & kTiles) == 0) return false;
    if (!kernels_named("avx512")) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
  }();
  return is;
}

}  // namespace linformer
