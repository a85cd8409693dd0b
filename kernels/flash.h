// Attention on matrix units: the arithmetic of attention.h (splits of 256 positions, merged in order) with q rounded to
// f16, as the cache is, and weights of a split rounded to f16. A block takes up to Q queries that share a kv head, 128
// threads, a split at a time: scores [positions, queries] = keys times queries, each warp for its own positions, held
// in registers; then weights through shared memory; then outputs [queries, values] = weights times values, each warp
// for its own values. Keys and values go from the cache straight to the registers of the lane that needs them: which
// position is which row of a matrix, and which value which column, is chosen so that a lane's share lies side by side.
#pragma once
#include "attention.h"
#include "mma.h"

#if defined(LQ_MMA)

constexpr u32 LQ_FLASH_THREADS = 128;
constexpr u32 LQ_FLASH_WARPS = LQ_FLASH_THREADS / LQ_WARP;
constexpr u32 LQ_WARP_POSITIONS = LQ_SPLIT / LQ_FLASH_WARPS;
constexpr u32 LQ_LANE_POSITIONS = 8;                          // of a warp's, side by side
constexpr u32 LQ_KEY_TILES = LQ_WARP_POSITIONS / 16;          // of 16 positions
constexpr u32 LQ_FLASH_PARTS = LQ_SPLIT / LQ_LANE_POSITIONS;  // lanes that share a query's positions
constexpr u32 LQ_LANE_VALUES = 4;                             // side by side
constexpr u32 LQ_PASS_VALUES = LQ_MMA_COLS * LQ_LANE_VALUES;  // of a warp at once
constexpr u32 LQ_WEIGHTS_STRIDE = LQ_SPLIT + 32;              // f16 from query to query: no bank conflicts
static_assert(LQ_KEY_TILES * LQ_MMA_ROWS == LQ_LANE_POSITIONS, "rows of a lane");

/// Shared memory of a block.
struct LqFlashTile {
    u64* entries; // [LQ_SPLIT] where the cache has each position
    u16* weights; // f16 [Q][LQ_WEIGHTS_STRIDE]
    LqU4* stage;  // [2][Q][4]: 8 slots of f16 of each query; when scores are done, f32 [Q][LQ_FLASH_PARTS]
    float* most;  // [Q]
    float* sums;  // [Q]
    u32* seen;    // [Q] positions of the split
};

LQ_DEV u32 lq_f16_pair(float low, float high) {
    return lq_float_to_f16(low) | (u32)lq_float_to_f16(high) << 16;
}

/// The 8 slots of lane `quad` of block `block` of 32: values 8 quad .. of each query, f16, zeros beyond the end.
template <int Q>
LQ_DEV void lq_stage_queries(const LqAttention& a, u32 block, LqU4* stage) {
    u32 queries = a.rows * a.heads;
    for (u32 at = threadIdx.x; at < Q * 4; at += LQ_FLASH_THREADS) {
        u32 i = at / 4, from = block * 32 + at % 4 * 8;
        float q[8];
#pragma unroll
        for (u32 d = 0; d < 8; d++) q[d] = 0.0f;
        if (i < queries) {
            const float* of_query = lq_head(a.q, a.first_row + i / a.heads, a.first_head + i % a.heads) + from;
#pragma unroll
            for (u32 d = 0; d < 8; d++) {
                if (from + d < a.kv.k_dim) q[d] = of_query[d];
            }
        }
        LqU4 slots;
#pragma unroll
        for (u32 d = 0; d < 4; d++) slots.v[d] = lq_f16_pair(q[2 * d], q[2 * d + 1]);
        stage[at] = slots;
    }
}

/// 8 values of a key from `from` on, zeros beyond the end.
LQ_DEV LqU4 lq_key_slots(const LqAttention& a, u64 entry, u32 from, bool aligned) {
    const u16* key = a.kv.cells + entry + a.kv_head * a.kv.k_dim + from;
    if (aligned && from + 8 <= a.kv.k_dim) return *reinterpret_cast<const LqU4*>(key);
    LqU4 slots = {{0, 0, 0, 0}};
#pragma unroll
    for (u32 d = 0; d < 8; d++) {
        if (from + d < a.kv.k_dim) slots.v[d / 2] |= (u32)key[d] << (d % 2 * 16);
    }
    return slots;
}

