// Loss by domain on CUDA: checks and registration for the dispatch key CUDA, through PyTorch's stable interface.
//
// The stable interface compiles in about a second, links against no CUDA library of PyTorch, and loads with a CPU-only
// PyTorch, with which the tests build it. The schemas are defined in ops.py.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#include "domain_ce_cuda.h"

// Part of PyTorch's stable C interface; weak, because a CPU-only PyTorch does not have it.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace versatune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(bool is_right, const char* expected, const Tensor& got) {
  if (is_right) return;
  std::ostringstream message;
  message << "expected " << expected << ", got a tensor of shape [";
  for (int64_t d = 0; d < got.dim(); ++d) message << (d > 0 ? ", " : "") << got.size(d);
  message << "]";
  throw std::runtime_error(message.str());
}

void check_launch(const char* problem) {
  if (problem != nullptr) throw std::runtime_error(std::string("loss kernel not launched: ") + problem);
}

void* current_stream(const Tensor& on) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr ||
      aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream) != 0) {
    throw std::runtime_error("this PyTorch has no CUDA streams");
  }
  return stream;
}

Element element_of(const Tensor& values) {
  switch (values.scalar_type()) {
    case ScalarType::Float: return Element::kFloat;
    case ScalarType::Half: return Element::kHalf;
    case ScalarType::BFloat16: return Element::kBFloat16;
    default: throw std::runtime_error("expected float32, float16 or bfloat16 values");
  }
}

Kernel kernel_of(int64_t number) {
  if (number < 0 || number > static_cast<int64_t>(Kernel::kRing8)) throw std::runtime_error("unknown kernel number");
  return static_cast<Kernel>(number);
}

template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// The arguments that all operators share, checked. It keeps tensors made contiguous alive until the launch is queued.
struct CheckedArguments {
  Tensor labels, domain_ids, loss_weights;
  RowArguments rows;
};

CheckedArguments check_arguments(const Tensor& logits, const Tensor& labels, const Tensor& domain_ids,
                                 const Tensor& loss_weights, int64_t ignore_index, double z_loss, double softcap,
                                 double label_smoothing) {
  check(logits.dim() == 2 && (logits.stride(1) == 1 || logits.size(1) == 1), "logits_NV of shape [N, V] without gaps",
        logits);
  check(logits.size(1) < (1ll << 31) - 16, "logits_NV with V < 2^31 - 16", logits);
  const int64_t num_rows = logits.size(0);
  for (const Tensor* ids : {&labels, &domain_ids}) {
    check(ids->dim() == 1 && ids->size(0) == num_rows && ids->scalar_type() == ScalarType::Long && ids->is_cuda(),
          "labels_N and domain_ids_N as int64 of shape [N] on the device of the logits", *ids);
  }
  check(loss_weights.dim() == 1 && loss_weights.size(0) > 0 && loss_weights.scalar_type() == ScalarType::Float &&
            loss_weights.is_cuda(),
        "loss_weights_K as float32 of shape [K] on the device of the logits", loss_weights);
  CheckedArguments checked{torch::stable::contiguous(labels), torch::stable::contiguous(domain_ids),
                    torch::stable::contiguous(loss_weights), {}};
  RowArguments& rows = checked.rows;
  rows.logits = logits.const_data_ptr();
  rows.labels = data_of<int64_t>(checked.labels);
  rows.domain_ids = data_of<int64_t>(checked.domain_ids);
  rows.loss_weights = data_of<float>(checked.loss_weights);
  rows.num_rows = num_rows;
  rows.vocabulary = static_cast<int>(logits.size(1));
  rows.row_stride = logits.stride(0);
  rows.num_domains = static_cast<int>(loss_weights.size(0));
  rows.settings = {ignore_index, static_cast<float>(z_loss), static_cast<float>(softcap),
                   static_cast<float>(label_smoothing)};
  return checked;
}

// The outputs of the loss.
struct Outputs {
  Tensor loss, bins, token_losses;
};

