// A CUDA runtime without a GPU: host code that nvcc compiled runs as it is, on CPU tensors that it takes for a GPU's.
//
// A launch goes to a function that cuda_launches.py installs. The linker's --wrap leads the calls of PyTorch's stable
// ABI through here: CPU tensors say that they are on the GPU, CUDA operators are registered under a key that no tensor
// has, and pointers to data are addresses that only a kernel can follow. The extent of a tensor whose pointer was taken
// is known to the kernels until the operator has ended, and so long the tensor lives.
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

// Added to an address, this gives one that no processor has: a host that reads a GPU's memory ends here too
constexpr uintptr_t kDeviceSpace = uintptr_t{1} << 60;
constexpr size_t kSharedWithoutAsking = (48 << 10) - 32;  // less what kernels declare of it for themselves
constexpr const char* kKey = "PrivateUse1";

struct Region {
  uint64_t address;
  void* host;
  uint64_t bytes;
};

// As cuda_launches.py declares it
struct Launch {
  const void* fat_binary;
  const char* kernel;
  uint32_t grid[3], block[3];
  uint64_t dynamic_shared;
  void** arguments;
  const Region* regions;
  uint64_t region_count;
};

struct Kernel {
  const void* fat_binary;
  const char* name;
  size_t dynamic_shared = kSharedWithoutAsking;
};

struct Call {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

int (*execute)(const Launch*) = nullptr;  // gives 0, or else the launch has failed
std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> all;
  return all;
}
std::map<int, int> attributes = {
    {cudaDevAttrWarpSize, 32},
    {cudaDevAttrMaxThreadsPerBlock, 1024},
    {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
    {cudaDevAttrMaxSharedMemoryPerBlock, kSharedWithoutAsking},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, 163 << 10},
};

int gpu = 0;  // its number. One of other attributes is another GPU, since the host may remember what it asked for

thread_local std::vector<Region> regions;
thread_local std::vector<AtenTensorHandle> kept;
thread_local std::vector<Call> calls;
thread_local cudaError_t last_error = cudaSuccess;
thread_local bool failed = false;  // as on a GPU, all that follows a failed kernel fails too

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

bool launchable(dim3 grid, dim3 block) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool some = grid.x > 0 && grid.y > 0 && grid.z > 0 && threads > 0;
  return some && grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535 && threads <= 1024 && block.z <= 64;
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared) {
  const auto found = kernels().find(function);
  if (found == kernels().end()) return cudaErrorInvalidDeviceFunction;
  const Kernel& k = found->second;
  if (!launchable(grid, block)) return cudaErrorInvalidConfiguration;
  if (shared > k.dynamic_shared) return cudaErrorInvalidValue;
  const Launch asked{k.fat_binary, k.name,    {grid.x, grid.y, grid.z}, {block.x, block.y, block.z},
                     shared,       arguments, regions.data(),           regions.size()};
  if (execute == nullptr) return cudaErrorNoDevice;
  failed = failed || execute(&asked) != 0;
  return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

// The host's memory behind [address, address + bytes) if that is all inside one region
void* host_memory(const void* pointer, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  for (const Region& r : regions)
    if (r.address <= address && address + bytes <= r.address + r.bytes)
      return static_cast<char*>(r.host) + (address - r.address);
  return nullptr;
}

uint64_t extent(AtenTensorHandle tensor) {
  int64_t dimensions, *sizes, *strides, elements = 1;
  int32_t dtype;
  aoti_torch_get_dim(tensor, &dimensions);
  aoti_torch_get_sizes(tensor, &sizes);
  aoti_torch_get_strides(tensor, &strides);
  aoti_torch_get_dtype(tensor, &dtype);
  for (int64_t d = 0; d < dimensions; ++d) {
    if (sizes[d] == 0) return 0;
    elements += (sizes[d] - 1) * strides[d];
  }
  return elements * aoti_torch_dtype_element_size(dtype);
}

template <class T>
AOTITorchError as_device_memory(AtenTensorHandle tensor, AOTITorchError error, T** pointer) {
  if (error != AOTI_TORCH_SUCCESS || *pointer == nullptr) return error;
  char* host = static_cast<char*>(const_cast<void*>(static_cast<const void*>(*pointer)));
  *pointer = host + kDeviceSpace;
  regions.push_back({reinterpret_cast<uint64_t>(*pointer), host, extent(tensor)});
  kept.emplace_back();
  return aoti_torch_new_tensor_handle(tensor, &kept.back());
}

}  // namespace

