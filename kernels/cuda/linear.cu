// y = x W^T with weights of 4 or 8 bits and activations of 16: linear/packed.rs on the device.
//
//   y[t, n] = sum over blocks of d[n] * (s[t] * dot(code, xq)) + m[n] * (s[t] * sum(xq))
//
// W (N, K/32): 16 or 32 bytes of codes (weights k and k + 16 of a block share a byte when they have 4
// bits), and (d, m) as halves. Activations (T, K/32): 32 high bytes, 32 low bytes, s, s * sum(xq).
//
// A warp takes a row of W and up to 8 rows of x; a lane takes a block at a time, from loads of 128
// bits. Decoding, which is bound by memory, reads W once: N K (bits + 1) / 8 bytes, the floor. More rows
// of x are for linear_mma.cu.
#include "common.cuh"

constexpr uint32_t LINEAR_WARPS = 4;
constexpr uint32_t LINEAR_THREADS = LINEAR_WARPS * WARP;
constexpr uint32_t GROUP_ROWS = 8;
constexpr float LARGEST_ACTIVATION = 127.0f * 256.0f; // its high byte, rounded, is 127

// A warp codes a block. Reads 128 bytes, writes 72.
KERNEL(quantize_activations, QuantizeArgs, LINEAR_THREADS) {
    const uint64_t block = uint64_t(blockIdx.x) * LINEAR_WARPS + threadIdx.x / WARP;
    if (block >= a.num_blocks) return;
    const uint32_t lane = threadIdx.x % WARP;
    const float x = a.x[block * BLOCK + lane];
    // Magnitudes compare as integers: what is not a number is the largest and reaches y.
    uint32_t most = __float_as_uint(fabsf(x));
    for (uint32_t d = WARP / 2; d > 0; d /= 2) most = max(most, __shfl_xor_sync(FULL_WARP, most, d));
    const float largest = __uint_as_float(most);
    const float inverse = largest == 0.0f ? 0.0f : __fdiv_rn(LARGEST_ACTIVATION, largest);
    const float shifted = __fadd_rn(__fmul_rn(x, inverse), 12582912.0f);
    const int32_t code = static_cast<int16_t>(__float_as_uint(shifted));
    int32_t sum = code;
    for (uint32_t d = WARP / 2; d > 0; d /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, d);
    Activation& out = a.out[block];
    out.high[lane] = static_cast<int8_t>((code + 128) >> 8);
    out.low[lane] = static_cast<int8_t>(code);
    const float scale = __fdiv_rn(largest, LARGEST_ACTIVATION);
    if (lane == 0) {
        out.scale = scale;
        out.sum = scale * static_cast<float>(sum);
    }
}

// The codes of a block, 4 to a word.
template <uint32_t BITS>
__device__ inline void load_codes(const uint8_t* codes, uint64_t block, uint32_t words[8]) {
    const uint4* from = reinterpret_cast<const uint4*>(codes) + block * (BITS / 4);
    const uint4 low = from[0];
    const uint4 high = BITS == 8 ? from[1] : low;
    const uint32_t all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    for (uint32_t i = 0; i < 8; i++) {
        words[i] = BITS == 8 ? all[i] : all[i] >> (i / 4 * 4) & 0x0f0f0f0fu;
    }
}

template <uint32_t BITS>
__device__ inline void multiply(const LinearArgs& a) {
    const uint32_t n = blockIdx.x * LINEAR_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (n >= a.rows) return;
    const uint32_t first = blockIdx.y * GROUP_ROWS, count = min(GROUP_ROWS, a.num_x - first);
    float sums[GROUP_ROWS] = {};
    for (uint32_t block = lane; block < a.num_blocks; block += WARP) {
        const uint64_t at = uint64_t(n) * a.num_blocks + block;
        uint32_t codes[8];
        load_codes<BITS>(a.codes, at, codes);
        const float d = __half2float(__ushort_as_half(a.scales[2 * at]));
        const float m = __half2float(__ushort_as_half(a.scales[2 * at + 1]));
#pragma unroll
        for (uint32_t row = 0; row < GROUP_ROWS; row++) {
            if (row >= count) break;
            const Activation& x = a.x[uint64_t(first + row) * a.num_blocks + block];
            const int32_t* high = reinterpret_cast<const int32_t*>(x.high);
            const int32_t* low = reinterpret_cast<const int32_t*>(x.low);
            int32_t of_high = 0, of_low = 0;
            for (uint32_t i = 0; i < 8; i++) {
                of_high = dot4(codes[i], high[i], of_high);
                of_low = dot4(codes[i], low[i], of_low);
            }
            sums[row] += d * (x.scale * static_cast<float>(256 * of_high + of_low)) + m * x.sum;
        }
    }
    for (uint32_t row = 0; row < GROUP_ROWS; row++) {
        const float sum = warp_sum(sums[row]);
        if (lane == 0 && row < count) a.y[uint64_t(first + row) * a.rows + n] = sum;
    }
}

KERNEL(linear_4, LinearArgs, LINEAR_THREADS) { multiply<4>(a); }
KERNEL(linear_8, LinearArgs, LINEAR_THREADS) { multiply<8>(a); }

// Rows of W as floats, out (ids, K): a token embedding. A thread for each weight.
KERNEL(linear_rows, LinearRowsArgs, LINEAR_THREADS) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t cols = uint64_t(a.num_blocks) * BLOCK;
    if (i >= a.num_ids * cols) return;
    const uint64_t block = a.ids[i / cols] * uint64_t(a.num_blocks) + i % cols / BLOCK;
    const uint32_t k = i % BLOCK;
    const uint8_t byte = a.bits == 8 ? a.codes[block * 32 + k] : a.codes[block * 16 + k % 16];
    const uint32_t code = a.bits == 8 ? byte : byte >> (k / 16 * 4) & 15;
    const float d = __half2float(__ushort_as_half(a.scales[2 * block]));
    const float m = __half2float(__ushort_as_half(a.scales[2 * block + 1]));
    a.out[i] = __fadd_rn(__fmul_rn(d, static_cast<float>(code)), m);
}
