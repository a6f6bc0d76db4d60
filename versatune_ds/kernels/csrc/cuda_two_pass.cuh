// Fallback kernel: one block per row, which it reads twice, the second time mostly from the L2 cache.
// For any device from sm_80 on, any vocabulary, any alignment.
#pragma once

#include "cuda_rows.cuh"

namespace versatune {

template <typename T, bool kPlain>
__global__ void __launch_bounds__(kThreads) two_pass_kernel(const __grid_constant__ RowArguments rows) {
  __shared__ unsigned long long shared_bins[kSharedDomains * kNumColumns];
  __shared__ RowPart scratch[kWarps];
  unsigned long long* const bins = open_bins(rows, shared_bins);
  const int num_vectors = vectors_in_row(rows.vocabulary, Vector<T>::kSize);

  for (int64_t row = blockIdx.x; row < rows.num_rows; row += gridDim.x) {
    const T* const logits = static_cast<const T*>(rows.logits) + row * rows.row_stride;
    T* const grad = rows.grad == nullptr ? nullptr : static_cast<T*>(rows.grad) + row * rows.grad_stride;
    const int64_t label = rows.labels[row];
    if (label == rows.settings.ignore_index) {
      if (grad != nullptr) write_zeros(grad, {0, num_vectors}, rows.vocabulary);
      if (threadIdx.x == 0) {
        rows.token_losses[row] = 0.0f;
        if (rows.normalizers != nullptr) rows.normalizers[row] = {0.0f, 0.0f};
      }
      continue;
    }
    // First pass: maximum and sum of the row.
    RowPart part = {empty_part(), 0.0f};
    for (int i = threadIdx.x; i < num_vectors; i += kThreads) {
      add_vector<kPlain>(part, load_vector(logits, i, rows.vocabulary), i * Vector<T>::kSize, rows.vocabulary,
                         rows.settings);
    }
    // Read the label's logit before the barrier in reduce_block: after it the gradient may overwrite the logit.
    const float x_label = x_label_of<kPlain>(logits, label, rows);
    part = reduce_block(part, scratch);
    const TokenLoss token = token_loss(part.part, x_label, part.sum_x, rows.vocabulary, rows.settings);
    if (threadIdx.x == 0) {
      rows.token_losses[row] = token.nll;
      if (rows.normalizers != nullptr) rows.normalizers[row] = token.normalizer;
      add_token(bins, rows.domain_ids[row], rows.num_domains, token);
    }
    // Second pass: the gradient.
    if (grad != nullptr) {
      const float scale = row_scale(rows, row);
      const RowGradient gradient = row_gradient(token.normalizer, scale, rows.vocabulary, rows.settings);
      for (int i = threadIdx.x; i < num_vectors; i += kThreads) {
        write_vector<kPlain>(grad, i, load_vector(logits, i, rows.vocabulary), gradient, static_cast<int>(label), scale, rows);
      }
    }
    __syncthreads();  // scratch is free again
  }
  close_bins(rows, shared_bins);
}

// Gradient from saved logits and normalisers, without a reduction.
template <typename T, bool kPlain>
__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ RowArguments rows) {
  const int num_vectors = vectors_in_row(rows.vocabulary, Vector<T>::kSize);
  for (int64_t row = blockIdx.x; row < rows.num_rows; row += gridDim.x) {
    const T* const logits = static_cast<const T*>(rows.logits) + row * rows.row_stride;
    T* const grad = static_cast<T*>(rows.grad) + row * rows.grad_stride;
    const int64_t label = rows.labels[row];
    if (label == rows.settings.ignore_index) {
      write_zeros(grad, {0, num_vectors}, rows.vocabulary);
      continue;
    }
    const float scale = row_scale(rows, row);
    const RowGradient gradient = row_gradient(rows.normalizers[row], scale, rows.vocabulary, rows.settings);
    for (int i = threadIdx.x; i < num_vectors; i += kThreads) {
      write_vector<kPlain>(grad, i, load_vector(logits, i, rows.vocabulary), gradient, static_cast<int>(label), scale, rows);
    }
  }
}

}  // namespace versatune
