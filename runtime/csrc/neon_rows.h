/* Look-up convolution by rows in NEON: all but the products of codewords. Tables are bytes, and
 * are added in 16 bits. */
#ifndef EDGEID_NEON_ROWS_H
#define EDGEID_NEON_ROWS_H

#include "neon.h"
#include "rows.h"

/* ---- values ---- */

/* eight positions of eight channels, or of four, whose other half nobody wants */
static inline void spread8(const uint8_t *q, size_t step, int32_t length, uint8x8_t zero,
                           int16_t *values, size_t stride) {
    uint8x16_t a[4];
    for (int32_t i = 0; i < 4; i++) { /* positions i and i + 4, channel by channel */
        uint8x8_t x, y;
        if (length == 8) {
            x = vld1_u8(q + i * step), y = vld1_u8(q + (i + 4) * step);
        } else {
            uint32_t four[2];
            memcpy(four, q + i * step, 4), memcpy(four + 1, q + (i + 4) * step, 4);
            x = vcreate_u8(four[0]), y = vcreate_u8(four[1]);
        }
        a[i] = vcombine_u8(vzip1_u8(x, y), vzip2_u8(x, y));
    }
    uint8x16x2_t even = vzipq_u8(a[0], a[2]), odd = vzipq_u8(a[1], a[3]);
    for (int32_t half = 0; half < length / 4; half++) {
        uint8x16x2_t two = vzipq_u8(even.val[half], odd.val[half]); /* channels 0, 1; 2, 3 */
        for (int32_t n = 0; n < 2; n++, values += 2 * stride) {
            vst1q_s16(values, vreinterpretq_s16_u16(vsubl_u8(vget_low_u8(two.val[n]), zero)));
            vst1q_s16(values + stride,
                      vreinterpretq_s16_u16(vsubl_u8(vget_high_u8(two.val[n]), zero)));
        }
    }
}

static inline void spread_of(const uint8_t *q, size_t step, int32_t n, int32_t length,
                             int32_t zero, int16_t *values, size_t stride) {
    uint8x8_t zeros = vdup_n_u8((uint8_t)zero);
    for (int32_t p = 0; p < n; p += 8) {
        int32_t at = at_most(p, n - 8); /* the last eight overlap those before */
        spread8(q + at * step, step, length, zeros, values + at, stride);
    }
}

static void spread(const uint8_t *q, size_t step, int32_t n, int32_t length, int32_t zero,
                   int16_t *values, size_t stride) {
    if (n < 8 || length == 2)
        portable_spread(q, step, n, length, zero, values, stride);
    else if (length == 8)
        spread_of(q, step, n, 8, zero, values, stride);
    else
        spread_of(q, step, n, 4, zero, values, stride);
}

/* ---- tables ---- */

/* The values less 128 - zero, as bytes: sixteen positions of one channel. */
static inline int8x16_t signed16(const int16_t *values, int16x8_t to_signed) {
    return vmovn_high_s16(vmovn_s16(vaddq_s16(vld1q_s16(values), to_signed)),
                          vaddq_s16(vld1q_s16(values + 8), to_signed));
}

/* What makes up for it, with the rounding of the shift: of each codeword. */
static inline void codeword_offsets(const Layer *layer, const int8_t *codewords,
                                    int32_t *offsets) {
    int32_t length = layer->length, half = 1 << layer->shift >> 1, unit = 128 - layer->zero;
    for (int32_t k = 0; k < layer->count; k++, codewords += length) {
        int32_t sum = 0;
        if (length == 8)
            sum = vaddlv_s8(vld1_s8(codewords));
        else
            for (int32_t j = 0; j < length; j++)
                sum += codewords[j];
        offsets[k] = half + unit * sum;
    }
}

/* sixteen table entries of exact products t, rounding included */
static inline int8x16_t entries_of(const int32x4_t t[4], int32_t shift, int16x8_t multiplier) {
    int32x4_t down = vdupq_n_s32(-shift);
    int16x8_t u[2];
    for (int32_t n = 0; n < 2; n++) {
        u[n] = vmovn_high_s32(vmovn_s32(vshlq_s32(t[2 * n], down)),
                              vshlq_s32(t[2 * n + 1], down));
        u[n] = vqrdmulhq_s16(u[n], multiplier);
    }
    return vqmovn_high_s16(vqmovn_s16(u[0]), u[1]);
}

/* ---- adding rows ---- */

