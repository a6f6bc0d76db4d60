// The math of the loss by domain, shared by the CPU and the CUDA kernels, so that CPU tests cover both.
//
// Stages of one row of logits x[0..V):
//   1. (max, sum of exp) of every part of the row, merged pairwise        -> MaxSum, merge
//   2. normaliser, negative log likelihood and objective of the token    -> token_loss
//   3. both rounded once to int64 fixed point and added to the domain     -> token_bins
//   4. gradient of the objective, element by element                      -> RowGradient
// Integer sums make the result independent of the order in which rows and parts are processed.
// Keep the constants equal to those in fixed_point.py; a test compares them.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define VERSATUNE_HD __host__ __device__ __forceinline__
#else
#define VERSATUNE_HD inline
#endif

namespace versatune {

enum Column { kNll = 0, kNllSq = 1, kObjective = 2, kCount = 3, kInvalid = 4, kNumColumns = 5 };

constexpr double kLossScale = 16777216.0;    // 2^24: a token is rounded by at most 3e-8 nats
constexpr double kSquareScale = 1048576.0;   // 2^20
constexpr float kLossLimit = 32768.0f;       // a loss above it is invalid; 2^24 such tokens still fit
constexpr double kSquareLimit = 16777216.0;  // squares saturate at 4096 nats

struct LossSettings {
  int64_t ignore_index;
  float z_loss;
  float softcap;
  float label_smoothing;

  VERSATUNE_HD bool is_plain() const { return softcap <= 0.0f && label_smoothing <= 0.0f; }
};

// A part of a row: its largest x, and the sum of exp(x - max). The empty part is {-inf, 0}.
struct MaxSum {
  float max;
  float sum;
};

VERSATUNE_HD MaxSum empty_part() { return {-INFINITY, 0.0f}; }

// Symmetric in its arguments bit for bit: only the smaller maximum is rescaled, and float addition commutes.
VERSATUNE_HD MaxSum merge(MaxSum a, MaxSum b) {
  if (a.max == b.max) return {a.max, a.sum + b.sum};  // also two empty parts, where exp(-inf + inf) would be NaN
  const bool a_is_larger = a.max > b.max;
  const MaxSum large = a_is_larger ? a : b;
  const MaxSum small = a_is_larger ? b : a;
  return {large.max, large.sum + small.sum * expf(small.max - large.max)};
}

// The logarithm of a row's normaliser, lse = max + log_sum, in two parts: with large logits one float32 would lose
// the digits that p = exp(x - max) / sum needs.
struct Normalizer {
  float max;
  float log_sum;

