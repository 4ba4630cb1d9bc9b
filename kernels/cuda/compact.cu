// Tokens change place, and perhaps tier: read all, then write all, in two launches.
//
// compact_lift codes each token as its new page will hold it, bit by bit as codec.rs does, into
// staging (moves, stride): K codes, V codes, K scale, V scale, position, attribution, packed.
// compact_set_down copies that to its slots. A warp for each token.
//
// Moves bytes(from) + 3 bytes(to) a token; the floor, were no slot both read and written, is
// bytes(from) + bytes(to).
#include "page.cuh"

constexpr uint32_t COMPACT_WARPS = 4;
constexpr uint32_t COMPACT_THREADS = COMPACT_WARPS * WARP;
constexpr float LARGEST_CODE = 127.0f;

__device__ inline bool same(const Format& a, const Format& b, uint32_t lanes) {
    if (a.kind != b.kind) return false;
    if (a.kind != FORMAT_LEVELS) return true;
    for (uint32_t i = 0; i < lanes; i++) {
        if (a.bits[i] != b.bits[i]) return false;
    }
    return true;
}

// minifloat.rs: a scale to the nearest, or one no smaller.
__device__ inline uint8_t to_scale(float x, uint32_t carry) {
    const uint32_t bits = __half_as_ushort(__float2half_rn(fmaxf(x, 0.0f)));
    return static_cast<uint8_t>(min((bits + carry) >> 7, 0xf7u));
}

__device__ inline float inverse_or_zero(float x) { return x > 0.0f ? __fdiv_rn(1.0f, x) : 0.0f; }

// The largest magnitude of x (D), for the whole warp.
__device__ inline float largest(const float* x, uint32_t dim) {
    float max = 0.0f;
    for (uint32_t i = threadIdx.x % WARP; i < dim; i += WARP) max = fmaxf(max, fabsf(x[i]));
    for (uint32_t d = WARP / 2; d > 0; d /= 2) max = fmaxf(max, __shfl_xor_sync(FULL_WARP, max, d));
    return max;
}

// The sum of squares of x (D) in the order of codec.rs: 16 lanes, then halves.
__device__ inline float power(const float* x, uint32_t dim) {
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % 16; i < dim; i += 16) sum = __fadd_rn(sum, __fmul_rn(x[i], x[i]));
    for (uint32_t d = 8; d > 0; d /= 2) sum = __fadd_rn(sum, __shfl_down_sync(FULL_WARP, sum, d));
    return __shfl_sync(FULL_WARP, sum, 0);
}

// The code of the level closest to x, among those of `bits` bits.
__device__ inline uint32_t closest(const int8_t* levels, uint32_t bits, float x) {
    const int8_t* own = levels + (1u << bits);
    uint32_t code = 0;
    for (uint32_t i = 0; i + 1 < 1u << bits; i++) {
        const float middle = 0.5f * (static_cast<float>(own[i]) + static_cast<float>(own[i + 1]));
        code += x > middle;
    }
    return code;
}

// Codes x (D) in shared memory. The whole warp must call. Returns the scale.
__device__ inline uint8_t encode(
    const Format& format, const float* x, uint32_t dim, const int8_t* levels, uint8_t* codes) {
    const uint32_t thread = threadIdx.x % WARP;
    if (format.kind == FORMAT_F16) {
        for (uint32_t i = thread; i < dim; i += WARP) {
            const uint16_t half = to_f16(x[i]);
            codes[2 * i] = static_cast<uint8_t>(half);
            codes[2 * i + 1] = static_cast<uint8_t>(half >> 8);
        }
        return 0;
    }
    if (format.kind == FORMAT_INT8) {
        const uint8_t scale = to_scale(largest(x, dim), 0x7f);
        const float inverse = inverse_or_zero(__fmul_rn(scale_of(scale), format.unit));
        for (uint32_t i = thread; i < dim; i += WARP) {
            const float code = fminf(fmaxf(roundf(__fmul_rn(x[i], inverse)), -LARGEST_CODE), LARGEST_CODE);
            codes[i] = static_cast<uint8_t>(static_cast<int32_t>(code));
        }
        return scale;
    }
    const uint8_t scale = to_scale(__fsqrt_rn(__fdiv_rn(power(x, dim), static_cast<float>(dim))), 0x40);
    const float inverse = inverse_or_zero(__fmul_rn(scale_of(scale), format.unit));
    for (uint32_t lane = thread; lane < dim / 8; lane += WARP) {
        const uint32_t bits = format.bits[lane];
        uint64_t word = 0;
        for (uint32_t i = 0; i < 8; i++) {
            word |= uint64_t(closest(levels, bits, __fmul_rn(x[8 * lane + i], inverse))) << (bits * i);
        }
        for (uint32_t i = 0; i < bits; i++) codes[format.offsets[lane] + i] = static_cast<uint8_t>(word >> (8 * i));
    }
    return scale;
}

