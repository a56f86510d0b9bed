// Tests the host executor and the launch helper. g++ builds it against the shim headers and runs all of it; nvcc builds
// the same source for a GPU, where what must fail is left out.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>

#include "core/launch.cuh"

#ifndef __CUDACC__
#include <sys/wait.h>
#include <unistd.h>
#endif

using warpup::launch;

namespace {

int passed = 0, failed = 0;

void expect(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

template <class T>
struct Buffer {  // both the host and the device see it
  explicit Buffer(size_t n, T fill = T{}) : size(n) {
    warpup::check_cuda(cudaMallocManaged(&data, n * sizeof(T)), "cudaMallocManaged");
    for (size_t i = 0; i < n; ++i) data[i] = fill;
  }
  ~Buffer() { cudaFree(data); }
  T& operator[](size_t i) const { return data[i]; }
  T* data;
  size_t size;
};

void finish() { warpup::check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }

__device__ __forceinline__ float block_sum(float v) {
  __shared__ float part[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(0xffffffffu, v, o);
  if (lane == 0) part[warp] = v;
  __syncthreads();
  v = lane < blockDim.x / 32 ? part[lane] : 0.0f;
  for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) row_sum(const float* __restrict__ x, float* out, int64_t n) {
  float v = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) v += __ldg(x + blockIdx.x * n + i);
  v = block_sum(v);
  if (threadIdx.x == 0) out[blockIdx.x] = v;
}

void test_reduction() {
  constexpr int kRows = 64, kCols = 1000;
  Buffer<float> x(kRows * kCols), out(kRows);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < x.size; ++i) x[i] = normal(random);
  launch("row_sum", row_sum<256>, kRows, 256, nullptr, x.data, out.data, kCols);
  finish();
  double worst = 0;
  for (int r = 0; r < kRows; ++r) {
    double sum = 0, size = 0;
    for (int c = 0; c < kCols; ++c) sum += x[r * kCols + c], size += std::fabs(x[r * kCols + c]);
    worst = std::max(worst, std::fabs(sum - out[r]) / size);
  }
  expect(worst < 1e-6, "block reduction, error " + std::to_string(worst));
}

// ---- warp-wide instructions: thread t of 32 writes row `test` ----
template <class T>
__global__ void shuffles(T* out) {
  const int lane = threadIdx.x;
  const T v = static_cast<T>(100 + lane);
  int row = 0;
  const auto put = [&](T x) { out[32 * row++ + lane] = x; };
  for (int width = 8; width <= 32; width *= 2) {
    put(__shfl_sync(0xffffffffu, v, 5, width));
    put(__shfl_sync(0xffffffffu, v, lane + 3, width));
    put(__shfl_up_sync(0xffffffffu, v, 3, width));
    put(__shfl_down_sync(0xffffffffu, v, 3, width));
    put(__shfl_xor_sync(0xffffffffu, v, 5, width));
    put(__shfl_xor_sync(0xffffffffu, v, 8, width));
  }
}

template <class T>
void test_shuffles(const char* type) {
  Buffer<T> out(18 * 32);
  launch("shuffles", shuffles<T>, 1, 32, nullptr, out.data);
  finish();
  int wrong = 0, row = 0;
  for (int width = 8; width <= 32; width *= 2) {
    for (int kind = 0; kind < 6; ++kind, ++row) {
      for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / width * width, in = lane - group;
        int from = 0;
        if (kind == 0) from = group + 5;
        if (kind == 1) from = group + (in + 3) % width;
        if (kind == 2) from = in < 3 ? lane : lane - 3;
        if (kind == 3) from = in + 3 >= width ? lane : lane + 3;
        if (kind == 4) from = lane ^ 5;
        if (kind == 5) from = width == 8 && (lane & 8) == 0 ? lane : lane ^ 8;  // a later group may not be read
        wrong += out[32 * row + lane] != static_cast<T>(100 + from);
      }
    }
  }
  expect(wrong == 0, std::string("shuffles of ") + type + ": " + std::to_string(wrong) + " wrong");
}

