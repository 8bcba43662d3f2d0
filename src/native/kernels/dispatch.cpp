// Which table of kernels this processor gets.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

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

}  // namespace linformer
