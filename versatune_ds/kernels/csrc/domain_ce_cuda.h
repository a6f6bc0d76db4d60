// Launchers of the CUDA kernels: raw pointers, no PyTorch headers, so that nvcc compiles them in seconds.
#pragma once

#include <cstdint>

#include "loss_math.h"

namespace versatune {

enum class Element { kFloat, kHalf, kBFloat16 };

// The kernels that can compute the loss; the numbers are those of KERNELS in kernel_choice.py. kAuto takes the first that
// is likely to be fast. Rows that are not 16-byte aligned always take the two-pass kernel.
enum class Kernel { kAuto = 0, kTwoPass, kOneRead, kRing1, kRing2, kRing4, kRing8 };

struct RowArguments {
  const void* logits;          // [N, V], rows row_stride elements apart
  void* grad;                  // [N, V], rows grad_stride apart; null: no gradient; may equal logits
  const int64_t* labels;       // [N]
  const int64_t* domain_ids;   // [N]
  const float* loss_weights;   // [K]
  const float* grad_loss;      // scalar that multiplies the gradient; null: 1
  Normalizer* normalizers;     // [N]; written by the loss, read by the backward pass; null: not wanted
  float* token_losses;         // [N]
  unsigned long long* bins;    // [K, 5], two's complement int64
  int64_t num_rows;
  int vocabulary;              // offsets in a row fit into 32 bits, offsets of rows need 64
  int64_t row_stride;
  int64_t grad_stride;
  int num_domains;
  LossSettings settings;
};

// Each returns null, or an error message. `stream` is a cudaStream_t of the current device.
const char* launch_loss(const RowArguments& rows, Element element, Kernel kernel, float* loss, void* stream);
const char* launch_backward(const RowArguments& rows, Element element, void* stream);
const char* launch_scale(void* values, const float* factor, int64_t num_values, Element element, void* stream);

}  // namespace versatune
