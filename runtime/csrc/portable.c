/* The kernels in plain C11: what every other instruction set is compared with. */
#include "epilogue.h"
#include "portable.h"

#include <string.h>

#include "rows.h"

/* ---- epilogue ---- */

enum { PART = 64 };

static inline void store(const Layer *layer, const Tile *tile, int32_t channel, size_t place,
                         float sum) {
    float x = finished(layer, channel, sum, tile->residual ? tile->residual + place : NULL);
    if (tile->real)
        tile->real[place] = x;
    if (tile->coded)
        tile->coded[place] = coded(x, layer->out_inverse, layer->out_zero);
}

/* what `store` does, for a part of a row of eight channels: loops over positions become vectors */
static void finish_part(const Layer *layer, const Tile *tile, int32_t channel, size_t place,
                        const int32_t *totals, size_t step, int32_t n) {
    float x[BLOCK][PART];
    for (int32_t c = 0; c < BLOCK; c++) {
        const int32_t *restrict from = totals + c * step;
        float gain = layer->gain[channel + c], bias = layer->bias[channel + c];
        for (int32_t p = 0; p < n; p++) {
            float v = (float)from[p] * gain;
            x[c][p] = v + bias;
        }
        for (int32_t p = 0; p < n; p++)
            x[c][p] = activated(&layer->first, channel + c, x[c][p]);
        if (tile->residual)
            for (int32_t p = 0; p < n; p++)
                x[c][p] = x[c][p] + tile->residual[place + (size_t)p * BLOCK + c];
        for (int32_t p = 0; p < n; p++)
            x[c][p] = activated(&layer->second, channel + c, x[c][p]);
        if (tile->real)
            for (int32_t p = 0; p < n; p++)
                tile->real[place + (size_t)p * BLOCK + c] = x[c][p];
        if (tile->coded) {
            uint8_t q[PART];
            for (int32_t p = 0; p < n; p++)
                q[p] = coded(x[c][p], layer->out_inverse, layer->out_zero);
            for (int32_t p = 0; p < n; p++)
                tile->coded[place + (size_t)p * BLOCK + c] = q[p];
        }
    }
}

void portable_finish(const Layer *layer, const Rows *r, const int32_t *totals, const Tile *tile) {
    for (int32_t block = 0; block < blocks(layer->cout); block++)
        for (int32_t i = 0; i < r->rows; i++) {
            size_t row = ((size_t)block * layer->hout + tile->y0 + i) * layer->wout;
            const int32_t *from = totals + (size_t)block * BLOCK * r->sums + (size_t)i * r->width;
            for (int32_t j = 0; j < layer->wout; j += PART)
                finish_part(layer, tile, block * BLOCK, (row + j) * BLOCK, from + j,
                            (size_t)r->sums, at_most(PART, layer->wout - j));
        }
}

/* ---- look-up ---- */

/* (u * m + 2^14) >> 15, saturated to -128..127 */
static inline int16_t entry(int16_t u, int16_t m) {
    int16_t v = (int16_t)(((int32_t)u * m + (1 << 14)) >> 15); /* |u| < 2^15: fits */
    v = v < 127 ? v : 127;
    return v > -128 ? v : -128;
}

/* One row of a table: the entries of one codeword at many positions, in 16 bits throughout, which
 * is twice as many lanes as the 19 bits of the exact sum t would have. With q in two halves,
 * q = 16 h + l, sums of h * c and of l * c fit. What else t has, 2^(s-1) - zero * sum(c), is cut
 * in the same way into 16 b1 + b0, and
 *     t >> s  =  ((h + b1) << (4 - s)) + ((l + b0) >> s)   exactly, modulo 2^16. */
static void build_row(const int16_t *restrict high, const int16_t *restrict low, size_t stride,
                      const int8_t *c, int32_t length, int32_t begin, int16_t m,
                      int16_t *restrict row, int32_t n) {
    int16_t b1 = (int16_t)(begin >> 4), b0 = (int16_t)(begin & 15);
#define H(j) (int16_t)(high[p + (j) * stride] * (int16_t)c[j])
#define L(j) (int16_t)(low[p + (j) * stride] * (int16_t)c[j])
    if (length == 2) {
        for (int32_t p = 0; p < n; p++) {
            int16_t h = (int16_t)(b1 + H(0) + H(1)), l = (int16_t)(b0 + L(0) + L(1));
            row[p] = entry((int16_t)(h * 8 + (int16_t)(l >> 1)), m);
        }
        return;
    }
    if (length == 4) {
        for (int32_t p = 0; p < n; p++) {
            int16_t h = (int16_t)(b1 + H(0) + H(1) + H(2) + H(3));
            int16_t l = (int16_t)(b0 + L(0) + L(1) + L(2) + L(3));
            row[p] = entry((int16_t)(h * 4 + (int16_t)(l >> 2)), m);
        }
        return;
    }
    for (int32_t p = 0; p < n; p++) {
        int16_t h = (int16_t)(b1 + H(0) + H(1) + H(2) + H(3) + H(4) + H(5) + H(6) + H(7));
        int16_t l = (int16_t)(b0 + L(0) + L(1) + L(2) + L(3) + L(4) + L(5) + L(6) + L(7));
        row[p] = entry((int16_t)(h * 2 + (int16_t)(l >> 3)), m);
    }
#undef H
#undef L
}

