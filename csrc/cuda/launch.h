// The one way in which kernels are launched: on their tensors' device and its current stream, errors named.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <atomic>

#include "../arguments.h"
#include "tiling.h"

namespace vae_fast {

// Makes a device the current one as long as it lives
class Device {
 public:
  explicit Device(const Place& place) : place_(place), guard_(place.index) {
    void* stream;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(place.index, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  const Place& place() const { return place_; }

  // `groups` blocks' work in up to as many blocks as keep the GPU busy, times `splits`
  template <class... Parameters>
  void launch(const char* name, void (*kernel)(Parameters...), int64_t groups, int splits,
              const Parameters&... parameters) const {
    launch(name, kernel, groups, splits, kThreads, 0, parameters...);
  }
  // threads: of a block; shared: its bytes of shared memory beside what the kernel declares
  template <class... Parameters>
  void launch(const char* name, void (*kernel)(Parameters...), int64_t groups, int splits, int threads, int shared,
              const Parameters&... parameters) const {
    if (groups == 0) return;
    const int64_t most = std::max<int64_t>(1, int64_t{processors()} * kBlocksInTurn / splits);
    const dim3 grid(static_cast<unsigned>(std::min(groups, most)), static_cast<unsigned>(splits));
    kernel<<<grid, threads, shared, stream_>>>(parameters...);
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "vae_fast: the kernel ", name, " did not start: ", cudaGetErrorString(error));
  }

 private:
  // Multiprocessors; asked for once, since a launch takes microseconds
  int processors() const {
    static std::atomic<int> known[64];
    const int index = place_.index;
    int count = index < 64 ? known[index].load(std::memory_order_relaxed) : 0;
    if (count == 0) {
      const int major = attribute(cudaDevAttrComputeCapabilityMajor);
      STD_TORCH_CHECK(
          major >= 8, "vae_fast: the CUDA kernels are for GPUs of compute capability 8.0 and newer, cuda:", index,
          " has ", major, ".", attribute(cudaDevAttrComputeCapabilityMinor), "; VAE_FAST_BACKEND=reference runs there");
      count = attribute(cudaDevAttrMultiProcessorCount);
      if (index < 64) known[index].store(count, std::memory_order_relaxed);
    }
    return count;
  }
  int attribute(cudaDeviceAttr of) const {
    int value = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&value, of, place_.index);
    STD_TORCH_CHECK(error == cudaSuccess, "vae_fast: cuda:", place_.index, ": ", cudaGetErrorString(error));
    return value;
  }

  Place place_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace vae_fast
