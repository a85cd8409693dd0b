// Causal attention over the paged cache. A query is a row and a head; a block takes up to Q of them that share a kv
// head, so that a key or value is read once for all. Positions go in splits of 256, counted from position 0: in a split
// the scores of all queries first, then their weights, then the weighted values. Splits of a query are merged in order,
// either by the same block (`attention_rows`) or by `attention_merge`, with the same arithmetic.
// Absorbed MLA is the case of one kv head whose value is the start of its key (DeepSeek-V2 paper, section 2.1.2).
#pragma once
#include "rows.h"

constexpr u32 LQ_SPLIT = 256;   // positions
constexpr u32 LQ_TURN = 128;    // positions whose scores are computed at once, one by each thread
constexpr u32 LQ_SLICE = 32;    // values of a key in shared memory at once
constexpr u32 LQ_PARTS = 8;     // partial maxima and sums of a split
constexpr u32 LQ_KEY_STRIDE = LQ_SLICE + 1; // threads read a column of keys without bank conflicts

/// Where the queries of a block are, and the cache they look at.
struct LqAttention {
    LqStep step;
    LqView q, out;
    LqKv kv;
    float scale;
    u32 kv_head, first_row, first_head, rows, heads; // of this block, all of one sequence
};

/// Shared memory of a block.
struct LqAttentionTile {
    u64* entries;  // [LQ_SPLIT] where the cache has each position
    float* keys;   // [LQ_TURN][LQ_KEY_STRIDE]
    float* slices; // [Q][LQ_SLICE] of the queries
    float* scores; // [Q][LQ_SPLIT] then weights
    float* parts;  // [Q][LQ_PARTS]
    float* most;   // [Q] largest score of the split
    float* sums;   // [Q] of the weights
    u32* seen;     // [Q] positions of the split that a query may see
};

/// Positions of the split that query i may see.
LQ_DEV u32 lq_seen(const LqAttention& a, u32 i, u32 split) {
    u32 position = a.step.positions[a.first_row + i / a.heads], start = split * LQ_SPLIT;
    return position < start ? 0 : lq_least(position - start + 1, LQ_SPLIT);
}

/// The first `count` positions of a split: where they are.
LQ_DEV void lq_find_entries(const LqAttention& a, u32 split, u32 count, u64* entries) {
    for (u32 p = threadIdx.x; p < count; p += blockDim.x) {
        entries[p] = lq_entry(a.step, a.first_row, split * LQ_SPLIT + p) * a.kv.entry_values;
    }
}

/// Values `from .. from + LQ_SLICE` of the keys at `entries`, zeros beyond their end. keys [positions][LQ_KEY_STRIDE]
LQ_DEV void lq_stage_keys(const LqAttention& a, u32 from, const u64* entries, u32 positions, float* keys) {
    u32 k_dim = a.kv.k_dim;
    if ((k_dim | a.kv.entry_values) % 4 == 0) { // four halves at a time
        for (u32 j = threadIdx.x; j < positions * (LQ_SLICE / 4); j += blockDim.x) {
            u32 p = j / (LQ_SLICE / 4), d = j % (LQ_SLICE / 4) * 4;
            LqU2 halves = {{0, 0}};
            if (from + d < k_dim) {
                halves = *reinterpret_cast<const LqU2*>(a.kv.cells + entries[p] + a.kv_head * k_dim + from + d);
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                keys[p * LQ_KEY_STRIDE + d + i] = lq_f16_to_float((u16)(halves.v[i / 2] >> (i % 2 * 16)));
            }
        }
        return;
    }
    for (u32 j = threadIdx.x; j < positions * LQ_SLICE; j += blockDim.x) {
        u32 p = j / LQ_SLICE, d = j % LQ_SLICE;
        const u16* key = a.kv.cells + entries[p] + a.kv_head * k_dim;
        keys[p * LQ_KEY_STRIDE + d] = from + d < k_dim ? lq_f16_to_float(key[from + d]) : 0.0f;
    }
}

