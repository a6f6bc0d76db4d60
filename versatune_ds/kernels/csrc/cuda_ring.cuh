// Kernel for Hopper and later: a cluster of 1, 2, 4 or 8 blocks per row reads it once, through a ring in shared memory.
//
// Each block owns the same slice of every row that its cluster processes, and keeps a ring of stages, one slice each.
//   Producer (one thread): fetches label, domain and weight of a row, waits until a stage is free, starts a bulk copy of
//     the slice into it, and continues with the next row. It runs ahead by as many rows as there are stages, so the
//     trips to memory of coming rows overlap with the work on this one.
//   Two groups of eight warps take turns: one reduces or writes a row while the other waits for the rest of its
//     cluster. For each row a group
//       1. waits until the slice has arrived, and reduces it in the thread and in the warp;
//       2. sends each warp's part to every block of the cluster, and arrives at a barrier there;
//       3. waits for the parts of all warps of the cluster, and merges them;
//       4. writes the gradient of the slice, read again from shared memory, and frees the stage.
// There is no block-wide or cluster-wide barrier in the loop: whoever needs something waits for just that.
//
// Worked example, three stages, rows a b c d of one cluster: a and b are in the hands of the two groups while c arrives;
// when group 0 has written a, its stage receives d.
//
// Never materialised: a second copy of the logits. Needs rows of whole vectors, 16-byte aligned.
#pragma once

#include "cuda_rows.cuh"