Outputs allocate_outputs(const Tensor& logits, CheckedArguments& checked) {
  RowArguments& rows = checked.rows;
  Outputs outputs{torch::stable::new_empty(logits, {}, ScalarType::Float),
                  torch::stable::new_empty(logits, {rows.num_domains, kNumColumns}, ScalarType::Long),
                  torch::stable::new_empty(logits, {rows.num_rows}, ScalarType::Float)};
  rows.bins = mutable_data_of<unsigned long long>(outputs.bins);
  rows.token_losses = mutable_data_of<float>(outputs.token_losses);
  return outputs;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> domain_ce(Tensor logits, Tensor labels, Tensor domain_ids,
                                                     Tensor loss_weights, int64_t ignore_index, double z_loss,
                                                     double softcap, double label_smoothing, int64_t kernel) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  if (logits.dim() == 2 && logits.stride(1) != 1) logits = torch::stable::contiguous(logits);
  CheckedArguments checked =
      check_arguments(logits, labels, domain_ids, loss_weights, ignore_index, z_loss, softcap, label_smoothing);
  Outputs outputs = allocate_outputs(logits, checked);
  Tensor normalizers = torch::stable::new_empty(logits, {logits.size(0), 2}, ScalarType::Float);
  checked.rows.normalizers = mutable_data_of<Normalizer>(normalizers);
  check_launch(launch_loss(checked.rows, element_of(logits), kernel_of(kernel), mutable_data_of<float>(outputs.loss),
                           current_stream(logits)));
  return {outputs.loss, outputs.bins, normalizers, outputs.token_losses};
}

Tensor domain_ce_backward(Tensor logits, Tensor labels, Tensor domain_ids, Tensor loss_weights, Tensor normalizers,
                          Tensor grad_loss, int64_t ignore_index, double z_loss, double softcap,
                          double label_smoothing) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  if (logits.dim() == 2 && logits.stride(1) != 1) logits = torch::stable::contiguous(logits);
  CheckedArguments checked =
      check_arguments(logits, labels, domain_ids, loss_weights, ignore_index, z_loss, softcap, label_smoothing);
  check(grad_loss.numel() == 1 && grad_loss.scalar_type() == ScalarType::Float && grad_loss.is_cuda(),
        "grad_loss as a float32 scalar on the device of the logits", grad_loss);
  check(normalizers.dim() == 2 && normalizers.size(0) == logits.size(0) && normalizers.size(1) == 2 &&
            normalizers.scalar_type() == ScalarType::Float && normalizers.is_cuda() && normalizers.is_contiguous(),
        "normalizers_N2 as float32 of shape [N, 2] on the device of the logits", normalizers);
  Tensor grad = torch::stable::new_empty(logits, {logits.size(0), logits.size(1)});
  checked.rows.normalizers = mutable_data_of<Normalizer>(normalizers);
  checked.rows.grad_loss = data_of<float>(grad_loss);
  checked.rows.grad = grad.mutable_data_ptr();
  checked.rows.grad_stride = logits.size(1);
  check_launch(launch_backward(checked.rows, element_of(logits), current_stream(logits)));
  return grad;
}

std::tuple<Tensor, Tensor, Tensor> domain_ce_gradient_(Tensor logits, Tensor labels, Tensor domain_ids,
                                                       Tensor loss_weights, int64_t ignore_index, double z_loss,
                                                       double softcap, double label_smoothing, int64_t kernel) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  CheckedArguments checked =
      check_arguments(logits, labels, domain_ids, loss_weights, ignore_index, z_loss, softcap, label_smoothing);
  Outputs outputs = allocate_outputs(logits, checked);
  checked.rows.grad = logits.mutable_data_ptr();
  checked.rows.grad_stride = checked.rows.row_stride;
  check_launch(launch_loss(checked.rows, element_of(logits), kernel_of(kernel), mutable_data_of<float>(outputs.loss),
                           current_stream(logits)));
  return {outputs.loss, outputs.bins, outputs.token_losses};
}

void scale_(Tensor values, Tensor factor) {
  const torch::stable::accelerator::DeviceGuard guard(values.get_device_index());
  check(values.is_contiguous(), "values without gaps", values);
  check(factor.numel() == 1 && factor.scalar_type() == ScalarType::Float && factor.is_cuda(),
        "factor as a float32 scalar on the device of the values", factor);
  check_launch(launch_scale(values.mutable_data_ptr(), data_of<float>(factor), values.numel(), element_of(values),
                            current_stream(values)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(versatune, CUDA, library) {
  library.impl("domain_ce", TORCH_BOX(&domain_ce));
  library.impl("domain_ce_backward", TORCH_BOX(&domain_ce_backward));
  library.impl("domain_ce_gradient_", TORCH_BOX(&domain_ce_gradient_));
  library.impl("scale_", TORCH_BOX(&scale_));
}

}  // namespace versatune