__global__ void votes(unsigned* out, int* signed_out) {
  const int lane = threadIdx.x;
  const unsigned all = 0xffffffffu, half = lane < 16 ? 0xffffu : 0xffff0000u;
  unsigned* o = out + 16 * lane;
  o[0] = __ballot_sync(all, lane % 3 == 0);
  o[1] = __any_sync(all, lane == 31);
  o[2] = __all_sync(all, lane < 31);
  o[3] = __reduce_add_sync(all, static_cast<unsigned>(lane));
  o[4] = __reduce_max_sync(all, static_cast<unsigned>(lane * 7 % 32));
  o[5] = __reduce_or_sync(all, 1u << lane / 2);
  o[6] = __match_any_sync(all, lane / 4);
  // Two halves go separate ways, each with as many steps as it likes.
  unsigned sum = 0;
  for (int i = 0; i < (lane < 16 ? 3 : 5); ++i) sum += __shfl_sync(half, static_cast<unsigned>(lane), 0, 16);
  o[7] = sum;
  __syncwarp();
  o[8] = __syncthreads_count(lane < 10);
  o[9] = __syncthreads_or(lane == 7);
  o[10] = __syncthreads_and(lane != 7);
  o[11] = __popc(0xf0f0u) * 10000 + __popcll(~0ull) * 100 + __ffs(8);
  o[12] = __clz(1) * 10000 + __clzll(1) * 100 + __ffsll(1ll << 40);
  o[13] = __activemask();
  signed_out[2 * lane] = __reduce_min_sync(all, lane - 5);
  signed_out[2 * lane + 1] = __reduce_add_sync(all, -lane);
}

void test_votes() {
  Buffer<unsigned> out(16 * 32);
  Buffer<int> signed_out(64);
  launch("votes", votes, 1, 32, nullptr, out.data, signed_out.data);
  finish();
  int wrong = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned want[14] = {0x49249249u,          1,  0, 496, 31,    0xffffu, 0xfu << lane / 4 * 4,
                               lane < 16 ? 0u : 80u, 10, 1, 0,   86404, 316341,  0xffffffffu};
    for (int i = 0; i < 14; ++i) {
      if (out[16 * lane + i] != want[i]) ++wrong, std::printf("vote %d: %u\n", i, out[16 * lane + i]);
    }
    wrong += signed_out[2 * lane] != -5 || signed_out[2 * lane + 1] != -496;
  }
  expect(wrong == 0, "votes, matches, reductions, bits");
}

// ---- 16-bit formats ----
__global__ void widen(float* half_out, float* bf16_out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  half_out[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(i)));
  bf16_out[i] = __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(i)));
}

__global__ void narrow(const float* x, unsigned short* half_out, unsigned short* bf16_out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  half_out[i] = __half_as_ushort(__float2half_rn(x[i]));
  bf16_out[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
}

double value_of(unsigned bits, int mantissa, int bias) {
  const int exponent = static_cast<int>(bits >> mantissa) & (2 * bias + 1);
  const double fraction = std::ldexp(bits & ((1u << mantissa) - 1), -mantissa), sign = bits >> 15 ? -1 : 1;
  if (exponent == 2 * bias + 1) return fraction != 0 ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias));
}

