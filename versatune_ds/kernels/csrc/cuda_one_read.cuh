// Kernel for Hopper and later: a cluster of 1, 2, 4 or 8 blocks per row keeps the row in registers and reads it once.
//
// Stages: load up to kVectors vectors per thread; reduce in the thread, in the block, and in the cluster through
// distributed shared memory; write the gradient from the registers. A cluster processes one row after the other.
// With four vectors per thread, two blocks share a multiprocessor, one loading while the other computes. Eight are for
// rows that do not fit into eight blocks of the former (bfloat16: beyond 131072 elements).
#pragma once

#include <cooperative_groups.h>

#include "cuda_rows.cuh"

namespace versatune {

constexpr int kFewVectors = 4;   // 16 registers of logits, two blocks per multiprocessor
constexpr int kManyVectors = 8;  // 32 registers of logits, one block

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

// Merge the blocks' parts in the order of their ranks; every thread of the cluster gets the result.
// Two slots take turns, so that one barrier per row is enough: a slot is written again only after the next barrier,
// which no block passes before all have read.
__device__ __forceinline__ RowPart reduce_cluster(const cooperative_groups::cluster_group& cluster,
                                                  const RowPart& block_part, RowPart* slot) {
  if (threadIdx.x == 0) *slot = block_part;
  cluster.sync();
  RowPart part = *cluster.map_shared_rank(slot, 0);
  for (unsigned rank = 1; rank < cluster.num_blocks(); ++rank) {
    part = merge_parts(part, *cluster.map_shared_rank(slot, rank));
  }
  return part;
}
#endif

template <typename T, bool kPlain, int kVectors>
__global__ void __launch_bounds__(kThreads, kVectors == kFewVectors ? 2 : 1)
    one_read_kernel(const __grid_constant__ RowArguments rows) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __shared__ unsigned long long shared_bins[kSharedDomains * kNumColumns];
  __shared__ RowPart scratch[2][kWarps];
  __shared__ RowPart slots[2];
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank()), num_ctas = static_cast<int>(cluster.num_blocks());
  unsigned long long* const bins = open_bins(rows, shared_bins);
  const Span share = cluster_share(vectors_in_row(rows.vocabulary, Vector<T>::kSize), rank, num_ctas);
  int turn = 0;

  for (int64_t row = blockIdx.x / num_ctas; row < rows.num_rows; row += gridDim.x / num_ctas) {
    const T* const logits = static_cast<const T*>(rows.logits) + row * rows.row_stride;
    T* const grad = rows.grad == nullptr ? nullptr : static_cast<T*>(rows.grad) + row * rows.grad_stride;
    const int64_t label = rows.labels[row];
    const bool reports = rank == 0 && threadIdx.x == 0;
    if (label == rows.settings.ignore_index) {  // the same for the whole cluster: no barrier is missed
      if (grad != nullptr) write_zeros(grad, share, rows.vocabulary);
      if (reports) {
        rows.token_losses[row] = 0.0f;
        if (rows.normalizers != nullptr) rows.normalizers[row] = {0.0f, 0.0f};
      }
      continue;
    }
    // Read the row once, and reduce it in the thread, the block and the cluster.
    RegisterRow<T, kVectors> own;
    load_row(own, logits, share, rows.vocabulary);
    const float x_label = reports ? x_label_of<kPlain>(logits, label, rows) : 0.0f;  // before it is overwritten
    const RowPart block_part = reduce_block(reduce_thread<kPlain>(own, share, rows), scratch[turn]);
    const RowPart part = reduce_cluster(cluster, block_part, &slots[turn]);
    turn ^= 1;
    const TokenLoss token = token_loss(part.part, x_label, part.sum_x, rows.vocabulary, rows.settings);
    if (reports) {
      rows.token_losses[row] = token.nll;
      if (rows.normalizers != nullptr) rows.normalizers[row] = token.normalizer;
      add_token(bins, rows.domain_ids[row], rows.num_domains, token);
    }
    // Write the gradient from the registers.
    if (grad == nullptr) continue;
    const float scale = row_scale(rows, row);
    const RowGradient gradient = row_gradient(token.normalizer, scale, rows.vocabulary, rows.settings);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = share.begin + threadIdx.x + v * kThreads;
      if (i < share.end) write_vector<kPlain>(grad, i, own.vector[v], gradient, static_cast<int>(label), scale, rows);
    }
  }
  close_bins(rows, shared_bins);
  cluster.sync();  // a block must not exit while another may still read its slot
#endif
}

}  // namespace versatune
