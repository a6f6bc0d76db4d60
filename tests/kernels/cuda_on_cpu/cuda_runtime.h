// What the kernels and their launchers use of CUDA's runtime, on top of the emulator. Found in place of CUDA's own header.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "emulator.h"

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

inline const emulator::Index& threadIdx = emulator::state().thread_index;
inline const emulator::Index& blockIdx = emulator::state().block_index;
inline const emulator::Index& blockDim = emulator::state().block_size;
inline const emulator::Index& gridDim = emulator::state().grid_size;

inline void __syncthreads() { emulator::meet(emulator::state().now->block->meeting); }
inline void __syncwarp() { emulator::meet(emulator::own_warp().meeting); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchange(value, mask);
}

template <typename T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}

struct dim3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };

struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int ptxVersion;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;

  unsigned cluster_size() const { return numAttrs > 0 ? attrs[0].val.clusterDim.x : 1; }
};

inline const char* cudaGetErrorString(cudaError_t) { return emulator::state().error.c_str(); }

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulator::Device& device = emulator::state().device;
  *value = attribute == cudaDevAttrMultiProcessorCount ? device.num_multiprocessors : device.shared_bytes;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t num_bytes, cudaStream_t) {
  std::memset(to, value, num_bytes);
  return cudaSuccess;
}

template <typename K>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, K) {
  *attributes = {8192, emulator::state().device.code_version};
  return cudaSuccess;
}

template <typename K>
cudaError_t cudaFuncSetAttribute(K, cudaFuncAttribute, int num_bytes) {
  if (num_bytes <= emulator::state().device.shared_bytes) return cudaSuccess;
  emulator::state().error = "more shared memory than a block may have";
  return 1;
}

template <typename K>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* num_blocks, K, int, size_t) {
  *num_blocks = 1;
  return cudaSuccess;
}

template <typename K>
cudaError_t cudaOccupancyMaxActiveClusters(int* num_clusters, K, const cudaLaunchConfig_t*) {
  *num_clusters = emulator::state().device.num_multiprocessors;
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
  emulator::state().random.seed(emulator::state().device.seed);
  const bool is_done = emulator::run([=] { kernel(arguments...); }, config->gridDim.x, config->blockDim.x,
                                     config->cluster_size(), config->dynamicSmemBytes);
  return is_done ? cudaSuccess : 1;
}
