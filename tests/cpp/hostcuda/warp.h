// Barriers, warp-wide instructions, atomics and cached loads for the host executor. Overloads are spelled out as CUDA
// has them, so that arguments convert, or fail to compile, as they do there.
#pragma once

#include <bit>
#include <cstring>

#include "executor.h"

// ---- barriers and fences ----
inline void __syncthreads(HOSTCUDA_HERE) { hostcuda::block_barrier(0, where); }
inline int __syncthreads_count(int p, HOSTCUDA_HERE) { return hostcuda::block_barrier(p, where); }
inline int __syncthreads_or(int p, HOSTCUDA_HERE) { return hostcuda::block_barrier(p, where) != 0; }
inline int __syncthreads_and(int p, HOSTCUDA_HERE) {
  return hostcuda::block_barrier(p, where) == hostcuda::threads_in_block();
}
inline void __syncwarp(unsigned mask = 0xffffffffu, HOSTCUDA_HERE) {
  hostcuda::warp_op(hostcuda::Op::sync, mask, 0, 0, 32, where);
}
// A fence orders memory, it does not wait: letting others run here shows code that takes it for a barrier.
inline void __threadfence() { hostcuda::yield(); }
inline void __threadfence_block() { hostcuda::yield(); }
inline void __threadfence_system() { hostcuda::yield(); }
inline void __nanosleep(unsigned) { hostcuda::yield(); }
inline void __trap(HOSTCUDA_HERE) { hostcuda::fail(where, "__trap()"); }

// ---- shuffles ----
namespace hostcuda {
template <class T>
inline T shuffle(Op op, unsigned mask, T value, int argument, int width, Where where) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_op(op, mask, bits, argument, width, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace hostcuda

#define HOSTCUDA_SHUFFLES(T)                                                                              \
  inline T __shfl_sync(unsigned mask, T v, int source, int width = 32, HOSTCUDA_HERE) {                   \
    return hostcuda::shuffle(hostcuda::Op::shuffle_index, mask, v, source, width, where);                 \
  }                                                                                                       \
  inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, HOSTCUDA_HERE) {            \
    return hostcuda::shuffle(hostcuda::Op::shuffle_up, mask, v, static_cast<int>(delta), width, where);   \
  }                                                                                                       \
  inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, HOSTCUDA_HERE) {          \
    return hostcuda::shuffle(hostcuda::Op::shuffle_down, mask, v, static_cast<int>(delta), width, where); \
  }                                                                                                       \
  inline T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, HOSTCUDA_HERE) {                \
    return hostcuda::shuffle(hostcuda::Op::shuffle_xor, mask, v, lanes, width, where);                    \
  }
HOSTCUDA_SHUFFLES(int)
HOSTCUDA_SHUFFLES(unsigned)
HOSTCUDA_SHUFFLES(long)
HOSTCUDA_SHUFFLES(unsigned long)
HOSTCUDA_SHUFFLES(long long)
HOSTCUDA_SHUFFLES(unsigned long long)
HOSTCUDA_SHUFFLES(float)
HOSTCUDA_SHUFFLES(double)

// ---- votes, matches, reductions ----
inline unsigned __activemask() { return hostcuda::live_lanes(); }
inline unsigned __ballot_sync(unsigned mask, int p, HOSTCUDA_HERE) {
  return static_cast<unsigned>(hostcuda::warp_op(hostcuda::Op::ballot, mask, p != 0, 0, 32, where));
}
inline int __any_sync(unsigned mask, int p, HOSTCUDA_HERE) { return __ballot_sync(mask, p, where) != 0; }
inline int __all_sync(unsigned mask, int p, HOSTCUDA_HERE) { return __ballot_sync(mask, !p, where) == 0; }

#define HOSTCUDA_MATCH(T)                                                                               \
  inline unsigned __match_any_sync(unsigned mask, T v, HOSTCUDA_HERE) {                                 \
    uint64_t bits = 0;                                                                                  \
    std::memcpy(&bits, &v, sizeof(T));                                                                  \
    return static_cast<unsigned>(hostcuda::warp_op(hostcuda::Op::match_any, mask, bits, 0, 32, where)); \
  }
HOSTCUDA_MATCH(int)
HOSTCUDA_MATCH(unsigned)
HOSTCUDA_MATCH(long)
HOSTCUDA_MATCH(unsigned long)
HOSTCUDA_MATCH(long long)
HOSTCUDA_MATCH(unsigned long long)
HOSTCUDA_MATCH(float)
HOSTCUDA_MATCH(double)

