/* An input with a border of zero points around it, so that windows need no check. */
#ifndef EDGEID_PADDED_H
#define EDGEID_PADDED_H

#include <string.h>

#include "kernels.h"

/* Bytes between channel blocks and between rows, and where the first window of a tile begins. */
typedef struct {
    const uint8_t *start;
    size_t plane, row;
} Padded;

static inline int32_t padded_width(const Layer *layer) {
    return (layer->wout - 1) * layer->sx + layer->kw;
}

static inline int32_t padded_height(const Layer *layer, int32_t rows) {
    return (rows - 1) * layer->sy + layer->kh;
}

static inline size_t padded_bytes(const Layer *layer, int32_t rows) {
    return aligned((size_t)blocks(layer->cin) * padded_height(layer, rows) * padded_width(layer) *
                   BLOCK);
}

/* Copies what the windows of a tile meet into `scratch`. Without a border nothing is copied. */
static inline Padded padded(const Layer *layer, const Tile *tile, uint8_t *scratch) {
    int32_t width = padded_width(layer), height = padded_height(layer, tile->y1 - tile->y0);
    int32_t top = tile->y0 * layer->sy - layer->top;
    size_t image_row = (size_t)layer->win * BLOCK, image_plane = image_row * layer->hin;
    if (layer->left == 0 && top >= 0 && width <= layer->win && top + height <= layer->hin)
        return (Padded){tile->in + (size_t)top * image_row, image_plane, image_row};
    Padded view = {scratch, (size_t)height * width * BLOCK, (size_t)width * BLOCK};
    size_t before = (size_t)at_most(layer->left, width) * BLOCK;
    size_t inside = (size_t)at_most(layer->win, width - layer->left) * BLOCK;
    for (int32_t block = 0; block < blocks(layer->cin); block++)
        for (int32_t y = 0; y < height; y++, scratch += view.row) {
            int32_t from = top + y;
            if (from < 0 || from >= layer->hin) {
                memset(scratch, layer->zero, view.row);
                continue;
            }
            memset(scratch, layer->zero, before);
            memcpy(scratch + before, tile->in + block * image_plane + from * image_row, inside);
            memset(scratch + before + inside, layer->zero, view.row - before - inside);
        }
    return view;
}

#endif
