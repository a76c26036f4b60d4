/* AVX2: look-up by adding rows of bytes, 32 positions at once; the rest by vpmaddwd. */
#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2")
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#endif

#include <immintrin.h>
#include <string.h>

#include "kernels.h"
#include "padded.h"
#include "portable.h"
#include "rows.h"

#define INLINE static inline __attribute__((always_inline))
/* sums stay in registers only where loops over them are unrolled */
#define UNROLL _Pragma("GCC unroll 8")

/* ---- epilogue: eight channels of one position ---- */

typedef struct {
    __m256 gain, bias, slope1, slope2;
} Channels;

INLINE Channels channels_of(const Layer *layer, int32_t channel) {
    const float *slope1 = layer->first.slope ? layer->first.slope : layer->gain;
    const float *slope2 = layer->second.slope ? layer->second.slope : layer->gain;
    return (Channels){_mm256_loadu_ps(layer->gain + channel), _mm256_loadu_ps(layer->bias + channel),
                      _mm256_loadu_ps(slope1 + channel), _mm256_loadu_ps(slope2 + channel)};
}

INLINE __m256 activated(const Activation *activation, __m256 slope, __m256 x) {
    if (activation->slope) {
        __m256 positive = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ);
        x = _mm256_blendv_ps(_mm256_mul_ps(x, slope), x, positive);
    }
    if (activation->clips) {
        x = _mm256_max_ps(x, _mm256_set1_ps(activation->low));
        x = _mm256_min_ps(x, _mm256_set1_ps(activation->high));
    }
    return x;
}

INLINE void finish(const Layer *layer, const Tile *tile, const Channels *c, size_t place,
                   __m256i sum) {
    __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), c->gain);
    x = _mm256_add_ps(x, c->bias);
    x = activated(&layer->first, c->slope1, x);
    if (tile->residual)
        x = _mm256_add_ps(x, _mm256_loadu_ps(tile->residual + place));
    x = activated(&layer->second, c->slope2, x);
    if (tile->real)
        _mm256_storeu_ps(tile->real + place, x);
    if (tile->coded) {
        __m256 t = _mm256_mul_ps(x, _mm256_set1_ps(layer->out_inverse));
        t = _mm256_max_ps(t, _mm256_set1_ps((float)-layer->out_zero));
        t = _mm256_min_ps(t, _mm256_set1_ps((float)(255 - layer->out_zero)));
        __m256i q = _mm256_add_epi32(_mm256_cvtps_epi32(t), _mm256_set1_epi32(layer->out_zero));
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
        _mm_storel_epi64((__m128i *)(tile->coded + place), _mm_packus_epi16(words, words));
    }
}

/* ---- look-up: entries of 128 + v, one byte each ---- */

enum { BIAS = 128 };

INLINE __m256i loaded(const void *at) { return _mm256_loadu_si256((const __m256i *)at); }

/* entries of sixteen positions, from the values of pairs of channels: two vectors a pair */
INLINE __m256i entries(const __m256i *values, const int32_t *pairs, int32_t count, int32_t shift,
                       __m256i factor) {
    __m256i a = _mm256_set1_epi32(1 << shift >> 1), b = a;
    for (int j = 0; j < count; j++) {
        __m256i c = _mm256_set1_epi32(pairs[j]);
        a = _mm256_add_epi32(a, _mm256_madd_epi16(values[2 * j], c));
        b = _mm256_add_epi32(b, _mm256_madd_epi16(values[2 * j + 1], c));
    }
    a = _mm256_packs_epi32(_mm256_srai_epi32(a, shift), _mm256_srai_epi32(b, shift));
    return _mm256_mulhrs_epi16(a, factor);
}