#define HOSTCUDA_REDUCE(name, T, op)                                                                          \
  inline T __reduce_##name##_sync(unsigned mask, T v, HOSTCUDA_HERE) {                                        \
    return static_cast<T>(hostcuda::warp_op(hostcuda::Op::op, mask, static_cast<unsigned>(v), 0, 32, where)); \
  }
HOSTCUDA_REDUCE(add, int, add)
HOSTCUDA_REDUCE(add, unsigned, add)
HOSTCUDA_REDUCE(min, int, min_signed)
HOSTCUDA_REDUCE(min, unsigned, min_unsigned)
HOSTCUDA_REDUCE(max, int, max_signed)
HOSTCUDA_REDUCE(max, unsigned, max_unsigned)
HOSTCUDA_REDUCE(and, unsigned, bit_and)
HOSTCUDA_REDUCE(or, unsigned, bit_or)
HOSTCUDA_REDUCE(xor, unsigned, bit_xor)

// ---- atomics ----
namespace hostcuda {
// Fibers are not preempted, so a plain read and write is atomic; others may get their turn just before it.
template <class T, class F>
inline T atomic(T* p, Where where, F&& next) {
  check_aligned(p, where);
  yield_sometimes();
  const T old = *p;
  *p = next(old);
  return old;
}
}  // namespace hostcuda

#define HOSTCUDA_ATOMIC(name, T, expression)                                   \
  inline T atomic##name(T* p, T v, HOSTCUDA_HERE) {                            \
    return hostcuda::atomic(p, where, [&](T old) -> T { return expression; }); \
  }
#define HOSTCUDA_ATOMIC_CAS(T)                                                           \
  inline T atomicCAS(T* p, T expected, T v, HOSTCUDA_HERE) {                             \
    return hostcuda::atomic(p, where, [&](T old) { return old == expected ? v : old; }); \
  }
#define HOSTCUDA_ATOMIC_ORDERED(T)           \
  HOSTCUDA_ATOMIC(Max, T, old < v ? v : old) \
  HOSTCUDA_ATOMIC(Min, T, v < old ? v : old)
#define HOSTCUDA_ATOMIC_BITS(T)            \
  HOSTCUDA_ATOMIC(And, T, old& v)          \
  HOSTCUDA_ATOMIC(Or, T, old | v)          \
  HOSTCUDA_ATOMIC(Xor, T, old ^ v)         \
  HOSTCUDA_ATOMIC(Exch, T, ((void)old, v)) \
  HOSTCUDA_ATOMIC_CAS(T)
HOSTCUDA_ATOMIC_BITS(int)
HOSTCUDA_ATOMIC_BITS(unsigned)
HOSTCUDA_ATOMIC_BITS(unsigned long long)
HOSTCUDA_ATOMIC_CAS(unsigned short)
HOSTCUDA_ATOMIC_ORDERED(int)
HOSTCUDA_ATOMIC_ORDERED(unsigned)
HOSTCUDA_ATOMIC_ORDERED(long long)
HOSTCUDA_ATOMIC_ORDERED(unsigned long long)
HOSTCUDA_ATOMIC(Add, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(v)))
HOSTCUDA_ATOMIC(Add, unsigned, old + v)
HOSTCUDA_ATOMIC(Add, unsigned long long, old + v)
HOSTCUDA_ATOMIC(Add, float, old + v)
HOSTCUDA_ATOMIC(Add, double, old + v)
HOSTCUDA_ATOMIC(Sub, int, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(v)))
HOSTCUDA_ATOMIC(Sub, unsigned, old - v)
HOSTCUDA_ATOMIC(Exch, float, ((void)old, v))

// ---- loads and stores with a cache hint: a check of the alignment, then the plain access ----
#define HOSTCUDA_LOAD(name)                  \
  template <class T>                         \
  inline T name(const T* p, HOSTCUDA_HERE) { \
    hostcuda::check_aligned(p, where);       \
    return *p;                               \
  }
#define HOSTCUDA_STORE(name)                                         \
  template <class T>                                                 \
  inline void name(T* p, std::type_identity_t<T> v, HOSTCUDA_HERE) { \
    hostcuda::check_aligned(p, where);                               \
    *p = v;                                                          \
  }
HOSTCUDA_LOAD(__ldg)
HOSTCUDA_LOAD(__ldca)
HOSTCUDA_LOAD(__ldcg)
HOSTCUDA_LOAD(__ldcs)
HOSTCUDA_LOAD(__ldlu)
HOSTCUDA_LOAD(__ldcv)
HOSTCUDA_STORE(__stwb)
HOSTCUDA_STORE(__stcg)
HOSTCUDA_STORE(__stcs)
HOSTCUDA_STORE(__stwt)
