// The functions of cuda_device.cuh, emulated.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda_runtime.h"
#include "emulator.h"

#define VERSATUNE_SHARED(TYPE, NAME)                                                                            \
  static_assert(sizeof(TYPE) <= emulator::kStaticBytes);                                                       \
  TYPE& NAME = *reinterpret_cast<TYPE*>(emulator::shared_of(*emulator::state().now->block))

namespace versatune {

using Barrier = uint64_t;

inline float exp2_fast(float x) {
  const float result = exp2f(x);
  return result < 1.17549435e-38f ? 0.0f : result;
}

inline unsigned char* dynamic_shared() {
  return emulator::shared_of(*emulator::state().now->block) + emulator::kStaticBytes;
}

inline int cluster_rank() { return emulator::state().now->block->rank; }
inline int cluster_size() { return static_cast<int>(emulator::state().blocks.size()); }
inline void cluster_sync() { emulator::meet(emulator::state().cluster_meeting); }

template <typename V>
V* in_block(V* variable, int rank) {
  return static_cast<V*>(emulator::in_block(variable, rank));
}

inline void init_barrier(Barrier* barrier, int num_arrivals) {
  const emulator::BarrierBits bits = {static_cast<uint16_t>(num_arrivals), static_cast<uint16_t>(num_arrivals), 0};
  std::memcpy(barrier, &bits, sizeof(bits));
}

inline void publish_barriers() {}
inline void arrive(Barrier* barrier) { emulator::update(barrier, 1, 0); }
inline void arrive_expecting(Barrier* barrier, unsigned num_bytes) {
  emulator::update(barrier, 1, static_cast<int>(num_bytes));
}
inline void arrive_in_block(Barrier* barrier, int rank) { emulator::update(in_block(barrier, rank), 1, 0); }

inline void wait(Barrier* barrier, unsigned parity) {
  emulator::wait_until([barrier, parity] { return emulator::phase_of(barrier) != parity; });
}

inline void copy_to_shared(void* to, const void* from, unsigned num_bytes, Barrier* barrier) {
  emulator::start_copy(to, from, num_bytes, barrier);
}

}  // namespace versatune
