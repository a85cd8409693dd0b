// What NVRTC, hipRTC and the host's C++ compiler differ in, and the structs that the host passes by value.
// No header of any toolkit is needed; 16-bit floats are raw bits. Start with the kernels in rows.h.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(LQ_EMU)
#include "grid.h"
#define LQ_KERNEL static
#define LQ_KERNEL_OF(threads, blocks) static
#define LQ_DEV static inline __attribute__((always_inline))
#define LQ_CALLED static __attribute__((noinline))
#define LQ_IS_SHARED(pointer)
#define LQ_EXPORT(kernel) GRID_EXPORT(kernel)
#define LQ_SHARED(type, name, count) type* const name = grid::shared<type>(__COUNTER__, count)
#elif defined(LQ_CUDA)
#define LQ_KERNEL LQ_KERNEL_OF(256, 1)
#define LQ_KERNEL_OF(threads, blocks) extern "C" __global__ __launch_bounds__(threads, blocks)
#define LQ_DEV static __device__ __forceinline__
#define LQ_CALLED static __device__ __noinline__ // once for many kernels: compiling takes its time
#define LQ_IS_SHARED(pointer) __builtin_assume(__isShared(pointer))
#define LQ_EXPORT(kernel)
#define LQ_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#elif defined(LQ_HIP)
#ifndef __HIPCC_RTC__
#include <hip/hip_runtime.h>
#endif
#define LQ_KERNEL LQ_KERNEL_OF(256, 1)
#define LQ_KERNEL_OF(threads, blocks) extern "C" __global__ __launch_bounds__(threads, blocks)
#define LQ_DEV static __device__ inline __attribute__((always_inline))
#define LQ_CALLED static __device__ __attribute__((noinline))
#define LQ_IS_SHARED(pointer)
#define LQ_EXPORT(kernel)
#define LQ_SHARED(type, name, count) __shared__ __attribute__((aligned(16))) type name[count]
#else
#error "one of LQ_CUDA, LQ_HIP, LQ_EMU must be defined"
#endif

#if LQ_WARP != 32 && LQ_WARP != 64
#error "LQ_WARP must be 32 or 64"
#endif

// ---- structs passed by value: the host has the same, see README.md ----

/// [rows, heads, len]: element (r, h, i) is data[r * row_stride + h * head_stride + i].
struct LqView {
    float* data;
    u64 row_stride, head_stride;
    u32 rows, heads, len, zero;
};

/// A weight matrix [rows, cols]; formats.h says what lies in its planes.
struct LqMatrix {
    const u8* planes[4];
    u32 format, rows, cols, rows_per_scale, cols_per_scale, zero[3];
};

/// Tokens, positions and block tables of one step.
struct LqStep {
    const u32 *tokens, *positions, *sequence_of; // [rows]
    const u32* blocks;                           // [sequences, blocks_max]
    u32 rows, block_tokens, blocks_max, zero;
};

/// One layer of the paged cache: f16 [blocks, block_tokens, entry_values].
struct LqKv {
    u16* cells;
    u32 entry_values, kv_heads, k_dim, v_dim, v_offset, v_head_stride;
};

/// Slots sorted by expert and cut in tiles of (expert, first, count, 0).
struct LqGroups {
    const u32 *order, *tiles, *tile_count;
    u32 inputs_per_row, zero;
};

struct LqRouteSpec {
    u32 experts, top_k, sigmoid, groups, top_groups, top2_sum, normalise;
    float scale;
};

static_assert(sizeof(LqView) == 40 && sizeof(LqMatrix) == 64 && sizeof(LqStep) == 48, "as the host has them");
static_assert(sizeof(LqKv) == 32 && sizeof(LqGroups) == 32 && sizeof(LqRouteSpec) == 32, "as the host has them");

/// Loaded and stored at once.
struct alignas(16) LqF4 {
    float v[4];
};
struct alignas(16) LqU4 {
    u32 v[4];
};
struct alignas(8) LqU2 {
    u32 v[2];
};

// ---- bits and floats ----

LQ_DEV float lq_float_of_bits(u32 bits) {
#if defined(LQ_EMU)
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
#else
    return __uint_as_float(bits);
#endif
}

LQ_DEV u32 lq_bits_of_float(float value) {
#if defined(LQ_EMU)
    u32 bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
#else
    return __float_as_uint(value);
#endif
}

/// a * b + c, rounded once. All other arithmetic is compiled without contraction.
LQ_DEV float lq_fma(float a, float b, float c) {
#if defined(LQ_EMU) && !defined(__FMA__) && !defined(__aarch64__)
    return (float)((double)a * (double)b + (double)c); // the product is exact; rounds twice, but always so
#elif defined(LQ_EMU)
    return __builtin_fmaf(a, b, c);
#else
    return fmaf(a, b, c);
#endif
}

LQ_DEV float lq_bf16_to_float(u32 bits) {
    return lq_float_of_bits(bits << 16);
}

LQ_DEV float lq_f16_to_float(u16 bits) {
#if defined(LQ_CUDA)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#elif defined(LQ_HIP)
    union {
        u16 bits;
        _Float16 half;
    } both;
    both.bits = bits;
    return (float)both.half;
#else
    u32 sign = (u32)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31) return lq_float_of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * ((float)mantissa * 5.9604644775390625e-8f); // 2^-24
    return lq_float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
#endif
}

