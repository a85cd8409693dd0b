// Products of small matrices by a whole warp: D[16, N] += A[16, 16] B[16, N], f32 += bf16 or f16. Which lane holds what
// is hidden here: kernels ask `lq_mma_row`, `lq_mma_quad`, `lq_mma_col` and `lq_mma_out_col`.
//
// Warp 32, N = 8: `mma.sync.aligned.m16n8k16` of sm_80 and later; PTX ISA 8.7, section 9.7.14.5.8, "Matrix Fragments
// for mma.m16n8k16 with floating point type". With g = lane / 4, t = lane % 4: A has rows g and g + 8, columns 2t, 2t +
// 1 and 2t + 8, 2t + 9; B those rows of column g; D rows g and g + 8 of columns 2t and 2t + 1. Warp 64, N = 16: `mmac`
// 16x16x16 of Hygon gfx928 and gfx936. With r = lane % 16, t = lane / 16: A has row r, columns 4t .. 4t + 4; B those
// rows of column r; D row r of columns t, t + 4, t + 8, t + 12. Read off public kernels that use it, not off a manual;
// never run here: hence only with LQ_MMAC.
//
// As the columns of A and the rows of B are summed over, any order of them will do: lane t of four takes 8 values of
// each 32 of k ("slots"), 4 for each of two products. Which, a weight format says.
#pragma once
#include "portable.h"

#if !defined(LQ_NO_MMA)
#if defined(LQ_EMU) || (defined(LQ_HIP) && defined(LQ_MMAC)) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define LQ_MMA 1
#endif
#endif

#if defined(LQ_MMA)

constexpr int LQ_MMA_COLS = LQ_WARP / 4;       // N
constexpr int LQ_MMA_ROWS = LQ_WARP == 32 ? 2 : 1; // of A, and of D, in a lane

/// Row `i` of A and of D that this lane holds.
LQ_DEV u32 lq_mma_row(u32 i) {
    return LQ_WARP == 32 ? lq_lane() / 4 + i * 8 : lq_lane() % 16;
}
/// Which slots of k this lane holds, of A and of B: those of lane t of four.
LQ_DEV u32 lq_mma_quad() {
    return LQ_WARP == 32 ? lq_lane() % 4 : lq_lane() / 16;
}
/// The column of B that this lane holds.
LQ_DEV u32 lq_mma_col() {
    return LQ_WARP == 32 ? lq_lane() / 4 : lq_lane() % 16;
}
/// Accumulator i of 4: which of the lane's rows, and which column.
LQ_DEV constexpr u32 lq_mma_out_row(u32 i) {
    return LQ_WARP == 32 ? i / 2 : 0;
}
LQ_DEV u32 lq_mma_out_col(u32 i) {
    return LQ_WARP == 32 ? lq_lane() % 4 * 2 + i % 2 : lq_lane() / 16 + i * 4;
}

#if defined(LQ_EMU)

template <bool F16>
inline float lq_mma_value(const u32* registers, u32 i) {
    u32 bits = registers[i / 2] >> (i % 2 * 16) & 0xffff;
    return F16 ? lq_f16_to_float((u16)bits) : lq_bf16_to_float(bits);
}

/// By the tables of the documents, not by the functions above. The sum is exact, then rounded; hardware is less exact.
template <bool F16>
inline void lq_mma_of_warp(grid::Warp& warp, unsigned parity) {
    float a[16][16], b[16][LQ_MMA_COLS];
    for (u32 lane = 0; lane < LQ_WARP; lane++) {
        const u32* held = warp.fragments[lane];
        if (LQ_WARP == 32) {
            u32 group = lane >> 2, in_group = lane % 4;
            for (u32 i = 0; i < 8; i++) {
                u32 row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
                a[row][in_group * 2 + (i & 1) + (i < 4 ? 0 : 8)] = lq_mma_value<F16>(held, i);
            }
            for (u32 i = 0; i < 4; i++) {
                b[in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = lq_mma_value<F16>(held + 4, i);
            }
        } else {
            for (u32 i = 0; i < 4; i++) {
                a[lane % 16][lane / 16 * 4 + i] = lq_mma_value<F16>(held, i);
                b[lane / 16 * 4 + i][lane % 16] = lq_mma_value<F16>(held + 4, i);
            }
        }
    }
    for (u32 lane = 0; lane < LQ_WARP; lane++) {
        for (u32 i = 0; i < 4; i++) {
            u32 row = LQ_WARP == 32 ? (lane >> 2) + (i < 2 ? 0 : 8) : lane % 16;
            u32 col = LQ_WARP == 32 ? lane % 4 * 2 + (i & 1) : lane / 16 + i * 4;
            double sum = warp.accumulators[lane][i];
            for (u32 k = 0; k < 16; k++) sum += (double)a[row][k] * (double)b[k][col];
            warp.products[parity][lane][i] = (float)sum;
        }
    }
}

template <bool F16>
inline void lq_mma(float (&d)[4], const u32 (&a)[LQ_MMA_ROWS][2], const u32 (&b)[2], unsigned line = __builtin_LINE()) {
    grid::Warp& warp = grid::warp_of_fiber();
    unsigned lane = grid::current_fiber->lane;
    for (u32 i = 0; i < 2; i++) {
        for (u32 row = 0; row < LQ_MMA_ROWS; row++) warp.fragments[lane][i * LQ_MMA_ROWS + row] = a[row][i];
        warp.fragments[lane][4 + i] = b[i];
    }
    for (u32 i = 0; i < 4; i++) warp.accumulators[lane][i] = d[i];
    unsigned parity = grid::warp_meeting(warp, line, lq_mma_of_warp<F16>);
    for (u32 i = 0; i < 4; i++) d[i] = warp.products[parity][lane][i];
}

#elif defined(LQ_CUDA)

/// a[row][0] has columns 2t and 2t + 1, a[row][1] columns 2t + 8 and 2t + 9; b the like.
template <bool F16>
LQ_DEV void lq_mma(float (&d)[4], const u32 (&a)[LQ_MMA_ROWS][2], const u32 (&b)[2]) {
    if constexpr (F16) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0][0]), "r"(a[1][0]), "r"(a[0][1]), "r"(a[1][1]), "r"(b[0]), "r"(b[1]));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0][0]), "r"(a[1][0]), "r"(a[0][1]), "r"(a[1][1]), "r"(b[0]), "r"(b[1]));
    }
}

