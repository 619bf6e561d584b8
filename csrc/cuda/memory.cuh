// Operands in global memory, one element or one 128-bit access at a time, as float and back.
#pragma once

#include "../math.h"
#include "../matrix.h"

namespace vae_fast {

struct Any {};  // in place of a dtype: known at run time only

// uint8 is an intensity, x / 255, unless it is a count; bool is stored as 0 and 1. `one` is what stands for 1.
template <class S>
struct Dtype;

template <>
struct Dtype<float> {
  static constexpr ScalarType type = ScalarType::Float;
  using Stored = uint32_t;
  static __device__ __forceinline__ float of(uint32_t stored, float) { return bits<float>(stored); }
  static __device__ __forceinline__ void widen(uint32_t word, float, float* to) { to[0] = bits<float>(word); }
  static __device__ __forceinline__ uint32_t narrow(const float* from) { return bits<uint32_t>(from[0]); }
};

// The two 16-bit dtypes: a word holds two
template <>
struct Dtype<BFloat16> {
  static constexpr ScalarType type = ScalarType::BFloat16;
  using Stored = uint16_t;
  static __device__ __forceinline__ float of(uint16_t stored, float) {
    return bits<float>(static_cast<uint32_t>(stored) << 16);
  }
  static __device__ __forceinline__ void widen(uint32_t word, float, float* to) {
    to[0] = bits<float>(word << 16), to[1] = bits<float>(word & 0xffff0000u);
  }
  static __device__ __forceinline__ uint32_t narrow(const float* from) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from[1]), "f"(from[0]));
    return word;
  }
};

template <>
struct Dtype<Half> {
  static constexpr ScalarType type = ScalarType::Half;
  using Stored = uint16_t;
  static __device__ __forceinline__ float of(uint16_t stored, float) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(stored));
    return value;
  }
  static __device__ __forceinline__ void widen(uint32_t word, float, float* to) {
    to[0] = of(static_cast<uint16_t>(word), 1.f), to[1] = of(static_cast<uint16_t>(word >> 16), 1.f);
  }
  static __device__ __forceinline__ uint32_t narrow(const float* from) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from[1]), "f"(from[0]));
    return word;
  }
};

// A byte b goes into the mantissa of 2^15, 0x4700 bb 00, where it counts 2^15 + b: a conversion would take the slow unit.
// -2^15 one is exact, so that the FMA rounds b one once.
template <bool SATURATES>
struct Bytes {
  static constexpr ScalarType type = ScalarType::Byte;
  using Stored = uint8_t;
  static __device__ __forceinline__ float of_magic(uint32_t magic, float one) {
    const float v = fmaf(bits<float>(magic), one, -32768.f * one);
    return SATURATES ? __saturatef(v) : v;
  }
  static __device__ __forceinline__ float of(uint8_t stored, float one) {
    return of_magic(static_cast<uint32_t>(stored) << 8 | 0x47000000u, one);
  }
  static __device__ __forceinline__ void widen(uint32_t word, float one, float* to) {
    to[0] = of_magic(__byte_perm(word, 0x47000000u, 0x7505), one);
    to[1] = of_magic(__byte_perm(word, 0x47000000u, 0x7515), one);
    to[2] = of_magic(__byte_perm(word, 0x47000000u, 0x7525), one);
    to[3] = of_magic(__byte_perm(word, 0x47000000u, 0x7535), one);
  }
};

// Bytes that are x / 255, or bits: true is any byte but 0, which the FMA takes to 1 at no cost.
enum class Intensity : uint8_t {};
template <>
struct Dtype<Intensity> : Bytes<true> {};

// Counts
template <>
struct Dtype<uint8_t> : Bytes<false> {};
template <>
struct Dtype<uint16_t> {
  static constexpr ScalarType type = ScalarType::UInt16;
  using Stored = uint16_t;
  // in the mantissa of 2^23, as a byte in that of 2^15
  static __device__ __forceinline__ float of_magic(uint32_t magic) { return bits<float>(magic) - 8388608.f; }
  static __device__ __forceinline__ float of(uint16_t stored, float) { return of_magic(0x4b000000u | stored); }
  static __device__ __forceinline__ void widen(uint32_t word, float, float* to) {
    to[0] = of_magic(__byte_perm(word, 0x4b000000u, 0x7610));
    to[1] = of_magic(__byte_perm(word, 0x4b000000u, 0x7632));
  }
};

