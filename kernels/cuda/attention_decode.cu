// Attention of few queries over many pages: split over pages, parts merged by attention_merge.
//
//   part_max = max_j s_j   part_sum = sum_j exp(s_j - part_max)   part_out = sum_j exp(s_j - part_max) v_j
//   s_j = q k_j / sqrt(D)  over the tokens j of the job's pages that the query sees
//
// A block takes one job: up to HEADS queries that share a KV head, and a range of its pages, of any
// tiers. A warp takes a page at a time, which an asynchronous copy brings to shared memory while it works
// on the one before; where two pages of each warp do not fit, it reads them where they lie. A team of D/8
// threads takes a token; each thread decodes 8 channels of K and V once for all queries, from one load
// of up to 128 bits each.
//
// Reads each page once per HEADS queries: sum over tokens of bytes(tier), the floor, as long as a KV
// head has no more than HEADS query heads. Parts add 4 (D + 2) bytes per job and query.
#include "page.cuh"

constexpr uint32_t DECODE_WARPS = 4;
constexpr uint32_t DECODE_THREADS = DECODE_WARPS * WARP;

// What a team knows of the tokens it has seen, for one query.
struct Softmax {
    float max, sum;
    float out[8];

    __device__ void add(float score, const float v[8]) {
        float p = 1.0f;
        if (score > max) {
            const float fade = expf(max - score);
            sum *= fade;
            for (uint32_t i = 0; i < 8; i++) out[i] *= fade;
            max = score;
        } else {
            p = expf(score - max);
        }
        sum += p;
        for (uint32_t i = 0; i < 8; i++) out[i] += p * v[i];
    }
};

template <uint32_t HEADS>
__device__ inline void attend_page(
    const AttentionArgs& a, const Page& page, uint8_t* bytes, const Team& team, const float* q,
    const Sight* sights, const int8_t* levels, Softmax (&softmax)[HEADS]) {
    const uint32_t dim = a.cache.head_dim;
    for (uint32_t start = 0; start < page.len; start += team.count) {
        const uint32_t index = start + team.index;
        const bool live = team.works() && index < page.len;
        const TokenRef token = {bytes, a.cache.tiers + page.tier, live ? index : 0};
        float k[8], v[8];
        token.key(team.lane, levels, k);
        token.value(team.lane, levels, v);
        const uint32_t position = token.position(page.base);
#pragma unroll
        for (uint32_t h = 0; h < HEADS; h++) {
            const float4* query = reinterpret_cast<const float4*>(q + h * dim + 8 * team.lane);
            const float4 low = query[0], high = query[1];
            float dot = low.x * k[0] + low.y * k[1] + low.z * k[2] + low.w * k[3];
            dot += high.x * k[4] + high.y * k[5] + high.z * k[6] + high.w * k[7];
            const float score = team.sum(dot);
            if (live && sights[h].sees(position)) softmax[h].add(score, v);
        }
    }
}

// Starts to copy a page. The whole warp must call.
__device__ inline void fetch(const Cache& cache, const Page& page, uint8_t* to) {
    const uint8_t* from = page_at(cache, page.page);
    for (uint32_t i = threadIdx.x % WARP * 16; i < cache.page_bytes; i += WARP * 16) {
        copy_async<16>(to + i, from + i, true);
    }
}

// Merges what all teams of the block know into the job's part. `parts` (teams, HEADS, D + 2) lies in
// shared memory.
template <uint32_t HEADS>
__device__ inline void merge_teams(
    const AttentionArgs& a, const AttentionJob& job, const Team& team,
    const Softmax (&softmax)[HEADS], float* parts) {
    const uint32_t dim = a.cache.head_dim, stride = dim + 2;
    if (team.works()) {
        const uint32_t index = threadIdx.x / WARP * team.count + team.index;
        float* mine = parts + index * HEADS * stride;
#pragma unroll
        for (uint32_t h = 0; h < HEADS; h++) {
            for (uint32_t i = 0; i < 8; i++) mine[h * stride + 8 * team.lane + i] = softmax[h].out[i];
            if (team.lane == 0) {
                mine[h * stride + dim] = softmax[h].max;
                mine[h * stride + dim + 1] = softmax[h].sum;
            }
        }
    }
    __syncthreads();
    const uint32_t num_teams = DECODE_WARPS * team.count, num_queries = job.query_end - job.query_start;
    for (uint32_t i = threadIdx.x; i < num_queries * dim; i += blockDim.x) {
        const uint32_t h = i / dim, c = i % dim;
        float max = -INFINITY, sum = 0.0f, out = 0.0f;
        for (uint32_t t = 0; t < num_teams; t++) max = fmaxf(max, parts[(t * HEADS + h) * stride + dim]);
        for (uint32_t t = 0; t < num_teams; t++) {
            const float* part = parts + (t * HEADS + h) * stride;
            if (part[dim] == -INFINITY) continue;
            const float share = expf(part[dim] - max);
            sum += share * part[dim + 1];
            out += share * part[c];
        }
        a.part_out[uint64_t(job.part + h) * dim + c] = out;
        if (c == 0) {
            a.part_max[job.part + h] = max;
            a.part_sum[job.part + h] = sum;
        }
    }
}

