// Attention of many queries over the pages of their sequence, on tensor cores: parts as in
// attention_decode.cu, tiles of tokens as in attention_prefill.cu, which is its plain twin.
//
// Halves hold the codes of every tier exactly, so K and V are multiplied as codes; what a code is worth
// is applied to scores and shares, in float. A query is scaled to fill the range of halves and split
// into two, x = high + low, which keeps 22 bits of it; so is each share before it meets values. The
// tolerances are those of the plain twin: what is lost to half precision here, no later step brings back.
//
// A block has a warp for every 16 queries; each owns all channels of their output. Reads the pages once
// per tile of queries: len * bytes(tier) * ceil(queries / QUERIES), mostly from L2; the floor is one
// reading. Tiles that no query sees are not decoded. Multiplies 2 * 2 * queries * len * D halves.
#include "cursor.cuh"

constexpr float HALF_RANGE = 16384.0f; // what the largest of some numbers becomes

// Shared memory of a block. Rows are padded so that neighbours meet different banks.
template <uint32_t QUERIES, uint32_t TOKENS>
struct MmaTile {
    static constexpr uint32_t WARPS = QUERIES / 16;
    int8_t* levels;                           // (128)
    uint32_t *pages, *indices, *positions;    // (TOKENS): as in Tile
    float *key_units, *value_units;           // (TOKENS): what codes are worth; of values, as a share of `unit`
    float* unit;                              // (4), the first
    float* query_units;                       // (QUERIES)
    Sight* sights;                            // (QUERIES)
    uint16_t *high, *low;                     // (QUERIES, stride)
    uint16_t* codes;                          // (TOKENS, stride): K, then V
    uint32_t width, stride;                   // channels, in steps of 16; halves of a row

    __device__ MmaTile(uint8_t* memory, uint32_t dim) {
        width = (dim + 15) / 16 * 16;
        stride = width + 8;
        levels = reinterpret_cast<int8_t*>(memory);
        pages = reinterpret_cast<uint32_t*>(memory + NUM_LEVELS);
        indices = pages + TOKENS;
        positions = indices + TOKENS;
        key_units = reinterpret_cast<float*>(positions + TOKENS);
        value_units = key_units + TOKENS;
        unit = value_units + TOKENS;
        query_units = unit + 4;
        sights = reinterpret_cast<Sight*>(query_units + QUERIES);
        high = reinterpret_cast<uint16_t*>(sights + QUERIES);
        low = high + QUERIES * stride;
        codes = low + QUERIES * stride;
    }

    __device__ bool sees(Sight sight, uint32_t token) const {
        return pages[token] != NONE && sight.sees(positions[token]);
    }

    // A warp takes a query at a time: scaled so that its largest channel is HALF_RANGE, then split.
    template <uint32_t MAX_WIDTH>
    __device__ void load_queries(const AttentionArgs& a, const AttentionJob& job) {
        const uint32_t dim = a.cache.head_dim, count = job.query_end - job.query_start;
        const uint32_t lane = threadIdx.x % WARP;
        for (uint32_t i = threadIdx.x / WARP; i < QUERIES; i += WARPS) {
            const uint32_t query = job.query_start + (i < count ? i : 0);
            const uint32_t row = job.first_row + query / a.group, head = job.kv_head * a.group + query % a.group;
            const float* from = a.q + (uint64_t(row) * a.num_heads + head) * dim;
            float x[MAX_WIDTH / WARP], most = 0.0f;
#pragma unroll
            for (uint32_t j = 0; j < MAX_WIDTH / WARP; j++) {
                const uint32_t c = lane + j * WARP;
                x[j] = i < count && c < dim ? from[c] : 0.0f;
                most = fmaxf(most, fabsf(x[j]));
            }
            for (uint32_t d = WARP / 2; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, d));
            most = fmaxf(most, 1e-30f); // a query of zeros
#pragma unroll
            for (uint32_t j = 0; j < MAX_WIDTH / WARP; j++) {
                const uint32_t c = lane + j * WARP;
                if (c >= width) continue;
                const float scaled = x[j] * (HALF_RANGE / most);
                const __half rounded = __float2half_rn(scaled);
                high[i * stride + c] = __half_as_ushort(rounded);
                low[i * stride + c] = __half_as_ushort(__float2half_rn(scaled - __half2float(rounded)));
            }
            if (lane != 0) continue;
            const Sight nothing = {1, 0};
            sights[i] = i < count ? sight(a.positions[row], a.window) : nothing;
            query_units[i] = most / HALF_RANGE / sqrtf(static_cast<float>(dim));
        }
    }

    // Finds the tokens from `start` on, one to a thread of the first warp, and what their codes are worth.
    __device__ void find_tokens(const AttentionArgs& a, const AttentionJob& job, Cursor start) {
        const uint32_t token = threadIdx.x;
        if (token >= WARP) return;
        start.advance(a.pages, job.page_end, token);
        const bool exists = token < TOKENS && start.page < job.page_end;
        float key_step = 0.0f, value_step = 0.0f;
        uint32_t position = 0;
        if (exists) {
            const Page page = a.pages[start.page];
            const TokenRef ref = token_at(a.cache, page.page, page.tier, start.index);
            key_step = ref.key_step();
            value_step = ref.value_step();
            position = ref.position(page.base);
        }
        float most = value_step;
        for (uint32_t d = WARP / 2; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, d));
        if (token == 0) *unit = most / HALF_RANGE;
        if (token >= TOKENS) return;
        pages[token] = exists ? start.page : NONE;
        indices[token] = start.index;
        positions[token] = position;
        key_units[token] = key_step;
        value_units[token] = most > 0.0f ? value_step * (HALF_RANGE / most) : 0.0f;
    }

    // Codes of K or V. What is not there is zero.
    template <bool IS_KEY>
    __device__ void load_codes(const AttentionArgs& a) {
        const uint32_t lanes = width / 8;
        for (uint32_t i = threadIdx.x; i < TOKENS * lanes; i += blockDim.x) {
            const uint32_t token = i / lanes, lane = i % lanes;
            uint4 eight = {};
            if (pages[token] != NONE && 8 * lane < a.cache.head_dim) {
                const Page page = a.pages[pages[token]];
                const TokenRef ref = token_at(a.cache, page.page, page.tier, indices[token]);
                eight = IS_KEY ? ref.key_codes(lane, levels) : ref.value_codes(lane, levels);
            }
            *reinterpret_cast<uint4*>(codes + token * stride + 8 * lane) = eight;
        }
    }
};

