// Products with weights on matrix units: a weight matrix is A (16 outputs by 16 of k), rows of x are B, rounded to
// bf16. Weights go in as integers or floats that bf16 holds exactly, straight from memory to the registers of the lane
// that needs them; their scales are applied in f32 to each sum of 32 (or 16) terms. README.md has the order of each
// sum, which is the same for all kernels here, however they cut the work.
#pragma once
#include "formats.h"
#include "mma.h"
#include "rows.h"

#if defined(LQ_MMA)

constexpr u32 LQ_BLOCK = 32;          // values of k in two products
constexpr u32 LQ_SEGMENT = 16;        // blocks: what is summed from zero
constexpr u32 LQ_NO_ROW = 0xffffffffu;

// ---- what a lane holds of a row of weights ----
//
// A format has: UNIT, the blocks that `Held` covers; PLANES, how many bf16 add up to a weight; SCALES of a block of 32
// (0: none); MINS, whether a multiple of the sum of x is taken away; K_ORDER, whether lane t takes values 4t .. 4t + 4
// and 16 + 4t .. of a block, or 8t .. 8t + 8. `load` takes the unit that starts at a block; beyond the end there are
// zeros.

template <bool BF16>
struct LqHalfTiles {
    static constexpr u32 UNIT = 1, PLANES = BF16 ? 1 : 2, SCALES = 0;
    static constexpr bool MINS = false, K_ORDER = false;
    struct Held {
        LqU4 halves;
    };
    const u8* values;
    u64 chunks;
    LQ_DEV LqHalfTiles of(const LqMatrix& m) {
        return {m.planes[0], lq_chunks(m)};
    }
    LQ_DEV void load(const LqHalfTiles& self, u32 row, u32 block, Held& held) {
        u32 c = block * 4 + lq_mma_quad();
        held.halves = {{0, 0, 0, 0}};
        if (c < self.chunks) held.halves = lq_load<LqU4>(self.values, row * self.chunks + c);
    }
    /// Two f16 as the 8 highest bits of each, and the rest.
    LQ_DEV void split(u32 pair, u32& high, u32& rest) {
        float a = lq_f16_to_float((u16)(pair & 0xffff)), b = lq_f16_to_float((u16)(pair >> 16));
        u32 of_a = lq_bits_of_float(a) & 0xffff0000u, of_b = lq_bits_of_float(b) & 0xffff0000u;
        high = of_a >> 16 | of_b;
        rest = lq_bf16_pair(a - lq_float_of_bits(of_a), b - lq_float_of_bits(of_b));
    }
    LQ_DEV void pairs(const Held& held, u32, u32 (&p)[PLANES][4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (BF16) {
                p[0][i] = held.halves.v[i];
            } else {
                split(held.halves.v[i], p[0][i], p[1][i]);
            }
        }
    }
    LQ_DEV LqScaleMin scale(const Held&, u32, u32) {
        return {1.0f, 0.0f};
    }
};

struct LqFp8Tiles {
    static constexpr u32 UNIT = 2, PLANES = 1, SCALES = 1;
    static constexpr bool MINS = false, K_ORDER = false;
    struct Held {
        LqU2 bytes[UNIT];
        float scales[UNIT];
    };
    const u8* values;
    const u8* scales;
    u64 chunks;
    u32 rows_per_scale, scale_cols, block_shift;
    LQ_DEV LqFp8Tiles of(const LqMatrix& m) {
        u32 shift = 0; // of a block's number to that of its scale
        while ((LQ_BLOCK << shift) < m.cols_per_scale) shift++;
        u32 scale_cols = (m.cols + m.cols_per_scale - 1) / m.cols_per_scale;
        return {m.planes[0], m.planes[1], lq_chunks(m), m.rows_per_scale, scale_cols, shift};
    }
    LQ_DEV void load(const LqFp8Tiles& self, u32 row, u32 block, Held& held) {
        u64 scale_row = (u64)(row / self.rows_per_scale) * self.scale_cols;
#pragma unroll
        for (u32 b = 0; b < UNIT; b++) {
            u32 c = (block + b) * 4 + lq_mma_quad();
            held.bytes[b] = {{0, 0}};
            held.scales[b] = 0.0f;
            if (c < self.chunks) held.bytes[b] = lq_load<LqU2>(self.values, row * self.chunks + c);
            if ((block + b) * 4 < self.chunks) {
                held.scales[b] = lq_load<float>(self.scales, scale_row + ((block + b) >> self.block_shift));
            }
        }
    }
    LQ_DEV void pairs(const Held& held, u32 b, u32 (&p)[PLANES][4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) p[0][i] = lq_bf16_of_e4m3(lq_byte_pair(held.bytes[b].v[i / 2], i % 2));
    }
    LQ_DEV LqScaleMin scale(const Held& held, u32 b, u32) {
        return {held.scales[b], 0.0f};
    }
};

