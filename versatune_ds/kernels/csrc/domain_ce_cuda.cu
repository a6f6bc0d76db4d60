// Launchers: choose a kernel by device and row length, size the grid, check the launch.
#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda_one_read.cuh"
#include "cuda_ring.cuh"
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
  int ordinal;
  int num_multiprocessors;
  int shared_bytes;  // that a block may ask for
};

cudaError_t query(Device* device) {
  cudaError_t status = cudaGetDevice(&device->ordinal);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&device->num_multiprocessors, cudaDevAttrMultiProcessorCount, device->ordinal);
  if (status != cudaSuccess) return status;
  return cudaDeviceGetAttribute(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device->ordinal);
}

// Whether the code that runs for a kernel was compiled for Hopper or later. The device alone does not tell: compiled for
// sm_80, the kernels run on Hopper too, and those that need clusters are empty.
template <typename K>
bool has_clusters(K kernel) {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90;
}

// How a kernel is launched, apart from its grid.
struct Shape {
  int num_threads;
  int num_ctas;  // blocks of a cluster; 0: no clusters
  size_t dynamic_bytes;
};

// Return the blocks, or the clusters, that can be resident at once. More would wait for a second turn, with a share of the
// rows as large as everybody's. The answer is kept, since asking the driver takes longer than a launch.
template <typename K>
cudaError_t resident_units(K kernel, const Shape& shape, const Device& device, cudaLaunchConfig_t* config, int* units) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, size_t>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(reinterpret_cast<const void*>(kernel), device.ordinal, shape.num_ctas,
                                   shape.dynamic_bytes);
  const auto found = known.find(key);
  if (found != known.end()) {
    *units = found->second;
    return cudaSuccess;
  }
  cudaError_t status = cudaSuccess;
  if (shape.num_ctas > 0) {
    status = cudaOccupancyMaxActiveClusters(units, kernel, config);
  } else {
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(units, kernel, shape.num_threads, shape.dynamic_bytes);
    *units *= device.num_multiprocessors;
  }
  if (status == cudaSuccess) known[key] = *units;
  return status;
}

// Launch as many blocks or clusters as can be resident, at most one for each row.
template <typename K, typename... Arguments>
const char* launch(K kernel, const Shape& shape, const RowArguments& rows, const Device& device, cudaStream_t stream,
                   Arguments... arguments) {
  const int blocks_in_unit = std::max(shape.num_ctas, 1);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks_in_unit);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks_in_unit));
  config.blockDim = dim3(static_cast<unsigned>(shape.num_threads));
  config.dynamicSmemBytes = shape.dynamic_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = shape.num_ctas > 0 ? 1 : 0;
  if (shape.dynamic_bytes > 0) {
    VERSATUNE_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shape.dynamic_bytes)));
  }
  int units = 0;
  VERSATUNE_TRY(resident_units(kernel, shape, device, &config, &units));
  if (units < 1) return "its blocks do not fit on this device";
  const int64_t num_blocks = std::min<int64_t>(units, rows.num_rows) * blocks_in_unit;
  config.gridDim = dim3(static_cast<unsigned>(num_blocks));
  VERSATUNE_TRY(cudaLaunchKernelEx(&config, kernel, rows, arguments...));
  return nullptr;
}

template <typename K>
const char* launch_by_row(K kernel, const RowArguments& rows, const Device& device, cudaStream_t stream) {
  return launch(kernel, {kThreads, 0, 0}, rows, device, stream);
}

template <typename T, bool kPlain>
const char* launch_one_read(const RowArguments& rows, const Device& device, cudaStream_t stream) {
  const int num_vectors = vectors_in_row(rows.vocabulary, Vector<T>::kSize);
  const int few = cluster_size_of(num_vectors, kThreads, kFewVectors);
  if (few > 0) return launch(one_read_kernel<T, kPlain, kFewVectors>, {kThreads, few, 0}, rows, device, stream);
  const int many = cluster_size_of(num_vectors, kThreads, kManyVectors);
  if (many > 0) return launch(one_read_kernel<T, kPlain, kManyVectors>, {kThreads, many, 0}, rows, device, stream);
  return "a row does not fit into the registers of eight blocks";
}

// Return the stages of a ring whose clusters have num_ctas blocks: as many as fit, up to kMaxStages.
template <typename K>
int ring_stages(K kernel, int num_ctas, int num_vectors, const RowArguments& rows, const Device& device) {
  cudaFuncAttributes attributes = {};
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) return 0;
  const int64_t available = device.shared_bytes - static_cast<int64_t>(attributes.sharedSizeBytes) -
                            ring_bins_bytes(rows.num_domains);
  return static_cast<int>(std::min<int64_t>(kMaxStages, available / ring_stage_bytes(num_vectors, num_ctas)));
}

template <typename T, bool kPlain>
const char* launch_ring(int num_ctas, const RowArguments& rows, const Device& device, cudaStream_t stream) {
  const auto kernel = ring_kernel<T, kPlain>;
  const int num_vectors = vectors_in_row(rows.vocabulary, Vector<T>::kSize);
  const int num_stages = ring_stages(kernel, num_ctas, num_vectors, rows, device);
  if (num_stages < kRingGroups) return "two slices of a row do not fit into a block's shared memory";
  const size_t bytes = static_cast<size_t>(ring_bins_bytes(rows.num_domains) +
                                           num_stages * ring_stage_bytes(num_vectors, num_ctas));
  return launch(kernel, {kRingThreads, num_ctas, bytes}, rows, device, stream, num_stages);
}