enum { CHUNK = 256 }; /* positions whose halves of q are kept at once */

static void build(const Layer *layer, int32_t space, const int16_t *values, int32_t stride,
                  int32_t positions, void *tables) {
    int32_t length = layer->length, half = 1 << layer->shift >> 1;
    for (int32_t first = 0; first < positions; first += CHUNK) {
        int16_t high[8 * CHUNK], low[8 * CHUNK];
        int32_t n = at_most(CHUNK, positions - first);
        for (int32_t j = 0; j < length; j++)
            for (int32_t p = 0; p < n; p++) {
                int16_t q = (int16_t)(values[(size_t)j * stride + first + p] + layer->zero);
                high[j * CHUNK + p] = (int16_t)(q >> 4);
                low[j * CHUNK + p] = q & 15;
            }
        const int8_t *c = layer->codewords + (size_t)space * layer->count * length;
        for (int32_t k = 0; k < layer->count; k++, c += length) {
            int32_t sum = 0;
            for (int32_t j = 0; j < length; j++)
                sum += c[j];
            build_row(high, low, CHUNK, c, length, half - layer->zero * sum,
                      layer->multipliers[space], (int16_t *)tables + (size_t)k * stride + first,
                      n);
        }
    }
}

static void add9(uint16_t *restrict sum, const int16_t *const *t, int32_t n) {
    const int16_t *a = t[0], *b = t[1], *c = t[2], *d = t[3], *e = t[4];
    const int16_t *f = t[5], *g = t[6], *h = t[7], *i = t[8];
    for (int32_t p = 0; p < n; p++)
        sum[p] = (uint16_t)(sum[p] + a[p] + b[p] + c[p] + d[p] + e[p] + f[p] + g[p] + h[p] + i[p]);
}

/* one output */
static void add_rows(const int16_t *tables, size_t stride, int32_t taps, const uint8_t *indices,
                     const int32_t *offsets, uint16_t *sums, int32_t n) {
    int32_t tap = 0;
    for (; tap + 9 <= taps; tap += 9) {
        const int16_t *t[9];
        for (int32_t i = 0; i < 9; i++)
            t[i] = tables + indices[tap + i] * stride + offsets[tap + i];
        add9(sums, t, n);
    }
    for (; tap < taps; tap++) {
        const int16_t *t = tables + indices[tap] * stride + offsets[tap];
        for (int32_t p = 0; p < n; p++)
            sums[p] = (uint16_t)(sums[p] + t[p]);
    }
}

static void add(const Layer *layer, const Rows *r, const void *tables, const uint8_t *indices,
                const int32_t *offsets, uint16_t *sums) {
    int32_t taps = layer->kh * layer->kw;
    for (int32_t o = 0; o < layer->cout; o++, indices += taps, sums += r->sums)
        add_rows(tables, (size_t)r->stride, taps, indices, offsets, sums, r->outputs);
}

static void flush(const Layer *layer, const Rows *r, uint16_t *sums, int32_t added,
                  int32_t *totals) {
    (void)added;
    size_t n = (size_t)layer->cout * r->sums;
    for (size_t i = 0; i < n; i++)
        totals[i] += (int16_t)sums[i];
    memset(sums, 0, n * sizeof *sums);
}

void portable_spread(const uint8_t *q, size_t step, int32_t n, int32_t length, int32_t zero,
                     int16_t *values, size_t stride) {
    for (int32_t p = 0; p < n; p++)
        for (int32_t j = 0; j < length; j++)
            values[(size_t)j * stride + p] = (int16_t)(q[p * step + j] - zero);
}

void portable_add_one(const Layer *layer, int32_t space, const int8_t *codewords, const uint8_t *q,
                      const uint8_t *indices, int32_t *totals) {
    int16_t table[256];
    table_of_one(layer, codewords, q, layer->multipliers[space], table);
    for (int32_t o = 0; o < layer->cout; o++)
        totals[o] += table[indices[o]];
}

static const RowKernel row_kernel = {2, portable_spread, build, add, flush, portable_finish, portable_add_one};

static size_t lookup_scratch(const Layer *layer, int32_t rows) {
    return rows_scratch_bytes(layer, rows, &row_kernel);
}

static void lookup(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    rows_run(layer, tile, scratch, &row_kernel);
}

/* ---- dense: [taps][cin][outputs] int16, sums of 16 outputs at once ---- */

enum { OUTPUTS = 16 };

static size_t dense_packed_bytes(const Layer *layer) {
    return (size_t)layer->kh * layer->kw * layer->cin * rounded_up(layer->cout, OUTPUTS) *
           sizeof(int16_t);
}