struct LqQ8Tiles {
    static constexpr u32 UNIT = 2, PLANES = 1, SCALES = 1;
    static constexpr bool MINS = false, K_ORDER = false;
    struct Held {
        LqU2 bytes[UNIT];
        u16 d[UNIT];
    };
    const u8* quants;
    const u8* d;
    u64 blocks;
    LQ_DEV LqQ8Tiles of(const LqMatrix& m) {
        return {m.planes[0], m.planes[1], m.cols / LQ_BLOCK};
    }
    LQ_DEV void load(const LqQ8Tiles& self, u32 row, u32 block, Held& held) {
#pragma unroll
        for (u32 b = 0; b < UNIT; b++) {
            u64 at = row * self.blocks + block + b;
            held.bytes[b] = {{0, 0}};
            held.d[b] = 0;
            if (block + b >= self.blocks) continue;
            held.bytes[b] = lq_load<LqU2>(self.quants, at * 4 + lq_mma_quad());
            held.d[b] = lq_load<u16>(self.d, at);
        }
    }
    LQ_DEV void pairs(const Held& held, u32 b, u32 (&p)[PLANES][4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) p[0][i] = lq_bf16_of_i8(lq_byte_pair(held.bytes[b].v[i / 2], i % 2));
    }
    LQ_DEV LqScaleMin scale(const Held& held, u32 b, u32) {
        return {lq_f16_to_float(held.d[b]), 0.0f};
    }
};

struct LqQ4KTiles {
    static constexpr u32 UNIT = 4, PLANES = 1, SCALES = 1;
    static constexpr bool MINS = true, K_ORDER = true;
    struct Held {
        LqU4 quants, head;
        u32 first_group;
    };
    const u8* quants;
    const u8* heads;
    u64 tiles;
    LQ_DEV LqQ4KTiles of(const LqMatrix& m) {
        return {m.planes[0], m.planes[1], m.cols / 128};
    }
    LQ_DEV void load(const LqQ4KTiles& self, u32 row, u32 block, Held& held) {
        u64 tile = row * self.tiles + block / 4;
        held.quants = lq_load<LqU4>(self.quants, tile * 4 + lq_mma_quad());
        held.head = lq_load<LqU4>(self.heads, tile / 2);
        held.first_group = block % 8;
    }
    LQ_DEV void pairs(const Held& held, u32 b, u32 (&p)[PLANES][4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) p[0][i] = lq_bf16_of_4(held.quants.v[b], i);
    }
    LQ_DEV LqScaleMin scale(const Held& held, u32 b, u32) {
        return lq_q4k_scale(held.head, held.first_group + b);
    }
};

struct LqQ6KTiles {
    static constexpr u32 UNIT = 4, PLANES = 1, SCALES = 2;
    static constexpr bool MINS = false, K_ORDER = true;
    struct Held {
        LqU4 low;
        LqU2 high, scales;
        u32 d;
    };
    const u8* low;
    const u8* high;
    const u8* scales;
    const u8* d;
    u64 tiles;
    LQ_DEV LqQ6KTiles of(const LqMatrix& m) {
        return {m.planes[0], m.planes[1], m.planes[2], m.planes[3], m.cols / 128};
    }
    LQ_DEV void load(const LqQ6KTiles& self, u32 row, u32 block, Held& held) {
        u64 tile = row * self.tiles + block / 4;
        held.low = lq_load<LqU4>(self.low, tile * 4 + lq_mma_quad());
        held.high = lq_load<LqU2>(self.high, tile * 4 + lq_mma_quad());
        held.scales = lq_load<LqU2>(self.scales, tile);
        held.d = lq_load<u16>(self.d, tile / 2);
    }
    LQ_DEV void pairs(const Held& held, u32 b, u32 (&p)[PLANES][4]) {
        u32 high = held.high.v[b / 2] >> (b % 2 * 16) & 0xffff;
#pragma unroll
        for (int i = 0; i < 4; i++) p[0][i] = lq_bf16_of_6(held.low.v[b], high, i);
    }
    LQ_DEV LqScaleMin scale(const Held& held, u32 b, u32 half) {
        u32 byte = held.scales.v[b / 2] >> (b % 2 * 16 + half * 8) & 255;
        return {lq_f16_to_float((u16)held.d) * (float)(i8)byte, 0.0f};
    }
};

