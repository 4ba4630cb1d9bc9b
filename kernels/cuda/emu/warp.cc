// What a warp does at once, at the meaning that the PTX ISA gives: shuffles, products on tensor cores,
// loads of their operands.
#include <math.h>
#include <stddef.h>

#include "emu.h"

namespace emu {
namespace {

constexpr uint32_t WARP = 32;

struct ShuffleLane {
    Shuffle kind;
    uint32_t value, operand;
};

uint32_t source(const ShuffleLane& mine, uint32_t lane) {
    switch (mine.kind) {
        case Shuffle::Down: return lane + mine.operand < WARP ? lane + mine.operand : lane;
        case Shuffle::Xor: return (lane ^ mine.operand) % WARP;
        default: return mine.operand % WARP;
    }
}

const char* run_shuffle(void* const lanes[32]) {
    uint32_t values[WARP];
    for (uint32_t lane = 0; lane < WARP; lane++) values[lane] = static_cast<ShuffleLane*>(lanes[lane])->value;
    for (uint32_t lane = 0; lane < WARP; lane++) {
        ShuffleLane& mine = *static_cast<ShuffleLane*>(lanes[lane]);
        mine.value = values[source(mine, lane)];
    }
    return nullptr;
}

template <typename C>
struct MmaLane {
    C* c;
    const uint32_t *a, *b;
};

// Element (row, k) of A, given registers with `PER_WORD` elements each: the four registers are rows
// g and g + 8 of the first half of K, then of the second.
template <uint32_t PER_WORD, typename Lane>
uint32_t element_of_a(void* const lanes[32], uint32_t row, uint32_t k) {
    const uint32_t half = k / (4 * PER_WORD), place = k % (4 * PER_WORD);
    const Lane& lane = *static_cast<Lane*>(lanes[row % 8 * 4 + place / PER_WORD]);
    return lane.a[2 * half + row / 8] >> (32 / PER_WORD * (place % PER_WORD));
}

// Element (k, column) of B: a register for each half of K.
template <uint32_t PER_WORD, typename Lane>
uint32_t element_of_b(void* const lanes[32], uint32_t k, uint32_t column) {
    const uint32_t half = k / (4 * PER_WORD), place = k % (4 * PER_WORD);
    const Lane& lane = *static_cast<Lane*>(lanes[column * 4 + place / PER_WORD]);
    return lane.b[half] >> (32 / PER_WORD * (place % PER_WORD));
}

template <typename Lane>
auto& element_of_c(void* const lanes[32], uint32_t row, uint32_t column) {
    return static_cast<Lane*>(lanes[row % 8 * 4 + column / 2])->c[row / 8 * 2 + column % 2];
}

// Sums as tensor cores may leave them: exact, then cut off, which is the worst that was seen of them.
float cut_off(double x) {
    const float nearest = static_cast<float>(x);
    return fabs(nearest) > fabs(x) ? nextafterf(nearest, 0.0f) : nearest;
}

float half_of(uint32_t bits) { return __half2float(__ushort_as_half(static_cast<uint16_t>(bits))); }

const char* run_mma_f16(void* const lanes[32]) {
    using Lane = MmaLane<float>;
    float a[16][16], b[16][8];
    for (uint32_t k = 0; k < 16; k++) {
        for (uint32_t row = 0; row < 16; row++) a[row][k] = half_of(element_of_a<2, Lane>(lanes, row, k));
        for (uint32_t column = 0; column < 8; column++) {
            b[k][column] = half_of(element_of_b<2, Lane>(lanes, k, column));
        }
    }
    for (uint32_t row = 0; row < 16; row++) {
        for (uint32_t column = 0; column < 8; column++) {
            float& c = element_of_c<Lane>(lanes, row, column);
            double sum = c;
            for (uint32_t k = 0; k < 16; k++) sum += double(a[row][k]) * double(b[k][column]);
            c = cut_off(sum);
        }
    }
    return nullptr;
}

const char* run_mma_u8_s8(void* const lanes[32]) {
    using Lane = MmaLane<int32_t>;
    for (uint32_t row = 0; row < 16; row++) {
        for (uint32_t column = 0; column < 8; column++) {
            uint32_t sum = 0;  // wraps
            for (uint32_t k = 0; k < 32; k++) {
                const int32_t a = static_cast<uint8_t>(element_of_a<4, Lane>(lanes, row, k));
                const int32_t b = static_cast<int8_t>(element_of_b<4, Lane>(lanes, k, column));
                sum += static_cast<uint32_t>(a * b);
            }
            int32_t& c = element_of_c<Lane>(lanes, row, column);
            c = static_cast<int32_t>(static_cast<uint32_t>(c) + sum);
        }
    }
    return nullptr;
}

struct MatricesLane {
    uint32_t* out;
    const uint8_t* row;
    bool transposed;
};

const char* run_load_matrices(void* const lanes[32]) {
    const auto at = [&](uint32_t lane) -> MatricesLane& { return *static_cast<MatricesLane*>(lanes[lane]); };
    for (uint32_t lane = 0; lane < WARP; lane++) {
        const uint8_t* row = at(lane).row;
        if (row < shared || row + 16 > shared + shared_bytes) return "a matrix beside shared memory";
        if (uintptr_t(row) % 16 != 0) return "a row of a matrix that is not aligned";
    }
    for (uint32_t lane = 0; lane < WARP; lane++) {
        for (uint32_t matrix = 0; matrix < 4; matrix++) {
            uint16_t two[2];
            for (uint32_t i = 0; i < 2; i++) {
                const uint32_t first = lane / 4, second = lane % 4 * 2 + i;
                const uint32_t row = at(lane).transposed ? second : first;
                const uint32_t column = at(lane).transposed ? first : second;
                memcpy(&two[i], at(8 * matrix + row).row + 2 * column, 2);
            }
            at(lane).out[matrix] = uint32_t(two[1]) << 16 | two[0];
        }
    }
    return nullptr;
}

}  // namespace

uint32_t shuffle(Shuffle kind, uint32_t value, uint32_t operand, const char* place) {
    ShuffleLane mine = {kind, value, operand};
    collective(run_shuffle, &mine, place);
    return mine.value;
}

void product_f16(float* c, const uint32_t* a, const uint32_t* b, const char* place) {
    MmaLane<float> mine = {c, a, b};
    collective(run_mma_f16, &mine, place);
}

void product_u8_s8(int32_t* c, const uint32_t* a, const uint32_t* b, const char* place) {
    MmaLane<int32_t> mine = {c, a, b};
    collective(run_mma_u8_s8, &mine, place);
}

void matrices(uint32_t* out, const void* row, bool transposed, const char* place) {
    MatricesLane mine = {out, static_cast<const uint8_t*>(row), transposed};
    collective(run_load_matrices, &mine, place);
}

}  // namespace emu
