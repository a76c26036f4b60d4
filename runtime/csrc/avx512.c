/* AVX-512 with VBMI and VNNI: a table of 64 entries is one register, and one instruction looks
 * up 64 outputs in it. */
#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")
#elif defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni"))),      \
    apply_to = function)
#endif

#include <immintrin.h>
#include <string.h>

#include "kernels.h"
#include "padded.h"
#include "portable.h"

#define INLINE static inline __attribute__((always_inline))
/* sums stay in registers only where loops over them are unrolled */
#define UNROLL _Pragma("GCC unroll 12")

/* ---- epilogue: sixteen values, of two channel blocks or of two positions ---- */

typedef struct {
    size_t first, second; /* places of eight values each */
    int both;
} Places;

INLINE __m512 joined(const float *a, const float *b) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(a)), _mm256_loadu_ps(b), 1);
}

/* What an epilogue needs, in registers: stores could otherwise be taken to change it. */
typedef struct {
    __m512 gain, bias, slope[2], low[2], high[2], inverse, least, most;
    __m512i zero;
    int slopes[2], clips[2];
    const float *residual;
    float *real;
    uint8_t *coded;
} Finish;

/* for sixteen channels from `channel` on, or (pairs) for eight, twice */
INLINE Finish finish_of(const Layer *layer, const Tile *tile, int32_t channel, int pairs) {
    const Activation *activations[2] = {&layer->first, &layer->second};
    const float *values[4] = {layer->gain, layer->bias, layer->first.slope, layer->second.slope};
    __m512 loaded[4];
    Finish f;
    for (int i = 0; i < 4; i++) {
        const float *at = (values[i] ? values[i] : layer->gain) + channel;
        loaded[i] = pairs ? _mm512_broadcast_f32x8(_mm256_loadu_ps(at)) : _mm512_loadu_ps(at);
    }
    f.gain = loaded[0], f.bias = loaded[1];
    for (int i = 0; i < 2; i++) {
        f.slope[i] = loaded[2 + i];
        f.slopes[i] = activations[i]->slope != NULL;
        f.clips[i] = activations[i]->clips;
        f.low[i] = _mm512_set1_ps(activations[i]->low);
        f.high[i] = _mm512_set1_ps(activations[i]->high);
    }
    f.inverse = _mm512_set1_ps(layer->out_inverse);
    f.least = _mm512_set1_ps((float)-layer->out_zero);
    f.most = _mm512_set1_ps((float)(255 - layer->out_zero));
    f.zero = _mm512_set1_epi32(layer->out_zero);
    f.residual = tile->residual, f.real = tile->real, f.coded = tile->coded;
    return f;
}

INLINE __m512 activated(const Finish *f, int i, __m512 x) {
    if (f->slopes[i]) {
        __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
        x = _mm512_mask_mov_ps(_mm512_mul_ps(x, f->slope[i]), positive, x);
    }
    if (f->clips[i])
        x = _mm512_min_ps(_mm512_max_ps(x, f->low[i]), f->high[i]);
    return x;
}

INLINE void finish(const Finish *f, Places at, __m512i sum) {
    __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), f->gain);
    x = _mm512_add_ps(x, f->bias);
    x = activated(f, 0, x);
    if (f->residual) {
        size_t second = at.both ? at.second : at.first;
        x = _mm512_add_ps(x, joined(f->residual + at.first, f->residual + second));
    }
    x = activated(f, 1, x);
    if (f->real) {
        _mm256_storeu_ps(f->real + at.first, _mm512_castps512_ps256(x));
        if (at.both)
            _mm256_storeu_ps(f->real + at.second, _mm512_extractf32x8_ps(x, 1));
    }
    if (f->coded) {
        __m512 t = _mm512_max_ps(_mm512_mul_ps(x, f->inverse), f->least);
        __m512i q = _mm512_cvtps_epi32(_mm512_min_ps(t, f->most));
        __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(q, f->zero));
        _mm_storel_epi64((__m128i *)(f->coded + at.first), bytes);
        if (at.both)
            _mm_storeh_pd((double *)(f->coded + at.second), _mm_castsi128_pd(bytes));
    }
}

INLINE Places places_of(const Layer *layer, int32_t channel, size_t position) {
    size_t area = (size_t)layer->hout * layer->wout;
    size_t first = ((size_t)(channel / BLOCK) * area + position) * BLOCK;
    return (Places){first, first + area * BLOCK, channel / BLOCK + 1 < blocks(layer->cout)};
}

