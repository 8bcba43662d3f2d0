// What runs when: libtorch's operations and the nodes of the backward pass, told to whoever listens on this thread.
#include "shim.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>

namespace {

using OnBegin = void (*)(const char* name, int64_t sequence, int is_backward);
using OnEnd = void (*)();

OnBegin on_begin = nullptr;
OnEnd on_end = nullptr;
std::optional<at::CallbackHandle> profile_handle;

std::unique_ptr<at::ObserverContext> tell_begin(const at::RecordFunction& f) {
  on_begin(f.name(), f.seqNr(), f.scope() == at::RecordScope::BACKWARD_FUNCTION);
  return nullptr;
}

void tell_end(const at::RecordFunction&, at::ObserverContext*) { on_end(); }

}  // namespace

// Begins to tell; null: ends. A backward node comes with the number that it got in the forward pass.
extern "C" int linformer_profile(OnBegin begin_, OnEnd end_) {
  LINFORMER_TRY
  if (profile_handle) at::removeCallback(*profile_handle);
  profile_handle.reset();
  on_begin = begin_;
  on_end = end_;
  if (begin_)
    profile_handle = at::addThreadLocalCallback(
        at::RecordFunctionCallback(tell_begin, tell_end).scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  return 0;
  LINFORMER_CATCH(-1)
}

// The number that the next node of this thread's graph will get.
extern "C" int64_t linformer_next_sequence() { return static_cast<int64_t>(at::sequence_number::peek()); }