/// Position of this lane's row `row` of key tile `m`, counted from the start of the split.
LQ_DEV u32 lq_flash_position(u32 m, u32 row) {
    return lq_warp() * LQ_WARP_POSITIONS + lq_mma_row(0) * LQ_LANE_POSITIONS + m * LQ_MMA_ROWS + row;
}

/// scores[m][n] of the warp's positions and all queries, not scaled. Positions from `count` on have zeros.
template <int Q>
LQ_DEV void lq_flash_scores(const LqAttention& a, u32 count, const LqFlashTile& tile,
                            float (&scores)[LQ_KEY_TILES][Q / LQ_MMA_COLS][4]) {
    u32 blocks = (a.kv.k_dim + 31) / 32, queries = a.rows * a.heads;
    bool works = lq_warp() * LQ_WARP_POSITIONS < count;
    bool aligned = (a.kv.k_dim | a.kv.entry_values) % 8 == 0;
    lq_stage_queries<Q>(a, 0, tile.stage);
    lq_sync(); // for the entries, too
#pragma unroll 1
    for (u32 block = 0; block < blocks; block++) {
        if (block + 1 < blocks) lq_stage_queries<Q>(a, block + 1, tile.stage + (block + 1) % 2 * Q * 4);
        const LqU4* stage = tile.stage + block % 2 * Q * 4;
        if (works) {
            LqU4 keys[LQ_KEY_TILES][LQ_MMA_ROWS];
#pragma unroll
            for (u32 i = 0; i < LQ_LANE_POSITIONS; i++) {
                u32 position = lq_flash_position(i / LQ_MMA_ROWS, i % LQ_MMA_ROWS);
                LqU4 slots = {{0, 0, 0, 0}};
                if (position < count) {
                    slots = lq_key_slots(a, tile.entries[position], block * 32 + lq_mma_quad() * 8, aligned);
                }
                keys[i / LQ_MMA_ROWS][i % LQ_MMA_ROWS] = slots;
            }
#pragma unroll
            for (u32 n = 0; n < Q / LQ_MMA_COLS; n++) {
                if (n * LQ_MMA_COLS >= queries) continue;
                LqU4 x = stage[(n * LQ_MMA_COLS + lq_mma_col()) * 4 + lq_mma_quad()];
#pragma unroll
                for (u32 m = 0; m < LQ_KEY_TILES; m++) {
#pragma unroll
                    for (u32 s = 0; s < 2; s++) {
                        u32 k[LQ_MMA_ROWS][2], q[2] = {x.v[2 * s], x.v[2 * s + 1]};
#pragma unroll
                        for (u32 row = 0; row < LQ_MMA_ROWS; row++) {
                            k[row][0] = keys[m][row].v[2 * s], k[row][1] = keys[m][row].v[2 * s + 1];
                        }
                        lq_mma<true>(scores[m][n], k, q);
                    }
                }
            }
        }
        lq_sync();
    }
}

