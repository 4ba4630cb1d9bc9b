// y = x W^T for many rows of x: formula, weights and activations of linear.cu, on tensor cores.
//
// A block takes 64 rows of W, 16 to a warp, and up to 64 rows of x. Two blocks of 32 weights at a time
// come to shared memory by asynchronous copies, while the two before are multiplied: one product of
// bytes for the high bytes of x and one for the low, both exact; scales are applied as in linear.cu.
//
// Reads W once per 64 rows of x and x once per 64 rows of W, mostly from L2; the floor is one reading,
// N K (bits + 1) / 8 + T K 9 / 4 bytes. Multiplies 2 T N K bytes, and applies T N K / 32 scales.
#include "common.cuh"

constexpr uint32_t MMA_THREADS = 4 * WARP;
constexpr uint32_t MMA_ROWS = 64; // of W
constexpr uint32_t MMA_X = 64;    // rows of x
constexpr uint32_t STAGE_BLOCKS = 2;

// One of two stages in shared memory. A warp's rows meet different banks: codes are padded, and two
// blocks of activations are 36 words.
template <uint32_t BITS>
struct Stage {
    static constexpr uint32_t CODE_BYTES = BLOCK * BITS / 8; // of a block
    static constexpr uint32_t CODE_STRIDE = STAGE_BLOCKS * CODE_BYTES + 16;
    static constexpr uint32_t CODES = MMA_ROWS * CODE_STRIDE;
    static constexpr uint32_t SCALES = MMA_ROWS * STAGE_BLOCKS * 4;
    static constexpr uint32_t BYTES = CODES + SCALES + MMA_X * STAGE_BLOCKS * sizeof(Activation);
    uint8_t* codes;   // (MMA_ROWS, CODE_STRIDE)
    uint32_t* scales; // (MMA_ROWS, STAGE_BLOCKS): d, m
    Activation* x;    // (MMA_X, STAGE_BLOCKS)

    __device__ Stage(uint8_t* memory, uint32_t index) {
        codes = memory + index * BYTES;
        scales = reinterpret_cast<uint32_t*>(codes + CODES);
        x = reinterpret_cast<Activation*>(codes + CODES + SCALES);
    }

    // Starts to load the blocks from `first` on. What is not there is zero.
    __device__ void load(
        const LinearArgs& a, uint32_t first, uint32_t first_row, uint32_t first_x, uint32_t num_x) {
        constexpr uint32_t CHUNKS = CODE_BYTES / 16, WORDS = sizeof(Activation) / 8;
        for (uint32_t i = threadIdx.x; i < MMA_ROWS * STAGE_BLOCKS * CHUNKS; i += blockDim.x) {
            const uint32_t row = i / (STAGE_BLOCKS * CHUNKS), at = i % (STAGE_BLOCKS * CHUNKS);
            const bool exists = first_row + row < a.rows && first + at / CHUNKS < a.num_blocks;
            const uint64_t block = exists ? uint64_t(first_row + row) * a.num_blocks + first : 0;
            const uint8_t* from = a.codes + block * CODE_BYTES + (exists ? 16 * at : 0);
            copy_async<16>(codes + row * CODE_STRIDE + 16 * at, from, exists);
        }
        for (uint32_t i = threadIdx.x; i < MMA_ROWS * STAGE_BLOCKS; i += blockDim.x) {
            const uint32_t row = i / STAGE_BLOCKS, at = i % STAGE_BLOCKS;
            const bool exists = first_row + row < a.rows && first + at < a.num_blocks;
            const uint64_t block = exists ? uint64_t(first_row + row) * a.num_blocks + first + at : 0;
            copy_async<4>(scales + i, a.scales + 2 * block, exists);
        }
        for (uint32_t i = threadIdx.x; i < num_x * STAGE_BLOCKS * WORDS; i += blockDim.x) {
            const uint32_t row = i / (STAGE_BLOCKS * WORDS), at = i % (STAGE_BLOCKS * WORDS);
            const bool exists = first_x + row < a.num_x && first + at / WORDS < a.num_blocks;
            const uint64_t block = exists ? uint64_t(first_x + row) * a.num_blocks + first : 0;
            const uint64_t* from = reinterpret_cast<const uint64_t*>(a.x + block) + (exists ? at : 0);
            copy_async<8>(reinterpret_cast<uint64_t*>(x) + i, from, exists);
        }
    }

