// Runs a launch: block after block in a random order; within a block the threads are fibers, and whenever one waits or
// ends, chance picks which of those that can run goes on. So code that leans on an order shows it in some run, and
// WARPUP_HOSTCUDA_SEED repeats that run.
#include "executor.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "fiber.h"
#include "sanitizer_hooks.h"
#include "symbols.h"
#include "warp_semantics.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace hostcuda {
namespace {

enum class State : uint8_t { ready, at_barrier, at_warp_op, ended };

struct Thread {
  Context context;
  uint3 index;
  State state;
  Op op;
  unsigned mask;
  int argument, width;
  uint64_t value, result;
  Where where;
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack;
#endif
};

struct Warp {
  unsigned waiting = 0, live = 0;  // lanes
};

// A launch cannot run inside another, so one set of all this is enough.
const Launch* launch = nullptr;
std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<int> ready;
int thread_count = 0, running = -1, at_barrier = 0, barrier_votes = 0;
Context scheduler;
#ifdef __SANITIZE_ADDRESS__
void* scheduler_fake_stack;
const void* scheduler_stack;
size_t scheduler_stack_size;
#endif

uint64_t seed = 0, random_state = 0;

uint64_t random_bits() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
uint64_t random_below(uint64_t n) { return ((random_bits() >> 32) * n) >> 32; }

void seed_once() {
  static const bool done = [] {
    const char* given = std::getenv("WARPUP_HOSTCUDA_SEED");
    const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
    seed = given != nullptr ? std::strtoull(given, nullptr, 0)
                            : (static_cast<uint64_t>(now) * 2654435761u) >> 24 & 0xffffffff;
    random_state = seed;
    // A wrong result is noticed by the test, not here: let every failing process say how to repeat it.
    on_exit(
        [](int status, void*) {
          if (status != 0) std::fprintf(stderr, "hostcuda: WARPUP_HOSTCUDA_SEED=%" PRIu64 " repeats this run\n", seed);
        },
        nullptr);
    return true;
  }();
  (void)done;
}

std::string text(Where where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  return std::string(slash != nullptr ? slash + 1 : where.file_name()) + ":" + std::to_string(where.line());
}

std::string text(uint3 v) {
  char buffer[48];
  std::snprintf(buffer, sizeof buffer, "(%u,%u,%u)", v.x, v.y, v.z);
  return buffer;
}

[[noreturn]] void report(const std::string& message) {
  std::string at = "hostcuda: ";
  if (launch != nullptr) at += "kernel " + function_name(launch->kernel) + ", block " + text(blockIdx);
  if (running >= 0) at += ", thread " + text(threads[running].index);
  std::fprintf(stderr, "%s: %s\nhostcuda: WARPUP_HOSTCUDA_SEED=%" PRIu64 " repeats this run\n", at.c_str(),
               message.c_str(), seed);
  std::abort();
}

// ---- switching ----
HOSTCUDA_RAW void to_scheduler([[maybe_unused]] bool for_good) {
  Thread& self = threads[running];
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(for_good ? nullptr : &self.fake_stack, scheduler_stack, scheduler_stack_size);
#endif
  swap(self.context, scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#endif
}

HOSTCUDA_RAW void to_thread(int i) {
  running = i;
  threadIdx = threads[i].index;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, stack_of(i), kStack);
#endif
  swap(scheduler, threads[i].context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
  running = -1;
}

void make_ready(int i) {
  threads[i].state = State::ready;
  ready.push_back(i);
}

// ---- warp-wide instructions ----

// Ends the instruction in which thread `i` waits, if all the lanes that it needs are there.
void try_complete(int i) {
  const Thread& t = threads[i];
  Warp& warp = warps[i / kWarp];
  const int base = i / kWarp * kWarp;
  const unsigned missing = t.mask & ~warp.live, lanes = t.mask & warp.live;
  if (needs_all(t.op) && missing != 0) {
    char mask[64];
    std::snprintf(mask, sizeof mask, "lane %d, which mask 0x%08x", std::countr_zero(missing), t.mask);
    report(std::string(name_of(t.op)) + " at " + text(t.where) + ": " + mask + " names, has exited or never was");
  }
  if ((warp.waiting & lanes) != lanes) return;
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const Thread& other = threads[base + std::countr_zero(rest)];
    if (other.op != t.op || other.mask != t.mask) return;  // still in another one; it may come
  }
  uint64_t values[kWarp];
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    values[lane] = threads[base + lane].value;
  }
  warp.waiting &= ~lanes;
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    Thread& other = threads[base + lane];
    other.result = warp_result(other.op, lane, other.argument, other.width, lanes, values);
    make_ready(base + lane);
  }
}

// ---- a block ----
HOSTCUDA_RAW void thread_main() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  launch->body(launch->arguments);
  const int self = running;
  threads[self].state = State::ended;
  Warp& warp = warps[self / kWarp];
  warp.live &= ~(1u << self % kWarp);
  for (unsigned rest = warp.waiting; rest != 0; rest &= rest - 1) {
    const int other = self / kWarp * kWarp + std::countr_zero(rest);
    if (threads[other].state == State::at_warp_op) try_complete(other);  // an earlier one may have freed it
  }
  to_scheduler(true);
  __builtin_unreachable();
}

