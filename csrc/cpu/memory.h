// Memory for large results: kept when they are dropped, for those that come after them.
//
// The C library maps arrays of 32 MiB and more anew each time, and smaller ones too where its heap ends with them, and the
// system clears every page, which takes longer than what is computed there. A training step drops the gradients that the
// last one left, and asks for as many.
#pragma once

#include "../arguments.h"

namespace vae_fast {

// An uninitialised tensor on the CPU
Tensor new_result(const int64_t* sizes, const int64_t* strides, int64_t dimensions, ScalarType type, const Place& cpu);

// Whether a result of so many bytes, of steps that are light or not, is written past the caches (stream.h): to write it
// there saves more than to read it from there costs
bool is_streamed(int64_t bytes, bool light);

}  // namespace vae_fast
