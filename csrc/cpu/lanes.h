// Numbers as they are stored, to vectors of float and back, in registers: for processors that round to bfloat16 by an
// instruction.
#pragma once

#include "matrix.h"

namespace vae_fast {

#if defined(VAE_FAST_TARGET)
// What x86-64-v4 has, and the instruction
#define VAE_FAST_IN_LANES VAE_FAST_TARGET("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,fma,bmi,bmi2,lzcnt")

// Sixteen numbers. Masks of ones: for the unmasked functions GCC 12 warns of an operand that isn't there, and makes of a
// product and a difference one multiply-add.
VAE_FAST_IN_LANES inline void widen_lanes(const float* from, float* to) { _mm512_storeu_ps(to, _mm512_loadu_ps(from)); }
VAE_FAST_IN_LANES inline void widen_lanes(const BFloat16* from, float* to) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm512_storeu_ps(
      to, _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, halves), 16)));
}
VAE_FAST_IN_LANES inline void widen_lanes(const uint8_t* from, float* to) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  _mm512_storeu_ps(to, _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, bytes)));
}
// Times 1/255, and rounded, as on the way to a buffer: of an unrounded product a mean of 1 would be a little off byte 255
VAE_FAST_IN_LANES inline void widen_lanes(const Intensity* from, float* to) {
  widen_lanes(&from->stored, to);
  const __m512 unit = _mm512_set1_ps(static_cast<float>(1. / 255.));
  _mm512_storeu_ps(to, _mm512_maskz_mul_ps(0xffff, _mm512_loadu_ps(to), unit));
}
VAE_FAST_IN_LANES inline void widen_lanes(const Truth* from, float* to) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  _mm512_storeu_ps(to, _mm512_maskz_mov_ps(_mm_test_epi8_mask(bytes, bytes), _mm512_set1_ps(1)));
}
VAE_FAST_IN_LANES inline void narrow_lanes(const float* from, float* to) {
  _mm512_storeu_ps(to, _mm512_loadu_ps(from));
}
VAE_FAST_IN_LANES inline void narrow_lanes(const float* from, BFloat16* to) {
  const auto rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
  memcpy(to, &rounded, sizeof(rounded));
}
#endif

}  // namespace vae_fast
