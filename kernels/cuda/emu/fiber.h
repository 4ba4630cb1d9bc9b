// Two stacks that take turns. By hand on x86-64, where a turn costs nanoseconds; elsewhere by ucontext.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __x86_64__
struct Fiber {
    void* stack = nullptr;
};

extern "C" void keepwell_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.globl keepwell_switch
.hidden keepwell_switch
.type keepwell_switch, @function
keepwell_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size keepwell_switch, .-keepwell_switch
)");

inline void switch_fiber(Fiber& from, Fiber& to) { keepwell_switch(&from.stack, to.stack); }

inline Fiber new_fiber(uint8_t* stack, size_t bytes, void (*run)()) {
    // As `keepwell_switch` leaves a stack: six registers, then where to return to; the ABI wants the
    // stack 8 bytes off 16 at a function's start.
    uintptr_t* top = reinterpret_cast<uintptr_t*>(stack + bytes) - 10;
    for (int i = 0; i < 10; i++) top[i] = 0;
    top[6] = reinterpret_cast<uintptr_t>(run);
    return {top};
}
#else
#include <ucontext.h>

struct Fiber {
    ucontext_t context;
};

inline void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

inline Fiber new_fiber(uint8_t* stack, size_t bytes, void (*run)()) {
    Fiber fiber;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run, 0);
    return fiber;
}
#endif
