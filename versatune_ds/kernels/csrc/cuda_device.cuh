// What the kernels need of Hopper beyond plain CUDA: clusters, barriers in shared memory, bulk asynchronous copies.
//
// Each function is one instruction or two, so that the kernels read as algorithms, and so that the tests can run the same
// kernels on a CPU, with functions of the same names that emulate a GPU (tests/kernels/cuda_on_cpu).
//
// A Barrier counts arrivals and bytes of copies. When the expected number of both has come, its phase ends and the next
// begins. Phases alternate in parity: 0, 1, 0, ... `wait(barrier, parity)` returns once the phase of that parity has
// ended; so a fresh barrier lets a waiter for parity 1 pass at once.
#pragma once

#if defined(VERSATUNE_CUDA_ON_CPU)
#include "cuda_on_cpu_device.h"
#else

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#define VERSATUNE_SHARED(TYPE, NAME) __shared__ TYPE NAME

namespace versatune {

using Barrier = uint64_t;

// exp2 whose results below 2^-126 are zero; without this, CUDA's exp2f spends three instructions on them.
__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  return shared_bytes;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ int cluster_rank() {
  return static_cast<int>(cooperative_groups::cluster_group::block_rank());
}

__device__ __forceinline__ int cluster_size() {
  return static_cast<int>(cooperative_groups::cluster_group::num_blocks());
}

__device__ __forceinline__ void cluster_sync() { cooperative_groups::cluster_group::sync(); }

// Return where a variable in shared memory lies in another block of the cluster.
template <typename V>
__device__ __forceinline__ V* in_block(V* variable, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(variable, static_cast<unsigned>(rank));
}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void init_barrier(Barrier* barrier, int num_arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(num_arrivals) : "memory");
}

// Show initialised barriers to the cluster and to the copy engine; followed by cluster_sync().
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrive, and let the phase end only after so many bytes of copies have been written.
__device__ __forceinline__ void arrive_expecting(Barrier* barrier, unsigned num_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(num_bytes)
               : "memory");
}

// Arrive at the barrier of another block of the cluster; what this thread wrote there before is seen by who waits.
__device__ __forceinline__ void arrive_in_block(Barrier* barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

__device__ __forceinline__ void wait(Barrier* barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred is_over;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 is_over, [%0], %1;\n"
      "@!is_over bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Copy from global to shared memory without occupying threads. Addresses and size are multiples of 16 bytes; the barrier
// counts the bytes as they are written.
__device__ __forceinline__ void copy_to_shared(void* to, const void* from, unsigned num_bytes, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(num_bytes), "r"(shared_address(barrier))
      : "memory");
}

#endif  // Hopper

}  // namespace versatune

#endif  // VERSATUNE_CUDA_ON_CPU