// By its definition: no neighbour of `bits` is nearer to x, and none as near is even where `bits` is odd.
bool is_nearest(float x, unsigned bits, int mantissa, int bias) {
  if (std::isnan(x)) return bits == 0x7fff;
  if (std::signbit(x) != (bits >> 15 != 0)) return false;
  const unsigned size = bits & 0x7fff, infinity = (2u * bias + 1) << mantissa;
  if (size > infinity) return false;
  const auto distance = [&](unsigned s) {  // for rounding, infinity counts as the power of two after the largest
    const double v = s == infinity ? std::ldexp(1.0, bias + 1) : value_of(s, mantissa, bias);
    return std::fabs(std::fabs(static_cast<double>(x)) - v);
  };
  if (std::isinf(x) || size == infinity) {
    return size == infinity &&
           (std::isinf(x) || distance(infinity) <= distance(infinity - 1) || std::fabs(x) > std::ldexp(1.0, bias + 1));
  }
  const auto loses = [&](unsigned other) {
    return distance(other) < distance(size) || (distance(other) == distance(size) && size % 2 == 1);
  };
  return !loses(size + 1) && (size == 0 || !loses(size - 1));
}

void test_float16() {
  Buffer<float> h(65536), b(65536);
  launch("widen", widen, 256, 256, nullptr, h.data, b.data);
  finish();
  int wrong = 0;
  const auto same = [](float a, double b) {
    return std::isnan(b) ? std::isnan(a) : a == b && std::signbit(a) == std::signbit(b);
  };
  for (unsigned i = 0; i < 65536; ++i) wrong += !same(h[i], value_of(i, 10, 15)) + !same(b[i], value_of(i, 7, 127));
  expect(wrong == 0, "widening all 16-bit patterns: " + std::to_string(wrong) + " wrong");

  std::mt19937 random(2);
  const int n = 400000;
  Buffer<float> x(n);
  for (int i = 0; i < n; ++i) {
    uint32_t bits = random();
    if (i % 4 == 1) bits = (bits & 0x80000fffu) | (random() % 65536) << 16;                    // near a bf16
    if (i % 4 == 2) bits = (bits & 0x8fffffffu) | (random() % 2 ? 0x30000000u : 0x40000000u);  // within half's range
    if (i % 8 == 3) bits = (bits & 0xffff0000u) | 0x8000u;                                     // a tie for bf16
    if (i % 8 == 7) bits = (bits & 0x8fffe000u) | 0x30001000u;                                 // a tie for half
    std::memcpy(&x[i], &bits, 4);
  }
  const float special[] = {0.0f,         -0.0f,           INFINITY,    -INFINITY, NAN,      -NAN,
                           65504.0f,     65519.99f,       65520.f,     0x1p-24f,  0x1p-25f, 0x1.0002p-25f,
                           0x1.8p-24f,   0x1p-149f,       FLT_MAX,     -FLT_MAX,  0x1p-14f, 0x1.ffcp-15f,
                           0x1.ffep-15f, 0x1.fefffep127f, 0x1.ffp127f, 0x1p-133f, 0x1p-134f};
  for (size_t i = 0; i < sizeof special / sizeof *special; ++i) x[i] = special[i];
  Buffer<unsigned short> nh(n), nb(n);
  launch("narrow", narrow, static_cast<unsigned>(warpup::ceil_div(n, 256)), 256, nullptr, x.data, nh.data, nb.data, n);
  finish();
  wrong = 0;
  for (int i = 0; i < n; ++i) {
    const int bad = !is_nearest(x[i], nh[i], 10, 15) + !is_nearest(x[i], nb[i], 7, 127);
    if (bad != 0 && wrong++ < 4) std::printf("%a -> half %04x, bf16 %04x\n", x[i], nh[i], nb[i]);
  }
  expect(wrong == 0, "rounding to 16 bits: " + std::to_string(wrong) + " wrong");
}

// ---- memory ----
__global__ void atomics(int* i, unsigned* u, unsigned long long* l, float* f, double* d) {
  __shared__ int local;
  if (threadIdx.x == 0) local = 0;
  __syncthreads();
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&local, 1);
  atomicAdd(i, 1), atomicMax(i + 1, t), atomicMin(i + 2, -t), atomicExch(i + 3, 7);
  atomicAdd(u, 2u), atomicMax(u + 1, static_cast<unsigned>(t)), atomicOr(u + 2, 1u << t % 32);
  atomicAdd(l, 1ull << 33), atomicMax(l + 1, static_cast<unsigned long long>(t) << 32);
  atomicAdd(f, 0.5f), atomicAdd(d, 0.25);
  for (unsigned seen = u[3], old; (old = atomicCAS(u + 3, seen, seen + 3)) != seen;) seen = old;
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(i + 4, local);
}

