// What the shim headers ask of the executor (executor.cpp), which runs a kernel on the CPU: each thread of a block is a
// fiber, blocks and fibers take turns in a random order, and every wait that can never end is reported.
#pragma once

#include <cstdint>
#include <source_location>

#include "vector_types.h"

// Where a kernel calls; a default argument, so that a report can name the line.
#define HOSTCUDA_HERE std::source_location where = std::source_location::current()

namespace hostcuda {

using Where = std::source_location;

enum class Op : uint8_t {  // the warp-wide instructions; lanes meet only in the same one
  shuffle_index,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
  sync,
  ballot,
  match_any,
  add,  // the reductions work on 32 bits
  min_signed,
  min_unsigned,
  max_signed,
  max_unsigned,
  bit_and,
  bit_or,
  bit_xor,
};

// Reports kernel, block, thread and seed, then aborts.
[[noreturn]] void fail(Where where, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Waits for the whole block; returns in how many threads `predicate` was nonzero.
int block_barrier(int predicate, Where where);

// Waits for the lanes of `mask`; returns this lane's result. `argument` is the shuffle's source lane or distance.
uint64_t warp_op(Op op, unsigned mask, uint64_t value, int argument, int width, Where where);

void yield();            // another thread may run now
void yield_sometimes();  // a coin is tossed first
unsigned live_lanes();   // of the calling thread's warp
int threads_in_block();

struct Launch {
  const void* kernel;  // its address, which names it in reports
  dim3 grid, block;
  void (*body)(void*);  // one thread's work
  void* arguments;
};
void run(const Launch& launch);

// A device checks alignment in hardware, x86 does not.
template <class T>
inline void check_aligned(const T* p, Where where) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (address % alignof(T) != 0) {
    fail(where, "misaligned access: address %p, %zu bytes need alignment %zu", reinterpret_cast<const void*>(p),
         sizeof(T), alignof(T));
  }
}

}  // namespace hostcuda

// The executor sets these before it resumes a thread.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;