namespace versatune {

constexpr int kRingGroups = 2;
constexpr int kGroupWarps = 8;
constexpr int kGroupThreads = kGroupWarps * 32;
constexpr int kRingThreads = kRingGroups * kGroupThreads + 32;  // and a warp for the producer
constexpr int kMaxStages = 8;

// What the producer found out about the row in a stage.
struct RowTask {
  RowIds ids;
  float scale;
};

struct RingShared {
  Barrier is_full[kMaxStages];   // one arrival, of the producer, and the bytes of the copy
  Barrier is_empty[kMaxStages];  // one arrival of each warp of the group that worked on the stage
  Barrier has_parts[kRingGroups][2];
  RowTask task[kMaxStages];
  RowPart warp_parts[kRingGroups][2][kMaxCtas * kGroupWarps];
};

// Bytes in front of the stages: the bins of the domains, if they fit into shared memory.
VERSATUNE_HD int64_t ring_bins_bytes(int num_domains) {
  const int64_t bytes = num_domains > kSharedDomains ? 0 : static_cast<int64_t>(num_domains) * kNumColumns * 8;
  return (bytes + 127) / 128 * 128;
}

// Bytes of one stage: the largest share of a cluster's blocks.
VERSATUNE_HD int64_t ring_stage_bytes(int num_vectors, int num_ctas) {
  const int64_t bytes = static_cast<int64_t>((num_vectors + num_ctas - 1) / num_ctas) * kVectorBytes;
  return (bytes + 127) / 128 * 128;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Where a block works: its slice of a row, and the rows of its cluster.
struct RingPlace {
  Span share;
  int64_t first_row;
  int64_t row_step;
  int rank;
  int num_ctas;
  int num_stages;
  int64_t stage_bytes;
};

template <typename T>
__device__ __forceinline__ void produce(const RowArguments& rows, const RingPlace& place, RingShared& shared,
                                        unsigned char* stages) {
  const unsigned num_bytes = static_cast<unsigned>(place.share.end - place.share.begin) * kVectorBytes;
  RowIds next = load_ids(rows, place.first_row);
  int stage = 0;
  unsigned parity = 1;  // a fresh stage is free
  for (int64_t row = place.first_row; row < rows.num_rows; row += place.row_step) {
    const RowIds ids = next;
    next = load_ids(rows, row + place.row_step);
    const bool is_ignored = ids.label == rows.settings.ignore_index;
    const float scale = is_ignored ? 0.0f : row_scale(rows, ids);
    wait(&shared.is_empty[stage], parity);
    shared.task[stage] = {ids, scale};
    if (is_ignored || num_bytes == 0) {
      arrive(&shared.is_full[stage]);
    } else {
      const T* const slice = static_cast<const T*>(rows.logits) + row * rows.row_stride +
                             static_cast<int64_t>(place.share.begin) * Vector<T>::kSize;
      arrive_expecting(&shared.is_full[stage], num_bytes);
      copy_to_shared(stages + stage * place.stage_bytes, slice, num_bytes, &shared.is_full[stage]);
    }
    if (++stage == place.num_stages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

// Send a warp's part to every block of the cluster, and return what all warps of the cluster have sent, merged.
// Two turns take the parts of alternate rows: a warp sends the parts of the row after the next only after it has received
// those of the next, and so after every warp has read those of this one.
__device__ __forceinline__ RowPart exchange_parts(RowPart part, RingShared& shared, const RingPlace& place, int group,
                                                  int num_exchanged) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kGroupWarps, turn = num_exchanged % 2;
  RowPart* const warp_parts = shared.warp_parts[group][turn];
  Barrier* const has_parts = &shared.has_parts[group][turn];
  part = reduce_warp(part);
  if (lane < place.num_ctas) {
    *in_block(&warp_parts[place.rank * kGroupWarps + warp], lane) = part;
    arrive_in_block(has_parts, lane);
  }
  wait(has_parts, num_exchanged / 2 % 2);
  return merge_warps(warp_parts, place.num_ctas * kGroupWarps);
}

template <bool kPlain, typename T>
__device__ __forceinline__ void write_slice(T* grad, const T* slice, Span share, const RowGradient& gradient,
                                            float scale, int label, const RowArguments& rows) {
  const int thread = threadIdx.x % kGroupThreads;
  if (scale == 0.0f) {
    write_zeros(grad, share, rows.vocabulary, thread, kGroupThreads);
    return;
  }
#pragma unroll 2
  for (int i = share.begin + thread; i < share.end; i += kGroupThreads) {
    const Vector<T> logits = reinterpret_cast<const Vector<T>*>(slice)[i - share.begin];
    write_vector<kPlain>(grad, i, logits, gradient, label, rows);
  }
}

template <bool kPlain, typename T>
__device__ __forceinline__ void consume(const RowArguments& rows, const RingPlace& place, RingShared& shared,
                                        unsigned char* stages, unsigned long long* bins, int group) {
  const Span share = place.share;
  const int thread = threadIdx.x % kGroupThreads, num_vectors = share.end - share.begin;
  const int first = share.begin * Vector<T>::kSize, last = first + num_vectors * Vector<T>::kSize;
  int stage = group % place.num_stages, num_exchanged = 0;
  unsigned parity = static_cast<unsigned>(group / place.num_stages) & 1;
  for (int64_t row = place.first_row + group * place.row_step; row < rows.num_rows;
       row += kRingGroups * place.row_step) {
    const T* const slice = reinterpret_cast<const T*>(stages + stage * place.stage_bytes);
    T* const grad = rows.grad == nullptr ? nullptr : static_cast<T*>(rows.grad) + row * rows.grad_stride;
    wait(&shared.is_full[stage], parity);
    const RowTask task = shared.task[stage];
    const int64_t label = task.ids.label;
    if (label == rows.settings.ignore_index) {  // the same for the whole cluster: nobody waits for parts
      if (grad != nullptr) write_zeros(grad, share, rows.vocabulary, thread, kGroupThreads);
      if (place.rank == 0 && thread == 0) report_ignored(rows, row);
    } else {
      // The block whose slice has the label reports the row; block 0 reports an impossible label.
      const bool has_label = label >= first && label < last;
      const bool reports = thread == 0 && (has_label || (place.rank == 0 && !is_inside(label, rows.vocabulary)));
      const float x_label =
          reports && has_label ? x_of<kPlain>(to_float(slice[label - first]), rows.settings, true) : NAN;
      constexpr int kCount = kPlain ? 4 : 2;  // vectors loaded before the first is used; more spill when soft-capped
      RowPart part = {empty_part(), 0.0f};
      for (int i = thread; i < num_vectors; i += kCount * kGroupThreads) {
        add_vectors<kPlain, kCount>(part, slice, i, kGroupThreads, last - first, rows.settings);
      }
      part = exchange_parts(part, shared, place, group, num_exchanged++);
      const TokenLoss token = token_loss(part.part, x_label, part.sum_x, rows.vocabulary, rows.settings);
      if (reports) {
        report_row(rows, row, token);
        add_token(bins, task.ids.domain_id, rows.num_domains, token);
      }
      if (grad != nullptr) {
        const RowGradient gradient = row_gradient(token.normalizer, task.scale, rows.vocabulary, rows.settings);
        write_slice<kPlain>(grad, slice, share, gradient, task.scale, static_cast<int>(label), rows);
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(&shared.is_empty[stage]);
    stage += kRingGroups;
    while (stage >= place.num_stages) {
      stage -= place.num_stages;
      parity ^= 1;
    }
  }
}
#endif

template <typename T, bool kPlain>
__global__ void __launch_bounds__(kRingThreads, 1)
    ring_kernel(const __grid_constant__ RowArguments rows, const __grid_constant__ int num_stages) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  VERSATUNE_SHARED(RingShared, shared);
  const int rank = cluster_rank(), num_ctas = cluster_size();
  const int num_vectors = vectors_in_row(rows.vocabulary, Vector<T>::kSize);
  const RingPlace place = {cluster_share(num_vectors, rank, num_ctas), static_cast<int64_t>(blockIdx.x / num_ctas),
                           static_cast<int64_t>(gridDim.x / num_ctas), rank, num_ctas, num_stages,
                           ring_stage_bytes(num_vectors, num_ctas)};
  unsigned long long* const shared_bins = reinterpret_cast<unsigned long long*>(dynamic_shared());
  unsigned char* const stages = dynamic_shared() + ring_bins_bytes(rows.num_domains);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < num_stages; ++stage) {
      init_barrier(&shared.is_full[stage], 1);
      init_barrier(&shared.is_empty[stage], kGroupWarps);
    }
    for (int group = 0; group < kRingGroups; ++group) {
      for (int turn = 0; turn < 2; ++turn) init_barrier(&shared.has_parts[group][turn], num_ctas * kGroupWarps);
    }
    publish_barriers();
  }
  unsigned long long* const bins = open_bins(rows, shared_bins);
  cluster_sync();  // no block sends to one whose barriers are not initialised

  const int group = threadIdx.x / kGroupThreads;
  if (group < kRingGroups) {
    consume<kPlain, T>(rows, place, shared, stages, bins, group);
  } else if (threadIdx.x % 32 == 0) {
    produce<T>(rows, place, shared, stages);
  }
  __syncwarp();
  close_bins(rows, shared_bins);
  cluster_sync();  // a block must not exit while another may still send to it
#endif
}

}  // namespace versatune