    // The 16 codes of a block that a lane multiplies, of rows `row` and `row + 8`.
    __device__ void operand(uint32_t row, uint32_t block, uint32_t (&out)[4]) const {
        const uint32_t at = block * CODE_BYTES + threadIdx.x % 4 * 4;
        for (uint32_t half = 0; half < 2; half++) {
            const uint8_t* from = codes + (row + 8 * half) * CODE_STRIDE + at;
            const uint32_t low = *reinterpret_cast<const uint32_t*>(from);
            const uint32_t high = BITS == 4 ? low >> 4 : *reinterpret_cast<const uint32_t*>(from + 16);
            out[half] = BITS == 4 ? low & 0x0f0f0f0fu : low;
            out[half + 2] = BITS == 4 ? high & 0x0f0f0f0fu : high;
        }
    }

    // sums += products of a warp's rows of W from `row` on with rows of x, 8 at a time.
    __device__ void multiply(uint32_t row, uint32_t num_tiles, float (&sums)[MMA_X / 8][4]) const {
        const uint32_t group = threadIdx.x % WARP / 4, place = threadIdx.x % 4;
        for (uint32_t block = 0; block < STAGE_BLOCKS; block++) {
            uint32_t w[4];
            operand(row + group, block, w);
            float d[2], m[2];
            for (uint32_t half = 0; half < 2; half++) {
                const uint32_t both = scales[(row + group + 8 * half) * STAGE_BLOCKS + block];
                d[half] = __half2float(__ushort_as_half(static_cast<uint16_t>(both)));
                m[half] = __half2float(__ushort_as_half(static_cast<uint16_t>(both >> 16)));
            }
#pragma unroll
            for (uint32_t tile = 0; tile < MMA_X / 8; tile++) {
                if (tile >= num_tiles) break;
                const Activation& mine = x[(8 * tile + group) * STAGE_BLOCKS + block];
                const uint32_t* high = reinterpret_cast<const uint32_t*>(mine.high) + place;
                const uint32_t* low = reinterpret_cast<const uint32_t*>(mine.low) + place;
                const uint32_t high_x[2] = {high[0], high[4]}, low_x[2] = {low[0], low[4]};
                int32_t dots[4] = {};
                mma_u8_s8(dots, w, high_x);
                for (uint32_t i = 0; i < 4; i++) dots[i] *= 256;
                mma_u8_s8(dots, w, low_x);
                for (uint32_t i = 0; i < 4; i++) {
                    const Activation& of = x[(8 * tile + 2 * place + i % 2) * STAGE_BLOCKS + block];
                    sums[tile][i] += d[i / 2] * (of.scale * static_cast<float>(dots[i])) + m[i / 2] * of.sum;
                }
            }
        }
    }
};

template <uint32_t BITS>
__device__ inline void multiply_tiles(const LinearArgs& a, uint8_t* memory) {
    const uint32_t first_row = blockIdx.x * MMA_ROWS, first_x = blockIdx.y * MMA_X;
    const uint32_t num_tiles = (min(MMA_X, a.num_x - first_x) + 7) / 8;
    const uint32_t row = threadIdx.x / WARP * 16;
    float sums[MMA_X / 8][4] = {};
    Stage<BITS>(memory, 0).load(a, 0, first_row, first_x, 8 * num_tiles);
    end_copies();
    for (uint32_t block = 0, turn = 0; block < a.num_blocks; block += STAGE_BLOCKS, turn ^= 1) {
        const uint32_t next = block + STAGE_BLOCKS;
        if (next < a.num_blocks) Stage<BITS>(memory, turn ^ 1).load(a, next, first_row, first_x, 8 * num_tiles);
        end_copies();
        wait_copies<1>();
        __syncthreads();
        Stage<BITS>(memory, turn).multiply(row, num_tiles, sums);
        __syncthreads(); // the stage was read
    }
    const uint32_t group = threadIdx.x % WARP / 4, place = threadIdx.x % 4;
#pragma unroll
    for (uint32_t tile = 0; tile < MMA_X / 8; tile++) {
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t n = first_row + row + group + i / 2 * 8, t = first_x + 8 * tile + 2 * place + i % 2;
            if (n < a.rows && t < a.num_x) a.y[uint64_t(t) * a.rows + n] = sums[tile][i];
        }
    }
}

KERNEL(linear_mma_4, LinearArgs, MMA_THREADS) {
    SHARED(memory);
    multiply_tiles<4>(a, memory);
}

KERNEL(linear_mma_8, LinearArgs, MMA_THREADS) {
    SHARED(memory);
    multiply_tiles<8>(a, memory);
}