// Numbers as high and low halves, two by two as products take them.
__device__ inline void split(float x, float y, uint32_t& high, uint32_t& low) {
    const __half of_x = __float2half_rn(x), of_y = __float2half_rn(y);
    high = uint32_t(__half_as_ushort(of_y)) << 16 | __half_as_ushort(of_x);
    low = pair(x - __half2float(of_x), y - __half2float(of_y));
}

// The output of a warp's 16 queries and their softmax. A lane has rows l / 4 and l / 4 + 8, of each 8
// channels or tokens the two from 2 (l % 4) on; `sum` is its share of the row's.
template <uint32_t QUERIES, uint32_t TOKENS, uint32_t MAX_WIDTH>
struct MmaRows {
    using Tile = MmaTile<QUERIES, TOKENS>;
    float max[2], sum[2], out[MAX_WIDTH / 8][4];

    __device__ static uint32_t row(uint32_t half) {
        return threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + 8 * half;
    }
    __device__ static uint32_t column() { return threadIdx.x % 4 * 2; }

    // scores = q K^T, in units of the query and the token.
    __device__ static void multiply(const Tile& tile, float (&scores)[TOKENS / 8][4]) {
        const uint32_t lane = threadIdx.x % WARP;
        const uint32_t a_row = (threadIdx.x / WARP * 16 + lane % 16) * tile.stride + lane / 16 * 8;
        const uint32_t b_row = (lane / 16 * 8 + lane % 8) * tile.stride + lane / 8 % 2 * 8;
        for (uint32_t c = 0; c < tile.width; c += 16) {
            uint32_t high[4], low[4];
            load_matrices(high, tile.high + a_row + c);
            load_matrices(low, tile.low + a_row + c);
#pragma unroll
            for (uint32_t token = 0; token < TOKENS; token += 16) {
                uint32_t k[4];
                load_matrices(k, tile.codes + token * tile.stride + b_row + c);
                mma_f16(scores[token / 8], high, k);
                mma_f16(scores[token / 8], low, k);
                mma_f16(scores[token / 8 + 1], high, k + 2);
                mma_f16(scores[token / 8 + 1], low, k + 2);
            }
        }
    }

    // Turns scores into shares of the largest so far, in units of the values' codes. Returns by how
    // much what came before fades.
    __device__ void weigh(const Tile& tile, float (&scores)[TOKENS / 8][4], float (&fade)[2]) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const Sight sight = tile.sights[row(half)];
            const float unit = tile.query_units[row(half)];
            float most = max[half];
#pragma unroll
            for (uint32_t i = 0; i < TOKENS / 4; i++) {
                const uint32_t token = i / 2 * 8 + column() + i % 2;
                float& score = scores[i / 2][2 * half + i % 2];
                score = tile.sees(sight, token) ? score * (unit * tile.key_units[token]) : -INFINITY;
                most = fmaxf(most, score);
            }
            for (uint32_t d = 2; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, d));
            fade[half] = max[half] == -INFINITY ? 0.0f : expf(max[half] - most);
            max[half] = most;
            sum[half] *= fade[half];
