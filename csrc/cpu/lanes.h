// Numbers as they are stored, to vectors of float and back, in registers: sixteen of them, in one or two.
#pragma once

#include "matrix.h"

namespace vae_fast {

#if defined(VAE_FAST_TARGET)
// What x86-64-v4 has; that, and the instruction that rounds to bfloat16; what x86-64-v3 has
#define VAE_FAST_AVX512 "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,fma,bmi,bmi2,lzcnt"
#define VAE_FAST_FOR_AVX512 VAE_FAST_TARGET(VAE_FAST_AVX512)
#define VAE_FAST_FOR_AVX512_BF16 VAE_FAST_TARGET(VAE_FAST_AVX512 ",avx512bf16")
#define VAE_FAST_FOR_AVX2 VAE_FAST_TARGET("avx2,fma,bmi,bmi2,lzcnt,f16c,movbe")

// Processors, and code for them. Plain: the one whose code serves where nothing is rounded to bfloat16
struct Avx512 {
  using Plain = Avx512;
  template <class CODE, class... ARGUMENTS>
  VAE_FAST_FOR_AVX512 static void run(ARGUMENTS... arguments) {
    CODE::run(arguments...);
  }
};
struct Avx512Bf16 {
  using Plain = Avx512;
  template <class CODE, class... ARGUMENTS>
  VAE_FAST_FOR_AVX512_BF16 static void run(ARGUMENTS... arguments) {
    CODE::run(arguments...);
  }
};
struct Avx2 {
  using Plain = Avx2;
  template <class CODE, class... ARGUMENTS>
  VAE_FAST_FOR_AVX2 static void run(ARGUMENTS... arguments) {
    CODE::run(arguments...);
  }
};

// find(PROCESSOR{}) for the one that this is; 0 or null, if it is none of them
template <class F>
auto for_this_processor(const F& find) {
  if (kRoundsToBFloat16) return find(Avx512Bf16{});
  if (kHasAvx512) return find(Avx512{});
  if (kHasAvx2) return find(Avx2{});
  return decltype(find(Avx2{})){};
}

// A number S, which code for a PROCESSOR widens and narrows
template <class PROCESSOR, class S>
struct Stored {
  S number;
};
template <class S>
struct Stored<Avx512Bf16, S> : Stored<Avx512, S> {};

// Masks of ones: for the unmasked functions GCC 12 warns of an operand that isn't there, and makes of a product and a
// difference one multiply-add.
VAE_FAST_FOR_AVX512 inline void widen_lanes(const Stored<Avx512, float>* from, float* to) {
  _mm512_storeu_ps(to, _mm512_loadu_ps(from));
}
VAE_FAST_FOR_AVX512 inline void widen_lanes(const Stored<Avx512, BFloat16>* from, float* to) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm512_storeu_ps(
      to, _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, halves), 16)));
}
VAE_FAST_FOR_AVX512 inline void widen_lanes(const Stored<Avx512, uint8_t>* from, float* to) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  _mm512_storeu_ps(to, _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, bytes)));
}
// Times 1/255, and rounded, as on the way to a buffer: of an unrounded product a mean of 1 would be a little off byte 255
VAE_FAST_FOR_AVX512 inline void widen_lanes(const Stored<Avx512, Intensity>* from, float* to) {
  widen_lanes(reinterpret_cast<const Stored<Avx512, uint8_t>*>(from), to);
  const __m512 unit = _mm512_set1_ps(static_cast<float>(1. / 255.));
  _mm512_storeu_ps(to, _mm512_maskz_mul_ps(0xffff, _mm512_loadu_ps(to), unit));
}
VAE_FAST_FOR_AVX512 inline void widen_lanes(const Stored<Avx512, Truth>* from, float* to) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  _mm512_storeu_ps(to, _mm512_maskz_mov_ps(_mm_test_epi8_mask(bytes, bytes), _mm512_set1_ps(1)));
}
VAE_FAST_FOR_AVX512 inline void narrow_lanes(const float* from, Stored<Avx512, float>* to) {
  _mm512_storeu_ps(to, _mm512_loadu_ps(from));
}
// To the nearest, ties to even; NaN as another NaN
VAE_FAST_FOR_AVX512 inline void narrow_lanes(const float* from, Stored<Avx512, BFloat16>* to) {
  const __m512 v = _mm512_loadu_ps(from);
  const __m512i all = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_maskz_and_epi32(0xffff, _mm512_maskz_srli_epi32(0xffff, all, 16), one);
  const __m512i least = _mm512_maskz_add_epi32(0xffff, odd, _mm512_set1_epi32(0x7fff));
  const __m512i up = _mm512_mask_add_epi32(_mm512_set1_epi32(-1), _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), all, least);
  const __m256i halves = _mm512_maskz_cvtepi32_epi16(0xffff, _mm512_maskz_srli_epi32(0xffff, up, 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}
VAE_FAST_FOR_AVX512_BF16 inline void narrow_lanes(const float* from, Stored<Avx512Bf16, BFloat16>* to) {
  const auto rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
  memcpy(to, &rounded, sizeof(rounded));
}

constexpr int kHalf = 8;  // of sixteen

VAE_FAST_FOR_AVX2 inline __m256i widen_bytes(const void* from) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
}
// To the nearest, ties to even, in the lower halves; NaN as another NaN
VAE_FAST_FOR_AVX2 inline __m256i round_to_halves(const float* from) {
  const __m256 v = _mm256_loadu_ps(from);
  const __m256i all = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(all, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(all, odd), _mm256_set1_epi32(0x7fff));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_or_si256(up, is_nan), 16);
}