/// To nearest, ties to even, held within the finite range of f16; NaN stays NaN.
LQ_DEV u16 lq_float_to_f16(float value) {
    value = value > 65504.0f ? 65504.0f : value;
    value = value < -65504.0f ? -65504.0f : value;
#if defined(LQ_CUDA)
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#elif defined(LQ_HIP)
    union {
        u16 bits;
        _Float16 half;
    } both;
    both.half = (_Float16)value;
    return both.bits;
#else
    u32 bits = lq_bits_of_float(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (u16)(sign | 0x7e00);
    if (magnitude < 0x38800000u) { // below 2^-14: a subnormal of steps 2^-24; the sum rounds to them
        float steps = lq_float_of_bits(magnitude) + 0.5f;
        return (u16)(sign | (lq_bits_of_float(steps) - 0x3f000000u));
    }
    u32 rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    return (u16)(sign | ((rounded >> 13) - (112u << 10)));
#endif
}

/// OCP FP8 E4M3FN (specification 1.0, table 1): no infinity, 0x7f and 0xff are NaN. Exact.
LQ_DEV float lq_e4m3_to_float(u32 byte) {
    u32 sign = (byte & 0x80) << 24, magnitude = byte & 0x7f;
    float normal = lq_float_of_bits(sign | ((magnitude << 20) + (120u << 23)));
    float subnormal = (float)magnitude * (sign ? -0.001953125f : 0.001953125f); // steps of 2^-9
    float value = magnitude < 8 ? subnormal : normal;
    return magnitude == 0x7f ? lq_float_of_bits(0x7fc00000u) : value;
}

LQ_DEV float lq_silu(float x) {
    return x / (1.0f + expf(-x));
}

/// The larger, of equal ones the first; a NaN never wins.
LQ_DEV float lq_larger(float a, float b) {
    return b > a ? b : a;
}

#define LQ_MINUS_INFINITY lq_float_of_bits(0xff800000u)

LQ_DEV u32 lq_least(u32 a, u32 b) {
    return a < b ? a : b;
}

// ---- what threads do together ----

LQ_DEV u32 lq_lane() {
    return threadIdx.x % LQ_WARP;
}

LQ_DEV u32 lq_warp() {
    return threadIdx.x / LQ_WARP;
}

#if !defined(LQ_EMU)

#define lq_sync() __syncthreads()

template <class T>
LQ_DEV T lq_from_lane_xor(T value, int mask) {
#if defined(LQ_CUDA)
    return __shfl_xor_sync(0xffffffffu, value, mask);
#else
    return __shfl_xor(value, mask, LQ_WARP);
#endif
}

/// Each of the values summed over the lanes of the warp; all lanes get the sums, by one tree.
template <int N>
LQ_DEV void lq_warp_sums(float (&values)[N]) {
#pragma unroll
    for (int mask = LQ_WARP / 2; mask > 0; mask /= 2) {
#pragma unroll
        for (int i = 0; i < N; i++) values[i] += lq_from_lane_xor(values[i], mask);
    }
}

LQ_DEV float lq_warp_max(float value) {
#pragma unroll
    for (int mask = LQ_WARP / 2; mask > 0; mask /= 2) value = lq_larger(value, lq_from_lane_xor(value, mask));
    return value;
}

/// The largest value of the warp and its index: of equal values the lower index.
LQ_DEV void lq_warp_best(float& value, u32& index) {
#pragma unroll
    for (int mask = LQ_WARP / 2; mask > 0; mask /= 2) {
        float other = lq_from_lane_xor(value, mask);
        u32 at = lq_from_lane_xor(index, mask);
        bool better = other > value || (other == value && at < index);
        value = better ? other : value;
        index = better ? at : index;
    }
}

/// Which lanes have the same value (below 2^16) as this one: a bit for each.
LQ_DEV u64 lq_warp_peers(u32 value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
    return __match_any_sync(0xffffffffu, value);
#else
    u64 peers = ~0ull;
#pragma unroll
    for (int bit = 0; bit < 16; bit++) {
#if defined(LQ_CUDA)
        u64 set = __ballot_sync(0xffffffffu, value >> bit & 1);
#else
        u64 set = __ballot(value >> bit & 1);
#endif
        peers &= value >> bit & 1 ? set : ~set;
    }
    return LQ_WARP == 32 ? peers & 0xffffffffull : peers;
#endif
}

/// Lanes do what comes after only when all have done what comes before, as seen in shared memory.
LQ_DEV void lq_warp_sync() {
#if defined(LQ_CUDA)
    __syncwarp();
#else
    __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
    __builtin_amdgcn_wave_barrier();
#endif
}

#endif

LQ_DEV u32 lq_ones(u64 bits) {
#if defined(LQ_EMU)
    return (u32)__builtin_popcountll(bits);
#else
    return (u32)__popcll(bits);
#endif
}

/// The sum over the block, the same for all its threads. `partial`: shared, at least 16 floats.
LQ_DEV float lq_block_sum(float value, float* partial) {
    float values[1] = {value};
    lq_warp_sums(values);
    lq_sync(); // whoever still reads `partial` of the call before
    if (lq_lane() == 0) partial[lq_warp()] = values[0];
    lq_sync();
    float sum = partial[0];
    for (u32 warp = 1; warp < blockDim.x / LQ_WARP; warp++) sum += partial[warp];
    return sum;
}
