// The C face of the shim: every function catches every C++ exception, stores its text per thread and returns a
// failure value (null or -1). Tensors cross as the pointers that tch holds (`at::Tensor*`).
#pragma once
#include <cstdint>
#include <exception>
#include <string>

namespace linformer {
// The text of the last failure on this thread.
std::string& last_error();
}  // namespace linformer

#define LINFORMER_TRY try {
#define LINFORMER_CATCH(failure)                                     \
  }                                                                  \
  catch (const std::exception& e) {                                  \
    linformer::last_error() = e.what();                              \
    return failure;                                                  \
  }                                                                  \
  catch (...) {                                                      \
    linformer::last_error() = "a C++ exception that is no std::exception"; \
    return failure;                                                  \
  }
