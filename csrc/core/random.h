// Random numbers that are functions of a key and a counter: no state, so no order of draws to depend on.
#pragma once

#include "core/types.h"

namespace warpup {

struct RandomKey {
  uint32_t a, b;
};

// Philox 4x32-10 (Salmon et al. 2011): the key of one draw, from a seed, a position and a stream.
WARPUP_HD RandomKey random_key(uint64_t seed, uint64_t position, uint32_t stream) {
  uint32_t c0 = uint32_t(position), c1 = uint32_t(position >> 32), c2 = stream, c3 = 0;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    const uint32_t n0 = uint32_t(p1 >> 32) ^ c1 ^ k0, n2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c0 = n0, c1 = uint32_t(p1), c2 = n2, c3 = uint32_t(p0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {c0, c1};
}

// A bijection of 32 bits that spreads each of them over all: two multiplications, which vectorise as Philox does not.
WARPUP_HD uint32_t scrambled(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// 32 random bits for each item under a key.
WARPUP_HD uint32_t random_bits(RandomKey key, uint32_t item) { return scrambled(scrambled(item ^ key.a) + key.b); }

// -log(1 - w) of w = (bits + 1/2) / 2^32: exponential of mean 1, within 3e-6 of its value down to 1e-10, at most 17.3.
// Small values decide a race, so they keep their digits: 1 - w is not formed for them.
WARPUP_HD float exponential(uint32_t bits) {
  const float w = float(bits) * 0x1p-32f + 0x1p-33f;
  const float small = w * (1.0f + w * (0.5f + w * (1.0f / 3 + w * 0.25f)));
  float c = 1.0f - w;
  c = c < 0x1p-25f ? 0x1p-25f : c;
  // c = 2^k m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < .172.
  const uint32_t u = std::bit_cast<uint32_t>(c) - 0x3f3504f3u;
  const int32_t k = int32_t(u) >> 23;
  const float m = std::bit_cast<float>((u & 0x007fffffu) + 0x3f3504f3u);
  const float s = (m - 1.0f) / (m + 1.0f), q = s * s;
  const float log_m = 2.0f * s * (1.0f + q * (1.0f / 3 + q * (0.2f + q * (1.0f / 7 + q * (1.0f / 9)))));
  return w < 0.015625f ? small : -(float(k) * 0.69314718f + log_m);
}

}  // namespace warpup
