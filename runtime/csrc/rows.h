/* Look-up by adding rows: the form for machines that cannot look up 64 bytes at once.
 *
 * Of one sub-space the tables of many positions are rows, [codeword][position]; an output
 * channel adds the rows that its indices name, each shifted by its kernel position. Positions
 * of a strided convolution are sorted by their remainder ("phase"), so that the positions of
 * one row of outputs lie side by side for every kernel position. */
#ifndef EDGEID_ROWS_H
#define EDGEID_ROWS_H

#include "kernels.h"

typedef struct {
    int32_t rows;           /* of the output */
    int32_t phases_y, phases_x;
    int32_t width, height;  /* of one phase */
    int32_t positions;      /* of all phases */
    int32_t stride;         /* positions of a table row, with room for a vector more */
    int32_t outputs;        /* positions of a sum: rows * width */
    int32_t sums;           /* the same, rounded up to whole vectors */
    int32_t built;          /* positions whose tables are built: all that an output may read */
} Rows;

enum { ROW_VECTOR = 32 }; /* positions that a kernel may compute at once */

/* What an instruction set brings along. A table has one or two bytes an entry. */
typedef struct {
    int32_t entry_bytes;
    /* values[j][p] = q[p * step + j] - zero, of n positions and `length` channels */
    void (*spread)(const uint8_t *q, size_t step, int32_t n, int32_t length, int32_t zero,
                   int16_t *values, size_t stride);
    /* tables of one sub-space, of the first n positions, a multiple of ROW_VECTOR.
     * values: [length][stride] int16, q - zero */
    void (*build)(const Layer *, int32_t space, const int16_t *values, int32_t stride, int32_t n,
                  void *tables);
    /* adds to the sums of outputs [cout][sums] the rows named by indices [cout][taps];
     * offsets: where in a row each kernel position begins */
    void (*add)(const Layer *, const Rows *, const void *tables, const uint8_t *indices,
                const int32_t *offsets, uint16_t *sums);
    /* moves the sums of `added` entries each into totals [cout][sums], and clears them */
    void (*flush)(const Layer *, const Rows *, uint16_t *sums, int32_t added, int32_t *totals);
    /* epilogue of totals [cout][sums] */
    void (*finish)(const Layer *, const Rows *, const int32_t *totals, const Tile *);
    /* adds to totals [cout] what one position q of a sub-space gives: its table, from codewords
     * [length][count], looked up by indices [cout]. Vectors of indices may be read */
    void (*add_one)(const Layer *, int32_t space, const int8_t *codewords, const uint8_t *q,
                    const uint8_t *indices, int32_t *totals);
} RowKernel;

size_t rows_packed_bytes(const Layer *);
void rows_pack(const Layer *, const Weights *, uint8_t *packed);
int32_t rows_per_tile(const Layer *);
size_t rows_scratch_bytes(const Layer *, int32_t rows, const RowKernel *);
void rows_run(const Layer *, const Tile *, uint8_t *scratch, const RowKernel *);

/* portable.c */
void portable_finish(const Layer *, const Rows *, const int32_t *totals, const Tile *);
void portable_spread(const uint8_t *q, size_t step, int32_t n, int32_t length, int32_t zero,
                     int16_t *values, size_t stride);
void portable_add_one(const Layer *, int32_t space, const int8_t *codewords, const uint8_t *q,
                      const uint8_t *indices, int32_t *totals);

/* the tables of one position, from codewords [length][count] */
static inline __attribute__((always_inline)) void table_of_one(const Layer *layer,
                                                               const int8_t *codewords,
                                                               const uint8_t *q, int32_t m,
                                                               int16_t *table) {
    int32_t count = layer->count, sums[256];
    for (int32_t k = 0; k < count; k++)
        sums[k] = 1 << layer->shift >> 1;
    for (int32_t j = 0; j < layer->length; j++, codewords += count) {
        int32_t value = q[j] - layer->zero;
        for (int32_t k = 0; k < count; k++)
            sums[k] += value * codewords[k];
    }
    for (int32_t k = 0; k < count; k++) {
        int32_t v = ((sums[k] >> layer->shift) * m + (1 << 14)) >> 15;
        v = v > 127 ? 127 : v;
        table[k] = (int16_t)(v < -128 ? -128 : v);
    }
}

#endif