/* ---- look-up ----
 *
 * Sub-spaces are taken in sets, whose tables lie in one or more vectors of 64 entries:
 *
 *   K    sub-spaces  vectors  controls
 *   16   4           1        2         four tables in a vector, two pairs of them
 *   32   2           1        1         two tables in a vector
 *   64   2           2        1         vpermi2b looks into both
 *   256  2           8        1         four vectors a table
 *
 * A control vector names, for 32 outputs, an entry in either table of a pair, side by side, so
 * that vpmaddubsw with ones adds the two. Packed: for every set the constants of its vectors
 * (codewords, what a table begins with, multipliers), then the controls [tap][control][group]. */

enum { LANES = 64, GROUP = 32, MOST_POSITIONS = 12, MOST_GROUPS = 4, MOST_SUMS = 24 };

typedef struct {
    int32_t spaces, vectors, controls; /* of a set */
    int32_t sets, halves, groups, taps;
    size_t constants, set_bytes; /* bytes of one vector's constants, and of a set */
} Sets;

static Sets sets_of(const Layer *layer) {
    Sets s;
    s.spaces = layer->count == 16 ? 4 : 2;
    s.vectors = layer->count == 64 ? 2 : layer->count == 256 ? 8 : 1;
    s.controls = layer->count == 16 ? 2 : 1;
    s.sets = (layer->spaces + s.spaces - 1) / s.spaces;
    s.halves = at_least(layer->length / 4, 1); /* of two channels, with two more times zero */
    s.groups = (layer->cout + GROUP - 1) / GROUP;
    s.taps = layer->kh * layer->kw;
    s.constants = (size_t)(4 * s.halves + 4 + 1) * 64;
    s.set_bytes =
        s.vectors * s.constants + (size_t)s.taps * s.controls * s.groups * LANES;
    return s;
}

static size_t lookup_packed_bytes(const Layer *layer) {
    Sets s = sets_of(layer);
    return s.sets * s.set_bytes;
}

/* which sub-space and codeword an entry of a vector is */
static void entry_of(const Layer *layer, const Sets *s, int32_t set, int32_t vector, int32_t entry,
                     int32_t *space, int32_t *codeword) {
    int32_t number = vector * LANES + entry;
    *space = set * s->spaces + number / layer->count;
    *codeword = number % layer->count;
}

static void constants_pack(const Layer *layer, const Sets *s, int32_t set, int32_t vector,
                           uint8_t *to) {
    int8_t *codewords = (int8_t *)to;
    int32_t *begins = (int32_t *)(to + (size_t)4 * s->halves * 64);
    int16_t *multipliers = (int16_t *)(begins + 64);
    for (int32_t lane = 0; lane < 4; lane++)
        for (int32_t j = 0; j < 4; j++)
            for (int32_t i = 0; i < 4; i++) {
                int32_t space, k, sum = 0;
                entry_of(layer, s, set, vector, lane * 16 + j * 4 + i, &space, &k);
                for (int32_t n = 0; n < layer->length; n++) {
                    int8_t c = 0;
                    if (space < layer->spaces)
                        c = layer->codewords[((size_t)space * layer->count + k) * layer->length + n];
                    codewords[((n / 4 * 4 + j) * 16 + lane * 4 + i) * 4 + n % 4] = c;
                    sum += c;
                }
                begins[j * 16 + lane * 4 + i] = (1 << layer->shift >> 1) - layer->zero * sum;
                /* after packing to 16 bits, a lane holds the entries of j = 0 and 1, then of
                 * 2 and 3; the multiplier is that of the lane */
                if (i < 2)
                    multipliers[lane * 8 + j * 2 + i] =
                        space < layer->spaces ? layer->multipliers[space] : 1;
            }
}

static void lookup_pack(const Layer *layer, const Weights *weights, uint8_t *packed) {
    Sets s = sets_of(layer);
    memset(packed, 0, lookup_packed_bytes(layer));
    for (int32_t set = 0; set < s.sets; set++) {
        uint8_t *to = packed + set * s.set_bytes;
        for (int32_t vector = 0; vector < s.vectors; vector++, to += s.constants)
            constants_pack(layer, &s, set, vector, to);
        for (int32_t n = 0; n < s.spaces; n++) {
            /* a sub-space that is not there has tables of zeros, and is looked up all the same */
            int there = set * s.spaces + n < layer->spaces;
            int32_t first = layer->count == 256 ? 0 : n * layer->count;
            size_t index = (size_t)(set * s.spaces + n) * s.taps * layer->cout;
            for (int32_t tap = 0; tap < s.taps; tap++) {
                uint8_t *control = to + (size_t)(tap * s.controls + n / 2) * s.groups * LANES;
                for (int32_t o = 0, few; o < layer->cout; o += few, index += (size_t)few) {
                    uint8_t some[LANES] = {0};
                    few = at_most(LANES, layer->cout - o);
                    if (there)
                        unpack_indices(layer, weights, index, (size_t)few, some);
                    for (int32_t i = 0; i < few; i++)
                        control[2 * (o + i) + n % 2] = (uint8_t)(first + some[i]);
                }
            }
        }
    }
}