/* pairs: [codeword][length / 2] of two int16; of 32 positions */
INLINE void build_some(const int32_t *pairs, int32_t codewords, int32_t length, int32_t shift,
                       int16_t multiplier, const int16_t *values, size_t stride, uint8_t *to) {
    __m256i interleaved[2][8];
    const int32_t count = length / 2;
    for (int half = 0; half < 2; half++)
        for (int j = 0; j < count; j++) {
            const int16_t *at = values + 2 * j * stride + 16 * half;
            __m256i a = loaded(at), b = loaded(at + stride);
            interleaved[half][2 * j] = _mm256_unpacklo_epi16(a, b);
            interleaved[half][2 * j + 1] = _mm256_unpackhi_epi16(a, b);
        }
    const __m256i factor = _mm256_set1_epi16(multiplier), bias = _mm256_set1_epi8((char)BIAS);
    for (const int32_t *end = pairs + codewords * count; pairs < end; pairs += count, to += stride) {
        __m256i low = entries(interleaved[0], pairs, count, shift, factor);
        __m256i high = entries(interleaved[1], pairs, count, shift, factor);
        __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8);
        _mm256_storeu_si256((__m256i *)to, _mm256_xor_si256(bytes, bias));
    }
}

static void build(const Layer *layer, int32_t space, const int16_t *values, int32_t stride,
                  int32_t n, void *tables) {
    int32_t pairs[256 * 4], length = layer->length, count = layer->count;
    const int8_t *c = layer->codewords + (size_t)space * count * length;
    for (int32_t i = 0; i < count * length / 2; i++)
        pairs[i] = (int32_t)((uint32_t)(uint16_t)c[2 * i] | (uint32_t)(uint16_t)c[2 * i + 1] << 16);
    int16_t m = layer->multipliers[space];
    for (int32_t p = 0; p < n; p += 32) {
        uint8_t *to = (uint8_t *)tables + p;
        if (length == 8)
            build_some(pairs, count, 8, 3, m, values + p, (size_t)stride, to);
        else if (length == 4)
            build_some(pairs, count, 4, 2, m, values + p, (size_t)stride, to);
        else
            build_some(pairs, count, 2, 1, m, values + p, (size_t)stride, to);
    }
}

/* Sums of 32 positions take two vectors of 16: all bytes added as if they were 16-bit numbers,
 * and the upper bytes alone. Low bytes follow from the two, modulo 2^16. */
/* keeps compilers from loading a value again for its second use, and from having so many
 * values under way at once that registers run out */
#define KEPT(v) __asm__("" : "+x"(v))
#define ADD(row)                                                                                   \
    do {                                                                                           \
        __m256i x = loaded((row) + i);                                                             \
        KEPT(x);                                                                                   \
        all = _mm256_add_epi16(all, x);                                                            \
        upper = _mm256_add_epi16(upper, _mm256_srli_epi16(x, 8));                                  \
        KEPT(upper);                                                                               \
    } while (0)

static void add_row(const uint8_t *a, uint16_t *sums, size_t positions) {
    for (size_t i = 0; i < positions; i += 32, sums += 32) {
        __m256i all = loaded(sums), upper = loaded(sums + 16);
        ADD(a);
        _mm256_storeu_si256((__m256i *)sums, all);
        _mm256_storeu_si256((__m256i *)(sums + 16), upper);
    }
}

/* nine rows named one by one, so that their addresses stay in registers */
INLINE void add_nine(const uint8_t *tables, size_t stride, const uint8_t *index,
                     const int32_t *offset, uint16_t *sums, size_t positions) {
    const uint8_t *a = tables + index[0] * stride + offset[0];
    const uint8_t *b = tables + index[1] * stride + offset[1];
    const uint8_t *c = tables + index[2] * stride + offset[2];
    const uint8_t *d = tables + index[3] * stride + offset[3];
    const uint8_t *e = tables + index[4] * stride + offset[4];
    const uint8_t *f = tables + index[5] * stride + offset[5];
    const uint8_t *g = tables + index[6] * stride + offset[6];
    const uint8_t *h = tables + index[7] * stride + offset[7];
    const uint8_t *k = tables + index[8] * stride + offset[8];
    for (size_t i = 0; i < positions; i += 32) {
        __m256i all = loaded(sums + i), upper = loaded(sums + i + 16);
        ADD(a);
        ADD(b);
        ADD(c);
        ADD(d);
        ADD(e);
        ADD(f);
        ADD(g);
        ADD(h);
        ADD(k);
        _mm256_storeu_si256((__m256i *)(sums + i), all);
        _mm256_storeu_si256((__m256i *)(sums + i + 16), upper);
    }
}