/// scores[i][p] = scale * dot(query i, key p) for the first `count` positions, each dot in order of its values.
template <int Q>
LQ_DEV void lq_attention_scores(const LqAttention& a, u32 count, const LqAttentionTile& tile) {
    u32 queries = a.rows * a.heads, k_dim = a.kv.k_dim;
    for (u32 turn = 0; turn < count; turn += LQ_TURN) {
        u32 positions = lq_least(count - turn, LQ_TURN);
        float sums[Q];
#pragma unroll
        for (int i = 0; i < Q; i++) sums[i] = 0.0f;
        for (u32 from = 0; from < k_dim; from += LQ_SLICE) {
            lq_sync(); // whoever still reads the slice before; and, at first, for the entries
            lq_stage_keys(a, from, tile.entries + turn, positions, tile.keys);
            for (u32 j = threadIdx.x; j < Q * LQ_SLICE; j += blockDim.x) {
                u32 i = j / LQ_SLICE, d = j % LQ_SLICE;
                bool held = i < queries && from + d < k_dim;
                const float* q = lq_head(a.q, a.first_row + (held ? i / a.heads : 0), a.first_head + i % a.heads);
                tile.slices[j] = held ? q[from + d] : 0.0f;
            }
            lq_sync();
            if (threadIdx.x < positions) {
                const float* key = tile.keys + threadIdx.x * LQ_KEY_STRIDE;
#pragma unroll 2
                for (u32 d = 0; d < LQ_SLICE; d += 4) {
                    float k[4] = {key[d], key[d + 1], key[d + 2], key[d + 3]};
#pragma unroll
                    for (int i = 0; i < Q; i++) {
                        LqF4 q = reinterpret_cast<const LqF4*>(tile.slices)[(i * LQ_SLICE + d) / 4];
#pragma unroll
                        for (int j = 0; j < 4; j++) sums[i] = lq_fma(q.v[j], k[j], sums[i]);
                    }
                }
            }
        }
        if (threadIdx.x < positions) {
#pragma unroll
            for (int i = 0; i < Q; i++) tile.scores[i * LQ_SPLIT + turn + threadIdx.x] = sums[i] * a.scale;
        }
    }
    lq_sync();
}

/// Turns the scores that a query may see into weights exp(score - largest), and sums them. LQ_PARTS threads for each
/// query: part j takes positions j, j + LQ_PARTS, ...
template <int Q>
LQ_DEV void lq_attention_weights(const LqAttention& a, u32 split, const LqAttentionTile& tile) {
    u32 query = threadIdx.x / LQ_PARTS, part = threadIdx.x % LQ_PARTS;
    bool works = query < Q && query < a.rows * a.heads;
    u32 seen = works ? lq_seen(a, query, split) : 0;
    float* scores = tile.scores + (works ? query : 0) * LQ_SPLIT;
    float most = LQ_MINUS_INFINITY, sum = 0.0f;
    for (u32 p = part; p < seen; p += LQ_PARTS) most = lq_larger(most, scores[p]);
    if (works) tile.parts[query * LQ_PARTS + part] = most;
    lq_sync();
    if (works) {
        most = tile.parts[query * LQ_PARTS];
        for (u32 j = 1; j < LQ_PARTS; j++) most = lq_larger(most, tile.parts[query * LQ_PARTS + j]);
    }
    lq_sync(); // before the parts are used again
    for (u32 p = part; p < seen; p += LQ_PARTS) {
        scores[p] = expf(scores[p] - most);
        sum += scores[p];
    }
    if (works) tile.parts[query * LQ_PARTS + part] = sum;
    lq_sync();
    if (works && part == 0) {
        for (u32 j = 1; j < LQ_PARTS; j++) sum += tile.parts[query * LQ_PARTS + j];
        tile.most[query] = most;
        tile.sums[query] = sum;
        tile.seen[query] = seen;
    }
    lq_sync();
}

/// sums[i] = value d of the weighted sum over the positions that query i may see, in their order. The first query sees
/// the fewest; up to there all queries go together, four positions at a time.
template <int Q>
LQ_DEV void lq_attention_values(const LqAttention& a, u32 d, u32 count, const LqAttentionTile& tile, float (&sums)[Q]) {
    const u16* values = a.kv.cells + a.kv.v_offset + a.kv_head * a.kv.v_head_stride + d;
    u32 queries = a.rows * a.heads, all_see = tile.seen[0] / 4 * 4;
#pragma unroll
    for (int i = 0; i < Q; i++) sums[i] = 0.0f;
#pragma unroll 2
    for (u32 p = 0; p < all_see; p += 4) {
        float value[4];
#pragma unroll
        for (int j = 0; j < 4; j++) value[j] = lq_f16_to_float(values[tile.entries[p + j]]);
#pragma unroll
        for (int i = 0; i < Q; i++) {
            LqF4 weight = reinterpret_cast<const LqF4*>(tile.scores)[(i * LQ_SPLIT + p) / 4];
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i] = lq_fma(weight.v[j], value[j], sums[i]);
        }
    }
    for (u32 p = all_see; p < count; p++) {
        float value = lq_f16_to_float(values[tile.entries[p]]);
#pragma unroll
        for (u32 i = 0; i < Q; i++) {
            if (i < queries && p < tile.seen[i]) sums[i] = lq_fma(tile.scores[i * LQ_SPLIT + p], value, sums[i]);
        }
    }
}

