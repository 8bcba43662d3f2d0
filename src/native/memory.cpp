// The memory of large tensors.
//
// glibc maps and clears them anew at every step, or (without its thresholds) keeps them in one heap, where what is free fits the next
// request ever less: a step that recomputed its layers took as much as one that kept them. Here each is a mapping of its own, of huge
// pages where they fit in. A freed one is kept for the next tensor of about its size, but all together are never more than once were
// in use, and a sixteenth: then others are given back first.
#include "shim.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

constexpr size_t kLarge = size_t{1} << 20, kPage = size_t{1} << 12, kHugePage = size_t{1} << 21;

size_t up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

class Blocks {
 public:
  // Null where the kernel has none.
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t wanted = up(bytes, kPage);
    size_t size = wanted;
    void* block = kept_of(wanted, size);
    if (!block) {
      most_ = std::max(most_, in_use_ + wanted);
      keep(most_ + most_ / 16 - (in_use_ + wanted));
      block = map(wanted);
      if (!block) {
        keep(0);
        block = map(wanted);
      }
      if (!block) return nullptr;
    }
    sizes_[block] = size;
    in_use_ += size;
    most_ = std::max(most_, in_use_);
    return block;
  }

  // Whether it was one of these.
  bool give(void* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sizes_.find(block);
    if (found == sizes_.end()) return false;
    const size_t size = found->second;
    sizes_.erase(found);
    in_use_ -= size, kept_ += size;
    free_[size].push_back(block);
    return true;
  }

  // Gives back all that is free.
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    keep(0);
    most_ = in_use_;
  }

  void count(int64_t* in_use, int64_t* kept, int64_t* most) {
    const std::lock_guard<std::mutex> lock(mutex_);
    *in_use = in_use_, *kept = kept_, *most = most_;
  }

 private:
  // The smallest free one that is enough and hardly more; of several the last that was used.
  void* kept_of(size_t wanted, size_t& size) {
    const auto found = free_.lower_bound(wanted);
    if (found == free_.end() || found->first > wanted + wanted / 16) return nullptr;
    size = found->first;
    return pop(found);
  }

  void* pop(std::map<size_t, std::vector<void*>>::iterator place) {
    void* const block = place->second.back();
    kept_ -= place->first;
    place->second.pop_back();
    if (place->second.empty()) free_.erase(place);
    return block;
  }

  // Gives free ones back until no more than so many bytes of them are left.
  void keep(size_t bytes) {
    while (kept_ > bytes) {
      auto place = free_.lower_bound(kept_ - bytes);
      if (place == free_.end()) --place;
      const size_t size = place->first;
      munmap(pop(place), size);
    }
  }

  static void* map(size_t size) {
    const size_t unit = size < kHugePage ? kPage : kHugePage, room = size + unit - kPage;
    void* const found = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return nullptr;
    char* const first = static_cast<char*>(found);
    char* const block = first + (up(reinterpret_cast<size_t>(first), unit) - reinterpret_cast<size_t>(first));
    if (block > first) munmap(first, block - first);
    if (block + size < first + room) munmap(block + size, first + room - (block + size));
    // Asked for, not needed.
    if (unit == kHugePage) madvise(block, size, MADV_HUGEPAGE);
    return block;
  }

  std::mutex mutex_;
  std::unordered_map<void*, size_t> sizes_;        // of those in use
  std::map<size_t, std::vector<void*>> free_;      // by size
  size_t in_use_ = 0, kept_ = 0, most_ = 0;        // bytes; `most_` were in use at once
};

// Never destroyed: tensors of other threads may outlive main.
Blocks& blocks() {
  static Blocks* const all = new Blocks;
  return *all;
}

void release(void* memory) {
  const bool may_be_block = memory && reinterpret_cast<size_t>(memory) % kPage == 0;
  if (!may_be_block || !blocks().give(memory)) c10::free_cpu(memory);
}

struct LargeBlocks final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes >= kLarge ? blocks().take(bytes) : nullptr;
    // Small; or the kernel has no more: then with libtorch's words.
    if (!memory) memory = c10::alloc_cpu(bytes);
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

// From here on; and of all other memory, nothing is given back to be cleared anew.
extern "C" void linformer_keep_freed_memory() {
  static LargeBlocks allocator;
  c10::SetCPUAllocator(&allocator, 1);
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
}

// Gives what is free back to the kernel, so that what is resident afterwards is in use.
extern "C" void linformer_give_back_freed_memory() {
  blocks().clear();
  malloc_trim(0);
}

// Bytes of large tensors: in use, free and kept, and the most that were in use at once.
extern "C" void linformer_large_blocks(int64_t* in_use, int64_t* kept, int64_t* most) { blocks().count(in_use, kept, most); }
