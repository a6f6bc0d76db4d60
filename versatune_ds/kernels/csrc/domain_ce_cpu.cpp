// Loss by domain on the CPU: checks, distribution of rows over threads, registration for the dispatch key CPU.
//
// The schemas are defined in ops.py, because they must exist without a compiler. Rows are independent and statistics
// are integers, so results are equal bit for bit for any number of threads and any division into chunks.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <atomic>
#include <mutex>
#include <tuple>
#include <vector>

#include "cpu_rows.h"

namespace versatune {
namespace {

using at::Tensor;

#define VERSATUNE_DISPATCH(TYPE, NAME, ...)                     \
  AT_DISPATCH_SWITCH(TYPE, NAME,                                \
                     AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__)  \
                     AT_DISPATCH_CASE(at::kHalf, __VA_ARGS__)   \
                     AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))

constexpr int64_t kRowsAtOnce = 4;

// Call work(row, bins) for every row, with bins of the thread's own; return the sum of all bins.
// Threads fetch rows as they go: masked rows cost nothing, so fixed shares of rows would leave threads idle.
template <typename Work>
Tensor for_each_row(int64_t num_rows, int64_t num_domains, const Work& work) {
  Tensor bins = at::zeros({num_domains, kNumColumns}, at::kLong);
  int64_t* const total = bins.mutable_data_ptr<int64_t>();
  std::atomic<int64_t> next_row{0};
  std::mutex total_mutex;
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    std::vector<int64_t> own(num_domains * kNumColumns, 0);
    for (int64_t first; (first = next_row.fetch_add(kRowsAtOnce)) < num_rows;) {
      const int64_t last = std::min(first + kRowsAtOnce, num_rows);
      for (int64_t row = first; row < last; ++row) work(row, own.data());
    }
    const std::lock_guard<std::mutex> guard(total_mutex);
    for (size_t i = 0; i < own.size(); ++i) total[i] += own[i];
  });
  return bins;
}

void add_token(int64_t* bins, int64_t domain_id, const TokenLoss& token) {
  const TokenBins added = token_bins(token);
  for (int column = 0; column < kNumColumns; ++column) bins[domain_id * kNumColumns + column] += added.column[column];
}

// The arguments that all operators share, checked, as plain pointers; the tensors own the memory.
struct Rows {
  Tensor labels_storage, domain_ids_storage, loss_weights_storage;
  const int64_t* labels;
  const int64_t* domain_ids;
  const float* loss_weights;
  int64_t num_rows, vocabulary, num_domains;
  LossSettings settings;

  bool bears_loss(int64_t row) const { return labels[row] != settings.ignore_index; }
  float weight(int64_t row) const { return bears_loss(row) ? loss_weights[domain_ids[row]] : 0.0f; }
};

void check_ids(const Rows& rows) {
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    if (!rows.bears_loss(row)) continue;
    const int64_t label = rows.labels[row], domain_id = rows.domain_ids[row];
    TORCH_CHECK_VALUE(label >= 0 && label < rows.vocabulary, "row ", row, ": label ", label, " is outside 0..",
                      rows.vocabulary - 1);
    TORCH_CHECK_VALUE(domain_id >= 0 && domain_id < rows.num_domains, "row ", row, ": domain id ", domain_id,
                      " is outside 0..", rows.num_domains - 1);
  }
}

Rows checked_rows(const Tensor& logits, const Tensor& labels, const Tensor& domain_ids, const Tensor& loss_weights,
                  const LossSettings& settings) {
  TORCH_CHECK_VALUE(logits.dim() == 2, "logits_NV: expected shape [N, V], got ", logits.sizes());
  const int64_t num_rows = logits.size(0);
  TORCH_CHECK_VALUE(labels.scalar_type() == at::kLong && labels.sizes() == at::IntArrayRef({num_rows}),
                    "labels_N: expected int64 of shape [", num_rows, "], got ", labels.dtype(), " ", labels.sizes());
  TORCH_CHECK_VALUE(domain_ids.scalar_type() == at::kLong && domain_ids.sizes() == at::IntArrayRef({num_rows}),
                    "domain_ids_N: expected int64 of shape [", num_rows, "], got ", domain_ids.dtype(), " ",
                    domain_ids.sizes());
  TORCH_CHECK_VALUE(loss_weights.scalar_type() == at::kFloat && loss_weights.dim() == 1 && loss_weights.size(0) > 0,
                    "loss_weights_K: expected float32 of shape [K], got ", loss_weights.dtype(), " ",
                    loss_weights.sizes());
  Rows rows{labels.contiguous(), domain_ids.contiguous(), loss_weights.contiguous()};
  rows.labels = rows.labels_storage.const_data_ptr<int64_t>();
  rows.domain_ids = rows.domain_ids_storage.const_data_ptr<int64_t>();
  rows.loss_weights = rows.loss_weights_storage.const_data_ptr<float>();
  rows.num_rows = num_rows;
  rows.vocabulary = logits.size(1);
  rows.num_domains = loss_weights.size(0);
  rows.settings = settings;
  check_ids(rows);
  return rows;
}

LossSettings make_settings(int64_t ignore_index, double z_loss, double softcap, double label_smoothing) {
  return {ignore_index, static_cast<float>(z_loss), static_cast<float>(softcap), static_cast<float>(label_smoothing)};
}

Tensor with_contiguous_rows(const Tensor& logits) { return logits.stride(1) == 1 ? logits : logits.contiguous(); }