struct LqCodesTiles {
    static constexpr u32 UNIT = 1, PLANES = 1, SCALES = 2;
    static constexpr bool MINS = true, K_ORDER = true;
    struct Held {
        u32 codes[2];
        LqU2 scales[2];
    };
    const u8* codes;
    const u8* scales;
    u64 blocks;
    u32 block_groups;
    LQ_DEV LqCodesTiles of(const LqMatrix& m) {
        return {m.planes[0], m.planes[1], m.cols / LQ_BLOCK, LQ_BLOCK / m.cols_per_scale};
    }
    LQ_DEV void load(const LqCodesTiles& self, u32 row, u32 block, Held& held) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            held.codes[half] = 0;
            held.scales[half] = {{0, 0}};
            if (block >= self.blocks) continue;
            u64 at = row * self.blocks + block;
            held.codes[half] = lq_load<u32>(self.codes, at * 8 + half * 4 + lq_mma_quad());
            u32 group = self.block_groups == 2 ? half : 0;
            held.scales[half] = lq_load<LqU2>(self.scales, at * self.block_groups + group);
        }
    }
    LQ_DEV void pairs(const Held& held, u32, u32 (&p)[PLANES][4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) p[0][i] = lq_bf16_of_i8(lq_byte_pair(held.codes[i / 2], i % 2));
    }
    LQ_DEV LqScaleMin scale(const Held& held, u32, u32 half) {
        return {lq_float_of_bits(held.scales[half].v[0]), lq_float_of_bits(held.scales[half].v[1])};
    }
};

/// Calls `act(tiles of the format)`. F32 has none: the host takes the kernels of weights.h for it.
template <class Act>
LQ_DEV void lq_with_tiles(u32 format, const Act& act) {
    switch (format) {
    case LQ_F16: return act(LqHalfTiles<false>());
    case LQ_BF16: return act(LqHalfTiles<true>());
    case LQ_FP8: return act(LqFp8Tiles());
    case LQ_Q8_0: return act(LqQ8Tiles());
    case LQ_Q4_K: return act(LqQ4KTiles());
    case LQ_Q6_K: return act(LqQ6KTiles());
    case LQ_CODES: return act(LqCodesTiles());
    }
}

// ---- rows of x ----

/// Rows of x that a block multiplies: where they are and where their results go. rows [T]: LQ_NO_ROW beyond the last.
struct LqTileRows {
    const float* x;
    u64 row_stride;
    u32* from;
    u32* to;
    u32 cols;
    bool aligned; // whether 4 values of x can be loaded at once
};

/// 4 values of a row of x from `k` on, zeros beyond its end, as two pairs.
LQ_DEV LqU2 lq_x_pairs(const LqTileRows& rows, u32 row, u32 k) {
    LqF4 x = {{0.0f, 0.0f, 0.0f, 0.0f}};
    if (row != LQ_NO_ROW) {
        const float* from = rows.x + row * rows.row_stride + k;
        if (rows.aligned && k + 4 <= rows.cols) {
            x = *reinterpret_cast<const LqF4*>(from);
        } else {
#pragma unroll
            for (u32 i = 0; i < 4; i++) x.v[i] = k + i < rows.cols ? from[i] : 0.0f;
        }
    }
    return {{lq_bf16_pair(x.v[0], x.v[1]), lq_bf16_pair(x.v[2], x.v[3])}};
}

/// The 8 slots of lane `quad` of a block of k.
template <bool K_ORDER>
LQ_DEV LqU4 lq_x_slots(const LqTileRows& rows, u32 row, u32 block, u32 quad) {
    u32 k = block * LQ_BLOCK + quad * (K_ORDER ? 4 : 8);
    LqU2 a = lq_x_pairs(rows, row, k), b = lq_x_pairs(rows, row, k + (K_ORDER ? 16 : 4));
    return {{a.v[0], a.v[1], b.v[0], b.v[1]}};
}

