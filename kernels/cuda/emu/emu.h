// Lets g++ compile the kernels as they are, and runs them: every thread of a block is a fiber.
//
// A thread runs until it meets others: at a barrier, or at a shuffle, vote or matrix product of its
// warp. Who runs first is drawn from the seed, so that a result which depends on it shows. Device memory
// ends (or, by the seed, begins) at a page that must not be touched; shared memory is filled with NaNs
// before each block. Threads that wait at different places are reported. What an asynchronous copy
// overwrites is NaN from its start until its thread waited for it.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

struct uint3 { unsigned int x, y, z; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emu {
// Who runs.
extern thread_local uint3 thread, block, block_size;
extern thread_local uint8_t* shared;
extern thread_local size_t shared_bytes;

// What a whole warp does at once, given what each lane brought. Returns what is wrong, or null.
using Collective = const char* (*)(void* const lanes[32]);
void collective(Collective run, void* mine, const char* place);

enum class Shuffle { Down, Xor, From };
uint32_t shuffle(Shuffle kind, uint32_t value, uint32_t operand, const char* place);
bool barrier(bool vote, const char* place);
void warp_barrier(const char* place);

void product_f16(float* c, const uint32_t* a, const uint32_t* b, const char* place);
void product_u8_s8(int32_t* c, const uint32_t* a, const uint32_t* b, const char* place);
void matrices(uint32_t* out, const void* row, bool transposed, const char* place);

void copy_async(void* to, const void* from, uint32_t bytes, bool exists);
void end_copies();
void wait_copies(uint32_t pending);
}  // namespace emu

#define threadIdx (emu::thread)
#define blockIdx (emu::block)
#define blockDim (emu::block_size)
#define __device__
#define __restrict__
#define KERNEL(name, Args, threads) static void name(const Args& a)
#define SHARED(name) uint8_t* name = emu::shared

// A place is a line of a file: functions inlined twice or not at all must look alike.
#define EMU_STRING(x) EMU_STRING_(x)
#define EMU_STRING_(x) #x
#define EMU_PLACE (__FILE__ ":" EMU_STRING(__LINE__))
#define __syncthreads() ((void)emu::barrier(false, EMU_PLACE))
#define __syncthreads_or(vote) emu::barrier(vote, EMU_PLACE)
#define __syncwarp() emu::warp_barrier(EMU_PLACE)
#define __shfl_down_sync(mask, x, d) emu_shuffle(emu::Shuffle::Down, mask, x, d, EMU_PLACE)
#define __shfl_xor_sync(mask, x, d) emu_shuffle(emu::Shuffle::Xor, mask, x, d, EMU_PLACE)
#define __shfl_sync(mask, x, lane) emu_shuffle(emu::Shuffle::From, mask, x, lane, EMU_PLACE)

#define mma_f16(c, a, b) emu::product_f16(c, a, b, EMU_PLACE)
#define mma_u8_s8(c, a, b) emu::product_u8_s8(c, a, b, EMU_PLACE)
#define load_matrices(out, row) emu::matrices(out, row, false, EMU_PLACE)
#define load_transposed(out, row) emu::matrices(out, row, true, EMU_PLACE)

template <uint32_t BYTES>
inline void copy_async(void* to, const void* from, bool exists) {
    emu::copy_async(to, from, BYTES, exists);
}
inline void end_copies() { emu::end_copies(); }
template <uint32_t PENDING>
inline void wait_copies() {
    emu::wait_copies(PENDING);
}

inline int32_t dot4(uint32_t codes, int32_t x, int32_t sum) {
    for (uint32_t i = 0; i < 4; i++) sum += int32_t(codes >> (8 * i) & 255) * int32_t(int8_t(x >> (8 * i)));
    return sum;
}

template <typename T>
inline T emu_shuffle(emu::Shuffle kind, uint32_t mask, T x, uint32_t operand, const char* place) {
    static_assert(sizeof(T) == 4, "no kernel shuffles anything else");
    if (mask != 0xffffffffu) __builtin_trap();  // nor a part of a warp
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = emu::shuffle(kind, bits, operand, place);
    memcpy(&x, &bits, 4);
    return x;
}

inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>((uint64_t(high) << 32 | low) >> (shift & 31));
}

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
// Fibers take turns at barriers and shuffles only.
inline uint32_t atomicAdd(uint32_t* at, uint32_t x) {
    const uint32_t before = *at;
    *at += x;
    return before;
}
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
constexpr uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Compiled with -ffp-contract=off, so that these round once each.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }

struct __half { uint16_t bits; };
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }

inline float __half2float(__half x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31;
    const uint32_t fraction = x.bits & 0x3ff;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    const float size = exponent == 0 ? ldexpf(static_cast<float>(fraction), -24)
                                     : ldexpf(static_cast<float>(fraction | 0x400), int(exponent) - 25);
    return sign != 0 ? -size : size;
}

// To the nearest, ties to even.
inline __half __float2half_rn(float x) {
    const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000;
    const float size = fabsf(x);
    if (size != size) return {static_cast<uint16_t>(sign | 0x7e00)};
    if (size == 0.0f) return {static_cast<uint16_t>(sign)};
    if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
    int exponent = 0;
    frexpf(size, &exponent);  // size in [2^(exponent-1), 2^exponent)
    const int unit = exponent - 11 < -24 ? -24 : exponent - 11;
    // Exact up to here; rintf rounds ties to even. A carry into the next exponent comes out right.
    const uint32_t steps = static_cast<uint32_t>(rintf(ldexpf(size, -unit)));
    const uint32_t half = unit == -24 ? steps : (uint32_t(unit + 24) << 10) + steps;
    return {static_cast<uint16_t>(sign | half)};
}