Tensor scalar_loss(const Tensor& bins, const Rows& rows) {
  Tensor loss = at::empty({}, at::kFloat);
  *loss.mutable_data_ptr<float>() =
      weighted_loss(bins.const_data_ptr<int64_t>(), rows.loss_weights, rows.num_domains);
  return loss;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> domain_ce(const Tensor& logits_given, const Tensor& labels,
                                                     const Tensor& domain_ids, const Tensor& loss_weights,
                                                     int64_t ignore_index, double z_loss, double softcap,
                                                     double label_smoothing, int64_t /*kernel*/) {
  const LossSettings settings = make_settings(ignore_index, z_loss, softcap, label_smoothing);
  const Rows rows = checked_rows(logits_given, labels, domain_ids, loss_weights, settings);
  const Tensor logits = with_contiguous_rows(logits_given);
  Tensor normalizers = at::zeros({rows.num_rows, 2}, at::kFloat), token_losses = at::zeros({rows.num_rows}, at::kFloat);
  float* const normalizer_data = normalizers.mutable_data_ptr<float>();
  float* const losses_data = token_losses.mutable_data_ptr<float>();
  Tensor bins;
  VERSATUNE_DISPATCH(logits.scalar_type(), "domain_ce", [&] {
    const scalar_t* const data = logits.const_data_ptr<scalar_t>();
    bins = for_each_row(rows.num_rows, rows.num_domains, [&](int64_t row, int64_t* own) {
      if (!rows.bears_loss(row)) return;
      const TokenLoss token = row_loss(data + row * logits.stride(0), rows.vocabulary, rows.labels[row], settings);
      normalizer_data[2 * row] = token.normalizer.max;
      normalizer_data[2 * row + 1] = token.normalizer.log_sum;
      losses_data[row] = token.nll;
      add_token(own, rows.domain_ids[row], token);
    });
  });
  return {scalar_loss(bins, rows), bins, normalizers, token_losses};
}

Tensor domain_ce_backward(const Tensor& logits_given, const Tensor& labels, const Tensor& domain_ids,
                          const Tensor& loss_weights, const Tensor& normalizers_given, const Tensor& grad_loss,
                          int64_t ignore_index, double z_loss, double softcap, double label_smoothing) {
  const LossSettings settings = make_settings(ignore_index, z_loss, softcap, label_smoothing);
  const Rows rows = checked_rows(logits_given, labels, domain_ids, loss_weights, settings);
  const Tensor logits = with_contiguous_rows(logits_given), normalizers = normalizers_given.contiguous();
  Tensor grad = at::empty_like(logits, at::MemoryFormat::Contiguous);
  const float* const normalizer_data = normalizers.const_data_ptr<float>();
  const float factor = grad_loss.item<float>();
  VERSATUNE_DISPATCH(logits.scalar_type(), "domain_ce_backward", [&] {
    const scalar_t* const data = logits.const_data_ptr<scalar_t>();
    scalar_t* const grad_data = grad.mutable_data_ptr<scalar_t>();
    for_each_row(rows.num_rows, 1, [&](int64_t row, int64_t*) {
      row_gradient_into(data + row * logits.stride(0), grad_data + row * rows.vocabulary, rows.vocabulary,
                        rows.labels[row], {normalizer_data[2 * row], normalizer_data[2 * row + 1]},
                        rows.weight(row) * factor, settings);
    });
  });
  return grad;
}

std::tuple<Tensor, Tensor, Tensor> domain_ce_gradient_(Tensor& logits, const Tensor& labels, const Tensor& domain_ids,
                                                       const Tensor& loss_weights, int64_t ignore_index, double z_loss,
                                                       double softcap, double label_smoothing,
                                                       int64_t /*kernel*/) {
  const LossSettings settings = make_settings(ignore_index, z_loss, softcap, label_smoothing);
  const Rows rows = checked_rows(logits, labels, domain_ids, loss_weights, settings);
  TORCH_CHECK_VALUE(logits.stride(1) == 1, "logits_NV: expected rows without gaps to write the gradient into, got strides ",
                    logits.strides());
  Tensor token_losses = at::zeros({rows.num_rows}, at::kFloat);
  float* const losses_data = token_losses.mutable_data_ptr<float>();
  Tensor bins;
  VERSATUNE_DISPATCH(logits.scalar_type(), "domain_ce_gradient_", [&] {
    scalar_t* const data = logits.mutable_data_ptr<scalar_t>();
    bins = for_each_row(rows.num_rows, rows.num_domains, [&](int64_t row, int64_t* own) {
      scalar_t* const x = data + row * logits.stride(0);
      TokenLoss token = {};
      if (rows.bears_loss(row)) {
        token = row_loss(x, rows.vocabulary, rows.labels[row], settings);
        losses_data[row] = token.nll;
        add_token(own, rows.domain_ids[row], token);
      }
      row_gradient_into(x, x, rows.vocabulary, rows.labels[row], token.normalizer, rows.weight(row), settings);
    });
  });
  return {scalar_loss(bins, rows), bins, token_losses};
}

void scale_(Tensor& values, const Tensor& factor) {
  if (factor.item<float>() != 1.0f) values.mul_(factor);
}

}  // namespace

TORCH_LIBRARY_IMPL(versatune, CPU, library) {
  library.impl("domain_ce", &domain_ce);
  library.impl("domain_ce_backward", &domain_ce_backward);
  library.impl("domain_ce_gradient_", &domain_ce_gradient_);
  library.impl("scale_", &scale_);
}

}  // namespace versatune