/// How a kernel cuts its work: MT tiles of 16 outputs and NT tiles of rows for each warp, WM warps side by side along
/// the outputs, WK warps on different segments of k. T rows of x; fewer than the tiles hold, where a tile has 16.
template <int T_, int MT_, int WM_, int WK_>
struct LqCut {
    static constexpr int T = T_, MT = MT_, WM = WM_, WK = WK_;
    static constexpr int NT = T < LQ_MMA_COLS ? 1 : T / LQ_MMA_COLS;
    static constexpr int ITEMS = NT * 4; // accumulators of a lane for a tile of outputs
    static constexpr bool STAGED = WK == 1; // x goes through shared memory, as all warps are at the same place in k
    static constexpr int STAGE = STAGED ? T * 4 : 1; // x of a block of k: [T][quad] of 8 slots
    static constexpr int THREADS = WM * WK * LQ_WARP;
    // Sums of the segments so far, [MT][ITEMS][THREADS]; or those of the segments at work, [2][WM *
    // WK][MT][ITEMS][lane].
    static constexpr int SUMS = (STAGED ? 1 : 2) * MT * ITEMS * THREADS;
};

struct LqTileShared {
    LqU4* stage; // [2][Cut::STAGE]
    float* sums; // [Cut::SUMS]
};

/// x of a block of k on its way from memory to shared memory.
template <class Cut, bool K_ORDER>
struct LqStage {
    static constexpr int EACH = (Cut::STAGE + Cut::THREADS - 1) / Cut::THREADS;
    LqU4 slots[EACH];
    LQ_DEV void fetch(LqStage& self, const LqTileRows& rows, u32 block) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            u32 at = threadIdx.x + i * Cut::THREADS;
            self.slots[i] = lq_x_slots<K_ORDER>(rows, at < Cut::STAGE ? rows.from[at / 4] : LQ_NO_ROW, block, at % 4);
        }
    }
    LQ_DEV void put(const LqStage& self, u32 block, LqU4* stage) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            u32 at = threadIdx.x + i * Cut::THREADS;
            if (at < Cut::STAGE) stage[block % 2 * Cut::STAGE + at] = self.slots[i];
        }
    }
};

// ---- sums ----

/// One block of k: each accumulator gets its two products.
template <class Tiles, class Cut>
LQ_DEV void lq_tile_block(const typename Tiles::Held (&held)[Cut::MT][LQ_MMA_ROWS], u32 b, const LqU4 (&x)[Cut::NT],
                          float (&sums)[Cut::MT][Cut::NT][4]) {
    constexpr u32 PLANES = Tiles::PLANES, SCALES = Tiles::SCALES;
    u32 a[Cut::MT][PLANES][2][LQ_MMA_ROWS][2]; // [tile][plane][product][row][pair]
    LqScaleMin scales[Cut::MT][LQ_MMA_ROWS][2];
#pragma unroll
    for (int m = 0; m < Cut::MT; m++) {
#pragma unroll
        for (int row = 0; row < LQ_MMA_ROWS; row++) {
            u32 p[PLANES][4];
            Tiles::pairs(held[m][row], b, p);
#pragma unroll
            for (u32 i = 0; i < PLANES * 4; i++) a[m][i / 4][i % 4 / 2][row][i % 2] = p[i / 4][i % 4];
#pragma unroll
            for (int half = 0; half < (int)SCALES; half++) scales[m][row][half] = Tiles::scale(held[m][row], b, half);
        }
    }
    constexpr u32 PARTS = SCALES == 2 ? 2 : 1, PRODUCTS = 2 / PARTS; // sums that are scaled, products in each
#pragma unroll
    for (int n = 0; n < Cut::NT; n++) {
        u32 of_x[2][2] = {{x[n].v[0], x[n].v[1]}, {x[n].v[2], x[n].v[3]}};
        float x_sums[2][4] = {};
        if constexpr (Tiles::MINS) {
            u32 ones[LQ_MMA_ROWS][2];
#pragma unroll
            for (int i = 0; i < LQ_MMA_ROWS * 2; i++) ones[i / 2][i % 2] = LQ_BF16_ONE;
#pragma unroll
            for (u32 s = 0; s < 2; s++) lq_mma<false>(x_sums[s / PRODUCTS], ones, of_x[s]);
        }
#pragma unroll
        for (int m = 0; m < Cut::MT; m++) {
            if constexpr (SCALES == 0) {
#pragma unroll
                for (u32 i = 0; i < PLANES * 2; i++) lq_mma<false>(sums[m][n], a[m][i / 2][i % 2], of_x[i % 2]);
            } else {
#pragma unroll
                for (u32 part = 0; part < PARTS; part++) {
                    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                    for (u32 s = part * PRODUCTS; s < (part + 1) * PRODUCTS; s++) {
                        lq_mma<false>(sum, a[m][0][s], of_x[s]);
                    }
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        LqScaleMin scale = scales[m][lq_mma_out_row(i)][part];
                        sums[m][n][i] = lq_fma(scale.step, sum[i], sums[m][n][i]);
                        if constexpr (Tiles::MINS) sums[m][n][i] = lq_fma(-scale.below, x_sums[part][i], sums[m][n][i]);
                    }
                }
            }
        }
    }
}

