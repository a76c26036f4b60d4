/* The kernels for ARM processors with the dot product instructions (Cortex-A76, Apple M1). */
#include "kernels.h"

#if defined(__aarch64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include "neon_patches.h"
#include "neon_rows.h"

/* four channels of sixteen positions, side by side */
static inline void interleave4(const int8x16_t x[4], int8x16_t sets[4]) {
    int8x16x2_t even = vzipq_s8(x[0], x[2]), odd = vzipq_s8(x[1], x[3]);
    int8x16x2_t low = vzipq_s8(even.val[0], odd.val[0]), high = vzipq_s8(even.val[1], odd.val[1]);
    sets[0] = low.val[0], sets[1] = low.val[1], sets[2] = high.val[0], sets[3] = high.val[1];
}

/* entries of sixteen positions; length is a constant at each call. Channels are taken in quads,
 * of which the last two may be missing */
static inline void build16(const Layer *layer, const int8_t *codewords, const int32_t *offsets,
                           int8x16_t x[2][4], int32_t length, int16x8_t multiplier,
                           int8_t *entries, int32_t stride) {
    for (int32_t k = 0; k < layer->count; k++, entries += stride) {
        int32x4_t offset = vdupq_n_s32(offsets[k]), t[4] = {offset, offset, offset, offset};
        for (int32_t quad = 0; 4 * quad < length; quad++) {
            int32_t four = 0, n_channels = at_most(length, 4);
            memcpy(&four, codewords, (size_t)n_channels);
            codewords += n_channels;
            int8x16_t c = vreinterpretq_s8_s32(vdupq_n_s32(four));
            for (int32_t n = 0; n < 4; n++)
                t[n] = vdotq_s32(t[n], x[quad][n], c);
        }
        vst1q_s8(entries, entries_of(t, layer->shift, multiplier));
    }
}

static inline void build_of(const Layer *layer, int32_t space, const int16_t *values,
                            int32_t stride, int32_t n, int32_t length, int8_t *tables) {
    const int8_t *codewords = layer->codewords + (size_t)space * layer->count * length;
    int16x8_t multiplier = vdupq_n_s16(layer->multipliers[space]);
    int16x8_t to_signed = vdupq_n_s16((int16_t)(layer->zero - 128));
    int32_t offsets[256];
    codeword_offsets(layer, codewords, offsets);
    for (int32_t p = 0; p < n; p += 16) {
        int8x16_t x[BLOCK], sets[2][4];
        x[2] = x[3] = vdupq_n_s8(0);
        for (int32_t j = 0; j < length; j++)
            x[j] = signed16(values + (size_t)j * stride + p, to_signed);
        for (int32_t quad = 0; 4 * quad < length; quad++)
            interleave4(x + 4 * quad, sets[quad]);
        build16(layer, codewords, offsets, sets, length, multiplier, tables + p, stride);
    }
}

static void build(const Layer *layer, int32_t space, const int16_t *values, int32_t stride,
                  int32_t n, void *tables) {
    if (layer->length == 8)
        build_of(layer, space, values, stride, n, 8, tables);
    else if (layer->length == 4)
        build_of(layer, space, values, stride, n, 4, tables);
    else
        build_of(layer, space, values, stride, n, 2, tables);
}

static const RowKernel row_kernel = {1, spread, build, add, flush, finish, add_one};

static size_t lookup_scratch(const Layer *layer, int32_t rows) {
    return rows_scratch_bytes(layer, rows, &row_kernel);
}

static void lookup(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    rows_run(layer, tile, scratch, &row_kernel);
}

/* ---- dense: eight positions and eight outputs at once ---- */

enum { POSITIONS = 8 };

/* [outputs / 8][patch / 4][8 outputs][4] */
static void dense_pack(const Layer *layer, const Weights *weights, uint8_t *packed) {
    int32_t bytes = patch_bytes(layer), zero = layer->zero;
    int8_t *to = (int8_t *)packed;
    int32_t *offsets = (int32_t *)(packed + dense_weight_bytes(layer));
    memset(packed, 0, dense_packed_bytes(layer));
    for (int32_t o = 0; o < layer->cout; o++)
        for (int32_t c = 0; c < layer->cin; c++)
            for (int32_t tap = 0; tap < layer->kh * layer->kw; tap++) {
                int8_t w = dense_weight(layer, weights, o, c, tap);
                int32_t i = tap * patch_channels(layer) + c;
                to[((size_t)(o / BLOCK) * bytes + i / 4 * 4) * BLOCK + o % BLOCK * 4 + i % 4] = w;
                offsets[o] += (128 - zero) * w;
            }
}

/* of eight outputs at `count` positions; count is a constant at each call */
static inline void multiply(const int8_t *patches, const int8_t *weights, int32_t bytes,
                            int32_t count, int32x4_t (*sums)[2]) {
    for (int32_t i = 0; i < bytes; i += PATCH, weights += BLOCK * PATCH) {
        int8x16_t x[POSITIONS];
        for (int32_t n = 0; n < count; n++)
            x[n] = vld1q_s8(patches + (size_t)n * bytes + i);
        for (int32_t half = 0; half < 2; half++) {
            const int8_t *w = weights + half * PATCH;
            for (int32_t n = 0; n < count; n++) {
                int32x4_t t = sums[n][half];
                t = vdotq_laneq_s32(t, vld1q_s8(w), x[n], 0);
                t = vdotq_laneq_s32(t, vld1q_s8(w + 2 * PATCH), x[n], 1);
                t = vdotq_laneq_s32(t, vld1q_s8(w + 4 * PATCH), x[n], 2);
                sums[n][half] = vdotq_laneq_s32(t, vld1q_s8(w + 6 * PATCH), x[n], 3);
            }
        }
    }
}

static inline void multiply_from(const int8_t *patches, const int8_t *weights, int32_t bytes,
                                 const int32_t *offsets, int32_t count, int32x4_t (*to)[2]) {
    int32x4_t sums[POSITIONS][2]; /* in registers: `to` is in memory */
    for (int32_t n = 0; n < count; n++)
        for (int32_t half = 0; half < 2; half++)
            sums[n][half] = vld1q_s32(offsets + 4 * half);
    multiply(patches, weights, bytes, count, sums);
    for (int32_t n = 0; n < count; n++)
        for (int32_t half = 0; half < 2; half++)
            to[n][half] = sums[n][half];
}

static void multiply_block(const Layer *layer, const int8_t *patches, int32_t block,
                           int32_t count, int32x4_t (*sums)[2]) {
    int32_t bytes = patch_bytes(layer);
    const int8_t *weights = (const int8_t *)layer->packed + (size_t)block * BLOCK * bytes;
    const int32_t *offsets = (const int32_t *)(layer->packed + dense_weight_bytes(layer));
    offsets += block * BLOCK;
    if (count == 1)
        multiply_from(patches, weights, bytes, offsets, 1, sums);
    else
        multiply_from(patches, weights, bytes, offsets, POSITIONS, sums);
}

static size_t dense_scratch(const Layer *layer, int32_t rows) {
    return patches_scratch(layer, rows, POSITIONS);
}

static void dense(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    patches_run(layer, tile, scratch, POSITIONS, multiply_block);
}

const Kernels kernels_neon_dotprod = {
    "dotprod",
    {rows_packed_bytes, rows_pack, rows_per_tile, lookup_scratch, lookup},
    {dense_packed_bytes, dense_pack, few_rows, dense_scratch, dense},
    {depthwise_packed_bytes, depthwise_pack, few_rows, no_scratch, depthwise},
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
