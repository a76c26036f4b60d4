/* What is computed in float32, one value after the other in the order that the oracle has. */
#include "steps.h"

#include <math.h>
#include <string.h>

#include "portable.h"

static size_t area_in(const Layer *layer) { return (size_t)layer->hin * layer->win; }
static size_t area_out(const Layer *layer) { return (size_t)layer->hout * layer->wout; }

/* place of (channel, position) in blocks of channels */
static size_t place(size_t area, int32_t channel, size_t position) {
    return ((size_t)(channel / BLOCK) * area + position) * BLOCK + channel % BLOCK;
}

static float activated(const Activation *activation, int32_t channel, float x) {
    if (activation->slope)
        x = x > 0 ? x : x * activation->slope[channel];
    if (activation->clips) {
        x = x > activation->low ? x : activation->low;
        x = x < activation->high ? x : activation->high;
    }
    return x;
}

static float finished(const Layer *layer, int32_t channel, float x, const float *residual) {
    x = x * layer->gain[channel];
    x = x + layer->bias[channel];
    x = activated(&layer->first, channel, x);
    if (residual)
        x = x + *residual;
    return activated(&layer->second, channel, x);
}

static void quantise(const Layer *layer, const float *from, uint8_t *to) {
    size_t n = (size_t)blocks(layer->cout) * area_out(layer) * BLOCK;
    for (size_t i = 0; i < n; i++)
        to[i] = coded(from[i], layer->out_inverse, layer->out_zero);
}

static void pack(const Step *step, const Image *image) {
    const Layer *layer = &step->layer;
    size_t area = area_out(layer), all = (size_t)blocks(layer->cout) * BLOCK * area;
    if (image->real)
        memset(image->real, 0, all * sizeof(float));
    if (image->coded)
        memset(image->coded, layer->out_zero, all);
    for (int32_t c = 0; c < layer->cout; c++)
        for (size_t p = 0; p < area; p++) {
            float x = image->source[c * area + p];
            if (image->real)
                image->real[place(area, c, p)] = x;
            if (image->coded)
                image->coded[place(area, c, p)] = coded(x, layer->out_inverse, layer->out_zero);
        }
}

void step_unpack(const Layer *layer, const float *blocked, float *rows) {
    size_t area = area_out(layer);
    for (int32_t c = 0; c < layer->cout; c++)
        for (size_t p = 0; p < area; p++)
            rows[c * area + p] = blocked[place(area, c, p)];
}

/* weights: [groups][cin / groups][taps][outputs of a group, rounded up to a block]; eight
 * outputs at once, each the sum over channels, kernel rows and columns in this order */
static void float_conv(const Step *step, const Image *image) {
    const Layer *layer = &step->layer;
    const float *weights = (const float *)layer->packed;
    int32_t taps = layer->kh * layer->kw, channels = layer->cin / step->groups;
    int32_t outputs = layer->cout / step->groups, width = rounded_up(outputs, BLOCK);
    for (int32_t o = 0; o < layer->cout; o += outputs)
        for (int32_t first = 0; first < outputs; first += BLOCK)
            for (int32_t y = 0; y < layer->hout; y++)
                for (int32_t x = 0; x < layer->wout; x++) {
                    float sum[BLOCK] = {0};
                    const float *w = weights + (size_t)(o / outputs) * channels * taps * width;
                    for (int32_t c = 0; c < channels; c++)
                        for (int32_t tap = 0; tap < taps; tap++) {
                            int32_t iy = y * layer->sy + tap / layer->kw - layer->top;
                            int32_t ix = x * layer->sx + tap % layer->kw - layer->left;
                            if (iy < 0 || iy >= layer->hin || ix < 0 || ix >= layer->win)
                                continue;
                            float v = image->input[place(area_in(layer), o / outputs * channels + c,
                                                         (size_t)iy * layer->win + ix)];
                            const float *at = w + ((size_t)c * taps + tap) * width + first;
                            for (int32_t n = 0; n < BLOCK; n++)
                                sum[n] += v * at[n];
                        }
                    for (int32_t n = 0; n < BLOCK && first + n < outputs; n++) {
                        int32_t channel = o + first + n;
                        size_t to = place(area_out(layer), channel, (size_t)y * layer->wout + x);
                        const float *residual = image->second ? image->second + to : NULL;
                        image->real[to] = finished(layer, channel, sum[n], residual);
                    }
                }
}