enum { STEP = 32 }; /* positions at once; sums and table rows have room for whole ones */

static inline void add_bytes(int16x8_t sum[2], const int8_t *row) {
    int8x16_t a = vld1q_s8(row);
    sum[0] = vaddw_s8(sum[0], vget_low_s8(a));
    sum[1] = vaddw_high_s8(sum[1], a);
}

/* 16 * halves positions of `count` rows; both are constants at each call */
static inline void add_at(const int8_t *const *rows, int32_t count, int32_t halves, size_t at,
                          int16_t *sums) {
    int16x8_t sum[4];
    for (int32_t n = 0; n < 2 * halves; n++)
        sum[n] = vld1q_s16(sums + at + 8 * n);
    for (int32_t n = 0; n < count; n++)
        for (int32_t half = 0; half < halves; half++)
            add_bytes(sum + 2 * half, rows[n] + at + 16 * half);
    for (int32_t n = 0; n < 2 * halves; n++)
        vst1q_s16(sums + at + 8 * n, sum[n]);
}

/* To `sums` of every channel the rows named by `count` of its indices, from kernel position
 * `tap` on; count is a constant at each call. */
static inline void add_rows(const Layer *layer, const Rows *r, const int8_t *tables,
                            const uint8_t *indices, const int32_t *offsets, int32_t count,
                            int16_t *sums) {
    const int8_t *bases[9], *rows[9];
    int32_t taps = layer->kh * layer->kw, outputs = layer->cout, sum_stride = r->sums;
    uint32_t stride = (uint32_t)r->stride;
    size_t end = (size_t)r->outputs;
    for (int32_t n = 0; n < count; n++)
        bases[n] = tables + offsets[n];
    for (int32_t o = 0; o < outputs; o++, indices += taps, sums += sum_stride) {
        size_t at = 0;
        for (int32_t n = 0; n < count; n++)
            rows[n] = bases[n] + (uint64_t)stride * indices[n];
        for (; at + STEP / 2 < end; at += STEP)
            add_at(rows, count, 2, at, sums);
        if (at < end)
            add_at(rows, count, 1, at, sums);
    }
}

static void add(const Layer *layer, const Rows *r, const void *tables, const uint8_t *indices,
                const int32_t *offsets, uint16_t *sums) {
    int32_t taps = layer->kh * layer->kw, tap = 0;
    int16_t *sum = (int16_t *)sums;
    for (; tap + 9 <= taps; tap += 9)
        add_rows(layer, r, tables, indices + tap, offsets + tap, 9, sum);
    for (; tap + 3 <= taps; tap += 3)
        add_rows(layer, r, tables, indices + tap, offsets + tap, 3, sum);
    for (; tap < taps; tap++)
        add_rows(layer, r, tables, indices + tap, offsets + tap, 1, sum);
}

static void flush(const Layer *layer, const Rows *r, uint16_t *sums, int32_t added,
                  int32_t *totals) {
    (void)added;
    size_t n = (size_t)layer->cout * r->sums; /* r->sums is a multiple of STEP */
    for (size_t i = 0; i < n; i += 8) {
        int16x8_t s = vld1q_s16((const int16_t *)sums + i);
        vst1q_s32(totals + i, vaddw_s16(vld1q_s32(totals + i), vget_low_s16(s)));
        vst1q_s32(totals + i + 4, vaddw_high_s16(vld1q_s32(totals + i + 4), s));
        vst1q_s16((int16_t *)sums + i, vdupq_n_s16(0));
    }
}

/* ---- one position, as in a fully connected layer: its tables stay in registers ---- */

/* sixteen entries; codewords: [length][count], of sixteen side by side */
static inline int8x16_t entries_of_one(const Layer *layer, const int16_t *values,
                                       const int8_t *codewords, int16x8_t multiplier) {
    int32x4_t half = vdupq_n_s32(1 << layer->shift >> 1), t[4] = {half, half, half, half};
    for (int32_t j = 0; j < layer->length; j++, codewords += layer->count) {
        int8x16_t c = vld1q_s8(codewords);
        int16x8_t low = vmovl_s8(vget_low_s8(c)), high = vmovl_high_s8(c);
        t[0] = vmlal_n_s16(t[0], vget_low_s16(low), values[j]);
        t[1] = vmlal_high_n_s16(t[1], low, values[j]);
        t[2] = vmlal_n_s16(t[2], vget_low_s16(high), values[j]);
        t[3] = vmlal_high_n_s16(t[3], high, values[j]);
    }
    return entries_of(t, layer->shift, multiplier);
}

