/* The epilogue, a value at a time. */
#ifndef EDGEID_EPILOGUE_H
#define EDGEID_EPILOGUE_H

#include "kernels.h"

static inline float activated(const Activation *activation, int32_t channel, float x) {
    if (activation->slope)
        x = x > 0 ? x : x * activation->slope[channel];
    if (activation->clips) {
        x = x > activation->low ? x : activation->low;
        x = x < activation->high ? x : activation->high;
    }
    return x;
}

/* of one sum; residual may be NULL. runtime/native/program.py has the definition */
static inline float finished(const Layer *layer, int32_t channel, float x, const float *residual) {
    x = x * layer->gain[channel];
    x = x + layer->bias[channel];
    x = activated(&layer->first, channel, x);
    if (residual)
        x = x + *residual;
    return activated(&layer->second, channel, x);
}

#endif
