// Threads of execution on one processor thread, each with a stack of its own, that hand control to one another.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation __attribute__((visibility("hidden"))) {

struct Fiber {
#if defined(__x86_64__)
  // Where it stopped. All other registers are kept by whoever calls switch_fiber.
  const void* stack_pointer = nullptr;
  const void* instruction = nullptr;
  const void* frame_pointer = nullptr;
#else
  ucontext_t context;
#endif
  const void* bottom = nullptr;  // of its stack; for the host's own, once a fiber has run
  size_t size = 0;
};

// Makes `fiber` start at `entry`, which must never return, on its own stack. Stacks are numbered and kept for reuse; a
// page that no one may touch lies below each.
void prepare(Fiber& fiber, int stack, void (*entry)());

// What a fiber calls first; `host` is the fiber of the thread that runs them all.
void fiber_started(Fiber& host);

// Forgets what unfinished fibers left on their stacks.
void clear_stacks();

#if defined(__x86_64__)
inline __attribute__((always_inline)) void swap_stacks(Fiber& from, Fiber& to) {
  Fiber *leaving = &from, *entering = &to;
  asm volatile(
      "leaq 1f(%%rip), %%rax\n\t"
      "movq %%rsp, 0(%[leaving])\n\t"
      "movq %%rax, 8(%[leaving])\n\t"
      "movq %%rbp, 16(%[leaving])\n\t"
      "movq 16(%[entering]), %%rbp\n\t"
      "movq 0(%[entering]), %%rsp\n\t"
      "jmp *8(%[entering])\n"
      "1:"
      : [leaving] "+D"(leaving), [entering] "+S"(entering)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2",
        "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
        "memory", "cc");
}
#else
inline void swap_stacks(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#endif

// Continues `to` where it stopped; returns when something continues `from`. Inlined, since a processor foresees returns
// only to where it was called from.
inline __attribute__((always_inline)) void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.bottom, to.size);
  swap_stacks(from, to);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  swap_stacks(from, to);
#endif
}

}  // namespace emulation
