// What sampling needs of a row of logits, so that the row itself stays on the device: its k largest values and the sum
// of the exponentials of all. First parts of 4096 values, each by a block, then a block for each row merges them.
#pragma once
#include "rows.h"

constexpr u32 LQ_PART = 4096;        // logits of a block
constexpr u32 LQ_NOBODY = 0xffffffffu;
constexpr u32 LQ_PARTS_MAX = 1024;

/// A candidate and its place; the larger first, of equal ones the lower id. NaN never leads.
struct LqCandidate {
    float value;
    u32 id;
};

LQ_DEV bool lq_leads(LqCandidate a, LqCandidate b) {
    return a.value > b.value || (a.value == b.value && a.id < b.id);
}

/// The first candidate of the block, for all its threads. `leads`: shared, two rounds of 8; `round` counts the calls.
LQ_DEV LqCandidate lq_block_lead(LqCandidate own, u32 round, LqCandidate* leads) {
    lq_warp_best(own.value, own.id);
    LqCandidate* of_warps = leads + round % 2 * 8;
    if (lq_lane() == 0) of_warps[lq_warp()] = own;
    lq_sync(); // and the round after next writes here only when all have read
    LqCandidate lead = of_warps[0];
    for (u32 warp = 1; warp < blockDim.x / LQ_WARP; warp++) {
        lead = lq_leads(of_warps[warp], lead) ? of_warps[warp] : lead;
    }
    return lead;
}

/// Part blockIdx.x of row blockIdx.y. ids, values [rows, parts, k], first to last; totals [rows, parts, 2]: the largest
/// value and the sum of exp((x - largest) * scale), which is NaN if any value is NaN or +infinity.
LQ_KERNEL void top_logits_parts(LqView x, const float* scales, u32* ids, float* values, float* totals, u32 k) {
    LQ_SHARED(float, held, LQ_PART);
    LQ_SHARED(LqCandidate, leads, 16);
    LQ_SHARED(float, partial, 16);
    u32 row = blockIdx.y, from = blockIdx.x * LQ_PART, count = lq_least(x.len - from, LQ_PART);
    const float* logits = lq_head(x, row, 0) + from;
    LqCandidate none = {LQ_MINUS_INFINITY, LQ_NOBODY}, own = none;
    u32 broken = 0;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        float value = logits[i];
        held[i] = value;
        broken |= !(value < lq_float_of_bits(0x7f800000u));
        own = lq_leads({value, from + i}, own) ? LqCandidate{value, from + i} : own;
    }
    u64 part = (u64)row * gridDim.x + blockIdx.x;
    LqCandidate lead = lq_block_lead(own, 0, leads);
    float largest = lead.value, sum = 0.0f, scale = scales[row];
    for (u32 i = threadIdx.x; i < count && largest > LQ_MINUS_INFINITY; i += blockDim.x) {
        sum += expf((held[i] - largest) * scale);
    }
    sum = lq_block_sum(broken ? lq_float_of_bits(0x7fc00000u) : sum, partial);
    if (threadIdx.x == 0) totals[part * 2] = largest, totals[part * 2 + 1] = sum;
    for (u32 i = 0; i < k; i++) {
        if (i > 0) lead = lq_block_lead(own, i, leads);
        if (threadIdx.x == 0) ids[part * k + i] = lead.id, values[part * k + i] = lead.value;
        if (lead.id == LQ_NOBODY || (lead.id - from) % blockDim.x != threadIdx.x) continue;
        held[lead.id - from] = lq_float_of_bits(0x7fc00000u); // taken: it never leads again
        own = none;
        for (u32 j = threadIdx.x; j < count; j += blockDim.x) {
            own = lq_leads({held[j], from + j}, own) ? LqCandidate{held[j], from + j} : own;
        }
    }
}
LQ_EXPORT(top_logits_parts)

/// The first of the lists of this thread: lists threadIdx.x, threadIdx.x + blockDim.x, ...
LQ_DEV LqCandidate lq_list_lead(const u32* ids, const float* values, const u32* next, u32 parts, u32 k) {
    LqCandidate own = {LQ_MINUS_INFINITY, LQ_NOBODY};
    for (u32 part = threadIdx.x; part < parts; part += blockDim.x) {
        if (next[part] == k) continue;
        u64 at = (u64)part * k + next[part];
        LqCandidate head = {values[at], ids[at]};
        own = lq_leads(head, own) ? head : own;
    }
    return own;
}

/// Row blockIdx.x: ids, values [rows, k]; sums [rows]: the sum over the row of exp((x - largest) * scale), NaN where
/// the row holds NaN, +infinity, or nothing but -infinity. At most LQ_PARTS_MAX parts.
LQ_KERNEL void top_logits(const u32* part_ids, const float* part_values, const float* part_totals, const float* scales,
                          u32* ids, float* values, float* sums, u32 parts, u32 k) {
    LQ_SHARED(u32, next, LQ_PARTS_MAX);
    LQ_SHARED(LqCandidate, leads, 16);
    LQ_SHARED(float, partial, 16);
    u64 row = blockIdx.x;
    part_ids += row * parts * k, part_values += row * parts * k, part_totals += row * parts * 2;
    for (u32 part = threadIdx.x; part < parts; part += blockDim.x) next[part] = 0; // read by the same thread alone
    LqCandidate own = lq_list_lead(part_ids, part_values, next, parts, k), lead = lq_block_lead(own, 0, leads);
    float sum = 0.0f;
    for (u32 part = threadIdx.x; part < parts; part += blockDim.x) {
        float shift = (part_totals[part * 2] - lead.value) * scales[row];
        sum += part_totals[part * 2 + 1] * expf(shift);
    }
    sum = lq_block_sum(sum, partial);
    if (threadIdx.x == 0) sums[row] = sum;
    for (u32 i = 0; i < k; i++) {
        if (i > 0) lead = lq_block_lead(own, i, leads);
        if (threadIdx.x == 0) ids[row * k + i] = lead.id, values[row * k + i] = lead.value;
        u32 part = lead.id / LQ_PART;
        if (lead.id == LQ_NOBODY || part % blockDim.x != threadIdx.x) continue;
        next[part]++;
        own = lq_list_lead(part_ids, part_values, next, parts, k);
    }
}
LQ_EXPORT(top_logits)
