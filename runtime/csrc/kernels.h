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
    int32_t depthwise;

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

/* Index number i of a bit-packed stream (runtime/packing.py). */
static inline uint32_t packed_index(const uint8_t *stream, int32_t bits, size_t i) {
    size_t bit = i * (size_t)bits;
    uint32_t value = stream[bit >> 3];
    if ((bit & 7) + (size_t)bits > 8)
        value |= (uint32_t)stream[(bit >> 3) + 1] << 8;
    return value >> (bit & 7) & ((1u << bits) - 1);
}

#endif
