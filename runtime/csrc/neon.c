/* The kernels for every 64-bit ARM processor. */
#include "kernels.h"

#if defined(__aarch64__)
#include "neon_patches.h"
#include "neon_rows.h"

/* Weights and codewords lie in -127..127 and values, less 128, in -128..127: the sum of two
 * products fits int16, and is added up in 32 bits. */

/* entries of sixteen positions; length is a constant at each call */
static inline void build16(const Layer *layer, const int8_t *codewords, const int32_t *offsets,
                           const int8x16_t *x, int32_t length, int16x8_t multiplier,
                           int8_t *entries, int32_t stride) {
    for (int32_t k = 0; k < layer->count; k++, codewords += length, entries += stride) {
        int32x4_t offset = vdupq_n_s32(offsets[k]), t[4] = {offset, offset, offset, offset};
        for (int32_t j = 0; j < length; j += 2) {
            int8x16_t a = vdupq_n_s8(codewords[j]), b = vdupq_n_s8(codewords[j + 1]);
            int16x8_t low = vmull_s8(vget_low_s8(x[j]), vget_low_s8(a));
            int16x8_t high = vmull_high_s8(x[j], a);
            low = vmlal_s8(low, vget_low_s8(x[j + 1]), vget_low_s8(b));
            high = vmlal_high_s8(high, x[j + 1], b);
            t[0] = vaddw_s16(t[0], vget_low_s16(low));
            t[1] = vaddw_high_s16(t[1], low);
            t[2] = vaddw_s16(t[2], vget_low_s16(high));
            t[3] = vaddw_high_s16(t[3], high);
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
        int8x16_t x[BLOCK];
        for (int32_t j = 0; j < length; j++)
            x[j] = signed16(values + (size_t)j * stride + p, to_signed);
        build16(layer, codewords, offsets, x, length, multiplier, tables + p, stride);
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

/* ---- dense: four positions and four outputs at once ---- */

enum { OUTPUTS = 4, POSITIONS = 4 };

/* [outputs / 4][patch / 16][4 outputs][16] */
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
                to[((size_t)(o / OUTPUTS) * bytes + i / PATCH * PATCH) * OUTPUTS +
                   o % OUTPUTS * PATCH + i % PATCH] = w;
                offsets[o] += (128 - zero) * w;
            }
}

/* sums of four outputs at `count` positions; count is a constant at each call */
static inline void multiply(const int8_t *patches, const int8_t *weights, int32_t bytes,
                            int32_t count, int32x4_t *sums) {
    int32x4_t t[POSITIONS][OUTPUTS];
    for (int32_t n = 0; n < count; n++)
        for (int32_t o = 0; o < OUTPUTS; o++)
            t[n][o] = vdupq_n_s32(0);
    for (int32_t i = 0; i < bytes; i += PATCH, weights += OUTPUTS * PATCH)
        for (int32_t n = 0; n < count; n++) {
            int8x16_t x = vld1q_s8(patches + (size_t)n * bytes + i);
            for (int32_t o = 0; o < OUTPUTS; o++) {
                int8x16_t w = vld1q_s8(weights + o * PATCH);
                int16x8_t products = vmull_s8(vget_low_s8(x), vget_low_s8(w));
                t[n][o] = vpadalq_s16(t[n][o], vmlal_high_s8(products, x, w));
            }
        }
    for (int32_t n = 0; n < count; n++)
        sums[n] = vpaddq_s32(vpaddq_s32(t[n][0], t[n][1]), vpaddq_s32(t[n][2], t[n][3]));
}

static inline void multiply_block(const Layer *layer, const int8_t *patches, int32_t block,
                                  int32_t count, int32x4_t (*sums)[2]) {
    int32_t bytes = patch_bytes(layer);
    const int8_t *weights = (const int8_t *)layer->packed + (size_t)block * BLOCK * bytes;
    const int32_t *offsets = (const int32_t *)(layer->packed + dense_weight_bytes(layer));
    for (int32_t half = 0; half < 2; half++, weights += (size_t)OUTPUTS * bytes) {
        int32x4_t four[POSITIONS], offset = vld1q_s32(offsets + block * BLOCK + 4 * half);
        if (count == 1)
            multiply(patches, weights, bytes, 1, four);
        else
            multiply(patches, weights, bytes, POSITIONS, four);
        for (int32_t n = 0; n < count; n++)
            sums[n][half] = vaddq_s32(four[n], offset);
    }
}

static size_t dense_scratch(const Layer *layer, int32_t rows) {
    return patches_scratch(layer, rows, POSITIONS);
}

static void dense(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    patches_run(layer, tile, scratch, POSITIONS, multiply_block);
}

const Kernels kernels_neon = {
    "neon",
    {rows_packed_bytes, rows_pack, rows_per_tile, lookup_scratch, lookup},
    {dense_packed_bytes, dense_pack, few_rows, dense_scratch, dense},
    {depthwise_packed_bytes, depthwise_pack, few_rows, no_scratch, depthwise},
};

#endif