void test_atomics() {
  Buffer<int> i(5);
  Buffer<unsigned> u(4);
  Buffer<unsigned long long> l(2);
  Buffer<float> f(1);
  Buffer<double> d(1);
  launch("atomics", atomics, 4, 96, nullptr, i.data, u.data, l.data, f.data, d.data);
  finish();
  expect(i[0] == 384 && i[1] == 383 && i[2] == -383 && i[3] == 7 && i[4] == 384, "int atomics");
  expect(u[0] == 768 && u[1] == 383 && u[2] == 0xffffffffu && u[3] == 1152, "unsigned atomics");
  expect(l[0] == 384ull << 33 && l[1] == 383ull << 32 && f[0] == 192.0f && d[0] == 96.0, "64-bit and float atomics");
}

__global__ void indices(uint4* out) {
  const dim3 size(blockDim.x * gridDim.x, blockDim.y * gridDim.y, blockDim.z * gridDim.z);
  const uint3 at = make_uint3(blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y,
                              blockIdx.z * blockDim.z + threadIdx.z);
  const unsigned i = (at.z * size.y + at.y) * size.x + at.x;
  const unsigned lane = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  __stcs(out + i,
         make_uint4(at.x, at.y, at.z, __shfl_sync(0xffffffffu, lane, 9)));  // warps run along x, then y, then z
}

void test_indices() {
  const dim3 grid(3, 2, 4), block(4, 2, 8);
  Buffer<uint4> out(12 * 4 * 32);
  launch("indices", indices, grid, block, nullptr, out.data);
  finish();
  int wrong = 0;
  for (unsigned i = 0; i < out.size; ++i) {
    const unsigned x = i % 12, y = i / 12 % 4, z = i / 48, lane = (z % 8 * 2 + y % 2) * 4 + x % 4;
    const uint4 v = out[i];
    wrong += v.x != x || v.y != y || v.z != z || v.w != lane / 32 * 32 + 9;
  }
  expect(wrong == 0, "3-D indices");
}

void test_launch() {
  Buffer<float> x(32, 1.0f), out(1, -1.0f);
  launch("row_sum", row_sum<32>, 0, 32, nullptr, x.data, out.data, 32);
  launch("row_sum", row_sum<32>, dim3(1, 0), 32, nullptr, x.data, out.data, 32);
  finish();
  expect(out[0] == -1.0f, "an empty grid launches nothing");
  std::string message;
  try {
    launch("row_sum", row_sum<32>, 1, 2048, nullptr, x.data, out.data, 32);
  } catch (const std::runtime_error& e) {
    message = e.what();
  }
  expect(message.find("row_sum") != std::string::npos && message.find("invalid") != std::string::npos, message);
  expect(cudaGetLastError() == cudaSuccess, "the error was taken away");
  expect(warpup::sm_count() > 0 && warpup::sm_count() == warpup::sm_count(), "sm_count");
  expect(warpup::ceil_div(0, 256) == 0 && warpup::ceil_div(257, 256) == 2, "ceil_div");
}

}  // namespace

#ifndef __CUDACC__
#include "hostcuda/selftest_faults.h"
#endif

int main() {
  test_reduction();
  test_shuffles<int>("int"), test_shuffles<unsigned>("unsigned"), test_shuffles<long long>("long long");
  test_shuffles<unsigned long>("unsigned long"), test_shuffles<float>("float"), test_shuffles<double>("double");
  test_votes();
  test_float16();
  test_atomics();
  test_indices();
  test_launch();
#ifndef __CUDACC__
  test_faults();
#endif
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