extern "C" {

// What cuda_launches.py calls
#pragma GCC visibility push(default)

void emulation_start(int (*with)(const Launch*)) { execute = with; }

void emulation_set_attribute(int attribute, int value) {
  const auto [at, added] = attributes.try_emplace(attribute, value);
  if (added || at->second == value) return;
  at->second = value;
  ++gpu;
}

// Between operators: the pointers that were taken mean nothing any more
void emulation_forget() {
  for (AtenTensorHandle tensor : kept) aoti_torch_delete_tensor_object(tensor);
  kept.clear(), regions.clear(), calls.clear();
  last_error = cudaSuccess, failed = false;
}

void emulation_demangle(const char* name, char* to, int size) {
  int status;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  strncpy(to, status == 0 ? text : name, size - 1);
  free(text);
}

#pragma GCC visibility pop

// What nvcc's code calls

void** __cudaRegisterFatBinary(void* wrapper) { return static_cast<void**>(wrapper); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void** wrapper, const char* stub, char*, const char* name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
  struct Wrapper {
    int magic, version;
    const void* data;
  };
  kernels()[stub] = {reinterpret_cast<const Wrapper*>(wrapper)->data, name};
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  calls.push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const Call& call = calls.back();
  *grid = call.grid, *block = call.block, *shared = call.shared;
  *static_cast<cudaStream_t*>(stream) = call.stream;
  calls.pop_back();
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t) {
  return result(launch(kernel, grid, block, arguments, shared));
}

// What we call

cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
  return result(launch(stub, grid, block, arguments, shared));
}

// Its attributes order launches, but for clusters
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub, void** arguments) {
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) return result(cudaErrorNotSupported);
  return result(launch(stub, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes));
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDeviceFunction: return "cudaErrorInvalidDeviceFunction";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    default: return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetDevice(int* device) {
  *device = gpu;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = gpu + 1;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return result(device == gpu ? cudaSuccess : cudaErrorInvalidDevice); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto found = attributes.find(attribute);
  if (found == attributes.end()) return result(cudaErrorInvalidValue);
  *value = found->second;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
  const auto found = kernels().find(stub);
  if (found == kernels().end()) return result(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > attributes[cudaDevAttrMaxSharedMemoryPerBlockOptin]) return result(cudaErrorInvalidValue);
  found->second.dynamic_shared = value;
  return cudaSuccess;
}

// As if registers and shared memory were no limit
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int threads, size_t,
                                                                   unsigned) {
  *blocks = attributes[cudaDevAttrMaxThreadsPerMultiProcessor] / threads;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* stub, int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, stub, threads, shared, 0);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  void* host = host_memory(to, bytes);
  if (host == nullptr && bytes > 0) return result(cudaErrorInvalidValue);
  if (bytes > 0) memset(host, value, bytes);
  return cudaSuccess;
}

// The stable ABI: what only a PyTorch for NVIDIA has, and the calls that --wrap leads here

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char* file, const char*, uint32_t line, bool,
                                        char** said) {
  const std::string name = cudaGetErrorName(static_cast<cudaError_t>(error));
  *said = error == cudaSuccess ? nullptr : strdup((name + " at " + file + ":" + std::to_string(line)).c_str());
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* said) { free(said); }

AOTITorchError __real_aoti_torch_get_data_ptr(AtenTensorHandle, void**);
AOTITorchError __real_torch_get_mutable_data_ptr(AtenTensorHandle, void**);
AOTITorchError __real_torch_get_const_data_ptr(AtenTensorHandle, const void**);
AOTITorchError __real_aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t,
                                               AtenTensorHandle*);
AOTITorchError __real_aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                                   TorchLibraryHandle*);

AOTITorchError __wrap_aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** pointer) {
  return as_device_memory(tensor, __real_aoti_torch_get_data_ptr(tensor, pointer), pointer);
}

AOTITorchError __wrap_torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** pointer) {
  return as_device_memory(tensor, __real_torch_get_mutable_data_ptr(tensor, pointer), pointer);
}

AOTITorchError __wrap_torch_get_const_data_ptr(AtenTensorHandle tensor, const void** pointer) {
  return as_device_memory(tensor, __real_torch_get_const_data_ptr(tensor, pointer), pointer);
}

// Filled with what is NaN in every floating dtype
AOTITorchError __wrap_aoti_torch_empty_strided(int64_t dimensions, const int64_t* sizes, const int64_t* strides,
                                               int32_t dtype, int32_t device, int32_t, AtenTensorHandle* tensor) {
  if (device != aoti_torch_device_type_cuda()) return AOTI_TORCH_FAILURE;
  const AOTITorchError error =
      __real_aoti_torch_empty_strided(dimensions, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, tensor);
  void* data = nullptr;
  if (error != AOTI_TORCH_SUCCESS || extent(*tensor) == 0) return error;
  __real_aoti_torch_get_data_ptr(*tensor, &data);
  memset(data, 0xff, extent(*tensor));
  return error;
}

AOTITorchError __wrap_aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = aoti_torch_device_type_cuda();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = gpu;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_aoti_torch_get_current_device_index(int32_t* index) {
  *index = gpu;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

AOTITorchError __wrap_aoti_torch_library_init_impl(const char* space, const char* key, const char* file, uint32_t line,
                                                   TorchLibraryHandle* library) {
  return __real_aoti_torch_library_init_impl(space, strcmp(key, "CUDA") == 0 ? kKey : key, file, line, library);
}

}  // extern "C"