// No thread can run, some wait: says for what, once for each place.
[[noreturn]] void report_deadlock() {
  std::string message = at_barrier > 0 ? "divergent __syncthreads or warp instruction, no thread can go on:"
                                       : "divergent warp instruction, no thread can go on:";
  std::vector<std::pair<std::string, std::vector<int>>> groups;
  for (int i = 0; i < thread_count; ++i) {
    const Thread& t = threads[i];
    std::string what = "exited";
    if (t.state == State::at_barrier) what = "at __syncthreads, " + text(t.where);
    if (t.state == State::at_warp_op) {
      char mask[32];
      std::snprintf(mask, sizeof mask, " with mask 0x%08x, ", t.mask);
      what = std::string("at ") + name_of(t.op) + mask + text(t.where);
    }
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == what; });
    if (group == groups.end()) group = groups.insert(groups.end(), {what, {}});
    group->second.push_back(i);
  }
  for (const auto& [what, members] : groups) {
    message += "\n  " + std::to_string(members.size()) + " thread(s) " + what + ", the first " +
               text(threads[members[0]].index);
  }
  report(message);
}

void run_block() {
  ready.clear();
  at_barrier = barrier_votes = 0;
  std::fill(warps.begin(), warps.end(), Warp{});
  for (int i = 0; i < thread_count; ++i) {
    // Tops at the same offset in a page would all fall into the same few cache lines' sets.
    start(threads[i].context, stack_of(i), kStack - static_cast<size_t>(i) * 320 % 16384, thread_main);
    warps[i / kWarp].live |= 1u << i % kWarp;
    make_ready(i);
  }
  while (!ready.empty()) {
    std::swap(ready[random_below(ready.size())], ready.back());
    const int next = ready.back();
    ready.pop_back();
    to_thread(next);
  }
  const auto ended = [](const Thread& t) { return t.state == State::ended; };
  if (!std::all_of(threads.begin(), threads.begin() + thread_count, ended)) report_deadlock();
}

// The __shared__ variables beside a kernel: which of them it reaches through its helpers is not known.
const std::vector<Region>& shared_memory(const void* kernel) {
  static std::map<const void*, std::vector<Region>> known;
  const auto [entry, is_new] = known.try_emplace(kernel);
  if (is_new) {
    if (function_name(kernel) == "?") report("the program is stripped: its shared memory cannot be found");
    entry->second = shared_variables(kernel);
  }
  return entry->second;
}

}  // namespace

void fail(Where where, const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  report(where.line() == 0 ? message : message + (" at " + text(where)));
}

int threads_in_block() { return thread_count; }
unsigned live_lanes() { return warps[running / kWarp].live; }

void yield() {
  if (running < 0) return;  // a function shared with the host
  make_ready(running);
  to_scheduler(false);
}

void yield_sometimes() {
  if (running >= 0 && random_bits() >> 63 != 0) yield();
}

int block_barrier(int predicate, Where where) {
  if (running < 0) fail(where, "a barrier outside a kernel");
  Thread& self = threads[running];
  self.state = State::at_barrier;
  self.where = where;
  barrier_votes += predicate != 0;
  if (++at_barrier == thread_count) {
    for (int i = 0; i < thread_count; ++i) {
      const Where other = threads[i].where;
      if (other.line() != where.line() || other.column() != where.column() ||
          std::strcmp(other.file_name(), where.file_name()) != 0) {
        report("divergent __syncthreads: this thread waits at " + text(where) + ", thread " + text(threads[i].index) +
               " at " + text(other));
      }
      threads[i].result = static_cast<uint64_t>(barrier_votes);
      make_ready(i);
    }
    at_barrier = barrier_votes = 0;
  }
  to_scheduler(false);
  return static_cast<int>(self.result);
}

uint64_t warp_op(Op op, unsigned mask, uint64_t value, int argument, int width, Where where) {
  if (running < 0) fail(where, "a warp-wide instruction outside a kernel");
  Thread& self = threads[running];
  const unsigned lane = static_cast<unsigned>(running % kWarp);
  if ((mask >> lane & 1) == 0) fail(where, "%s: mask 0x%08x lacks the calling lane %u", name_of(op), mask, lane);
  if (width < 1 || width > kWarp || (width & (width - 1)) != 0) fail(where, "%s: width %d", name_of(op), width);
  self.state = State::at_warp_op;
  self.op = op;
  self.mask = mask;
  self.value = value;
  self.argument = argument;
  self.width = width;
  self.where = where;
  warps[running / kWarp].waiting |= 1u << lane;
  try_complete(running);
  to_scheduler(false);
  return self.result;
}

void run(const Launch& requested) {
  seed_once();
  if (launch != nullptr) report("a launch inside a kernel");
  launch = &requested;
  gridDim = requested.grid;
  blockDim = requested.block;
  thread_count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  threads.resize(std::max<size_t>(threads.size(), thread_count));
  warps.assign((thread_count + kWarp - 1) / kWarp, {});
  for (int i = 0; i < thread_count; ++i) {
    const unsigned u = static_cast<unsigned>(i), row = u / blockDim.x;
    threads[i].index = {u % blockDim.x, row % blockDim.y, row / blockDim.y};
  }
  const std::vector<Region>& regions = shared_memory(launch->kernel);
  std::vector<uint64_t> order(uint64_t(gridDim.x) * gridDim.y * gridDim.z);
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
  for (const uint64_t block : order) {
    const uint64_t row = block / gridDim.x;
    blockIdx = {static_cast<unsigned>(block % gridDim.x), static_cast<unsigned>(row % gridDim.y),
                static_cast<unsigned>(row / gridDim.y)};
    for (const Region& r : regions) std::memset(r.begin, 0xff, r.bytes);
    run_block();
  }
  launch = nullptr;
}

}  // namespace hostcuda