typedef struct {
    int32_t width; /* of a table row, in positions */
    size_t row;    /* bytes */
    int32_t outputs, together; /* sets of one pass over the sums */
    int wide; /* whether sums of 16 bits are not enough */
    size_t set_ring, ring, sums, totals;
} Sizes;

static Sizes sizes_of(const Layer *layer, const Sets *s, int32_t rows) {
    Sizes z;
    z.width = padded_width(layer);
    z.row = (size_t)z.width * s->vectors * LANES;
    z.outputs = s->groups * GROUP;
    z.wide = s->sets * s->spaces * s->taps > MAX_SUM;
    /* as many as leave the tables in the first-level cache */
    z.together = at_most(at_least((int32_t)((20 << 10) / (layer->kh * z.row)), 1), 4);
    z.together = at_most(z.together, at_least(MAX_SUM / (s->spaces * s->taps), 1));
    z.set_ring = (size_t)(layer->kh + 1) * z.row;
    z.ring = z.together * z.set_ring;
    z.sums = aligned((size_t)rows * layer->wout * z.outputs * 2);
    z.totals = z.wide ? 2 * z.sums : 0;
    return z;
}

/* as many as leave the sums in the second-level cache */
static int32_t lookup_rows(const Layer *layer) {
    Sets s = sets_of(layer);
    size_t row = (size_t)layer->wout * s.groups * GROUP * 2;
    return at_least(layer->kh * 2, (int32_t)((256 << 10) / row));
}

static size_t lookup_scratch(const Layer *layer, int32_t rows) {
    Sets s = sets_of(layer);
    Sizes z = sizes_of(layer, &s, rows);
    return z.ring + z.sums + z.totals;
}

INLINE __m512i load(const void *at) { return _mm512_load_si512(at); }

/* dwords of the four sub-spaces (or two, or one) of a vector, a lane or more each */
INLINE __m512i spread(int32_t count, const uint8_t *const *q, size_t at) {
    int32_t v[4];
    memcpy(&v[0], q[0] + at, 4);
    if (count >= 64)
        return _mm512_set1_epi32(v[0]);
    memcpy(&v[1], q[1] + at, 4);
    if (count == 32)
        return _mm512_mask_set1_epi32(_mm512_set1_epi32(v[0]), 0xff00, v[1]);
    memcpy(&v[2], q[2] + at, 4);
    memcpy(&v[3], q[3] + at, 4);
    __m512i four = _mm512_castsi128_si512(_mm_setr_epi32(v[0], v[1], v[2], v[3]));
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_epi32(lanes, four);
}

/* one vector of the tables of a row of positions */
INLINE void build_vector(int32_t count, int32_t halves, int32_t shift, const uint8_t *constants,
                         const uint8_t *const *q, int32_t positions, uint8_t *to, size_t step) {
    __m512i c[8], begin[4], multiplier;
    for (int i = 0; i < 4 * halves; i++)
        c[i] = load(constants + 64 * i);
    constants += (size_t)4 * halves * 64;
    UNROLL
    for (int j = 0; j < 4; j++)
        begin[j] = load(constants + 64 * j);
    multiplier = load(constants + 256);
    for (int32_t x = 0; x < positions; x++, to += step) {
        __m512i t[4], values = spread(count, q, (size_t)x * BLOCK);
        UNROLL
        for (int j = 0; j < 4; j++)
            t[j] = _mm512_dpbusd_epi32(begin[j], values, c[j]);
        if (halves == 2) {
            values = spread(count, q, (size_t)x * BLOCK + 4);
            UNROLL
            for (int j = 0; j < 4; j++)
                t[j] = _mm512_dpbusd_epi32(t[j], values, c[4 + j]);
        }
        UNROLL
        for (int j = 0; j < 4; j++)
            t[j] = _mm512_srai_epi32(t[j], shift);
        __m512i low = _mm512_mulhrs_epi16(_mm512_packs_epi32(t[0], t[1]), multiplier);
        __m512i high = _mm512_mulhrs_epi16(_mm512_packs_epi32(t[2], t[3]), multiplier);
        _mm512_store_si512(to, _mm512_packs_epi16(low, high));
    }
}

