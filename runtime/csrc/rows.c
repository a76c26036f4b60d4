#include "rows.h"

#include <string.h>

static Rows rows_of(const Layer *layer, int32_t rows) {
    Rows r;
    r.rows = rows;
    r.phases_y = at_most(layer->sy, layer->kh);
    r.phases_x = at_most(layer->sx, layer->kw);
    r.width = layer->wout + (layer->kw - 1) / layer->sx;
    /* one border between two rows serves both as the end of one and the start of the other */
    if (layer->sx == 1 && layer->kw == 2 * layer->left + 1 && layer->win == layer->wout)
        r.width = layer->wout + layer->left;
    r.height = rows + (layer->kh - 1) / layer->sy;
    r.positions = r.phases_y * r.phases_x * r.height * r.width;
    r.built = rounded_up(r.positions + layer->kw, ROW_VECTOR);
    r.stride = r.built + ROW_VECTOR;
    r.outputs = rows * r.width;
    r.sums = rounded_up(r.outputs, ROW_VECTOR);
    return r;
}

/* A fully connected layer, or a window over all of the image: rows would be mostly empty. */
static int one_position(const Layer *layer) { return layer->hout == 1 && layer->wout == 1; }

size_t rows_packed_bytes(const Layer *layer) {
    size_t codewords = one_position(layer) ? (size_t)layer->count * layer->length : 0;
    /* vectors of indices may reach beyond the last */
    return layer->spaces * ((size_t)layer->cout * layer->kh * layer->kw + codewords) + 64;
}

/* of every sub-space the codewords [length][count], then the indices [taps][cout] */
static void one_pack(const Layer *layer, const Weights *weights, uint8_t *packed) {
    const int8_t *c = layer->codewords;
    size_t n = (size_t)layer->kh * layer->kw * layer->cout;
    for (int32_t space = 0; space < layer->spaces; space++) {
        for (int32_t k = 0; k < layer->count; k++)
            for (int32_t j = 0; j < layer->length; j++)
                packed[(size_t)j * layer->count + k] = (uint8_t)*c++;
        packed += (size_t)layer->count * layer->length;
        unpack_indices(layer, weights, space * n, n, packed);
        packed += n;
    }
}

static void one_run(const Layer *layer, const Tile *tile, const RowKernel *kernel,
                    int32_t *totals) {
    const uint8_t *packed = layer->packed;
    for (int32_t space = 0; space < layer->spaces; space++) {
        int32_t channel = space * layer->length;
        const int8_t *codewords = (const int8_t *)packed;
        const uint8_t *plane = tile->in + channel % BLOCK +
                               (size_t)(channel / BLOCK) * layer->hin * layer->win * BLOCK;
        packed += (size_t)layer->count * layer->length;
        for (int32_t tap = 0; tap < layer->kh * layer->kw; tap++, packed += layer->cout) {
            int32_t y = tap / layer->kw - layer->top, x = tap % layer->kw - layer->left;
            if (y >= 0 && y < layer->hin && x >= 0 && x < layer->win)
                kernel->add_one(layer, space, codewords,
                                plane + ((size_t)y * layer->win + x) * BLOCK, packed, totals);
        }
    }
}

/* [spaces][cout][taps], one byte an index: the order in which they are read */
void rows_pack(const Layer *layer, const Weights *weights, uint8_t *packed) {
    if (one_position(layer)) {
        one_pack(layer, weights, packed);
        return;
    }
    enum { SOME = 64 };
    uint8_t some[SOME];
    int32_t taps = layer->kh * layer->kw, n;
    size_t i = 0;
    for (int32_t space = 0; space < layer->spaces; space++)
        for (int32_t tap = 0; tap < taps; tap++)
            for (int32_t o = 0; o < layer->cout; o += n, i += (size_t)n) {
                n = at_most(SOME, layer->cout - o);
                unpack_indices(layer, weights, i, (size_t)n, some);
                uint8_t *to = packed + ((size_t)space * layer->cout + o) * taps + tap;
                for (int32_t k = 0; k < n; k++)
                    to[(size_t)k * taps] = some[k];
            }
}

/* so many that the tables stay in the first-level cache, but not so few that the rows which
 * neighbouring tiles both need cost more than that is worth */
int32_t rows_per_tile(const Layer *layer) {
    enum { TABLE_BYTES = 32 << 10, HALO = 4 };
    int32_t rows = 1;
    while (rows < layer->hout) {
        Rows r = rows_of(layer, rows + 1);
        if (rows >= HALO * (layer->kh - 1) && r.stride * layer->count > TABLE_BYTES)
            break;
        rows++;
    }
    return rows;
}