template <typename T>
bool is_row_aligned(const void* data, int64_t stride) {
  return reinterpret_cast<uint64_t>(data) % kVectorBytes == 0 && stride % Vector<T>::kSize == 0;
}

// Whether every row consists of whole vectors that may be loaded as such.
template <typename T>
bool is_aligned(const RowArguments& rows) {
  return rows.vocabulary % Vector<T>::kSize == 0 && is_row_aligned<T>(rows.logits, rows.row_stride) &&
         (rows.grad == nullptr || is_row_aligned<T>(rows.grad, rows.grad_stride));
}

// The kernel that is likely to be fast: the ring of the smallest cluster with a stage to spare for the row that arrives.
template <typename T, bool kPlain>
Kernel likely_kernel(const RowArguments& rows, const Device& device) {
  const auto ring = ring_kernel<T, kPlain>;
  if (!has_clusters(ring)) return Kernel::kTwoPass;
  const int num_vectors = vectors_in_row(rows.vocabulary, Vector<T>::kSize);
  const Kernel rings[] = {Kernel::kRing1, Kernel::kRing2, Kernel::kRing4, Kernel::kRing8};
  for (int i = 0; i < 4; ++i) {
    if (ring_stages(ring, 1 << i, num_vectors, rows, device) > kRingGroups) return rings[i];
  }
  return Kernel::kTwoPass;
}

template <typename T, bool kPlain>
const char* launch_loss_kernel(const RowArguments& rows, Kernel kernel, const Device& device, cudaStream_t stream) {
  if (!is_aligned<T>(rows)) kernel = Kernel::kTwoPass;
  if (kernel == Kernel::kAuto) kernel = likely_kernel<T, kPlain>(rows, device);
  if (kernel == Kernel::kTwoPass) return launch_by_row(two_pass_kernel<T, kPlain>, rows, device, stream);
  if (!has_clusters(ring_kernel<T, kPlain>)) return "the kernel needs clusters, but was not compiled for sm_90 or later";
  switch (kernel) {
    case Kernel::kOneRead: return launch_one_read<T, kPlain>(rows, device, stream);
    case Kernel::kRing1: return launch_ring<T, kPlain>(1, rows, device, stream);
    case Kernel::kRing2: return launch_ring<T, kPlain>(2, rows, device, stream);
    case Kernel::kRing4: return launch_ring<T, kPlain>(4, rows, device, stream);
    case Kernel::kRing8: return launch_ring<T, kPlain>(8, rows, device, stream);
    default: return "unknown kernel";
  }
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

const char* launch_loss_of(const RowArguments& rows, Element element, Kernel kernel, const Device& device,
                           cudaStream_t stream) {
#define VERSATUNE_LOSS(T, PLAIN) launch_loss_kernel<T, PLAIN>(rows, kernel, device, stream)
  VERSATUNE_DISPATCH(VERSATUNE_LOSS);
}

const char* launch_backward_of(const RowArguments& rows, Element element, const Device& device, cudaStream_t stream) {
#define VERSATUNE_BACKWARD(T, PLAIN) launch_by_row(backward_kernel<T, PLAIN>, rows, device, stream)
  VERSATUNE_DISPATCH(VERSATUNE_BACKWARD);
}

// Add up the domains' weighted sums: one warp, every lane the domains of its number modulo 32, then lane by lane, always
// in the same order.
__global__ void finish_kernel(const unsigned long long* bins, const float* loss_weights, int num_domains, float* loss) {
  double sum = 0.0;
  for (int k = static_cast<int>(threadIdx.x); k < num_domains; k += 32) {
    sum += weighted_domain(reinterpret_cast<const int64_t*>(bins) + k * kNumColumns, loss_weights[k]);
  }
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum);
}

cudaLaunchConfig_t plain_config(int64_t num_blocks, int num_threads, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(num_blocks));
  config.blockDim = dim3(static_cast<unsigned>(num_threads));
  config.stream = stream;
  return config;
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
  const cudaLaunchConfig_t config = plain_config(blocks, kThreads, stream);
  VERSATUNE_TRY(cudaLaunchKernelEx(&config, scale_kernel<T>, static_cast<T*>(values), factor, num_values));
  return nullptr;
}

}  // namespace

const char* launch_loss(const RowArguments& rows, Element element, Kernel kernel, float* loss, void* stream_given) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_given);
  Device device;
  VERSATUNE_TRY(query(&device));
  const size_t bins_bytes = sizeof(int64_t) * kNumColumns * static_cast<size_t>(rows.num_domains);
  VERSATUNE_TRY(cudaMemsetAsync(rows.bins, 0, bins_bytes, stream));
  if (rows.num_rows > 0) {
    const char* const problem = launch_loss_of(rows, element, kernel, device, stream);
    if (problem != nullptr) return problem;
  }
  const cudaLaunchConfig_t config = plain_config(1, 32, stream);
  VERSATUNE_TRY(cudaLaunchKernelEx(&config, finish_kernel, static_cast<const unsigned long long*>(rows.bins),
                                   rows.loss_weights, rows.num_domains, loss));
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