static void build_row(const Layer *layer, const Sets *s, const Sizes *z, const Tile *tile,
                      int32_t set, int32_t y, const uint8_t *constants, uint8_t *row) {
    size_t step = (size_t)s->vectors * LANES, plane = (size_t)layer->hin * layer->win * BLOCK;
    int32_t inside = at_most(layer->win, z->width - layer->left);
    memset(row, 0, (size_t)layer->left * step);
    if (z->width > layer->left + inside)
        memset(row + (size_t)(layer->left + inside) * step, 0,
               (size_t)(z->width - layer->left - inside) * step);
    row += (size_t)layer->left * step;
    for (int32_t vector = 0; vector < s->vectors; vector++, constants += s->constants) {
        const uint8_t *q[4];
        for (int32_t n = 0; n < 4; n++) {
            int32_t space, codeword;
            entry_of(layer, s, set, vector, layer->count >= 64 ? 0 : n * layer->count % LANES,
                     &space, &codeword);
            space = at_most(space, layer->spaces - 1); /* where there is none, codewords are 0 */
            int32_t channel = space * layer->length;
            q[n] = tile->in + (channel / BLOCK) * plane + (size_t)y * layer->win * BLOCK +
                   channel % BLOCK;
        }
        uint8_t *to = row + (size_t)vector * LANES;
#define BUILD(HALVES, SHIFT)                                                                       \
    if (layer->count == 16)                                                                        \
        build_vector(16, HALVES, SHIFT, constants, q, inside, to, step);                           \
    else if (layer->count == 32)                                                                   \
        build_vector(32, HALVES, SHIFT, constants, q, inside, to, step);                           \
    else                                                                                           \
        build_vector(64, HALVES, SHIFT, constants, q, inside, to, step);
        if (layer->length == 8) {
            BUILD(2, 3)
        } else if (layer->length == 4) {
            BUILD(1, 2)
        } else {
            BUILD(1, 1)
        }
#undef BUILD
    }
}

/* the vectors of one position's tables. The barrier keeps compilers from loading them again for
 * every group: loads are what there are fewest of. */
#define KEPT(v) __asm__("" : "+v"(v))

INLINE void tables_of(int32_t count, const uint8_t *at, __m512i t[8]) {
    int vectors = count <= 32 ? 1 : count == 64 ? 2 : 8;
    UNROLL
    for (int n = 0; n < vectors; n++) {
        t[n] = load(at + 64 * n);
        KEPT(t[n]);
    }
}

/* 64 entries: for 32 outputs one of either table of a pair */
INLINE __m512i looked_up(int32_t count, const __m512i t[8], __m512i control) {
    if (count <= 32)
        return _mm512_permutexvar_epi8(control, t[0]);
    if (count == 64)
        return _mm512_permutex2var_epi8(t[0], control, t[1]);
    __mmask64 upper = _mm512_movepi8_mask(control);
    __m512i part[2];
    UNROLL
    for (int n = 0; n < 2; n++) {
        __m512i low = _mm512_permutex2var_epi8(t[4 * n], control, t[4 * n + 1]);
        __m512i high = _mm512_permutex2var_epi8(t[4 * n + 2], control, t[4 * n + 3]);
        part[n] = _mm512_mask_blend_epi8(upper, low, high);
    }
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, part[0], part[1]);
}

typedef struct {
    const uint8_t *const *rows; /* tables by kernel row, from the first position of the block */
    const uint8_t *control;     /* of the first tap, from the first group of the block */
    int32_t kh, kw;
    size_t taps_step, control_step; /* bytes of controls between taps and between controls */
    size_t position_step, tap_step; /* bytes of tables between outputs and between taps */
    int32_t sets;               /* that are added in one pass over the sums */
    size_t sets_rows;           /* bytes of tables between sets */
    size_t sets_controls;       /* and of controls */
    int16_t *sums;
    size_t sums_step; /* between positions */
} Block;

