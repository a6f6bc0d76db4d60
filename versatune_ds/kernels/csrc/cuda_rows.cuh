// Functions on a row for all CUDA kernels: 16-byte vectors, merging parts, statistics, storing the gradient.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda_device.cuh"
#include "domain_ce_cuda.h"

namespace versatune {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxCtas = 8;  // blocks of a cluster that every device with clusters allows
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
  float sum = total.part.sum * exp2_fast((total.part.max - base) * kLog2E);
#pragma unroll
  for (int e = 0; e < Vector<T>::kSize; ++e) sum += exp2_fast((x[e] - base) * kLog2E);
  total.part = {max, sum};
}

// Add several vectors, `step` apart, from `row`, which may be in global or in shared memory; `end` is past the last
// vector. They are all loaded before the first is used, so that as many loads are in flight. Plain logits share one
// maximum, so that the sum is rescaled once for all of them.
template <bool kPlain, int kCount, typename T>
__device__ __forceinline__ void add_vectors(RowPart& total, const T* row, int i, int step, int end,
                                            const LossSettings& settings) {
  Vector<T> vector[kCount];
#pragma unroll
  for (int n = 0; n < kCount; ++n) vector[n] = load_vector(row, i + n * step, end);
  if (!kPlain) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      add_vector<kPlain>(total, vector[n], (i + n * step) * Vector<T>::kSize, end, settings);
    }
    return;
  }
  float max = total.part.max;
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int e = 0; e < Vector<T>::kSize; ++e) max = fmaxf(max, to_float(vector[n].element[e]));
  }
  const float base = max == -INFINITY ? 0.0f : max;
  float sum = total.part.sum * exp2_fast((total.part.max - base) * kLog2E);
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int e = 0; e < Vector<T>::kSize; ++e) sum += exp2_fast((to_float(vector[n].element[e]) - base) * kLog2E);
  }
  total.part = {max, sum};
}

__device__ __forceinline__ RowPart shuffle_xor(const RowPart& part, int mask) {
  return {{__shfl_xor_sync(0xffffffffu, part.part.max, mask), __shfl_xor_sync(0xffffffffu, part.part.sum, mask)},
          __shfl_xor_sync(0xffffffffu, part.sum_x, mask)};
}

// Merge the parts of a warp's lanes. merge() is symmetric, so a butterfly gives every lane the same bits.
__device__ __forceinline__ RowPart reduce_warp(RowPart part) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) part = merge_parts(part, shuffle_xor(part, mask));
  return part;
}

// Merge the parts of several warps, which lie in shared memory; every lane of every warp gets the same bits.
__device__ __forceinline__ RowPart merge_warps(const RowPart* parts, int num_parts) {
  RowPart part = {empty_part(), 0.0f};
  for (int i = threadIdx.x % 32; i < num_parts; i += 32) part = merge_parts(part, parts[i]);
  return reduce_warp(part);
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

// A row's label and domain. Kernels load those of the next row while they work on this one: loaded when needed, they
// and what depends on them (the label's logit, the domain's weight) are a chain of three trips to memory for each row.
struct RowIds {
  int64_t label;
  int64_t domain_id;
};

__device__ __forceinline__ RowIds load_ids(const RowArguments& rows, int64_t row) {
  if (row >= rows.num_rows) return {rows.settings.ignore_index, 0};
  return {rows.labels[row], rows.domain_ids[row]};
}

// Return the factor of a row's gradient: NaN for impossible ids, so that training does not silently continue.
__device__ __forceinline__ float row_scale(const RowArguments& rows, const RowIds& ids) {
  if (!is_inside(ids.domain_id, rows.num_domains) || !is_inside(ids.label, rows.vocabulary)) return NAN;
  return rows.loss_weights[ids.domain_id] * (rows.grad_loss == nullptr ? 1.0f : *rows.grad_loss);
}

// Write what is reported of one row; of an ignored row it is zero.
__device__ __forceinline__ void report_row(const RowArguments& rows, int64_t row, const TokenLoss& token) {
  rows.token_losses[row] = token.nll;
  if (rows.normalizers != nullptr) rows.normalizers[row] = token.normalizer;
}

__device__ __forceinline__ void report_ignored(const RowArguments& rows, int64_t row) { report_row(rows, row, {}); }

template <bool kPlain, typename T>
__device__ __forceinline__ float x_label_of(const T* logits, int64_t label, const RowArguments& rows) {
  if (!is_inside(label, rows.vocabulary)) return NAN;
  return x_of<kPlain>(to_float(logits[label]), rows.settings, true);
}

template <bool kPlain, bool kHasLabel, typename T>
__device__ __forceinline__ Vector<T> gradient_of(const Vector<T>& logits, int first, const RowGradient& gradient,
                                                 int label, const RowArguments& rows) {
  Vector<T> result;
#pragma unroll
  for (int e = 0; e < Vector<T>::kSize; ++e) {
    const float x = x_of<kPlain>(to_float(logits.element[e]), rows.settings, first + e < rows.vocabulary);
    const float power = exp2_fast((x - gradient.max) * kLog2E);
    const float slope = kPlain || rows.settings.softcap <= 0.0f ? 1.0f : softcap_slope(x, rows.settings.softcap);
    from_float(gradient.at(power, slope, kHasLabel && first + e == label), &result.element[e]);
  }
  return result;
}

// Write the gradient of vector i; the label's term is added in float32 before the store. Only one vector of a row has
// the label, so the others do not compare.
template <bool kPlain, typename T>
__device__ __forceinline__ void write_vector(T* grad, int i, const Vector<T>& logits, const RowGradient& gradient,
                                             int label, const RowArguments& rows) {
  const int first = i * Vector<T>::kSize;
  const bool has_label = static_cast<unsigned>(label - first) < static_cast<unsigned>(Vector<T>::kSize);
  const Vector<T> result = has_label ? gradient_of<kPlain, true>(logits, first, gradient, label, rows)
                                     : gradient_of<kPlain, false>(logits, first, gradient, label, rows);
  store_vector(grad, i, rows.vocabulary, result);
}

// Write zeros to the vectors of a share; the calling threads are numbered from 0.
template <typename T>
__device__ __forceinline__ void write_zeros(T* grad, Span share, int vocabulary, int thread, int num_threads) {
  Vector<T> zeros;
#pragma unroll
  for (int e = 0; e < Vector<T>::kSize; ++e) from_float(0.0f, &zeros.element[e]);
  for (int i = share.begin + thread; i < share.end; i += num_threads) store_vector(grad, i, vocabulary, zeros);
}

}  // namespace versatune
