// What the executor must find: races, reads of what nobody wrote, waits that never end, misaligned accesses.
#pragma once

namespace {

// ---- races: exposed by the order, not reported ----
template <bool kFirstBarrier, bool kSecondBarrier>
__global__ void reverse_twice(float* x) {
  __shared__ float s[64];
  for (int round = 0; round < 2; ++round) {
    s[threadIdx.x] = x[threadIdx.x];
    if (kFirstBarrier) __syncthreads();
    x[threadIdx.x] = s[63 - threadIdx.x];
    if (kSecondBarrier) __syncthreads();
  }
}

template <bool kFirstBarrier, bool kSecondBarrier>
int wrong_runs() {
  int wrong = 0;
  for (int run = 0; run < 20; ++run) {
    Buffer<float> x(64);
    for (int i = 0; i < 64; ++i) x[i] = static_cast<float>(i);
    launch("reverse_twice", reverse_twice<kFirstBarrier, kSecondBarrier>, 1, 64, nullptr, x.data);
    bool right = true;
    for (int i = 0; i < 64; ++i) right = right && x[i] == static_cast<float>(i);
    wrong += !right;
  }
  return wrong;
}

__global__ void implicit_warp(int* out) {  // takes the lanes of a warp for simultaneous
  __shared__ int s[32];
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  __threadfence_block();
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}

__global__ void order_of_blocks(int* next, int* out) { out[blockIdx.x] = (*next)++; }

// ---- shared memory starts as poison in every block, wherever it is declared ----
inline unsigned* shared_of_inline() {
  __shared__ unsigned s[4];
  return s;
}
template <class T>
T* shared_of_template() {
  alignas(16) __shared__ T s[4];
  return s;
}
static unsigned* shared_of_static() {
  __shared__ unsigned s[4], t[4];
  return threadIdx.x % 2 ? s : t;
}

__global__ void count_clean(int* clean) {
  __shared__ float s[2][32];
  {
    __shared__ double s[32];  // a second one of that name
    *clean += std::isnan(s[threadIdx.x]);
    s[threadIdx.x] = 1;
  }
  *clean += std::isnan(s[1][threadIdx.x]);
  s[1][threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x >= 4) return;
  for (unsigned* p : {shared_of_inline(), shared_of_template<unsigned>(), shared_of_static()}) {
    *clean += p[threadIdx.x] == 0xffffffffu;
    p[threadIdx.x] = 0;
  }
}

__global__ void never_written(unsigned* out) {
  __shared__ unsigned s[32];
  out[threadIdx.x] = s[threadIdx.x];
}

// ---- what must abort ----
enum Fault {
  kHalfAtBarrier,
  kTwoBarriers,
  kExitBeforeBarrier,
  kBarrierAgainstShuffle,
  kLaneExited,
  kLaneNeverWas,
  kLaneElsewhere,
  kNotInMask,
  kWidth,
  kMisalignedLoad,
  kMisalignedStore,
  kMisalignedAtomic,
  kMisalignedPlain,
  kSharedOverrun,
};

__global__ void faulty(Fault fault, float* x) {
  __shared__ float s[8];
  const int t = static_cast<int>(threadIdx.x);
  const unsigned all = 0xffffffffu;
  float v = 1;
  switch (fault) {
    case kHalfAtBarrier:
      if (t < 16) __syncthreads();
      break;
    case kTwoBarriers:
      if (t < 16)
        __syncthreads();
      else
        __syncthreads();
      break;
    case kExitBeforeBarrier:
      if (t == 3) return;
      __syncthreads();
      break;
    case kBarrierAgainstShuffle:
      if (t < 16)
        __syncthreads();
      else
        v = __shfl_sync(all, v, 0);
      break;
    case kLaneExited:
      if (t == 5) return;
      v = __shfl_xor_sync(all, v, 1);
      break;
    case kLaneNeverWas:
      v = __shfl_xor_sync(all, v, 1);
      break;
    case kLaneElsewhere:
      v = t < 16 ? __shfl_xor_sync(all, v, 1) : __shfl_down_sync(all, v, 1);
      break;
    case kNotInMask:
      v = __shfl_xor_sync(0xffffu, v, 1);
      break;
    case kWidth:
      v = __shfl_xor_sync(all, v, 1, 12);
      break;
    case kMisalignedLoad:
      v = __ldg(reinterpret_cast<const float4*>(x + 1)).x;
      break;
    case kMisalignedStore:
      __stcs(reinterpret_cast<uint2*>(x + 1), make_uint2(1, 2));
      break;
    case kMisalignedAtomic:
      atomicAdd(reinterpret_cast<double*>(x + 1), 1.0);
      break;
    case kMisalignedPlain:
      v = reinterpret_cast<const float4*>(x + 1)->x;
      break;
    case kSharedOverrun:
      s[t] = v;
      break;
  }
  x[t] = v;
}

// Runs it in a child, which must abort and say all that `needles` has.
void expect_abort(Fault fault, int threads, std::initializer_list<const char*> needles) {
  int ends[2];
  if (pipe(ends) != 0) return expect(false, "pipe");
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    Buffer<float> x(64);
    launch("faulty", faulty, 1, threads, nullptr, fault, x.data);
    _exit(0);
  }
  close(ends[1]);
  std::string said;
  char chunk[512];
  for (ssize_t n; (n = read(ends[0], chunk, sizeof chunk)) > 0;) said.append(chunk, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  bool ok = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
  for (const char* needle : needles) ok = ok && said.find(needle) != std::string::npos;
  expect(ok, "fault " + std::to_string(fault) + " said: " + said);
}

void test_faults() {
  expect(wrong_runs<true, true>() == 0, "correct barriers");
  expect(wrong_runs<false, true>() > 15, "a missing first barrier shows");
  expect(wrong_runs<true, false>() > 15, "a missing second barrier shows");
  Buffer<int> out(32);
  launch("implicit_warp", implicit_warp, 1, 32, nullptr, out.data);
  int wrong = 0;
  for (int i = 0; i < 32; ++i) wrong += out[i] != (i ^ 1);
  expect(wrong > 0, "lanes are not simultaneous");
  int next = 0, descents = 0;
  launch("order_of_blocks", order_of_blocks, 32, 1, nullptr, &next, out.data);
  for (int i = 1; i < 32; ++i) descents += out[i] < out[i - 1];
  expect(next == 32 && descents > 4, "blocks run in a random order");

  int clean = 0;
  launch("count_clean", count_clean, 5, 32, nullptr, &clean);
  expect(clean == 5 * (64 + 12), "shared memory is poisoned before each block: " + std::to_string(clean));
  Buffer<unsigned> unwritten(32);
  launch("never_written", never_written, 1, 32, nullptr, unwritten.data);
  expect(unwritten[31] == 0xffffffffu, "poison where nobody writes");

  expect_abort(kHalfAtBarrier, 32, {"faulty", "block (0,0,0)", "divergent __syncthreads", "16 thread(s) at", "SEED="});
  expect_abort(kTwoBarriers, 32, {"faulty", "divergent __syncthreads", "selftest_faults.h:"});
  expect_abort(kExitBeforeBarrier, 64, {"divergent __syncthreads", "1 thread(s) exited, the first (3,0,0)"});
  expect_abort(kBarrierAgainstShuffle, 32, {"divergent __syncthreads", "at __shfl_sync with mask 0xffffffff"});
  expect_abort(kLaneExited, 32, {"faulty", "thread (", "__shfl_xor_sync", "lane 5"});
  expect_abort(kLaneNeverWas, 24, {"__shfl_xor_sync", "lane 24"});
  expect_abort(kLaneElsewhere, 32, {"16 thread(s) at __shfl_xor_sync", "16 thread(s) at __shfl_down_sync"});
  expect_abort(kNotInMask, 32, {"mask 0x0000ffff lacks the calling lane"});
  expect_abort(kWidth, 32, {"width 12"});
  expect_abort(kMisalignedLoad, 1, {"misaligned", "thread (0,0,0)", "16 bytes need alignment 16"});
  expect_abort(kMisalignedStore, 1, {"misaligned", "8 bytes need alignment 8"});
  expect_abort(kMisalignedAtomic, 1, {"misaligned", "8 bytes need alignment 8"});
#ifdef WARPUP_HOSTCUDA_CHECKED  // built with -fsanitize=alignment,bounds -fno-sanitize-recover=all
  expect_abort(kMisalignedPlain, 1, {"misaligned", "thread (0,0,0)", "'const struct float4'"});
  expect_abort(kSharedOverrun, 9, {"index 8 out of bounds of 'float [8]'", "thread (8,0,0)"});
#endif
}

}  // namespace