static void add(const Layer *layer, const Rows *r, const void *tables, const uint8_t *indices,
                const int32_t *offsets, uint16_t *sums) {
    int32_t taps = layer->kh * layer->kw;
    size_t stride = (size_t)r->stride, positions = (size_t)r->sums;
    for (int32_t o = 0; o < layer->cout; o++, sums += positions, indices += taps) {
        int32_t tap = 0;
        for (; tap + 9 <= taps; tap += 9)
            add_nine(tables, stride, indices + tap, offsets + tap, sums, positions);
        for (; tap < taps; tap++)
            add_row((const uint8_t *)tables + indices[tap] * stride + offsets[tap], sums, positions);
    }
}

static void flush(const Layer *layer, const Rows *r, uint16_t *sums, int32_t added,
                  int32_t *totals) {
    const __m256i bias = _mm256_set1_epi16((int16_t)(BIAS * added));
    size_t n = (size_t)layer->cout * r->sums;
    for (size_t i = 0; i < n; i += 32) {
        __m256i all = loaded(sums + i), odd = loaded(sums + i + 16);
        __m256i even = _mm256_sub_epi16(_mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8)), bias);
        odd = _mm256_sub_epi16(odd, bias);
        __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
        __m128i eights[4] = {_mm256_castsi256_si128(low), _mm256_castsi256_si128(high),
                             _mm256_extracti128_si256(low, 1), _mm256_extracti128_si256(high, 1)};
        for (int part = 0; part < 4; part++) {
            int32_t *to = totals + i + 8 * part;
            __m256i sum = _mm256_add_epi32(loaded(to), _mm256_cvtepi16_epi32(eights[part]));
            _mm256_storeu_si256((__m256i *)to, sum);
        }
    }
    memset(sums, 0, n * sizeof *sums);
}

