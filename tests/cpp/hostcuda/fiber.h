// Fibers: several stacks on one host thread, switched by hand. On x86-64 the switch is a dozen instructions;
// swapcontext, used elsewhere, makes two system calls.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#define HOSTCUDA_RAW __attribute__((no_sanitize_address))
#else
#define HOSTCUDA_RAW
#endif

namespace hostcuda {

#ifdef __x86_64__
struct Context {
  void* stack_pointer;
};

// Saves what the ABI says a callee preserves, then continues where `to` was saved.
__attribute__((naked, noinline)) inline void swap_stacks(void** /*from: rdi*/, void* /*to: rsi*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

inline void start(Context& context, char* stack, size_t bytes, void (*entry)()) {
  auto** top = reinterpret_cast<void**>(stack + bytes);  // aligned to 16; `entry` starts as if called, 8 below that
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context.stack_pointer = top;
}

inline void swap(Context& from, Context& to) { swap_stacks(&from.stack_pointer, to.stack_pointer); }
#else
struct Context {
  ucontext_t state;
};
inline void start(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}
inline void swap(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
#endif

#ifdef __SANITIZE_ADDRESS__
inline constexpr size_t kStack = 256 << 10;  // its frames are several times larger
#else
inline constexpr size_t kStack = 128 << 10;
#endif

// Stacks for the threads of a block, each above a page that faults, so that an overflow does not go unnoticed.
inline char* stack_of(int thread) {
  constexpr size_t kGuard = 4096 * 16, kEach = kStack + kGuard;  // 64 KiB pages exist
  constexpr int kThreads = 1024;
  static char* const all = [] {
    void* p =
        mmap(nullptr, kThreads * kEach, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    for (int i = 0; i < kThreads; ++i) mprotect(static_cast<char*>(p) + i * kEach, kGuard, PROT_NONE);
    return static_cast<char*>(p);
  }();
  return all + thread * kEach + kGuard;
}

}  // namespace hostcuda