/// Turns scores into weights exp(score - largest), f16 in shared memory, and sums them as they are there. A lane has 8
/// positions of a query; the parts of a query are put together in order.
template <int Q>
LQ_DEV void lq_flash_weights(const LqAttention& a, u32 split, const LqFlashTile& tile,
                             float (&scores)[LQ_KEY_TILES][Q / LQ_MMA_COLS][4]) {
    constexpr u32 COLS = 4 / LQ_MMA_ROWS; // queries of a lane in a tile
    float* parts = reinterpret_cast<float*>(tile.stage);
    u32 queries = a.rows * a.heads, part = lq_warp() * (16 / LQ_MMA_ROWS) + lq_mma_row(0);
    for (u32 i = threadIdx.x; i < queries; i += LQ_FLASH_THREADS) tile.seen[i] = lq_seen(a, i, split);
    lq_sync();
#pragma unroll
    for (u32 j = 0; j < Q / LQ_MMA_COLS * COLS; j++) {
        u32 n = j / COLS, query = n * LQ_MMA_COLS + lq_mma_out_col(j % COLS);
        float most = LQ_MINUS_INFINITY;
        if (query >= queries) continue;
#pragma unroll
        for (u32 p = 0; p < LQ_LANE_POSITIONS; p++) {
            u32 m = p / LQ_MMA_ROWS, row = p % LQ_MMA_ROWS;
            float& score = scores[m][n][row * COLS + j % COLS];
            score = score * a.scale;
            if (lq_flash_position(m, row) < tile.seen[query]) most = lq_larger(most, score);
        }
        parts[query * LQ_FLASH_PARTS + part] = most;
    }
    lq_sync();
    for (u32 i = threadIdx.x; i < queries; i += LQ_FLASH_THREADS) {
        float most = parts[i * LQ_FLASH_PARTS];
        for (u32 j = 1; j < LQ_FLASH_PARTS; j++) most = lq_larger(most, parts[i * LQ_FLASH_PARTS + j]);
        tile.most[i] = most;
    }
    lq_sync();
#pragma unroll
    for (u32 j = 0; j < Q / LQ_MMA_COLS * COLS; j++) {
        u32 n = j / COLS, query = n * LQ_MMA_COLS + lq_mma_out_col(j % COLS);
        u32 pairs[LQ_LANE_POSITIONS / 2] = {};
        float sum = 0.0f;
        if (query < queries) {
#pragma unroll
            for (u32 p = 0; p < LQ_LANE_POSITIONS; p++) {
                u32 m = p / LQ_MMA_ROWS, row = p % LQ_MMA_ROWS;
                bool is_seen = lq_flash_position(m, row) < tile.seen[query];
                float score = scores[m][n][row * COLS + j % COLS];
                u16 weight = is_seen ? lq_float_to_f16(expf(score - tile.most[query])) : (u16)0;
                sum += lq_f16_to_float(weight);
                pairs[p / 2] |= (u32)weight << (p % 2 * 16);
            }
            parts[query * LQ_FLASH_PARTS + part] = sum;
        }
        LqU4 eight = {{pairs[0], pairs[1], pairs[2], pairs[3]}};
        *reinterpret_cast<LqU4*>(tile.weights + query * LQ_WEIGHTS_STRIDE + lq_flash_position(0, 0)) = eight;
    }
    lq_sync();
    for (u32 i = threadIdx.x; i < queries; i += LQ_FLASH_THREADS) {
        float sum = parts[i * LQ_FLASH_PARTS];
        for (u32 j = 1; j < LQ_FLASH_PARTS; j++) sum += parts[i * LQ_FLASH_PARTS + j];
        tile.sums[i] = sum;
    }
    lq_sync();
}

/// 4 values of a position from `from` on, zeros beyond the end.
LQ_DEV LqU2 lq_value_quad(const LqAttention& a, u64 entry, u32 from, bool aligned) {
    const u16* values = a.kv.cells + entry + a.kv.v_offset + a.kv_head * a.kv.v_head_stride + from;
    if (aligned && from + 4 <= a.kv.v_dim) return *reinterpret_cast<const LqU2*>(values);
    LqU2 quad = {{0, 0}};
#pragma unroll
    for (u32 d = 0; d < 4; d++) {
        if (from + d < a.kv.v_dim) quad.v[d / 2] |= (u32)values[d] << (d % 2 * 16);
    }
    return quad;
}

