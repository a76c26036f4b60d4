/* Dense and depth-wise convolution in NEON: all but the products of bytes in the dense one. */
#ifndef EDGEID_NEON_PATCHES_H
#define EDGEID_NEON_PATCHES_H

#include "neon.h"

/* ---- dense: as many bytes as a patch of the input has, for each output ---- */

enum { PATCH = 16 }; /* a patch is filled up with zeros to a multiple of it */

/* Channels of a patch: whole blocks, or as they are where one block would be mostly empty. */
static inline int32_t patch_channels(const Layer *layer) {
    return layer->cin < BLOCK ? layer->cin : rounded_up(layer->cin, BLOCK);
}

static inline int32_t patch_bytes(const Layer *layer) {
    return rounded_up(layer->kh * layer->kw * patch_channels(layer), PATCH);
}

/* bytes of the weights; behind them an int32 a channel: what makes up for q - 128 */
static inline size_t dense_weight_bytes(const Layer *layer) {
    return (size_t)rounded_up(layer->cout, BLOCK) * patch_bytes(layer);
}

static size_t dense_packed_bytes(const Layer *layer) {
    return dense_weight_bytes(layer) + rounded_up(layer->cout, BLOCK) * sizeof(int32_t);
}

static inline int8_t dense_weight(const Layer *layer, const Weights *weights, int32_t output,
                                  int32_t channel, int32_t tap) {
    int32_t taps = layer->kh * layer->kw;
    return weights->dense[((size_t)output * layer->cin + channel) * taps + tap];
}

/* the input of one output position, less 128 */
static inline void patch_of_input(const Layer *layer, const uint8_t *in, int32_t y, int32_t x,
                                  uint8_t *to) {
    int32_t channels = patch_channels(layer), few = at_most(channels, BLOCK);
    size_t plane = (size_t)layer->hin * layer->win * BLOCK;
    for (int32_t ky = 0; ky < layer->kh; ky++)
        for (int32_t kx = 0; kx < layer->kw; kx++) {
            int32_t iy = y * layer->sy + ky - layer->top, ix = x * layer->sx + kx - layer->left;
            int inside = iy >= 0 && iy < layer->hin && ix >= 0 && ix < layer->win;
            const uint8_t *q = in + ((ptrdiff_t)iy * layer->win + ix) * BLOCK;
            for (int32_t c = 0; c < channels; c += BLOCK, to += few, q += plane) {
                uint8x8_t value = inside ? vld1_u8(q) : vdup_n_u8((uint8_t)layer->zero);
                vst1_u8(to, veor_u8(value, vdup_n_u8(128)));
            }
        }
}

/* a patch is written eight bytes at a time, so the last one may be overrun by seven */
static inline size_t patches_scratch(const Layer *layer, int32_t rows, int32_t positions) {
    (void)rows;
    return aligned((size_t)positions * patch_bytes(layer) + BLOCK);
}

enum { MOST_POSITIONS = 8 };

/* sums of eight outputs at `count` positions, the number asked for or fewer */
typedef void Multiply(const Layer *, const int8_t *patches, int32_t block, int32_t count,
                      int32x4_t (*sums)[2]);

static inline void patches_run(const Layer *layer, const Tile *tile, uint8_t *scratch,
                               int32_t positions, Multiply *multiply) {
    int32_t bytes = patch_bytes(layer), end = tile->y1 * layer->wout;
    for (int32_t at = tile->y0 * layer->wout; at < end; at += positions) {
        int32_t count = at_most(positions, end - at);
        for (int32_t n = 0; n < count; n++)
            patch_of_input(layer, tile->in, (at + n) / layer->wout, (at + n) % layer->wout,
                           scratch + (size_t)n * bytes);
        for (int32_t block = 0; block < blocks(layer->cout); block++) {
            Epilogue e = epilogue(layer, tile, block);
            int32x4_t sums[MOST_POSITIONS][2];
            size_t place = (size_t)block * layer->hout * layer->wout + at;
            multiply(layer, (const int8_t *)scratch, block, count, sums);
            for (int32_t n = 0; n < count; n++)
                finish8(&e, (place + n) * BLOCK, sums[n][0], sums[n][1]);
        }
    }
}

/* ---- depth-wise ---- */

static size_t no_scratch(const Layer *layer, int32_t rows) {
    (void)layer, (void)rows;
    return 0;
}

static inline void depthwise_at(const Epilogue *e, const uint8_t *plane, const int8_t *weights,
                                int32_t y, int32_t x) {
    const Layer *layer = e->layer;
    uint8x8_t zero = vdup_n_u8((uint8_t)layer->zero);
    int32x4_t low = vdupq_n_s32(0), high = low;
    for (int32_t ky = 0; ky < layer->kh; ky++)
        for (int32_t kx = 0; kx < layer->kw; kx++, weights += BLOCK) {
            int32_t iy = y * layer->sy + ky - layer->top, ix = x * layer->sx + kx - layer->left;
            if (iy < 0 || iy >= layer->hin || ix < 0 || ix >= layer->win)
                continue;
            uint8x8_t q = vld1_u8(plane + ((size_t)iy * layer->win + ix) * BLOCK);
            int16x8_t v = vreinterpretq_s16_u16(vsubl_u8(q, zero));
            int16x8_t w = vmovl_s8(vld1_s8(weights));
            low = vmlal_s16(low, vget_low_s16(v), vget_low_s16(w));
            high = vmlal_high_s16(high, v, w);
        }
    size_t row = ((size_t)(e->channel / BLOCK) * layer->hout + y) * layer->wout;
    finish8(e, (row + x) * BLOCK, low, high);
}

static void depthwise(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    (void)scratch;
    int32_t taps = layer->kh * layer->kw;
    for (int32_t block = 0; block < blocks(layer->cout); block++) {
        Epilogue e = epilogue(layer, tile, block);
        const uint8_t *plane = tile->in + (size_t)block * layer->hin * layer->win * BLOCK;
        const int8_t *weights = (const int8_t *)layer->packed + (size_t)block * taps * BLOCK;
        for (int32_t y = tile->y0; y < tile->y1; y++)
            for (int32_t x = 0; x < layer->wout; x++)
                depthwise_at(&e, plane, weights, y, x);
    }
}

#endif
