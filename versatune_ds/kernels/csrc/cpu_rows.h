// One row of logits on the CPU: its (max, sum), and its gradient.
//
// Fused: soft-capping, log-sum-exp, label smoothing, z-loss, gradient. Never materialised: probabilities.
// A row is read in blocks that stay in the L1 cache between finding the block's maximum and summing, so memory is read
// once; the pass for the gradient finds the row in the L2 cache.
#pragma once

#include <algorithm>

#include "cpu_lanes.h"
#include "loss_math.h"

namespace versatune {

struct RowSums {
  MaxSum part;
  float sum_x;
};

constexpr int64_t kBlockElements = 2048;  // 8 KiB in float32

// Load lanes and soft-cap them unless plain.
template <bool kPlain, typename T>
VERSATUNE_LANES Lanes load_x(const T* from, float softcap) {
  const Lanes logit = load(from);
  return !kPlain && softcap > 0.0f ? soft_cap(logit, softcap) : logit;
}

template <bool kPlain, typename T>
VERSATUNE_LANES Lanes load_some_x(const T* from, int64_t count, float softcap) {
  Lanes x = load_some(from, count, 0.0f);
  if (!kPlain && softcap > 0.0f) x = soft_cap(x, softcap);
  for (int64_t i = count; i < kLanes; ++i) x[i] = -INFINITY;
  return x;
}

template <bool kPlain, typename T>
float block_max(const T* block, int64_t size, float softcap) {
  Lanes largest[4] = {broadcast(-INFINITY), broadcast(-INFINITY), broadcast(-INFINITY), broadcast(-INFINITY)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    for (int u = 0; u < 4; ++u) largest[u] = larger(largest[u], load_x<kPlain>(block + i + u * kLanes, softcap));
  }
  for (; i + kLanes <= size; i += kLanes) largest[0] = larger(largest[0], load_x<kPlain>(block + i, softcap));
  if (i < size) largest[1] = larger(largest[1], load_some_x<kPlain>(block + i, size - i, softcap));
  return max_of(larger(larger(largest[0], largest[1]), larger(largest[2], largest[3])));
}

template <bool kPlain, typename T>
RowSums block_sums(const T* block, int64_t size, float softcap) {
  const float max = block_max<kPlain>(block, size, softcap);
  if (max == -INFINITY) return {empty_part(), kPlain ? 0.0f : -INFINITY};
  Lanes sum[2] = {broadcast(0.0f), broadcast(0.0f)};
  Lanes sum_x = broadcast(0.0f);
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    for (int u = 0; u < 2; ++u) {
      const Lanes x = load_x<kPlain>(block + i + u * kLanes, softcap);
      sum[u] += exp_lanes(x - max);
      if (!kPlain) sum_x += x;
    }
  }
  for (; i < size; i += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, size - i);
    const Lanes x = load_some_x<kPlain>(block + i, count, softcap);
    sum[0] += exp_lanes(x - max);
    if (!kPlain) {
      for (int64_t lane = 0; lane < count; ++lane) sum_x[lane] += x[lane];
    }
  }
  return {{max, sum_of(sum[0] + sum[1])}, kPlain ? 0.0f : sum_of(sum_x)};
}

template <bool kPlain, typename T>
RowSums row_sums(const T* row, int64_t vocabulary, float softcap) {
  RowSums total = {empty_part(), 0.0f};
  for (int64_t begin = 0; begin < vocabulary; begin += kBlockElements) {
    const int64_t size = std::min(kBlockElements, vocabulary - begin);
    const RowSums block = block_sums<kPlain>(row + begin, size, softcap);
    total = {merge(total.part, block.part), total.sum_x + block.sum_x};
  }
  return total;
}

template <typename T>
float x_at(const T* row, int64_t index, const LossSettings& settings) {
  const float logit = static_cast<float>(row[index]);
  return settings.softcap > 0.0f ? soft_cap(broadcast(logit), settings.softcap)[0] : logit;
}

// Return the loss of a token from its row of logits.
template <typename T>
TokenLoss row_loss(const T* row, int64_t vocabulary, int64_t label, const LossSettings& settings) {
  const RowSums sums = settings.is_plain() ? row_sums<true>(row, vocabulary, settings.softcap)
                                           : row_sums<false>(row, vocabulary, settings.softcap);
  return token_loss(sums.part, x_at(row, label, settings), sums.sum_x, vocabulary, settings);
}

template <bool kPlain>
VERSATUNE_LANES Lanes gradient_lanes(Lanes x, const RowGradient& gradient, float softcap) {
  const Lanes grad = exp_lanes(x - gradient.max) * gradient.e_scale;
  if (kPlain) return grad;
  const Lanes tilt = x * (softcap > 0.0f ? 1.0f / softcap : 0.0f);
  return (1.0f - tilt * tilt) * (grad + gradient.uniform);
}

template <bool kPlain, typename T>
void write_gradient(const T* row, T* grad_row, int64_t vocabulary, const RowGradient& gradient, float softcap) {
  int64_t i = 0;
  for (; i + kLanes <= vocabulary; i += kLanes) {
    store(grad_row + i, gradient_lanes<kPlain>(load_x<kPlain>(row + i, softcap), gradient, softcap));
  }
  if (i < vocabulary) {
    const Lanes x = load_some_x<kPlain>(row + i, vocabulary - i, softcap);
    store_some(grad_row + i, gradient_lanes<kPlain>(x, gradient, softcap), vocabulary - i);
  }
}

// Write scale * d(objective)/d(logits); grad_row may equal row. A scale of 0 writes exact zeros.
template <typename T>
void row_gradient_into(const T* row, T* grad_row, int64_t vocabulary, int64_t label, Normalizer normalizer, float scale,
                       const LossSettings& settings) {
  if (scale == 0.0f) {
    std::fill(grad_row, grad_row + vocabulary, T(0.0f));
    return;
  }
  const RowGradient gradient = row_gradient(normalizer, scale, vocabulary, settings);
  const float x_label = x_at(row, label, settings);
  if (settings.is_plain()) {
    write_gradient<true>(row, grad_row, vocabulary, gradient, settings.softcap);
  } else {
    write_gradient<false>(row, grad_row, vocabulary, gradient, settings.softcap);
  }
  const float slope = settings.softcap > 0.0f ? softcap_slope(x_label, settings.softcap) : 1.0f;
  const float e_label = exp_lanes(broadcast(x_label - gradient.max))[0];
  grad_row[label] = static_cast<T>(gradient.at(e_label, slope, true));
}

}  // namespace versatune
