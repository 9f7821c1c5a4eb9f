// From one stack to another: what a fiber needs, for the two kinds of processors that the tests run on.
#pragma once

namespace cuda_host {

// Saves the registers that a call keeps on the stack, and the stack's top in *from; goes on where `to` was saved.
extern "C" __attribute__((visibility("hidden"))) void cuda_host_switch(void** from, void* to) __asm__("cuda_host_switch");
#if defined(__x86_64__)
constexpr int SAVED = 8, RETURN_TO = 6;  // words on a new stack, and the one that holds where to go
__asm__(R"(
    .text
cuda_host_switch:
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
)");
#elif defined(__aarch64__)
constexpr int SAVED = 20, RETURN_TO = 11;
__asm__(R"(
    .text
    .p2align 2
cuda_host_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "fibers are written for x86-64 and 64-bit Arm"
#endif

}  // namespace cuda_host