  VERSATUNE_HD float lse() const { return max + log_sum; }
};

struct TokenLoss {
  Normalizer normalizer;
  float nll;
  float objective;
};

// sum_x is used with label smoothing only.
VERSATUNE_HD TokenLoss token_loss(MaxSum row, float x_label, float sum_x, int64_t vocabulary, const LossSettings& s) {
  const float log_sum = logf(row.sum);
  TokenLoss token;
  token.normalizer = {row.max, log_sum};
  const float lse = token.normalizer.lse();
  // Not lse - x_label: for a confident token both are large and their difference keeps few bits.
  token.nll = (row.max - x_label) + log_sum;
  token.objective = token.nll;
  if (s.label_smoothing > 0.0f) {
    const float mean = lse - sum_x / static_cast<float>(vocabulary);
    token.objective = (1.0f - s.label_smoothing) * token.nll + s.label_smoothing * mean;
  }
  if (s.z_loss > 0.0f) token.objective += s.z_loss * lse * lse;
  return token;
}

VERSATUNE_HD int64_t to_fixed(double value, double scale) { return static_cast<int64_t>(llrint(value * scale)); }

// What one loss-bearing token adds to the five columns of its domain.
struct TokenBins {
  int64_t column[kNumColumns];
};

VERSATUNE_HD TokenBins token_bins(const TokenLoss& token) {
  // Written so that NaN is not valid.
  const bool is_valid = fabsf(token.nll) <= kLossLimit && fabsf(token.objective) <= kLossLimit;
  if (!is_valid) return {{0, 0, 0, 1, 1}};
  const double nll = token.nll;
  const double square = nll * nll < kSquareLimit ? nll * nll : kSquareLimit;
  return {{to_fixed(nll, kLossScale), to_fixed(square, kSquareScale), to_fixed(token.objective, kLossScale), 1, 0}};
}

// Return weight * objective of one domain, given its five columns; NaN if one of its tokens is invalid.
VERSATUNE_HD double weighted_domain(const int64_t* columns, float loss_weight) {
  return columns[kInvalid] > 0 ? static_cast<double>(NAN) : columns[kObjective] / kLossScale * loss_weight;
}

// Return loss = sum_k weight_k * objective_k; NaN if any token is invalid.
VERSATUNE_HD float weighted_loss(const int64_t* bins, const float* loss_weights, int64_t num_domains) {
  double loss = 0.0;
  for (int64_t k = 0; k < num_domains; ++k) loss += weighted_domain(bins + k * kNumColumns, loss_weights[k]);
  return static_cast<float>(loss);
}

// grad_v = slope(x_v) * (e_scale * exp(x_v - max) + uniform + [v is label] * label_term). The factors include the row's
// weight and 1 / sum.
// Everything stays in float32 until the store: in bfloat16, p = 0.9999 rounds to 1 and the label's gradient vanishes.
struct RowGradient {
  float max;
  float e_scale;
  float uniform;
  float label_term;

  VERSATUNE_HD float at(float e, float slope, bool is_label) const {
    return slope * (e * e_scale + uniform + (is_label ? label_term : 0.0f));
  }
};

VERSATUNE_HD RowGradient row_gradient(Normalizer n, float scale, int64_t vocabulary, const LossSettings& s) {
  return {n.max, scale * (1.0f + 2.0f * s.z_loss * n.lse()) * expf(-n.log_sum),
          -scale * s.label_smoothing / static_cast<float>(vocabulary), -scale * (1.0f - s.label_smoothing)};
}

// Derivative of softcap * tanh(logit / softcap), from its value x.
VERSATUNE_HD float softcap_slope(float x, float softcap) { return 1.0f - (x / softcap) * (x / softcap); }

// A row is cut into vectors of 16 bytes counted from its first element, whatever its alignment: which thread adds which
// element, and so every bit of the sum, must not depend on where a chunk begins. The last vector may be partial.
// Example: 13 elements of 2 bytes give two vectors, of 8 and 5 elements.
constexpr int kVectorBytes = 16;

VERSATUNE_HD int vectors_in_row(int num_elements, int per_vector) {
  return (num_elements + per_vector - 1) / per_vector;
}

// Divide vectors evenly among the CTAs of a cluster; the last share may be shorter or empty.
// Example: 10 vectors over 4 CTAs: 0..3, 3..6, 6..9, 9..10.
struct Span {
  int begin;
  int end;
};

VERSATUNE_HD Span cluster_share(int num_vectors, int rank, int num_ctas) {
  const int share = (num_vectors + num_ctas - 1) / num_ctas;
  const int begin = rank * share < num_vectors ? rank * share : num_vectors;
  return {begin, begin + share < num_vectors ? begin + share : num_vectors};
}

// The smallest cluster (1, 2, 4 or 8 CTAs) whose registers can store a row; 0 if eight CTAs are too few.
VERSATUNE_HD int cluster_size_of(int num_vectors, int threads, int vectors_per_thread) {
  for (int num_ctas = 1; num_ctas <= 8; num_ctas *= 2) {
    if (num_vectors <= num_ctas * threads * vectors_per_thread) return num_ctas;
  }
  return 0;
}

}  // namespace versatune
