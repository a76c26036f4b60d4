/* What the files that make, check and run programs share. */
#ifndef EDGEID_PARTS_H
#define EDGEID_PARTS_H

#include <pthread.h>

#include "program.h"
#include "steps.h"

/* Limits of what a record may say. They keep every product of sizes far below 2^63. */
enum { MAX_STEPS = 1 << 14, MAX_SLOTS = 1 << 15, MAX_SIDE = 1 << 26, MAX_KERNEL = 1024 };
#define MAX_VALUES ((int64_t)1 << 26) /* of an activation, and of unfolded windows */
#define MAX_BYTES ((int64_t)1 << 32)  /* of an arena, and of one layer's weights */

typedef struct {
    int64_t offset, bytes;
} Slot;

typedef struct Arena {
    struct Arena *next;
    void *allocated;
    uint8_t *memory; /* activations of all images, then scratch of every thread */
    int32_t threads, images;
} Arena;

struct Program {
    int64_t input, output, steps, slots, arena_bytes, packed_bytes;
    int32_t result;
    const Layer *last; /* the layer that writes the result */
    size_t scratch_bytes; /* of the step that needs most */
    Step *step;
    Slot *slot;
    uint8_t *constants; /* all per-channel values and codewords */
    uint8_t *packed;    /* weights in the order in which kernels read them */
    pthread_mutex_t lock;
    Arena *idle;
};

/* A record, and all that it may refer to. */
typedef struct {
    const int64_t *record;
    int64_t number;
    const Slot *slots;
    int64_t slot_count;
    const uint8_t *blob;
    int64_t blob_bytes;
    char *problem;
} Reader;

static inline int within(int64_t value, int64_t low, int64_t high) {
    return value >= low && value <= high;
}

/* records.c: whether every size, slot and offset of the record is one that can be used; says
 * what is wrong in `problem` */
int record_fits(const Reader *);
int record_bad(const Reader *, const char *what);

/* run.c */
void arena_free(Arena *);

#endif
