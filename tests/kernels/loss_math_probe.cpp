// Run the algorithm of the CUDA kernels, from the very header they use, on the CPU: blocks, threads and vectors are loops.
#include <cstdint>
#include <vector>

#include "loss_math.h"

using namespace versatune;

namespace {

// What a thread does with its vectors in cuda_rows.cuh: grow the maximum, rescale the sum.
void add_element(MaxSum& part, float x) { part = merge(part, {x, x == -INFINITY ? 0.0f : 1.0f}); }

// Merge a power-of-two number of parts as warps do, by butterflies; every lane must end with the same bits.
bool butterfly(std::vector<MaxSum>& parts) {
  for (size_t mask = parts.size() / 2; mask > 0; mask /= 2) {
    std::vector<MaxSum> next(parts.size());
    for (size_t lane = 0; lane < parts.size(); ++lane) next[lane] = merge(parts[lane], parts[lane ^ mask]);
    parts = next;
  }
  for (const MaxSum& part : parts) {
    if (part.max != parts[0].max || part.sum != parts[0].sum) return false;
  }
  return true;
}

}  // namespace

extern "C" {

int probe_cluster_size(int num_vectors, int threads, int vectors_per_thread) {
  return cluster_size_of(num_vectors, threads, vectors_per_thread);
}

// Count in visits[i] how often element i is taken; return lse, or NaN if lanes disagreed.
float probe_cluster_row(const float* x, int vocabulary, int per_vector, int threads, int vectors_per_thread,
                        int num_ctas, int32_t* visits) {
  const int num_vectors = vectors_in_row(vocabulary, per_vector);
  MaxSum row = empty_part();
  for (int rank = 0; rank < num_ctas; ++rank) {
    const Span share = cluster_share(num_vectors, rank, num_ctas);
    std::vector<MaxSum> parts(threads, empty_part());
    for (int thread = 0; thread < threads; ++thread) {
      for (int v = 0; v < vectors_per_thread; ++v) {
        const int i = share.begin + thread + v * threads;
        for (int e = 0; i < share.end && e < per_vector && i * per_vector + e < vocabulary; ++e) {
          add_element(parts[thread], x[i * per_vector + e]);
          ++visits[i * per_vector + e];
        }
      }
    }
    if (!butterfly(parts)) return NAN;
    row = rank == 0 ? parts[0] : merge(row, parts[0]);
  }
  return row.max + logf(row.sum);
}

// Write {lse, nll, objective} of a row whose parts are given as (max, sum) pairs.
void probe_token(const float* parts, int num_parts, float x_label, float sum_x, int64_t vocabulary, float z_loss,
                 float label_smoothing, float* out, int64_t* bins) {
  MaxSum row = empty_part();
  for (int i = 0; i < num_parts; ++i) row = merge(row, {parts[2 * i], parts[2 * i + 1]});
  const LossSettings settings = {-100, z_loss, 0.0f, label_smoothing};
  const TokenLoss token = token_loss(row, x_label, sum_x, vocabulary, settings);
  out[0] = token.normalizer.lse();
  out[1] = token.nll;
  out[2] = token.objective;
  const TokenBins added = token_bins(token);
  for (int column = 0; column < kNumColumns; ++column) bins[column] = added.column[column];
}

void probe_constants(double* out) {
  out[0] = kLossScale;
  out[1] = kSquareScale;
  out[2] = kLossLimit;
  out[3] = kSquareLimit;
  out[4] = kNumColumns;
}
}