INLINE void add_block(int32_t count, int32_t positions, int32_t groups, const Block *b) {
    __m512i sum[MOST_POSITIONS][MOST_GROUPS];
    const __m512i ones = _mm512_set1_epi8(1);
    UNROLL
    for (int p = 0; p < positions; p++)
        UNROLL
        for (int g = 0; g < groups; g++)
            sum[p][g] = load(b->sums + p * b->sums_step + g * GROUP);
    for (int32_t row = 0; row < b->sets * b->kh; row++) {
        int32_t set = row / b->kh, ky = row % b->kh;
        const uint8_t *tables = b->rows[ky] + set * b->sets_rows;
        const uint8_t *control =
            b->control + set * b->sets_controls + (size_t)(ky * b->kw) * b->taps_step;
        for (int32_t kx = 0; kx < b->kw; kx++, tables += b->tap_step, control += b->taps_step)
            for (int pair = 0; pair < (count == 16 ? 2 : 1); pair++) {
                __m512i c[MOST_GROUPS];
                UNROLL
                for (int g = 0; g < groups; g++)
                    c[g] = load(control + pair * b->control_step + g * LANES);
                UNROLL
                for (int p = 0; p < positions; p++) {
                    __m512i t[8];
                    tables_of(count, tables + p * b->position_step, t);
                    UNROLL
                    for (int g = 0; g < groups; g++) {
                        __m512i found = looked_up(count, t, c[g]);
                        sum[p][g] =
                            _mm512_add_epi16(sum[p][g], _mm512_maddubs_epi16(ones, found));
                    }
                }
            }
    }
    UNROLL
    for (int p = 0; p < positions; p++)
        UNROLL
        for (int g = 0; g < groups; g++)
            _mm512_store_si512(b->sums + p * b->sums_step + g * GROUP, sum[p][g]);
}

#define CASE(COUNT, POSITIONS, GROUPS)                                                             \
    case POSITIONS * 8 + GROUPS: add_block(COUNT, POSITIONS, GROUPS, b); break;
#define CASES(COUNT, POSITIONS)                                                                    \
    CASE(COUNT, POSITIONS, 1) CASE(COUNT, POSITIONS, 2) CASE(COUNT, POSITIONS, 3)                  \
    CASE(COUNT, POSITIONS, 4)
#define FEWER(COUNT, POSITIONS) CASE(COUNT, POSITIONS, 1) CASE(COUNT, POSITIONS, 2)
#define ADD(COUNT)                                                                                 \
    static void add_##COUNT(const Block *b, int32_t positions, int32_t groups) {                   \
        switch (positions * 8 + groups) {                                                          \
            CASES(COUNT, 1) CASES(COUNT, 2) CASES(COUNT, 3)                                        \
            CASES(COUNT, 4) CASES(COUNT, 5) CASES(COUNT, 6)                                        \
            FEWER(COUNT, 7) FEWER(COUNT, 8) FEWER(COUNT, 9)                                        \
            FEWER(COUNT, 10) FEWER(COUNT, 11) FEWER(COUNT, 12)                                     \
        }                                                                                          \
    }
ADD(16)
ADD(32)
ADD(64)
ADD(256)

/* adds one set of sub-spaces to the sums of one row of outputs */
static void add_row(const Layer *layer, const Sets *s, const Sizes *z, const uint8_t *const *rows,
                    const uint8_t *controls, int32_t sets, int16_t *sums) {
    void (*add)(const Block *, int32_t, int32_t) = layer->count == 16   ? add_16
                                                   : layer->count == 32 ? add_32
                                                   : layer->count == 64 ? add_64
                                                                        : add_256;
    Block b;
    const uint8_t *from[1024];
    b.rows = from, b.kh = layer->kh, b.kw = layer->kw;
    b.control_step = (size_t)s->groups * LANES;
    b.taps_step = s->controls * b.control_step;
    b.tap_step = (size_t)s->vectors * LANES;
    b.position_step = b.tap_step * layer->sx;
    b.sums_step = (size_t)z->outputs;
    b.sets = sets, b.sets_rows = z->set_ring, b.sets_controls = s->set_bytes;
    for (int32_t group = 0, groups; group < s->groups; group += groups) {
        groups = at_most(MOST_GROUPS, s->groups - group);
        /* sums of a block stay in registers: few groups, many positions, or the other way round */
        int32_t most = groups > 2 ? MOST_SUMS / MOST_GROUPS : MOST_POSITIONS;
        int32_t parts = (layer->wout + most - 1) / most;
        for (int32_t part = 0; part < parts; part++) {
            int32_t x0 = layer->wout * part / parts, x1 = layer->wout * (part + 1) / parts;
            for (int32_t ky = 0; ky < layer->kh; ky++)
                from[ky] = rows[ky] + x0 * b.position_step;
            b.control = controls + (size_t)group * LANES;
            b.sums = sums + (size_t)x0 * z->outputs + group * GROUP;
            add(&b, x1 - x0, groups);
        }
    }
}

