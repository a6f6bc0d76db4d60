// Kernel for Hopper and later: a cluster of 1, 2, 4 or 8 blocks per row keeps the row in registers and reads it once.
//
// Stages: load up to kVectors vectors per thread; reduce in the thread and in the warp; every warp sends its part to
// every block of the cluster; one barrier; write the gradient from the registers. A cluster processes one row after the
// other. With four vectors per thread, two blocks share a multiprocessor, one loading while the other computes. Eight
// are for rows that do not fit into eight blocks of the former (bfloat16: beyond 131072 elements).
#pragma once

#include "cuda_rows.cuh"

namespace versatune {

constexpr int kFewVectors = 4;   // 16 registers of logits, two blocks per multiprocessor
constexpr int kManyVectors = 8;  // 32 registers of logits, one block

struct OneReadShared {
  unsigned long long bins[kSharedDomains * kNumColumns];
  RowPart warp_parts[2][kMaxCtas * kWarps];
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
template <typename T, int kVectors>
struct RegisterRow {
  Vector<T> vector[kVectors];
};

template <typename T, int kVectors>
__device__ __forceinline__ void load_row(RegisterRow<T, kVectors>& own, const T* logits, Span share, int vocabulary) {
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = share.begin + threadIdx.x + v * kThreads;
    if (i < share.end) own.vector[v] = load_vector(logits, i, vocabulary);
  }
}

template <bool kPlain, typename T, int kVectors>
__device__ __forceinline__ RowPart reduce_thread(const RegisterRow<T, kVectors>& own, Span share,
                                                 const RowArguments& rows) {
  RowPart part = {empty_part(), 0.0f};
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = share.begin + threadIdx.x + v * kThreads;
    if (i < share.end) {
      add_vector<kPlain>(part, own.vector[v], i * Vector<T>::kSize, rows.vocabulary, rows.settings);
    }
  }
  return part;
}

// Merge the parts of all warps of the cluster; every thread gets the result. Lane r of a warp sends its part to block r,
// so that all read from their own shared memory. `warp_parts` are those of one of two turns: one barrier per row is
// enough, since a turn is written again only after the next barrier, which no block passes before all have read.
__device__ __forceinline__ RowPart reduce_cluster(RowPart part, RowPart* warp_parts) {
  const int lane = threadIdx.x % 32, num_ctas = cluster_size();
  part = reduce_warp(part);
  if (lane < num_ctas) *in_block(&warp_parts[cluster_rank() * kWarps + threadIdx.x / 32], lane) = part;
  cluster_sync();
  return merge_warps(warp_parts, num_ctas * kWarps);
}
#endif

template <typename T, bool kPlain, int kVectors>
__global__ void __launch_bounds__(kThreads, kVectors == kFewVectors ? 2 : 1)
    one_read_kernel(const __grid_constant__ RowArguments rows) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  VERSATUNE_SHARED(OneReadShared, shared);
  const int rank = cluster_rank(), num_ctas = cluster_size();
  unsigned long long* const bins = open_bins(rows, shared.bins);
  const Span share = cluster_share(vectors_in_row(rows.vocabulary, Vector<T>::kSize), rank, num_ctas);
  const int64_t first_row = blockIdx.x / num_ctas, row_step = gridDim.x / num_ctas;
  const bool reports = rank == 0 && threadIdx.x == 0;
  RowIds next = load_ids(rows, first_row);
  int turn = 0;
  cluster_sync();  // no block writes into the shared memory of one that has not started

  for (int64_t row = first_row; row < rows.num_rows; row += row_step) {
    const T* const logits = static_cast<const T*>(rows.logits) + row * rows.row_stride;
    T* const grad = rows.grad == nullptr ? nullptr : static_cast<T*>(rows.grad) + row * rows.grad_stride;
    const RowIds ids = next;
    next = load_ids(rows, row + row_step);
    if (ids.label == rows.settings.ignore_index) {  // the same for the whole cluster: no barrier is missed
      if (grad != nullptr) write_zeros(grad, share, rows.vocabulary, threadIdx.x, kThreads);
      if (reports) report_ignored(rows, row);
      continue;
    }
    // Read the row once, and reduce it in the thread, the warp and the cluster.
    RegisterRow<T, kVectors> own;
    load_row(own, logits, share, rows.vocabulary);
    const float scale = row_scale(rows, ids);
    const float x_label = reports ? x_label_of<kPlain>(logits, ids.label, rows) : 0.0f;  // before it is overwritten
    const RowPart part = reduce_cluster(reduce_thread<kPlain>(own, share, rows), shared.warp_parts[turn]);
    turn ^= 1;
    const TokenLoss token = token_loss(part.part, x_label, part.sum_x, rows.vocabulary, rows.settings);
    if (reports) {
      report_row(rows, row, token);
      add_token(bins, ids.domain_id, rows.num_domains, token);
    }
    // Write the gradient from the registers.
    if (grad == nullptr) continue;
    if (scale == 0.0f) {
      write_zeros(grad, share, rows.vocabulary, threadIdx.x, kThreads);
      continue;
    }
    const RowGradient gradient = row_gradient(token.normalizer, scale, rows.vocabulary, rows.settings);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = share.begin + threadIdx.x + v * kThreads;
      if (i < share.end) write_vector<kPlain>(grad, i, own.vector[v], gradient, static_cast<int>(ids.label), rows);
    }
  }
  close_bins(rows, shared.bins);
  cluster_sync();  // a block must not exit while another may still write to its shared memory
#endif
}

}  // namespace versatune
