// The launchers of the CUDA kernels, compiled for the emulator, as functions that ctypes can call.
#include "domain_ce_cuda.cu"

using namespace versatune;

extern "C" {

void set_device(int num_multiprocessors, int shared_bytes, int code_version, unsigned seed) {
  emulator::state().device = {num_multiprocessors, shared_bytes, code_version, seed};
}

// Compute loss and, unless grad is null, gradient. Returns null or the error.
const char* run_loss(const void* logits, void* grad, const int64_t* labels, const int64_t* domain_ids,
                     const float* loss_weights, float* normalizers, float* token_losses, int64_t* bins, float* loss,
                     int64_t num_rows, int vocabulary, int64_t row_stride, int64_t grad_stride, int num_domains,
                     int64_t ignore_index, float z_loss, float softcap, float label_smoothing, int element,
                     int kernel) {
  RowArguments rows = {};
  rows.logits = logits;
  rows.grad = grad;
  rows.labels = labels;
  rows.domain_ids = domain_ids;
  rows.loss_weights = loss_weights;
  rows.normalizers = reinterpret_cast<Normalizer*>(normalizers);
  rows.token_losses = token_losses;
  rows.bins = reinterpret_cast<unsigned long long*>(bins);
  rows.num_rows = num_rows;
  rows.vocabulary = vocabulary;
  rows.row_stride = row_stride;
  rows.grad_stride = grad_stride;
  rows.num_domains = num_domains;
  rows.settings = {ignore_index, z_loss, softcap, label_smoothing};
  return launch_loss(rows, static_cast<Element>(element), static_cast<Kernel>(kernel), loss, nullptr);
}

}
