// a = decay * a + sum over the scored queries t that see the token of
//     (p/(1-p))^2 |v - o_t|^2,  p = exp(q_t k / sqrt(D) - lse_t)     Deletion
//     p                                                              AttentionMass
// or, once, 1/|k|                                                    KeyNorm
//
// A block takes a range of pages of one KV head; a team of D/8 threads keeps one token's K and V in
// registers while tiles of queries pass through shared memory. No token has two teams: no atomics.
//
// Reads each page once, sum over tokens of bytes(tier), and 2 bytes more to write: the floor. Queries
// (q and rotated o, 8 D bytes each) pass once for every batch of tokens, from L2.
#include "page.cuh"

constexpr uint32_t ATTRIBUTION_WARPS = 4;
constexpr uint32_t ATTRIBUTION_THREADS = ATTRIBUTION_WARPS * WARP;
constexpr float LARGEST_SHARE = 0.999f; // attribution.rs

// Queries in shared memory: q scaled and o (tile, D), what they see and their lse (tile).
struct QueryTile {
    float *q, *out, *lse;
    Sight* sights;

    __device__ QueryTile(uint8_t* memory, uint32_t tile, uint32_t dim) {
        q = reinterpret_cast<float*>(memory);
        out = q + tile * dim;
        lse = out + tile * dim;
        sights = reinterpret_cast<Sight*>(lse + tile);
    }

    __device__ void load(const AttributionArgs& a, const AttributionJob& job, uint32_t first, uint32_t count) {
        const uint32_t dim = a.cache.head_dim;
        const float scale = 1.0f / sqrtf(static_cast<float>(dim));
        for (uint32_t i = threadIdx.x; i < count * dim; i += blockDim.x) {
            const uint64_t at = index(a, job, first + i / dim) * dim + i % dim;
            q[i] = a.q[at] * scale;
            out[i] = a.rotated_out[at];
        }
        for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
            const uint64_t at = index(a, job, first + i);
            lse[i] = a.lse[at];
            sights[i] = sight(a.positions[at / a.num_heads], a.window);
        }
    }

    __device__ static uint64_t index(const AttributionArgs& a, const AttributionJob& job, uint32_t query) {
        const uint64_t row = job.first_row + query / a.group;
        return row * a.num_heads + job.kv_head * a.group + query % a.group;
    }
};

__device__ inline float dot(const float a[8], const float b[8]) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < 8; i++) sum += a[i] * b[i];
    return sum;
}

// The signal of one query for the team's token. The whole warp must call.
__device__ inline float signal_of(
    const QueryTile& tile, uint32_t query, uint32_t dim, const Team& team, const float k[8],
    const float v[8], uint32_t signal) {
    const uint32_t at = query * dim + 8 * team.lane;
    const float score = team.sum(dot(tile.q + at, k));
    const float p = expf(score - tile.lse[query]);
    if (signal != SIGNAL_DELETION) return p;
    float away = 0.0f;
    for (uint32_t i = 0; i < 8; i++) {
        const float d = v[i] - tile.out[at + i];
        away += d * d;
    }
    away = team.sum(away);
    const float share = fminf(p, LARGEST_SHARE), odds = share / (1.0f - share);
    return odds * odds * away;
}

// The sum of all queries' signals for the team's token. The whole block must call.
__device__ inline float signals_of(
    const AttributionArgs& a, const AttributionJob& job, const Team& team, QueryTile& tile,
    const float k[8], const float v[8], uint32_t position) {
    if (job.signal == SIGNAL_KEY_NORM) return 1.0f / fmaxf(sqrtf(team.sum(dot(k, k))), 1.17549435e-38f);
    float sum = 0.0f;
    for (uint32_t first = 0; first < job.num_queries; first += a.tile) {
        const uint32_t count = min(a.tile, job.num_queries - first);
        __syncthreads(); // the tile before was read
        tile.load(a, job, first, count);
        __syncthreads();
        for (uint32_t query = 0; query < count; query++) {
            const float signal = signal_of(tile, query, a.cache.head_dim, team, k, v, job.signal);
            if (tile.sights[query].sees(position)) sum += signal;
        }
    }
    return sum;
}