VAE_FAST_FOR_AVX2 inline void widen_lanes(const Stored<Avx2, float>* from, float* to) {
  for (int i = 0; i < 2 * kHalf; i += kHalf) _mm256_storeu_ps(to + i, _mm256_loadu_ps(&from[i].number));
}
VAE_FAST_FOR_AVX2 inline void widen_lanes(const Stored<Avx2, BFloat16>* from, float* to) {
  for (int i = 0; i < 2 * kHalf; i += kHalf) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16)));
  }
}
VAE_FAST_FOR_AVX2 inline void widen_lanes(const Stored<Avx2, uint8_t>* from, float* to) {
  for (int i = 0; i < 2 * kHalf; i += kHalf) _mm256_storeu_ps(to + i, _mm256_cvtepi32_ps(widen_bytes(from + i)));
}
VAE_FAST_FOR_AVX2 inline void widen_lanes(const Stored<Avx2, Intensity>* from, float* to) {
  const __m256 unit = _mm256_set1_ps(static_cast<float>(1. / 255.));
  for (int i = 0; i < 2 * kHalf; i += kHalf) {
    __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(widen_bytes(from + i)), unit);
    asm("" : "+x"(product));  // which GCC would make one multiply-add with a difference
    _mm256_storeu_ps(to + i, product);
  }
}
VAE_FAST_FOR_AVX2 inline void widen_lanes(const Stored<Avx2, Truth>* from, float* to) {
  for (int i = 0; i < 2 * kHalf; i += kHalf) {
    const __m256i some = _mm256_cmpgt_epi32(widen_bytes(from + i), _mm256_setzero_si256());
    _mm256_storeu_ps(to + i, _mm256_and_ps(_mm256_castsi256_ps(some), _mm256_set1_ps(1)));
  }
}
VAE_FAST_FOR_AVX2 inline void narrow_lanes(const float* from, Stored<Avx2, float>* to) {
  for (int i = 0; i < 2 * kHalf; i += kHalf) _mm256_storeu_ps(&to[i].number, _mm256_loadu_ps(from + i));
}
VAE_FAST_FOR_AVX2 inline void narrow_lanes(const float* from, Stored<Avx2, BFloat16>* to) {
  const __m256i mixed = _mm256_packus_epi32(round_to_halves(from), round_to_halves(from + kHalf));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0b11'01'10'00));
}
#endif

}  // namespace vae_fast
