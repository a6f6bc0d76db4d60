// Launchers: choose a kernel by device and row length, size the grid, check the launch.
#include <algorithm>

#include "cuda_one_read.cuh"
#include "cuda_two_pass.cuh"

namespace versatune {
namespace {

// Return the error message of a call that failed.
#define VERSATUNE_TRY(CALL)                                                   \
  do {                                                                        \
    const cudaError_t status = (CALL);                                        \
    if (status != cudaSuccess) return cudaGetErrorString(status);             \
  } while (false)

struct Device {
  int num_multiprocessors;
  int major;
};

cudaError_t query(Device* device) {
  int ordinal = 0;
  cudaError_t status = cudaGetDevice(&ordinal);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&device->num_multiprocessors, cudaDevAttrMultiProcessorCount, ordinal);
  if (status != cudaSuccess) return status;
  return cudaDeviceGetAttribute(&device->major, cudaDevAttrComputeCapabilityMajor, ordinal);
}

// The number of blocks that can be resident at once, at most one for each unit of work.
template <typename Kernel>
cudaError_t resident_blocks(Kernel kernel, const Device& device, int64_t work, int64_t* blocks) {
  int per_multiprocessor = 0;
  const cudaError_t status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, kThreads, 0);
  const int64_t resident = static_cast<int64_t>(std::max(1, per_multiprocessor)) * device.num_multiprocessors;
  *blocks = std::max<int64_t>(1, std::min(resident, work));
  return status;
}

template <typename Kernel>
const char* launch_by_row(Kernel kernel, const RowArguments& rows, const Device& device, cudaStream_t stream) {
  int64_t blocks = 0;
  VERSATUNE_TRY(resident_blocks(kernel, device, rows.num_rows, &blocks));
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(rows);
  VERSATUNE_TRY(cudaGetLastError());
  return nullptr;
}

template <typename Kernel>
const char* launch_by_cluster(Kernel kernel, int num_ctas, const RowArguments& rows, const Device& device,
                              cudaStream_t stream) {
  int64_t blocks = 0;
  VERSATUNE_TRY(resident_blocks(kernel, device, rows.num_rows * num_ctas, &blocks));
  blocks = std::max<int64_t>(1, blocks / num_ctas) * num_ctas;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(num_ctas);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  VERSATUNE_TRY(cudaLaunchKernelEx(&config, kernel, rows));
  return nullptr;
}

template <typename T, bool kPlain>
const char* launch_loss_kernel(const RowArguments& rows, const Device& device, cudaStream_t stream) {
  const int num_vectors = vectors_in_row(rows.vocabulary, Vector<T>::kSize);
  if (device.major >= 9) {
    const int few = cluster_size(num_vectors, kThreads, kFewVectors);
    if (few > 0) return launch_by_cluster(one_read_kernel<T, kPlain, kFewVectors>, few, rows, device, stream);
    const int many = cluster_size(num_vectors, kThreads, kManyVectors);
    if (many > 0) return launch_by_cluster(one_read_kernel<T, kPlain, kManyVectors>, many, rows, device, stream);
  }
  return launch_by_row(two_pass_kernel<T, kPlain>, rows, device, stream);
}

// Return LAUNCH(T, kPlain) for the element type and the settings.
#define VERSATUNE_DISPATCH(LAUNCH)                                                    \
  const bool is_plain = rows.settings.is_plain();                                     \
  switch (element) {                                                                  \
    case Element::kFloat: return is_plain ? LAUNCH(float, true) : LAUNCH(float, false); \
    case Element::kHalf: return is_plain ? LAUNCH(__half, true) : LAUNCH(__half, false); \
    case Element::kBFloat16:                                                          \
      return is_plain ? LAUNCH(__nv_bfloat16, true) : LAUNCH(__nv_bfloat16, false);   \
  }                                                                                   \
  return "unknown element type"

const char* launch_loss_of(const RowArguments& rows, Element element, const Device& device, cudaStream_t stream) {
#define VERSATUNE_LOSS(T, PLAIN) launch_loss_kernel<T, PLAIN>(rows, device, stream)
  VERSATUNE_DISPATCH(VERSATUNE_LOSS);
}

const char* launch_backward_of(const RowArguments& rows, Element element, const Device& device, cudaStream_t stream) {
#define VERSATUNE_BACKWARD(T, PLAIN) launch_by_row(backward_kernel<T, PLAIN>, rows, device, stream)
  VERSATUNE_DISPATCH(VERSATUNE_BACKWARD);
}

__global__ void finish_kernel(const unsigned long long* bins, const float* loss_weights, int num_domains, float* loss) {
  *loss = weighted_loss(reinterpret_cast<const int64_t*>(bins), loss_weights, num_domains);
}

// The factor is read on the device, so that the host does not wait; a factor of 1, as usual, costs no pass.
template <typename T>
__global__ void scale_kernel(T* values, const float* factor, int64_t num_values) {
  const float by = *factor;
  if (by == 1.0f) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_values; i += stride) {
    from_float(to_float(values[i]) * by, values + i);
  }
}

template <typename T>
const char* launch_scale_of(void* values, const float* factor, int64_t num_values, cudaStream_t stream) {
  Device device;
  VERSATUNE_TRY(query(&device));
  const int64_t blocks = std::min<int64_t>((num_values + kThreads - 1) / kThreads, device.num_multiprocessors * 8);
  scale_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(static_cast<T*>(values), factor, num_values);
  VERSATUNE_TRY(cudaGetLastError());
  return nullptr;
}

}  // namespace

const char* launch_loss(const RowArguments& rows, Element element, float* loss, void* stream_given) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_given);
  Device device;
  VERSATUNE_TRY(query(&device));
  const size_t bins_bytes = sizeof(int64_t) * kNumColumns * static_cast<size_t>(rows.num_domains);
  VERSATUNE_TRY(cudaMemsetAsync(rows.bins, 0, bins_bytes, stream));
  if (rows.num_rows > 0) {
    const char* const problem = launch_loss_of(rows, element, device, stream);
    if (problem != nullptr) return problem;
  }
  finish_kernel<<<1, 1, 0, stream>>>(rows.bins, rows.loss_weights, rows.num_domains, loss);
  VERSATUNE_TRY(cudaGetLastError());
  return nullptr;
}

const char* launch_backward(const RowArguments& rows, Element element, void* stream) {
  if (rows.num_rows == 0) return nullptr;
  Device device;
  VERSATUNE_TRY(query(&device));
  return launch_backward_of(rows, element, device, static_cast<cudaStream_t>(stream));
}

const char* launch_scale(void* values, const float* factor, int64_t num_values, Element element, void* stream_given) {
  if (num_values == 0) return nullptr;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_given);
  switch (element) {
    case Element::kFloat: return launch_scale_of<float>(values, factor, num_values, stream);
    case Element::kHalf: return launch_scale_of<__half>(values, factor, num_values, stream);
    case Element::kBFloat16: return launch_scale_of<__nv_bfloat16>(values, factor, num_values, stream);
  }
  return "unknown element type";
}

}  // namespace versatune
