// q' = F^-T rope(q)   k' = F (rope(k) - mean)   v' = R v
//
// F is the head's key basis, R the Hadamard rotation; without a basis q' and k' are rotated too.
// qkv (T, H + 2G, D) -> q (T, H, D) and one F16 slot for each (row, KV head): K and V codes (D
// halves each), position (i16), attribution (bf16, 0).
//
// Moves 4 T (H + 2G) D + 4 T H D + T G (4 D + 4) bytes: the floor. A basis adds D * D floats for
// each head and 8 rows, from L2.
#include "page.cuh"

constexpr uint32_t ROWS = 8;

__device__ inline void rope(const WriteKvArgs& a, float* x, uint32_t first_row, uint32_t rows) {
    const uint32_t half = a.cache.head_dim / 2;
    for (uint32_t i = threadIdx.x; i < rows * half; i += blockDim.x) {
        const uint32_t row = i / half, c = i % half;
        const uint64_t at = uint64_t(first_row + row) * half + c;
        float* low = x + row * a.cache.head_dim + c;
        const float l = low[0], h = low[half], cos = a.cos[at], sin = a.sin[at];
        low[0] = l * cos - h * sin;
        low[half] = h * cos + l * sin;
    }
    __syncthreads();
}

// x = M x for each row; `columns` are those of M. Ends with a barrier.
__device__ inline void turn(const float* columns, float* x, uint32_t dim) {
    float sums[ROWS] = {};
    if (threadIdx.x < dim) {
        for (uint32_t c = 0; c < dim; c++) {
            const float m = columns[c * dim + threadIdx.x];
            for (uint32_t row = 0; row < ROWS; row++) sums[row] += m * x[row * dim + c];
        }
    }
    __syncthreads();
    if (threadIdx.x < dim) {
        for (uint32_t row = 0; row < ROWS; row++) x[row * dim + threadIdx.x] = sums[row];
    }
    __syncthreads();
}

__device__ inline void rotate(float* x, uint32_t dim) {
    for (uint32_t row = 0; row < ROWS; row++) {
        if (threadIdx.x < dim) x[row * dim + threadIdx.x] *= sign_of(threadIdx.x & ((dim & (~dim + 1)) - 1));
    }
    __syncthreads();
    transform(x, ROWS, dim);
}

// A block for each (head of a row, 8 rows), a thread for each channel.
KERNEL(write_kv, WriteKvArgs, MAX_DIM) {
    SHARED(memory);
    float* x = reinterpret_cast<float*>(memory); // (ROWS, D)
    const uint32_t dim = a.cache.head_dim, head = blockIdx.x, first_row = blockIdx.y * ROWS;
    const uint32_t rows = min(ROWS, a.num_rows - first_row);
    const uint32_t num_all = a.num_heads + 2 * a.num_kv_heads;
    for (uint32_t i = threadIdx.x; i < ROWS * dim; i += blockDim.x) {
        const uint64_t at = (uint64_t(first_row + i / dim) * num_all + head) * dim + i % dim;
        x[i] = i < rows * dim ? a.qkv[at] : 0.0f;
    }
    __syncthreads();
    const bool is_query = head < a.num_heads, is_key = !is_query && head < a.num_heads + a.num_kv_heads;
    if (is_query || is_key) rope(a, x, first_row, rows);
    if (is_query && a.query_columns != nullptr) {
        const uint64_t kv_head = head * a.num_kv_heads / a.num_heads;
        turn(a.query_columns + kv_head * dim * dim, x, dim);
    } else if (is_key && a.key_columns != nullptr) {
        const uint64_t kv_head = head - a.num_heads;
        for (uint32_t i = threadIdx.x; i < ROWS * dim; i += blockDim.x) x[i] -= a.means[kv_head * dim + i % dim];
        __syncthreads();
        turn(a.key_columns + kv_head * dim * dim, x, dim);
    } else {
        rotate(x, dim);
    }
    const uint32_t c = threadIdx.x;
    if (c >= dim) return;
    for (uint32_t row = 0; row < rows; row++) {
        const float value = x[row * dim + c];
        if (is_query) {
            a.q[(uint64_t(first_row + row) * a.num_heads + head) * dim + c] = value;
            continue;
        }
        const uint32_t kv_head = (head - a.num_heads) % a.num_kv_heads;
        const Write write = a.writes[uint64_t(kv_head) * a.num_rows + first_row + row];
        const TokenRef token = token_at(a.cache, write.page, 0, write.index);
        const uint32_t codes = is_key ? token.tier->keys : token.tier->values;
        uint16_t* slot = reinterpret_cast<uint16_t*>(token.bytes + codes + write.index * 2 * dim);
        slot[c] = to_f16(value);
        if (is_key && c == 0) {
            token.set_number(token.tier->positions, static_cast<uint16_t>(write.offset));
            token.set_number(token.tier->attributions, 0);
        }
    }
}
