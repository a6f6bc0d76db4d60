// Float lanes of a vector register: load, store, exp, tanh, max, sum.
//
// GCC's and Clang's vector extension compiles to AVX-512, AVX2, SSE2 or NEON. The number of lanes is that of the
// target's registers: GCC 12 compiles wider vectors to code ten times slower (measured on AVX2). The bits of a result
// depend on it: they are equal on machines of the same kind only.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace versatune {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else  // SSE2, NEON
constexpr int kLanes = 4;
#endif
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t WordLanes __attribute__((vector_size(4 * kLanes)));
typedef uint16_t ShortLanes __attribute__((vector_size(2 * kLanes)));

#define VERSATUNE_LANES static inline __attribute__((always_inline))

template <typename To, typename From>
VERSATUNE_LANES To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

VERSATUNE_LANES Lanes broadcast(float value) { return value - Lanes{}; }

VERSATUNE_LANES Lanes load(const float* from) {
  Lanes x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

VERSATUNE_LANES Lanes load(const c10::BFloat16* from) {
  ShortLanes halves;
  std::memcpy(&halves, from, sizeof(halves));
  return bit_cast<Lanes>(__builtin_convertvector(halves, WordLanes) << 16);
}

// The exponent bias of float16 is 112 below float32's: shift the bits into place and multiply by 2^112, which is right
// for subnormals too. An exponent of 31 is infinity or NaN and becomes all ones.
VERSATUNE_LANES Lanes load(const c10::Half* from) {
  ShortLanes halves;
  std::memcpy(&halves, from, sizeof(halves));
  const WordLanes bits = __builtin_convertvector(halves, WordLanes);
  const WordLanes shifted = (bits & 0x7fffu) << 13;
  const WordLanes is_special = bit_cast<WordLanes>(shifted >= (31u << 23));
  const WordLanes magnitude = bit_cast<WordLanes>(bit_cast<Lanes>(shifted) * 0x1p112f);
  return bit_cast<Lanes>(magnitude | (is_special & 0x7f800000u) | ((bits & 0x8000u) << 16));
}

VERSATUNE_LANES void store(float* to, Lanes x) { std::memcpy(to, &x, sizeof(x)); }

VERSATUNE_LANES void store(c10::BFloat16* to, Lanes x) {
#if defined(__AVX512BF16__)  // one instruction; differs in flushing subnormals, below 1.2e-38
  const __m256bh rounded_lanes = _mm512_cvtneps_pbh(bit_cast<__m512>(x));
  std::memcpy(to, &rounded_lanes, sizeof(rounded_lanes));
#else
  // Round to nearest even: add 0x7fff plus the last kept bit. A NaN becomes a quiet NaN, not zero by a carry.
  const WordLanes bits = bit_cast<WordLanes>(x);
  const WordLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const WordLanes is_nan = bit_cast<WordLanes>(x != x);
  const ShortLanes halves = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0u), ShortLanes);
  std::memcpy(to, &halves, sizeof(halves));
#endif
}

// Round to nearest even. Below 2^-14 adding 0.5 puts the subnormal's bits at the end of the mantissa, rounded by the
// addition itself; from 65536 on the result is infinity, or a quiet NaN.
VERSATUNE_LANES void store(c10::Half* to, Lanes x) {
  const WordLanes bits = bit_cast<WordLanes>(x);
  const WordLanes magnitude = bits & 0x7fffffffu;
  const WordLanes normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const WordLanes subnormal = bit_cast<WordLanes>(bit_cast<Lanes>(magnitude) + 0.5f) - 0x3f000000u;
  const WordLanes is_normal = bit_cast<WordLanes>(magnitude >= 0x38800000u);
  const WordLanes is_large = bit_cast<WordLanes>(magnitude >= 0x47800000u);
  const WordLanes large = 0x7c00u | (bit_cast<WordLanes>(x != x) & 0x0200u);
  const WordLanes finite = (is_normal & normal) | (~is_normal & subnormal);
  const WordLanes result = (is_large & large) | (~is_large & finite) | ((bits >> 16) & 0x8000u);
  const ShortLanes halves = __builtin_convertvector(result, ShortLanes);
  std::memcpy(to, &halves, sizeof(halves));
}

// Load count < kLanes elements; the other lanes are set to `fill`.
template <typename T>
VERSATUNE_LANES Lanes load_some(const T* from, int64_t count, float fill) {
  Lanes x = broadcast(fill);
  for (int64_t i = 0; i < count; ++i) x[i] = static_cast<float>(from[i]);
  return x;
}

template <typename T>
VERSATUNE_LANES void store_some(T* to, Lanes x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(x[i]);
}

VERSATUNE_LANES Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

VERSATUNE_LANES float max_of(Lanes x) {
  float result = x[0];
  for (int i = 1; i < kLanes; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

VERSATUNE_LANES float sum_of(Lanes x) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  }
  return x[0];
}

// e^d for d <= 88, within 2 units in the last place; below -87 the result is subnormal or 0; NaN for NaN.
// With n = round(d / ln 2) and r = d - n ln 2 (ln 2 in two parts, so that r is exact to float32): e^d = 2^n e^r, and
// e^r = 1 + r + r^2 q(r) with the polynomial of the Cephes library's expf.
VERSATUNE_LANES Lanes exp_lanes(Lanes d) {
  const float round_magic = 12582912.0f;  // 1.5 * 2^23: after adding it the low mantissa bits hold the integer n
  const Lanes shifted = d * 1.44269504088896341f + round_magic;
  const Lanes n = shifted - round_magic;
  const Lanes r = (d - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes q = r * 1.9875691500e-4f + 1.3981999507e-3f;
  q = q * r + 8.3334519073e-3f;
  q = q * r + 4.1665795894e-2f;
  q = q * r + 1.6666665459e-1f;
  q = q * r + 5.0000001201e-1f;
  const Lanes power = q * (r * r) + (r + 1.0f);
#if defined(__AVX512F__)  // power * 2^n in one instruction, which also handles a large negative n
  return bit_cast<Lanes>(_mm512_scalef_ps(bit_cast<__m512>(power), bit_cast<__m512>(n)));
#else
  const IntLanes exponent = (bit_cast<IntLanes>(shifted) + 127) << 23;
  const IntLanes is_tiny = d < -87.0f;
  return bit_cast<Lanes>(bit_cast<IntLanes>(power * bit_cast<Lanes>(exponent)) & ~is_tiny);
#endif
}

// softcap * tanh(logit / softcap), through tanh(u) = 1 - 2 / (e^2u + 1); beyond u = 15 tanh is 1 in float32.
VERSATUNE_LANES Lanes soft_cap(Lanes logit, float softcap) {
  const Lanes limit = broadcast(30.0f);
  Lanes twice = logit * (2.0f / softcap);
  twice = twice > limit ? limit : twice;
  twice = twice < -limit ? -limit : twice;
  return softcap * (1.0f - 2.0f / (exp_lanes(twice) + 1.0f));
}

}  // namespace versatune
