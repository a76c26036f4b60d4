/* What is computed in float32, one value after the other in the order that the oracle has. */
#include "steps.h"

#include <math.h>
#include <string.h>

#include "epilogue.h"
#include "portable.h"

static size_t area_in(const Layer *layer) { return (size_t)layer->hin * layer->win; }
static size_t area_out(const Layer *layer) { return (size_t)layer->hout * layer->wout; }

/* place of (channel, position) in blocks of channels */
static size_t place(size_t area, int32_t channel, size_t position) {
    return ((size_t)(channel / BLOCK) * area + position) * BLOCK + channel % BLOCK;
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

enum { AT_ONCE = 4 }; /* positions of a convolution whose sums are in registers together */

typedef struct {
    const Layer *layer;
    const float *weights; /* [channels][taps][width], from the first of eight outputs on */
    const float *input;
    int32_t first, channels, width; /* input channels of the group, outputs of it */
} Filter;

/* sum[n][o] of positions (y, x + n): over channels, kernel rows and columns in this order. What
 * lies outside of the image adds nothing. */
static inline void filter(const Filter *f, int32_t y, int32_t x, int32_t n, int inside,
                          float sum[AT_ONCE][BLOCK]) {
    const Layer *layer = f->layer;
    for (int32_t c = 0; c < f->channels; c++) {
        const float *channel = f->input + place(area_in(layer), f->first + c, 0);
        const float *w = f->weights + (size_t)c * layer->kh * layer->kw * f->width;
        for (int32_t ky = 0; ky < layer->kh; ky++, w += (size_t)layer->kw * f->width) {
            int32_t iy = y * layer->sy + ky - layer->top;
            if (iy < 0 || iy >= layer->hin)
                continue;
            for (int32_t kx = 0; kx < layer->kw; kx++) {
                const float *at = w + (size_t)kx * f->width;
                for (int32_t i = 0; i < n; i++) {
                    int32_t ix = (x + i) * layer->sx + kx - layer->left;
                    if (!inside && (ix < 0 || ix >= layer->win))
                        continue;
                    float v = channel[((ptrdiff_t)iy * layer->win + ix) * BLOCK];
                    for (int32_t o = 0; o < BLOCK; o++)
                        sum[i][o] += v * at[o];
                }
            }
        }
    }
}

/* one row of eight outputs */
static void filter_row(const Step *step, const Image *image, const Filter *f, int32_t channel,
                       int32_t outputs, int32_t y) {
    const Layer *layer = f->layer;
    for (int32_t x = 0; x < layer->wout; x += AT_ONCE) {
        float sum[AT_ONCE][BLOCK] = {{0}};
        int32_t n = at_most(AT_ONCE, layer->wout - x);
        int32_t last = (x + n - 1) * layer->sx + layer->kw - 1 - layer->left;
        if (n == AT_ONCE && x * layer->sx >= layer->left && last < layer->win)
            filter(f, y, x, AT_ONCE, 1, sum);
        else
            filter(f, y, x, n, 0, sum);
        for (int32_t i = 0; i < n; i++)
            for (int32_t o = 0; o < outputs; o++) {
                size_t to = place(area_out(layer), channel + o, (size_t)y * layer->wout + x + i);
                const float *residual = image->second ? image->second + to : NULL;
                image->real[to] = finished(&step->layer, channel + o, sum[i][o], residual);
            }
    }
}

/* packed: [groups][cin / groups][taps][outputs of a group, rounded up to a block] */
static void float_conv(const Step *step, const Image *image) {
    const Layer *layer = &step->layer;
    int32_t taps = layer->kh * layer->kw, channels = layer->cin / step->groups;
    int32_t outputs = layer->cout / step->groups, width = rounded_up(outputs, BLOCK);
    for (int32_t group = 0; group < step->groups; group++)
        for (int32_t o = 0; o < outputs; o += BLOCK) {
            const float *weights = (const float *)layer->packed;
            weights += (size_t)group * channels * taps * width + o;
            Filter f = {layer, weights, image->input, group * channels, channels, width};
            for (int32_t y = 0; y < layer->hout; y++)
                filter_row(step, image, &f, group * outputs + o, at_most(BLOCK, outputs - o), y);
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
    size_t from = area_in(layer), to = area_out(layer), p_to = 0;
    int32_t c_to = 0;
    for (int32_t c = 0; c < layer->cin; c++)
        for (size_t p = 0; p < from; p++) {
            image->real[place(to, c_to, p_to)] = image->input[place(from, c, p)];
            if (++p_to == to)
                p_to = 0, c_to++;
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
