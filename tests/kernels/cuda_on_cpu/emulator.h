// Run CUDA kernels on a CPU: every thread of a cluster is a fiber, and a scheduler switches between them in random order.
//
// It is made to find mistakes, not to be fast. A seed chooses the order, so that many orders can be tried and each can be
// repeated. Copies that a kernel starts are carried out at some later moment, and their target is filled with NaN until
// then. It stops with an error, instead of a hang or a wrong number, when all fibers wait for one another, when a barrier
// gets more arrivals than it was made for, when a copy is not aligned or leaves the shared memory, and when a block
// writes to one that has exited.
//
// Not emulated: memory that is weaker than in order (a missing fence is not found), and time.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace emulator {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kStaticBytes = 32 * 1024;  // for __shared__ variables; dynamic shared memory follows

struct Index {
  unsigned x, y, z;
};

// A place where a fixed number of fibers meet.
struct Meeting {
  int expected = 0;
  int arrived = 0;
  unsigned generation = 0;
};

struct Warp {
  Meeting meeting;
  uint64_t value[2][32];
};

struct Block {
  Index index;
  int rank = 0;
  std::vector<unsigned char> shared;
  Meeting meeting;
  std::vector<Warp> warps;
  int num_running = 0;
};

struct Copy {
  void* to;
  const void* from;
  size_t num_bytes;
  uint64_t* barrier;
};

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  Index thread;
  Block* block = nullptr;
  bool is_done = false;
  std::function<bool()> may_continue;  // empty: it may
};

struct Device {
  int num_multiprocessors = 2;
  int shared_bytes = 232448;
  int code_version = 90;  // the architecture that the kernels count as compiled for
  unsigned seed = 0;
};

struct State {
  Device device;
  std::string error;
  std::mt19937 random;
  ucontext_t scheduler;
  Fiber* now = nullptr;
  Index thread_index{}, block_index{};  // of the fiber that runs
  Index block_size{}, grid_size{};
  std::vector<Block> blocks;  // of the cluster that runs
  Meeting cluster_meeting;
  std::vector<Copy> copies;
  std::function<void()> kernel;
};

inline State& state() {
  static State it;
  return it;
}

inline void switch_to_scheduler() { swapcontext(&state().now->context, &state().scheduler); }

// End the launch with an error. The fiber never continues.
[[noreturn]] inline void fail(const std::string& message) {
  State& s = state();
  if (s.error.empty()) {
    s.error = message + " (block " + std::to_string(s.now->block->index.x) + ", thread " +
              std::to_string(s.now->thread.x) + ")";
  }
  for (;;) switch_to_scheduler();
}

// Let other fibers run until a condition is met.
inline void wait_until(std::function<bool()> condition) {
  Fiber* const self = state().now;
  self->may_continue = std::move(condition);
  switch_to_scheduler();
  self->may_continue = nullptr;
}

inline void meet(Meeting& meeting) {
  const unsigned generation = meeting.generation;
  if (++meeting.arrived == meeting.expected) {
    meeting.arrived = 0;
    ++meeting.generation;
  }
  wait_until([&meeting, generation] { return meeting.generation != generation; });
}

inline Warp& own_warp() { return state().now->block->warps[state().now->thread.x / 32]; }

template <typename T>
T exchange(T value, int mask) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Warp& warp = own_warp();
  const unsigned turn = warp.meeting.generation % 2, lane = state().now->thread.x % 32;
  std::memcpy(&warp.value[turn][lane], &value, sizeof(T));
  meet(warp.meeting);
  std::memcpy(&value, &warp.value[turn][lane ^ static_cast<unsigned>(mask)], sizeof(T));
  return value;
}

// A barrier in shared memory, in the 64 bits that the hardware has for it too.
struct BarrierBits {
  uint16_t expected;
  uint16_t pending;
  uint32_t bytes_and_phase;  // 31 bits of bytes, which may be negative; the phase in the top bit

  int bytes() const { return static_cast<int>(bytes_and_phase << 1) >> 1; }
  unsigned phase() const { return bytes_and_phase >> 31; }
  void set(int bytes, unsigned phase) {
    bytes_and_phase = (static_cast<uint32_t>(bytes) & 0x7fffffffu) | (phase << 31);
  }
};
static_assert(sizeof(BarrierBits) == sizeof(uint64_t));

inline void update(uint64_t* barrier, int arrivals, int bytes) {
  BarrierBits bits;
  std::memcpy(&bits, barrier, sizeof(bits));
  if (bits.expected == 0 || bits.expected > 1024) fail("a barrier is used that was not initialised");
  if (bits.pending < arrivals) fail("a barrier gets more arrivals than it was made for");
  bits.pending = static_cast<uint16_t>(bits.pending - arrivals);
  bits.set(bits.bytes() + bytes, bits.phase());
  if (bits.pending == 0 && bits.bytes() == 0) {
    bits.pending = bits.expected;
    bits.set(0, bits.phase() ^ 1u);
  }
  std::memcpy(barrier, &bits, sizeof(bits));
}

inline unsigned phase_of(const uint64_t* barrier) {
  BarrierBits bits;
  std::memcpy(&bits, barrier, sizeof(bits));
  return bits.phase();
}

