// Attention of many queries over the pages of their sequence, one tile of queries to a block: parts
// as in attention_decode.cu.
//
// Tiles of tokens, from as many pages as it takes, are decoded into shared memory: K for the scores,
// then V in its place. Sums stay in float: what is lost to half precision here, no later step brings
// back. A thread of 256 owns 16 channels at most of one query's output, and a share of its scores.
//
// Reads the pages once per tile of queries: len * bytes(tier) * ceil(queries / QUERIES), mostly from
// L2; the floor is one reading. Tiles that no query sees are not decoded. Multiplies 2 * queries * len *
// D floats, which bounds it: the plain twin of attention_prefill_mma.cu.
#include "cursor.cuh"

constexpr uint32_t PREFILL_THREADS = 256;
constexpr uint32_t OWN_CHANNELS = 16;

// Shared memory of a block of QUERIES queries and as many tokens. Rows are padded so that neighbours
// meet different banks.
template <uint32_t QUERIES>
struct Tile {
    static constexpr uint32_t TOKENS = QUERIES;
    int8_t* levels;      // (128)
    float* scores;       // (QUERIES, TOKENS): the shares
    uint32_t* pages;     // (TOKENS): number in the plan, NONE for a token that is not there
    uint32_t* indices;   // (TOKENS): place in the page
    uint32_t* positions; // (TOKENS)
    float* q;            // (QUERIES, D + 4)
    float* vectors;      // (TOKENS, D + 4): K, then V
    uint32_t stride;

    __device__ Tile(uint8_t* memory, uint32_t dim) {
        levels = reinterpret_cast<int8_t*>(memory);
        scores = reinterpret_cast<float*>(memory + NUM_LEVELS);
        pages = reinterpret_cast<uint32_t*>(scores + QUERIES * TOKENS);
        indices = pages + TOKENS;
        positions = indices + TOKENS;
        q = reinterpret_cast<float*>(positions + TOKENS);
        stride = dim + 4;
        vectors = q + QUERIES * stride;
    }

    __device__ bool sees(Sight sight, uint32_t token) const {
        return pages[token] != NONE && sight.sees(positions[token]);
    }
};

// Finds the tile's tokens from `start` on, one thread each, and their positions.
template <uint32_t QUERIES>
__device__ inline void find_tokens(
    const AttentionArgs& a, const AttentionJob& job, Cursor start, Tile<QUERIES>& tile) {
    const uint32_t token = threadIdx.x;
    if (token >= Tile<QUERIES>::TOKENS) return;
    start.advance(a.pages, job.page_end, token);
    const bool exists = start.page < job.page_end;
    tile.pages[token] = exists ? start.page : NONE;
    tile.indices[token] = start.index;
    if (!exists) return;
    const Page page = a.pages[start.page];
    tile.positions[token] = token_at(a.cache, page.page, page.tier, start.index).position(page.base);
}

// Decodes K or V of the tile's tokens. What is not there is zero.
template <uint32_t QUERIES, bool IS_KEY>
__device__ inline void load_tokens(const AttentionArgs& a, Tile<QUERIES>& tile) {
    const uint32_t lanes = a.cache.head_dim / 8;
    for (uint32_t i = threadIdx.x; i < Tile<QUERIES>::TOKENS * lanes; i += blockDim.x) {
        const uint32_t token = i / lanes, lane = i % lanes;
        float x[8] = {};
        if (tile.pages[token] != NONE) {
            const Page page = a.pages[tile.pages[token]];
            const TokenRef ref = token_at(a.cache, page.page, page.tier, tile.indices[token]);
            if (IS_KEY) ref.key(lane, tile.levels, x);
            else ref.value(lane, tile.levels, x);
        }
        float4* to = reinterpret_cast<float4*>(tile.vectors + token * tile.stride + 8 * lane);
        to[0] = make_float4(x[0], x[1], x[2], x[3]);
        to[1] = make_float4(x[4], x[5], x[6], x[7]);
    }
}

// The output of one query as far as this thread owns it, and its softmax, which all threads of the
// query know.
template <uint32_t QUERIES>
struct Rows {
    static constexpr uint32_t THREADS = PREFILL_THREADS / QUERIES; // of a query
    static constexpr uint32_t TOKENS = Tile<QUERIES>::TOKENS;
    static constexpr uint32_t OWN_TOKENS = TOKENS / THREADS;
    float max, sum, out[OWN_CHANNELS];

    __device__ void attend(Tile<QUERIES>& tile, Sight sight, uint32_t dim) {
        const uint32_t query = threadIdx.x / THREADS, lane = threadIdx.x % THREADS;
        float scores[OWN_TOKENS], most = max;
#pragma unroll
        for (uint32_t i = 0; i < OWN_TOKENS; i++) {
            const uint32_t token = lane + i * THREADS;
            scores[i] = tile.sees(sight, token) ? dot(tile, query, token, dim) : -INFINITY;
            most = fmaxf(most, scores[i]);
        }
        for (uint32_t d = THREADS / 2; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, d));
        const float fade = max == -INFINITY ? 0.0f : expf(max - most);
        float total = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < OWN_TOKENS; i++) {
            const uint32_t token = lane + i * THREADS;
            const float share = scores[i] == -INFINITY ? 0.0f : expf(scores[i] - most);
            tile.scores[query * TOKENS + token] = share;
            total += share;
        }
        for (uint32_t d = THREADS / 2; d > 0; d /= 2) total += __shfl_xor_sync(FULL_WARP, total, d);
        max = most;
        sum = sum * fade + total;