template <>
struct Dtype<int32_t> {
  static constexpr ScalarType type = ScalarType::Int;
  using Stored = int32_t;
  static __device__ __forceinline__ float of(int32_t stored, float) { return static_cast<float>(stored); }
  static __device__ __forceinline__ void widen(uint32_t word, float, float* to) {
    to[0] = static_cast<float>(static_cast<int32_t>(word));
  }
};

__device__ __forceinline__ float unit(const Matrix& x) {
  return x.type == ScalarType::Byte && !x.counts ? 1.f / 255.f : 1.f;
}

// The element at an offset from `data`
template <class S>
__device__ __forceinline__ float load(const char* data, ScalarType type, int64_t offset, float one) {
  if constexpr (!std::is_same_v<S, Any>) {
    return Dtype<S>::of(__ldg(reinterpret_cast<const typename Dtype<S>::Stored*>(data) + offset), one);
  } else {
    switch (type) {
      case ScalarType::Float: return load<float>(data, type, offset, one);
      case ScalarType::BFloat16: return load<BFloat16>(data, type, offset, one);
      case ScalarType::Half: return load<Half>(data, type, offset, one);
      case ScalarType::Double: return static_cast<float>(__ldg(reinterpret_cast<const double*>(data) + offset));
      case ScalarType::Long: return static_cast<float>(__ldg(reinterpret_cast<const long long*>(data) + offset));
      case ScalarType::Int: return load<int32_t>(data, type, offset, one);
      case ScalarType::UInt16: return load<uint16_t>(data, type, offset, one);
      case ScalarType::Bool: return __ldg(reinterpret_cast<const uint8_t*>(data) + offset) != 0 ? 1.f : 0.f;
      default: return load<uint8_t>(data, type, offset, one);
    }
  }
}

template <class S>
__device__ __forceinline__ void store(char* data, ScalarType type, int64_t offset, float value) {
  if constexpr (!std::is_same_v<S, Any>) {
    using Stored = typename Dtype<S>::Stored;
    const float pair[2] = {value, 0.f};  // a word of 16-bit elements
    reinterpret_cast<Stored*>(data)[offset] = static_cast<Stored>(Dtype<S>::narrow(pair));
  } else {
    switch (type) {
      case ScalarType::Float: return store<float>(data, type, offset, value);
      case ScalarType::BFloat16: return store<BFloat16>(data, type, offset, value);
      default: return store<Half>(data, type, offset, value);
    }
  }
}

// V neighbours by one access of up to 128 bits, to which p is aligned. READ_ONLY: nothing writes them meanwhile.
template <class S, int V, bool READ_ONLY = true>
__device__ __forceinline__ void load_vector(const S* p, float one, float (&to)[V]) {
  constexpr int kWords = V * sizeof(S) / 4, kEach = V / kWords;
  const auto access = [](auto* q) {
    if constexpr (READ_ONLY) return __ldg(q);
    else return *q;
  };
  uint32_t words[4];
  if constexpr (kWords == 4) {
    const uint4 four = access(reinterpret_cast<const uint4*>(p));
    words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
  } else if constexpr (kWords == 2) {
    const uint2 two = access(reinterpret_cast<const uint2*>(p));
    words[0] = two.x, words[1] = two.y;
  } else {
    static_assert(kWords == 1, "an access is 32, 64 or 128 bits wide");
    words[0] = access(reinterpret_cast<const uint32_t*>(p));
  }
#pragma unroll
  for (int k = 0; k < kWords; ++k) Dtype<S>::widen(words[k], one, to + k * kEach);
}

template <class S, int V>
__device__ __forceinline__ void store_vector(S* p, const float (&from)[V]) {
  constexpr int kWords = V * sizeof(S) / 4, kEach = V / kWords;
  uint32_t words[kWords];
#pragma unroll
  for (int k = 0; k < kWords; ++k) words[k] = Dtype<S>::narrow(from + k * kEach);
  const size_t to = __cvta_generic_to_global(p);  // written out: the compiler takes several plain stores apart
  if constexpr (kWords == 4)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                 "r"(words[3]));
  else if constexpr (kWords == 2)
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(words[0]), "r"(words[1]));
  else asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(words[0]));
}

}  // namespace vae_fast