__device__ inline void copy(uint8_t* to, const uint8_t* from, uint32_t bytes) {
    for (uint32_t i = threadIdx.x % WARP; i < bytes; i += WARP) to[i] = from[i];
}

// K or V of a token goes to `codes`; returns its scale. The whole warp must call.
template <bool IS_KEY>
__device__ inline uint8_t lift(
    const TokenRef& token, const Tier& to, uint32_t dim, const int8_t* levels, float* x, uint8_t* codes) {
    const Tier& from = *token.tier;
    const Format &source = IS_KEY ? from.key : from.value, &target = IS_KEY ? to.key : to.value;
    const uint32_t start = IS_KEY ? from.keys : from.values;
    const uint32_t bytes = IS_KEY ? from.key_bytes : from.value_bytes;
    if (same(source, target, dim / 8)) {
        copy(codes, token.bytes + start + token.index * bytes, bytes);
        return token.bytes[(IS_KEY ? from.key_scales : from.value_scales) + token.index];
    }
    const uint32_t lane = threadIdx.x % WARP;
    __syncwarp(); // x was read
    if (lane < dim / 8) {
        if (IS_KEY) token.key(lane, levels, x + 8 * lane);
        else token.value(lane, levels, x + 8 * lane);
    }
    __syncwarp();
    return encode(target, x, dim, levels, codes);
}

// Shared memory: levels (128), then one vector (D) for each warp.
KERNEL(compact_lift, CompactArgs, COMPACT_THREADS) {
    SHARED(memory);
    int8_t* levels = reinterpret_cast<int8_t*>(memory);
    const uint32_t dim = a.cache.head_dim, warp = threadIdx.x / WARP;
    float* x = reinterpret_cast<float*>(memory + NUM_LEVELS) + warp * dim;
    load_levels(a.cache, levels);
    __syncthreads();
    const uint32_t index = blockIdx.x * COMPACT_WARPS + warp;
    if (index >= a.num_moves) return;
    const MoveToken move = a.moves[index];
    const TokenRef from = token_at(a.cache, move.from_page, move.from_tier, move.from_index);
    const Tier& to = a.cache.tiers[move.to_tier];
    uint8_t* staged = a.staging + uint64_t(index) * a.stride;
    const uint8_t key_scale = lift<true>(from, to, dim, levels, x, staged);
    const uint8_t value_scale = lift<false>(from, to, dim, levels, x, staged + to.key_bytes);
    if (threadIdx.x % WARP != 0) return;
    uint8_t* rest = staged + to.key_bytes + to.value_bytes;
    rest[0] = key_scale;
    rest[1] = value_scale;
    const uint32_t bits = __float_as_uint(from.attribution());
    rest[2] = static_cast<uint8_t>(bits >> 16);
    rest[3] = static_cast<uint8_t>(bits >> 24);
}

KERNEL(compact_set_down, CompactArgs, COMPACT_THREADS) {
    const uint32_t index = blockIdx.x * COMPACT_WARPS + threadIdx.x / WARP;
    if (index >= a.num_moves) return;
    const MoveToken move = a.moves[index];
    const TokenRef to = token_at(a.cache, move.to_page, move.to_tier, move.to_index);
    const Tier& tier = *to.tier;
    const uint8_t* staged = a.staging + uint64_t(index) * a.stride;
    const uint8_t* rest = staged + tier.key_bytes + tier.value_bytes;
    copy(to.bytes + tier.keys + to.index * tier.key_bytes, staged, tier.key_bytes);
    copy(to.bytes + tier.values + to.index * tier.value_bytes, staged + tier.key_bytes, tier.value_bytes);
    if (threadIdx.x % WARP != 0) return;
    if (tier.key.kind != FORMAT_F16) to.bytes[tier.key_scales + to.index] = rest[0];
    if (tier.value.kind != FORMAT_F16) to.bytes[tier.value_scales + to.index] = rest[1];
    to.set_number(tier.positions, static_cast<uint16_t>(move.offset));
    to.set_number(tier.attributions, static_cast<uint16_t>(rest[2] | rest[3] << 8));
}

constexpr uint32_t COPY_THREADS = 128;

// Pages over others, none of which is read. A block for each. Moves 2 page_bytes: the floor.
KERNEL(copy_pages, CopyPagesArgs, COPY_THREADS) {
    const PagePair pair = a.pairs[blockIdx.x];
    const uint4* from = reinterpret_cast<const uint4*>(a.arena + pair.from * a.page_bytes);
    uint4* to = reinterpret_cast<uint4*>(a.arena + pair.to * a.page_bytes);
    for (uint32_t i = threadIdx.x; i < a.page_bytes / sizeof(uint4); i += COPY_THREADS) to[i] = from[i];
}