/// Running softmax of one query over the splits so far.
struct LqSoftmax {
    float most, sum;
};

/// How much of the total so far and of a new split goes into their merger.
struct LqMerge {
    float old_share, new_share;
};

/// Takes a split into the total; the first comes as it is.
LQ_DEV LqMerge lq_merge(LqSoftmax& total, LqSoftmax split, bool first) {
    LqMerge merge = {0.0f, 1.0f};
    if (first) {
        total = split;
        return merge;
    }
    float most = lq_larger(total.most, split.most);
    merge = {expf(total.most - most), expf(split.most - most)};
    total = {most, lq_fma(split.sum, merge.new_share, total.sum * merge.old_share)};
    return merge;
}

LQ_DEV float lq_merged(LqMerge merge, float total, float value, bool first) {
    return first ? value : lq_fma(value, merge.new_share, total * merge.old_share);
}

/// The rows of this block that follow `row` in its sequence, and the heads.
LQ_DEV void lq_next_run(LqAttention& a, u32 row, u32 rows_end) {
    a.first_row = row;
    a.rows = 1;
    while (row + a.rows < rows_end && a.step.sequence_of[row + a.rows] == a.step.sequence_of[row]) a.rows++;
}

struct LqAttentionShape {
    u32 rows_per_block, heads_per_block, splits;
    float* partial; // [rows, heads, splits, v_dim + 2], or null: splits are merged in the output
};

/// One split of the block's queries: scores, weights and their sums.
template <int Q>
LQ_DEV void lq_attention_split(const LqAttention& a, u32 split, u32 count, const LqAttentionTile& tile) {
    lq_sync(); // whoever still reads the split before
    lq_find_entries(a, split, count, tile.entries);
    lq_attention_scores<Q>(a, count, tile);
    lq_attention_weights<Q>(a, split, tile);
}

/// All splits of the block's queries, merged in the output as they come.
template <int Q>
LQ_DEV void lq_attention_merging(const LqAttention& a, const LqAttentionTile& tile, LqSoftmax* totals,
                                 LqMerge* merges) {
    u32 queries = a.rows * a.heads, last_row = a.first_row + a.rows - 1;
    u32 splits = a.step.positions[last_row] / LQ_SPLIT + 1;
    for (u32 split = 0; split < splits; split++) {
        u32 count = lq_seen(a, queries - 1, split);
        lq_attention_split<Q>(a, split, count, tile);
        if (threadIdx.x < queries && tile.seen[threadIdx.x] > 0) {
            u32 i = threadIdx.x;
            merges[i] = lq_merge(totals[i], {tile.most[i], tile.sums[i]}, split == 0);
        }
        lq_sync();
        for (u32 d = threadIdx.x; d < a.kv.v_dim; d += blockDim.x) {
            float sums[Q];
            lq_attention_values<Q>(a, d, count, tile, sums);
#pragma unroll
            for (u32 i = 0; i < Q; i++) {
                if (i >= queries || tile.seen[i] == 0) continue;
                float* out = lq_head(a.out, a.first_row + i / a.heads, a.first_head + i % a.heads) + d;
                float value = lq_merged(merges[i], split == 0 ? 0.0f : *out, sums[i], split == 0);
                bool last = a.step.positions[a.first_row + i / a.heads] / LQ_SPLIT == split;
                *out = last ? value * (1.0f / totals[i].sum) : value;
            }
        }
    }
}