/// The weights of a warp: a matrix and 16 of its rows for each tile of outputs.
template <class Tiles, class Cut>
struct LqWarpWeights {
    Tiles tiles[Cut::MT];
    u32 first[Cut::MT], rows;
    template <u32 AHEAD>
    LQ_DEV void load(const LqWarpWeights& self, u32 block,
                     typename Tiles::Held (&held)[AHEAD][Cut::MT][LQ_MMA_ROWS]) {
#pragma unroll
        for (u32 unit = 0; unit < AHEAD; unit++) {
#pragma unroll
            for (int m = 0; m < Cut::MT; m++) {
#pragma unroll
                for (int row = 0; row < LQ_MMA_ROWS; row++) {
                    u32 at = lq_least(self.first[m] + lq_mma_row(row), self.rows - 1);
                    Tiles::load(self.tiles[m], at, block + unit * Tiles::UNIT, held[unit][m][row]);
                }
            }
        }
    }
};

/// Blocks `first .. end` of k by one warp, x from memory; the weights of the next blocks are on their way while some
/// are multiplied.
template <class Tiles, class Cut>
LQ_DEV void lq_tile_segment(const LqWarpWeights<Tiles, Cut>& weights, const LqTileRows& rows, u32 first, u32 end,
                            float (&sums)[Cut::MT][Cut::NT][4]) {
    constexpr u32 WANTED = Cut::MT == 1 ? 4 : 2, BLOCKS = WANTED < Tiles::UNIT ? Tiles::UNIT : WANTED; // at once
    constexpr u32 AHEAD = BLOCKS / Tiles::UNIT;
    typename Tiles::Held held[AHEAD][Cut::MT][LQ_MMA_ROWS], next[AHEAD][Cut::MT][LQ_MMA_ROWS];
    using Warp = LqWarpWeights<Tiles, Cut>;
    u32 of_col[Cut::NT];
#pragma unroll
    for (int n = 0; n < Cut::NT; n++) {
        u32 col = n * LQ_MMA_COLS + lq_mma_col();
        of_col[n] = col < Cut::T ? rows.from[col] : LQ_NO_ROW;
    }
    Warp::load(weights, first, held);
#pragma unroll 1
    for (u32 block = first; block < end; block += BLOCKS) {
        if (block + BLOCKS < end) Warp::load(weights, block + BLOCKS, next);
#pragma unroll
        for (u32 b = 0; b < BLOCKS; b++) {
            LqU4 x[Cut::NT];
#pragma unroll
            for (int n = 0; n < Cut::NT; n++) {
                x[n] = lq_x_slots<Tiles::K_ORDER>(rows, of_col[n], block + b, lq_mma_quad());
            }
            lq_tile_block<Tiles, Cut>(held[b / Tiles::UNIT], b % Tiles::UNIT, x, sums);
        }
#pragma unroll
        for (u32 i = 0; i < AHEAD * Cut::MT * LQ_MMA_ROWS; i++) {
            held[i / (Cut::MT * LQ_MMA_ROWS)][i / LQ_MMA_ROWS % Cut::MT][i % LQ_MMA_ROWS] =
                next[i / (Cut::MT * LQ_MMA_ROWS)][i / LQ_MMA_ROWS % Cut::MT][i % LQ_MMA_ROWS];
        }
    }
}

