// What all kernels share: the declaration of a kernel, warps, and the rotation.
#pragma once
#ifndef KEEPWELL_EMULATED
#include <cuda_fp16.h>
// All shared memory is dynamic: the launcher says how much, and the emulator can guard its end.
#define KERNEL(name, Args, threads) \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Args a)
#define SHARED(name) extern __shared__ __align__(16) uint8_t name[]
#endif
#include "args.h"
#include "instructions.cuh"

constexpr uint32_t WARP = 32;
constexpr uint32_t FULL_WARP = 0xffffffffu;

__device__ inline float warp_sum(float x) {
    for (uint32_t d = WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(FULL_WARP, x, d);
    return x;
}

// A warp cut into teams of D/8 threads, each with 8 channels of one vector. Threads that are left
// over belong to no team, yet take part in shuffles.
struct Team {
    uint32_t size;  // threads of a team
    uint32_t count; // teams of a warp
    uint32_t index; // this thread's team; `count` for those left over
    uint32_t lane;  // this thread's place in its team
    uint32_t top;   // the largest power of two below `size`

    __device__ explicit Team(uint32_t head_dim) {
        size = head_dim / 8;
        count = WARP / size;
        index = threadIdx.x % WARP / size;
        lane = threadIdx.x % WARP % size;
        top = 1;
        while (2 * top < size) top *= 2;
    }

    __device__ bool works() const { return index < count; }

    // The sum over the team, for all its threads. The whole warp must call.
    __device__ float sum(float x) const {
        for (uint32_t d = top; d > 0; d /= 2) {
            const float y = __shfl_down_sync(FULL_WARP, x, d);
            if (lane + d < size) x += y;
        }
        return __shfl_sync(FULL_WARP, x, threadIdx.x % WARP - lane);
    }
};

// Term i of the Golay-Rudin-Shapiro sequence: hadamard.rs.
__device__ inline float sign_of(uint32_t i) { return __popc(i & (i >> 1)) % 2 == 1 ? -1.0f : 1.0f; }

// The orthonormal Walsh-Hadamard transform of `count` vectors x (count, D) in shared memory, in runs
// of the largest power of two that divides D. All threads of a block of at least D must call; the
// last thing done is a barrier.
__device__ inline void transform(float* x, uint32_t count, uint32_t head_dim) {
    const uint32_t run = head_dim & (~head_dim + 1), i = threadIdx.x;
    for (uint32_t half = 1; half < run; half *= 2) {
        for (uint32_t row = 0; row < count; row++) {
            float mine = 0.0f, other = 0.0f;
            if (i < head_dim) {
                mine = x[row * head_dim + i];
                other = x[row * head_dim + (i ^ half)];
            }
            __syncthreads();
            if (i < head_dim) x[row * head_dim + i] = i & half ? other - mine : mine + other;
        }
        __syncthreads();
    }
    const float scale = 1.0f / sqrtf(static_cast<float>(run));
    for (uint32_t row = 0; row < count; row++) {
        if (i < head_dim) x[row * head_dim + i] *= scale;
    }
    __syncthreads();
}