/// Split blockIdx.z of the block's queries, to `partial`.
template <int Q>
LQ_DEV void lq_attention_partial(const LqAttention& a, const LqAttentionShape& shape, const LqAttentionTile& tile) {
    u32 queries = a.rows * a.heads, split = blockIdx.z, count = lq_seen(a, queries - 1, split);
    if (count == 0) return;
    lq_attention_split<Q>(a, split, count, tile);
    u64 stride = a.kv.v_dim + 2;
    for (u32 d = threadIdx.x; d < a.kv.v_dim; d += blockDim.x) {
        float sums[Q];
        lq_attention_values<Q>(a, d, count, tile, sums);
#pragma unroll
        for (u32 i = 0; i < Q; i++) {
            if (i >= queries || tile.seen[i] == 0) continue;
            u64 query = (u64)(a.first_row + i / a.heads) * a.q.heads + a.first_head + i % a.heads;
            float* to = shape.partial + (query * shape.splits + split) * stride;
            to[d] = sums[i];
            if (d == 0) to[a.kv.v_dim] = tile.most[i], to[a.kv.v_dim + 1] = tile.sums[i];
        }
    }
}

/// The rows of block x for the heads of block y, sequence after sequence.
template <int Q>
LQ_DEV void lq_attention(LqAttention& a, const LqAttentionShape& shape, const LqAttentionTile& tile, LqSoftmax* totals,
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
            lq_attention_partial<Q>(a, shape, tile);
        } else {
            lq_attention_merging<Q>(a, tile, totals, merges);
        }
    }
}

#define LQ_ATTENTION_SHARED(Q)                                                                                         \
    LQ_SHARED(u64, entries, LQ_SPLIT);                                                                                 \
    LQ_SHARED(float, keys, LQ_TURN * LQ_KEY_STRIDE);                                                                   \
    LQ_SHARED(float, slices, Q * LQ_SLICE);                                                                            \
    LQ_SHARED(float, scores, Q * LQ_SPLIT);                                                                            \
    LQ_SHARED(float, parts, Q * LQ_PARTS);                                                                             \
    LQ_SHARED(float, most, Q);                                                                                         \
    LQ_SHARED(float, sums, Q);                                                                                         \
    LQ_SHARED(u32, seen, Q);                                                                                           \
    LqAttentionTile tile = {entries, keys, slices, scores, parts, most, sums, seen}

#define LQ_ATTENTION_KERNELS(Q)                                                                                        \
    LQ_KERNEL void attention_rows_q##Q(LqStep step, LqView q, LqKv kv, LqView out, float scale, u32 rows_per_block,    \
                                       u32 heads_per_block) {                                                          \
        LQ_ATTENTION_SHARED(Q);                                                                                        \
        LQ_SHARED(LqSoftmax, totals, Q);                                                                               \
        LQ_SHARED(LqMerge, merges, Q);                                                                                 \
        LqAttention a = {step, q, out, kv, scale, 0, 0, 0, 0, 0};                                                      \
        lq_attention<Q>(a, {rows_per_block, heads_per_block, 0, nullptr}, tile, totals, merges);                       \
    }                                                                                                                  \
    LQ_EXPORT(attention_rows_q##Q)                                                                                     \
    LQ_KERNEL void attention_splits_q##Q(LqStep step, LqView q, LqKv kv, float* partial, float scale,                  \
                                         u32 rows_per_block, u32 heads_per_block, u32 splits) {                        \
        LQ_ATTENTION_SHARED(Q);                                                                                        \
        LqAttention a = {step, q, q, kv, scale, 0, 0, 0, 0, 0};                                                        \
        lq_attention<Q>(a, {rows_per_block, heads_per_block, splits, partial}, tile, nullptr, nullptr);                \
    }                                                                                                                  \
    LQ_EXPORT(attention_splits_q##Q)

LQ_ATTENTION_KERNELS(4)
LQ_ATTENTION_KERNELS(8)
LQ_ATTENTION_KERNELS(16)

/// Merges the splits of a row and head as `attention_rows` does.
LQ_KERNEL void attention_merge(LqStep step, const float* partial, LqView out, u32 splits) {
    u32 used = step.positions[blockIdx.x] / LQ_SPLIT + 1;
    u64 stride = out.len + 2, query = (u64)blockIdx.x * out.heads + blockIdx.y;
    const float* from = partial + query * splits * stride;
    float* to = lq_head(out, blockIdx.x, blockIdx.y);
    for (u32 d = threadIdx.x; d < out.len; d += blockDim.x) {
        LqSoftmax total = {0.0f, 0.0f};
        float value = 0.0f;
        for (u32 split = 0; split < used; split++) {
            const float* part = from + split * stride;
            LqMerge merge = lq_merge(total, {part[out.len], part[out.len + 1]}, split == 0);
            value = lq_merged(merge, value, part[d], split == 0);
        }
        to[d] = value * (1.0f / total.sum);
    }
}
LQ_EXPORT(attention_merge)