size_t rows_scratch_bytes(const Layer *layer, int32_t rows, const RowKernel *kernel) {
    Rows r = rows_of(layer, rows);
    return aligned((size_t)layer->length * r.stride * sizeof(int16_t)) +
           aligned((size_t)layer->count * r.stride * kernel->entry_bytes) +
           aligned((size_t)layer->cout * r.sums * sizeof(uint16_t)) +
           aligned((size_t)rounded_up(layer->cout, BLOCK) * r.sums * sizeof(int32_t)) + 64 +
           aligned((size_t)layer->kh * layer->kw * sizeof(int32_t));
}

/* q - zero of one sub-space: values[j][position]; zero outside the image, where they are zero
 * from the start */
static void gather(const Layer *layer, const Rows *r, const Tile *tile, int32_t space,
                   const RowKernel *kernel, int16_t *values) {
    int32_t channel = space * layer->length;
    const uint8_t *plane =
        tile->in + (size_t)(channel / BLOCK) * layer->hin * layer->win * BLOCK + channel % BLOCK;
    for (int32_t py = 0; py < r->phases_y; py++)
        for (int32_t px = 0; px < r->phases_x; px++) {
            /* columns j with 0 <= j * sx + px - left < win */
            int32_t before = at_least(0, layer->left - px + layer->sx - 1) / layer->sx;
            int32_t last = layer->win - 1 + layer->left - px;
            int32_t after = last < 0 ? 0 : at_most(r->width, last / layer->sx + 1);
            for (int32_t i = 0; i < r->height; i++, values += r->width) {
                int32_t y = (tile->y0 + i) * layer->sy + py - layer->top;
                if (y < 0 || y >= layer->hin || before >= after)
                    continue;
                int32_t x = before * layer->sx + px - layer->left;
                kernel->spread(plane + ((size_t)y * layer->win + x) * BLOCK,
                               (size_t)layer->sx * BLOCK, after - before, layer->length,
                               layer->zero, values + before, (size_t)r->stride);
            }
        }
}

void rows_run(const Layer *layer, const Tile *tile, uint8_t *scratch, const RowKernel *kernel) {
    Rows r = rows_of(layer, tile->y1 - tile->y0);
    int32_t taps = layer->kh * layer->kw;
    int16_t *values = (int16_t *)scratch;
    scratch += aligned((size_t)layer->length * r.stride * sizeof *values);
    uint8_t *tables = scratch;
    scratch += aligned((size_t)layer->count * r.stride * kernel->entry_bytes);
    uint16_t *sums = (uint16_t *)scratch;
    scratch += aligned((size_t)layer->cout * r.sums * sizeof *sums);
    int32_t *totals = (int32_t *)scratch;
    /* a vector may reach beyond the last total */
    scratch += aligned((size_t)rounded_up(layer->cout, BLOCK) * r.sums * sizeof *totals) + 64;
    int32_t *offsets = (int32_t *)scratch;

    for (int32_t ky = 0, tap = 0; ky < layer->kh; ky++)
        for (int32_t kx = 0; kx < layer->kw; kx++, tap++) {
            int32_t phase = ky % layer->sy * r.phases_x + kx % layer->sx;
            offsets[tap] = (phase * r.height + ky / layer->sy) * r.width + kx / layer->sx;
        }
    memset(totals, 0, (size_t)rounded_up(layer->cout, BLOCK) * r.sums * sizeof *totals);
    if (one_position(layer)) {
        /* the epilogue wants channels `sums` apart */
        one_run(layer, tile, kernel, totals);
        for (int32_t o = layer->cout - 1; o > 0; o--) {
            totals[(size_t)o * r.sums] = totals[o];
            totals[o] = 0;
        }
        kernel->finish(layer, &r, totals, tile);
        return;
    }
    memset(values, 0, (size_t)layer->length * r.stride * sizeof *values);
    memset(sums, 0, (size_t)layer->cout * r.sums * sizeof *sums);
    int32_t added = 0;
    for (int32_t space = 0; space < layer->spaces; space++) {
        if (added + taps > MAX_SUM) {
            kernel->flush(layer, &r, sums, added, totals);
            added = 0;
        }
        gather(layer, &r, tile, space, kernel, values);
        kernel->build(layer, space, values, r.stride, r.built, tables);
        kernel->add(layer, &r, tables, layer->packed + (size_t)space * layer->cout * taps,
                    offsets, sums);
        added += taps;
    }
    kernel->flush(layer, &r, sums, added, totals);
    kernel->finish(layer, &r, totals, tile);
}