/// All segments of k by warps that take turns: those of a round are added in their order, accumulator i of a tile by
/// warp i % WK, which alone has its total. `takes`: the tiles of outputs that count, by bit.
template <class Tiles, class Cut>
LQ_CALLED void lq_tile_turns(LqWarpWeights<Tiles, Cut> weights, LqTileRows rows, u32 takes, LqTileShared shared,
                             float (&totals)[Cut::MT][Cut::ITEMS / Cut::WK]) {
    LQ_IS_SHARED(shared.sums);
    LQ_IS_SHARED(rows.from);
    u32 blocks = (rows.cols + LQ_BLOCK - 1) / LQ_BLOCK, along = lq_warp() / Cut::WK, turn = lq_warp() % Cut::WK;
    u32 segments = (blocks + LQ_SEGMENT - 1) / LQ_SEGMENT;
    for (u32 round = 0; round * Cut::WK < segments; round++) {
        float* of_round = shared.sums + round % 2 * (Cut::SUMS / 2);
        u32 segment = round * Cut::WK + turn;
        if (segment < segments) {
            float sums[Cut::MT][Cut::NT][4] = {};
            u32 first = segment * LQ_SEGMENT;
            lq_tile_segment<Tiles, Cut>(weights, rows, first, lq_least(first + LQ_SEGMENT, blocks), sums);
#pragma unroll
            for (int i = 0; i < Cut::MT * Cut::ITEMS; i++) {
                of_round[(lq_warp() * Cut::MT * Cut::ITEMS + i) * LQ_WARP + lq_lane()] =
                    sums[i / Cut::ITEMS][i % Cut::ITEMS / 4][i % 4];
            }
        }
        lq_sync();
        for (u32 other = 0; other < Cut::WK && round * Cut::WK + other < segments; other++) {
            const float* of_warp = of_round + (along * Cut::WK + other) * Cut::MT * Cut::ITEMS * LQ_WARP + lq_lane();
#pragma unroll
            for (int m = 0; m < Cut::MT; m++) {
#pragma unroll
                for (int j = 0; j < Cut::ITEMS / Cut::WK; j++) {
                    if (takes >> m & 1) totals[m][j] += of_warp[(m * Cut::ITEMS + j * Cut::WK + turn) * LQ_WARP];
                }
            }
        }
    }
    lq_sync(); // before the sums are used again
}

/// All segments of k by each warp, one after another, with x in shared memory; totals too, [MT][ITEMS][thread].
template <class Tiles, class Cut>
LQ_CALLED void lq_tile_stages(LqWarpWeights<Tiles, Cut> weights, LqTileRows rows, u32 takes, LqTileShared shared) {
    LQ_IS_SHARED(shared.sums);
    LQ_IS_SHARED(shared.stage);
    LQ_IS_SHARED(rows.from);
    using Warp = LqWarpWeights<Tiles, Cut>;
    using Stage = LqStage<Cut, Tiles::K_ORDER>;
    typename Tiles::Held held[1][Cut::MT][LQ_MMA_ROWS];
    u32 blocks = (rows.cols + LQ_BLOCK - 1) / LQ_BLOCK;
    Stage stage;
    Stage::fetch(stage, rows, 0);
    Stage::put(stage, 0, shared.stage);
    lq_sync();
    for (u32 first = 0; first < blocks; first += LQ_SEGMENT) {
        float sums[Cut::MT][Cut::NT][4] = {};
        u32 end = lq_least(first + LQ_SEGMENT, blocks);
#pragma unroll 1
        for (u32 unit = first; unit < end; unit += Tiles::UNIT) {
            Warp::load(weights, unit, held);
#pragma unroll
            for (u32 b = 0; b < Tiles::UNIT; b++) {
                u32 block = unit + b;
                if (block >= end) break;
                if (block + 1 < blocks) Stage::fetch(stage, rows, block + 1);
                LqU4 x[Cut::NT];
#pragma unroll
                for (int n = 0; n < Cut::NT; n++) {
                    u32 col = n * LQ_MMA_COLS + lq_mma_col();
                    x[n] = shared.stage[block % 2 * Cut::STAGE + col * 4 + lq_mma_quad()];
                }
                lq_tile_block<Tiles, Cut>(held[0], b, x, sums);
                if (block + 1 < blocks) Stage::put(stage, block + 1, shared.stage);
                lq_sync();
            }
        }
#pragma unroll
        for (int i = 0; i < Cut::MT * Cut::ITEMS; i++) {
            if (takes >> (i / Cut::ITEMS) & 1) {
                float& total = shared.sums[i * Cut::THREADS + threadIdx.x];
                total = first == 0 ? 0.0f + sums[i / Cut::ITEMS][i % Cut::ITEMS / 4][i % 4]
                                   : total + sums[i / Cut::ITEMS][i % Cut::ITEMS / 4][i % 4];
            }
        }
    }
}

// ---- kernels ----