inline void start_copy(void* to, const void* from, size_t num_bytes, uint64_t* barrier) {
  const std::vector<unsigned char>& shared = state().now->block->shared;
  const unsigned char* const begin = static_cast<unsigned char*>(to);
  const auto is_aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (num_bytes == 0 || num_bytes % 16 != 0 || !is_aligned(to) || !is_aligned(from)) fail("a copy is not aligned");
  if (begin < shared.data() || begin + num_bytes > shared.data() + shared.size()) fail("a copy leaves shared memory");
  std::memset(to, 0xff, num_bytes);
  state().copies.push_back({to, from, num_bytes, barrier});
}

// Carry out one of the copies that were started, whichever.
inline void finish_a_copy() {
  State& s = state();
  const size_t i = s.random() % s.copies.size();
  const Copy copy = s.copies[i];
  s.copies[i] = s.copies.back();
  s.copies.pop_back();
  std::memcpy(copy.to, copy.from, copy.num_bytes);
  update(copy.barrier, 0, -static_cast<int>(copy.num_bytes));
}

inline void run_fiber() {
  State& s = state();
  s.kernel();
  s.now->is_done = true;
  --s.now->block->num_running;
  for (;;) switch_to_scheduler();
}

inline void make_cluster(unsigned first_block, unsigned num_blocks, size_t dynamic_bytes,
                         std::vector<std::unique_ptr<Fiber>>& fibers) {
  State& s = state();
  const unsigned num_threads = s.block_size.x;
  s.blocks.assign(num_blocks, Block{});
  s.cluster_meeting = {static_cast<int>(num_blocks * num_threads), 0, 0};
  for (unsigned rank = 0; rank < num_blocks; ++rank) {
    Block& block = s.blocks[rank];
    block.index = {first_block + rank, 0, 0};
    block.rank = static_cast<int>(rank);
    block.shared.assign(kStaticBytes + dynamic_bytes + 128, 0xff);
    block.meeting.expected = block.num_running = static_cast<int>(num_threads);
    block.warps.resize(num_threads / 32);
    for (Warp& warp : block.warps) warp.meeting.expected = 32;
    for (unsigned thread = 0; thread < num_threads; ++thread) {
      auto fiber = std::make_unique<Fiber>();
      fiber->thread = {thread, 0, 0};
      fiber->block = &block;
      fiber->stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack;
      fiber->context.uc_stack.ss_size = kStackBytes;
      makecontext(&fiber->context, reinterpret_cast<void (*)()>(run_fiber), 0);
      fibers.push_back(std::move(fiber));
    }
  }
}

// Run the fibers of a cluster to their end, or to an error.
inline void schedule(std::vector<std::unique_ptr<Fiber>>& fibers) {
  State& s = state();
  std::vector<Fiber*> running;
  for (auto& fiber : fibers) running.push_back(fiber.get());
  while (!running.empty() && s.error.empty()) {
    std::shuffle(running.begin(), running.end(), s.random);
    bool has_progress = false;
    for (Fiber* fiber : running) {
      if (fiber->may_continue && !fiber->may_continue()) continue;
      has_progress = true;
      s.now = fiber;
      s.thread_index = fiber->thread;
      s.block_index = fiber->block->index;
      swapcontext(&s.scheduler, &fiber->context);
      if (!s.error.empty()) return;
    }
    if (!s.copies.empty() && (!has_progress || s.random() % 4 == 0)) {
      finish_a_copy();
      has_progress = true;
    }
    if (!has_progress) s.error = "deadlock: all threads wait";
    std::erase_if(running, [](const Fiber* fiber) { return fiber->is_done; });
  }
  if (s.error.empty() && !s.copies.empty()) s.error = "a kernel ended before its copies had arrived";
}

// Run a kernel, one cluster after the other. Returns whether it ended without an error; state().error describes it.
inline bool run(std::function<void()> kernel, unsigned num_blocks, unsigned num_threads, unsigned cluster_size,
                size_t dynamic_bytes) {
  State& s = state();
  s.kernel = std::move(kernel);
  s.error.clear();
  s.copies.clear();
  s.block_size = {num_threads, 1, 1};
  s.grid_size = {num_blocks, 1, 1};
  for (unsigned first = 0; first < num_blocks && s.error.empty(); first += cluster_size) {
    std::vector<std::unique_ptr<Fiber>> fibers;
    make_cluster(first, cluster_size, dynamic_bytes, fibers);
    schedule(fibers);
    for (auto& fiber : fibers) munmap(fiber->stack, kStackBytes);
  }
  return s.error.empty();
}

// The start of the block's shared memory, aligned as dynamic shared memory is.
inline unsigned char* shared_of(Block& block) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(block.shared.data());
  return block.shared.data() + (128 - address % 128) % 128;
}

// Where a variable in shared memory lies in another block of the cluster.
inline void* in_block(void* variable, int rank) {
  State& s = state();
  if (rank < 0 || rank >= static_cast<int>(s.blocks.size())) fail("there is no such block in the cluster");
  Block& other = s.blocks[static_cast<size_t>(rank)];
  if (other.num_running == 0) fail("a block writes to one that has exited");
  return shared_of(other) + (static_cast<unsigned char*>(variable) - shared_of(*s.now->block));
}

}  // namespace emulator
