// Operators that launch kernels as csrc/cuda does, small and each with one way to go wrong: see test_cuda_runtime.py
#include <cuda_bf16.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

using torch::stable::Tensor;

namespace {

struct Rows {
  const __nv_bfloat16* x;
  float* sum;
  __nv_bfloat16* y;
  int64_t stride;
  int32_t columns;
  float scale;
};

// y = scale 2^x as bfloat16, and its sum over each row; two columns a step, words of 2^x through a prmt
template <int THREADS>
__global__ void __launch_bounds__(THREADS) exponentials(const Rows r, int beyond) {
  extern __shared__ float partial[];
  const auto* x = r.x + blockIdx.x * r.stride;
  float sum = 0;
  for (int i = threadIdx.x; i < r.columns + beyond; i += THREADS) {
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(__bfloat162float(x[i])));
    uint32_t packed, high;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(e * r.scale), "f"(0.f));
    asm("prmt.b32 %0, %1, 0, 0x4432;" : "=r"(high) : "r"(packed));
    r.y[blockIdx.x * static_cast<int64_t>(r.columns) + i] = __ushort_as_bfloat16(high);
    sum += e * r.scale;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < THREADS / 32; ++warp) sum += partial[warp];
  r.sum[blockIdx.x] = sum;
}

// [size] of the dtype and on the device of `like`
Tensor empty(std::initializer_list<int64_t> sizes, const Tensor& like, int32_t dtype) {
  const int64_t strides[2] = {sizes.size() == 2 ? sizes.begin()[1] : 1, 1};
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.begin(), strides, dtype,
                                                  aoti_torch_device_type_cuda(), like.get_device_index(), &handle));
  return Tensor(handle);
}

cudaStream_t stream_of(const Tensor& t) {
  void* stream;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// (x [B, D], scale, beyond, threads) -> (y [B, D], sums [B]); columns past the end are touched if `beyond` says so
void exponentials_of_rows(StableIValue* stack, uint64_t, uint64_t) {
  const auto x = torch::stable::detail::to<Tensor>(stack[0]);
  const auto scale = torch::stable::detail::to<double>(stack[1]);
  const auto beyond = torch::stable::detail::to<int64_t>(stack[2]),
             threads = torch::stable::detail::to<int64_t>(stack[3]);
  STD_TORCH_CHECK(x.is_cuda() && !x.is_cpu(), "x must be on the GPU");
  const int64_t rows = x.size(0), columns = x.size(1);
  const Tensor y = empty({rows, columns}, x, aoti_torch_dtype_bfloat16());
  const Tensor sums = empty({rows}, x, aoti_torch_dtype_float32());
  Rows r{static_cast<const __nv_bfloat16*>(x.data_ptr()),
         static_cast<float*>(sums.data_ptr()),
         static_cast<__nv_bfloat16*>(y.data_ptr()),
         x.stride(0),
         static_cast<int32_t>(columns),
         static_cast<float>(scale)};
  const auto kernel = threads == 32 ? exponentials<32> : exponentials<128>;
  kernel<<<rows, threads, threads / 32 * sizeof(float), stream_of(x)>>>(r, beyond);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  stack[0] = torch::stable::detail::from(y), stack[1] = torch::stable::detail::from(sums);
}

__global__ void indices(uint4* words, int n) {
  if (threadIdx.x < n) words[threadIdx.x] = make_uint4(0, threadIdx.x, 0, 0);
}

// (words [n, 4] int32, n): words[i, 1] = i for the first n, and the others 0
void count(StableIValue* stack, uint64_t, uint64_t) {
  const auto words = torch::stable::detail::to<Tensor>(stack[0]);
  int n = static_cast<int>(torch::stable::detail::to<int64_t>(stack[1])), processors, device;
  auto* data = static_cast<uint4*>(words.data_ptr());
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  STD_CUDA_CHECK(cudaMemsetAsync(data, 0, words.numel() * sizeof(int32_t), stream_of(words)));
  void* arguments[] = {&data, &n};
  STD_CUDA_CHECK(cudaLaunchKernel(indices, dim3(1), dim3(processors), arguments, 0, stream_of(words)));
}

}  // namespace

STABLE_TORCH_LIBRARY(vae_fast_toy, m) {
  m.def("exponentials(Tensor x, float scale=1.0, int beyond=0, int threads=128) -> (Tensor, Tensor)");
  m.def("count(Tensor(a!) words, int n) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vae_fast_toy, CUDA, m) {
  m.impl("exponentials", &exponentials_of_rows);
  m.impl("count", &count);
}
