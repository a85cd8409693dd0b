// Products with weights. A block does 16 outputs (8 pairs of gate and up) for up to R rows: each warp 4 dots, so that a
// weight is read and decoded once for R rows, and a value of x once for 4 weights. README.md has the order of each sum.
#pragma once
#include "formats.h"
#include "rows.h"

constexpr u32 LQ_DOTS = 4; // of a warp

/// Values of x held in shared memory: whole steps of a warp, up to 32 KiB.
template <int R>
LQ_DEV constexpr u32 lq_tile_values() {
    return R == 1 ? 4096 : 8192 / R;
}

/// The rows of x that a block multiplies, and where their results go.
template <int R>
struct LqRows {
    const float* x[R]; // null beyond `count`
    u32 out[R];
    u32 count;
};

/// Which matrix rows a warp multiplies: dots 0 and 1 with one matrix, 2 and 3 with another or the same.
struct LqDotRows {
    u32 row[LQ_DOTS];
};

/// Values `from .. from + tile` of each row of x into shared memory, zeros beyond `cols`; so ordered that the lanes of
/// a warp read side by side: chunk c of 8 as two quads, `quads[R][steps][2][LQ_WARP]` with c = step * LQ_WARP + lane.
template <int R>
LQ_DEV void lq_stage(const LqRows<R>& rows, u32 from, u32 cols, u32 tile, float* quads) {
#pragma unroll
    for (int r = 0; r < R; r++) {
        for (u32 i = threadIdx.x; i < tile; i += blockDim.x) {
            u32 chunk = i / 8, quad = (chunk / LQ_WARP * 2 + i % 8 / 4) * LQ_WARP + chunk % LQ_WARP;
            bool held = rows.x[r] && from + i < cols;
            quads[r * lq_tile_values<R>() + quad * 4 + i % 4] = held ? rows.x[r][from + i] : 0.0f;
        }
    }
}

/// dots[o * R + r] = row o of the weights times row r of x; all lanes get all. `quads`: shared, for `lq_stage`.
template <class Weights, int R>
LQ_DEV void lq_dots(const Weights& a, const Weights& b, const LqDotRows& at, const LqRows<R>& rows, u32 cols,
                    float* quads, float (&dots)[LQ_DOTS * R]) {
    constexpr u32 TILE = lq_tile_values<R>();
    [[maybe_unused]] constexpr int UNROLLED = R == 1 ? 2 : 1; // with few rows, more loads on their way
#pragma unroll
    for (int i = 0; i < int(LQ_DOTS) * R; i++) dots[i] = 0.0f;
    for (u32 from = 0; from < cols; from += TILE) {
        u32 chunks = (lq_least(cols - from, TILE) + 7) / 8;
        lq_sync(); // whoever still reads the tile before
        lq_stage<R>(rows, from, cols, chunks * 8, quads);
        lq_sync();
#pragma unroll UNROLLED
        for (u32 c = lq_lane(); c < chunks; c += LQ_WARP) {
            float w[LQ_DOTS][8];
#pragma unroll
            for (u32 o = 0; o < LQ_DOTS; o++) Weights::chunk(o < 2 ? a : b, at.row[o], from / 8 + c, w[o]);
            const LqF4* x = reinterpret_cast<const LqF4*>(quads) + (c / LQ_WARP * 2 * LQ_WARP + lq_lane());
#pragma unroll
            for (int r = 0; r < R; r++) {
                LqF4 low = x[r * (TILE / 4)], high = x[r * (TILE / 4) + LQ_WARP];
#pragma unroll
                for (u32 o = 0; o < LQ_DOTS; o++) {
                    float sum = dots[o * R + r];
#pragma unroll
                    for (int i = 0; i < 4; i++) sum = lq_fma(w[o][i], low.v[i], sum);
#pragma unroll
                    for (int i = 0; i < 4; i++) sum = lq_fma(w[o][4 + i], high.v[i], sum);
                    dots[o * R + r] = sum;
                }
            }
        }
    }
    lq_warp_sums(dots);
}

