// The router, step by step as the host's `RouteSpec` says, and the grouping of slots by expert.
#pragma once
#include "rows.h"

constexpr u32 LQ_EXPERTS_MAX = 1024;
constexpr u32 LQ_GROUPS_MAX = 64;

/// Scores of the row's experts, from its logits. All lanes of one warp.
LQ_DEV void lq_score(const float* logits, u32 experts, u32 sigmoid, float* scores) {
    if (sigmoid) {
        for (u32 e = lq_lane(); e < experts; e += LQ_WARP) scores[e] = 1.0f / (1.0f + expf(-logits[e]));
        return;
    }
    float most = LQ_MINUS_INFINITY, sum[1] = {0.0f};
    for (u32 e = lq_lane(); e < experts; e += LQ_WARP) most = lq_larger(most, logits[e]);
    most = lq_warp_max(most);
    for (u32 e = lq_lane(); e < experts; e += LQ_WARP) {
        scores[e] = expf(logits[e] - most);
        sum[0] += scores[e];
    }
    lq_warp_sums(sum);
    for (u32 e = lq_lane(); e < experts; e += LQ_WARP) scores[e] /= sum[0];
}

/// What a group of experts is chosen by: its best, or the sum of its two best.
LQ_DEV float lq_group_score(const float* choices, u32 size, u32 top2_sum) {
    float first = LQ_MINUS_INFINITY, second = LQ_MINUS_INFINITY;
    for (u32 e = 0; e < size; e++) {
        float value = choices[e];
        if (value > first) {
            second = first;
            first = value;
        } else if (value > second) {
            second = value;
        }
    }
    return top2_sum && size > 1 ? first + second : first;
}

/// The best of `values` not yet taken: of equal ones the lowest, a NaN counting as the least. All lanes of one warp.
LQ_DEV u32 lq_best(const float* values, const u32* taken, u32 count) {
    float best = LQ_MINUS_INFINITY;
    u32 at = 0xffffffffu;
    for (u32 i = lq_lane(); i < count; i += LQ_WARP) {
        if (!taken[i] && (at == 0xffffffffu || values[i] > best)) {
            best = values[i] > LQ_MINUS_INFINITY ? values[i] : LQ_MINUS_INFINITY;
            at = i;
        }
    }
    lq_warp_best(best, at);
    return at;
}

/// Leaves the experts of the best groups alone to choose from. All lanes of one warp, which is the block.
LQ_DEV void lq_keep_groups(const LqRouteSpec& spec, const float* choices, float* group_scores, u32* group_kept,
                           u32* taken) {
    u32 size = spec.experts / spec.groups;
    for (u32 g = lq_lane(); g < spec.groups; g += LQ_WARP) {
        group_scores[g] = lq_group_score(choices + g * size, size, spec.top2_sum);
        group_kept[g] = 0;
    }
    lq_sync();
    for (u32 i = 0; i < lq_least(spec.top_groups, spec.groups); i++) {
        u32 best = lq_best(group_scores, group_kept, spec.groups);
        if (lq_lane() == 0) group_kept[best] = 1;
        lq_sync();
    }
    for (u32 e = lq_lane(); e < spec.experts; e += LQ_WARP) taken[e] = !group_kept[e / size];
    lq_sync();
}

/// One row by one warp. experts, weights [rows, top_k], best first.
LQ_KERNEL void route(LqView logits, const float* bias, u32* experts, float* weights, LqRouteSpec spec) {
    LQ_SHARED(float, scores, LQ_EXPERTS_MAX);
    LQ_SHARED(float, choices, LQ_EXPERTS_MAX);
    LQ_SHARED(u32, taken, LQ_EXPERTS_MAX);
    LQ_SHARED(float, group_scores, LQ_GROUPS_MAX);
    LQ_SHARED(u32, group_kept, LQ_GROUPS_MAX);
    lq_score(lq_head(logits, blockIdx.x, 0), spec.experts, spec.sigmoid, scores);
    for (u32 e = lq_lane(); e < spec.experts; e += LQ_WARP) {
        choices[e] = bias ? scores[e] + bias[e] : scores[e];
        taken[e] = 0;
    }
    lq_sync();
    if (spec.groups) lq_keep_groups(spec, choices, group_scores, group_kept, taken);
    u64 first = (u64)blockIdx.x * spec.top_k;
    float sum = 0.0f;
    for (u32 slot = 0; slot < spec.top_k; slot++) {
        u32 best = lq_best(choices, taken, spec.experts);
        sum += scores[best];
        if (lq_lane() == 0) {
            taken[best] = 1;
            experts[first + slot] = best;
        }
        lq_sync();
    }
    u32 normalise = spec.normalise && spec.top_k > 1;
    for (u32 slot = lq_lane(); slot < spec.top_k; slot += LQ_WARP) {
        float weight = scores[experts[first + slot]];
        weight = normalise ? weight / (sum + 1e-20f) : weight;
        weights[first + slot] = weight * spec.scale;
    }
}
LQ_EXPORT(route)

/// Sorts slots by expert (within an expert by number) and cuts each expert's in tiles of `tile_rows`. One block.
LQ_KERNEL void group_slots(const u32* experts, u32* order, u32* tiles, u32* tile_count, u32 slots, u32 expert_count,
                           u32 tile_rows) {
    LQ_SHARED(u32, first_slot, LQ_EXPERTS_MAX + 1); // counts, then their running sums
    LQ_SHARED(u32, first_tile, LQ_EXPERTS_MAX + 1);
    for (u32 e = threadIdx.x; e < expert_count; e += blockDim.x) {
        u32 count = 0;
        for (u32 slot = 0; slot < slots; slot++) count += experts[slot] == e;
        first_slot[e] = count;
    }
    lq_sync();
    if (threadIdx.x == 0) {
        u32 slot = 0, tile = 0;
        for (u32 e = 0; e < expert_count; e++) {
            u32 count = first_slot[e];
            first_slot[e] = slot;
            first_tile[e] = tile;
            slot += count;
            tile += (count + tile_rows - 1) / tile_rows;
        }
        first_slot[expert_count] = slot;
        *tile_count = tile;
    }
    lq_sync();
    for (u32 e = threadIdx.x; e < expert_count; e += blockDim.x) {
        u32 start = first_slot[e], end = first_slot[e + 1], at = start;
        for (u32 slot = 0; slot < slots && at < end; slot++) {
            if (experts[slot] == e) order[at++] = slot;
        }
        for (u32 i = 0; start + i * tile_rows < end; i++) {
            u32* tile = tiles + (u64)(first_tile[e] + i) * 4;
            tile[0] = e;
            tile[1] = start + i * tile_rows;
            tile[2] = lq_least(tile_rows, end - tile[1]);
            tile[3] = 0;
        }
    }
}
LQ_EXPORT(group_slots)