#else

typedef float LqFloats4 __attribute__((ext_vector_type(4)));
typedef short LqShorts4 __attribute__((ext_vector_type(4)));
typedef _Float16 LqHalves4 __attribute__((ext_vector_type(4)));

template <bool F16>
LQ_DEV void lq_mma(float (&d)[4], const u32 (&a)[LQ_MMA_ROWS][2], const u32 (&b)[2]) {
    union Registers {
        u32 words[2];
        LqShorts4 shorts;
        LqHalves4 halves;
    } x = {{a[0][0], a[0][1]}}, y = {{b[0], b[1]}};
    LqFloats4 sum = {d[0], d[1], d[2], d[3]};
    if constexpr (F16) {
        sum = __builtin_hcu_mmac_f32_16x16x16_f16(x.halves, y.halves, sum);
    } else {
        sum = __builtin_hcu_mmac_f32_16x16x16_bf16(x.shorts, y.shorts, sum);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) d[i] = sum[i];
}

#endif

// ---- pairs of bf16 in a register, the earlier one low ----

/// Rounded to nearest, ties to even.
LQ_DEV u32 lq_bf16_pair(float low, float high) {
#if defined(LQ_CUDA)
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    u32 a = lq_bits_of_float(low), b = lq_bits_of_float(high);
    a = low != low ? 0x7fc00000u : a + 0x7fff + (a >> 16 & 1);
    b = high != high ? 0x7fc00000u : b + 0x7fff + (b >> 16 & 1);
    return a >> 16 | (b & 0xffff0000u);
#endif
}

/// a * b + c of both halves, where b and c are the same for both.
LQ_DEV u32 lq_bf16_pair_fma(u32 a, u32 b, u32 c) {
#if defined(LQ_CUDA)
    u32 pair;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
    return pair;
#else
    float low = lq_fma(lq_bf16_to_float(a & 0xffff), lq_bf16_to_float(b & 0xffff), lq_bf16_to_float(c & 0xffff));
    float high = lq_fma(lq_bf16_to_float(a >> 16), lq_bf16_to_float(b >> 16), lq_bf16_to_float(c >> 16));
    return lq_bf16_pair(low, high);
#endif
}

/// Bytes 2i and 2i + 1 of a word, each in 16 bits.
LQ_DEV u32 lq_byte_pair(u32 word, u32 i) {
#if defined(LQ_CUDA)
    return __byte_perm(word, 0, i ? 0x4342 : 0x4140);
#else
    word >>= i * 16;
    return (word & 0xff) | (word & 0xff00) << 8;
#endif
}

// Exact: 128 + v has the bits of v at the end of the mantissa of 0x4300 (128.0).
constexpr u32 LQ_BF16_128 = 0x43004300u, LQ_BF16_ONE = 0x3f803f80u, LQ_BF16_MINUS_ONE = 0xbf80bf80u;
constexpr u32 LQ_BF16_MINUS_128 = 0xc300c300u, LQ_BF16_MINUS_160 = 0xc320c320u;
constexpr u32 LQ_BF16_2_120 = 0x7b807b80u, LQ_BF16_MINUS_ZERO = 0x80008000u;

/// Two integers of -128 .. 127: of 7 bits less 256 or 128, as their top bit says.
LQ_DEV u32 lq_bf16_of_i8(u32 byte_pair) {
    u32 low = (byte_pair & 0x007f007fu) | LQ_BF16_128, sign = (byte_pair & 0x00800080u) | LQ_BF16_128;
    return lq_bf16_pair_fma(sign, LQ_BF16_MINUS_ONE, low);
}

/// Two E4M3: their bits in the place of bf16's are smaller by 2^120. The NaN codes become 480.
LQ_DEV u32 lq_bf16_of_e4m3(u32 byte_pair) {
    u32 bits = (byte_pair << 8 & 0x80008000u) | (byte_pair << 4 & 0x07f007f0u);
    return lq_bf16_pair_fma(bits, LQ_BF16_2_120, LQ_BF16_MINUS_ZERO);
}

/// Pair p of the 8 slots of a word of 4-bit integers; with `high`, of 6-bit ones less 32.
LQ_DEV u32 lq_bf16_of_4(u32 word, u32 p) {
    return lq_bf16_pair_fma((word >> (4 * p) & 0x000f000fu) | LQ_BF16_128, LQ_BF16_ONE, LQ_BF16_MINUS_128);
}
LQ_DEV u32 lq_bf16_of_6(u32 word, u32 high, u32 p) {
    u32 spread = high | high << 8;
    u32 bits = (word >> (4 * p) & 0x000f000fu) | (spread >> (2 * p) & 0x00030003u) << 4;
    return lq_bf16_pair_fma(bits | LQ_BF16_128, LQ_BF16_ONE, LQ_BF16_MINUS_160);
}

#endif