static void flush(int16_t *sums, int32_t *totals, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __m512i sum = _mm512_cvtepi16_epi32(_mm256_load_si256((const __m256i *)(sums + i)));
        _mm512_store_si512(totals + i, _mm512_add_epi32(load(totals + i), sum));
    }
    memset(sums, 0, n * sizeof *sums);
}

static void lookup_finish(const Layer *layer, const Tile *tile, const Sizes *z,
                          const int16_t *sums, const int32_t *totals) {
    size_t positions = (size_t)(tile->y1 - tile->y0) * layer->wout;
    size_t first = (size_t)tile->y0 * layer->wout;
    for (int32_t channel = 0; channel < layer->cout; channel += 16) {
        Finish f = finish_of(layer, tile, channel, 0);
        Places places = places_of(layer, channel, first);
        for (size_t p = 0; p < positions; p++) {
            size_t at = p * z->outputs + channel;
            __m512i sum = _mm512_cvtepi16_epi32(_mm256_load_si256((const __m256i *)(sums + at)));
            if (totals)
                sum = _mm512_add_epi32(sum, load(totals + at));
            finish(&f, places, sum);
            places.first += BLOCK, places.second += BLOCK;
        }
    }
}

static void lookup(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    Sets s = sets_of(layer);
    int32_t count = tile->y1 - tile->y0, added = 0;
    Sizes z = sizes_of(layer, &s, count);
    int16_t *sums = (int16_t *)(scratch + z.ring);
    int32_t *totals = z.wide ? (int32_t *)(scratch + z.ring + z.sums) : NULL;
    size_t n = z.sums / 2, row_sums = (size_t)layer->wout * z.outputs;
    /* behind the ring of rows of every set lies one for what is outside of the image */
    for (int32_t i = 0; i < z.together; i++)
        memset(scratch + i * z.set_ring + (size_t)layer->kh * z.row, 0, z.row);
    memset(sums, 0, z.sums);
    if (totals)
        memset(totals, 0, z.totals);
    for (int32_t set = 0, sets; set < s.sets; set += sets) {
        const uint8_t *packed = layer->packed + set * s.set_bytes;
        sets = at_most(z.together, s.sets - set);
        if (added + sets * s.spaces * s.taps > MAX_SUM) {
            flush(sums, totals, n);
            added = 0;
        }
        int32_t built = 0; /* input rows before this one are built, or not needed any more */
        for (int32_t i = 0; i < count; i++) {
            const uint8_t *rows[1024];
            for (int32_t ky = 0; ky < layer->kh; ky++) {
                int32_t y = (tile->y0 + i) * layer->sy + ky - layer->top;
                int inside = y >= 0 && y < layer->hin;
                uint8_t *row = scratch + (size_t)(inside ? y % layer->kh : layer->kh) * z.row;
                rows[ky] = row;
                if (!inside || y < built)
                    continue;
                built = y + 1;
                for (int32_t t = 0; t < sets; t++)
                    build_row(layer, &s, &z, tile, set + t, y, packed + t * s.set_bytes,
                              row + t * z.set_ring);
            }
            add_row(layer, &s, &z, rows, packed + s.vectors * s.constants, sets,
                    sums + i * row_sums);
        }
        added += sets * s.spaces * s.taps;
    }
    lookup_finish(layer, tile, &z, sums, totals);
}

/* ---- dense: [blocks of 16 outputs][taps][fours of channels][16][4], sums first ---- */

enum { OUTPUTS = 16, FEW = 6 };

static size_t dense_block_bytes(const Layer *layer) {
    return (size_t)layer->kh * layer->kw * ((layer->cin + 3) / 4) * 64 + 64;
}

static size_t dense_packed_bytes(const Layer *layer) {
    return (size_t)((layer->cout + OUTPUTS - 1) / OUTPUTS) * dense_block_bytes(layer);
}

