// How 8 consecutive weights become floats: one struct for each device layout (README.md, "Weights"). The values are
// those that the host's scalar decode gives, bit for bit.
#pragma once
#include "portable.h"

enum LqFormat : u32 { LQ_F32, LQ_F16, LQ_BF16, LQ_FP8, LQ_Q8_0, LQ_Q4_K, LQ_Q6_K };

LQ_DEV u64 lq_chunks(const LqMatrix& m) {
    return (m.cols + 7) / 8;
}

/// Element i of an array, by pointer to its bytes.
template <class T>
LQ_DEV T lq_load(const u8* plane, u64 i) {
    return reinterpret_cast<const T*>(plane)[i];
}

// Each has `chunk(row, c, w)`: values 8 c .. 8 c + 8 of the row.

struct LqF32Weights {
    const u8* values;
    u64 chunks;
    LQ_DEV LqF32Weights of(const LqMatrix& m) {
        return {m.planes[0], lq_chunks(m)};
    }
    LQ_DEV void chunk(const LqF32Weights& self, u32 row, u32 c, float (&w)[8]) {
        u64 at = 2 * (row * self.chunks + c);
        LqF4 low = lq_load<LqF4>(self.values, at), high = lq_load<LqF4>(self.values, at + 1);
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = low.v[i], w[4 + i] = high.v[i];
    }
};

template <bool BF16>
struct LqHalfWeights {
    const u8* values;
    u64 chunks;
    LQ_DEV LqHalfWeights of(const LqMatrix& m) {
        return {m.planes[0], lq_chunks(m)};
    }
    LQ_DEV float value(u32 bits) {
        return BF16 ? lq_bf16_to_float(bits) : lq_f16_to_float((u16)bits);
    }
    LQ_DEV void chunk(const LqHalfWeights& self, u32 row, u32 c, float (&w)[8]) {
        LqU4 halves = lq_load<LqU4>(self.values, row * self.chunks + c);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[2 * i] = value(halves.v[i] & 0xffff);
            w[2 * i + 1] = value(halves.v[i] >> 16);
        }
    }
};

struct LqFp8Weights {
    const u8* values;
    const u8* scales;
    u64 chunks;
    u32 rows_per_scale, scale_cols, chunk_shift;
    LQ_DEV LqFp8Weights of(const LqMatrix& m) {
        u32 shift = 0; // of a chunk's number to that of its scale
        while ((8u << shift) < m.cols_per_scale) shift++;
        u32 scale_cols = (m.cols + m.cols_per_scale - 1) / m.cols_per_scale;
        return {m.planes[0], m.planes[1], lq_chunks(m), m.rows_per_scale, scale_cols, shift};
    }
    LQ_DEV void chunk(const LqFp8Weights& self, u32 row, u32 c, float (&w)[8]) {
        LqU2 bytes = lq_load<LqU2>(self.values, row * self.chunks + c);
        u64 scale_row = (u64)(row / self.rows_per_scale) * self.scale_cols;
        float scale = lq_load<float>(self.scales, scale_row + (c >> self.chunk_shift));
#pragma unroll
        for (int i = 0; i < 8; i++) w[i] = lq_e4m3_to_float(bytes.v[i / 4] >> (i % 4 * 8) & 255) * scale;
    }
};

struct LqQ8Weights {
    const u8* quants;
    const u8* d;
    u64 chunks;
    LQ_DEV LqQ8Weights of(const LqMatrix& m) {
        return {m.planes[0], m.planes[1], lq_chunks(m)};
    }
    LQ_DEV void chunk(const LqQ8Weights& self, u32 row, u32 c, float (&w)[8]) {
        u64 at = row * self.chunks + c;
        LqU2 bytes = lq_load<LqU2>(self.quants, at);
        float d = lq_f16_to_float(lq_load<u16>(self.d, at / 4));
#pragma unroll
        for (int i = 0; i < 8; i++) w[i] = d * (float)(i8)(bytes.v[i / 4] >> (i % 4 * 8) & 255);
    }
};

/// value = d scale q - dmin min, scale and min of 6 bits for 32 values (ggml's block_q4_K).
struct LqQ4KWeights {
    const u8* quants;
    const u8* heads;
    u64 chunks;
    LQ_DEV LqQ4KWeights of(const LqMatrix& m) {
        return {m.planes[0], m.planes[1], lq_chunks(m)};
    }
    LQ_DEV void chunk(const LqQ4KWeights& self, u32 row, u32 c, float (&w)[8]) {
        u64 at = row * self.chunks + c;
        u32 quants = lq_load<u32>(self.quants, at);
        LqU4 head = lq_load<LqU4>(self.heads, at / 32); // d and dmin, then 12 bytes of scales
        u32 group = c % 32 / 4, shift = group % 4 * 8;
        u32 a = head.v[1] >> shift, b = head.v[2] >> shift, n = head.v[3] >> shift;
        u32 scale = group < 4 ? a & 63 : (n & 15) | (a & 0xc0) >> 2;
        u32 min = group < 4 ? b & 63 : (n >> 4 & 15) | (b & 0xc0) >> 2;
        float step = lq_f16_to_float((u16)(head.v[0] & 0xffff)) * (float)scale;
        float below = lq_f16_to_float((u16)(head.v[0] >> 16)) * (float)min;
#pragma unroll
        for (int i = 0; i < 8; i++) w[i] = step * (float)(quants >> (4 * i) & 15) - below;
    }
};

/// value = d scale (q - 32), an i8 scale for 16 values (ggml's block_q6_K).
struct LqQ6KWeights {
    const u8* low;
    const u8* high;
    const u8* scales;
    const u8* d;
    u64 chunks;
    LQ_DEV LqQ6KWeights of(const LqMatrix& m) {
        return {m.planes[0], m.planes[1], m.planes[2], m.planes[3], lq_chunks(m)};
    }
    LQ_DEV void chunk(const LqQ6KWeights& self, u32 row, u32 c, float (&w)[8]) {
        u64 at = row * self.chunks + c;
        u32 low = lq_load<u32>(self.low, at), high = lq_load<u16>(self.high, at);
        float step = lq_f16_to_float(lq_load<u16>(self.d, at / 32)) * (float)lq_load<i8>(self.scales, at / 2);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 q = (low >> (4 * i) & 15) | (high >> (2 * i) & 3) << 4;
            w[i] = step * (float)((int)q - 32);
        }
    }
};

/// Calls `act(weights of the format)`; the format is the same for all threads of a block.
template <class Act>
LQ_DEV void lq_with_format(u32 format, const Act& act) {
    switch (format) {
    case LQ_F32: return act(LqF32Weights());
    case LQ_F16: return act(LqHalfWeights<false>());
    case LQ_BF16: return act(LqHalfWeights<true>());
    case LQ_FP8: return act(LqFp8Weights());
    case LQ_Q8_0: return act(LqQ8Weights());
    case LQ_Q4_K: return act(LqQ4KWeights());
    case LQ_Q6_K: return act(LqQ6KWeights());
    }
}