static void elementwise(const Step *step, const Image *image) {
    const Layer *layer = &step->layer;
    for (int32_t c = 0; c < layer->cout; c++)
        for (size_t p = 0; p < area_out(layer); p++) {
            size_t at = place(area_out(layer), c, p);
            float x = image->input[at];
            if (image->second)
                x = step->kind == PRODUCT ? x * image->second[at] : x + image->second[at];
            image->real[at] = finished(layer, c, x, NULL);
        }
}

static void pool(const Step *step, const Image *image) {
    const Layer *layer = &step->layer;
    int largest = step->kind == LARGEST;
    for (int32_t block = 0; block < blocks(layer->cout); block++)
        for (int32_t y = 0; y < layer->hout; y++)
            for (int32_t x = 0; x < layer->wout; x++) {
                float result[BLOCK], count = 0;
                for (int32_t n = 0; n < BLOCK; n++)
                    result[n] = largest ? -INFINITY : 0;
                for (int32_t tap = 0; tap < layer->kh * layer->kw; tap++) {
                    int32_t iy = y * layer->sy + tap / layer->kw - layer->top;
                    int32_t ix = x * layer->sx + tap % layer->kw - layer->left;
                    if (iy < 0 || iy >= layer->hin || ix < 0 || ix >= layer->win)
                        continue;
                    const float *v = image->input + place(area_in(layer), block * BLOCK,
                                                          (size_t)iy * layer->win + ix);
                    count += 1;
                    for (int32_t n = 0; n < BLOCK; n++) {
                        float joined = result[n] + v[n], larger = v[n] > result[n] ? v[n] : result[n];
                        result[n] = largest ? larger : joined;
                    }
                }
                float *to = image->real + place(area_out(layer), block * BLOCK,
                                                (size_t)y * layer->wout + x);
                for (int32_t n = 0; n < BLOCK; n++)
                    to[n] = largest ? result[n] : result[n] / count;
            }
}

/* a part of a concatenation */
static void join(const Step *step, const Image *image) {
    const Layer *layer = &step->layer;
    for (int32_t c = 0; c < layer->cin; c++)
        for (size_t p = 0; p < area_in(layer); p++)
            image->real[place(area_in(layer), step->channel + c, p)] =
                image->input[place(area_in(layer), c, p)];
}

static void reshape(const Step *step, const Image *image) {
    const Layer *layer = &step->layer;
    size_t from = area_in(layer), to = area_out(layer);
    for (int32_t c = 0; c < layer->cin; c++)
        for (size_t p = 0; p < from; p++) {
            size_t i = c * from + p;
            image->real[place(to, (int32_t)(i / to), i % to)] = image->input[place(from, c, p)];
        }
}

static void normalise(const Step *step, const Image *image) {
    const Layer *layer = &step->layer;
    size_t area = area_out(layer);
    for (size_t p = 0; p < area; p++) {
        float total = 0;
        for (int32_t c = 0; c < layer->cout; c++) {
            float x = image->input[place(area, c, p)];
            total += x * x;
        }
        float length = sqrtf(total);
        length = length > step->eps ? length : step->eps;
        for (int32_t c = 0; c < layer->cout; c++)
            image->real[place(area, c, p)] = image->input[place(area, c, p)] / length;
    }
}

void step_plain(const Step *step, const Image *image) {
    switch (step->kind) {
    case PACK: pack(step, image); break;
    case FLOAT_CONV: float_conv(step, image); break;
    case SUM:
    case PRODUCT: elementwise(step, image); break;
    case LARGEST:
    case MEAN: pool(step, image); break;
    case JOIN: join(step, image); break;
    case RESHAPE: reshape(step, image); break;
    case NORMALISE: normalise(step, image); break;
    case QUANTISE: quantise(&step->layer, image->input, image->coded); break;
    }
}
