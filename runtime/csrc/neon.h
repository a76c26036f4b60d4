/* The epilogue of the NEON kernels: eight channels of one position at a time. */
#ifndef EDGEID_NEON_H
#define EDGEID_NEON_H

#include <arm_neon.h>
#include <string.h>

#include "portable.h"

typedef struct {
    const Layer *layer;
    const Tile *tile;
    int32_t channel; /* the first of the eight */
    float32x4_t low, high, inverse;
    int32x4_t zero;
} Epilogue;

static inline Epilogue epilogue(const Layer *layer, const Tile *tile, int32_t block) {
    Epilogue e;
    e.layer = layer;
    e.tile = tile;
    e.channel = block * BLOCK;
    e.low = vdupq_n_f32((float)-layer->out_zero);
    e.high = vdupq_n_f32((float)(255 - layer->out_zero));
    e.inverse = vdupq_n_f32(layer->out_inverse);
    e.zero = vdupq_n_s32(layer->out_zero);
    return e;
}

static inline float32x4_t activated4(const Activation *activation, int32_t channel,
                                     float32x4_t x) {
    if (activation->slope) {
        float32x4_t below = vmulq_f32(x, vld1q_f32(activation->slope + channel));
        x = vbslq_f32(vcgtq_f32(x, vdupq_n_f32(0)), x, below);
    }
    if (activation->clips) { /* not fmax and fmin: they choose between the zeros differently */
        float32x4_t low = vdupq_n_f32(activation->low), high = vdupq_n_f32(activation->high);
        x = vbslq_f32(vcgtq_f32(x, low), x, low);
        x = vbslq_f32(vcltq_f32(x, high), x, high);
    }
    return x;
}

static inline float32x4_t finished4(const Epilogue *e, int32_t half, size_t place, int32x4_t sum) {
    const Layer *layer = e->layer;
    int32_t channel = e->channel + 4 * half;
    float32x4_t x = vmulq_f32(vcvtq_f32_s32(sum), vld1q_f32(layer->gain + channel));
    x = vaddq_f32(x, vld1q_f32(layer->bias + channel));
    x = activated4(&layer->first, channel, x);
    if (e->tile->residual)
        x = vaddq_f32(x, vld1q_f32(e->tile->residual + place + 4 * half));
    x = activated4(&layer->second, channel, x);
    if (e->tile->real)
        vst1q_f32(e->tile->real + place + 4 * half, x);
    return x;
}

static inline int16x4_t coded4(const Epilogue *e, float32x4_t x) {
    float32x4_t t = vmaxnmq_f32(vmulq_f32(x, e->inverse), e->low);
    t = vminnmq_f32(t, e->high);
    return vmovn_s32(vaddq_s32(vcvtnq_s32_f32(t), e->zero));
}

/* stores eight channels of the position whose first value is number `place` */
static inline void finish8(const Epilogue *e, size_t place, int32x4_t sum, int32x4_t sum_high) {
    float32x4_t x = finished4(e, 0, place, sum), y = finished4(e, 1, place, sum_high);
    if (e->tile->coded)
        vst1_u8(e->tile->coded + place, vqmovun_s16(vcombine_s16(coded4(e, x), coded4(e, y))));
}

#endif
