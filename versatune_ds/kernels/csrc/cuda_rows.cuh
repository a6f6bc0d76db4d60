// Functions on a row for both CUDA kernels: 16-byte vectors, reduction over a block, statistics, storing the gradient.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "domain_ce_cuda.h"

namespace versatune {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kSharedDomains = 512;  // 20 KiB of bins; with more domains every token is added in global memory
constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void from_float(float x, float* to) { *to = x; }
__device__ __forceinline__ void from_float(float x, __half* to) { *to = __float2half_rn(x); }
__device__ __forceinline__ void from_float(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }

template <typename T>
struct alignas(kVectorBytes) Vector {
  static constexpr int kSize = kVectorBytes / sizeof(T);
  T element[kSize];
};

template <typename T>
__device__ __forceinline__ bool is_aligned(const T* row) {
  return reinterpret_cast<uint64_t>(row) % kVectorBytes == 0;
}

// Load vector i of a row; elements past the row's end are -inf, which adds nothing to a maximum or a sum of exp.
template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* row, int i, int vocabulary) {
  const int first = i * Vector<T>::kSize;
  if (first + Vector<T>::kSize <= vocabulary && is_aligned(row)) {
    return *reinterpret_cast<const Vector<T>*>(row + first);
  }
  Vector<T> vector;
#pragma unroll
  for (int e = 0; e < Vector<T>::kSize; ++e) {
    if (first + e < vocabulary) {
      vector.element[e] = row[first + e];
    } else {
      from_float(-INFINITY, &vector.element[e]);
    }
  }
  return vector;
}

template <typename T>
__device__ __forceinline__ void store_vector(T* row, int i, int vocabulary, const Vector<T>& vector) {
  const int first = i * Vector<T>::kSize;
  if (first + Vector<T>::kSize <= vocabulary && is_aligned(row)) {
    *reinterpret_cast<Vector<T>*>(row + first) = vector;
    return;
  }
#pragma unroll
  for (int e = 0; e < Vector<T>::kSize; ++e) {
    if (first + e < vocabulary) row[first + e] = vector.element[e];
  }
}

// x of a logit: soft-capped unless plain. `is_inside` keeps padding at -inf, which soft-capping would make finite.
template <bool kPlain>
__device__ __forceinline__ float x_of(float logit, const LossSettings& settings, bool is_inside) {
  if (kPlain || settings.softcap <= 0.0f) return logit;
  return is_inside ? settings.softcap * tanhf(logit / settings.softcap) : -INFINITY;
}

// A part of a row; label smoothing needs sum_x.
struct RowPart {
  MaxSum part;
  float sum_x;
};

__device__ __forceinline__ RowPart merge_parts(RowPart a, RowPart b) {
  return {merge(a.part, b.part), a.sum_x + b.sum_x};
}

// Add one vector to a part, rescaling its sum if the maximum grows.
template <bool kPlain, typename T>
__device__ __forceinline__ void add_vector(RowPart& total, const Vector<T>& vector, int first, int vocabulary,
                                           const LossSettings& settings) {
  float x[Vector<T>::kSize];
  float max = total.part.max;
#pragma unroll
  for (int e = 0; e < Vector<T>::kSize; ++e) {
    x[e] = x_of<kPlain>(to_float(vector.element[e]), settings, first + e < vocabulary);
    max = fmaxf(max, x[e]);
    if (!kPlain && first + e < vocabulary) total.sum_x += x[e];
  }
  const float base = max == -INFINITY ? 0.0f : max;  // exp(-inf - -inf) would be NaN
  float sum = total.part.sum * exp2f((total.part.max - base) * kLog2E);
#pragma unroll
  for (int e = 0; e < Vector<T>::kSize; ++e) sum += exp2f((x[e] - base) * kLog2E);
  total.part = {max, sum};
}

__device__ __forceinline__ RowPart shuffle_xor(const RowPart& part, int mask) {
  return {{__shfl_xor_sync(0xffffffffu, part.part.max, mask), __shfl_xor_sync(0xffffffffu, part.part.sum, mask)},
          __shfl_xor_sync(0xffffffffu, part.sum_x, mask)};
}

