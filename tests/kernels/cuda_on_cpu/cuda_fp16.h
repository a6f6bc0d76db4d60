// CUDA's float16, as PyTorch computes it on a CPU.
#pragma once

#include <torch/headeronly/util/Half.h>

using __half = c10::Half;

inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half_rn(float x) { return __half(x); }
