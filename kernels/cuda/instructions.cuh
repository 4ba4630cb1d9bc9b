// Instructions that C++ has no word for, under one name on a device and in the emulator: matrix
// products on tensor cores, loads of their operands, copies that go on while a warp computes. All
// architectures from sm_80 on have them.
#pragma once
#include <stdint.h>

#ifndef KEEPWELL_EMULATED
__device__ inline uint32_t shared_address(const void* address) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(address));
}

// c (16, 8) += a (16, 16) b (16, 8), halves into floats. Lane l, with g = l / 4 and t = 2 (l % 4), holds
//   a: rows g, g + 8, g, g + 8, columns t.. and (the last two) t + 8..   b: rows t.., t + 8.., column g
//   c: rows g, g, g + 8, g + 8, columns t, t + 1, t, t + 1
__device__ inline void mma_f16(float (&c)[4], const uint32_t* a, const uint32_t* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c (16, 8) += a (16, 32) b (32, 8), unsigned by signed bytes into integers. Lane l, with g = l / 4 and
// t = 4 (l % 4), holds of a and b what mma_f16 says, 4 bytes from t and from t + 16 on; of c the same.
__device__ inline void mma_u8_s8(int32_t (&c)[4], const uint32_t* a, const uint32_t* b) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices (8, 8) of halves. Lane l names row l % 8 of number l / 8, in shared memory and aligned to
// 16 bytes; it gets of each one row l / 4, columns 2 (l % 4)...
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of their transposes: column l / 4, rows 2 (l % 4)...
__device__ inline void load_transposed(uint32_t (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts a copy of 4, 8 or 16 bytes to shared memory, both sides aligned to that; zeros unless `exists`.
// Done for this thread once it waited for the copy's group, for others after a barrier behind that.
template <uint32_t BYTES>
__device__ inline void copy_async(void* to, const void* from, bool exists) {
    const uint32_t address = shared_address(to), taken = exists ? BYTES : 0;
    if (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     ::"r"(address), "l"(from), "r"(taken)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     ::"r"(address), "l"(from), "n"(BYTES), "r"(taken)
                     : "memory");
    }
}

// Ends a group: what this thread copied since the last one.
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups but the last PENDING.
template <uint32_t PENDING>
__device__ inline void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four products of unsigned codes with signed activations.
__device__ inline int32_t dot4(uint32_t codes, int32_t x, int32_t sum) {
    int32_t out;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(codes), "r"(x), "r"(sum));
    return out;
}
#endif