#pragma unroll
            for (uint32_t i = 0; i < TOKENS / 4; i++) {
                float& score = scores[i / 2][2 * half + i % 2];
                const float share = score == -INFINITY ? 0.0f : expf(score - most);
                sum[half] += share;
                score = share * tile.value_units[i / 2 * 8 + column() + i % 2];
            }
        }
    }

    // out = fade * out + shares V.
    __device__ void add_values(const Tile& tile, const float (&shares)[TOKENS / 8][4], const float (&fade)[2]) {
        const uint32_t lane = threadIdx.x % WARP, b_row = lane % 16 * tile.stride + lane / 16 * 8;
        const float unit = *tile.unit;
        uint32_t high[TOKENS / 16][4], low[TOKENS / 16][4];
#pragma unroll
        for (uint32_t i = 0; i < TOKENS / 4; i++) {
            const float* two = shares[i / 2] + i % 2 * 2;
            split(two[0], two[1], high[i / 4][i % 4], low[i / 4][i % 4]);
        }
#pragma unroll
        for (uint32_t c = 0; c < MAX_WIDTH; c += 16) {
            if (c >= tile.width) break;
            float sums[2][4] = {};
#pragma unroll
            for (uint32_t step = 0; step < TOKENS / 16; step++) {
                uint32_t v[4];
                load_transposed(v, tile.codes + 16 * step * tile.stride + b_row + c);
                mma_f16(sums[0], high[step], v);
                mma_f16(sums[0], low[step], v);
                mma_f16(sums[1], high[step], v + 2);
                mma_f16(sums[1], low[step], v + 2);
            }
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                float& mine = out[c / 8 + i / 4][i % 4];
                mine = mine * fade[i % 4 / 2] + sums[i / 4][i % 4] * unit;
            }
        }
    }

    __device__ void store(const AttentionArgs& a, const AttentionJob& job) {
        const uint32_t dim = a.cache.head_dim;
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            for (uint32_t d = 2; d > 0; d /= 2) sum[half] += __shfl_xor_sync(FULL_WARP, sum[half], d);
            if (row(half) >= job.query_end - job.query_start) continue;
            const uint32_t part = job.part + row(half);
#pragma unroll
            for (uint32_t i = 0; i < MAX_WIDTH / 8; i++) {
                if (8 * i >= dim) break;
                float* to = a.part_out + uint64_t(part) * dim + 8 * i + column();
                to[0] = out[i][2 * half];
                to[1] = out[i][2 * half + 1];
            }
            if (column() != 0) continue;
            a.part_max[part] = max[half];
            a.part_sum[part] = sum[half];
        }
    }
};

template <uint32_t QUERIES, uint32_t TOKENS, uint32_t MAX_WIDTH>
__device__ inline void prefill_mma(const AttentionArgs& a, uint8_t* memory) {
    const AttentionJob job = a.jobs[blockIdx.x];
    const uint32_t count = job.query_end - job.query_start;
    MmaTile<QUERIES, TOKENS> tile(memory, a.cache.head_dim);
    load_levels(a.cache, tile.levels);
    tile.template load_queries<MAX_WIDTH>(a, job);
    MmaRows<QUERIES, TOKENS, MAX_WIDTH> rows = {{-INFINITY, -INFINITY}, {}, {}};
    Cursor cursor = {job.page_start, 0};
    cursor.advance(a.pages, job.page_end, 0);
    while (cursor.page < job.page_end) {
        __syncthreads(); // the tile before was read
        tile.find_tokens(a, job, cursor);
        cursor.advance(a.pages, job.page_end, TOKENS);
        __syncthreads();
        bool any = false;
        if (threadIdx.x < count) {
            const Sight seen = tile.sights[threadIdx.x];
            for (uint32_t token = 0; token < TOKENS; token++) any = any || tile.sees(seen, token);
        }
        if (!__syncthreads_or(any)) continue;
        tile.template load_codes<true>(a);
        __syncthreads();
        float scores[TOKENS / 8][4] = {}, fade[2];
        rows.multiply(tile, scores);
        __syncthreads(); // the keys were read
        tile.template load_codes<false>(a);
        rows.weigh(tile, scores, fade);
        __syncthreads();
        rows.add_values(tile, scores, fade);
    }
    rows.store(a, job);
}

// Head sizes up to 128.
KERNEL(attention_prefill_mma_64, AttentionArgs, 128) {
    SHARED(memory);
    prefill_mma<64, 32, 128>(a, memory);
}

// Head sizes up to 256.
KERNEL(attention_prefill_mma_32, AttentionArgs, 64) {
    SHARED(memory);
    prefill_mma<32, 16, 256>(a, memory);
}