// Shared memory: levels (128), sights (HEADS), queries (HEADS, D), and two pages of each warp if `fetches`.
// Parts take the place of queries and pages.
template <uint32_t HEADS>
__device__ inline void attend(const AttentionArgs& a, uint8_t* memory) {
    int8_t* levels = reinterpret_cast<int8_t*>(memory);
    Sight* sights = reinterpret_cast<Sight*>(memory + NUM_LEVELS);
    // Read 16 bytes at a time.
    float* q = reinterpret_cast<float*>(memory + NUM_LEVELS + max(HEADS, 2u) * sizeof(Sight));
    const AttentionJob job = a.jobs[blockIdx.x];
    const uint32_t dim = a.cache.head_dim, num_queries = job.query_end - job.query_start;
    const float scale = 1.0f / sqrtf(static_cast<float>(dim));
    load_levels(a.cache, levels);
    for (uint32_t i = threadIdx.x; i < HEADS * dim; i += blockDim.x) {
        const uint32_t query = job.query_start + i / dim, head = job.kv_head * a.group + query % a.group;
        const uint64_t row = job.first_row + query / a.group;
        q[i] = i / dim < num_queries ? a.q[(row * a.num_heads + head) * dim + i % dim] * scale : 0.0f;
    }
    if (threadIdx.x < HEADS) {
        const uint32_t row = job.first_row + (job.query_start + threadIdx.x) / a.group;
        const Sight nothing = {1, 0};
        sights[threadIdx.x] = threadIdx.x < num_queries ? sight(a.positions[row], a.window) : nothing;
    }
    __syncthreads();
    const Team team(dim);
    Softmax softmax[HEADS];
#pragma unroll
    for (uint32_t h = 0; h < HEADS; h++) softmax[h] = {-INFINITY, 0.0f, {}};
    uint8_t* fetched = reinterpret_cast<uint8_t*>(q + HEADS * dim) + threadIdx.x / WARP * 2 * a.cache.page_bytes;
    uint32_t p = job.page_start + threadIdx.x / WARP;
    if (a.fetches && p < job.page_end) fetch(a.cache, a.pages[p], fetched);
    end_copies();
    for (uint32_t turn = 0; p < job.page_end; p += DECODE_WARPS, turn ^= 1) {
        const uint32_t next = p + DECODE_WARPS;
        uint8_t* bytes = a.fetches ? fetched + turn * a.cache.page_bytes : page_at(a.cache, a.pages[p].page);
        if (a.fetches && next < job.page_end) {
            fetch(a.cache, a.pages[next], fetched + (turn ^ 1) * a.cache.page_bytes);
        }
        end_copies();
        wait_copies<1>();
        __syncwarp();
        attend_page<HEADS>(a, a.pages[p], bytes, team, q, sights, levels, softmax);
        __syncwarp(); // the page was read
    }
    __syncthreads(); // queries and pages were read
    merge_teams<HEADS>(a, job, team, softmax, q);
}

KERNEL(attention_decode_1, AttentionArgs, DECODE_THREADS) {
    SHARED(memory);
    attend<1>(a, memory);
}

KERNEL(attention_decode_2, AttentionArgs, DECODE_THREADS) {
    SHARED(memory);
    attend<2>(a, memory);
}

KERNEL(attention_decode_4, AttentionArgs, DECODE_THREADS) {
    SHARED(memory);
    attend<4>(a, memory);
}

KERNEL(attention_decode_8, AttentionArgs, DECODE_THREADS) {
    SHARED(memory);
    attend<8>(a, memory);
}

// out = R^-1 (sum_i w_i part_out_i) / (sum_i w_i part_sum_i)   w_i = exp(part_max_i - max)
// lse = max + log(sum_i w_i part_sum_i)
//
// A block for each (row, head), a thread for each channel. Reads 4 (D + 2) bytes a part, writes
// 4 (D + 1).
KERNEL(attention_merge, MergeArgs, MAX_DIM) {
    SHARED(memory);
    float* x = reinterpret_cast<float*>(memory); // (D)
    const Merge merge = a.merges[blockIdx.x];
    const uint32_t c = threadIdx.x, dim = a.head_dim;
    float max = -INFINITY, sum = 0.0f, out = 0.0f;
    for (uint32_t i = 0; i < merge.count; i++) max = fmaxf(max, a.part_max[merge.first + i * merge.stride]);
    for (uint32_t i = 0; i < merge.count; i++) {
        const uint32_t part = merge.first + i * merge.stride;
        if (a.part_max[part] == -INFINITY) continue;
        const float share = expf(a.part_max[part] - max);
        sum += share * a.part_sum[part];
        if (c < dim) out += share * a.part_out[uint64_t(part) * dim + c];
    }
    if (c < dim) x[c] = sum > 0.0f ? out / sum : 0.0f;
    __syncthreads();
    transform(x, 1, dim);
    const uint32_t run = dim & (~dim + 1);
    if (c < dim) a.out[uint64_t(blockIdx.x) * dim + c] = x[c] * sign_of(c & (run - 1));
    if (c == 0) a.lse[blockIdx.x] = max + logf(sum); // nothing seen: -inf
}
