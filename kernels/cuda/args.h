// What the kernels are told: one struct for each, passed by value. kernels/src/cuda/args.rs has the
// same structs; sizes are checked on both sides.
#pragma once
#include <stdint.h>

// The largest head size. A thread owns 8 channels, a warp 256.
constexpr uint32_t MAX_DIM = 256;
constexpr uint32_t MAX_LANES = MAX_DIM / 8;

enum : uint32_t { FORMAT_F16 = 0, FORMAT_INT8 = 1, FORMAT_LEVELS = 2 };
enum : uint32_t { SIGNAL_DELETION = 0, SIGNAL_ATTENTION_MASS = 1, SIGNAL_KEY_NORM = 2 };

// How a vector is coded: codec.rs at one head size. Lane i, channels 8i..8i+8, has `bits[i]` bytes
// from `offsets[i]` on.
struct Format {
    uint32_t kind;
    float unit; // what a signed byte is worth under the scale 1
    uint8_t bits[MAX_LANES];
    uint8_t offsets[MAX_LANES];
};

// Where the arrays of a page of one tier start, in bytes: PageArrays of page.rs.
struct Tier {
    uint32_t keys, values, key_scales, value_scales, positions, attributions, key_bytes, value_bytes;
    Format key, value;
};

// The page memory and how to read it.
struct Cache {
    uint8_t* arena;
    const Tier* tiers;
    const int8_t* levels; // (128), codec.rs
    uint32_t page_bytes;
    uint32_t head_dim;
};

struct Page {
    uint32_t page, base;
    uint16_t len;
    uint8_t tier, unused;
};

// out (rows, width) from x (rows, width), weight (width).
struct RmsNormArgs {
    float* out;
    const float *x, *weight;
    uint32_t width;
    float eps;
};

// out (len) from x, y (len).
struct AddArgs {
    float* out;
    const float *x, *y;
    uint64_t len;
};

// out (rows, half) from gate_up (rows, 2 * half).
struct SiluMulArgs {
    float* out;
    const float* gate_up;
    uint64_t rows;
    uint64_t half;
};

struct Write {
    uint32_t page;
    uint16_t index;
    int16_t offset;
};

// q (T, H, D) and the cache from qkv (T, H + 2G, D). cos, sin (T, D/2). writes (G, T). The basis is
// that of the layer: means (G, D), columns (G, D, D); null without one.
struct WriteKvArgs {
    Cache cache;
    float* q;
    const float *qkv, *cos, *sin;
    const Write* writes;
    const float *means, *key_columns, *query_columns;
    uint32_t num_rows, num_heads, num_kv_heads, unused;
};

// The queries `query_start..query_end` of one (span, KV head), counted row by row, over some of its
// pages. Query i leaves its part in slot `part + i - query_start`.
struct AttentionJob {
    uint32_t page_start, page_end;
    uint32_t first_row, kv_head;
    uint32_t query_start, query_end;
    uint32_t part, unused;
};

// q (T, H, D), positions (T). part_out (parts, D), part_max and part_sum (parts): sums of
// exp(score - max) v and of exp(score - max).
struct AttentionArgs {
    Cache cache;
    const float* q;
    const uint32_t* positions;
    const Page* pages;
    const AttentionJob* jobs;
    float *part_out, *part_max, *part_sum;
    uint32_t num_heads, group, window; // no window: UINT32_MAX
    uint32_t fetches;                  // whether shared memory has room for pages
};

// Parts `first + i * stride`, i < count, make up one output.
struct Merge {
    uint32_t first, stride, count;
};

// out (T, H, D), lse (T, H), merges (T, H).
struct MergeArgs {
    float *out, *lse;
    const float *part_out, *part_max, *part_sum;
    const Merge* merges;
    uint32_t head_dim, unused;
};

// The pages `page_start..page_end` of one (span, KV head) and its scored queries.
struct AttributionJob {
    uint32_t page_start, page_end;
    uint32_t first_row, kv_head;
    uint32_t num_queries, signal;
    float decay;
    uint32_t unused;
};