/// The rows of tile `tile`, of groups or of plain rows; false where there is none. Gives the expert.
template <int T>
LQ_DEV bool lq_find_rows(const LqView& x, const LqGroups& groups, u32 head, LqTileRows& rows, u32& expert) {
    u32 tile = blockIdx.y;
    expert = 0;
    if (groups.tiles && tile >= *groups.tile_count) return false;
    const u32* cut = groups.tiles + (u64)tile * 4;
    if (groups.tiles) expert = cut[0];
    for (u32 i = threadIdx.x; i < T; i += blockDim.x) {
        u32 from = tile * T + i, to = from;
        if (groups.tiles) {
            to = i < cut[2] ? groups.order[cut[1] + i] : LQ_NO_ROW;
            from = i < cut[2] ? to / groups.inputs_per_row : LQ_NO_ROW;
        } else if (from >= x.rows) {
            from = to = LQ_NO_ROW;
        }
        rows.from[i] = from, rows.to[i] = to;
    }
    rows.x = lq_head(x, 0, head);
    rows.row_stride = x.row_stride;
    rows.cols = x.len;
    rows.aligned = ((u64)rows.x & 15) == 0 && x.row_stride % 4 == 0;
    lq_sync();
    return true;
}

/// Multiplies the block's rows by matrices a (first tile of outputs) and b (second; the same where a kernel has one
/// matrix) and calls `put(output in the warp's tiles, row, first tile's sum, second's)`.
template <class Cut, class Put>
LQ_DEV void lq_tile_products(const LqMatrix* of_tiles[2], u32 turns, const u32 (&first)[Cut::MT],
                             const LqTileRows& rows, const LqTileShared& shared, const Put& put) {
    float totals[Cut::MT][Cut::ITEMS / Cut::WK];
#pragma unroll
    for (int i = 0; i < Cut::MT * (Cut::ITEMS / Cut::WK); i++) totals[i % Cut::MT][i / Cut::MT] = 0.0f;
    for (u32 turn = 0; turn < turns; turn++) {
        // Tiles of different formats take two turns, each with one of the matrices on both sides.
        LqMatrix a = *of_tiles[turn], b = *of_tiles[turns == 1 ? 1 : turn];
        u32 takes = turns == 1 ? 3 : 1u << turn;
        lq_with_tiles(a.format, [&](auto format) {
            using Tiles = decltype(format);
            LqWarpWeights<Tiles, Cut> weights;
            weights.rows = a.rows;
#pragma unroll
            for (int m = 0; m < Cut::MT; m++) {
                weights.tiles[m] = m == 0 ? Tiles::of(a) : Tiles::of(b);
                weights.first[m] = first[m];
            }
            if constexpr (Cut::STAGED) {
                lq_tile_stages<Tiles, Cut>(weights, rows, takes, shared);
            } else {
                lq_tile_turns<Tiles, Cut>(weights, rows, takes, shared, totals);
            }
        });
    }
#pragma unroll
    for (int j = 0; j < Cut::ITEMS / Cut::WK; j++) {
#pragma unroll
        for (int w = 0; w < Cut::WK; w++) {
            if (w != (int)(lq_warp() % Cut::WK)) continue;
            constexpr int WK = Cut::WK;
            u32 item = j * WK + w, col = item / 4 * LQ_MMA_COLS + lq_mma_out_col(item % 4);
            u32 row = col < Cut::T ? rows.to[col] : LQ_NO_ROW;
            if (row == LQ_NO_ROW) continue;
            float sums[2];
#pragma unroll
            for (int m = 0; m < Cut::MT; m++) {
                const float* staged = shared.sums + (m * Cut::ITEMS + item) * Cut::THREADS + threadIdx.x;
                sums[m] = Cut::STAGED ? *staged : totals[m][j];
            }
            put(lq_mma_row(lq_mma_out_row(item % 4)), row, sums[0], sums[Cut::MT - 1]);
        }
    }
}

/// x times a matrix: each warp MT tiles of 16 outputs side by side.
template <class Cut>
LQ_DEV void lq_tile_linear(const LqView& x, const LqMatrix* table, const float* bias, const LqGroups& groups,
                           const LqView& out, LqTileRows rows, const LqTileShared& shared) {
    u32 expert, head = blockIdx.z;
    if (!lq_find_rows<Cut::T>(x, groups, head, rows, expert)) return;
    const LqMatrix* matrix = table + (groups.tiles ? expert : head);
    const LqMatrix* matrices[2] = {matrix, matrix};
    u32 first[Cut::MT];
#pragma unroll
    for (int m = 0; m < Cut::MT; m++) first[m] = ((blockIdx.x * Cut::WM + lq_warp() / Cut::WK) * Cut::MT + m) * 16;
    u32 outputs = matrix->rows;
    lq_tile_products<Cut>(matrices, 1, first, rows, shared, [&](u32 in_tile, u32 row, float low, float high) {
#pragma unroll
        for (int m = 0; m < Cut::MT; m++) {
            u32 output = first[m] + in_tile;
            float sum = m == 0 ? low : high;
            if (output < outputs) lq_head(out, row, head)[output] = bias ? sum + bias[output] : sum;
        }
    });
}