// Merge the parts of all threads of a block; every thread gets the result. merge() is symmetric, so a butterfly gives
// every lane the same bits. `scratch` has kWarps parts and may be reused after the next __syncthreads().
__device__ __forceinline__ RowPart reduce_block(RowPart part, RowPart* scratch) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) part = merge_parts(part, shuffle_xor(part, mask));
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = part;
  __syncthreads();
  part = scratch[threadIdx.x % kWarps];
#pragma unroll
  for (int mask = kWarps / 2; mask > 0; mask /= 2) part = merge_parts(part, shuffle_xor(part, mask));
  return part;
}

// Add a token to its domain. An impossible domain id counts as an invalid token of domain 0, and nothing is written out
// of bounds.
__device__ __forceinline__ void add_token(unsigned long long* bins, int64_t domain_id, int num_domains,
                                          const TokenLoss& token) {
  const bool is_known = domain_id >= 0 && domain_id < num_domains;
  const TokenBins added = token_bins(token);
  if (!is_known) {
    atomicAdd(bins + kInvalid, 1ull);
    return;
  }
#pragma unroll
  for (int column = 0; column < kNumColumns; ++column) {
    const unsigned long long value = static_cast<unsigned long long>(added.column[column]);
    if (value != 0) atomicAdd(bins + domain_id * kNumColumns + column, value);
  }
}

// Bins of a block: in shared memory if they fit, else the global ones.
__device__ __forceinline__ unsigned long long* open_bins(const RowArguments& rows, unsigned long long* shared_bins) {
  if (rows.num_domains > kSharedDomains) return rows.bins;
  for (int i = threadIdx.x; i < rows.num_domains * kNumColumns; i += blockDim.x) shared_bins[i] = 0;
  __syncthreads();
  return shared_bins;
}

// One atomic per block, domain and column that saw a token.
__device__ __forceinline__ void close_bins(const RowArguments& rows, const unsigned long long* shared_bins) {
  if (rows.num_domains > kSharedDomains) return;
  __syncthreads();
  for (int i = threadIdx.x; i < rows.num_domains * kNumColumns; i += blockDim.x) {
    if (shared_bins[i] != 0) atomicAdd(rows.bins + i, shared_bins[i]);
  }
}

__device__ __forceinline__ bool is_inside(int64_t id, int64_t size) { return id >= 0 && id < size; }

// Return the factor of a row's gradient: NaN for impossible ids, so that training does not silently continue.
__device__ __forceinline__ float row_scale(const RowArguments& rows, int64_t row) {
  const int64_t domain_id = rows.domain_ids[row];
  if (!is_inside(domain_id, rows.num_domains) || !is_inside(rows.labels[row], rows.vocabulary)) return NAN;
  return rows.loss_weights[domain_id] * (rows.grad_loss == nullptr ? 1.0f : *rows.grad_loss);
}

template <bool kPlain, typename T>
__device__ __forceinline__ float x_label_of(const T* logits, int64_t label, const RowArguments& rows) {
  if (!is_inside(label, rows.vocabulary)) return NAN;
  return x_of<kPlain>(to_float(logits[label]), rows.settings, true);
}

// Write the gradient of one vector; the label's term is added in float32 before the store.
template <bool kPlain, typename T>
__device__ __forceinline__ void write_vector(T* grad, int i, const Vector<T>& logits, const RowGradient& gradient,
                                             int label, float scale, const RowArguments& rows) {
  Vector<T> result;
  const int first = i * Vector<T>::kSize;
#pragma unroll
  for (int e = 0; e < Vector<T>::kSize; ++e) {
    const float x = x_of<kPlain>(to_float(logits.element[e]), rows.settings, first + e < rows.vocabulary);
    const float power = exp2f((x - gradient.max) * kLog2E);
    const float slope = kPlain || rows.settings.softcap <= 0.0f ? 1.0f : softcap_slope(x, rows.settings.softcap);
    const float value = gradient.at(power, slope, first + e == label);
    from_float(scale == 0.0f ? 0.0f : value, &result.element[e]);
  }
  store_vector(grad, i, rows.vocabulary, result);
}

template <typename T>
__device__ __forceinline__ void write_zeros(T* grad, Span share, int vocabulary) {
  Vector<T> zeros;
#pragma unroll
  for (int e = 0; e < Vector<T>::kSize; ++e) from_float(0.0f, &zeros.element[e]);
  for (int i = share.begin + threadIdx.x; i < share.end; i += kThreads) store_vector(grad, i, vocabulary, zeros);
}

}  // namespace versatune