/// Whether this lane is the one that writes result i of its warp.
LQ_DEV bool lq_writes(u32 i) {
    return i % LQ_WARP == lq_lane();
}

/// Rows `first .. first + R` of a view, one head.
template <int R>
LQ_DEV LqRows<R> lq_dense_rows(const LqView& x, u32 first, u32 head) {
    LqRows<R> rows;
    rows.count = lq_least(R, x.rows - first);
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        rows.x[r] = r < rows.count ? lq_head(x, first + r, head) : nullptr;
        rows.out[r] = first + r;
    }
    return rows;
}

/// The slots of a tile; gives their expert. The tile must exist.
template <int R>
LQ_DEV u32 lq_grouped_rows(const LqView& x, const LqGroups& groups, u32 tile, LqRows<R>& rows) {
    const u32* cut = groups.tiles + (u64)tile * 4;
    rows.count = cut[2];
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        u32 slot = r < rows.count ? groups.order[cut[1] + r] : 0;
        rows.x[r] = r < rows.count ? lq_head(x, slot / groups.inputs_per_row, 0) : nullptr;
        rows.out[r] = slot;
    }
    return cut[0];
}

/// Tile blockIdx.y, of groups or of plain rows; false where there is none.
template <int R>
LQ_DEV bool lq_tile_rows(const LqView& x, const LqGroups& groups, LqRows<R>& rows, u32& expert) {
    expert = 0;
    if (!groups.tiles) {
        rows = lq_dense_rows<R>(x, blockIdx.y * R, 0);
        return true;
    }
    if (blockIdx.y >= *groups.tile_count) return false;
    expert = lq_grouped_rows<R>(x, groups, blockIdx.y, rows);
    return true;
}

// ---- embedding ----

LQ_KERNEL void embed(LqStep step, const LqMatrix* table, LqView out) {
    LqMatrix matrix = *table;
    u32 token = step.tokens[blockIdx.x];
    float* to = lq_head(out, blockIdx.x, 0);
    lq_with_format(matrix.format, [&](auto weights) {
        using Weights = decltype(weights);
        Weights source = Weights::of(matrix);
        for (u32 c = threadIdx.x; c < (matrix.cols + 7) / 8; c += blockDim.x) {
            float w[8];
            Weights::chunk(source, token, c, w);
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                if (c * 8 + i < matrix.cols) to[c * 8 + i] = w[i];
            }
        }
    });
}
LQ_EXPORT(embed)

// ---- one matrix ----

/// The block's outputs of x times a matrix.
template <int R>
LQ_DEV void lq_linear(const LqMatrix& matrix, const LqRows<R>& rows, const float* bias, const LqView& out, u32 head,
                      float* quads) {
    u32 first = (blockIdx.x * (blockDim.x / LQ_WARP) + lq_warp()) * LQ_DOTS;
    LqDotRows at;
#pragma unroll
    for (u32 o = 0; o < LQ_DOTS; o++) at.row[o] = lq_least(first + o, matrix.rows - 1);
    float dots[LQ_DOTS * R];
    lq_with_format(matrix.format, [&](auto weights) {
        using Weights = decltype(weights);
        Weights w = Weights::of(matrix);
        lq_dots<Weights, R>(w, w, at, rows, matrix.cols, quads, dots);
    });
#pragma unroll
    for (u32 i = 0; i < LQ_DOTS * R; i++) {
        u32 row = first + i / R;
        if (!lq_writes(i) || row >= matrix.rows || i % R >= rows.count) continue;
        lq_head(out, rows.out[i % R], head)[row] = bias ? dots[i] + bias[row] : dots[i];
    }
}

/// Head h of x by matrix h of the table.
template <int R>
LQ_DEV void lq_linear_kernel(const LqView& x, const LqMatrix* table, const float* bias, const LqView& out,
                             float* quads) {
    u32 head = blockIdx.z;
    LqMatrix matrix = table[head];
    LqRows<R> rows = lq_dense_rows<R>(x, blockIdx.y * R, head);
    lq_linear<R>(matrix, rows, bias, out, head, quads);
}

