// Pages and codes: the device's view of page.rs, codec.rs and minifloat.rs.
#pragma once
#include "common.cuh"

__device__ inline float scale_of(uint8_t byte) {
    return __half2float(__ushort_as_half(static_cast<uint16_t>(byte << 7)));
}

// 8 bytes from any address. Words around them are read whole; after the codes of a page come at
// least 32 bytes of metadata, so that this stays within the page.
__device__ inline uint64_t load_unaligned(const uint8_t* from) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(from);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(address & ~uintptr_t(3));
    const uint32_t shift = 8 * (address & 3);
    const uint32_t last = shift != 0 ? words[2] : 0;
    const uint32_t low = __funnelshift_r(words[0], words[1], shift);
    const uint32_t high = __funnelshift_r(words[1], last, shift);
    return uint64_t(high) << 32 | low;
}

// Channels 8 * lane.. of a vector. `levels` may lie in shared memory.
__device__ inline void decode_lane(
    const Format& format, const uint8_t* codes, uint8_t scale, uint32_t lane, const int8_t* levels,
    float x[8]) {
    if (format.kind == FORMAT_F16) {
        // Codes of 16-byte multiples from an aligned start.
        const uint4 words = *reinterpret_cast<const uint4*>(codes + 16 * lane);
        const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
        for (uint32_t i = 0; i < 4; i++) {
            x[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(pairs[i])));
            x[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(pairs[i] >> 16)));
        }
        return;
    }
    const float step = __fmul_rn(scale_of(scale), format.unit);
    if (format.kind == FORMAT_INT8) {
        const uint64_t word = load_unaligned(codes + 8 * lane);
        for (uint32_t i = 0; i < 8; i++) {
            x[i] = __fmul_rn(static_cast<float>(static_cast<int8_t>(word >> (8 * i))), step);
        }
        return;
    }
    const uint32_t bits = format.bits[lane], marker = 1u << bits;
    const uint64_t word = load_unaligned(codes + format.offsets[lane]);
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t code = static_cast<uint32_t>(word >> (bits * i)) & (marker - 1);
        x[i] = __fmul_rn(static_cast<float>(levels[marker | code]), step);
    }
}

__device__ inline uint32_t pair(float low, float high) {
    return uint32_t(__half_as_ushort(__float2half_rn(high))) << 16 | __half_as_ushort(__float2half_rn(low));
}

// The codes alone, which halves hold exactly: decode_lane gives these times step_of.
__device__ inline uint4 codes_of_lane(
    const Format& format, const uint8_t* codes, uint32_t lane, const int8_t* levels) {
    if (format.kind == FORMAT_F16) return *reinterpret_cast<const uint4*>(codes + 16 * lane);
    const bool is_int8 = format.kind == FORMAT_INT8;
    const uint32_t bits = is_int8 ? 8 : format.bits[lane], marker = 1u << bits;
    const uint64_t word = load_unaligned(codes + (is_int8 ? 8 * lane : format.offsets[lane]));
    float x[8];
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t code = static_cast<uint32_t>(word >> (bits * i)) & (marker - 1);
        x[i] = static_cast<float>(is_int8 ? static_cast<int8_t>(code) : levels[marker | code]);
    }
    return {pair(x[0], x[1]), pair(x[2], x[3]), pair(x[4], x[5]), pair(x[6], x[7])};
}

__device__ inline float step_of(const Format& format, uint8_t scale) {
    return format.kind == FORMAT_F16 ? 1.0f : __fmul_rn(scale_of(scale), format.unit);
}

// One token's place in a page.
struct TokenRef {
    uint8_t* bytes; // of the page
    const Tier* tier;
    uint32_t index;

    __device__ void key(uint32_t lane, const int8_t* levels, float x[8]) const {
        const uint8_t scale = bytes[tier->key_scales + index];
        decode_lane(tier->key, bytes + tier->keys + index * tier->key_bytes, scale, lane, levels, x);
    }

    __device__ void value(uint32_t lane, const int8_t* levels, float x[8]) const {
        const uint8_t scale = bytes[tier->value_scales + index];
        const uint8_t* codes = bytes + tier->values + index * tier->value_bytes;
        decode_lane(tier->value, codes, scale, lane, levels, x);
    }

    // The same as codes, and what they are worth.
    __device__ uint4 key_codes(uint32_t lane, const int8_t* levels) const {
        return codes_of_lane(tier->key, bytes + tier->keys + index * tier->key_bytes, lane, levels);
    }

    __device__ uint4 value_codes(uint32_t lane, const int8_t* levels) const {
        return codes_of_lane(tier->value, bytes + tier->values + index * tier->value_bytes, lane, levels);
    }

    __device__ float key_step() const { return step_of(tier->key, bytes[tier->key_scales + index]); }

    __device__ float value_step() const { return step_of(tier->value, bytes[tier->value_scales + index]); }

    // Counts of capacity and bytes may be odd: 16-bit numbers have no alignment.
    __device__ uint16_t number(uint32_t array) const {
        const uint8_t* at = bytes + array + 2 * index;
        return static_cast<uint16_t>(at[0] | at[1] << 8);
    }

    __device__ void set_number(uint32_t array, uint16_t value) const {
        uint8_t* at = bytes + array + 2 * index;
        at[0] = static_cast<uint8_t>(value);
        at[1] = static_cast<uint8_t>(value >> 8);
    }

    __device__ uint32_t position(uint32_t base) const {
        return base + static_cast<int32_t>(static_cast<int16_t>(number(tier->positions)));
    }

    __device__ float attribution() const {
        return __uint_as_float(uint32_t(number(tier->attributions)) << 16);
    }

    // Rounds up or down with probabilities that keep the mean: to_bf16 of segment.rs.
    __device__ void set_attribution(float x) const {
        const uint32_t bits = __float_as_uint(x), mixed = bits * 0x9e3779b1u;
        const uint32_t drawn = (mixed ^ (mixed >> 15)) * 0x85ebca77u >> 16;
        const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
        set_number(tier->attributions, static_cast<uint16_t>((finite ? bits + drawn : bits) >> 16));
    }
};

__device__ inline uint8_t* page_at(const Cache& cache, uint32_t page) {
    return cache.arena + uint64_t(page) * cache.page_bytes;
}

__device__ inline TokenRef token_at(const Cache& cache, uint32_t page, uint32_t tier, uint32_t index) {
    return {page_at(cache, page), cache.tiers + tier, index};
}

// Values beyond f16 are clamped, as in codec.rs; what is not a number stays so.
__device__ inline uint16_t to_f16(float x) {
    const float clamped = x < -65504.0f ? -65504.0f : x > 65504.0f ? 65504.0f : x;
    return __half_as_ushort(__float2half_rn(clamped));
}

// The positions a query sees: `first..=last`.
struct Sight {
    uint32_t first, last;

    __device__ bool sees(uint32_t position) const { return position >= first && position <= last; }
};

__device__ inline Sight sight(uint32_t position, uint32_t window) {
    return {position + 1 > window ? position + 1 - window : 0, position};
}

constexpr uint32_t NUM_LEVELS = 128;

// Copies the levels to shared memory. The caller puts a barrier behind it.
__device__ inline void load_levels(const Cache& cache, int8_t* levels) {
    for (uint32_t i = threadIdx.x; i < NUM_LEVELS; i += blockDim.x) levels[i] = cache.levels[i];
}