/// outs[m][n]: 16 queries of tile m, and for column c of tile n value `first + 4 c + n`, summed over the split.
template <int Q>
LQ_DEV void lq_flash_values(const LqAttention& a, u32 first, u32 count, const LqFlashTile& tile,
                            float (&outs)[Q / 16][LQ_LANE_VALUES][4]) {
    u32 queries = a.rows * a.heads, from = first + lq_mma_col() * LQ_LANE_VALUES;
    bool aligned = (a.kv.v_offset | a.kv.v_head_stride | a.kv.entry_values) % 4 == 0;
#pragma unroll
    for (u32 i = 0; i < Q / 16 * LQ_LANE_VALUES * 4; i++) outs[i / 16][i / 4 % 4][i % 4] = 0.0f;
#pragma unroll 1
    for (u32 block = 0; block < count; block += 32) {
        LqU2 values[8];
#pragma unroll
        for (u32 p = 0; p < 8; p++) {
            u32 position = block + lq_mma_quad() * 8 + p;
            values[p] = {{0, 0}};
            if (position < count) values[p] = lq_value_quad(a, tile.entries[position], from, aligned);
        }
#pragma unroll
        for (u32 m = 0; m < Q / 16; m++) {
            if (m * 16 >= queries) continue;
            LqU4 weights[LQ_MMA_ROWS];
#pragma unroll
            for (u32 row = 0; row < LQ_MMA_ROWS; row++) {
                u32 at = (m * 16 + lq_mma_row(row)) * LQ_WEIGHTS_STRIDE + block + lq_mma_quad() * 8;
                weights[row] = *reinterpret_cast<const LqU4*>(tile.weights + at);
            }
#pragma unroll
            for (u32 i = 0; i < LQ_LANE_VALUES * 2; i++) {
                u32 n = i / 2, s = i % 2, w[LQ_MMA_ROWS][2], v[2];
#pragma unroll
                for (u32 pair = 0; pair < 2; pair++) { // of positions, value n of each
                    u32 low = values[4 * s + 2 * pair].v[n / 2], high = values[4 * s + 2 * pair + 1].v[n / 2];
                    v[pair] = n % 2 ? low >> 16 | (high & 0xffff0000u) : (low & 0xffff) | high << 16;
#pragma unroll
                    for (u32 row = 0; row < LQ_MMA_ROWS; row++) w[row][pair] = weights[row].v[2 * s + pair];
                }
                lq_mma<true>(outs[m][n], w, v);
            }
        }
    }
}

/// What becomes of the outputs of a split: `put(query, value, sum)` for each.
template <int Q, class Put>
LQ_DEV void lq_flash_outputs(const LqAttention& a, u32 count, const LqFlashTile& tile, const Put& put) {
    u32 queries = a.rows * a.heads;
    for (u32 first = lq_warp() * LQ_PASS_VALUES; first < a.kv.v_dim; first += LQ_FLASH_WARPS * LQ_PASS_VALUES) {
        float outs[Q / 16][LQ_LANE_VALUES][4];
        lq_flash_values<Q>(a, first, count, tile, outs);
#pragma unroll
        for (u32 i = 0; i < Q / 16 * 4; i++) {
            u32 query = i / 4 * 16 + lq_mma_row(lq_mma_out_row(i % 4));
            if (query >= queries || tile.seen[query] == 0) continue;
#pragma unroll
            for (u32 n = 0; n < LQ_LANE_VALUES; n++) {
                u32 value = first + lq_mma_out_col(i % 4) * LQ_LANE_VALUES + n;
                if (value < a.kv.v_dim) put(query, value, outs[i / 4][n][i % 4]);
            }
        }
    }
}

/// One split of the block's queries up to their weights.
template <int Q>
LQ_DEV void lq_flash_split(const LqAttention& a, u32 split, u32 count, const LqFlashTile& tile) {
    float scores[LQ_KEY_TILES][Q / LQ_MMA_COLS][4] = {};
    lq_sync(); // whoever still reads the split before
    lq_find_entries(a, split, count, tile.entries);
    lq_flash_scores<Q>(a, count, tile, scores);
    lq_flash_weights<Q>(a, split, tile, scores);
}

template <int Q>
LQ_DEV void lq_flash_merging(const LqAttention& a, const LqFlashTile& tile, LqSoftmax* totals, LqMerge* merges) {
    u32 queries = a.rows * a.heads, splits = a.step.positions[a.first_row + a.rows - 1] / LQ_SPLIT + 1;
    for (u32 split = 0; split < splits; split++) {
        u32 count = lq_seen(a, queries - 1, split);
        lq_flash_split<Q>(a, split, count, tile);
        for (u32 i = threadIdx.x; i < queries; i += LQ_FLASH_THREADS) {
            if (tile.seen[i] > 0) merges[i] = lq_merge(totals[i], {tile.most[i], tile.sums[i]}, split == 0);
        }
        lq_sync();
        lq_flash_outputs<Q>(a, count, tile, [&](u32 i, u32 d, float sum) {
            u32 row = a.first_row + i / a.heads;
            float* out = lq_head(a.out, row, a.first_head + i % a.heads) + d;
            float value = lq_merged(merges[i], split == 0 ? 0.0f : *out, sum, split == 0);
            bool last = a.step.positions[row] / LQ_SPLIT == split;
            *out = last ? value * (1.0f / totals[i].sum) : value;
        });
    }
}

