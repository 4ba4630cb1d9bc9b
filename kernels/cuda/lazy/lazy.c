// NVIDIA's libraries, looked for at the first call of one of their functions.
//
// build.rs defines every function of theirs as a jump through a slot, which first leads here. When a
// library or a function is not there, the slot gets a function that says so with an error of that
// library, and the caller goes on without CUDA.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stddef.h>

static const struct {
    int library;
    const char* name;
} FUNCTIONS[] = {
#include "lazy_names.h"
};

extern void* keepwell_lazy_slots[] __attribute__((visibility("hidden")));

// Errors of each library that come closest to "not there".
static int no_device(void) { return 100; }      // CUDA_ERROR_NO_DEVICE
static int not_initialized(void) { return 1; }  // CUBLAS_STATUS_NOT_INITIALIZED
static int no_generator(void) { return 203; }   // CURAND_STATUS_INITIALIZATION_FAILED
static int internal_error(void) { return 11; }  // NVRTC_ERROR_INTERNAL_ERROR

static const struct {
    const char* names[4];
    int (*fallback)(void);
} LIBRARIES[] = {
    {{"libcuda.so.1", "libcuda.so"}, no_device},
    {{"libcublas.so.13", "libcublas.so.12", "libcublas.so"}, not_initialized},
    {{"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}, not_initialized},
    {{"libcurand.so.10", "libcurand.so"}, no_generator},
    {{"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"}, internal_error},
};

static void* open_library(int library) {
    const char* const* names = LIBRARIES[library].names;
    for (int i = 0; i < 4 && names[i] != NULL; i++) {
        // Once open, the same handle comes back.
        void* handle = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL);
        if (handle != NULL) return handle;
    }
    return NULL;
}

__attribute__((visibility("hidden"))) void* keepwell_lazy_resolve(uint64_t index) {
    const int library = FUNCTIONS[index].library;
    void* handle = open_library(library);
    void* found = handle != NULL ? dlsym(handle, FUNCTIONS[index].name) : NULL;
    if (found == NULL) found = (void*)LIBRARIES[library].fallback;
    // Threads that come at the same time find the same.
    __atomic_store_n(&keepwell_lazy_slots[index], found, __ATOMIC_RELEASE);
    return found;
}

// Keeps the arguments while the function is looked for, then goes on to it. The index lies on the
// stack, above the address to return to.
__asm__(
    ".text\n"
    ".globl keepwell_lazy_enter\n"
    ".hidden keepwell_lazy_enter\n"
    ".type keepwell_lazy_enter, @function\n"
    "keepwell_lazy_enter:\n"
    "pushq %rax\npushq %rdi\npushq %rsi\npushq %rdx\npushq %rcx\npushq %r8\npushq %r9\n"
    "subq $136, %rsp\n"
    "movups %xmm0, (%rsp)\nmovups %xmm1, 16(%rsp)\nmovups %xmm2, 32(%rsp)\nmovups %xmm3, 48(%rsp)\n"
    "movups %xmm4, 64(%rsp)\nmovups %xmm5, 80(%rsp)\nmovups %xmm6, 96(%rsp)\nmovups %xmm7, 112(%rsp)\n"
    "movq 192(%rsp), %rdi\n"
    "call keepwell_lazy_resolve\n"
    "movq %rax, %r11\n"
    "movups (%rsp), %xmm0\nmovups 16(%rsp), %xmm1\nmovups 32(%rsp), %xmm2\nmovups 48(%rsp), %xmm3\n"
    "movups 64(%rsp), %xmm4\nmovups 80(%rsp), %xmm5\nmovups 96(%rsp), %xmm6\nmovups 112(%rsp), %xmm7\n"
    "addq $136, %rsp\n"
    "popq %r9\npopq %r8\npopq %rcx\npopq %rdx\npopq %rsi\npopq %rdi\npopq %rax\n"
    "addq $8, %rsp\n"
    "jmp *%r11\n");
