// What is kept of the memory of large results, and from which size on they are written past the caches (stream.h).
// torch.ops.vae_fast_memory gives back what is kept, says how much it is, and sets the size.
#include "memory.h"

#include "stream.h"

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

namespace vae_fast {
namespace {

constexpr int64_t kPage = 4096, kHugePage = 2 << 20;
constexpr int64_t kLarge = 1 << 20;  // bytes; smaller results are left to the C library
constexpr int64_t kPatience = 64;    // results for which a block is kept that none of them fits

// Memory of torch's, so that its profiler and its allocator know of it
struct Block {
  Tensor memory;
  int64_t size;
  int64_t dropped = 0;  // when, counted in results

  // The first whole page: results then don't write shortly before the place, modulo a page, that a loop reads next
  char* begin() const {
    const auto address = reinterpret_cast<uintptr_t>(memory.data_ptr());
    return reinterpret_cast<char*>((address + kPage - 1) / kPage * kPage);
  }
};

// Fresh memory costs a fault for each page of 4 KiB: in huge pages, which systems have for those who ask, a fifth
void prefer_huge_pages(const Block& block) {
#if defined(__linux__)
  const auto begin = reinterpret_cast<uintptr_t>(block.begin());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage,
                  last = (begin + block.size) / kHugePage * kHugePage;
  if (first < last)  // advice: what comes of it doesn't matter
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

std::unique_ptr<Block> allocate(int64_t size, const Place& cpu) {
  auto block = std::make_unique<Block>(Block{empty({size + kPage}, ScalarType::Byte, cpu), size});
  prefer_huge_pages(*block);
  return block;
}

// Blocks in use and blocks kept are never more, together, than were in use at one time.
class Cache {
 public:
  // Never destroyed: results may outlive it
  static Cache& only() {
    static Cache& cache = *new Cache;
    return cache;
  }

  // A block of that size, or an eighth more
  std::unique_ptr<Block> take(int64_t size, const Place& cpu) {
    const std::lock_guard lock(mutex_);
    ++results_;
    const auto fits = [&](const auto& block) { return size <= block->size && block->size <= size + size / 8; };
    const auto found = std::find_if(kept_.rbegin(), kept_.rend(), fits);
    if (found == kept_.rend()) {
      const int64_t before = most_;
      in_use_ += size, most_ = std::max(most_, in_use_);
      drop_old();
      try {
        return allocate(size, cpu);
      } catch (...) {
        in_use_ -= size, most_ = before;
        throw;
      }
    }
    auto block = std::move(*found);
    kept_.erase(std::prev(found.base()));
    kept_bytes_ -= block->size, in_use_ += block->size;
    drop_old();
    return block;
  }
  void give_back(std::unique_ptr<Block> block) {
    const std::lock_guard lock(mutex_);
    in_use_ -= block->size;
    if (!keeps_) return;
    block->dropped = results_, kept_bytes_ += block->size;
    kept_.push_back(std::move(block));
  }
  void clear() {
    const std::lock_guard lock(mutex_);
    kept_.clear(), kept_bytes_ = 0, most_ = in_use_;
  }
  int64_t kept_bytes() {
    const std::lock_guard lock(mutex_);
    return kept_bytes_;
  }

 private:
  Cache() {
    const char* setting = std::getenv("VAE_FAST_KEEP_MEMORY");
    keeps_ = setting == nullptr || std::string_view(setting) != "0";
    kept_.reserve(4096);
#if defined(__linux__)
    pthread_atfork([] { only().mutex_.lock(); }, [] { only().mutex_.unlock(); }, [] { only().mutex_.unlock(); });
#endif
  }
  void drop_old() {
    const auto is_old = [&] { return in_use_ + kept_bytes_ > most_ || kept_.front()->dropped + kPatience < results_; };
    while (!kept_.empty() && is_old()) {
      kept_bytes_ -= kept_.front()->size;
      kept_.erase(kept_.begin());
    }
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> kept_;  // in the order in which they were dropped
  int64_t kept_bytes_ = 0, in_use_ = 0, most_ = 0, results_ = 0;
  bool keeps_ = true;
};

// Bytes of a result from which on it is streamed: below them it would cost whoever reads it next more than it saves.
// AMD's processors gain up to a third where steps are light, and may lose a sixth by others.
constexpr int64_t kStreamed = 8 << 20;
std::atomic<int64_t> stream_from{-1};  // what tests and measurements set in place of that, on all processors; or -1

void give_back(void*, void* block) { Cache::only().give_back(std::unique_ptr<Block>(static_cast<Block*>(block))); }

void empty_cache(StableIValue*, uint64_t, uint64_t) { Cache::only().clear(); }

void cached_bytes(StableIValue* stack, uint64_t, uint64_t) {
  stack[0] = torch::stable::detail::from(Cache::only().kept_bytes());
}

void asked_is_streamed(StableIValue* stack, uint64_t, uint64_t) {
  const auto bytes = torch::stable::detail::to<int64_t>(stack[0]);
  stack[0] = torch::stable::detail::from(is_streamed(bytes, torch::stable::detail::to<bool>(stack[1])));
}

// (bytes) -> what it was, for tests
void exchange_stream_from(StableIValue* stack, uint64_t, uint64_t) {
  stack[0] = torch::stable::detail::from(stream_from.exchange(torch::stable::detail::to<int64_t>(stack[0])));
}

}  // namespace

bool is_streamed(int64_t bytes, bool light) {
  const int64_t least = stream_from;
  return least < 0 ? bytes >= kStreamed && (kIsIntel || (light && VAE_FAST_STREAMS)) : bytes >= least;
}

Tensor new_result(const int64_t* sizes, const int64_t* strides, int64_t dimensions, ScalarType type, const Place& cpu) {
  int64_t bytes = size_of(type);
  bool too_large = false;  // for a number of bytes, which torch has an error for
  for (int64_t d = 0; d < dimensions; ++d) too_large |= __builtin_mul_overflow(bytes, sizes[d], &bytes);
  if (too_large || bytes < kLarge) return empty_strided(sizes, strides, dimensions, type, cpu);
  auto block = Cache::only().take(bytes, cpu);
  AtenTensorHandle handle;
  const AOTITorchError failed =
      torch_from_blob(block->begin(), dimensions, sizes, strides, 0, dtype_of(type), cpu.type, -1, &handle,
                      aoti_torch_layout_strided(), nullptr, 0, &give_back, block.get());
  if (failed) Cache::only().give_back(std::move(block));
  TORCH_ERROR_CODE_CHECK(failed);
  block.release();
  return Tensor(handle);
}

STABLE_TORCH_LIBRARY(vae_fast_memory, m) {
  m.def("empty_cache() -> ()");
  m.def("cached_bytes() -> int");
  m.def("is_streamed(int bytes, bool light) -> bool");
  m.def("stream_from(int bytes) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(vae_fast_memory, CompositeExplicitAutograd, m) {
  m.impl("empty_cache", &empty_cache);
  m.impl("cached_bytes", &cached_bytes);
  m.impl("is_streamed", &asked_is_streamed);
  m.impl("stream_from", &exchange_stream_from);
}

}  // namespace vae_fast
