/* A program: records that say what to compute, checked once, then run without allocation. */
#ifndef EDGEID_PROGRAM_H
#define EDGEID_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

#include "kernels.h"
#include "pool.h"

/* What a record says; runtime/native/records.py writes them in this order. Slots are numbers
 * of activations, weights are byte offsets; -1 stands for none. */
enum {
    F_KIND,
    F_INPUT, F_SECOND, F_REAL, F_CODED, /* slots; SECOND is a residual or the second input */
    F_CIN, F_HIN, F_WIN, F_COUT, F_HOUT, F_WOUT,
    F_KH, F_KW, F_SY, F_SX, F_TOP, F_LEFT,
    F_GROUPS, F_ZERO, F_OUT_ZERO,
    F_COUNT, F_LENGTH, F_SPACES,
    F_CODEWORDS, F_MULTIPLIERS, F_INDICES, F_WEIGHTS, F_GAIN, F_BIAS, F_SLOPE1, F_SLOPE2,
    F_CONSTANTS, /* float32: low and high of both activations, 1 / scale of the output, eps */
    F_CHANNEL,   /* where a part of a concatenation begins */
    F_LEVEL,     /* number of the instruction set, as kernel_levels counts, or -1: the program's */
    FIELDS
};

enum {
    PACK, LOOKUP, DENSE, DEPTHWISE, FLOAT_CONV, SUM, PRODUCT, LARGEST, MEAN, JOIN, RESHAPE,
    NORMALISE, QUANTISE, KINDS
};

typedef struct Program Program;

/* Builds a program.
 *
 * records: [steps][FIELDS]; slots: [slot_count][2], byte offset and size for one image;
 * input and output: values of one image; result: slot of the output.
 * Nothing is kept of what is passed in. Returns NULL and says why in `problem` where a record
 * is not valid or memory is short; every offset and size is checked before it is used. */
Program *program_new(const int64_t *records, int64_t steps, const int64_t *slots,
                     int64_t slot_count, const uint8_t *blob, int64_t blob_bytes, int64_t input,
                     int64_t output, int64_t result, const Kernels *, char problem[160]);
void program_free(Program *);

int64_t program_input(const Program *);
int64_t program_output(const Program *);
int64_t program_steps(const Program *);
int64_t program_bytes(const Program *);

enum { MOST_TOGETHER = 4 };

/* Images [count][input] -> [count][output] by one program. */
typedef struct {
    Program *program;
    const float *input;
    float *output;
    int64_t count;
} Call;

/* Computes up to MOST_TOGETHER calls of different programs side by side: threads share out the
 * steps of all. seconds: by number of step, added to, or NULL. Returns 0, or -1 where memory is
 * short. Safe from several threads at once. */
int programs_run(Pool *, const Call *calls, int32_t count, double *seconds);

/* dispatch.c: the kernels for a level, or NULL where this machine does not have it; NULL asks
 * for the best. */
const Kernels *kernels_for(const char *isa);
/* names of the levels of this machine, best last */
enum { MOST_LEVELS = 8 };
int32_t kernel_levels(const char *names[MOST_LEVELS]);

#endif
