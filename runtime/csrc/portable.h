/* Parts of the portable kernels that others use as well. */
#ifndef EDGEID_PORTABLE_H
#define EDGEID_PORTABLE_H

#include "kernels.h"

/* x in eight bits: runtime/activation_scale.py has the definition */
static inline uint8_t coded(float x, float inverse, int32_t zero) {
    float low = (float)-zero, high = (float)(255 - zero);
    float t = x * inverse;
    t = t > low ? t : low;
    t = t < high ? t : high;
    /* to the nearest, halves to even: beyond 2^23 a float has no room for a fraction. Unlike
     * rintf this is two instructions everywhere */
    const float large = 12582912.0f;
    return (uint8_t)((int32_t)((t + large) - large) + zero);
}

int32_t few_rows(const Layer *);
size_t depthwise_packed_bytes(const Layer *);
void depthwise_pack(const Layer *, const Weights *, uint8_t *packed);

#endif