template <int R>
LQ_DEV void lq_grouped_kernel(const LqView& x, const LqMatrix* table, const LqGroups& groups, const LqView& out,
                              float* quads) {
    LqRows<R> rows;
    u32 expert;
    if (!lq_tile_rows<R>(x, groups, rows, expert)) return;
    LqMatrix matrix = table[expert];
    lq_linear<R>(matrix, rows, nullptr, out, 0, quads);
}

// ---- gate and up ----

/// silu(gate x) * (up x). Of a warp's dots two are of the gate, two of up; where these differ in format it takes two
/// turns, each with one matrix on both sides.
template <int R>
LQ_DEV void lq_gate_up_kernel(const LqView& x, const LqMatrix* gates, const LqMatrix* ups, const LqGroups& groups,
                              const LqView& out, float* quads) {
    LqRows<R> rows;
    u32 expert;
    if (!lq_tile_rows<R>(x, groups, rows, expert)) return;
    u32 outputs = gates[expert].rows;
    u32 first = (blockIdx.x * (blockDim.x / LQ_WARP) + lq_warp()) * (LQ_DOTS / 2);
    LqDotRows at;
#pragma unroll
    for (u32 o = 0; o < LQ_DOTS; o++) at.row[o] = lq_least(first + o % 2, outputs - 1);
    float dots[LQ_DOTS * R], of_gate[LQ_DOTS / 2 * R];
    u32 turns = gates[expert].format == ups[expert].format ? 1 : 2;
    for (u32 turn = 0; turn < turns; turn++) {
        LqMatrix a = (turn == 0 ? gates : ups)[expert], b = (turn + 1 < turns ? gates : ups)[expert];
        lq_with_format(a.format, [&](auto weights) {
            using Weights = decltype(weights);
            lq_dots<Weights, R>(Weights::of(a), Weights::of(b), at, rows, a.cols, quads, dots);
        });
        if (turn == 0) {
#pragma unroll
            for (u32 i = 0; i < LQ_DOTS / 2 * R; i++) of_gate[i] = dots[i];
        }
    }
#pragma unroll
    for (u32 i = 0; i < LQ_DOTS / 2 * R; i++) {
        u32 row = first + i / R;
        if (!lq_writes(i) || row >= outputs || i % R >= rows.count) continue;
        lq_head(out, rows.out[i % R], 0)[row] = lq_silu(of_gate[i]) * dots[LQ_DOTS / 2 * R + i];
    }
}

#define LQ_WEIGHT_KERNELS(R)                                                                                           \
    LQ_KERNEL void linear_r##R(LqView x, const LqMatrix* w, const float* bias, LqView out) {                           \
        LQ_SHARED(float, quads, lq_tile_values<R>() * R);                                                              \
        lq_linear_kernel<R>(x, w, bias, out, quads);                                                                   \
    }                                                                                                                  \
    LQ_EXPORT(linear_r##R)                                                                                             \
    LQ_KERNEL void grouped_r##R(LqView x, const LqMatrix* w, LqGroups groups, LqView out) {                            \
        LQ_SHARED(float, quads, lq_tile_values<R>() * R);                                                              \
        lq_grouped_kernel<R>(x, w, groups, out, quads);                                                                \
    }                                                                                                                  \
    LQ_EXPORT(grouped_r##R)                                                                                            \
    LQ_KERNEL void gate_up_r##R(LqView x, const LqMatrix* gate, const LqMatrix* up, LqGroups groups, LqView out) {     \
        LQ_SHARED(float, quads, lq_tile_values<R>() * R);                                                              \
        lq_gate_up_kernel<R>(x, gate, up, groups, out, quads);                                                         \
    }                                                                                                                  \
    LQ_EXPORT(gate_up_r##R)

LQ_WEIGHT_KERNELS(1)
LQ_WEIGHT_KERNELS(4)
LQ_WEIGHT_KERNELS(8)
