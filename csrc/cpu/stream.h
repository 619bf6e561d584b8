// Results past the caches: a line that is computed whole is not read first, and displaces no other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define VAE_FAST_STREAMS 1
#endif

namespace vae_fast {

#if VAE_FAST_STREAMS
inline const bool kIsIntel = (__builtin_cpu_init(), __builtin_cpu_is("intel"));
#else
#define VAE_FAST_STREAMS 0
constexpr bool kIsIntel = false;
#endif

constexpr int kLine = 64;  // bytes of a cache line

inline __attribute__((always_inline)) void stream_line(const char* from, char* to) {
#if VAE_FAST_STREAMS && !defined(__SANITIZE_ADDRESS__)  // which doesn't see such stores
  for (int i = 0; i < kLine; i += sizeof(__m128i))
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
#else
  memcpy(to, from, kLine);
#endif
}

// Before another thread reads what this one streamed
inline void end_streams() {
#if VAE_FAST_STREAMS
  _mm_sfence();
#endif
}

// A block's results on their way from a buffer. The lines at both ends may be other blocks' too: they go as usual.
class Stream {
 public:
  Stream() = default;
  Stream(const void* from, void* to) : from_(static_cast<const char*>(from)), to_(static_cast<char*>(to)) {
    first_ = sent_ = -reinterpret_cast<uintptr_t>(to) % kLine;
  }
  bool is_open() const { return to_ != nullptr; }

  // So many bytes are computed
  inline __attribute__((always_inline)) void advance(int64_t bytes) {
    for (; sent_ + kLine <= bytes; sent_ += kLine) stream_line(from_ + sent_, to_ + sent_);
  }
  // All are; from the first on, if they were changed after they were computed
  void finish(int64_t bytes, bool changed) {
    if (changed) sent_ = first_;
    advance(bytes);
    const int64_t head = std::min(first_, bytes);
    if (head > 0) memcpy(to_, from_, head);
    if (sent_ < bytes) memcpy(to_ + sent_, from_ + sent_, bytes - sent_);
  }

 private:
  const char* from_ = nullptr;
  char* to_ = nullptr;
  int64_t first_ = 0, sent_ = 0;
};

}  // namespace vae_fast