template <int Q>
LQ_DEV void lq_flash_partial(const LqAttention& a, const LqAttentionShape& shape, const LqFlashTile& tile) {
    u32 split = blockIdx.z, count = lq_seen(a, a.rows * a.heads - 1, split);
    if (count == 0) return;
    lq_flash_split<Q>(a, split, count, tile);
    u64 stride = a.kv.v_dim + 2;
    lq_flash_outputs<Q>(a, count, tile, [&](u32 i, u32 d, float sum) {
        u64 query = (u64)(a.first_row + i / a.heads) * a.q.heads + a.first_head + i % a.heads;
        float* to = shape.partial + (query * shape.splits + split) * stride;
        to[d] = sum;
        if (d == 0) to[a.kv.v_dim] = tile.most[i], to[a.kv.v_dim + 1] = tile.sums[i];
    });
}

/// The rows of block x for the heads of block y, sequence after sequence.
template <int Q>
LQ_DEV void lq_flash(LqAttention& a, const LqAttentionShape& shape, const LqFlashTile& tile, LqSoftmax* totals,
                     LqMerge* merges) {
    u32 per_kv = a.q.heads / a.kv.kv_heads, parts = (per_kv + shape.heads_per_block - 1) / shape.heads_per_block;
    u32 from = blockIdx.y % parts * shape.heads_per_block;
    a.kv_head = blockIdx.y / parts;
    a.first_head = a.kv_head * per_kv + from;
    a.heads = lq_least(per_kv - from, shape.heads_per_block);
    u32 row = blockIdx.x * shape.rows_per_block, end = lq_least(row + shape.rows_per_block, a.step.rows);
    for (; row < end; row += a.rows) {
        lq_next_run(a, row, end);
        if (shape.partial) {
            lq_flash_partial<Q>(a, shape, tile);
        } else {
            lq_flash_merging<Q>(a, tile, totals, merges);
        }
    }
}

#define LQ_FLASH_SHARED(Q)                                                                                             \
    LQ_SHARED(u64, entries, LQ_SPLIT);                                                                                 \
    LQ_SHARED(u16, weights, Q * LQ_WEIGHTS_STRIDE);                                                                    \
    LQ_SHARED(LqU4, stage, 2 * Q * 4);                                                                                 \
    LQ_SHARED(float, most, Q);                                                                                         \
    LQ_SHARED(float, sums, Q);                                                                                         \
    LQ_SHARED(u32, seen, Q);                                                                                           \
    LqFlashTile tile = {entries, weights, stage, most, sums, seen}

#define LQ_FLASH_KERNELS(Q)                                                                                            \
    LQ_KERNEL_OF(LQ_FLASH_THREADS, 2)                                                                                  \
    void flash_rows_q##Q(LqStep step, LqView q, LqKv kv, LqView out, float scale, u32 rows_per_block,                  \
                         u32 heads_per_block) {                                                                        \
        LQ_FLASH_SHARED(Q);                                                                                            \
        LQ_SHARED(LqSoftmax, totals, Q);                                                                               \
        LQ_SHARED(LqMerge, merges, Q);                                                                                 \
        LqAttention a = {step, q, out, kv, scale, 0, 0, 0, 0, 0};                                                      \
        lq_flash<Q>(a, {rows_per_block, heads_per_block, 0, nullptr}, tile, totals, merges);                           \
    }                                                                                                                  \
    LQ_EXPORT(flash_rows_q##Q)                                                                                         \
    LQ_KERNEL_OF(LQ_FLASH_THREADS, 2)                                                                                  \
    void flash_splits_q##Q(LqStep step, LqView q, LqKv kv, float* partial, float scale, u32 rows_per_block,            \
                           u32 heads_per_block, u32 splits) {                                                          \
        LQ_FLASH_SHARED(Q);                                                                                            \
        LqAttention a = {step, q, q, kv, scale, 0, 0, 0, 0, 0};                                                        \
        lq_flash<Q>(a, {rows_per_block, heads_per_block, splits, partial}, tile, nullptr, nullptr);                    \
    }                                                                                                                  \
    LQ_EXPORT(flash_splits_q##Q)

LQ_FLASH_KERNELS(16)
LQ_FLASH_KERNELS(64)

#endif