// Shared memory: levels (128), then a QueryTile.
KERNEL(attribution, AttributionArgs, ATTRIBUTION_THREADS) {
    SHARED(memory);
    int8_t* levels = reinterpret_cast<int8_t*>(memory);
    QueryTile tile(memory + NUM_LEVELS, a.tile, a.cache.head_dim);
    const AttributionJob job = a.jobs[blockIdx.x];
    const Team team(a.cache.head_dim);
    load_levels(a.cache, levels);
    __syncthreads();
    const uint32_t num_teams = ATTRIBUTION_WARPS * team.count;
    const uint32_t mine = threadIdx.x / WARP * team.count + team.index;
    for (uint32_t p = job.page_start; p < job.page_end; p++) {
        const Page page = a.pages[p];
        for (uint32_t start = 0; start < page.len; start += num_teams) {
            const bool live = team.works() && start + mine < page.len;
            const TokenRef token = token_at(a.cache, page.page, page.tier, live ? start + mine : 0);
            float k[8], v[8];
            token.key(team.lane, levels, k);
            token.value(team.lane, levels, v);
            const float sum = signals_of(a, job, team, tile, k, v, token.position(page.base));
            if (!live || team.lane != 0) continue;
            token.set_attribution(__fadd_rn(__fmul_rn(job.decay, token.attribution()), sum));
        }
    }
}

// out = R x: attention's output as values are cached. A block for each vector, a thread for each
// channel. Reads and writes 4 D bytes a vector.
KERNEL(rotate_heads, RotateArgs, MAX_DIM) {
    SHARED(memory);
    float* x = reinterpret_cast<float*>(memory); // (D)
    const uint32_t c = threadIdx.x, dim = a.head_dim, run = dim & (~dim + 1);
    const uint64_t at = uint64_t(blockIdx.x) * dim + c;
    if (c < dim) x[c] = a.x[at] * sign_of(c & (run - 1));
    __syncthreads();
    transform(x, 1, dim);
    if (c < dim) a.out[at] = x[c];
}

constexpr uint32_t READ_WARPS = 8;

// Position and attribution of every token of some pages, one warp a page. Reads 4 bytes a token,
// writes 8.
KERNEL(read_tokens, ReadTokensArgs, READ_WARPS * WARP) {
    const uint32_t p = blockIdx.x * READ_WARPS + threadIdx.x / WARP;
    if (p >= a.num_pages) return;
    const Page page = a.pages[p];
    for (uint32_t i = threadIdx.x % WARP; i < page.len; i += WARP) {
        const TokenRef token = token_at(a.cache, page.page, page.tier, i);
        a.token_positions[a.starts[p] + i] = token.position(page.base);
        a.token_attributions[a.starts[p] + i] = token.attribution();
    }
}

constexpr uint32_t HISTOGRAM_WARPS = 8;
constexpr uint32_t BINS = 64; // histogram.rs
constexpr int32_t LOWEST = -48;

__device__ inline uint32_t bin_of(float attribution) {
    const uint32_t bits = __float_as_uint(attribution);
    const int32_t bin = static_cast<int32_t>(bits >> 23) - 127 - LOWEST;
    if (bits >> 31 != 0 || bin < 0) return 0;
    return min(static_cast<uint32_t>(bin), BINS - 1);
}

__device__ inline bool is_wanted(const HistogramArgs& a, uint32_t position) {
    for (uint32_t i = 0; i < a.num_ranges; i++) {
        if (a.ranges[i].start <= position && position < a.ranges[i].end) return true;
    }
    return false;
}

// The numbers of a group's tokens by the octave of their attribution. A block for each group, a warp
// for each of its pages. Reads 4 bytes a token and writes 256 a group: the floor.
//
// Shared memory: the counts (BINS).
KERNEL(histogram, HistogramArgs, HISTOGRAM_WARPS * WARP) {
    SHARED(memory);
    uint32_t* counts = reinterpret_cast<uint32_t*>(memory);
    const uint32_t start = blockIdx.x == 0 ? 0 : a.ends[blockIdx.x - 1], end = a.ends[blockIdx.x];
    if (threadIdx.x < BINS) counts[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t p = start + threadIdx.x / WARP; p < end; p += HISTOGRAM_WARPS) {
        const Page page = a.pages[p];
        for (uint32_t i = threadIdx.x % WARP; i < page.len; i += WARP) {
            const TokenRef token = token_at(a.cache, page.page, page.tier, i);
            if (!is_wanted(a, token.position(page.base))) continue;
            atomicAdd(&counts[bin_of(token.attribution())], 1u);
        }
    }
    __syncthreads();
    if (threadIdx.x < BINS) a.counts[blockIdx.x * BINS + threadIdx.x] = counts[threadIdx.x];
}
