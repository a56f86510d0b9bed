// What a warp-wide instruction computes, apart from who waits for whom.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "executor.h"

namespace hostcuda {

constexpr int kWarp = 32;

inline const char* name_of(Op op) {
  static constexpr const char* kNames[] = {
      "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",  "__shfl_xor_sync",   "__syncwarp",
      "a warp vote",       "__match_any_sync",  "__reduce_add_sync", "__reduce_min_sync", "__reduce_min_sync",
      "__reduce_max_sync", "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync"};
  return kNames[static_cast<int>(op)];
}

// Shuffles need every lane that the mask names. For the others CUDA asks only for the lanes that still run.
inline bool needs_all(Op op) { return op <= Op::shuffle_xor; }

inline uint64_t reduce(Op op, uint32_t a, uint32_t b) {
  const auto sa = static_cast<int32_t>(a), sb = static_cast<int32_t>(b);
  switch (op) {
    case Op::add:
      return a + b;
    case Op::min_signed:
      return static_cast<uint32_t>(std::min(sa, sb));
    case Op::min_unsigned:
      return std::min(a, b);
    case Op::max_signed:
      return static_cast<uint32_t>(std::max(sa, sb));
    case Op::max_unsigned:
      return std::max(a, b);
    case Op::bit_and:
      return a & b;
    case Op::bit_or:
      return a | b;
    case Op::bit_xor:
      return a ^ b;
    default:
      return 0;
  }
}

inline int shuffle_source(Op op, int lane, int argument, int width) {
  const int first = lane & ~(width - 1), last = first + width - 1, by = argument & (kWarp - 1);
  switch (op) {
    case Op::shuffle_index:
      return first | (argument & (width - 1));
    case Op::shuffle_up:
      return lane - by < first ? lane : lane - by;
    case Op::shuffle_down:
      return lane + by > last ? lane : lane + by;
    default:
      return (lane ^ by) > last ? lane : lane ^ by;  // an earlier group may be read, a later one not
  }
}

// The result of `lane`, which is one of `lanes`; values[] holds what each of them brought.
inline uint64_t warp_result(Op op, int lane, int argument, int width, unsigned lanes, const uint64_t* values) {
  if (needs_all(op)) {
    const int source = shuffle_source(op, lane, argument, width);
    // A lane outside the mask gives an undefined value; as poison it harms only who uses it.
    return (lanes >> source & 1) != 0 ? values[source] : ~uint64_t(0);
  }
  const bool bits = op == Op::ballot || op == Op::match_any;
  uint64_t result = bits ? 0 : values[lane];
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const int other = std::countr_zero(rest);
    if (op == Op::ballot) {
      result |= values[other] << other;
    } else if (op == Op::match_any) {
      result |= uint64_t(values[other] == values[lane]) << other;
    } else if (other != lane) {
      result = reduce(op, static_cast<uint32_t>(result), static_cast<uint32_t>(values[other]));
    }
  }
  return result;
}

}  // namespace hostcuda
