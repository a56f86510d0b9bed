// Stores that go past the cache: a result larger than the cache would first be read in (a third of the traffic of a
// read-compute-write pass). Used in blocks from L1, only above kStreamed bytes.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace warpup {

inline constexpr int64_t kStreamed = 16 << 20;  // half of an ordinary last-level cache

template <class T>
inline void stream_store(T* to, const T* from, int64_t n) {
#ifdef __SSE2__
  char* out = reinterpret_cast<char*>(to);
  const char* in = reinterpret_cast<const char*>(from);
  int64_t bytes = n * int64_t(sizeof(T));
  const int64_t head = -reinterpret_cast<intptr_t>(out) & 15;
  if (head < bytes) {
    std::memcpy(out, in, head);
    out += head, in += head, bytes -= head;
    for (; bytes >= 16; out += 16, in += 16, bytes -= 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(out), _mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
    }
  }
  std::memcpy(out, in, bytes);
#else
  std::memcpy(to, from, n * sizeof(T));
#endif
}

inline void stream_fence() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

}  // namespace warpup
