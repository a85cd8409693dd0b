// How 8 consecutive weights become floats: one struct for each device layout (README.md, "Weights"). The values are
// those that the host's scalar decode gives, bit for bit.
#pragma once
#include "portable.h"

enum LqFormat : u32 { LQ_F32, LQ_F16, LQ_BF16, LQ_FP8, LQ_Q8_0, LQ_Q4_K, LQ_Q6_K, LQ_CODES };

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

/// Integers of 4 bits (and 2 more) are stored for fragments of matrix units: README.md, "Order of the K formats". Chunk
/// c is half of the word of one lane and half of that of the next.
struct LqChunkWords {
    u64 first;  // number of the word of its first 4 values; that of the others is 4 more
    u32 halves; // 0: the first half of the slots, 1: the second
};

LQ_DEV LqChunkWords lq_chunk_words(u64 row_chunks, u32 c) {
    return {row_chunks + c / 16 * 16 + c % 2 * 8 + c / 4 % 4, c % 4 / 2};
}

/// Slot j of a word of 4-bit integers, and of one of 2-bit ones.
LQ_DEV u32 lq_slot_of_4(u32 word, u32 j) {
    return word >> (j % 2 * 16 + j / 2 * 4) & 15;
}
LQ_DEV u32 lq_slot_of_2(u32 word, u32 j) {
    return word >> (j % 2 * 8 + j / 2 * 2) & 3;
}

struct LqScaleMin {
    float step, below;
};

/// Group g of 8 of a block of Q4_K (ggml's block_q4_K): d scale and dmin min, from d, dmin and 12 bytes of 6-bit
/// numbers.
LQ_DEV LqScaleMin lq_q4k_scale(const LqU4& head, u32 g) {
    u32 shift = g % 4 * 8, a = head.v[1] >> shift, b = head.v[2] >> shift, n = head.v[3] >> shift;
    u32 scale = g < 4 ? a & 63 : (n & 15) | (a & 0xc0) >> 2;
    u32 min = g < 4 ? b & 63 : (n >> 4 & 15) | (b & 0xc0) >> 2;
    return {lq_f16_to_float((u16)(head.v[0] & 0xffff)) * (float)scale,
            lq_f16_to_float((u16)(head.v[0] >> 16)) * (float)min};
}

/// value = d scale q - dmin min, scale and min of 6 bits for 32 values.
struct LqQ4KWeights {
    const u8* quants;
    const u8* heads;
    u64 chunks;
    LQ_DEV LqQ4KWeights of(const LqMatrix& m) {
        return {m.planes[0], m.planes[1], lq_chunks(m)};
    }
    LQ_DEV void chunk(const LqQ4KWeights& self, u32 row, u32 c, float (&w)[8]) {
        LqChunkWords words = lq_chunk_words(row * self.chunks, c);
        u32 low = lq_load<u32>(self.quants, words.first), high = lq_load<u32>(self.quants, words.first + 4);
        LqU4 head = lq_load<LqU4>(self.heads, (row * self.chunks + c) / 32);
        LqScaleMin scale = lq_q4k_scale(head, c % 32 / 4);
        low >>= words.halves * 8, high >>= words.halves * 8;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[i] = scale.step * (float)lq_slot_of_4(low, i) - scale.below;
            w[4 + i] = scale.step * (float)lq_slot_of_4(high, i) - scale.below;
        }
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
        LqChunkWords words = lq_chunk_words(row * self.chunks, c);
        float step = lq_f16_to_float(lq_load<u16>(self.d, at / 32)) * (float)lq_load<i8>(self.scales, at / 2);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u64 word = words.first + i / 4 * 4;
            u32 four = lq_load<u32>(self.low, word) >> (words.halves * 8);
            u32 two = lq_load<u16>(self.high, word) >> (words.halves * 4);
            u32 q = lq_slot_of_4(four, i % 4) | lq_slot_of_2(two, i % 4) << 4;
            w[i] = step * (float)((int)q - 32);
        }
    }
};

/// value = scale code - minimum, both f32 for each group of 16 or 32 values: whatever the other formats cannot hold.
struct LqCodesWeights {
    const u8* codes;
    const u8* scales;
    u64 chunks, groups;
    u32 group_chunks;
    LQ_DEV LqCodesWeights of(const LqMatrix& m) {
        return {m.planes[0], m.planes[1], lq_chunks(m), m.cols / m.cols_per_scale, m.cols_per_scale / 8};
    }
    LQ_DEV void chunk(const LqCodesWeights& self, u32 row, u32 c, float (&w)[8]) {
        LqU2 bytes = lq_load<LqU2>(self.codes, row * self.chunks + c);
        LqU2 scale = lq_load<LqU2>(self.scales, row * self.groups + c / self.group_chunks);
        float step = lq_float_of_bits(scale.v[0]), below = lq_float_of_bits(scale.v[1]);
#pragma unroll
        for (int i = 0; i < 8; i++) w[i] = step * (float)(i8)(bytes.v[i / 4] >> (i % 4 * 8) & 255) - below;
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
    case LQ_CODES: return act(LqCodesWeights());
    }
}
