// One block per row, which it reads twice, the second time partly from the L2 cache.
// For any device from sm_80 on, any vocabulary, any alignment.
#pragma once

#include "cuda_rows.cuh"

namespace versatune {

constexpr int kVectorsInFlight = 4;  // per thread; 64 bytes of 1024 threads are 64 KiB per multiprocessor

struct TwoPassShared {
  unsigned long long bins[kSharedDomains * kNumColumns];
  RowPart warp_parts[2][kWarps];
};

// Write the gradient of one row, from logits in global memory.
template <bool kPlain, typename T>
__device__ __forceinline__ void write_row(T* grad, const T* logits, const RowGradient& gradient, float scale, int label,
                                          const RowArguments& rows) {
  const int num_vectors = vectors_in_row(rows.vocabulary, Vector<T>::kSize);
  if (scale == 0.0f) {  // not 0 * exp(...), which is NaN where the exponential is infinite
    write_zeros(grad, {0, num_vectors}, rows.vocabulary, threadIdx.x, kThreads);
    return;
  }
  for (int i = threadIdx.x; i < num_vectors; i += kVectorsInFlight * kThreads) {
    Vector<T> vector[kVectorsInFlight];
#pragma unroll
    for (int n = 0; n < kVectorsInFlight; ++n) vector[n] = load_vector(logits, i + n * kThreads, rows.vocabulary);
#pragma unroll
    for (int n = 0; n < kVectorsInFlight; ++n) {
      if (i + n * kThreads < num_vectors) {
        write_vector<kPlain>(grad, i + n * kThreads, vector[n], gradient, label, rows);
      }
    }
  }
}

template <typename T, bool kPlain>
__global__ void __launch_bounds__(kThreads, 2) two_pass_kernel(const __grid_constant__ RowArguments rows) {
  VERSATUNE_SHARED(TwoPassShared, shared);
  unsigned long long* const bins = open_bins(rows, shared.bins);
  const int num_vectors = vectors_in_row(rows.vocabulary, Vector<T>::kSize);
  RowIds next = load_ids(rows, blockIdx.x);
  int turn = 0;

  for (int64_t row = blockIdx.x; row < rows.num_rows; row += gridDim.x) {
    const T* const logits = static_cast<const T*>(rows.logits) + row * rows.row_stride;
    T* const grad = rows.grad == nullptr ? nullptr : static_cast<T*>(rows.grad) + row * rows.grad_stride;
    const RowIds ids = next;
    next = load_ids(rows, row + gridDim.x);
    if (ids.label == rows.settings.ignore_index) {
      if (grad != nullptr) write_zeros(grad, {0, num_vectors}, rows.vocabulary, threadIdx.x, kThreads);
      if (threadIdx.x == 0) report_ignored(rows, row);
      continue;
    }
    const float scale = row_scale(rows, ids);
    // Read before the barrier: after it the gradient may overwrite the logit.
    const float x_label = threadIdx.x == 0 ? x_label_of<kPlain>(logits, ids.label, rows) : 0.0f;
    // First pass: maximum and sum of the row.
    RowPart part = {empty_part(), 0.0f};
    for (int i = threadIdx.x; i < num_vectors; i += kVectorsInFlight * kThreads) {
      add_vectors<kPlain, kVectorsInFlight>(part, logits, i, kThreads, rows.vocabulary, rows.settings);
    }
    part = reduce_warp(part);
    if (threadIdx.x % 32 == 0) shared.warp_parts[turn][threadIdx.x / 32] = part;
    __syncthreads();
    part = merge_warps(shared.warp_parts[turn], kWarps);
    turn ^= 1;  // two turns, so that the next row's parts need no second barrier
    const TokenLoss token = token_loss(part.part, x_label, part.sum_x, rows.vocabulary, rows.settings);
    if (threadIdx.x == 0) {
      report_row(rows, row, token);
      add_token(bins, ids.domain_id, rows.num_domains, token);
    }
    // Second pass: the gradient.
    if (grad == nullptr) continue;
    const RowGradient gradient = row_gradient(token.normalizer, scale, rows.vocabulary, rows.settings);
    write_row<kPlain>(grad, logits, gradient, scale, static_cast<int>(ids.label), rows);
  }
  close_bins(rows, shared.bins);
}

// Gradient from saved logits and normalisers, without a reduction.
template <typename T, bool kPlain>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const __grid_constant__ RowArguments rows) {
  const int num_vectors = vectors_in_row(rows.vocabulary, Vector<T>::kSize);
  for (int64_t row = blockIdx.x; row < rows.num_rows; row += gridDim.x) {
    const T* const logits = static_cast<const T*>(rows.logits) + row * rows.row_stride;
    T* const grad = static_cast<T*>(rows.grad) + row * rows.grad_stride;
    const RowIds ids = load_ids(rows, row);
    if (ids.label == rows.settings.ignore_index) {
      write_zeros(grad, {0, num_vectors}, rows.vocabulary, threadIdx.x, kThreads);
      continue;
    }
    const float scale = row_scale(rows, ids);
    const RowGradient gradient = row_gradient(rows.normalizers[row], scale, rows.vocabulary, rows.settings);
    write_row<kPlain>(grad, logits, gradient, scale, static_cast<int>(ids.label), rows);
  }
}

}  // namespace versatune