// q, rotated_out (T, H, D), lse (T, H), positions (T).
struct AttributionArgs {
    Cache cache;
    const float *q, *rotated_out, *lse;
    const uint32_t* positions;
    const Page* pages;
    const AttributionJob* jobs;
    uint32_t num_heads, group, window, tile; // queries that are in shared memory together
};

// out (vectors, D) from x (vectors, D).
struct RotateArgs {
    float* out;
    const float* x;
    uint32_t head_dim, unused;
};

// positions, attributions (tokens); `starts` (pages): where a page's tokens go.
struct ReadTokensArgs {
    Cache cache;
    const Page* pages;
    const uint32_t* starts;
    uint32_t* token_positions;
    float* token_attributions;
    uint32_t num_pages, unused;
};

struct Range {
    uint32_t start, end;
};

struct PagePair {
    uint32_t from, to;
};

struct CopyPagesArgs {
    uint8_t* arena;
    const PagePair* pairs;
    uint64_t page_bytes; // a multiple of 16
};

// counts (groups, BINS): of the tokens of each group whose positions lie in one of `ranges`. `ends`
// (groups): where the pages of a group end, at which those of the next begin.
struct HistogramArgs {
    Cache cache;
    const Page* pages;
    const uint32_t* ends;
    const Range* ranges;
    uint32_t* counts;
    uint32_t num_ranges, unused;
};

struct MoveToken {
    uint32_t from_page, to_page;
    uint16_t from_index, to_index;
    int16_t offset;
    uint8_t from_tier, to_tier;
};

// staging (moves, stride): each token as its new page will hold it.
struct CompactArgs {
    Cache cache;
    const MoveToken* moves;
    uint8_t* staging;
    uint32_t num_moves, stride;
};

// Weights, and activations, that share a scale.
constexpr uint32_t BLOCK = 32;

// x = scale * (256 * high + low); `sum` is that of x, as coded.
struct Activation {
    int8_t high[BLOCK], low[BLOCK];
    float scale, sum;
};

// out (rows, K/32) from x (rows, K): `num_blocks` in all.
struct QuantizeArgs {
    Activation* out;
    const float* x;
    uint64_t num_blocks;
};

// y (num_x, rows) from x (num_x, num_blocks) and W (rows, num_blocks).
struct LinearArgs {
    float* y;
    const Activation* x;
    const uint8_t* codes;
    const uint16_t* scales;
    uint32_t num_x, rows, num_blocks, unused;
};

// out (num_ids, K) from W (rows, num_blocks).
struct LinearRowsArgs {
    float* out;
    const uint32_t* ids;
    const uint8_t* codes;
    const uint16_t* scales;
    uint64_t num_ids;
    uint32_t num_blocks, bits;
};

static_assert(sizeof(Activation) == 72 && sizeof(QuantizeArgs) == 24, "as in args.rs");
static_assert(sizeof(LinearArgs) == 48 && sizeof(LinearRowsArgs) == 48, "as in args.rs");
static_assert(sizeof(Format) == 72 && sizeof(Tier) == 176 && sizeof(Cache) == 32, "as in args.rs");
static_assert(sizeof(Page) == 12 && sizeof(Write) == 8 && sizeof(Merge) == 12, "as in args.rs");
static_assert(sizeof(MoveToken) == 16 && sizeof(AttentionJob) == 32, "as in args.rs");
static_assert(sizeof(AttributionJob) == 32 && sizeof(RmsNormArgs) == 32, "as in args.rs");
static_assert(sizeof(AddArgs) == 32 && sizeof(SiluMulArgs) == 32, "as in args.rs");
static_assert(sizeof(WriteKvArgs) == 112 && sizeof(AttentionArgs) == 104, "as in args.rs");
static_assert(sizeof(MergeArgs) == 56 && sizeof(AttributionArgs) == 96, "as in args.rs");
static_assert(sizeof(RotateArgs) == 24 && sizeof(ReadTokensArgs) == 72, "as in args.rs");
static_assert(sizeof(CopyPagesArgs) == 24, "as in args.rs");
static_assert(sizeof(HistogramArgs) == 72 && sizeof(CompactArgs) == 56, "as in args.rs");
