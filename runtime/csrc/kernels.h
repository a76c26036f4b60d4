/* What a kernel is given, and the one list of kernels that every instruction set fills in.
 *
 * The arithmetic is defined at the head of runtime/native/program.py. All of it is exact in
 * integers, or float32 operations in a fixed order with contraction off, so that every
 * instruction set gives the same bits.
 *
 * Activations lie in blocks of eight channels: [channels / 8][height][width][8]. */
#ifndef EDGEID_KERNELS_H
#define EDGEID_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { BLOCK = 8, CHANNEL_ROUND = 64, MAX_SUM = 255 };
/* CHANNEL_ROUND: per-channel arrays of a layer are padded with zeros to a multiple of it.
 * MAX_SUM: so many table entries of -128..127 fit into an int16 sum. */

typedef struct {
    const float *slope; /* a channel, or NULL */
    float low, high;
    int clips;
} Activation;

/* A convolution; a fully connected layer is one with one position. */
typedef struct {
    int32_t cin, hin, win, cout, hout, wout;
    int32_t kh, kw, sy, sx, top, left; /* kernel, stride, padding */
    int32_t zero;                      /* of the input */

    int32_t count, length, spaces, shift; /* of codebooks: K, r, sub-spaces, log2 r */
    const int8_t *codewords;              /* [spaces][count][length] */
    const int16_t *multipliers;           /* [spaces] */
    uint8_t *packed;                      /* indices or weights as this instruction set wants them */

    const float *gain, *bias; /* [cout] */
    Activation first, second;
    int32_t out_zero;
    float out_inverse;
} Layer;

/* The part of one image that a call computes: rows y0 to y1 of the output. */
typedef struct {
    const uint8_t *in;
    const float *residual; /* or NULL */
    float *real;           /* or NULL */
    uint8_t *coded;        /* or NULL */
    int32_t y0, y1;
} Tile;

/* How the weights of a layer are stored before packing. */
typedef struct {
    const uint8_t *indices; /* [spaces][kh][kw][cout] bit-packed, for look-up */
    int32_t bits;
    const int8_t *dense; /* [cout][cin or 1][kh][kw], for the others */
} Weights;

typedef struct {
    /* bytes of the packed weights; and packing them, into memory aligned to 64 */
    size_t (*packed_bytes)(const Layer *);
    void (*pack)(const Layer *, const Weights *, uint8_t *packed);
    /* rows of a tile that this kernel likes best, and the scratch bytes for so many rows */
    int32_t (*rows)(const Layer *);
    size_t (*scratch_bytes)(const Layer *, int32_t rows);
    /* computes the tile; scratch is aligned to 64 */
    void (*run)(const Layer *, const Tile *, uint8_t *scratch);
} Kernel;

typedef struct {
    const char *name;
    Kernel lookup, dense, depthwise;
} Kernels;

extern const Kernels kernels_portable;
#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kernels_avx2, kernels_avx512;
#endif
#if defined(__aarch64__)
extern const Kernels kernels_neon, kernels_neon_dotprod;
#endif

static inline int32_t rounded_up(int32_t n, int32_t to) { return (n + to - 1) / to * to; }
static inline size_t aligned(size_t bytes) { return (bytes + 63) & ~(size_t)63; }
static inline int32_t blocks(int32_t channels) { return (channels + BLOCK - 1) / BLOCK; }
static inline int32_t at_most(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t at_least(int32_t a, int32_t b) { return a > b ? a : b; }

/* Indices number first to first + n of the bit-packed stream of a layer (runtime/packing.py). */
static inline void unpack_indices(const Layer *layer, const Weights *weights, size_t first,
                                  size_t n, uint8_t *to) {
    size_t bits = (size_t)weights->bits;
    size_t all = (size_t)layer->spaces * layer->kh * layer->kw * layer->cout;
    size_t bytes = (all * bits + 7) / 8;
    const uint8_t *stream = weights->indices;
    uint64_t mask = ((uint64_t)1 << bits) - 1;
    for (size_t i = 0; i < n;) {
        size_t bit = (first + i) * bits, byte = bit >> 3;
        uint64_t value = 0;
        /* lowest bits first, on machines of either byte order; on most this is one load */
        const uint8_t *s = stream + byte;
        if (bytes - byte >= 8)
            value = (uint64_t)s[0] | (uint64_t)s[1] << 8 | (uint64_t)s[2] << 16 |
                    (uint64_t)s[3] << 24 | (uint64_t)s[4] << 32 | (uint64_t)s[5] << 40 |
                    (uint64_t)s[6] << 48 | (uint64_t)s[7] << 56;
        else
            for (size_t k = 0; k < bytes - byte; k++)
                value |= (uint64_t)s[k] << (8 * k);
        value >>= bit & 7;
        /* as many as surely lie in what was read */
        for (size_t k = 0; k < 56 / bits && i < n; k++, i++, value >>= bits)
            to[i] = (uint8_t)(value & mask);
    }
}

#endif
