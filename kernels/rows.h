// Ops on rows of activations, and on the rows and blocks of the paged cache. A block of threads does one row (of one
// head).
#pragma once
#include "portable.h"

/// Row r, head h of a view.
LQ_DEV float* lq_head(const LqView& x, u32 row, u32 head) {
    return x.data + row * x.row_stride + head * x.head_stride;
}

LQ_KERNEL void fill(float* out, u64 count, float value) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = value;
}
LQ_EXPORT(fill)

LQ_KERNEL void copy(LqView x, LqView out) {
    const float* from = lq_head(x, blockIdx.x, blockIdx.y);
    float* to = lq_head(out, blockIdx.x, blockIdx.y);
    for (u32 i = threadIdx.x; i < x.len; i += blockDim.x) to[i] = from[i];
}
LQ_EXPORT(copy)

LQ_KERNEL void add(LqView x, LqView out) {
    const float* from = lq_head(x, blockIdx.x, blockIdx.y);
    float* to = lq_head(out, blockIdx.x, blockIdx.y);
    for (u32 i = threadIdx.x; i < x.len; i += blockDim.x) to[i] += from[i];
}
LQ_EXPORT(add)

LQ_KERNEL void gather_rows(LqView x, const u32* rows, LqView out) {
    const float* from = lq_head(x, rows[blockIdx.x], blockIdx.y);
    float* to = lq_head(out, blockIdx.x, blockIdx.y);
    for (u32 i = threadIdx.x; i < x.len; i += blockDim.x) to[i] = from[i];
}
LQ_EXPORT(gather_rows)

/// x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019).
LQ_KERNEL void rms_norm(LqView x, const float* weight, LqView out, float eps) {
    LQ_SHARED(float, partial, 16);
    const float* from = lq_head(x, blockIdx.x, blockIdx.y);
    float* to = lq_head(out, blockIdx.x, blockIdx.y);
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < x.len; i += blockDim.x) squares = lq_fma(from[i], from[i], squares);
    squares = lq_block_sum(squares, partial);
    float inverse = 1.0f / sqrtf(squares / (float)x.len + eps);
    for (u32 i = threadIdx.x; i < x.len; i += blockDim.x) to[i] = from[i] * inverse * weight[i];
}
LQ_EXPORT(rms_norm)

/// table [positions, len]: cosines of the len / 2 angles, then their sines. A thread turns whole pairs.
LQ_KERNEL void rope(LqStep step, LqView x, const float* table, LqView out, u32 half) {
    const float* from = lq_head(x, blockIdx.x, blockIdx.y);
    float* to = lq_head(out, blockIdx.x, blockIdx.y);
    u32 pairs = x.len / 2;
    const float* angles = table + (u64)step.positions[blockIdx.x] * x.len;
    for (u32 i = threadIdx.x; i < pairs; i += blockDim.x) {
        u32 first = half ? i : 2 * i, second = half ? i + pairs : 2 * i + 1;
        float a = from[first], b = from[second], cosine = angles[i], sine = angles[pairs + i];
        to[first] = a * cosine - b * sine;
        to[second] = a * sine + b * cosine;
    }
}
LQ_EXPORT(rope)

LQ_KERNEL void silu_mul(LqView gate, LqView up, LqView out) {
    const float* g = lq_head(gate, blockIdx.x, blockIdx.y);
    const float* u = lq_head(up, blockIdx.x, blockIdx.y);
    float* to = lq_head(out, blockIdx.x, blockIdx.y);
    for (u32 i = threadIdx.x; i < out.len; i += blockDim.x) to[i] = lq_silu(g[i]) * u[i];
}
LQ_EXPORT(silu_mul)

/// out[r] = sum over slots, in order, of weights[r, slot] y[r top_k + slot].
LQ_KERNEL void combine(LqView y, const float* weights, LqView out, u32 top_k) {
    u32 row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= out.len) return;
    float sum = 0.0f;
    for (u32 slot = 0; slot < top_k; slot++) {
        u64 at = (u64)row * top_k + slot;
        sum = lq_fma(weights[at], y.data[at * y.row_stride + i], sum);
    }
    out.data[row * out.row_stride + i] = sum;
}
LQ_EXPORT(combine)

// ---- the cache ----

/// Which entry of the cache holds a position of the sequence that `row` belongs to.
LQ_DEV u64 lq_entry(const LqStep& step, u32 row, u32 position) {
    u64 table = (u64)step.sequence_of[row] * step.blocks_max;
    u32 block = step.blocks[table + position / step.block_tokens];
    return (u64)block * step.block_tokens + position % step.block_tokens;
}

/// k [rows, kv_heads, k_dim]; v [rows, kv_heads, v_dim], or no data where the key holds the value.
LQ_KERNEL void kv_append(LqStep step, LqKv kv, LqView k, LqView v) {
    u32 row = blockIdx.x;
    u16* entry = kv.cells + lq_entry(step, row, step.positions[row]) * kv.entry_values;
    for (u32 head = 0; head < k.heads; head++) {
        const float* from = lq_head(k, row, head);
        for (u32 i = threadIdx.x; i < k.len; i += blockDim.x) entry[head * kv.k_dim + i] = lq_float_to_f16(from[i]);
    }
    for (u32 head = 0; v.data && head < v.heads; head++) {
        const float* from = lq_head(v, row, head);
        u16* to = entry + kv.v_offset + head * kv.v_head_stride;
        for (u32 i = threadIdx.x; i < v.len; i += blockDim.x) to[i] = lq_float_to_f16(from[i]);
    }
}
LQ_EXPORT(kv_append)

/// held [layers, pairs, block_values]
LQ_KERNEL void kv_read_blocks(const u16* cells, const u32* blocks, u16* held, u64 layer_values, u32 block_values) {
    const u16* from = cells + blockIdx.y * layer_values + (u64)blocks[blockIdx.x] * block_values;
    u16* to = held + ((u64)blockIdx.y * gridDim.x + blockIdx.x) * block_values;
    for (u32 i = threadIdx.x; i < block_values; i += blockDim.x) to[i] = from[i];
}
LQ_EXPORT(kv_read_blocks)

LQ_KERNEL void kv_write_blocks(u16* cells, const u32* blocks, const u16* held, u64 layer_values, u32 block_values) {
    const u16* from = held + ((u64)blockIdx.y * gridDim.x + blockIdx.x) * block_values;
    u16* to = cells + blockIdx.y * layer_values + (u64)blocks[blockIdx.x] * block_values;
    for (u32 i = threadIdx.x; i < block_values; i += blockDim.x) to[i] = from[i];
}
LQ_EXPORT(kv_write_blocks)