static void dense_pack(const Layer *layer, const Weights *weights, uint8_t *packed) {
    int32_t taps = layer->kh * layer->kw, width = rounded_up(layer->cout, OUTPUTS);
    int16_t *to = (int16_t *)packed;
    memset(packed, 0, dense_packed_bytes(layer));
    for (int32_t o = 0; o < layer->cout; o++)
        for (int32_t c = 0; c < layer->cin; c++)
            for (int32_t tap = 0; tap < taps; tap++)
                to[((size_t)tap * layer->cin + c) * width + o] =
                    weights->dense[((size_t)o * layer->cin + c) * taps + tap];
}

int32_t few_rows(const Layer *layer) {
    return at_least(1, at_most(layer->hout, 512 / at_least(1, layer->wout)));
}

static size_t no_scratch(const Layer *layer, int32_t rows) {
    (void)layer, (void)rows;
    return 0;
}

static void dense(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    (void)scratch;
    int32_t width = rounded_up(layer->cout, OUTPUTS);
    size_t plane = (size_t)layer->hin * layer->win * BLOCK;
    for (int32_t y = tile->y0; y < tile->y1; y++)
        for (int32_t x = 0; x < layer->wout; x++)
            for (int32_t o = 0; o < layer->cout; o += OUTPUTS) {
                int32_t sum[OUTPUTS] = {0};
                for (int32_t ky = 0, tap = 0; ky < layer->kh; ky++)
                    for (int32_t kx = 0; kx < layer->kw; kx++, tap++) {
                        int32_t iy = y * layer->sy + ky - layer->top;
                        int32_t ix = x * layer->sx + kx - layer->left;
                        if (iy < 0 || iy >= layer->hin || ix < 0 || ix >= layer->win)
                            continue;
                        const uint8_t *q = tile->in + ((size_t)iy * layer->win + ix) * BLOCK;
                        const int16_t *w =
                            (const int16_t *)layer->packed + (size_t)tap * layer->cin * width + o;
                        for (int32_t c = 0; c < layer->cin; c++, w += width) {
                            int16_t v = (int16_t)(q[c / BLOCK * plane + c % BLOCK] - layer->zero);
                            for (int32_t n = 0; n < OUTPUTS; n++)
                                sum[n] += (int32_t)v * w[n];
                        }
                    }
                for (int32_t n = 0; n < OUTPUTS && o + n < blocks(layer->cout) * BLOCK; n++) {
                    size_t place = ((size_t)((o + n) / BLOCK) * layer->hout + y) * layer->wout + x;
                    store(layer, tile, o + n, place * BLOCK + n % BLOCK, (float)sum[n]);
                }
            }
}

/* ---- depth-wise: [channel blocks][taps][8] int8 ---- */

size_t depthwise_packed_bytes(const Layer *layer) {
    return (size_t)blocks(layer->cout) * BLOCK * layer->kh * layer->kw;
}

void depthwise_pack(const Layer *layer, const Weights *weights, uint8_t *packed) {
    int32_t taps = layer->kh * layer->kw;
    memset(packed, 0, depthwise_packed_bytes(layer));
    for (int32_t c = 0; c < layer->cout; c++)
        for (int32_t tap = 0; tap < taps; tap++)
            packed[((size_t)(c / BLOCK) * taps + tap) * BLOCK + c % BLOCK] =
                (uint8_t)weights->dense[(size_t)c * taps + tap];
}

static void depthwise(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    (void)scratch;
    int32_t taps = layer->kh * layer->kw;
    for (int32_t block = 0; block < blocks(layer->cout); block++) {
        const int8_t *weights = (const int8_t *)layer->packed + (size_t)block * taps * BLOCK;
        const uint8_t *plane = tile->in + (size_t)block * layer->hin * layer->win * BLOCK;
        for (int32_t y = tile->y0; y < tile->y1; y++)
            for (int32_t x = 0; x < layer->wout; x++) {
                int32_t sum[BLOCK] = {0};
                const int8_t *w = weights;
                for (int32_t ky = 0; ky < layer->kh; ky++)
                    for (int32_t kx = 0; kx < layer->kw; kx++, w += BLOCK) {
                        int32_t iy = y * layer->sy + ky - layer->top;
                        int32_t ix = x * layer->sx + kx - layer->left;
                        if (iy < 0 || iy >= layer->hin || ix < 0 || ix >= layer->win)
                            continue;
                        const uint8_t *q = plane + ((size_t)iy * layer->win + ix) * BLOCK;
                        for (int32_t c = 0; c < BLOCK; c++)
                            sum[c] += (q[c] - layer->zero) * w[c];
                    }
                size_t place = (((size_t)block * layer->hout + y) * layer->wout + x) * BLOCK;
                for (int32_t c = 0; c < BLOCK; c++)
                    store(layer, tile, block * BLOCK + c, place + c, (float)sum[c]);
            }
    }
}

const Kernels kernels_portable = {
    "portable",
    {rows_packed_bytes, rows_pack, rows_per_tile, lookup_scratch, lookup},
    {dense_packed_bytes, dense_pack, few_rows, no_scratch, dense},
    {depthwise_packed_bytes, depthwise_pack, few_rows, no_scratch, depthwise},
};