static void dense_pack(const Layer *layer, const Weights *weights, uint8_t *packed) {
    int32_t taps = layer->kh * layer->kw, fours = (layer->cin + 3) / 4;
    memset(packed, 0, dense_packed_bytes(layer));
    for (int32_t o = 0; o < layer->cout; o++) {
        uint8_t *block = packed + (size_t)(o / OUTPUTS) * dense_block_bytes(layer);
        int32_t *begin = (int32_t *)block + o % OUTPUTS;
        int8_t *to = (int8_t *)block + 64 + o % OUTPUTS * 4;
        const int8_t *from = weights->dense + (size_t)o * layer->cin * taps;
        for (int32_t c = 0; c < layer->cin; c++)
            for (int32_t tap = 0; tap < taps; tap++) {
                int8_t w = from[c * taps + tap];
                to[((size_t)tap * fours + c / 4) * 64 + c % 4] = w;
                *begin -= layer->zero * w;
            }
    }
}

static int32_t dense_rows(const Layer *layer) {
    return at_least(1, 4096 / at_least(1, layer->wout));
}

static size_t dense_scratch(const Layer *layer, int32_t rows) { return padded_bytes(layer, rows); }

INLINE void dense_block(const Layer *layer, const Padded *in, const uint8_t *const *q,
                        const uint8_t *weights, int positions, int outputs,
                        __m512i sum[FEW][4]) {
    int32_t fours = (layer->cin + 3) / 4;
    size_t step = dense_block_bytes(layer);
    __m512i s[FEW][4];
    UNROLL
    for (int g = 0; g < outputs; g++)
        UNROLL
        for (int p = 0; p < positions; p++)
            s[p][g] = load(weights + g * step);
    weights += 64;
    for (int32_t ky = 0; ky < layer->kh; ky++)
        for (int32_t kx = 0; kx < layer->kw; kx++) {
            size_t at = ky * in->row + (size_t)kx * BLOCK;
            for (int32_t four = 0; four < fours; four++, weights += 64) {
                __m512i w[4];
                UNROLL
                for (int g = 0; g < outputs; g++)
                    w[g] = load(weights + g * step);
                UNROLL
                for (int p = 0; p < positions; p++) {
                    int32_t four_values;
                    memcpy(&four_values, q[p] + at + (size_t)(four & 1) * 4, 4);
                    __m512i values = _mm512_set1_epi32(four_values);
                    UNROLL
                    for (int g = 0; g < outputs; g++)
                        s[p][g] = _mm512_dpbusd_epi32(s[p][g], values, w[g]);
                }
                at += four & 1 ? in->plane : 0;
            }
        }
    UNROLL
    for (int g = 0; g < outputs; g++)
        UNROLL
        for (int p = 0; p < positions; p++)
            sum[p][g] = s[p][g];
}

#define DENSE(POSITIONS, GROUPS)                                                                   \
    case POSITIONS * 8 + GROUPS:                                                                   \
        dense_block(layer, in, q, weights, POSITIONS, GROUPS, sum);                                \
        break;
#define DENSE_GROUPS(POSITIONS)                                                                    \
    DENSE(POSITIONS, 1) DENSE(POSITIONS, 2) DENSE(POSITIONS, 3) DENSE(POSITIONS, 4)

static void dense_call(const Layer *layer, const Padded *in, const uint8_t *const *q,
                       const uint8_t *weights, int positions, int outputs, __m512i sum[FEW][4]) {
    switch (positions * 8 + outputs) {
        DENSE_GROUPS(1)
        DENSE_GROUPS(2)
        DENSE_GROUPS(3)
        DENSE_GROUPS(4)
        DENSE_GROUPS(5)
        DENSE_GROUPS(6)
    }
}

static void dense(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    Padded in = padded(layer, tile, scratch);
    int32_t positions = (tile->y1 - tile->y0) * layer->wout;
    int32_t groups = (layer->cout + OUTPUTS - 1) / OUTPUTS;
    size_t first = (size_t)tile->y0 * layer->wout;
    for (int32_t group = 0; group < groups; group += 4) {
        int32_t together = at_most(4, groups - group);
        const uint8_t *weights = layer->packed + group * dense_block_bytes(layer);
        Finish f[4];
        for (int32_t g = 0; g < together; g++)
            f[g] = finish_of(layer, tile, (group + g) * OUTPUTS, 0);
        int32_t x = 0, y = 0;
        for (int32_t p = 0; p < positions; p += FEW) {
            int32_t few = at_most(FEW, positions - p);
            const uint8_t *q[FEW];
            for (int32_t n = 0; n < few; n++) {
                q[n] = in.start + (size_t)y * layer->sy * in.row + (size_t)x * layer->sx * BLOCK;
                if (++x == layer->wout)
                    x = 0, y++;
            }
            __m512i sum[FEW][4];
            dense_call(layer, &in, q, weights, few, together, sum);
            for (int32_t g = 0; g < together; g++)
                for (int32_t n = 0; n < few; n++)
                    finish(&f[g], places_of(layer, (group + g) * OUTPUTS, first + p + n),
                           sum[n][g]);
        }
    }
}