#pragma unroll
        for (uint32_t i = 0; i < OWN_CHANNELS; i++) out[i] *= fade;
    }

    __device__ static float dot(const Tile<QUERIES>& tile, uint32_t query, uint32_t token, uint32_t dim) {
        const float4* q = reinterpret_cast<const float4*>(tile.q + query * tile.stride);
        const float4* k = reinterpret_cast<const float4*>(tile.vectors + token * tile.stride);
        float sum = 0.0f;
        for (uint32_t i = 0; i < dim / 4; i++) {
            sum += q[i].x * k[i].x + q[i].y * k[i].y + q[i].z * k[i].z + q[i].w * k[i].w;
        }
        return sum;
    }

    __device__ void add_values(const Tile<QUERIES>& tile, uint32_t dim) {
        const uint32_t query = threadIdx.x / THREADS, lane = threadIdx.x % THREADS;
        for (uint32_t token = 0; token < TOKENS; token++) {
            const float share = tile.scores[query * TOKENS + token];
#pragma unroll
            for (uint32_t i = 0; i < OWN_CHANNELS; i++) {
                const uint32_t c = lane + i * THREADS;
                if (c < dim) out[i] += share * tile.vectors[token * tile.stride + c];
            }
        }
    }
};

template <uint32_t QUERIES>
__device__ inline void load_queries(const AttentionArgs& a, const AttentionJob& job, Tile<QUERIES>& tile) {
    const uint32_t dim = a.cache.head_dim, count = job.query_end - job.query_start;
    const float scale = 1.0f / sqrtf(static_cast<float>(dim));
    for (uint32_t i = threadIdx.x; i < QUERIES * dim; i += blockDim.x) {
        const uint32_t query = job.query_start + i / dim, head = job.kv_head * a.group + query % a.group;
        const uint64_t row = job.first_row + query / a.group;
        const bool exists = i / dim < count;
        tile.q[i / dim * tile.stride + i % dim] =
            exists ? a.q[(row * a.num_heads + head) * dim + i % dim] * scale : 0.0f;
    }
}

template <uint32_t QUERIES>
__device__ inline void prefill(const AttentionArgs& a, uint8_t* memory) {
    const AttentionJob job = a.jobs[blockIdx.x];
    const uint32_t dim = a.cache.head_dim, count = job.query_end - job.query_start;
    const uint32_t query = threadIdx.x / Rows<QUERIES>::THREADS;
    Tile<QUERIES> tile(memory, dim);
    load_levels(a.cache, tile.levels);
    load_queries(a, job, tile);
    Sight seen = {1, 0};
    if (query < count) seen = sight(a.positions[job.first_row + (job.query_start + query) / a.group], a.window);
    Rows<QUERIES> rows = {-INFINITY, 0.0f, {}};
    Cursor cursor = {job.page_start, 0};
    cursor.advance(a.pages, job.page_end, 0);
    while (cursor.page < job.page_end) {
        __syncthreads(); // the tile before was read
        find_tokens(a, job, cursor, tile);
        cursor.advance(a.pages, job.page_end, Tile<QUERIES>::TOKENS);
        __syncthreads();
        bool any = false;
        for (uint32_t token = 0; token < Tile<QUERIES>::TOKENS; token++) any = any || tile.sees(seen, token);
        if (!__syncthreads_or(any)) continue;
        load_tokens<QUERIES, true>(a, tile);
        __syncthreads();
        rows.attend(tile, seen, dim);
        __syncthreads(); // the keys were read
        load_tokens<QUERIES, false>(a, tile);
        __syncthreads();
        rows.add_values(tile, dim);
    }
    if (query >= count) return;
    const uint32_t part = job.part + query, lane = threadIdx.x % Rows<QUERIES>::THREADS;
#pragma unroll
    for (uint32_t i = 0; i < OWN_CHANNELS; i++) {
        const uint32_t c = lane + i * Rows<QUERIES>::THREADS;
        if (c < dim) a.part_out[uint64_t(part) * dim + c] = rows.out[i];
    }
    if (lane == 0) {
        a.part_max[part] = rows.max;
        a.part_sum[part] = rows.sum;
    }
}

// Head sizes up to 128.
KERNEL(attention_prefill_32, AttentionArgs, PREFILL_THREADS) {
    SHARED(memory);
    prefill<32>(a, memory);
}

// Head sizes up to 256.
KERNEL(attention_prefill_16, AttentionArgs, PREFILL_THREADS) {
    SHARED(memory);
    prefill<16>(a, memory);
}