/* rows of eight channels -> columns: eight channels of one position each */
INLINE void transpose(__m256i v[8]) {
    __m256i a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

static void rows_finish(const Layer *layer, const Rows *r, const int32_t *totals,
                        const Tile *tile) {
    for (int32_t block = 0; block < blocks(layer->cout); block++) {
        Channels c = channels_of(layer, block * BLOCK);
        for (int32_t i = 0; i < r->rows; i++) {
            size_t row = ((size_t)block * layer->hout + tile->y0 + i) * layer->wout;
            const int32_t *from = totals + (size_t)block * BLOCK * r->sums + (size_t)i * r->width;
            for (int32_t j = 0; j < layer->wout; j += 8) {
                __m256i v[8]; /* may reach into the next row of sums, or the room behind them */
                for (int n = 0; n < 8; n++)
                    v[n] = loaded(from + (size_t)n * r->sums + j);
                transpose(v);
                int32_t few = at_most(8, layer->wout - j);
                for (int n = 0; n < few; n++)
                    finish(layer, tile, &c, (row + j + n) * BLOCK, v[n]);
            }
        }
    }
}

/* 32 bytes looked up sixteen codewords at a time: where an index is not among the sixteen, its
 * uppermost bit gets set, and vpshufb gives zero */
INLINE __m256i looked_up(const __m256i *tables, int32_t sixteens, __m256i index) {
    __m256i found = _mm256_setzero_si256();
    for (int32_t i = 0; i < sixteens; i++) {
        __m256i within = _mm256_adds_epu8(index, _mm256_set1_epi8(0x70));
        found = _mm256_or_si256(found, _mm256_shuffle_epi8(tables[i], within));
        index = _mm256_sub_epi8(index, _mm256_set1_epi8(16));
    }
    return found;
}

static void add_one(const Layer *layer, int32_t space, const int8_t *codewords, const uint8_t *q,
                    const uint8_t *indices, int32_t *totals) {
    int16_t table[256];
    __m256i tables[16];
    int32_t sixteens = layer->count / 16, o = 0;
    table_of_one(layer, codewords, q, layer->multipliers[space], table);
    for (int32_t i = 0; i < sixteens; i++) {
        __m128i low = _mm_loadu_si128((const __m128i *)(table + 16 * i));
        __m128i high = _mm_loadu_si128((const __m128i *)(table + 16 * i + 8));
        tables[i] = _mm256_broadcastsi128_si256(_mm_packs_epi16(low, high));
    }
    for (; o + 32 <= layer->cout; o += 32) {
        __m256i found = looked_up(tables, sixteens, loaded(indices + o));
        __m128i half[2] = {_mm256_castsi256_si128(found), _mm256_extracti128_si256(found, 1)};
        for (int i = 0; i < 4; i++) {
            int32_t *to = totals + o + 8 * i;
            __m128i bytes = i % 2 ? _mm_srli_si128(half[i / 2], 8) : half[i / 2];
            __m256i sum = _mm256_add_epi32(loaded(to), _mm256_cvtepi8_epi32(bytes));
            _mm256_storeu_si256((__m256i *)to, sum);
        }
    }
    for (; o < layer->cout; o++)
        totals[o] += table[indices[o]];
}

/* eight channels of eight positions: bytes to columns of int16 */
INLINE void spread_eight(const uint8_t *q, size_t step, __m128i zero, int32_t length,
                         int16_t *values, size_t stride) {
    __m128i a[8], b[8];
    for (int i = 0; i < 8; i++)
        a[i] = _mm_loadl_epi64((const __m128i *)(q + i * step));
    for (int i = 0; i < 4; i++)
        b[i] = _mm_unpacklo_epi8(a[2 * i], a[2 * i + 1]);
    a[0] = _mm_unpacklo_epi16(b[0], b[1]);
    a[1] = _mm_unpackhi_epi16(b[0], b[1]);
    a[2] = _mm_unpacklo_epi16(b[2], b[3]);
    a[3] = _mm_unpackhi_epi16(b[2], b[3]);
    b[0] = _mm_unpacklo_epi32(a[0], a[2]);
    b[1] = _mm_unpackhi_epi32(a[0], a[2]);
    b[2] = _mm_unpacklo_epi32(a[1], a[3]);
    b[3] = _mm_unpackhi_epi32(a[1], a[3]);
    for (int j = 0; j < length; j++) {
        __m128i bytes = j & 1 ? _mm_srli_si128(b[j / 2], 8) : b[j / 2];
        __m128i v = _mm_sub_epi16(_mm_cvtepu8_epi16(bytes), zero);
        _mm_storeu_si128((__m128i *)(values + j * stride), v);
    }
}

static void spread(const uint8_t *q, size_t step, int32_t n, int32_t length, int32_t zero,
                   int16_t *values, size_t stride) {
    const __m128i z = _mm_set1_epi16((int16_t)zero);
    /* of fewer channels eight bytes are read as well, but not beyond the last position */
    int32_t p = 0, last = n - 8 - (length < BLOCK);
    for (; p <= last; p += 8)
        spread_eight(q + p * step, step, z, length, values + p, stride);
    if (p < n && length == BLOCK && last >= 0) /* the last eight overlap those before */
        spread_eight(q + last * step, step, z, length, values + last, stride);
    else
        portable_spread(q + p * step, step, n - p, length, zero, values + p, stride);
}

static const RowKernel row_kernel = {1, spread, build, add, flush, rows_finish, add_one};

static size_t lookup_scratch(const Layer *layer, int32_t rows) {
    return rows_scratch_bytes(layer, rows, &row_kernel);
}

static void lookup(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    rows_run(layer, tile, scratch, &row_kernel);
}

/* ---- dense: [blocks of 8 outputs][taps][pairs of channels][8][2] int16 ----
 *
 * The input of a tile is widened to q - zero in int16, with a border of zeros. */

enum { OUTPUTS = 8, FEW = 5 };

static size_t wide_bytes(const Layer *layer, int32_t rows) {
    return aligned((size_t)blocks(layer->cin) * padded_height(layer, rows) * padded_width(layer) *
                       BLOCK * sizeof(int16_t) + 64);
}

static void widen(const Layer *layer, const Tile *tile, int16_t *to) {
    const __m128i zero = _mm_set1_epi16((int16_t)layer->zero);
    int32_t width = padded_width(layer), height = padded_height(layer, tile->y1 - tile->y0);
    for (int32_t block = 0; block < blocks(layer->cin); block++)
        for (int32_t i = 0; i < height; i++) {
            int32_t y = tile->y0 * layer->sy - layer->top + i;
            const uint8_t *from =
                tile->in + ((size_t)block * layer->hin + at_least(y, 0)) * layer->win * BLOCK;
            for (int32_t j = 0; j < width; j++, to += BLOCK) {
                int32_t x = j - layer->left;
                __m128i v = _mm_setzero_si128();
                if (y >= 0 && y < layer->hin && x >= 0 && x < layer->win) {
                    v = _mm_loadl_epi64((const __m128i *)(from + (size_t)x * BLOCK));
                    v = _mm_sub_epi16(_mm_cvtepu8_epi16(v), zero);
                }
                _mm_storeu_si128((__m128i *)to, v);
            }
        }
}

static size_t dense_block_bytes(const Layer *layer) {
    return (size_t)layer->kh * layer->kw * ((layer->cin + 1) / 2) * 32;
}

static size_t dense_packed_bytes(const Layer *layer) {
    return (size_t)blocks(layer->cout) * dense_block_bytes(layer);
}

static void dense_pack(const Layer *layer, const Weights *weights, uint8_t *packed) {
    int32_t taps = layer->kh * layer->kw, pairs = (layer->cin + 1) / 2;
    memset(packed, 0, dense_packed_bytes(layer));
    for (int32_t o = 0; o < layer->cout; o++) {
        int16_t *to = (int16_t *)(packed + (size_t)(o / OUTPUTS) * dense_block_bytes(layer));
        const int8_t *from = weights->dense + (size_t)o * layer->cin * taps;
        for (int32_t c = 0; c < layer->cin; c++)
            for (int32_t tap = 0; tap < taps; tap++)
                to[((size_t)tap * pairs + c / 2) * 16 + o % OUTPUTS * 2 + c % 2] =
                    from[c * taps + tap];
    }
}

static int32_t dense_rows(const Layer *layer) {
    size_t row = (size_t)blocks(layer->cin) * padded_width(layer) * layer->sy * BLOCK * 2;
    return at_least(layer->kh * 2, (int32_t)((128 << 10) / row));
}

typedef struct {
    size_t plane, row; /* in values */
    int32_t pairs;
} Wide;

INLINE void dense_block(const Layer *layer, const Wide *in, const int16_t *const *q,
                        const uint8_t *weights, int positions, int outputs,
                        __m256i sum[FEW][2]) {
    size_t step = dense_block_bytes(layer);
    __m256i s[FEW][2];
    UNROLL
    for (int p = 0; p < positions; p++)
        UNROLL
        for (int g = 0; g < outputs; g++)
            s[p][g] = _mm256_setzero_si256();
    for (int32_t ky = 0; ky < layer->kh; ky++)
        for (int32_t kx = 0; kx < layer->kw; kx++) {
            size_t at = ky * in->row + (size_t)kx * BLOCK;
            for (int32_t pair = 0; pair < in->pairs; pair++, weights += 32) {
                __m256i w[2];
                UNROLL
                for (int g = 0; g < outputs; g++)
                    w[g] = loaded(weights + g * step);
                const size_t offset = at + (size_t)(pair / 4) * in->plane + (size_t)(pair % 4) * 2;
                UNROLL
                for (int p = 0; p < positions; p++) {
                    int32_t two;
                    memcpy(&two, q[p] + offset, 4);
                    __m256i v = _mm256_set1_epi32(two);
                    UNROLL
                    for (int g = 0; g < outputs; g++)
                        s[p][g] = _mm256_add_epi32(s[p][g], _mm256_madd_epi16(v, w[g]));
                }
            }
        }
    UNROLL
    for (int p = 0; p < positions; p++)
        UNROLL
        for (int g = 0; g < outputs; g++)
            sum[p][g] = s[p][g];
}

#define DENSE(POSITIONS, GROUPS)                                                                   \
    case POSITIONS * 4 + GROUPS:                                                                   \
        dense_block(layer, in, q, weights, POSITIONS, GROUPS, sum);                                \
        break;
#define DENSE_GROUPS(POSITIONS) DENSE(POSITIONS, 1) DENSE(POSITIONS, 2)

static void dense_call(const Layer *layer, const Wide *in, const int16_t *const *q,
                       const uint8_t *weights, int positions, int outputs, __m256i sum[FEW][2]) {
    switch (positions * 4 + outputs) {
        DENSE_GROUPS(1)
        DENSE_GROUPS(2)
        DENSE_GROUPS(3)
        DENSE_GROUPS(4)
        DENSE_GROUPS(5)
    }
}

static void dense(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    int16_t *values = (int16_t *)scratch;
    int32_t rows = tile->y1 - tile->y0, positions = rows * layer->wout;
    Wide in = {(size_t)padded_height(layer, rows) * padded_width(layer) * BLOCK,
               (size_t)padded_width(layer) * BLOCK, (layer->cin + 1) / 2};
    widen(layer, tile, values);
    size_t area = (size_t)layer->hout * layer->wout, first = (size_t)tile->y0 * layer->wout;
    for (int32_t block = 0; block < blocks(layer->cout); block += 2) {
        int32_t together = at_most(2, blocks(layer->cout) - block);
        const uint8_t *weights = layer->packed + block * dense_block_bytes(layer);
        Channels c[2];
        for (int32_t g = 0; g < together; g++)
            c[g] = channels_of(layer, (block + g) * BLOCK);
        int32_t x = 0, y = 0;
        for (int32_t p = 0; p < positions; p += FEW) {
            int32_t few = at_most(FEW, positions - p);
            const int16_t *q[FEW];
            for (int32_t n = 0; n < few; n++) {
                q[n] = values + (size_t)y * layer->sy * in.row + (size_t)x * layer->sx * BLOCK;
                if (++x == layer->wout)
                    x = 0, y++;
            }
            __m256i sum[FEW][2];
            dense_call(layer, &in, q, weights, few, together, sum);
            for (int32_t g = 0; g < together; g++)
                for (int32_t n = 0; n < few; n++)
                    finish(layer, tile, &c[g], ((block + g) * area + first + p + n) * BLOCK,
                           sum[n][g]);
        }
    }
}

/* ---- depth-wise: eight channels of one position ---- */

static void depthwise(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    int16_t *values = (int16_t *)scratch;
    int32_t taps = layer->kh * layer->kw, height = padded_height(layer, tile->y1 - tile->y0);
    size_t area = (size_t)layer->hout * layer->wout, row = (size_t)padded_width(layer) * BLOCK;
    widen(layer, tile, values);
    for (int32_t block = 0; block < blocks(layer->cout); block++) {
        const int8_t *weights = (const int8_t *)layer->packed + (size_t)block * taps * BLOCK;
        Channels c = channels_of(layer, block * BLOCK);
        for (int32_t y = tile->y0; y < tile->y1; y++)
            for (int32_t x = 0; x < layer->wout; x++) {
                const int16_t *q = values + ((size_t)block * height + (y - tile->y0) * layer->sy) * row +
                                   (size_t)x * layer->sx * BLOCK;
                __m256i sum = _mm256_setzero_si256();
                const int8_t *w = weights;
                for (int32_t ky = 0; ky < layer->kh; ky++)
                    for (int32_t kx = 0; kx < layer->kw; kx++, w += BLOCK) {
                        __m128i v = _mm_loadu_si128(
                            (const __m128i *)(q + ky * row + (size_t)kx * BLOCK));
                        __m256i weight = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)w));
                        __m256i wide = _mm256_cvtepi16_epi32(v);
                        sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(wide, weight));
                    }
                finish(layer, tile, &c, (block * area + (size_t)y * layer->wout + x) * BLOCK, sum);
            }
    }
}

const Kernels kernels_avx2 = {
    "avx2",
    {rows_packed_bytes, rows_pack, rows_per_tile, lookup_scratch, lookup},
    {dense_packed_bytes, dense_pack, dense_rows, wide_bytes, dense},
    {depthwise_packed_bytes, depthwise_pack, dense_rows, wide_bytes, depthwise},
};

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