/// silu(gate x) * (up x): the first tile of a warp is of the gate, the second of up.
template <class Cut>
LQ_DEV void lq_tile_gate_up(const LqView& x, const LqMatrix* gates, const LqMatrix* ups, const LqGroups& groups,
                            const LqView& out, LqTileRows rows, const LqTileShared& shared) {
    static_assert(Cut::MT == 2, "gate and up");
    u32 expert;
    if (!lq_find_rows<Cut::T>(x, groups, 0, rows, expert)) return;
    const LqMatrix* matrices[2] = {gates + expert, ups + expert};
    u32 output = (blockIdx.x * Cut::WM + lq_warp() / Cut::WK) * 16, outputs = matrices[0]->rows;
    u32 first[2] = {output, output}, turns = matrices[0]->format == matrices[1]->format ? 1 : 2;
    lq_tile_products<Cut>(matrices, turns, first, rows, shared, [&](u32 in_tile, u32 row, float gate, float up) {
        if (output + in_tile < outputs) lq_head(out, row, 0)[output + in_tile] = lq_silu(gate) * up;
    });
}

#define LQ_TILE_SHARED(Cut)                                                                                            \
    LQ_SHARED(u32, from, Cut::T);                                                                                      \
    LQ_SHARED(u32, to, Cut::T);                                                                                        \
    LQ_SHARED(LqU4, stage, 2 * Cut::STAGE);                                                                            \
    LQ_SHARED(float, sums, Cut::SUMS);                                                                                 \
    LqTileRows rows = {nullptr, 0, from, to, 0, false};                                                                \
    LqTileShared shared = {stage, sums}

/// BLOCKS: how many should fit on a multiprocessor at once, which bounds a thread's registers.
#define LQ_TILE_KERNELS(T, BLOCKS, Linear, GATED_BLOCKS, GateUp)                                                       \
    LQ_KERNEL_OF(4 * LQ_WARP, BLOCKS) void linear_t##T(LqView x, const LqMatrix* w, const float* bias, LqView out) {   \
        LQ_TILE_SHARED(Linear);                                                                                        \
        lq_tile_linear<Linear>(x, w, bias, {nullptr, nullptr, nullptr, 1, 0}, out, rows, shared);                      \
    }                                                                                                                  \
    LQ_EXPORT(linear_t##T)                                                                                             \
    LQ_KERNEL_OF(4 * LQ_WARP, BLOCKS) void grouped_t##T(LqView x, const LqMatrix* w, LqGroups groups, LqView out) {    \
        LQ_TILE_SHARED(Linear);                                                                                        \
        lq_tile_linear<Linear>(x, w, nullptr, groups, out, rows, shared);                                              \
    }                                                                                                                  \
    LQ_EXPORT(grouped_t##T)                                                                                            \
    LQ_KERNEL_OF(4 * LQ_WARP, GATED_BLOCKS)                                                                            \
    void gate_up_t##T(LqView x, const LqMatrix* gate, const LqMatrix* up, LqGroups groups, LqView out) {               \
        LQ_TILE_SHARED(GateUp);                                                                                        \
        lq_tile_gate_up<GateUp>(x, gate, up, groups, out, rows, shared);                                               \
    }                                                                                                                  \
    LQ_EXPORT(gate_up_t##T)

using LqLinear8 = LqCut<8, 1, 1, 4>;
using LqGateUp8 = LqCut<8, 2, 1, 4>;
using LqTiles16 = LqCut<16, 2, 2, 2>;
using LqTiles64 = LqCut<64, 2, 4, 1>;
LQ_TILE_KERNELS(8, 4, LqLinear8, 3, LqGateUp8)
LQ_TILE_KERNELS(16, 3, LqTiles16, 3, LqTiles16)
LQ_TILE_KERNELS(64, 2, LqTiles64, 2, LqTiles64)

#endif
