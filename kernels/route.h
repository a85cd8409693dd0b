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

constexpr u32 LQ_RANGES_MAX = 256 / LQ_WARP; // warps of the block that groups

/// Slots and tiles before an expert.
struct LqPlace {
    u32 slot, tile;
};

/// Each place turned into the sum of those before it; gives the sum of all. `sums`: shared, [256].
LQ_DEV LqPlace lq_running_sums(LqPlace* places, u32 count, LqPlace* sums) {
    u32 each = (count + blockDim.x - 1) / blockDim.x, from = lq_least(threadIdx.x * each, count);
    u32 to = lq_least(from + each, count);
    LqPlace sum = {0, 0};
    for (u32 i = from; i < to; i++) sum = {sum.slot + places[i].slot, sum.tile + places[i].tile};
    sums[threadIdx.x] = sum;
    lq_sync();
    for (u32 reach = 1; reach < blockDim.x; reach *= 2) { // Hillis and Steele 1986
        LqPlace before = {0, 0};
        if (threadIdx.x >= reach) before = sums[threadIdx.x - reach];
        lq_sync();
        sums[threadIdx.x] = {sums[threadIdx.x].slot + before.slot, sums[threadIdx.x].tile + before.tile};
        lq_sync();
    }
    LqPlace next = {sums[threadIdx.x].slot - sum.slot, sums[threadIdx.x].tile - sum.tile};
    for (u32 i = from; i < to; i++) {
        LqPlace own = places[i];
        places[i] = next;
        next = {next.slot + own.slot, next.tile + own.tile};
    }
    LqPlace total = sums[blockDim.x - 1];
    lq_sync();
    return total;
}

/// Goes through the slots of this warp's range in order, a warp's worth at a time. `counts` [experts] of the range: how
/// many slots each expert has had so far, or where its next slot goes; `put(slot, its number)` for each.
template <class Put>
LQ_DEV void lq_count_slots(const u32* experts, u32 slots, u32 expert_count, u32* counts, const Put& put) {
    u32 each = (slots + LQ_RANGES_MAX * LQ_WARP - 1) / (LQ_RANGES_MAX * LQ_WARP) * LQ_WARP;
    u32 from = lq_least(lq_warp() * each, slots), to = lq_least(from + each, slots);
    for (u32 first = from; first < to; first += LQ_WARP) {
        u32 slot = first + lq_lane(), expert = slot < to ? experts[slot] : 0xffffu;
        bool counted = expert < expert_count;
        u64 peers = lq_warp_peers(counted ? expert : 0xffffu);
        u32 before = lq_ones(peers & ((1ull << lq_lane()) - 1)), start = counted ? counts[expert] : 0;
        if (counted) put(slot, start + before);
        lq_warp_sync();
        if (counted && before == 0) counts[expert] = start + lq_ones(peers);
        lq_warp_sync();
    }
}

/// Sorts slots by expert (within an expert by number) and cuts each expert's in tiles of `tile_rows`. One block of 256:
/// each warp counts a range of the slots, running sums give where each range of each expert starts, and each warp goes
/// through its range again.
LQ_KERNEL void group_slots(const u32* experts, u32* order, u32* tiles, u32* tile_count, u32 slots, u32 expert_count,
                           u32 tile_rows) {
    LQ_SHARED(u32, counts, LQ_RANGES_MAX * LQ_EXPERTS_MAX);
    LQ_SHARED(LqPlace, places, LQ_EXPERTS_MAX);
    LQ_SHARED(LqPlace, sums, 256);
    u32* of_warp = counts + lq_warp() * LQ_EXPERTS_MAX;
    for (u32 e = lq_lane(); e < expert_count; e += LQ_WARP) of_warp[e] = 0;
    lq_warp_sync();
    lq_count_slots(experts, slots, expert_count, of_warp, [](u32, u32) {});
    lq_sync();
    for (u32 e = threadIdx.x; e < expert_count; e += blockDim.x) {
        u32 count = 0;
        for (u32 range = 0; range < LQ_RANGES_MAX; range++) {
            u32 own = counts[range * LQ_EXPERTS_MAX + e];
            counts[range * LQ_EXPERTS_MAX + e] = count;
            count += own;
        }
        places[e] = {count, (count + tile_rows - 1) / tile_rows};
    }
    lq_sync();
    LqPlace total = lq_running_sums(places, expert_count, sums);
    if (threadIdx.x == 0) *tile_count = total.tile;
    for (u32 e = threadIdx.x; e < expert_count; e += blockDim.x) {
        u32 start = places[e].slot, end = e + 1 < expert_count ? places[e + 1].slot : total.slot;
        for (u32 range = 0; range < LQ_RANGES_MAX; range++) counts[range * LQ_EXPERTS_MAX + e] += start;
        for (u32 i = 0; start + i * tile_rows < end; i++) {
            u32* tile = tiles + (u64)(places[e].tile + i) * 4;
            tile[0] = e;
            tile[1] = start + i * tile_rows;
            tile[2] = lq_least(tile_rows, end - tile[1]);
            tile[3] = 0;
        }
    }
    lq_sync();
    lq_count_slots(experts, slots, expert_count, of_warp, [&](u32 slot, u32 at) { order[at] = slot; });
}
LQ_EXPORT(group_slots)
