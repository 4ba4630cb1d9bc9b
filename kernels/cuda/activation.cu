// rms_norm: y = x / sqrt(mean(x^2) + eps) * w     reads 4 T C + 4 C bytes, writes 4 T C
// add:      z = x + y                             reads 8 T C, writes 4 T C
// silu_mul: z = g / (1 + exp(-g)) * u             reads 8 T F, writes 4 T F
//
// Rows of float, row-major. Each moves what it must and no more: the floor is these bytes over the
// card's bandwidth (rms_norm reads x twice; the second time from cache).
#include "common.cuh"

constexpr uint32_t NORM_THREADS = 256;

// A block for each row.
KERNEL(rms_norm, RmsNormArgs, NORM_THREADS) {
    SHARED(memory);
    float* sums = reinterpret_cast<float*>(memory); // of each warp
    const float* x = a.x + uint64_t(blockIdx.x) * a.width;
    float* out = a.out + uint64_t(blockIdx.x) * a.width;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) sum += x[i] * x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    sum = 0.0f;
    for (uint32_t i = 0; i < blockDim.x / WARP; i++) sum += sums[i];
    const float scale = 1.0f / sqrtf(sum / static_cast<float>(a.width) + a.eps);
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) out[i] = x[i] * scale * a.weight[i];
}

constexpr uint32_t ELEMENT_THREADS = 256;

__device__ inline uint64_t element() { return uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

KERNEL(add, AddArgs, ELEMENT_THREADS) {
    const uint64_t i = element();
    if (i < a.len) a.out[i] = a.x[i] + a.y[i];
}

KERNEL(silu_mul, SiluMulArgs, ELEMENT_THREADS) {
    const uint64_t i = element();
    if (i >= a.rows * a.half) return;
    const float* gate = a.gate_up + i / a.half * 2 * a.half + i % a.half;
    a.out[i] = *gate / (1.0f + expf(-*gate)) * gate[a.half];
}