/* ---- depth-wise: four positions of eight channels at once ---- */

INLINE __m512i centred(const uint8_t *q, size_t step, __m512i zero) {
    __m256i bytes;
    if (step == BLOCK) {
        bytes = _mm256_loadu_si256((const __m256i *)q);
    } else {
        int64_t v[4];
        for (int i = 0; i < 4; i++)
            memcpy(&v[i], q + i * step, 8);
        bytes = _mm256_setr_epi64x(v[0], v[1], v[2], v[3]);
    }
    return _mm512_sub_epi16(_mm512_cvtepu8_epi16(bytes), zero);
}

static size_t depthwise_scratch(const Layer *layer, int32_t rows) {
    return padded_bytes(layer, rows) + 256; /* vectors reach beyond the last position */
}

INLINE void depthwise_four(const Layer *layer, const Padded *in, const uint8_t *q,
                           const int8_t *weights, __m512i sum[2]) {
    const __m512i zero = _mm512_set1_epi16((int16_t)layer->zero);
    size_t step = (size_t)layer->sx * BLOCK;
    __m512i low = _mm512_setzero_si512(), high = low, before = low, w_before = low;
    int32_t tap = 0, taps = layer->kh * layer->kw;
    for (int32_t ky = 0; ky < layer->kh; ky++)
        for (int32_t kx = 0; kx < layer->kw; kx++, tap++) {
            __m512i v = centred(q + ky * in->row + (size_t)kx * BLOCK, step, zero);
            __m128i eight = _mm_loadl_epi64((const __m128i *)(weights + tap * BLOCK));
            __m512i w = _mm512_broadcast_i32x4(_mm_cvtepi8_epi16(eight));
            if (tap % 2 == 0 && tap + 1 < taps) {
                before = v, w_before = w;
                continue;
            }
            if (tap % 2 == 0) /* the last of an odd number */
                before = w_before = _mm512_setzero_si512();
            low = _mm512_add_epi32(low, _mm512_madd_epi16(_mm512_unpacklo_epi16(before, v),
                                                          _mm512_unpacklo_epi16(w_before, w)));
            high = _mm512_add_epi32(high, _mm512_madd_epi16(_mm512_unpackhi_epi16(before, v),
                                                            _mm512_unpackhi_epi16(w_before, w)));
        }
    /* low: channels 0..3 of four positions, high: 4..7 */
    const __m512i front = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i back = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    sum[0] = _mm512_permutex2var_epi64(low, front, high);
    sum[1] = _mm512_permutex2var_epi64(low, back, high);
}

static void depthwise(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    Padded in = padded(layer, tile, scratch);
    size_t area = (size_t)layer->hout * layer->wout;
    int32_t taps = layer->kh * layer->kw, last = layer->wout - 4;
    for (int32_t block = 0; block < blocks(layer->cout); block++) {
        const int8_t *weights = (const int8_t *)layer->packed + (size_t)block * taps * BLOCK;
        Finish f = finish_of(layer, tile, block * BLOCK, 1);
        for (int32_t y = tile->y0; y < tile->y1; y++) {
            const uint8_t *row =
                in.start + block * in.plane + (size_t)(y - tile->y0) * layer->sy * in.row;
            size_t at = (block * area + (size_t)y * layer->wout) * BLOCK;
            for (int32_t x = 0; x < layer->wout; x += 4) {
                int32_t from = last < 0 ? 0 : at_most(x, last); /* the last four overlap */
                const uint8_t *q = row + (size_t)from * layer->sx * BLOCK;
                __m512i sum[2];
                depthwise_four(layer, &in, q, weights, sum);
                for (int half = 0; half < 2; half++) {
                    int32_t p = from + 2 * half;
                    if (p >= layer->wout)
                        break;
                    size_t place = at + (size_t)p * BLOCK;
                    finish(&f, (Places){place, place + BLOCK, p + 1 < layer->wout}, sum[half]);
                }
            }
        }
    }
}

const Kernels kernels_avx512 = {
    "avx512",
    {lookup_packed_bytes, lookup_pack, lookup_rows, lookup_scratch, lookup},
    {dense_packed_bytes, dense_pack, dense_rows, dense_scratch, dense},
    {depthwise_packed_bytes, depthwise_pack, dense_rows, depthwise_scratch, depthwise},
};

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