static inline void add_entries(int32_t *totals, int8x16_t v) {
    int16x8_t low = vmovl_s8(vget_low_s8(v)), high = vmovl_high_s8(v);
    vst1q_s32(totals, vaddw_s16(vld1q_s32(totals), vget_low_s16(low)));
    vst1q_s32(totals + 4, vaddw_high_s16(vld1q_s32(totals + 4), low));
    vst1q_s32(totals + 8, vaddw_s16(vld1q_s32(totals + 8), vget_low_s16(high)));
    vst1q_s32(totals + 12, vaddw_high_s16(vld1q_s32(totals + 12), high));
}

/* the entries that sixteen outputs name, out of a table of `count` */
static inline int8x16_t looked_up(const int8_t *table, int32_t count, uint8x16_t indices) {
    int8x16_t found = vdupq_n_s8(0);
    for (int32_t k = 0; k < count; k += 64, indices = vsubq_u8(indices, vdupq_n_u8(64)))
        /* an index that is not in these entries leaves what was found */
        found = vqtbx4q_s8(found, vld1q_s8_x4(table + k), indices);
    return found;
}

static void add_one(const Layer *layer, int32_t space, const int8_t *codewords, const uint8_t *q,
                    const uint8_t *indices, int32_t *totals) {
    int8_t table[256] = {0};
    int16_t values[BLOCK];
    int16x8_t multiplier = vdupq_n_s16(layer->multipliers[space]);
    for (int32_t j = 0; j < layer->length; j++)
        values[j] = (int16_t)(q[j] - layer->zero);
    for (int32_t k = 0; k < layer->count; k += 16)
        vst1q_s8(table + k, entries_of_one(layer, values, codewords + k, multiplier));
    int32_t o = 0;
    for (; o + 16 <= layer->cout; o += 16)
        add_entries(totals + o, looked_up(table, layer->count, vld1q_u8(indices + o)));
    for (; o < layer->cout; o++)
        totals[o] += table[indices[o]];
}

/* ---- epilogue ---- */

static inline void transpose4(int32x4_t a[4]) {
    int32x4x2_t t = vtrnq_s32(a[0], a[1]), u = vtrnq_s32(a[2], a[3]);
    a[0] = vcombine_s32(vget_low_s32(t.val[0]), vget_low_s32(u.val[0]));
    a[1] = vcombine_s32(vget_low_s32(t.val[1]), vget_low_s32(u.val[1]));
    a[2] = vcombine_s32(vget_high_s32(t.val[0]), vget_high_s32(u.val[0]));
    a[3] = vcombine_s32(vget_high_s32(t.val[1]), vget_high_s32(u.val[1]));
}

/* totals: of eight channels, r->sums apart */
static inline void finish_row(const Epilogue *e, const Rows *r, const int32_t *totals,
                              size_t place) {
    int32_t j = 0, width = e->layer->wout, sums = r->sums;
    for (; j + 4 <= width; j += 4, place += 4 * BLOCK) {
        int32x4_t a[4], b[4];
        for (int32_t c = 0; c < 4; c++) {
            a[c] = vld1q_s32(totals + (size_t)c * sums + j);
            b[c] = vld1q_s32(totals + (size_t)(c + 4) * sums + j);
        }
        transpose4(a);
        transpose4(b);
        for (int32_t n = 0; n < 4; n++)
            finish8(e, place + n * BLOCK, a[n], b[n]);
    }
    for (; j < width; j++, place += BLOCK) {
        int32_t one[BLOCK];
        for (int32_t c = 0; c < BLOCK; c++)
            one[c] = totals[(size_t)c * sums + j];
        finish8(e, place, vld1q_s32(one), vld1q_s32(one + 4));
    }
}

static void finish(const Layer *layer, const Rows *r, const int32_t *totals, const Tile *tile) {
    for (int32_t block = 0; block < blocks(layer->cout); block++) {
        Epilogue e = epilogue(layer, tile, block);
        const int32_t *from = totals + (size_t)block * BLOCK * r->sums;
        for (int32_t i = 0; i < r->rows; i++, from += r->width)
            finish_row(&e, r, from,
                       ((size_t)block * layer->hout + tile->y0 + i) * layer->wout * BLOCK);
    }
}

#endif
