/* A step of a program, and the kernels of those that are computed in float32. */
#ifndef EDGEID_STEPS_H
#define EDGEID_STEPS_H

#include "program.h"

typedef struct {
    int32_t kind, groups, channel;
    int32_t input, second, real, coded; /* slots, or -1 */
    float eps;
    Layer layer;
    const Kernel *kernel; /* of a convolution in integers */
    int32_t tile_rows;
    size_t scratch_bytes;
} Step;

/* Where a step finds the activations of one image; NULL where it has none. */
typedef struct {
    const float *source; /* of the program, row-major */
    const float *input, *second;
    const uint8_t *coded_input;
    float *real;
    uint8_t *coded;
} Image;

/* One image of a step that is not a convolution in integers. */
void step_plain(const Step *, const Image *);
/* From blocks of channels to row-major order. */
void step_unpack(const Layer *, const float *blocked, float *rows);

#endif
